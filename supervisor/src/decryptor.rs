//! The decryptor: the one process that ever holds a volume key (DESIGN.md section 10).
//!
//! It cannot be dumped or traced, its memory is locked, and it dies with its supervisor. The TPM unseals into it; what leaves it is a
//! decrypted file system served through FUSE.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use countersign_attest::{Config, Host, Overrides};
use countersign_sif::dsse::SignerKey;
use countersign_sif::xts::{KEY, VolumeKey};
use countersign_sif::{Image, SifError, View};
use countersign_wire::id::{RunId, VerdictId};
use fuser::{
    Config as FuseConfig, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request, Session,
    SessionACL,
};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::exit::{Failure, Stage};

/// FUSE threads: more add nothing.
const THREADS: usize = 2;
/// Name of the one file that is served.
pub(crate) const FILE: &str = "rootfs.sqfs";

/// What the supervisor tells it; the image's descriptor comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) config: Option<PathBuf>,
    pub(crate) tpm: Option<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) signers: Vec<String>,
    pub(crate) run: RunId,
}

/// What it tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The key is here.
    Released { verdict: VerdictId, lease_s: u32, commands: u64, milliseconds: u64 },
    /// It is not.
    Failed(Failure),
    /// A block does not match the signed tree.
    Integrity { block: u64, level: usize },
}

/// Runs the decryptor on its standard input.
pub(crate) fn main() -> u8 {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let Ok(channel) = Channel::from_stdin() else { return Stage::Decryptor.code() };
    match serve(&channel) {
        Ok(()) => 0,
        Err(failure) => {
            let code = failure.stage.code();
            let _ = channel.send(&Report::Failed(failure), &[]);
            code
        }
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Decryptor, format!("decryptor: {e}"), "")
}

/// Nobody else may look in: not dumpable, no core, memory locked where the limit allows.
fn harden() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(other)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(other)?;
    // An ordinary user's limit is often too small for this; the key's pages are then only as safe from swap as the host makes them.
    let _ = rustix::mm::mlockall(
        rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE | rustix::mm::MlockAllFlags::ONFAULT,
    );
    Ok(())
}

fn serve(channel: &Channel) -> Result<(), Failure> {
    harden()?;
    let Some((order, mut fds)) = channel.receive::<Order>().map_err(other)? else { return Ok(()) };
    let image = fds.pop().ok_or_else(|| other("no image was handed over"))?;
    let trusted: Result<Vec<SignerKey>, SifError> =
        order.signers.iter().map(|pem| SignerKey::from_pem(pem.as_bytes())).collect();
    // The same descriptor that the supervisor checked, checked again here: this process trusts nobody with its key.
    let image = Image::from_file(File::from(image), &trusted?, false)?;
    let view = {
        let started = std::time::Instant::now();
        let tpm = order.tpm.map(|tpm| tpm.parse()).transpose().map_err(other)?;
        let config = Config::load(order.config.as_deref(), Overrides { tpm, state_dir: order.state_dir })?;
        let mut host = Host::open(config)?;
        let released = host.release(image.binding().workload, order.run)?;
        let mut key = VolumeKey::new([0; KEY]);
        if released.key.len() != KEY {
            return Err(other(format!("the unsealed key has {} bytes", released.key.len())));
        }
        key.copy_from_slice(&released.key);
        let view = View::new(&image, &key, THREADS)?;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (verdict, lease_s, commands) = (released.verdict_id, released.lease_s, released.commands);
        channel.send(&Report::Released { verdict, lease_s, commands, milliseconds }, &[]).map_err(other)?;
        view
    };
    let Some(((), mut fds)) = channel.receive::<()>().map_err(other)? else { return Ok(()) };
    let fuse = fds.pop().ok_or_else(|| other("no FUSE descriptor was handed over"))?;
    mount(view, fuse, channel.try_clone().map_err(other)?)
}

fn mount(view: View, fuse: OwnedFd, report: Channel) -> Result<(), Failure> {
    let mut config = FuseConfig::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    // The opener is root of its own user namespace, another uid than ours: its requests come with uid 0.
    config.acl = SessionACL::All;
    let session = Session::from_fd(Served { view, report }, fuse, SessionACL::All, config).map_err(other)?;
    session.spawn().map_err(other)?.join().map_err(other)
}

/// A folder with one file in it.
struct Served {
    view: View,
    report: Channel,
}

const ROOT: u64 = 1;
const IMAGE: u64 = 2;
/// The file never changes: the kernel may keep what it knows.
const FOR_EVER: Duration = Duration::from_secs(86_400);

impl Served {
    fn attributes(&self, inode: u64) -> FileAttr {
        let is_root = inode == ROOT;
        FileAttr {
            ino: INodeNo(inode),
            size: if is_root { 0 } else { self.view.length() },
            blocks: self.view.length().div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o500 } else { 0o400 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
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
        if parent.0 == ROOT && name == FILE {
            reply.entry(&FOR_EVER, &self.attributes(IMAGE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attributes(inode.0));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries =
            [(ROOT, FileType::Directory, "."), (ROOT, FileType::Directory, ".."), (IMAGE, FileType::RegularFile, FILE)];
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (n, (inode, kind, name)) in entries.into_iter().enumerate().skip(skip) {
            let next = u64::try_from(n).unwrap_or(u64::MAX).saturating_add(1);
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
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
        match self.view.read_at(offset, usize::try_from(size).unwrap_or(0)) {
            Ok(data) => reply.data(&data),
            Err(e) => {
                if let SifError::Integrity { block, level } = e {
                    let _ = self.report.send(&Report::Integrity { block, level }, &[]);
                }
                reply.error(Errno::EIO);
            }
        }
    }
}
