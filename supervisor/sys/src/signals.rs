//! Signals as bytes in a pipe: handlers, unlike a signal mask, are gone in every program that is started.

use std::io;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// Where the handler writes to; -1 before [`signals`] was called.
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// What a signal does: its number goes into the pipe.
extern "C" fn note(signal: libc::c_int) {
    let byte = u8::try_from(signal).unwrap_or(0);
    // SAFETY: __errno_location gives this thread's own errno; write is async-signal-safe, and the byte outlives the call. The pipe does not
    // block: when it is full, enough signals are in it.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(WRITER.load(Ordering::Relaxed), std::ptr::from_ref(&byte).cast(), 1);
        *errno = saved;
    }
}

/// From here on these signals end nothing: each puts one byte, its number, into the pipe whose reading end is returned (it does not block). A
/// signal that was ignored when this process began (nohup) stays ignored.
///
/// # Errors
/// The second call in a process, or a number that is no signal's.
pub fn signals(numbers: &[i32]) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let writer = writer.into_raw_fd();
    if WRITER.compare_exchange(-1, writer, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    for &number in numbers {
        // SAFETY: all-zero bytes are a sigaction: default action, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only reads the present action into `action`.
        if unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if action.sa_sigaction == libc::SIG_IGN {
            continue;
        }
        #[expect(clippy::as_conversions, reason = "sigaction takes a handler's address as a number")]
        {
            action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
        }
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `note` is async-signal-safe and has the type that a handler without SA_SIGINFO has.
        if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn one_byte_a_signal() {
        let reader = super::signals(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        let mut bytes = [0; 4];
        assert!(rustix::io::read(&reader, &mut bytes).is_err(), "nothing there yet, and no waiting for it");
        for (signal, number) in [(Signal::USR1, libc::SIGUSR1), (Signal::USR2, libc::SIGUSR2)] {
            kill_process(getpid(), signal).unwrap();
            // Another thread may be the one that handles it.
            let mut fds = [rustix::event::PollFd::new(&reader, rustix::event::PollFlags::IN)];
            while rustix::event::poll(&mut fds, None).is_err() {}
            assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 1);
            assert_eq!(i32::from(bytes.first().copied().unwrap()), number);
        }
        assert!(super::signals(&[libc::SIGUSR1]).is_err(), "once in a process");
    }
}
