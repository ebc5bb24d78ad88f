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

/// Builds a tree from blocks given in order.
#[derive(Debug)]
pub struct Builder {
    salt: Hash,
    leaves: Vec<u8>,
}

impl Builder {
    /// An empty tree.
    #[must_use]
    pub const fn new(salt: Hash) -> Self {
        Self { salt, leaves: Vec::new() }
    }

    /// Adds whole blocks, hashed on up to `threads` threads.
    pub fn add(&mut self, blocks: &[u8], threads: usize) {
        let part = blocks.len().div_ceil(threads.max(1)).next_multiple_of(BLOCK).max(BLOCK);
        let start = self.leaves.len();
        self.leaves.resize(start.saturating_add(blocks.len().div_ceil(BLOCK).saturating_mul(DIGEST)), 0);
        let salt = &self.salt;
        let leaves = self.leaves.get_mut(start..).unwrap_or_default();
        std::thread::scope(|scope| {
            for (blocks, leaves) in blocks.chunks(part).zip(leaves.chunks_mut((part / BLOCK).saturating_mul(DIGEST))) {
                let mut work = move || {
                    for (block, leaf) in blocks.chunks(BLOCK).zip(leaves.chunks_exact_mut(DIGEST)) {
                        leaf.copy_from_slice(&hash(salt, block));
                    }
                };
                if threads > 1 {
                    scope.spawn(work);
                } else {
                    work();
                }
            }
        });
    }

    /// Blocks so far.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        u64::try_from(self.leaves.len()).unwrap_or(0) / 32
    }

    /// The stored tree and its root.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Hash) {
        let mut levels: Vec<Vec<u8>> = Vec::new();
        let mut level = self.leaves;
        loop {
            level.resize(level.len().next_multiple_of(BLOCK).max(BLOCK), 0);
            let above: Vec<u8> = level.chunks(BLOCK).flat_map(|block| hash(&self.salt, block)).collect();
            levels.push(level);
            if above.len() == DIGEST {
                let root = above.try_into().unwrap_or_default();
                levels.reverse();
                return (levels.concat(), root);
            }
            level = above;
        }
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
        let counts = level_blocks(data_blocks);
        let mut below: u64 = counts.iter().sum();
        let levels = counts
            .iter()
            .map(|count| {
                below = below.saturating_sub(*count);
                (*count, below)
            })
            .collect();
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
        file.read_exact_at(&mut block, at)?;
        let above = level.saturating_add(1);
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn stored(blocks: u64) -> (File, Vec<u8>, Tree) {
        let data: Vec<u8> = (0..blocks).flat_map(|n| vec![u8::try_from(n % 251).unwrap(); BLOCK]).collect();
        let mut builder = Builder::new([7; 32]);
        builder.add(&data, 2);
        let (tree, root) = builder.finish();
        assert_eq!(u64::try_from(tree.len()).unwrap(), tree_size(blocks));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&tree).unwrap();
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
}
