//! A terminal of a run's own: the session makes it, the client relays between it and the user's.
//!
//! The user's terminal itself stays out of the container: nothing there can type into it, read from it or change it.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::runtime::Share;

/// Bytes that are relayed at a time.
const PART: usize = 16 * 1024;
/// How long the terminal may be silent before all has been shown, once nothing runs in it.
const SILENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Makes a new terminal that of this process, which leads its session, and its standard input: what it starts is there in the foreground. Who
/// types and reads, and who is typed to.
///
/// # Errors
/// The system has no terminal left.
pub(super) fn make() -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    ioctl_tiocsctty(&theirs)?;
    countersign_sys::set_standard_input(&theirs)?;
    Ok((ours, theirs))
}

/// How often it is looked at whether a client in the background has the user's terminal again.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Whether the user sits at one: standard input and output are terminals, and this process is in the foreground.
pub(super) fn is_there() -> bool {
    io::stdout().is_terminal() && Share::now() == Share::Foreground
}

/// The client's end. The user's terminal is as it was when this is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    terminal: OwnedFd,
    /// How the user's was, while this has it.
    before: Option<Termios>,
    /// What was typed and not passed on yet.
    typed: Vec<u8>,
    /// The user's terminal is there.
    open: bool,
}

impl Relay {
    /// Takes the user's terminal: each key goes through as it is.
    ///
    /// # Errors
    /// The terminal cannot be made to wait for nobody.
    pub(super) fn begin(terminal: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&terminal, OFlags::RDWR | OFlags::NONBLOCK)?;
        let mut relay = Self { terminal, before: None, typed: Vec::new(), open: true };
        relay.take();
        Ok(relay)
    }

    /// Takes the user's terminal where it has not: it may be in the background, where it takes no keys.
    pub(super) fn take(&mut self) {
        if self.before.is_some() || Share::now() != Share::Foreground {
            return;
        }
        self.resize();
        let Ok(before) = tcgetattr(io::stdin()) else { return };
        let mut raw = before.clone();
        raw.make_raw();
        if tcsetattr(io::stdin(), OptionalActions::Now, &raw).is_ok() {
            self.before = Some(before);
        }
    }

    /// Gives the user's terminal back, as it was.
    pub(super) fn rest(&mut self) {
        if let Some(before) = self.before.take().filter(|_| Share::now() == Share::Foreground) {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }
    }

    /// When to look again for the user's terminal.
    pub(super) fn patience(&self) -> Option<Timespec> {
        self.before.is_none().then_some(LOOK)
    }

    /// As large as the user's.
    pub(super) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(&self.terminal, size);
        }
    }

    /// What is waited for: something to show, room for what was typed; and whether keys are taken at the moment.
    pub(super) fn interest(&self) -> (PollFd<'_>, bool) {
        let flags = if self.typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        (PollFd::new(&self.terminal, flags), self.open && self.before.is_some() && self.typed.is_empty())
    }

    /// Does what can be done: `keys` is whether something was typed, `ready` what the terminal is ready for.
    pub(super) fn relay(&mut self, keys: bool, ready: PollFlags) {
        if keys {
            let mut part = [0; PART];
            match rustix::io::read(io::stdin(), &mut part) {
                Ok(n @ 1..) => self.typed.extend(part.get(..n).unwrap_or_default()),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Ok(_) | Err(_) => self.open = false,
            }
        }
        if !self.typed.is_empty()
            && let Ok(n) = rustix::io::write(&self.terminal, &self.typed)
        {
            self.typed.drain(..n.min(self.typed.len()));
        }
        if !ready.difference(PollFlags::OUT).is_empty() {
            self.show();
        }
    }

    /// Shows a part of what is there; false when nothing is.
    fn show(&self) -> bool {
        let mut part = [0; PART];
        match rustix::io::read(&self.terminal, &mut part) {
            Ok(n @ 1..) => {
                let mut left = part.get(..n).unwrap_or_default();
                while let Ok(n @ 1..) = rustix::io::retry_on_intr(|| rustix::io::write(io::stdout(), left)) {
                    left = left.get(n..).unwrap_or_default();
                }
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Ok(_) | Err(_) => false,
        }
    }

    /// Shows the rest.
    pub(super) fn finish(self) {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.terminal.as_fd(), PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&SILENCE)), Ok(1..)) || !self.show() {
                return;
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.rest();
    }
}
