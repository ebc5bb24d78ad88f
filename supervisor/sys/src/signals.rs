//! Signals as bytes in a pipe: handlers, unlike a signal mask, are gone in every program that is started.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getpid, kill_process};

/// Numbers of signals: standard ones, and those for real time.
const NUMBERS: usize = 65;

/// Where the handler writes each signal to; -1 before [`signals`] was called for it.
static WRITERS: [AtomicI32; NUMBERS] = [const { AtomicI32::new(-1) }; NUMBERS];

/// A bit for each signal that ends nothing any more.
static HEARD: AtomicU64 = AtomicU64::new(0);

fn place(signal: i32) -> Option<&'static AtomicI32> {
    usize::try_from(signal).ok().and_then(|number| WRITERS.get(number))
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|number| 1_u64.checked_shl(number.wrapping_sub(1))).unwrap_or(0)
}

/// What a signal does: its number goes into the pipe.
extern "C" fn note(signal: libc::c_int) {
    let byte = u8::try_from(signal).unwrap_or(0);
    let Some(writer) = place(signal) else { return };
    // SAFETY: __errno_location gives this thread's own errno; write is async-signal-safe, and the byte outlives the call. The pipe does not
    // block: when it is full, enough signals are in it.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(writer.load(Ordering::Relaxed), std::ptr::from_ref(&byte).cast(), 1);
        *errno = saved;
    }
}

/// From here on these signals end nothing: each puts one byte, its number, into the pipe whose reading end is returned (it does not block). A
/// signal that was ignored when this process began (nohup) stays ignored.
///
/// # Errors
/// The second call for a signal, or a number that is no signal's.
pub fn signals(numbers: &[i32]) -> io::Result<OwnedFd> {
    hear(numbers, libc::SA_RESTART, |_, _| ())
}

/// Signals that end nothing for a while: when this is dropped each does what it did before, those that came meanwhile too.
#[derive(Debug)]
pub struct Deferred {
    came: OwnedFd,
    before: Vec<Before>,
}

/// What a signal did.
struct Before(i32, libc::sigaction);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "signal {}", self.0)
    }
}

impl Deferred {
    /// From here on, as with [`signals`], but that a system call which one interrupts fails.
    ///
    /// # Errors
    /// As of [`signals`]: one of them is heard already.
    pub fn new(numbers: &[i32]) -> io::Result<Self> {
        let mut before = Vec::new();
        match hear(numbers, 0, |number, action| before.push(Before(number, action))) {
            Ok(came) => Ok(Self { came, before }),
            Err(e) => {
                restore(&before);
                Err(e)
            }
        }
    }

    /// Can be read from once one came.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        restore(&self.before);
        let mut number = [0];
        while rustix::io::read(&self.came, &mut number).is_ok_and(|n| n > 0) {
            let [number] = number;
            let _ = Signal::from_named_raw(number.into()).map(|signal| kill_process(getpid(), signal));
        }
    }
}

/// Each does what it did before.
fn restore(before: &[Before]) {
    for Before(number, action) in before {
        // SAFETY: the action is the one that `sigaction` gave for this signal.
        unsafe { libc::sigaction(*number, &raw const *action, std::ptr::null_mut()) };
        HEARD.fetch_and(!bit(*number), Ordering::Relaxed);
        if let Some(place) = place(*number) {
            place.store(-1, Ordering::Relaxed);
        }
    }
}

/// As [`signals`], with these flags of sigaction(2); `of` is told what each did before.
fn hear(numbers: &[i32], flags: libc::c_int, mut of: impl FnMut(i32, libc::sigaction)) -> io::Result<OwnedFd> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Never closed: a handler may be about to write.
    let writer = writer.into_raw_fd();
    for &number in numbers {
        let place = place(number).ok_or(io::ErrorKind::InvalidInput)?;
        if place.compare_exchange(-1, writer, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // SAFETY: all-zero bytes are a sigaction: default action, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only reads the present action into `action`.
        if unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) } != 0 {
            return Err(io::Error::last_os_error());
        }
        of(number, action);
        if action.sa_sigaction == libc::SIG_IGN {
            HEARD.fetch_or(bit(number), Ordering::Relaxed);
            continue;
        }
        #[expect(clippy::as_conversions, reason = "sigaction takes a handler's address as a number")]
        {
            action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
        }
        action.sa_flags = flags;
        // SAFETY: `note` is async-signal-safe and has the type that a handler without SA_SIGINFO has.
        if unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        HEARD.fetch_or(bit(number), Ordering::Relaxed);
    }
    Ok(reader)
}

/// Whether a signal ends nothing here any more, by [`signals`].
#[must_use]
pub fn is_heard(signal: i32) -> bool {
    HEARD.load(Ordering::Relaxed) & bit(signal) != 0
}

/// Stops this process as a terminal's signal (SIGTSTP, SIGTTIN, SIGTTOU) does where nobody handles it: not in a process group that nobody would
/// continue (an orphaned one). With `others` the rest of its group gets the signal first. Returns when it goes on, and then the signal is handled
/// as before.
///
/// # Errors
/// A system call fails.
pub fn suspend(signal: i32, others: bool) -> io::Result<()> {
    // SAFETY: all-zero bytes are a sigaction: default action, empty mask, no flags.
    let (default, mut before): (libc::sigaction, libc::sigaction) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut ignored = default;
    ignored.sa_sigaction = libc::SIG_IGN;
    // SAFETY: ignoring a signal and its default action run nothing of this process's; the present action is read into `before`. kill sends the
    // group a signal, raise this thread one, which is taken before the call returns; then the action is what it was.
    let results = unsafe {
        let known = libc::sigaction(signal, &raw const ignored, &raw mut before);
        if known != 0 {
            return Err(io::Error::last_os_error());
        }
        let sent = if others { libc::kill(0, signal) } else { 0 };
        libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        [sent, libc::raise(signal), libc::sigaction(signal, &raw const before, std::ptr::null_mut())]
    };
    if results == [0; 3] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends the rest of this process's group SIGINT, as a terminal's key does; this process ignores it from here on.
pub fn interrupt_others() {
    // SAFETY: all-zero bytes are a sigaction: empty mask, no flags.
    let mut ignored: libc::sigaction = unsafe { std::mem::zeroed() };
    ignored.sa_sigaction = libc::SIG_IGN;
    // SAFETY: ignoring a signal runs nothing of this process's; then the group is sent the signal.
    unsafe {
        libc::sigaction(libc::SIGINT, &raw const ignored, std::ptr::null_mut());
        libc::kill(0, libc::SIGINT);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn one_byte_a_signal() {
        assert!(!super::is_heard(libc::SIGUSR1));
        let reader = super::signals(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        let other = super::signals(&[libc::SIGALRM]).unwrap();
        assert!([libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM].into_iter().all(super::is_heard));
        assert!([libc::SIGHUP, 0, -1, 64, 1000].into_iter().all(|number| !super::is_heard(number)));
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
        assert!(rustix::io::read(&other, &mut bytes).is_err(), "each in the pipe that was asked for it");
        kill_process(getpid(), Signal::ALARM).unwrap();
        while rustix::io::read(&other, &mut bytes).is_err() {}
        assert_eq!(i32::from(bytes.first().copied().unwrap()), libc::SIGALRM);
        assert!(rustix::io::read(&reader, &mut bytes).is_err());
        assert!(super::signals(&[libc::SIGUSR1]).is_err(), "once in a process");
        assert!(super::signals(&[-1]).is_err() && super::signals(&[65]).is_err(), "no signals");
    }

    #[test]
    fn what_came_meanwhile_does_what_it_did_before() {
        let heard = super::signals(&[libc::SIGVTALRM]).unwrap();
        assert!(super::Deferred::new(&[libc::SIGWINCH, libc::SIGVTALRM]).is_err(), "heard already");
        assert!(super::is_heard(libc::SIGVTALRM) && !super::is_heard(libc::SIGWINCH), "and nothing else since");
        // Ignored without a handler: it ends nothing when it comes again.
        let number = libc::SIGURG;
        for _ in 0..2 {
            let deferred = super::Deferred::new(&[number]).unwrap();
            assert!(super::is_heard(number) && super::signals(&[number]).is_err());
            kill_process(getpid(), Signal::URG).unwrap();
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(deferred.as_fd(), rustix::event::PollFlags::IN)];
            while rustix::event::poll(&mut fds, None).is_err() {}
            drop(deferred);
            assert!(!super::is_heard(number));
        }
        drop(heard);
    }
}
