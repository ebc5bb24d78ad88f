//! The decrypted file system, block by block: each block is checked against the signed root before it is decrypted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use crate::error::SifError;
use crate::image::Image;
use crate::verity::{BLOCK, Tree};
use crate::xts::{VolumeKey, Xts};

/// A decrypted view of an image's payload.
#[derive(Debug)]
pub struct View {
    file: File,
    partition: u64,
    payload: u64,
    length: u64,
    tree: Tree,
    /// Cipher contexts that no thread is using: one a thread is made when there are none.
    idle: Mutex<Vec<Xts>>,
}

impl View {
    /// A view of a checked image. The key is in the cipher contexts from here on; more of them than `threads` are never made.
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
        })
    }

    /// Bytes of the file system.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Reads decrypted bytes; fewer at the end of the file system.
    ///
    /// # Errors
    /// [`SifError::Integrity`] for a block that was changed: nothing of it is decrypted.
    pub fn read_at(&self, offset: u64, size: usize) -> Result<Vec<u8>, SifError> {
        let block = u64::try_from(BLOCK).unwrap_or(0);
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(0)).min(self.length);
        if offset >= end {
            return Ok(Vec::new());
        }
        let first = offset / block;
        let count = end.div_ceil(block).saturating_sub(first);
        let bytes = usize::try_from(count.saturating_mul(block)).unwrap_or(0);
        let mut cipher = vec![0; bytes];
        let start = self.payload.saturating_add(first.saturating_mul(block));
        self.file.read_exact_at(&mut cipher, self.partition.saturating_add(start))?;
        let mut index = start / block;
        for one in cipher.chunks_exact(BLOCK) {
            self.tree.check(&self.file, index, one)?;
            index = index.saturating_add(1);
        }
        let mut plain = vec![0; bytes];
        let mut context = loop {
            if let Some(context) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                break context;
            }
            std::thread::yield_now();
        };
        let sectors = block / 512;
        let outcome = context.run(first.saturating_mul(sectors), &cipher, &mut plain);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(context);
        outcome?;
        let from = usize::try_from(offset.saturating_sub(first.saturating_mul(block))).unwrap_or(0);
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        plain.drain(..from);
        plain.truncate(wanted);
        Ok(plain)
    }
}
