//! Another user: for this process and for good, or for one thread.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::thread::{capabilities, set_capabilities, set_keep_capabilities};

/// Gives the whole process, all its threads, this uid and gid and no other groups. The kernel then forgets its death signal and lets it be
/// dumped as the system says: both must be set anew.
///
/// # Errors
/// The process may not; then nothing more must be done with it, since a part of the change may have been made.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    become_with(uid, gid, &[])
}

/// Has the command's process start with this uid and gid and these other groups.
pub fn start_as(command: &mut Command, uid: u32, gid: u32, groups: Vec<u32>) -> &mut Command {
    let child = move || become_with(uid, gid, &groups);
    // SAFETY: between fork and exec `child` makes three system calls; it allocates nothing, and the one thread that the child has has no other to
    // agree with about them.
    unsafe { command.pre_exec(child) }
}

fn become_with(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads as many groups as there are, and writes none.
    if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes three numbers and touches no memory. libc makes the call in every thread.
    if unsafe { libc::setresgid(gid, gid, gid) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::setresuid(uid, uid, uid) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs something on a thread of its own, which has these ids and the capabilities of this one: there are file systems that show themselves to
/// their user alone, not to root (FUSE).
///
/// # Errors
/// The process may not.
pub fn with_ids<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
    let dumpable = dumpable_behavior()?;
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| take_ids(uid, gid).map(|()| work()));
        thread.join().map_err(|_| io::Error::other("the thread has ended"))?
    });
    // The kernel changes that for the whole process when the ids of a thread change.
    let before = if dumpable == DumpableBehavior::Dumpable { dumpable } else { DumpableBehavior::NotDumpable };
    set_dumpable_behavior(before)?;
    done
}

/// Gives the calling thread these ids, and leaves it its capabilities.
fn take_ids(uid: u32, gid: u32) -> io::Result<()> {
    let before = capabilities(None)?;
    set_keep_capabilities(true)?;
    for (call, id) in [(libc::SYS_setresgid, gid), (libc::SYS_setresuid, uid)] {
        // SAFETY: takes three numbers and touches no memory. Called by its number it is this thread's ids that change, not the process's: what
        // libc's own function keeps alike in all threads is not used for anything else in a thread that ends with its work.
        if unsafe { libc::syscall(call, id, id, id) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set_capabilities(None, before)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
    use super::*;

    #[test]
    fn one_thread_has_other_ids_and_the_same_capabilities() {
        let ids = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            (field("Uid:"), field("Gid:"), field("CapEff:"))
        };
        let before = ids();
        if !rustix::process::geteuid().is_root() {
            assert!(with_ids(54_331, 54_332, || ()).is_err());
            return println!("skipped: other ids are root's to take");
        }
        let there = with_ids(54_331, 54_332, ids).unwrap();
        assert_eq!(there.0, "Uid:\t54331\t54331\t54331\t54331");
        assert_eq!(there.1, "Gid:\t54332\t54332\t54332\t54332");
        assert_eq!(there.2, before.2);
        assert_eq!(ids(), before);
    }
}
