//! The few system calls that need unsafe code. Everything else in the workspace forbids it.

mod mounts;
mod peer;
mod signals;
mod spawn;
mod user;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

pub use mounts::{clone_mount, id_map, map_mount, owner_of};
pub use peer::{peer, peer_groups, peer_process};
pub use signals::{Deferred, interrupt_others, is_heard, signals, suspend};
pub use spawn::{Spawned, spawn_first};
pub use user::{become_user, start_as, with_ids};

/// Moves this process, which must have one thread, into a new user and mount namespace in which it is root; mounts made here are seen nowhere else.
///
/// # Errors
/// The kernel does not allow unprivileged user namespaces, or the process has several threads.
pub fn enter_private_namespaces() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // SAFETY: unshare(CLONE_NEWUSER | CLONE_NEWNS) touches no memory of this process; it changes which ids and mounts its system calls see.
    // The kernel refuses CLONE_NEWUSER in a process with several threads, so no other thread can be surprised by the change.
    let result = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without setgroups an unprivileged process may map its own group (user_namespaces(7)).
    match std::fs::write("/proc/self/setgroups", "deny") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Has the kernel kill the command's process when this one (its main thread, which must be the one that spawns) ends, however it ends. It begins
/// without what [`write_in_background`] does.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
    let parent = getpid();
    let child = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        mask_background_writes(libc::SIG_UNBLOCK);
        // It may have ended before the line above.
        // No parent is one outside of the process namespace that the child is in; a dead one's children go to a process inside.
        if getppid().is_none_or(|now| now == parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec `child` makes a few system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// Has the command's program begin with these signals ignored.
pub fn ignore_signals(command: &mut Command, numbers: Vec<i32>) -> &mut Command {
    let child = move || {
        for number in &numbers {
            // SAFETY: ignoring a signal runs nothing of this process's.
            if unsafe { libc::signal(*number, libc::SIG_IGN) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec `child` makes system calls alone; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// The process group that is the foreground of the terminal on standard input.
///
/// # Errors
/// Standard input is no terminal of this process's session.
pub fn foreground() -> io::Result<Pid> {
    // SAFETY: tcgetpgrp only asks; a descriptor that is no terminal is refused.
    let group = unsafe { libc::tcgetpgrp(0) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(group).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// This thread, and those that it starts, write to a terminal from the background too, whatever its settings are (`stty tostop`): who has the
/// terminal must not stop this process by it.
pub fn write_in_background() {
    mask_background_writes(libc::SIG_BLOCK);
}

/// Async-signal-safe.
fn mask_background_writes(how: libc::c_int) {
    // SAFETY: an all-zero sigset_t is a value of it; sigemptyset and sigaddset then set it up; pthread_sigmask changes this thread's mask alone.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGTTOU);
        libc::pthread_sigmask(how, &raw const signals, std::ptr::null_mut());
    }
}

/// Makes a process group of this session the foreground of the terminal on standard input, also when this process is not in it.
///
/// # Errors
/// Standard input is no terminal of this process's session, or the group is none of it.
pub fn set_foreground(group: Pid) -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is a value of it; sigemptyset and sigaddset then set it up. pthread_sigmask changes this thread's mask, which
    // is put back below: a background process is stopped (SIGTTOU) when it asks, unless that signal is blocked. All are async-signal-safe.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before);
        let result = libc::tcsetpgrp(0, group.as_raw_nonzero().get());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if result == 0 { Ok(()) } else { Err(error) }
    }
}

/// Has the command's process start in a group of its own; in the `foreground`: of the terminal on its standard input.
pub fn start_in_group(command: &mut Command, foreground: bool) -> &mut Command {
    let child = move || {
        rustix::process::setpgid(None, None)?;
        if foreground { set_foreground(getpid()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `child` makes a few system calls, all async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// Has the command's process start in a session of its own, without a terminal.
pub fn start_in_new_session(command: &mut Command) -> &mut Command {
    let child = || rustix::process::setsid().map(|_| ()).map_err(io::Error::from);
    // SAFETY: between fork and exec `child` makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// Has the command's process start under a seccomp filter: an array of `struct sock_filter`, as its bytes. This process must have given up
/// gaining privileges (PR_SET_NO_NEW_PRIVS), else the command is not started.
pub fn filter_calls<'a>(command: &'a mut Command, filter: &[u8]) -> &'a mut Command {
    let instruction = |bytes: &[u8]| {
        let &[code, more, jt, jf, a, b, c, d] = bytes else { return None };
        Some(libc::sock_filter { code: u16::from_ne_bytes([code, more]), jt, jf, k: u32::from_ne_bytes([a, b, c, d]) })
    };
    let instructions: Vec<libc::sock_filter> = filter.chunks(8).filter_map(instruction).collect();
    let child = move || {
        let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the `len` instructions at `filter`, which live as long as this closure, and writes none.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec `child` makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// Has the command's process enter a cgroup before it executes anything. `procs` is that cgroup's `cgroup.procs`, opened for writing by
/// whoever may move processes there: the kernel goes by who opened it (Linux 5.16).
pub fn join_cgroup(command: &mut Command, procs: OwnedFd) -> &mut Command {
    let child = move || rustix::io::write(&procs, b"0").map(|_| ()).map_err(io::Error::from);
    // SAFETY: between fork and exec `child` makes one system call; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) }
}

/// Makes a descriptor this process's standard input, in place of what that was.
///
/// # Errors
/// The system call fails.
pub fn set_standard_input(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: dup2 closes what was open under 0 and makes it another name of `fd`: standard input is nobody's property in this workspace, each
    // use of it asks for the number.
    let result = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks all descriptors from 3 on close-on-exec: programs that this process starts get the standard ones and what they are given.
///
/// # Errors
/// Linux before 5.11.
pub fn keep_descriptors() -> io::Result<()> {
    let (first, last): (libc::c_uint, libc::c_uint) = (3, libc::c_uint::MAX);
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing; it sets a flag on descriptors, whoever owns them.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Another descriptor (close-on-exec) of what was handed to this process under a number.
///
/// # Errors
/// Nothing is open under that number.
pub fn inherited_descriptor(number: u32) -> io::Result<OwnedFd> {
    let number = libc::c_int::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor and changes nothing about the old one; a number that is not open is refused.
    let new = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor; nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Keeps the pages of the C heap, where OpenSSL and the main thread's allocations lie, out of swap; bytes locked. Pages that the heap grows by
/// later are not locked.
///
/// # Errors
/// RLIMIT_MEMLOCK is too small, or the heap was not found.
pub fn lock_heap() -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let (start, end) = heap(&maps).ok_or(io::ErrorKind::NotFound)?;
    let length = end.saturating_sub(start);
    // SAFETY: mlock faults pages in and pins them; it changes no content, and a range that is not mapped (any more) is refused.
    let result = unsafe { libc::mlock(std::ptr::without_provenance(start), length) };
    if result == 0 { Ok(length) } else { Err(io::Error::last_os_error()) }
}

/// First and last-plus-one address of the heap in /proc/self/maps. One that has grown since it was locked is two lines there, or more.
fn heap(maps: &str) -> Option<(usize, usize)> {
    let mut lines = maps.lines().filter(|line| line.ends_with("[heap]"));
    let address = |text: &str| usize::from_str_radix(text, 16).ok();
    let ends = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some((address(start)?, address(end)?))
    };
    let (start, end) = ends(lines.next()?)?;
    let last = lines.next_back().map_or(Some(end), |line| Some(ends(line)?.1));
    Some((start, last?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test runner has several threads: the kernel must say no, and nothing changes.
        let before = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert!(enter_private_namespaces().is_err());
        assert_eq!(std::fs::read_link("/proc/self/ns/user").unwrap(), before);
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        // A thread is enough: the kernel's rule is about the starting thread.
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("cat");
            end_with_parent(&mut command).stdin(Stdio::piped()).spawn().unwrap()
        })
        .join()
        .unwrap();
        use std::os::unix::process::ExitStatusExt as _;
        // Its standard input is still open: only the signal can end it.
        assert_eq!(child.try_wait().unwrap().or_else(|| child_end(&mut child)).unwrap().signal(), Some(libc::SIGKILL));
    }

    fn child_end(child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
        let input = child.stdin.take();
        let status = child.wait().ok();
        drop(input);
        status
    }

    #[test]
    fn a_descriptor_by_its_number() {
        let (mut reader, writer) = io::pipe().unwrap();
        let number = u32::try_from(writer.as_raw_fd()).unwrap();
        let mut again = std::fs::File::from(inherited_descriptor(number).unwrap());
        drop(writer);
        again.write_all(b"x").unwrap();
        drop(again);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "x");
        assert_eq!(inherited_descriptor(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(inherited_descriptor(u32::MAX).is_err());
    }

    #[test]
    fn programs_get_no_other_descriptors() {
        let (_reader, writer) = io::pipe().unwrap();
        rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).unwrap();
        keep_descriptors().unwrap();
        assert!(rustix::io::fcntl_getfd(&writer).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn the_heap_is_found_and_locked() {
        let maps = "55d0-55e0 rw-p 00000000 00:00 0    [heap]\n7f00-7f01 r--p 0 00:00 0 /x\n";
        assert_eq!(heap(maps), Some((0x55d0, 0x55e0)));
        assert_eq!(heap("7f00-7f01 r--p 0 00:00 0 /x\n"), None);
        // As it is after it was locked and has grown.
        let grown = format!("{maps}55e0-5610 rw-p 00000000 00:00 0    [heap]\n");
        assert_eq!(heap(&grown), Some((0x55d0, 0x5610)));
        let locked = |status: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = locked(&std::fs::read_to_string("/proc/self/status").unwrap());
        match lock_heap() {
            Ok(_) => assert!(locked(&std::fs::read_to_string("/proc/self/status").unwrap()) > before),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOMEM), "only the limit may be in the way: {e}"),
        }
    }
}
