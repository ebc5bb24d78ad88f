//! Folders and files of the caller's in his container: opened by the client, with the caller's rights, and mapped by the session, so that what is
//! the caller's is the container's user's there (decision 0028).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, open};

use super::peer::Peer;
use crate::exit::{Failure, Stage};

/// Most binds of a run.
pub(crate) const BINDS: usize = 16;

/// What the caller has opened.
#[derive(Debug)]
pub(super) struct Bound {
    fd: OwnedFd,
    /// As the caller calls it.
    name: PathBuf,
    read_only: bool,
}

fn usage(name: &Path, why: impl std::fmt::Display) -> Failure {
    let hint = "bind a folder or a file that you may reach";
    Failure::new(Stage::Usage, format!("--bind {}: {why}", name.display()), hint)
}

/// More of them than there may be.
pub(super) fn too_many(count: usize) -> Failure {
    let hint = "bind a folder that holds several of them";
    Failure::new(Stage::Usage, format!("{count} binds, and the daemon takes {BINDS} at most"), hint)
}

/// Opens the source of a bind with the rights of whoever calls this; its content is not opened.
pub(super) fn opened(source: &Path) -> Result<OwnedFd, Failure> {
    open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|e| usage(source, e))
}

impl Bound {
    /// Checks what a client has handed over.
    ///
    /// # Errors
    /// [`Stage::Usage`]: neither a folder nor a regular file, or more than a path.
    pub(super) fn new(fd: OwnedFd, name: &Path, read_only: bool) -> Result<Self, Failure> {
        let bad = |e: rustix::io::Errno| usage(name, e);
        if !fcntl_getfl(&fd).map_err(bad)?.contains(OFlags::PATH) {
            return Err(usage(name, "its descriptor is more than a path"));
        }
        match FileType::from_raw_mode(fstat(&fd).map_err(bad)?.st_mode) {
            FileType::Directory | FileType::RegularFile => Ok(Self { fd, name: name.to_owned(), read_only }),
            other @ (FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown) => Err(usage(name, format!("neither a folder nor a regular file ({other:?})"))),
        }
    }

    fn mount(&self, namespace: Option<BorrowedFd<'_>>, owners: &OwnedFd) -> Result<OwnedFd, Failure> {
        let (mount, table) = countersign_sys::clone_mount(&self.fd, namespace).map_err(|e| {
            let hint = "bind what is mounted where you have started the supervisor, and nothing of /proc";
            let why = format!("its mount cannot be had: {e}");
            Failure::new(Stage::Namespaces, format!("--bind {}: {why}", self.name.display()), hint)
        })?;
        let id = mount_of(&self.fd).map_err(|e| usage(&self.name, e))?;
        // The kernel copies those too that are in no namespace: whoever made one may have done so in a user namespace of his own.
        if kind_of(&table, id).is_none() {
            return Err(usage(&self.name, "its mount has no place where the supervisor was started"));
        }
        // What does not come along would show what it is there to hide.
        if let Some(place) = unbindable_below(&table, id) {
            return Err(usage(&self.name, format!("what is mounted at {place} cannot be bound (unbindable)")));
        }
        countersign_sys::map_mount(&mount, owners, self.read_only).map_err(|e| {
            let kind = kind_of(&table, id).unwrap_or("unknown");
            let why = match e.raw_os_error() {
                // EINVAL
                Some(22) => format!(
                    "its file system ({kind}), or one that is mounted below, cannot be lent to another user (idmapped mounts)"
                ),
                _ => format!("{e} ({kind})"),
            };
            let hint = "ext4, xfs, btrfs and, since Linux 6.3, tmpfs can; NFS, Lustre and FUSE cannot: copy the data, or pass it through standard input";
            Failure::new(Stage::Namespaces, format!("--bind {}: {why}", self.name.display()), hint)
        })?;
        Ok(mount)
    }
}

/// The mounts of all, without a place, in which what is the caller's is this user's and this group's.
///
/// # Errors
/// [`Stage::Namespaces`]: a file system has no such mounts.
pub(super) fn mounts(all: &[Bound], peer: &Peer, container: u32) -> Result<Vec<OwnedFd>, Failure> {
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |e: io::Error| {
        let hint = "Linux 5.12 or newer; the daemon needs CAP_SETUID, CAP_SETGID, CAP_SETFCAP and CAP_SYS_CHROOT";
        Failure::new(Stage::Namespaces, format!("--bind: {e}"), hint)
    };
    let owners = countersign_sys::id_map((peer.uid, container), (peer.gid, container)).map_err(failed)?;
    let namespace = namespace(peer.pid).map_err(failed)?;
    all.iter().map(|bound| bound.mount(namespace.as_ref().map(File::as_fd), &owners)).collect()
}

/// The client's mount namespace: services and batch jobs have some of their own, and so may the daemon. Which one it is gives nobody more: it is
/// the kernel that says whether a descriptor is of a mount there. One in which users can mount (it belongs to a user namespace of theirs) is not
/// entered. Of a client in another process namespace nothing is known: `None`.
fn namespace(pid: u32) -> io::Result<Option<File>> {
    let Ok(theirs) = File::open(format!("/proc/{pid}/ns/mnt")) else { return Ok(None) };
    let owner = File::from(countersign_sys::owner_of(&theirs)?).metadata()?.ino();
    if owner != std::fs::metadata("/proc/self/ns/user")?.ino() {
        return Err(io::Error::other("the supervisor was started in a user namespace of its own"));
    }
    Ok(Some(theirs))
}

/// The number of a descriptor's mount.
fn mount_of(fd: &OwnedFd) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("no mount in fdinfo"))
}

/// Id, parent's id, place and further fields of each line of a mount table (proc(5)).
fn lines(table: &str) -> impl Iterator<Item = (u64, u64, &str, impl Iterator<Item = &str>)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((id, parent, fields.nth(2)?, fields))
    })
}

/// The place of a mount on this one, or on one on it, that is left out where the rest is bound.
fn unbindable_below(table: &str, mount: u64) -> Option<&str> {
    let mut below = BTreeSet::from([mount]);
    loop {
        let known = below.len();
        for (id, parent, place, fields) in lines(table) {
            let mut tags = fields.take_while(|field| *field != "-");
            if below.contains(&parent) && below.insert(id) && tags.any(|tag| tag == "unbindable") {
                return Some(place);
            }
        }
        if below.len() == known {
            return None;
        }
    }
}

/// The type of a mount's file system, in a mount table (proc(5)).
fn kind_of(table: &str, mount: u64) -> Option<&str> {
    let (.., mut fields) = lines(table).find(|(id, ..)| *id == mount)?;
    fields.find(|field| *field == "-")?;
    fields.next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn folders_and_files_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        let bound = |fd: OwnedFd| Bound::new(fd, Path::new("x"), false).map(drop).map_err(|failure| failure.error);
        for good in [folder.path().to_owned(), path("file"), path("link")] {
            assert_eq!(bound(opened(&good).unwrap()), Ok(()), "{}", good.display());
        }
        for (bad, word) in [(path("socket"), "Socket"), ("/dev/null".into(), "CharacterDevice")] {
            assert!(bound(opened(&bad).unwrap()).unwrap_err().contains(word), "{word}");
        }
        let link = open(path("link"), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(bound(link).unwrap_err().contains("Symlink"));
        assert!(bound(File::open(path("file")).unwrap().into()).unwrap_err().contains("more than a path"));
        assert!(opened(&path("none")).unwrap_err().error.contains("No such file"));
    }

    #[test]
    fn mount_tables() {
        let table = "90 80 0:45 / / ro shared:3 - fuse.sshfs a@b:/c ro\n91 90 0:50 / /a rw - tmpfs tmpfs rw\n";
        assert_eq!(
            (kind_of(table, 90), kind_of(table, 91), kind_of(table, 9)),
            (Some("fuse.sshfs"), Some("tmpfs"), None)
        );
        // Below it, however deep; not beside it.
        let table = "3 2 0:3 / /a/b rw unbindable - tmpfs x rw\n2 1 0:2 / /a rw - tmpfs x rw\n4 1 0:4 / /c rw - tmpfs unbindable rw\n";
        let below = [1, 2, 3, 4].map(|mount| unbindable_below(table, mount));
        assert_eq!(below, [Some("/a/b"), Some("/a/b"), None, None]);
        let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let id = mount_of(&opened(Path::new("/proc")).unwrap()).unwrap();
        assert_eq!(kind_of(&own, id), Some("proc"));
    }
}
