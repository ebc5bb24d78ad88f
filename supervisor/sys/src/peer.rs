//! Who is at the other end of a Unix socket, as the kernel says.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

/// Most groups of one process (NGROUPS_MAX).
const GROUPS: usize = 65_536;

/// Process, effective user and effective group of the peer when it connected. The process is 0 for one that is not in this process
/// namespace (which is why rustix's call, whose process ids are never 0, does not serve).
///
/// # Errors
/// No connected Unix socket.
pub fn peer(socket: impl AsFd) -> io::Result<(u32, u32, u32)> {
    let mut told = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes one ucred, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((u32::try_from(told.pid).unwrap_or(0), told.uid, told.gid))
}

/// The supplementary groups that the peer had when it connected.
///
/// # Errors
/// No connected Unix socket.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS];
    let size = size_of::<libc::gid_t>().saturating_mul(GROUPS);
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, all of them inside `groups`, and says in `length` how many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = usize::try_from(length).map_err(io::Error::other)?;
    groups.truncate(bytes.checked_div(size_of::<libc::gid_t>()).unwrap_or(0));
    Ok(groups)
}

/// A handle (close-on-exec) on the process that connected; it becomes readable when that process ends.
///
/// # Errors
/// No connected Unix socket, a process that is gone, or Linux before 6.5.
pub fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut handle: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes one int, for which there is room.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut handle).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if handle < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the kernel has just made this descriptor; nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_peer_that_is_this_process() {
        let (one, other) = UnixStream::pair().unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!(peer(&one).unwrap(), (std::process::id(), uid, gid));
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut seen = peer_groups(&one).unwrap();
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
        match peer_process(&other) {
            Ok(handle) => {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                assert_eq!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&now)).unwrap(), 0, "it lives");
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOPROTOOPT), "only an old kernel: {e}"),
        }
        assert!(peer_groups(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
