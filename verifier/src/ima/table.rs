//! Digests and the paths where they are good, in few allocations.
//!
//! For each hash algorithm an open-addressing table of (path, digest) pairs, found by one look into memory: the digest is uniformly distributed,
//! and a keyed hash of the path (SipHash, with a key of this process) stands for the path. What accepts nothing, the list of the paths of a
//! digest, lies elsewhere and is only read to explain a refusal.

use std::hash::{BuildHasher as _, RandomState};

use countersign_wire::ima::KernelHash;

/// Stands in the place of a path's hash for "everywhere". No path's hash is 0 or 1.
const EVERYWHERE: u64 = 1;
/// Bytes in front of a slot's digest: the path's hash; 0 in an empty slot.
const TAG: usize = 8;

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

/// Where a table looks first for a file. Made ahead for several files, so that their memory is fetched at once and not one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    alg: KernelHash,
    tag: u64,
}

/// Pairs of one algorithm.
#[derive(Debug, Default)]
struct Block {
    /// Bytes of a digest.
    width: usize,
    /// Path's hash and digest, one behind the other.
    slots: Vec<u8>,
    mask: usize,
    /// Some digest is good everywhere.
    everywhere: bool,
    /// The digests, sorted, and the index of each one's first place in `places`; one more at the end.
    digests: Vec<u8>,
    first: Vec<u32>,
}

/// A set of digests.
#[derive(Debug, Default)]
pub(super) struct Table {
    hasher: RandomState,
    /// By number of the algorithm.
    blocks: Vec<Block>,
    /// Start and end of a path in `text`.
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
        for (id, mut list) in (0u8..).zip(self.by_alg) {
            list.sort_unstable();
            list.dedup();
            let mut block = Block::new(KernelHash::from_id(id)?.size(), list.len())?;
            let mut last: Option<&[u8]> = None;
            for (digest, path) in &list {
                if last != Some(digest) {
                    block.first.push(u32::try_from(table.places.len()).ok()?);
                    block.digests.extend(digest);
                    last = Some(digest);
                }
                let start = u32::try_from(table.text.len()).ok()?;
                table.text.extend(path);
                table.places.push((start, u32::try_from(table.text.len()).ok()?));
                block.everywhere |= path.is_empty();
                block.insert(digest, table.tag(path));
            }
            block.first.push(u32::try_from(table.places.len()).ok()?);
            table.digests = table.digests.saturating_add(block.len());
            table.blocks.push(block);
        }
        table.places.shrink_to_fit();
        table.text.shrink_to_fit();
        Some(table)
    }
}

impl Block {
    /// At most half of the slots are taken.
    fn new(width: usize, pairs: usize) -> Option<Self> {
        let size = pairs.checked_mul(2)?.checked_next_power_of_two()?.max(2);
        let slots = vec![0; size.checked_mul(width.checked_add(TAG)?)?];
        Some(Self { width, slots, mask: size.checked_sub(1)?, ..Self::default() })
    }

    fn len(&self) -> usize {
        self.first.len().saturating_sub(1)
    }

    /// Slot in which the search for a pair starts.
    fn start(&self, digest: &[u8], tag: u64) -> usize {
        let head = digest.first_chunk().map_or(0, |head: &[u8; 8]| u64::from_le_bytes(*head));
        usize::try_from((head ^ tag) & u64::try_from(self.mask).unwrap_or(0)).unwrap_or(0)
    }

    fn range(&self, slot: usize) -> std::ops::Range<usize> {
        let size = self.width.saturating_add(TAG);
        let at = slot.saturating_mul(size);
        at..at.saturating_add(size)
    }

    fn insert(&mut self, digest: &[u8], tag: u64) {
        let mut slot = self.start(digest, tag);
        loop {
            let range = self.range(slot);
            let Some(bytes) = self.slots.get_mut(range) else { return };
            let (stored, place) = bytes.split_at_mut(TAG);
            if stored == [0; TAG] {
                stored.copy_from_slice(&tag.to_le_bytes());
                place.copy_from_slice(digest);
                return;
            }
            slot = slot.wrapping_add(1) & self.mask;
        }
    }

    fn has(&self, digest: &[u8], tag: u64) -> bool {
        let mut slot = self.start(digest, tag);
        loop {
            let Some((stored, place)) = self.slots.get(self.range(slot)).and_then(|bytes| bytes.split_first_chunk())
            else {
                return false;
            };
            match u64::from_le_bytes(*stored) {
                0 => return false,
                stored if stored == tag && place == digest => return true,
                _ => slot = slot.wrapping_add(1) & self.mask,
            }
        }
    }

    /// Index of a digest among the sorted ones.
    fn position(&self, digest: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.saturating_add(high) / 2;
            let at = middle.saturating_mul(self.width);
            match self.digests.get(at..at.saturating_add(self.width))?.cmp(digest) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle.saturating_add(1),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
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
            let cold = block.digests.len().saturating_add(block.first.len().saturating_mul(4));
            block.slots.len().saturating_add(cold)
        };
        let blocks = self.blocks.iter().map(block).fold(0, usize::saturating_add);
        blocks.saturating_add(self.places.len().saturating_mul(8)).saturating_add(self.text.len())
    }

    fn tag(&self, path: &[u8]) -> u64 {
        if path.is_empty() {
            return EVERYWHERE;
        }
        self.hasher.hash_one(path) | 2
    }

    /// Where to look for a file, and a first touch of that memory.
    pub(super) fn probe(&self, alg: KernelHash, digest: &[u8], path: &[u8]) -> Probe {
        let tag = self.tag(path);
        if let Some(block) = self.blocks.get(usize::from(alg.id())) {
            let slot = block.range(block.start(digest, tag));
            std::hint::black_box(block.slots.get(slot.start));
        }
        Probe { alg, tag }
    }

    /// Whether a digest is good at the probe's path.
    pub(super) fn find(&self, probe: Probe, digest: &[u8]) -> Found<'_> {
        let Some(block) = self.blocks.get(usize::from(probe.alg.id())).filter(|block| block.width == digest.len())
        else {
            return Found::No;
        };
        if block.has(digest, probe.tag) || block.everywhere && block.has(digest, EVERYWHERE) {
            return Found::Yes;
        }
        let first = block.position(digest).and_then(|index| block.first.get(index));
        let place = first.and_then(|first| self.places.get(usize::try_from(*first).ok()?));
        let at = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
        let path = place.and_then(|(start, end)| self.text.get(at(*start)..at(*end)));
        path.map_or(Found::No, Found::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'t>(table: &'t Table, alg: KernelHash, digest: &[u8], path: &[u8]) -> Found<'t> {
        table.find(table.probe(alg, digest, path), digest)
    }

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
        assert_eq!(find(&table, sha256, &[1; 32], b"/bin/b"), Found::Yes);
        assert_eq!(find(&table, sha256, &[1; 32], b"/bin/c"), Found::Elsewhere(b"/bin/a"));
        assert_eq!(find(&table, sha256, &[2; 32], b"/anywhere"), Found::Yes);
        assert_eq!(find(&table, sha256, &[1; 32], b""), Found::Elsewhere(b"/bin/a"));
        assert_eq!(find(&table, sha256, &[3; 32], b"/bin/a"), Found::No);
        assert_eq!(find(&table, sha1, &[3; 20], b"/old"), Found::Yes);
        assert_eq!(find(&table, sha1, &[3; 32], b"/old"), Found::No, "of another length");
        assert_eq!(find(&table, KernelHash::SHA512, &[3; 64], b"/old"), Found::No);
        assert_eq!(find(&Builder::default().build().unwrap(), sha1, &[3; 20], b""), Found::No);
    }

    #[test]
    fn one_digest_of_many_paths_and_digests_that_start_alike() {
        let mut builder = Builder::default();
        let digest = |n: u16| {
            let mut digest = vec![0; 32];
            digest[20..22].copy_from_slice(&n.to_le_bytes());
            digest
        };
        for n in 0..500 {
            builder.add(KernelHash::SHA256, digest(n), format!("/{n}").into_bytes());
            builder.add(KernelHash::SHA256, vec![9; 32], format!("/same/{n}").into_bytes());
        }
        let table = builder.build().unwrap();
        for n in 0..500 {
            assert_eq!(find(&table, KernelHash::SHA256, &digest(n), format!("/{n}").as_bytes()), Found::Yes);
            assert_eq!(find(&table, KernelHash::SHA256, &[9; 32], format!("/same/{n}").as_bytes()), Found::Yes);
        }
        assert_eq!(find(&table, KernelHash::SHA256, &digest(1), b"/2"), Found::Elsewhere(b"/1"));
        assert_eq!(find(&table, KernelHash::SHA256, &digest(500), b"/1"), Found::No);
    }
}
