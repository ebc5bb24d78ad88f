//! Digests and the paths where they are good, in few allocations.
//!
//! For each hash algorithm one block of sorted digests and one open-addressing index of u32 over it. A digest is uniformly distributed, so its
//! first bytes are its hash: a look-up costs two or three cache lines, and one that fails stops at the first empty slot.

use countersign_wire::ima::KernelHash;

/// What a table says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// The digest is not there.
    No,
    /// It is, for this path or for any.
    Yes,
    /// It is, but for other paths; this is one of them.
    Elsewhere(&'a [u8]),
}

/// Digests of one algorithm.
#[derive(Debug, Default)]
struct Block {
    width: usize,
    digests: Vec<u8>,
    /// Index of a digest's first place in `places`; one more at the end.
    first: Vec<u32>,
    /// 0 is empty, else the index of a digest and one.
    slots: Vec<u32>,
}

/// A set of digests.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By number of the algorithm.
    blocks: Vec<Block>,
    /// Start and end of a path in `text`; both 0 for "everywhere".
    places: Vec<(u32, u32)>,
    text: Vec<u8>,
    digests: usize,
}

/// What a table is built from.
#[derive(Debug, Default)]
pub(super) struct Builder {
    by_alg: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl Builder {
    /// Adds a digest for a path (as the kernel logs it); the empty path stands for everywhere.
    pub(super) fn add(&mut self, alg: KernelHash, digest: Vec<u8>, path: Vec<u8>) {
        let at = usize::from(alg.id());
        if self.by_alg.len() <= at {
            self.by_alg.resize_with(at.saturating_add(1), Vec::new);
        }
        if let Some(list) = self.by_alg.get_mut(at) {
            list.push((digest, path));
        }
    }

    /// Builds the table; `None` for more paths than 32 bits can count.
    pub(super) fn build(self) -> Option<Table> {
        let mut table = Table::default();
        // Byte 0 of the text is unused, so that no path starts there.
        table.text.push(0);
        for (id, mut list) in (0u8..).zip(self.by_alg) {
            list.sort_unstable();
            list.dedup();
            let width = KernelHash::from_id(id)?.size();
            let mut block = Block { width, ..Block::default() };
            let mut last: Option<&[u8]> = None;
            for (digest, path) in &list {
                if last != Some(digest) {
                    block.first.push(u32::try_from(table.places.len()).ok()?);
                    block.digests.extend(digest);
                    last = Some(digest);
                }
                let start = u32::try_from(table.text.len()).ok()?;
                table.text.extend(path);
                let end = u32::try_from(table.text.len()).ok()?;
                table.places.push(if path.is_empty() { (0, 0) } else { (start, end) });
            }
            block.first.push(u32::try_from(table.places.len()).ok()?);
            block.index()?;
            table.digests = table.digests.saturating_add(block.len());
            table.blocks.push(block);
        }
        table.places.shrink_to_fit();
        table.text.shrink_to_fit();
        Some(table)
    }
}

/// Where the search for a digest starts.
fn start(digest: &[u8], mask: usize) -> usize {
    let head = digest.first_chunk().map_or(0, |head: &[u8; 8]| u64::from_le_bytes(*head));
    usize::try_from(head & u64::try_from(mask).unwrap_or(0)).unwrap_or(0)
}

impl Block {
    fn len(&self) -> usize {
        self.first.len().saturating_sub(1)
    }

    fn digest(&self, index: usize) -> &[u8] {
        let at = index.saturating_mul(self.width);
        self.digests.get(at..at.saturating_add(self.width)).unwrap_or_default()
    }

    /// Fills the index: at most half of the slots are taken.
    fn index(&mut self) -> Option<()> {
        let size = self.len().checked_mul(2)?.checked_next_power_of_two()?.max(2);
        let mask = size.saturating_sub(1);
        let mut slots = vec![0u32; size];
        for index in 0..self.len() {
            let mut at = start(self.digest(index), mask);
            while slots.get(at).is_some_and(|slot| *slot != 0) {
                at = at.wrapping_add(1) & mask;
            }
            *slots.get_mut(at)? = u32::try_from(index).ok()?.checked_add(1)?;
        }
        self.slots = slots;
        Some(())
    }

    fn find(&self, digest: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = start(digest, mask);
        loop {
            let index = usize::try_from(*self.slots.get(at)?).ok()?.checked_sub(1)?;
            if self.digest(index) == digest {
                return Some(index);
            }
            at = at.wrapping_add(1) & mask;
        }
    }
}

impl Table {
    /// Digests in it.
    pub(super) const fn len(&self) -> usize {
        self.digests
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let block = |block: &Block| {
            let words = block.first.len().saturating_add(block.slots.len());
            block.digests.len().saturating_add(words.saturating_mul(4))
        };
        let blocks = self.blocks.iter().map(block).fold(0, usize::saturating_add);
        blocks.saturating_add(self.places.len().saturating_mul(8)).saturating_add(self.text.len())
    }

    fn places(&self, alg: KernelHash, digest: &[u8]) -> Option<&[(u32, u32)]> {
        let block = self.blocks.get(usize::from(alg.id()))?;
        let index = block.find(digest)?;
        let (first, end) = (*block.first.get(index)?, *block.first.get(index.checked_add(1)?)?);
        self.places.get(usize::try_from(first).ok()?..usize::try_from(end).ok()?)
    }

    fn path(&self, place: (u32, u32)) -> &[u8] {
        let at = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
        self.text.get(at(place.0)..at(place.1)).unwrap_or_default()
    }

    /// Whether a digest is good at a path.
    pub(super) fn find(&self, alg: KernelHash, digest: &[u8], path: &[u8]) -> Found<'_> {
        let Some(places) = self.places(alg, digest) else { return Found::No };
        if places.iter().any(|place| *place == (0, 0) || self.path(*place) == path) {
            return Found::Yes;
        }
        places.first().map_or(Found::No, |place| Found::Elsewhere(self.path(*place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_path_and_everywhere() {
        let mut builder = Builder::default();
        let (sha256, sha1) = (KernelHash::SHA256, KernelHash::SHA1);
        builder.add(sha256, vec![1; 32], b"/bin/a".to_vec());
        builder.add(sha256, vec![1; 32], b"/bin/b".to_vec());
        builder.add(sha256, vec![1; 32], b"/bin/b".to_vec());
        builder.add(sha256, vec![2; 32], Vec::new());
        builder.add(sha256, vec![2; 32], b"/bin/c".to_vec());
        builder.add(sha1, vec![3; 20], b"/old".to_vec());
        let table = builder.build().unwrap();
        assert_eq!(table.len(), 3);
        assert_eq!(table.find(sha256, &[1; 32], b"/bin/b"), Found::Yes);
        assert_eq!(table.find(sha256, &[1; 32], b"/bin/c"), Found::Elsewhere(b"/bin/a"));
        assert_eq!(table.find(sha256, &[2; 32], b"/anywhere"), Found::Yes);
        assert_eq!(table.find(sha256, &[3; 32], b"/bin/a"), Found::No);
        assert_eq!(table.find(sha1, &[3; 20], b"/old"), Found::Yes);
        assert_eq!(table.find(sha1, &[3; 32], b"/old"), Found::No, "of another length");
        assert_eq!(table.find(KernelHash::SHA512, &[3; 64], b"/old"), Found::No);
        assert_eq!(Builder::default().build().unwrap().find(sha1, &[3; 20], b""), Found::No);
    }

    #[test]
    fn digests_that_start_alike_are_told_apart() {
        let mut builder = Builder::default();
        let digest = |n: u16| {
            let mut digest = vec![0; 32];
            digest[20..22].copy_from_slice(&n.to_le_bytes());
            digest
        };
        for n in 0..500 {
            builder.add(KernelHash::SHA256, digest(n), format!("/{n}").into_bytes());
        }
        let table = builder.build().unwrap();
        for n in 0..500 {
            assert_eq!(table.find(KernelHash::SHA256, &digest(n), format!("/{n}").as_bytes()), Found::Yes);
        }
        assert_eq!(table.find(KernelHash::SHA256, &digest(500), b"/1"), Found::No);
    }
}
