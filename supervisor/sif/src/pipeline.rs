//! The payload on its way into an image: read, encrypted, hashed and written in one pass, in memory that does not grow with it.
//!
//! Every worker takes the next chunk whole: it reads, encrypts, writes it and hashes its blocks while they are in its core's cache. One thread
//! puts the chunks back in order, for the digest of the whole partition and for the tree. The number of chunks under way is fixed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use crate::dsse;
use crate::error::SifError;
use crate::squashfs::Squashfs;
use crate::verity::{Builder, Hash, leaves};
use crate::xts::{VolumeKey, Xts};

/// Bytes of a chunk: what stays in a core's cache.
const CHUNK: usize = 512 << 10;
const CHUNK_U64: u64 = 512 << 10;
/// Most threads that encrypt: more only wait for the disk.
const THREADS: usize = 8;
/// Chunks under way for each of them.
const EACH: usize = 4;

/// A payload to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// What is encrypted.
    pub(crate) squashfs: &'a Squashfs,
    /// The image.
    pub(crate) file: &'a File,
    /// Where the partition begins in it.
    pub(crate) partition_at: u64,
    /// Where the tree begins in it.
    pub(crate) tree_at: u64,
    /// The partition's beginning.
    pub(crate) header: &'a [u8],
    /// Bytes behind it: the file system and zeros up to a whole block.
    pub(crate) padded: u64,
    /// Salt of the tree.
    pub(crate) salt: Hash,
}

/// A payload that was written.
pub(crate) struct Written {
    /// Of the whole partition, as a signature states it.
    pub(crate) digest: String,
    /// Of its hash tree.
    pub(crate) tree_root: Hash,
}

/// A chunk that was encrypted and written.
struct Done {
    at: u64,
    cipher: Vec<u8>,
    leaves: Vec<u8>,
    /// What was read, where a signature says what that must be.
    plain: Option<Zeroizing<Vec<u8>>>,
}

/// The place in the file system that is read next, and the buffers that are free.
struct Turn {
    at: u64,
    free: Receiver<Vec<u8>>,
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl Payload<'_> {
    /// Writes partition and tree. `progress` is told bytes done and bytes in all.
    ///
    /// # Errors
    /// [`SifError`].
    pub(crate) fn write(&self, key: &VolumeKey, progress: impl FnMut(u64, u64)) -> Result<Written, SifError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
        let ciphers: Result<Vec<Xts>, SifError> = (0..threads).map(|_| Xts::encryptor(key)).collect();
        let (give, free) = channel();
        for _ in 0..threads.saturating_mul(EACH) {
            let _ = give.send(Vec::new());
        }
        let turn = Mutex::new(Turn { at: 0, free });
        std::thread::scope(|scope| {
            let (done, chunks) = channel();
            for mut cipher in ciphers? {
                let (turn, done) = (&turn, done.clone());
                scope.spawn(move || self.work(&mut cipher, turn, &done));
            }
            drop(done);
            // However this ends, `give` and `chunks` go with it, and the workers end.
            self.gather(&chunks, give, progress)
        })
    }

    /// Encrypts chunks until there are no more, or nobody wants them.
    fn work(&self, cipher: &mut Xts, turn: &Mutex<Turn>, done: &Sender<Result<Done, SifError>>) {
        let mut plain = Zeroizing::new(vec![0; CHUNK]);
        loop {
            // A place is taken together with a buffer for it: the chunk that all others wait for has one.
            let (at, buffer) = {
                let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                if turn.at >= self.padded {
                    return;
                }
                let Ok(buffer) = turn.free.recv() else { return };
                let at = turn.at;
                turn.at = at.saturating_add(CHUNK_U64);
                (at, buffer)
            };
            let chunk = self.chunk(cipher, at, buffer, &mut plain);
            let failed = chunk.is_err();
            if done.send(chunk).is_err() || failed {
                return;
            }
        }
    }

    fn chunk(&self, cipher: &mut Xts, at: u64, mut out: Vec<u8>, plain: &mut [u8]) -> Result<Done, SifError> {
        let size = usize::try_from(self.padded.saturating_sub(at)).unwrap_or(usize::MAX).min(CHUNK);
        let plain = plain.get_mut(..size).unwrap_or_default();
        let there = usize::try_from(self.squashfs.length().saturating_sub(at)).unwrap_or(usize::MAX).min(size);
        let (data, padding) = plain.split_at_mut(there);
        self.squashfs.read_exact_at(data, at)?;
        padding.fill(0);
        out.resize(size, 0);
        cipher.run(at / 512, plain, &mut out)?;
        let data = plain.get(..there).unwrap_or_default();
        let place = self.partition_at.saturating_add(length(self.header)).saturating_add(at);
        self.file.write_all_at(&out, place)?;
        let leaves = leaves(&self.salt, &out);
        let plain = self.squashfs.verified().map(|_| Zeroizing::new(data.to_vec()));
        Ok(Done { at, cipher: out, leaves, plain })
    }

    /// Hashes header and chunks in order, and writes the tree.
    fn gather(
        &self,
        chunks: &Receiver<Result<Done, SifError>>,
        give: Sender<Vec<u8>>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Written, SifError> {
        let blocks = self.padded.saturating_add(length(self.header)) / crate::verity::BLOCK_U64;
        let mut tree = Builder::new(self.salt, blocks);
        let mut store = |at: u64, block: &[u8]| self.file.write_all_at(block, self.tree_at.saturating_add(at));
        let (mut digest, mut input) = (Context::new(&SHA256), Context::new(&SHA256));
        digest.update(self.header);
        self.file.write_all_at(self.header, self.partition_at)?;
        tree.add(&leaves(&self.salt, self.header), &mut store)?;
        let mut early: BTreeMap<u64, Done> = BTreeMap::new();
        let mut next: u64 = 0;
        while next < self.padded {
            let chunk = chunks.recv().map_err(|_| SifError::Crypto("an encrypting thread ended".into()))??;
            early.insert(chunk.at, chunk);
            while let Some(chunk) = early.remove(&next) {
                digest.update(&chunk.cipher);
                if let Some(plain) = &chunk.plain {
                    input.update(plain);
                }
                tree.add(&chunk.leaves, &mut store)?;
                next = next.saturating_add(length(&chunk.cipher));
                progress(next, self.padded);
                let _ = give.send(chunk.cipher);
            }
        }
        if self.squashfs.verified().is_some_and(|signed| signed.partition != dsse::digest_text(&input.finish())) {
            return Err(SifError::Signature("the input changed after its signature was verified".into()));
        }
        let tree_root = tree.finish(&mut store)?;
        Ok(Written { digest: dsse::digest_text(&digest.finish()), tree_root })
    }
}
