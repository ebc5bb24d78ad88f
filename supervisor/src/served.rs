//! The decrypted file system as the kernel sees it: a folder with one file, which one process may open, once.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use countersign_sif::{SifError, View};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};

use crate::channel::Channel;
use crate::decryptor::Report;
use crate::permit::Permit;

/// FUSE threads: more add nothing.
pub(crate) const THREADS: usize = 2;
/// Name of the one file that is served.
pub(crate) const FILE: &str = "rootfs.sqfs";
const ROOT: u64 = 1;
const IMAGE: u64 = 2;
/// The file never changes: the kernel may keep what it knows.
const FOR_EVER: Duration = Duration::from_secs(86_400);

/// Who may open the file: the process that the supervisor names, once. The other processes of the same user can reach the mount through
/// /proc until it is detached, and squashfuse's descriptors for as long as it lives.
#[derive(Debug)]
pub(crate) struct Gate {
    /// By its id in the namespace of the mount.
    reader: u32,
    /// It was here.
    served: AtomicBool,
}

impl Gate {
    pub(crate) const fn new(reader: u32) -> Self {
        Self { reader, served: AtomicBool::new(false) }
    }

    fn admits(&self, pid: u32) -> bool {
        pid == self.reader && !self.served.swap(true, Ordering::Relaxed)
    }
}

/// Serves the view until its last mount is gone. `begun` gets what [`forget`] takes.
///
/// # Errors
/// FUSE fails.
pub(crate) fn serve(
    view: View,
    fuse: OwnedFd,
    gate: Gate,
    permit: Arc<Permit>,
    report: Channel,
    begun: impl FnOnce(Notifier),
) -> std::io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    // The opener is root of its own user namespace: its requests come with an id that is not ours. The gate decides.
    config.acl = SessionACL::All;
    let served = Served { view, gate, permit, report, reported: AtomicBool::new(false) };
    let session = Session::from_fd(served, fuse, SessionACL::All, config)?;
    begun(session.notifier());
    session.spawn()?.join().or_else(|e| if is_over(&e) { Ok(()) } else { Err(e) })
}

/// Whether the mount is gone: a thread that was taking a request just then is told ECONNABORTED (fuse_dev_do_read in Linux), the others ENODEV.
fn is_over(error: &std::io::Error) -> bool {
    let over = [rustix::io::Errno::CONNABORTED, rustix::io::Errno::NODEV];
    over.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Has the kernel drop the decrypted pages that it keeps, whoever has the file open.
///
/// # Errors
/// The mount is gone: then they are dropped already.
pub(crate) fn forget(notifier: &Notifier) -> std::io::Result<()> {
    notifier.inval_inode(INodeNo(IMAGE), 0, 0)
}

struct Served {
    view: View,
    gate: Gate,
    permit: Arc<Permit>,
    report: Channel,
    /// An integrity error was reported; the supervisor ends the run at the first.
    reported: AtomicBool,
}

impl Served {
    fn attributes(&self, inode: u64) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            ROOT => (FileType::Directory, 0o500, 0),
            IMAGE => (FileType::RegularFile, 0o400, self.view.length()),
            _ => return None,
        };
        Some(FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            // As seen in the mount's own user namespace.
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if let Err(most) = config.set_max_readahead(1 << 20) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(IMAGE).filter(|_| parent.0 == ROOT && name == FILE) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode.0) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if inode.0 == IMAGE && self.gate.admits(request.pid()) {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        } else {
            reply.error(Errno::EACCES);
        }
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::EACCES);
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
        if !self.permit.wait() {
            return reply.error(Errno::EIO);
        }
        let mut reply = Some(reply);
        let size = usize::try_from(size).unwrap_or(0);
        // The bytes go from the buffer that they were decrypted in to the kernel.
        let read = self.view.read_with(offset, size, |data| reply.take().map_or((), |reply| reply.data(data)));
        let (Err(e), Some(reply)) = (read, reply) else { return };
        // Said before the reader learns of it: whoever fails because of it is explained by it.
        if let SifError::Integrity { block, level } = e
            && !self.reported.swap(true, Ordering::Relaxed)
        {
            let _ = self.report.send(&Report::Integrity { block, level }, &[]);
        }
        reply.error(Errno::EIO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_is_gone_is_no_failure() {
        let errno = std::io::Error::from_raw_os_error;
        assert!([103, 19].map(errno).iter().all(is_over), "ECONNABORTED, ENODEV");
        assert!(![5, 13, 22].map(errno).iter().any(is_over), "EIO, EACCES, EINVAL");
    }

    #[test]
    fn the_reader_once_and_nobody_else() {
        let gate = Gate::new(8);
        assert!(!gate.admits(7) && !gate.admits(9), "before it");
        assert!(gate.admits(8));
        assert!(!gate.admits(8), "a second time");
        assert!(!gate.admits(9), "another one later");
    }
}
