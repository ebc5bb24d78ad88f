//! Mounts without a place, with other owners than their files have on the disk (mount_setattr(2), "ID-mapped mounts").

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Most ids (0 to this, without it): the last number is none.
const IDS: u32 = u32::MAX;
const NOWHERE: &CStr = c"";

/// A user namespace that turns the first user and group of each pair into the second and leaves all others as they are; nothing has the second
/// one's number. It is for [`map_mount`]: no process is in it.
///
/// # Errors
/// This process may not give ids away.
pub fn id_map(users: (u32, u32), groups: (u32, u32)) -> io::Result<OwnedFd> {
    let (waits, word) = io::pipe()?;
    // SAFETY: all numbers: zero asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::try_from(libc::CLONE_NEWUSER).map_err(io::Error::other)?;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?;
    let (inside, outside) = (waits.as_raw_fd(), word.as_raw_fd());
    // SAFETY: without CLONE_VM and without a stack this is fork(2). The child makes three system calls on numbers that it got before and ends: it
    // allocates nothing, takes no lock, and runs nothing of this process's, whatever its other threads were doing. The kernel reads as many bytes
    // as it is told that there are.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>());
        if pid == 0 {
            libc::close(outside);
            let mut byte = 0_u8;
            // Until the parent has what it wants, or is gone.
            libc::read(inside, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        pid
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = write_maps(pid, users, groups);
    drop(word);
    let child = i32::try_from(pid).ok().and_then(Pid::from_raw);
    while let Err(rustix::io::Errno::INTR) = waitpid(child, WaitOptions::empty()) {}
    made
}

fn write_maps(pid: libc::c_long, users: (u32, u32), groups: (u32, u32)) -> io::Result<OwnedFd> {
    std::fs::write(format!("/proc/{pid}/uid_map"), map(users))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), map(groups))?;
    Ok(std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Lines of user_namespaces(7).
fn map((from, to): (u32, u32)) -> String {
    let (low, high) = (from.min(to), from.max(to));
    let mut lines = format!("{from} {to} 1\n");
    let behind = |id: u32| id.saturating_add(1);
    for (first, end) in [(0, low), (behind(low), high), (behind(high), IDS)] {
        if first < end {
            lines.push_str(&format!("{first} {first} {}\n", end.saturating_sub(first)));
        }
    }
    lines
}

/// The mount at an open file or folder, with all that is mounted below, without a place; and the mount table (proc(5)) of where that is.
/// `namespace` is the mount namespace in which it is mounted, if that is another one than this process's. What is unbindable does not come along.
///
/// # Errors
/// It is mounted nowhere, or in yet another namespace; or this process may not.
pub fn clone_mount(place: impl AsFd, namespace: Option<BorrowedFd<'_>>) -> io::Result<(OwnedFd, String)> {
    let place = place.as_fd();
    // Alone without what is mounted below it would show what those mounts hide.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            // By no name of the other namespace's.
            let own = open("/proc/thread-self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            if let Some(namespace) = namespace {
                enter(namespace)?;
            }
            let mount = open_tree(place, NOWHERE, flags)?;
            let table = openat(own, "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            Ok((mount, io::read_to_string(std::fs::File::from(table))?))
        });
        there.join().map_err(|_| io::Error::other("the thread has ended"))?
    })
}

/// Moves the calling thread into a mount namespace; a thread that ends with its work.
fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: gives this thread its own root and working folder; it touches no memory.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: changes in which mounts this thread's paths are looked up; it touches no memory.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives a mount without a place, and all below it, the owners of an [`id_map`]; set-uid bits and devices count no more there, and nothing that
/// is mounted elsewhere later appears.
///
/// # Errors
/// EINVAL: a file system below has no such mounts. Then nothing has changed.
pub fn map_mount(mount: impl AsFd, owners: impl AsFd, read_only: bool) -> io::Result<()> {
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::try_from(owners.as_fd().as_raw_fd()).map_err(io::Error::other)?,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the kernel reads an empty text and as many bytes of the attributes as it is told that there are, and writes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            NOWHERE.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The user namespace that owns a namespace.
///
/// # Errors
/// No namespace, or an owner out of this process's reach.
pub fn owner_of(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: this request takes no argument.
    let owner = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_USERNS) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec); nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
    use std::fs::File;
    use std::os::unix::fs::MetadataExt as _;

    use rustix::fs::stat;

    use super::*;

    #[test]
    fn one_id_is_another_and_the_rest_itself() {
        assert_eq!(map((5, 9)), "5 9 1\n0 0 5\n6 6 3\n10 10 4294967285\n");
        assert_eq!(map((9, 5)), "9 5 1\n0 0 5\n6 6 3\n10 10 4294967285\n");
        assert_eq!(map((0, 1)), "0 1 1\n2 2 4294967293\n");
        assert_eq!(map((7, u32::MAX - 1)), "7 4294967294 1\n0 0 7\n8 8 4294967286\n");
    }

    #[test]
    fn files_of_one_are_anothers_and_what_is_below_comes_along() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: not root");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, owner: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        };
        file("his", 54_331);
        file("other", 54_332);
        let owners = id_map((54_331, 2_000_000_001), (54_331, 2_000_000_002)).unwrap();
        let place = open(folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for namespace in [None, Some(File::open("/proc/self/ns/mnt").unwrap())] {
            let (mount, table) = clone_mount(&place, namespace.as_ref().map(AsFd::as_fd)).unwrap();
            assert!(table.contains(" - proc "), "{table}");
            map_mount(&mount, &owners, true).unwrap();
            let seen = |name: &str| rustix::fs::statat(&mount, name, rustix::fs::AtFlags::empty()).unwrap();
            assert_eq!((seen("his").st_uid, seen("his").st_gid), (2_000_000_001, 2_000_000_002));
            assert_eq!((seen("other").st_uid, seen("other").st_gid), (54_332, 54_332));
            let written = openat(&mount, "his", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            assert_eq!(written.unwrap_err(), rustix::io::Errno::ROFS);
            // Once.
            assert!(map_mount(&mount, &owners, false).is_err());
        }
        assert_eq!(stat(folder.path().join("his")).unwrap().st_uid, 54_331);
        // What has no such mounts, or is mounted nowhere.
        let proc = open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (mount, _) = clone_mount(&proc, None).unwrap();
        assert_eq!(map_mount(&mount, &owners, true).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(clone_mount(io::pipe().unwrap().0, None).is_err());
    }

    #[test]
    fn the_owner_of_a_namespace() {
        let number = |file: File| file.metadata().unwrap().ino();
        let owner = owner_of(File::open("/proc/self/ns/mnt").unwrap()).unwrap();
        assert_eq!(number(owner.into()), number(File::open("/proc/self/ns/user").unwrap()));
        assert!(owner_of(File::open("/dev/null").unwrap()).is_err());
    }
}
