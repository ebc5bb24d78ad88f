//! Children that are born in a cgroup or a process namespace.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

/// CLONE_INTO_CGROUP of linux/sched.h (Linux 5.7).
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process that was not waited for yet.
#[derive(Debug)]
pub struct Spawned(Pid);

impl Spawned {
    /// Its id.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.0
    }

    /// Kills it.
    ///
    /// # Errors
    /// The system call fails.
    pub fn kill(&self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::KILL)?)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The system call fails.
    pub fn wait(self) -> io::Result<WaitStatus> {
        loop {
            match waitpid(Some(self.0), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                ended => return ended?.map(|(_, status)| status).ok_or_else(|| io::ErrorKind::NotFound.into()),
            }
        }
    }
}

/// Starts a command as the first process of a process namespace of its own: of signals that it does not handle, a terminal's keys among them, only
/// SIGKILL and SIGSTOP from outside do anything to it. Where there is a cgroup, by its folder, it is in it from its first moment: moving one there
/// ([`crate::join_cgroup`]) waits for every process of the machine, some ten milliseconds. This process must have one thread.
///
/// # Errors
/// The kernel or the cgroup does not allow it, this process has several threads, or the command is not executed.
pub fn spawn_first(command: &mut Command, folder: Option<BorrowedFd<'_>>) -> io::Result<Spawned> {
    // One that was joined takes a moment to be gone.
    let mut tries = 0..20;
    while std::fs::read_dir("/proc/self/task")?.count() != 1 {
        if tries.next().is_none() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "this process has several threads"));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let (mut failed, mut failure) = io::pipe()?;
    // SAFETY: all numbers: zero asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::try_from(libc::CLONE_NEWPID).map_err(io::Error::other)?;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?;
    if let Some(folder) = folder {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::try_from(folder.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: without CLONE_VM and without a stack this is fork(2): the child goes on here in a copy of this memory. This process has one thread,
    // so no lock is held by a thread that the child has not. The kernel reads as many bytes as it is told that there are.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    if pid == 0 {
        let error = command.exec();
        let _ = failure.write_all(&error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes());
        // SAFETY: ends the child without running anything of this process's that is to be run once, at its own end.
        unsafe { libc::_exit(127) }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let spawned = pid.map(Spawned).ok_or(io::ErrorKind::InvalidData)?;
    drop(failure);
    let mut number = [0; size_of::<i32>()];
    // The end comes with the execution, which closes the pipe.
    if failed.read_exact(&mut number).is_err() {
        return Ok(spawned);
    }
    spawned.wait()?;
    Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
}
