//! The barrier: a folder on the way to the container's root, in which nobody finds the root before the word.
//!
//! So a runtime can be started before there is anything to run: all that it does until it looks for its image, which is much, is done while the
//! key is released. Requests of others are left unread in the kernel until then: who waits for one that was read cannot be killed, which is
//! what a library's loop would make of it. The part of the protocol that an empty folder needs is small (`linux/fuse.h`).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};

use crate::exit::Failure;
use crate::stage::{fuse, namespaces};

/// What it is mounted from, in mount tables.
const SOURCE: &str = "barrier";
/// Room for one request; the kernel wants 8 KiB at least (FUSE_MIN_READ_BUFFER).
const REQUEST: usize = 16 * 1024;
const STACK: usize = 128 * 1024;

/// Mounted: who looks for something there waits.
#[derive(Debug)]
pub(super) struct Mounted {
    fuse: File,
    folder: PathBuf,
    name: OsString,
}

/// One that knows its own folder inside.
#[derive(Debug)]
pub(super) struct Barrier {
    folder: PathBuf,
    /// The place of the root.
    place: OwnedFd,
    word: Sender<()>,
    server: JoinHandle<()>,
}

impl Mounted {
    /// Makes one around the `root` that is to be seen. What is mounted behind it is seen in namespaces that were copied from this one by then.
    pub(super) fn around(root: &Path) -> Result<Self, Failure> {
        let (folder, name) =
            root.parent().zip(root.file_name()).ok_or_else(|| namespaces("a root without a folder"))?;
        fs::create_dir_all(folder).map_err(namespaces)?;
        let fuse = fuse(folder, SOURCE, "")?;
        mount_change(folder, MountPropagationFlags::SHARED).map_err(namespaces)?;
        Ok(Self { fuse, folder: folder.to_owned(), name: name.to_owned() })
    }

    /// Serves it. Nobody may look for the root before: a kernel that has such a request has no other one for the same name.
    pub(super) fn serve(self) -> Result<Barrier, Failure> {
        let Self { fuse, folder, name } = self;
        let path = folder.join(&name);
        let (word, said) = channel();
        let server = Server { fuse, name, said };
        let own = std::process::id();
        let thread = std::thread::Builder::new().stack_size(STACK);
        let server = thread.spawn(move || server.serve(own)).map_err(namespaces)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = open(&path, flags, Mode::empty()).map_err(namespaces)?;
        Ok(Barrier { folder, place, word, server })
    }
}

impl Barrier {
    /// Moves the file system that is mounted at `root` behind it.
    pub(super) fn take(&self, root: &Path) -> Result<(), Failure> {
        let tree = open_tree(CWD, root, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let tree = tree.map_err(namespaces)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree.as_fd(), "", self.place.as_fd(), "", flags).map_err(namespaces)?;
        unmount(root, UnmountFlags::DETACH).map_err(namespaces)?;
        let _ = fs::remove_dir(root);
        Ok(())
    }

    /// Lets through who waits and who comes.
    pub(super) fn open(self) {
        let _ = self.word.send(());
    }

    /// Takes it away; who waits gets an error.
    pub(super) fn remove(self) -> Result<(), Failure> {
        drop(self.word);
        // A process with threads starts none in a cgroup.
        let _ = self.server.join();
        unmount(&self.folder, UnmountFlags::DETACH).map_err(namespaces)
    }
}

/// FUSE's operations, as far as they are answered (`enum fuse_opcode`).
mod operation {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const STATFS: u32 = 17;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// The folder itself, and the root's place in it.
const FOLDER: u64 = 1;
const PLACE: u64 = 2;
/// Seconds for which the kernel may believe what does not change.
const FOR_EVER: u64 = 86_400;

struct Server {
    fuse: File,
    name: OsString,
    said: Receiver<()>,
}

/// A request's header (`struct fuse_in_header`, 40 bytes) and body.
struct Request<'a> {
    operation: u32,
    unique: u64,
    node: u64,
    pid: u32,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(40)?;
        let number = |at: usize| header.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
        let long = |at: usize| header.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes);
        Some(Self { operation: number(4)?, unique: long(8)?, node: long(16)?, pid: number(32)?, body })
    }

    /// Whether the root is looked for.
    fn looks_for(&self, name: &[u8]) -> bool {
        self.operation == operation::LOOKUP && self.node == FOLDER && self.body.strip_suffix(b"\0") == Some(name)
    }
}

impl Server {
    /// Until the mount is gone: first for this process, `own`, then, when the word is said, for all. Without the word it ends, and with it all
    /// who wait.
    fn serve(self, own: u32) {
        let mut bytes = vec![0; REQUEST];
        let mut waits = true;
        loop {
            let length = match (&self.fuse).read(&mut bytes) {
                Ok(length) => length,
                // A request that was taken back.
                Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::INTR | Errno::AGAIN)) => {
                    continue;
                }
                Err(_) => return,
            };
            let Some(request) = bytes.get(..length).and_then(Request::of) else { return };
            let ours = request.pid == own;
            let found = request.looks_for(self.name.as_bytes());
            if self.answer(&request, !waits || ours, if waits { 0 } else { FOR_EVER }).is_err() {
                return;
            }
            if waits && ours && found {
                if self.said.recv().is_err() {
                    return;
                }
                waits = false;
            }
        }
    }

    /// Answers a request of somebody who `may` see the root; the kernel believes for `valid` seconds what it is told of it.
    fn answer(&self, request: &Request<'_>, may: bool, valid: u64) -> io::Result<()> {
        let mut body = Vec::with_capacity(128);
        let error = match request.operation {
            operation::FORGET | operation::BATCH_FORGET | operation::INTERRUPT => return Ok(()),
            operation::INIT => {
                // struct fuse_init_out: version 7.31, nothing that is asked for, the least for a write.
                let (version, none, write) = ([7_u32, 31], [0_u32; 3], [4096_u32, 1]);
                body.extend(version.into_iter().chain(none).chain(write).flat_map(u32::to_ne_bytes));
                body.resize(64, 0);
                None
            }
            operation::LOOKUP if may && request.looks_for(self.name.as_bytes()) => {
                // struct fuse_entry_out
                body.extend([PLACE, 0, valid, FOR_EVER, 0].into_iter().flat_map(u64::to_ne_bytes));
                body.extend(attributes(PLACE));
                None
            }
            operation::LOOKUP => Some(Errno::NOENT),
            operation::OPENDIR => Some(Errno::ACCESS),
            operation::GETATTR if [FOLDER, PLACE].contains(&request.node) => {
                // struct fuse_attr_out
                body.extend([FOR_EVER, 0].into_iter().flat_map(u64::to_ne_bytes));
                body.extend(attributes(request.node));
                None
            }
            operation::STATFS => {
                // struct fuse_kstatfs: no room.
                body.resize(80, 0);
                None
            }
            _ => Some(Errno::NOSYS),
        };
        let error = error.map_or(0, |errno: Errno| errno.raw_os_error().wrapping_neg());
        // struct fuse_out_header
        let length = u32::try_from(body.len().saturating_add(16)).unwrap_or(u32::MAX);
        let header = length.to_ne_bytes().into_iter().chain(error.to_ne_bytes()).chain(request.unique.to_ne_bytes());
        let answer: Vec<u8> = header.chain(body).collect();
        match (&self.fuse).write(&answer) {
            // Who asked is gone.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// `struct fuse_attr` of a folder that its owner, root in this namespace, can read.
fn attributes(node: u64) -> impl Iterator<Item = u8> {
    const FOLDER_OF_OWNER: u32 = 0o040_500;
    let times = [node, 0, 0, 0, 0, 0].into_iter().flat_map(u64::to_ne_bytes);
    // Nanoseconds, mode, links, user, group, device, size of blocks, flags.
    let rest = [0, 0, 0, FOLDER_OF_OWNER, 2, 0, 0, 0, 4096, 0].into_iter().flat_map(u32::to_ne_bytes);
    times.chain(rest)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use rustix::mount::{MountFlags, mount};

    use super::*;

    /// A folder in which nothing stays mounted.
    struct Ground(tempfile::TempDir);

    impl Drop for Ground {
        fn drop(&mut self) {
            for place in ["in", "root"] {
                let _ = unmount(self.0.path().join(place), UnmountFlags::DETACH);
            }
        }
    }

    /// A barrier and, beside it, a file system to be put behind it; `None` for who may not mount.
    fn made(ground: &Ground) -> Option<(PathBuf, Barrier, PathBuf)> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root mounts here");
            return None;
        }
        let (inside, root) = (ground.0.path().join("in"), ground.0.path().join("root"));
        fs::create_dir(&root).unwrap();
        mount("barrier-test", &root, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(root.join("file"), "words").unwrap();
        let shown = inside.join("a name");
        let mounted = Mounted::around(&shown).unwrap();
        Some((shown, on_main_thread(mounted), root))
    }

    /// Tests have threads, and requests the id of the one that makes them.
    fn on_main_thread(mounted: Mounted) -> Barrier {
        let Mounted { fuse, folder, name } = mounted;
        let (word, said) = channel();
        let server = Server { fuse, name: name.clone(), said };
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let server = std::thread::spawn(move || server.serve(own));
        let place = open(folder.join(name), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Barrier { folder, place, word, server }
    }

    fn reader(shown: &Path) -> Child {
        Command::new("cat").arg(shown.join("file")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn waits(child: &mut Child) {
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none(), "the barrier is closed");
    }

    #[test]
    fn who_comes_early_waits_and_can_be_killed() {
        let ground = Ground(tempfile::tempdir().unwrap());
        let Some((shown, barrier, root)) = made(&ground) else { return };
        let (mut killed, mut early) = (reader(&shown), reader(&shown));
        waits(&mut killed);
        killed.kill().unwrap();
        assert!(!killed.wait().unwrap().success());
        barrier.take(&root).unwrap();
        assert!(!root.exists(), "it has one place");
        waits(&mut early);
        barrier.open();
        for reader in [early, reader(&shown)] {
            assert_eq!(reader.wait_with_output().unwrap().stdout, b"words");
        }
        let inside = shown.parent().unwrap();
        assert!(!inside.join("other").exists() && fs::read_dir(inside).is_err());
    }

    #[test]
    fn without_the_word_nobody_gets_through() {
        let ground = Ground(tempfile::tempdir().unwrap());
        let Some((shown, barrier, root)) = made(&ground) else { return };
        let mut early = reader(&shown);
        barrier.take(&root).unwrap();
        waits(&mut early);
        barrier.remove().unwrap();
        let out = early.wait_with_output().unwrap();
        assert!(!out.status.success() && out.stdout.is_empty());
        assert!(!shown.exists());
    }

    #[test]
    fn requests() {
        let mut bytes = vec![0; 40];
        bytes[4..8].copy_from_slice(&operation::LOOKUP.to_ne_bytes());
        bytes[16..24].copy_from_slice(&FOLDER.to_ne_bytes());
        bytes[32..36].copy_from_slice(&7_u32.to_ne_bytes());
        bytes.extend(b"root\0");
        let request = Request::of(&bytes).unwrap();
        assert!(request.pid == 7 && request.looks_for(b"root") && !request.looks_for(b"roo"));
        assert!(Request::of(&bytes[..39]).is_none());
        assert_eq!(attributes(PLACE).count(), 88);
    }
}
