//! Digests and the paths where they are good, in few allocations.
//!
//! Records stand in the order in which the sets name them, and a host that runs what a set describes mostly measures in that order too: the record
//! behind the last one found is tried first. Else an open-addressing table of (path, digest) pairs is asked, with one look into memory: the
//! digest is uniformly distributed, and a keyed hash of the path (SipHash, with a key of this process) stands for the path. The paths of a digest
//! are only looked for to explain a refusal.

use std::hash::{BuildHasher as _, RandomState};

use countersign_wire::ima::KernelHash;

/// Stands in the place of a path's hash for "everywhere". No path's hash is 0 or 1.
const EVERYWHERE: u64 = 1;
/// Bytes in front of a slot's digest: the path's hash; 0 in an empty slot.
const TAG: usize = 8;
/// Bytes behind a slot's digest: the number of its record.
const NUMBER: usize = 4;
/// Bytes behind a record's digest: start and end of its path in the text; equal for "everywhere".
const PLACE: usize = 8;

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

/// Where a table looks first for a file. Made ahead, so that the memory is on its way while something else is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    alg: KernelHash,
    tag: u64,
}

/// Records of one algorithm.
#[derive(Debug, Default)]
struct Block {
    /// Bytes of a digest.
    width: usize,
    /// Digest and place, in the order in which they were added.
    records: Vec<u8>,
    /// Path's hash, digest and number of the record, one slot behind the other.
    slots: Vec<u8>,
    mask: usize,
    /// Some digest is good everywhere.
    everywhere: bool,
    /// Numbers of the records, sorted by digest, one for each digest.
    sorted: Vec<u32>,
}

/// A set of digests.
#[derive(Debug, Default)]
pub(super) struct Table {
    hasher: RandomState,
    /// By number of the algorithm.
    blocks: Vec<Block>,
    text: Vec<u8>,
}

/// What a table is built from.
#[derive(Debug, Default)]
pub(super) struct Builder {
    table: Table,
    full: bool,
}

impl Builder {
    /// Adds a digest, of its algorithm's length, for a path (as the kernel logs it); the empty path stands for everywhere.
    pub(super) fn add(&mut self, alg: KernelHash, digest: &[u8], path: &[u8]) {
        let (start, at) = (self.table.text.len(), usize::from(alg.id()));
        self.table.text.extend(path);
        if self.table.blocks.len() <= at {
            self.table.blocks.resize_with(at.saturating_add(1), Block::default);
        }
        let ends = (u32::try_from(start), u32::try_from(self.table.text.len()));
        match (self.table.blocks.get_mut(at), ends) {
            (Some(block), (Ok(start), Ok(end))) if digest.len() == alg.size() => {
                block.width = alg.size();
                block.everywhere |= path.is_empty();
                block.records.extend(digest);
                block.records.extend(start.to_le_bytes());
                block.records.extend(end.to_le_bytes());
            }
            _ => self.full = true,
        }
    }

    /// Builds the table; `None` for more paths than 32 bits can count.
    pub(super) fn build(self) -> Option<Table> {
        if self.full {
            return None;
        }
        let Table { hasher, mut blocks, mut text } = self.table;
        text.shrink_to_fit();
        for block in &mut blocks {
            block.records.shrink_to_fit();
            block.index(&hasher, &text)?;
        }
        Some(Table { hasher, blocks, text })
    }
}

fn tag(hasher: &RandomState, path: &[u8]) -> u64 {
    if path.is_empty() { EVERYWHERE } else { hasher.hash_one(path) | 2 }
}

fn u32_at(bytes: &[u8]) -> usize {
    let number = bytes.first_chunk().map_or(u32::MAX, |bytes: &[u8; 4]| u32::from_le_bytes(*bytes));
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Block {
    /// Number of records.
    fn len(&self) -> usize {
        self.records.len().checked_div(self.width.saturating_add(PLACE)).unwrap_or(0)
    }

    /// A record's digest, and where its path lies in the text.
    fn record(&self, number: usize) -> Option<(&[u8], std::ops::Range<usize>)> {
        let size = self.width.saturating_add(PLACE);
        let at = number.checked_mul(size)?;
        let (digest, place) = self.records.get(at..at.checked_add(size)?)?.split_at_checked(self.width)?;
        Some((digest, u32_at(place)..u32_at(place.get(4..)?)))
    }

    /// Fills the slots, of which at most half are taken, and sorts.
    fn index(&mut self, hasher: &RandomState, text: &[u8]) -> Option<()> {
        let size = self.len().checked_mul(2)?.checked_next_power_of_two()?.max(2);
        self.slots = vec![0; size.checked_mul(self.width.checked_add(TAG + NUMBER)?)?];
        self.mask = size.checked_sub(1)?;
        for number in 0..self.len() {
            let (digest, place) = self.record(number)?;
            let (digest, tag) = (digest.to_vec(), tag(hasher, text.get(place)?));
            self.insert(&digest, tag, u32::try_from(number).ok()?);
        }
        let mut sorted: Vec<u32> = (0..u32::try_from(self.len()).ok()?).collect();
        let digest =
            |number: &u32| self.record(usize::try_from(*number).unwrap_or(usize::MAX)).map(|(digest, _)| digest);
        // Of several records of one digest, the first.
        sorted.sort_by(|a, b| digest(a).cmp(&digest(b)));
        sorted.dedup_by(|b, a| digest(a) == digest(b));
        sorted.shrink_to_fit();
        self.sorted = sorted;
        Some(())
    }

    /// Slot in which the search for a pair starts.
    fn start(&self, digest: &[u8], tag: u64) -> usize {
        let head = digest.first_chunk().map_or(0, |head: &[u8; 8]| u64::from_le_bytes(*head));
        usize::try_from((head ^ tag) & u64::try_from(self.mask).unwrap_or(0)).unwrap_or(0)
    }

    fn range(&self, slot: usize) -> std::ops::Range<usize> {
        let size = self.width.saturating_add(TAG + NUMBER);
        let at = slot.saturating_mul(size);
        at..at.saturating_add(size)
    }

    /// Puts a pair into the first empty slot; one that is there already is left alone.
    fn insert(&mut self, digest: &[u8], tag: u64, number: u32) {
        let width = self.width;
        let mut slot = self.start(digest, tag);
        loop {
            let range = self.range(slot);
            let Some((stored, rest)) = self.slots.get_mut(range).and_then(|bytes| bytes.split_at_mut_checked(TAG))
            else {
                return;
            };
            let Some((place, index)) = rest.split_at_mut_checked(width) else { return };
            if stored == [0; TAG] {
                stored.copy_from_slice(&tag.to_le_bytes());
                place.copy_from_slice(digest);
                index.copy_from_slice(&number.to_le_bytes());
                return;
            }
            if stored == tag.to_le_bytes() && place == digest {
                return;
            }
            slot = slot.wrapping_add(1) & self.mask;
        }
    }

    /// Number of the record of a pair.
    fn pair(&self, digest: &[u8], tag: u64) -> Option<usize> {
        let mut slot = self.start(digest, tag);
        loop {
            let (stored, rest) = self.slots.get(self.range(slot))?.split_first_chunk()?;
            match u64::from_le_bytes(*stored) {
                0 => return None,
                stored if stored == tag => {
                    if let Some(number) = rest.strip_prefix(digest) {
                        return Some(u32_at(number));
                    }
                }
                _ => {}
            }
            slot = slot.wrapping_add(1) & self.mask;
        }
    }

    /// Where the path of a digest's first record lies.
    fn place(&self, digest: &[u8]) -> Option<std::ops::Range<usize>> {
        let record = |number: &u32| self.record(usize::try_from(*number).unwrap_or(usize::MAX));
        let at =
            self.sorted.binary_search_by(|number| record(number).map(|(digest, _)| digest).cmp(&Some(digest))).ok()?;
        record(self.sorted.get(at)?).map(|(_, place)| place)
    }
}

impl Table {
    /// Digests in it.
    pub(super) fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.sorted.len()).fold(0, usize::saturating_add)
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let block = |block: &Block| {
            block.records.len().saturating_add(block.slots.len()).saturating_add(block.sorted.len().saturating_mul(4))
        };
        self.blocks.iter().map(block).fold(self.text.len(), usize::saturating_add)
    }

    /// Whether record `number` is this file: then it is accepted, and the next one is to be tried for the next file.
    pub(super) fn is_record(&self, alg: KernelHash, number: usize, digest: &[u8], path: &[u8]) -> bool {
        let record = self.blocks.get(usize::from(alg.id())).and_then(|block| block.record(number));
        record.is_some_and(|(stored, place)| {
            stored == digest && (place.is_empty() || self.text.get(place).is_some_and(|text| text == path))
        })
    }

    /// Where to look for a file, and a first touch of that memory.
    pub(super) fn probe(&self, alg: KernelHash, digest: &[u8], path: &[u8]) -> Probe {
        let tag = tag(&self.hasher, path);
        if let Some(block) = self.blocks.get(usize::from(alg.id())) {
            let slot = block.range(block.start(digest, tag));
            // A slot may lie in two cache lines.
            let ends = [slot.start, slot.end.saturating_sub(1)].map(|at| block.slots.get(at).copied());
            std::hint::black_box(ends);
        }
        Probe { alg, tag }
    }

    /// Number of the record that accepts a digest at the probe's path, or everywhere.
    pub(super) fn number(&self, probe: Probe, digest: &[u8]) -> Option<usize> {
        let block = self.blocks.get(usize::from(probe.alg.id())).filter(|block| block.width == digest.len())?;
        let everywhere = || if block.everywhere { block.pair(digest, EVERYWHERE) } else { None };
        block.pair(digest, probe.tag).or_else(everywhere)
    }

    /// Whether a digest is good at a path.
    pub(super) fn find(&self, alg: KernelHash, digest: &[u8], path: &[u8]) -> Found<'_> {
        if self.number(self.probe(alg, digest, path), digest).is_some() {
            return Found::Yes;
        }
        let block = self.blocks.get(usize::from(alg.id())).filter(|block| block.width == digest.len());
        let place = block.and_then(|block| block.place(digest)).and_then(|place| self.text.get(place));
        place.map_or(Found::No, Found::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_path_and_everywhere() {
        let mut builder = Builder::default();
        let (sha256, sha1) = (KernelHash::SHA256, KernelHash::SHA1);
        builder.add(sha256, &[1; 32], b"/bin/a");
        builder.add(sha256, &[1; 32], b"/bin/b");
        builder.add(sha256, &[1; 32], b"/bin/b");
        builder.add(sha256, &[2; 32], b"");
        builder.add(sha256, &[2; 32], b"/bin/c");
        builder.add(sha1, &[3; 20], b"/old");
        let table = builder.build().unwrap();
        assert_eq!(table.len(), 3);
        // Records in the order in which they were added.
        assert!(table.is_record(sha256, 0, &[1; 32], b"/bin/a") && table.is_record(sha256, 1, &[1; 32], b"/bin/b"));
        assert!(
            table.is_record(sha256, 3, &[2; 32], b"/anywhere") && !table.is_record(sha256, 4, &[2; 32], b"/anywhere")
        );
        assert!(
            !table.is_record(sha256, 5, &[1; 32], b"/bin/a") && !table.is_record(sha256, usize::MAX, &[1; 32], b"")
        );
        assert_eq!(table.number(table.probe(sha256, &[2; 32], b"/bin/c"), &[2; 32]), Some(4));
        assert_eq!(table.find(sha256, &[1; 32], b"/bin/b"), Found::Yes);
        assert_eq!(table.find(sha256, &[1; 32], b"/bin/c"), Found::Elsewhere(b"/bin/a"));
        assert_eq!(table.find(sha256, &[2; 32], b"/anywhere"), Found::Yes);
        assert_eq!(table.find(sha256, &[1; 32], b""), Found::Elsewhere(b"/bin/a"));
        assert_eq!(table.find(sha256, &[3; 32], b"/bin/a"), Found::No);
        assert_eq!(table.find(sha1, &[3; 20], b"/old"), Found::Yes);
        assert_eq!(table.find(sha1, &[3; 32], b"/old"), Found::No, "of another length");
        assert_eq!(table.find(KernelHash::SHA512, &[3; 64], b"/old"), Found::No);
        assert_eq!(Builder::default().build().unwrap().find(sha1, &[3; 20], b""), Found::No);
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
            builder.add(KernelHash::SHA256, &digest(n), format!("/{n}").as_bytes());
            builder.add(KernelHash::SHA256, &[9; 32], format!("/same/{n}").as_bytes());
        }
        let table = builder.build().unwrap();
        for n in 0..500 {
            assert_eq!(table.find(KernelHash::SHA256, &digest(n), format!("/{n}").as_bytes()), Found::Yes);
            assert_eq!(table.find(KernelHash::SHA256, &[9; 32], format!("/same/{n}").as_bytes()), Found::Yes);
        }
        assert_eq!(table.find(KernelHash::SHA256, &digest(1), b"/2"), Found::Elsewhere(b"/1"));
        assert_eq!(table.find(KernelHash::SHA256, &digest(500), b"/1"), Found::No);
    }
}
