//! The payload on its way into an image: read, encrypted, hashed and written in one pass, in memory that does not grow with it.
//!
//! Every worker takes the next chunk whole: it reads, encrypts, writes it and hashes its blocks while they are in its core's cache. Whoever has
//! the chunk that is next in order puts it, and those that wait behind it, into the digest of the whole partition and into the tree. The
//! header, which stands first there, is made meanwhile: chunks that are done wait for it. How many are under way is limited.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use crate::dsse;
use crate::error::SifError;
use crate::luks;
use crate::squashfs::Squashfs;
use crate::verity::{BLOCK_U64, Builder, Hash, leaves};
use crate::xts::{VolumeKey, Xts};

/// Bytes of a chunk: it stays in a core's own cache.
const CHUNK: usize = 128 << 10;
const CHUNK_U64: u64 = 128 << 10;
/// Most threads that encrypt: more only wait for the disk.
const THREADS: usize = 8;
/// Most chunks under way, 64 MiB: about what is encrypted while the header is made.
const UNDER_WAY: usize = 512;

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
    /// Bytes behind the header: the file system and zeros up to a whole block.
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
    cipher: Vec<u8>,
    leaves: Vec<u8>,
    /// What was read, where a signature says what that must be.
    plain: Option<Zeroizing<Vec<u8>>>,
}

/// What takes header and chunks one after the other.
struct Order<P> {
    digest: Context,
    input: Context,
    tree: Builder,
    progress: P,
}

/// What the threads share.
struct State<P> {
    /// The place in the file system that is read next.
    read: u64,
    /// The place up to which chunks were put in order.
    ordered: u64,
    /// Chunks that were taken and are not yet in order.
    under_way: usize,
    /// Those of them that are done, by place.
    done: BTreeMap<u64, Done>,
    /// Free buffers: the last one used, which is in a cache, goes first.
    free: Vec<Vec<u8>>,
    /// Not there before the header is, and while a thread is at work with it.
    order: Option<Order<P>>,
    /// Why this comes to nothing.
    failed: Option<SifError>,
}

struct Shared<P> {
    state: Mutex<State<P>>,
    /// There is room for a chunk, or none is wanted any more.
    room: Condvar,
}

impl<P> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: SifError) {
        self.lock().failed.get_or_insert(error);
        self.room.notify_all();
    }
}

/// A thread that ends in a panic takes its chunk along: the others must not wait for it.
struct Ending<'a, P>(&'a Shared<P>);

impl<P> Drop for Ending<'_, P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(SifError::Crypto("an encrypting thread ended".into()));
        }
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl Payload<'_> {
    /// Writes partition and tree. `header` makes the partition's beginning, [`luks::HEADER`] bytes, while the rest is encrypted. `progress` is
    /// told bytes done and bytes in all.
    ///
    /// # Errors
    /// [`SifError`].
    pub(crate) fn write(
        &self,
        key: &VolumeKey,
        header: impl FnOnce() -> Result<Vec<u8>, SifError>,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Written, SifError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
        let ciphers: Result<Vec<Xts>, SifError> = (0..threads).map(|_| Xts::encryptor(key)).collect();
        let state = State {
            read: 0,
            ordered: 0,
            under_way: 0,
            done: BTreeMap::new(),
            free: Vec::new(),
            order: None,
            failed: None,
        };
        let shared = Shared { state: Mutex::new(state), room: Condvar::new() };
        std::thread::scope(|scope| {
            for mut cipher in ciphers? {
                let shared = &shared;
                scope.spawn(move || {
                    let _ending = Ending(shared);
                    self.work(&mut cipher, shared).unwrap_or_else(|e| shared.fail(e));
                });
            }
            let _ending = Ending(&shared);
            let begun = header().and_then(|header| self.begin(&header, progress));
            begun.and_then(|order| self.order(order, &shared)).unwrap_or_else(|e| shared.fail(e));
            Ok::<_, SifError>(())
        })?;
        let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (state.failed, state.order) {
            (Some(e), _) => Err(e),
            (None, Some(order)) if state.ordered == self.padded => self.finish(order),
            (None, _) => Err(SifError::Crypto("an encrypting thread ended".into())),
        }
    }

    /// Encrypts chunks until there are no more, or nobody wants them.
    fn work<P: FnMut(u64, u64)>(&self, cipher: &mut Xts, shared: &Shared<P>) -> Result<(), SifError> {
        loop {
            // A place is taken together with room for it: the chunk that all others wait for has some.
            let (at, buffer) = {
                let full = |state: &mut State<P>| state.under_way >= UNDER_WAY && state.failed.is_none();
                let state = shared.room.wait_while(shared.lock(), full);
                let mut state = state.unwrap_or_else(PoisonError::into_inner);
                if state.read >= self.padded || state.failed.is_some() {
                    return Ok(());
                }
                let at = state.read;
                state.read = at.saturating_add(CHUNK_U64);
                state.under_way = state.under_way.saturating_add(1);
                (at, state.free.pop().unwrap_or_default())
            };
            let chunk = self.chunk(cipher, at, buffer)?;
            let order = {
                let mut state = shared.lock();
                state.done.insert(at, chunk);
                if state.ordered == at { state.order.take() } else { None }
            };
            if let Some(order) = order {
                self.order(order, shared)?;
            }
        }
    }

    fn chunk(&self, cipher: &mut Xts, at: u64, buffer: Vec<u8>) -> Result<Done, SifError> {
        // Wiped whatever ends this, until what is in it is encrypted.
        let mut data = Zeroizing::new(buffer);
        let size = usize::try_from(self.padded.saturating_sub(at)).unwrap_or(usize::MAX).min(CHUNK);
        let there = usize::try_from(self.squashfs.length().saturating_sub(at)).unwrap_or(usize::MAX).min(size);
        data.resize(size, 0);
        let (read, padding) = data.split_at_mut(there);
        self.squashfs.read_exact_at(read, at)?;
        padding.fill(0);
        let plain = self.squashfs.verified().map(|_| Zeroizing::new(read.to_vec()));
        cipher.run_in_place(at / 512, &mut data)?;
        let data = std::mem::take(&mut *data);
        let place = self.partition_at.saturating_add(luks::HEADER).saturating_add(at);
        self.file.write_all_at(&data, place)?;
        let leaves = leaves(&self.salt, &data);
        Ok(Done { cipher: data, leaves, plain })
    }

    /// Writes the header and hashes it, first of all.
    fn begin<P>(&self, header: &[u8], progress: P) -> Result<Order<P>, SifError> {
        if length(header) != luks::HEADER {
            return Err(SifError::Structure("a header of another length".into()));
        }
        let blocks = self.padded.saturating_add(luks::HEADER) / BLOCK_U64;
        let (digest, input) = (Context::new(&SHA256), Context::new(&SHA256));
        let mut order = Order { digest, input, tree: Builder::new(self.salt, blocks), progress };
        self.file.write_all_at(header, self.partition_at)?;
        order.digest.update(header);
        order.tree.add(&leaves(&self.salt, header), &mut |at, block| self.store(at, block))?;
        Ok(order)
    }

    /// Writes a block of the tree.
    fn store(&self, at: u64, block: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(block, self.tree_at.saturating_add(at))
    }

    /// Puts in order what is done, up to the first chunk that is not.
    fn order<P: FnMut(u64, u64)>(&self, mut order: Order<P>, shared: &Shared<P>) -> Result<(), SifError> {
        let mut state = shared.lock();
        loop {
            let at = state.ordered;
            let Some(chunk) = state.done.remove(&at) else {
                state.order = Some(order);
                return Ok(());
            };
            drop(state);
            order.digest.update(&chunk.cipher);
            if let Some(plain) = &chunk.plain {
                order.input.update(plain);
            }
            order.tree.add(&chunk.leaves, &mut |at, block| self.store(at, block))?;
            let next = at.saturating_add(length(&chunk.cipher));
            (order.progress)(next, self.padded);
            state = shared.lock();
            state.ordered = next;
            state.under_way = state.under_way.saturating_sub(1);
            state.free.push(chunk.cipher);
            shared.room.notify_one();
        }
    }

    fn finish<P>(&self, order: Order<P>) -> Result<Written, SifError> {
        let Order { digest, input, tree, .. } = order;
        if self.squashfs.verified().is_some_and(|signed| signed.partition != dsse::digest_text(&input.finish())) {
            return Err(SifError::Signature("the input changed after its signature was verified".into()));
        }
        let tree_root = tree.finish(&mut |at, block: &[u8]| self.store(at, block))?;
        Ok(Written { digest: dsse::digest_text(&digest.finish()), tree_root })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::squashfs::squashfs_of;
    use crate::verity::{BLOCK, tree_size};

    const ROOM: u64 = 512 * CHUNK_U64;
    const _: () = assert!(UNDER_WAY == 512, "what ROOM says");

    /// Its halves differ, as XTS demands.
    fn key() -> VolumeKey {
        VolumeKey::new(std::array::from_fn(|n| u8::try_from(n).unwrap()))
    }

    /// A sparse squashfs, and a file for the image.
    fn files(length: u64) -> (Squashfs, File) {
        let source = tempfile::NamedTempFile::new().unwrap();
        let mut superblock = [0; 96];
        superblock[..4].copy_from_slice(b"hsqs");
        superblock[28] = 4;
        superblock[40..48].copy_from_slice(&length.to_le_bytes());
        source.as_file().write_all_at(&superblock, 0).unwrap();
        source.as_file().set_len(length).unwrap();
        (squashfs_of(source.path(), source.path().parent().unwrap()).unwrap(), tempfile::tempfile().unwrap())
    }

    fn payload<'a>(squashfs: &'a Squashfs, file: &'a File) -> Payload<'a> {
        let padded = squashfs.length().next_multiple_of(BLOCK_U64);
        let tree_at = luks::HEADER.saturating_add(padded);
        Payload { squashfs, file, partition_at: 0, tree_at, padded, salt: [7; 32] }
    }

    fn header() -> Vec<u8> {
        vec![9; usize::try_from(luks::HEADER).unwrap()]
    }

    #[test]
    fn a_late_header_stands_first_and_no_more_than_the_room_is_encrypted_before() {
        let (squashfs, file) = files(ROOM + 5 * CHUNK_U64 + 100);
        let (payload, key) = (payload(&squashfs, &file), key());
        let written = || file.metadata().unwrap().len();
        let late = || {
            while written() < luks::HEADER + ROOM {
                std::thread::yield_now();
            }
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            assert_eq!(written(), luks::HEADER + ROOM);
            Ok(header())
        };
        let mut told = Vec::new();
        let made = payload.write(&key, late, |done, _| told.push(done)).unwrap();
        assert!(told.is_sorted(), "in order");
        assert_eq!(told.last(), Some(&payload.padded));

        let mut partition = vec![0; usize::try_from(payload.tree_at).unwrap()];
        file.read_exact_at(&mut partition, 0).unwrap();
        assert!(partition.starts_with(&header()));
        assert_eq!(made.digest, dsse::digest(&partition));
        let blocks = payload.tree_at / BLOCK_U64;
        let mut tree = Builder::new(payload.salt, blocks);
        let mut stored = vec![0; usize::try_from(tree_size(blocks)).unwrap()];
        let mut store = |at: u64, block: &[u8]| {
            let at = usize::try_from(at).unwrap();
            stored[at..at + BLOCK].copy_from_slice(block);
            Ok::<_, SifError>(())
        };
        tree.add(&leaves(&payload.salt, &partition), &mut store).unwrap();
        assert_eq!(tree.finish(&mut store).unwrap(), made.tree_root);
        let mut found = vec![0; stored.len()];
        file.read_exact_at(&mut found, payload.tree_at).unwrap();
        assert!(found == stored);
    }

    #[test]
    fn without_a_header_it_ends() {
        let (squashfs, file) = files(ROOM + 5 * CHUNK_U64);
        let (payload, key) = (payload(&squashfs, &file), key());
        let none = || Err(SifError::Key("none".into()));
        assert!(matches!(payload.write(&key, none, |_, _| {}), Err(SifError::Key(_))));
        let short = || Ok(vec![9; BLOCK]);
        assert!(matches!(payload.write(&key, short, |_, _| {}), Err(SifError::Structure(_))));
    }

    /// What is looked for in this process's memory: each byte is the one before plus this, so that no copy is needed to know it.
    const STEP: u8 = 37;

    /// Whether such bytes are anywhere in memory that can be written: a look at each kilobyte's beginning.
    fn in_memory() -> bool {
        let memory = File::open("/proc/self/mem").unwrap();
        // What it holds is not to be found by the next look.
        let mut part = Zeroizing::new(vec![0; 1 << 20]);
        let alike =
            |bytes: &[u8]| bytes.len() > 32 && bytes[..32].windows(2).all(|two| two[1] == two[0].wrapping_add(STEP));
        for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            while rest.starts_with("rw") && at < end {
                let most = usize::try_from(end.saturating_sub(at)).unwrap().min(part.len());
                let Ok(n @ 1..) = memory.read_at(&mut part[..most], at) else { break };
                if part[..n].chunks(1024).any(alike) {
                    return true;
                }
                at = at.saturating_add(u64::try_from(n).unwrap());
            }
        }
        false
    }

    #[test]
    fn what_was_read_is_wiped_when_it_comes_to_nothing() {
        let source = tempfile::NamedTempFile::new().unwrap();
        // Less than a chunk: freed memory of this size stays the process's.
        let length = 64 << 10;
        let mut bytes = Zeroizing::new(vec![0_u8; length]);
        for at in 1..length {
            bytes[at] = bytes[at - 1].wrapping_add(STEP);
        }
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28..32].copy_from_slice(&[4, 0, 0, 0]);
        bytes[40..48].copy_from_slice(&u64::try_from(length).unwrap().to_le_bytes());
        source.as_file().write_all_at(&bytes, 0).unwrap();
        assert!(in_memory(), "it would be found");
        drop(bytes);
        assert!(!in_memory());
        let squashfs = squashfs_of(source.path(), source.path().parent().unwrap()).unwrap();
        // Most of it is read before the end is missed.
        source.as_file().set_len(u64::try_from(length - 100).unwrap()).unwrap();
        let (_, file) = files(BLOCK_U64);
        let (payload, key) = (payload(&squashfs, &file), key());
        assert!(matches!(payload.write(&key, || Ok(header()), |_, _| {}), Err(SifError::Io(_))));
        assert!(!in_memory());
    }

    #[test]
    fn a_thread_that_fails_or_panics_ends_it() {
        let (squashfs, file) = files(ROOM + 5 * CHUNK_U64);
        let key = key();
        let mut closed = payload(&squashfs, &file);
        let read_only = File::open("/dev/null").unwrap();
        closed.file = &read_only;
        assert!(matches!(closed.write(&key, || Ok(header()), |_, _| {}), Err(SifError::Io(_))));
        // Whoever puts chunks in order may be any of the threads.
        let payload = payload(&squashfs, &file);
        let mut seen = 0;
        let panics = |_, _| {
            seen += 1;
            assert!(seen < 20, "on purpose");
        };
        assert!(catch_unwind(AssertUnwindSafe(|| payload.write(&key, || Ok(header()), panics).is_ok())).is_err());
    }
}
