//! A passphrase that is typed at the terminal, and not shown.

use std::fs::File;
use std::io;

use countersign_sys::Deferred;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use crate::exit::{Failure, Stage};
use crate::out;

/// Most bytes of a passphrase: what cryptsetup takes at a terminal.
const MOST: usize = 512;
/// Ctrl-C.
const CANCEL: u8 = 3;

/// The terminal without echo; as it was when this is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    /// Keys that send signals are read like others: none of them ends the process while nothing is shown. Ctrl-C ends the line.
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON);
        silent.special_codes[SpecialCodeIndex::VEOL] = CANCEL;
        // What was typed before was not meant for this.
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }

    /// What is typed until Enter; `None` when there is no Enter.
    ///
    /// # Errors
    /// Also when a signal came.
    fn line(&self, signals: Option<&Deferred>) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let mut line = Zeroizing::new(Vec::with_capacity(MOST));
        let mut byte = Zeroizing::new([0]);
        loop {
            let mut fds = vec![PollFd::new(self.terminal, PollFlags::IN)];
            fds.extend(signals.map(|signals| PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)));
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            if fds.get(1).is_some_and(|signal| !signal.revents().is_empty()) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = rustix::io::retry_on_intr(|| rustix::io::read(self.terminal, byte.as_mut_slice()))?;
            match byte.as_slice() {
                [CANCEL] => return Ok(None),
                [b'\n'] if n > 0 => return Ok(Some(line)),
                [typed] if n > 0 && line.len() < MOST => line.push(*typed),
                _ if n > 0 => return Err(io::Error::other(format!("more than {MOST} bytes"))),
                // Ctrl-D, or nobody is there any more.
                _ => return Ok(None),
            }
        }
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // Without waiting for what is still to be shown: a terminal may show nothing any more.
        let _ = tcflush(self.terminal, QueueSelector::IFlush);
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Asks at the terminal, also where standard input is none.
///
/// # Errors
/// [`Stage::Escrow`]: there is no terminal, or nothing was typed.
pub(crate) fn passphrase(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |e: io::Error| {
        let hint = "--escrow-passphrase-file FILE (of rekey also --new-passphrase-file) needs no terminal";
        Failure::new(Stage::Escrow, format!("no passphrase from the terminal: {e}"), hint)
    };
    let ask = || {
        // Warnings stand before the question.
        let _ = out::settle();
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        // Dropped last: what ends this process finds the terminal as it was. Where they are heard already nothing ends it.
        let signals = Deferred::new(&[Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].map(Signal::as_raw)).ok();
        let silent = Silent::new(&terminal)?;
        io::Write::write_all(&mut &terminal, format!("{question}: ").as_bytes())?;
        let line = silent.line(signals.as_ref())?;
        if line.is_none() {
            // No Enter ended it.
            io::Write::write_all(&mut &terminal, b"\n")?;
        }
        Ok(line)
    };
    ask().map_err(failed)?.ok_or_else(|| Failure::new(Stage::Escrow, "no passphrase was typed", "Enter ends it"))
}

/// Asks for one that something is to be made with: twice.
///
/// # Errors
/// As [`passphrase`]; both are not the same.
pub(crate) fn new_passphrase(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let first = passphrase(question)?;
    let second = passphrase("The same again")?;
    if *first != *second {
        return Err(Failure::new(Stage::Escrow, "what was typed is not the same twice", "try again"));
    }
    Ok(first)
}
