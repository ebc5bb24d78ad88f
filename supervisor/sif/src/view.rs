//! The decrypted file system, block by block: each block is checked against the signed root before it is decrypted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::SifError;
use crate::image::Image;
use crate::verity::{BLOCK, BLOCK_U64, Tree};
use crate::xts::{SECTOR, VolumeKey, Xts};

/// Sectors in a block.
const SECTORS: u64 = BLOCK_U64 / 512;
const _: () = assert!(SECTOR == 512, "SECTORS counts 512-byte sectors");

/// A decrypted view of an image's payload.
#[derive(Debug)]
pub struct View {
    file: File,
    partition: u64,
    payload: u64,
    length: u64,
    tree: Tree,
    /// Cipher contexts that no thread is using.
    idle: Mutex<Vec<Xts>>,
    returned: Condvar,
}

impl View {
    /// A view of a checked image. From here on the key is in `threads` cipher contexts, which OpenSSL wipes when they are dropped; more are
    /// never made.
    ///
    /// # Errors
    /// [`SifError`].
    pub fn new(image: &Image, key: &VolumeKey, threads: usize) -> Result<Self, SifError> {
        let payload = &image.binding().payload;
        let contexts: Result<Vec<Xts>, SifError> = (0..threads.max(1)).map(|_| Xts::decryptor(key)).collect();
        Ok(Self {
            file: image.file().try_clone()?,
            partition: image.partition_offset(),
            payload: payload.payload_offset,
            length: payload.partition_length.saturating_sub(payload.payload_offset),
            tree: image.tree(),
            idle: Mutex::new(contexts?),
            returned: Condvar::new(),
        })
    }

    /// Bytes of the file system.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Reads decrypted bytes; fewer at the end of the file system. What is decrypted is the very copy that was checked.
    ///
    /// # Errors
    /// [`SifError::Integrity`] for a block that was changed: nothing of it is decrypted.
    pub fn read_at(&self, offset: u64, size: usize) -> Result<Vec<u8>, SifError> {
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(u64::MAX)).min(self.length);
        if offset >= end {
            return Ok(Vec::new());
        }
        let first = offset / BLOCK_U64;
        let count = end.div_ceil(BLOCK_U64).saturating_sub(first);
        let bytes = usize::try_from(count.saturating_mul(BLOCK_U64)).unwrap_or(0);
        let mut cipher = vec![0; bytes];
        let start = self.payload.saturating_add(first.saturating_mul(BLOCK_U64));
        self.file.read_exact_at(&mut cipher, self.partition.saturating_add(start))?;
        let mut index = start / BLOCK_U64;
        for one in cipher.chunks_exact(BLOCK) {
            self.tree.check(&self.file, index, one)?;
            index = index.saturating_add(1);
        }
        let mut plain = vec![0; bytes];
        let mut context = self.take();
        let outcome = context.run(first.saturating_mul(SECTORS), &cipher, &mut plain);
        self.give_back(context);
        outcome?;
        let from = usize::try_from(offset.saturating_sub(first.saturating_mul(BLOCK_U64))).unwrap_or(0);
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        plain.drain(..from);
        plain.truncate(wanted);
        Ok(plain)
    }

    fn take(&self) -> Xts {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(context) = idle.pop() {
                return context;
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, context: Xts) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(context);
        self.returned.notify_one();
    }
}
