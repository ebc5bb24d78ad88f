//! The few system calls that need unsafe code. Everything else in the workspace forbids it.

use std::io;

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

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_with_threads_is_refused() {
        // The test runner has several threads: the kernel must say no, and nothing changes.
        let before = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert!(super::enter_private_namespaces().is_err());
        assert_eq!(std::fs::read_link("/proc/self/ns/user").unwrap(), before);
    }
}
