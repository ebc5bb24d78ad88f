//! Another user for this process, for good.

use std::io;

/// Gives the whole process, all its threads, this uid and gid and no other groups. The kernel then forgets its death signal and lets it be
/// dumped as the system says: both must be set anew.
///
/// # Errors
/// The process may not; then nothing more must be done with it, since a part of the change may have been made.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no groups are read from the null pointer, as their number is 0.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
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
