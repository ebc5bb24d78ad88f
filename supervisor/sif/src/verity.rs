//! The hash tree: dm-verity's layout, SHA-256 over 4096-byte blocks, salt first, no superblock.
//!
//! Levels are stored top first; each is padded with zeros to whole blocks. The root is the digest of the top block.
//! Off-spec: dm-verity has no tree over a single data block (the root is that block's digest); here there is one. A partition never has one block.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};

use crate::error::SifError;

/// Bytes of a data block and of a hash block.
pub const BLOCK: usize = 4096;
/// The same, where offsets are counted.
pub const BLOCK_U64: u64 = 4096;
const DIGEST: usize = 32;
/// Digests in a hash block.
const FANOUT: u64 = 128;
/// Verified nodes kept (each 4 KiB): 64 MiB, enough for the whole tree of an 8 GB image.
const KEPT: usize = 16_384;

/// A digest of the tree.
pub type Hash = [u8; DIGEST];

fn hash(salt: &Hash, block: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(salt);
    context.update(block);
    context.finish().as_ref().try_into().unwrap_or_default()
}

/// The digests of whole blocks, in order: what [`Builder::add`] takes.
#[must_use]
pub fn leaves(salt: &Hash, blocks: &[u8]) -> Vec<u8> {
    let mut digests = Vec::with_capacity(blocks.len().div_ceil(BLOCK).saturating_mul(DIGEST));
    for block in blocks.chunks(BLOCK) {
        digests.extend_from_slice(&hash(salt, block));
    }
    digests
}

/// Builds a tree from leaves given in order. It keeps one block a level; full ones go to whoever stores the tree, so memory does not grow with it.
#[derive(Debug)]
pub struct Builder {
    salt: Hash,
    /// From the leaves up.
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// Where its next block belongs in the stored tree, in blocks.
    next: u64,
    block: Vec<u8>,
}

impl Builder {
    /// An empty tree for so many data blocks.
    #[must_use]
    pub fn new(salt: Hash, data_blocks: u64) -> Self {
        let level = |next| Level { next, block: Vec::with_capacity(BLOCK) };
        Self { salt, levels: level_starts(data_blocks).into_iter().map(|(_, first)| level(first)).collect() }
    }

    /// Adds leaves, whole digests. `store` gets blocks of the tree and their offset in it, bytes.
    ///
    /// # Errors
    /// Those of `store`.
    pub fn add<E>(&mut self, leaves: &[u8], store: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        for leaf in leaves.chunks_exact(DIGEST) {
            self.push(0, leaf, store)?;
        }
        Ok(())
    }

    fn push<E>(
        &mut self,
        level: usize,
        digest: &[u8],
        store: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Above the top there is nothing: the digest of the top block is the root, which `finish` takes.
        let Some(at) = self.levels.get_mut(level) else { return Ok(()) };
        if at.block.len() == BLOCK {
            self.flush(level, store)?;
        }
        if let Some(at) = self.levels.get_mut(level) {
            at.block.extend_from_slice(digest);
        }
        Ok(())
    }

    /// Stores a level's block and hands its digest to the level above.
    fn flush<E>(&mut self, level: usize, store: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<Hash, E> {
        let salt = self.salt;
        let Some(at) = self.levels.get_mut(level) else { return Ok(Hash::default()) };
        at.block.resize(BLOCK, 0);
        let digest = hash(&salt, &at.block);
        store(at.next.saturating_mul(BLOCK_U64), &at.block)?;
        at.next = at.next.saturating_add(1);
        at.block.clear();
        self.push(level.saturating_add(1), &digest, store)?;
        Ok(digest)
    }

    /// Stores what is left; the root, which is right exactly when as many leaves were added as [`Builder::new`] was told.
    ///
    /// # Errors
    /// Those of `store`.
    pub fn finish<E>(mut self, store: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<Hash, E> {
        let mut root = Hash::default();
        for level in 0..self.levels.len() {
            root = self.flush(level, store)?;
        }
        Ok(root)
    }
}

/// Blocks of each level, from the leaves up.
fn level_blocks(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut count = data_blocks;
    loop {
        count = count.div_ceil(FANOUT).max(1);
        levels.push(count);
        if count == 1 {
            return levels;
        }
    }
}

/// Blocks of each level, from the leaves up, and where it begins in the stored tree (top first), in blocks.
fn level_starts(data_blocks: u64) -> Vec<(u64, u64)> {
    let counts = level_blocks(data_blocks);
    let mut below: u64 = counts.iter().sum();
    let place = |count: &u64| {
        below = below.saturating_sub(*count);
        (*count, below)
    };
    counts.iter().map(place).collect()
}

/// Bytes of the stored tree over so many data blocks.
#[must_use]
pub fn tree_size(data_blocks: u64) -> u64 {
    level_blocks(data_blocks).iter().sum::<u64>().saturating_mul(BLOCK_U64)
}

/// Verified nodes by level and number.
type Nodes = HashMap<(usize, u64), Box<[u8]>>;

/// Checks data blocks against a stored tree. Nodes are kept as copies once they were verified: what was checked is what is used.
#[derive(Debug)]
pub struct Tree {
    salt: Hash,
    root: Hash,
    offset: u64,
    data_blocks: u64,
    /// For each level from the leaves up: blocks, and offset of the level in the stored tree (in blocks).
    levels: Vec<(u64, u64)>,
    verified: Mutex<Nodes>,
}

impl Tree {
    /// A tree of `data_blocks` blocks, stored at `offset` of the file.
    #[must_use]
    pub fn new(salt: Hash, root: Hash, offset: u64, data_blocks: u64) -> Self {
        let levels = level_starts(data_blocks);
        Self { salt, root, offset, data_blocks, levels, verified: Mutex::default() }
    }

    /// Checks one data block of the partition.
    ///
    /// # Errors
    /// [`SifError::Integrity`] names the block and the level that does not match.
    pub fn check(&self, file: &File, index: u64, block: &[u8]) -> Result<(), SifError> {
        if index >= self.data_blocks {
            return Err(SifError::Integrity { block: index, level: 0 });
        }
        let want = self.digest(file, 0, index, index)?;
        if hash(&self.salt, block) == want { Ok(()) } else { Err(SifError::Integrity { block: index, level: 0 }) }
    }

    /// The verified digest of entry `index` below `level`.
    fn digest(&self, file: &File, level: usize, index: u64, for_block: u64) -> Result<Hash, SifError> {
        let node = index / FANOUT;
        let within = usize::try_from(index % FANOUT).unwrap_or(0).saturating_mul(DIGEST);
        let pick = |block: &[u8]| -> Option<Hash> { block.get(within..)?.first_chunk::<DIGEST>().copied() };
        let bad = |level| SifError::Integrity { block: for_block, level };
        let lock = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = lock().get(&(level, node)).and_then(|block| pick(block)) {
            return Ok(digest);
        }
        let (count, first) = self.levels.get(level).copied().ok_or_else(|| bad(level))?;
        if node >= count {
            return Err(bad(level));
        }
        let at = self.offset.saturating_add(first.saturating_add(node).saturating_mul(BLOCK_U64));
        let mut block = vec![0; BLOCK].into_boxed_slice();
        let above = level.saturating_add(1);
        read(file, &mut block, at, || bad(above))?;
        let want = if above == self.levels.len() { self.root } else { self.digest(file, above, node, for_block)? };
        if hash(&self.salt, &block) != want {
            return Err(bad(above));
        }
        let digest = pick(&block).ok_or_else(|| bad(level))?;
        let mut verified = lock();
        if verified.len() >= KEPT {
            verified.clear();
        }
        verified.insert((level, node), block);
        Ok(digest)
    }
}

/// Reads within what was signed. A file that ends before it was cut off, `changed` says where: that is no failure of the disk.
pub(crate) fn read(
    file: &File,
    buffer: &mut [u8],
    at: u64,
    changed: impl FnOnce() -> SifError,
) -> Result<(), SifError> {
    match file.read_exact_at(buffer, at) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(changed()),
        read => Ok(read?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(blocks: u64) -> (File, Vec<u8>, Tree) {
        let data: Vec<u8> = (0..blocks).flat_map(|n| vec![u8::try_from(n % 251).unwrap(); BLOCK]).collect();
        let file = tempfile::tempfile().unwrap();
        let mut store = |at, block: &[u8]| file.write_all_at(block, at);
        let mut builder = Builder::new([7; 32], blocks);
        for part in data.chunks(3 * BLOCK) {
            builder.add(&leaves(&[7; 32], part), &mut store).unwrap();
        }
        let root = builder.finish(&mut store).unwrap();
        assert_eq!(file.metadata().unwrap().len(), tree_size(blocks));
        (file, data, Tree::new([7; 32], root, 0, blocks))
    }

    #[test]
    fn every_block_verifies_and_no_changed_one_does() {
        for blocks in [1, 2, 127, 128, 129, 300, 128 * 128 + 1] {
            let (file, data, tree) = stored(blocks);
            for index in [0, blocks / 2, blocks - 1] {
                let at = usize::try_from(index).unwrap() * BLOCK;
                let mut block = data[at..at + BLOCK].to_vec();
                tree.check(&file, index, &block).unwrap();
                block[5] ^= 1;
                assert!(matches!(tree.check(&file, index, &block), Err(SifError::Integrity { .. })));
            }
            assert!(tree.check(&file, blocks, &data[..BLOCK]).is_err());
        }
    }

    #[test]
    fn a_changed_tree_is_noticed() {
        let blocks = 300;
        let (_, data, _) = stored(blocks);
        let (file, _, tree) = stored(blocks);
        file.write_all_at(&[0xee], 4096 + 3).unwrap();
        assert!(tree.check(&file, 0, &data[..BLOCK]).is_err());
    }

    #[test]
    fn a_tree_that_is_cut_off_was_changed() {
        let (file, data, tree) = stored(300);
        file.set_len(4096 + 100).unwrap();
        let error = tree.check(&file, 0, &data[..BLOCK]).unwrap_err();
        assert!(matches!(error, SifError::Integrity { block: 0, level: 1 }), "{error}");
    }
}
