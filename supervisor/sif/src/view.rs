//! The decrypted file system, block by block: each block is checked against the signed root before it is decrypted.

use std::fs::File;
use std::sync::{Condvar, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::error::SifError;
use crate::image::Image;
use crate::verity::{self, BLOCK, BLOCK_U64, Tree};
use crate::xts::{SECTOR, VolumeKey, Xts};

/// Sectors in a block.
const SECTORS: u64 = BLOCK_U64 / 512;
const _: () = assert!(SECTOR == 512, "SECTORS counts 512-byte sectors");

/// Most bytes of a buffer that is kept for the next read.
const KEPT: usize = 1 << 20;

/// What a thread needs to read: allocating a buffer each time would cost the kernel's clearing of each page.
#[derive(Debug)]
struct Desk {
    context: Xts,
    buffer: Zeroizing<Vec<u8>>,
}

/// A decrypted view of an image's payload.
#[derive(Debug)]
pub struct View {
    file: File,
    partition: u64,
    payload: u64,
    length: u64,
    tree: Tree,
    /// Those that no thread is using.
    idle: Mutex<Vec<Desk>>,
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
        let desk = |_| Ok(Desk { context: Xts::decryptor(key)?, buffer: Zeroizing::default() });
        let desks: Result<Vec<Desk>, SifError> = (0..threads.max(1)).map(desk).collect();
        Ok(Self {
            file: image.file().try_clone()?,
            partition: image.partition_offset(),
            payload: payload.payload_offset,
            length: payload.partition_length.saturating_sub(payload.payload_offset),
            tree: image.tree(),
            idle: Mutex::new(desks?),
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
        self.read_with(offset, size, <[u8]>::to_vec)
    }

    /// As [`View::read_at`], but lends the bytes.
    ///
    /// # Errors
    /// The same.
    pub fn read_with<T>(&self, offset: u64, size: usize, take: impl FnOnce(&[u8]) -> T) -> Result<T, SifError> {
        let end = offset.saturating_add(u64::try_from(size).unwrap_or(u64::MAX)).min(self.length);
        if offset >= end {
            return Ok(take(&[]));
        }
        let first = offset / BLOCK_U64;
        let count = end.div_ceil(BLOCK_U64).saturating_sub(first);
        let bytes = usize::try_from(count.saturating_mul(BLOCK_U64)).unwrap_or(0);
        let from = usize::try_from(offset.saturating_sub(first.saturating_mul(BLOCK_U64))).unwrap_or(0);
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        let mut desk = self.take();
        let read = desk.read(self, first, bytes);
        let taken = read.map(|plain| take(plain.get(from..from.saturating_add(wanted)).unwrap_or_default()));
        self.give_back(desk);
        taken
    }

    fn take(&self) -> Desk {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(desk) = idle.pop() {
                return desk;
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, mut desk: Desk) {
        if desk.buffer.len() > KEPT {
            desk.buffer = Zeroizing::default();
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(desk);
        self.returned.notify_one();
    }
}

impl Desk {
    /// So many bytes from a block of the file system on, whole blocks, checked and decrypted.
    fn read(&mut self, view: &View, first: u64, bytes: usize) -> Result<&[u8], SifError> {
        if self.buffer.len() < bytes {
            self.buffer = Zeroizing::new(vec![0; bytes]);
        }
        let data = self.buffer.get_mut(..bytes).unwrap_or_default();
        let start = view.payload.saturating_add(first.saturating_mul(BLOCK_U64));
        let cut = || SifError::Integrity { block: start / BLOCK_U64, level: 0 };
        verity::read(&view.file, data, view.partition.saturating_add(start), cut)?;
        for (index, block) in (start / BLOCK_U64..).zip(data.chunks_exact(BLOCK)) {
            view.tree.check(&view.file, index, block)?;
        }
        self.context.run_in_place(first.saturating_mul(SECTORS), data)?;
        Ok(data)
    }
}
