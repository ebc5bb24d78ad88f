//! A file system that answers for a while and then does not: FUSE, served by this test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, SessionACL,
};

/// When all is answered that waits, so that a test that has failed ends.
const AT_LAST: Duration = Duration::from_secs(240);
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

#[derive(Default)]
struct State {
    opened: usize,
    waiting: Vec<ReplyOpen>,
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// One file; it is opened so many times, and the next ones wait.
struct Server {
    name: &'static str,
    bytes: Vec<u8>,
    answers: usize,
    shared: Arc<Shared>,
}

/// Mounted; answers and unmounts when dropped.
pub(crate) struct Stalling {
    shared: Arc<Shared>,
    place: PathBuf,
    _session: BackgroundSession,
}

impl Stalling {
    /// `None`, said aloud, where it cannot be mounted.
    pub(crate) fn on(place: &Path, name: &'static str, bytes: Vec<u8>, answers: usize) -> Option<Self> {
        std::fs::create_dir_all(place).unwrap();
        let shared = Arc::new(Shared::default());
        let server = Server { name, bytes, answers, shared: Arc::clone(&shared) };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("stalling".into())];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(server, place, &config);
        let session = session.inspect_err(|e| println!("skipped: no FUSE mount for others: {e}")).ok()?;
        let at_last = Arc::clone(&shared);
        std::thread::spawn(move || {
            let state = at_last.state.lock().unwrap();
            drop(at_last.changed.wait_timeout_while(state, AT_LAST, |state| !state.over).unwrap());
            answer(&at_last);
        });
        Some(Self { shared, place: place.to_owned(), _session: session })
    }

    /// Waits until somebody waits for it.
    pub(crate) fn stalls(&self) {
        let state = self.shared.state.lock().unwrap();
        let waiting = |state: &mut State| state.waiting.is_empty();
        let (_state, waited) = self.shared.changed.wait_timeout_while(state, AT_LAST, waiting).unwrap();
        assert!(!waited.timed_out(), "nobody asks it");
    }

    /// Answers all that wait: it failed.
    pub(crate) fn answer(&self) {
        answer(&self.shared);
    }
}

fn answer(shared: &Shared) {
    let mut state = shared.state.lock().unwrap();
    state.over = true;
    for reply in std::mem::take(&mut state.waiting) {
        reply.error(Errno::EIO);
    }
    shared.changed.notify_all();
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.answer();
        let _ = Command::new("umount").arg("-l").arg(&self.place).stderr(Stdio::null()).status();
    }
}

impl Server {
    fn attributes(&self, inode: u64) -> FileAttr {
        let file = inode != 1;
        let time = UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(inode),
            size: if file { u64::try_from(self.bytes.len()).unwrap() } else { 0 },
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == self.name {
            reply.entry(&FOR_EVER, &self.attributes(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attributes(inode.0));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut state = self.shared.state.lock().unwrap();
        state.opened += 1;
        if state.opened <= self.answers || state.over {
            reply.opened(FileHandle(0), FopenFlags::empty());
        } else {
            state.waiting.push(reply);
            self.shared.changed.notify_all();
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let end = (start + usize::try_from(size).unwrap()).min(self.bytes.len());
        reply.data(&self.bytes[start..end]);
    }
}
