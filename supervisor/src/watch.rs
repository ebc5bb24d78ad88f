//! What a run waits for: its two helpers and the user's signals, whichever comes first.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use countersign_attest::events::{self, Subscription};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::channel::Channel;
use crate::decryptor;
use crate::exit::{Failure, Stage};
use crate::monitor::{Inbox, Notice};
use crate::stage;

/// Signals that end a start, and usually a workload: SIGHUP, SIGINT, SIGTERM.
pub(crate) const ENDING: [i32; 3] = [1, 2, 15];
/// Signals that end nothing here and are for the workload: SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT, SIGWINCH.
pub(crate) const PASSED: [i32; 6] = [3, 10, 12, 14, 18, 28];

/// SIGINT and SIGQUIT, as of Ctrl-C and Ctrl-\\: at a terminal for all that runs there.
pub(crate) const KEYS: [u8; 2] = [2, 3];

/// SIGCONT, as of `fg` and `bg`.
pub(crate) const CONTINUE: u8 = 18;
/// SIGTSTP, as of Ctrl-Z: for a run, not for its workload.
pub(crate) const SUSPEND: u8 = 20;

/// Every signal that a workload gets.
pub(crate) fn all_signals() -> Vec<i32> {
    ENDING.into_iter().chain(PASSED).collect()
}

/// Whether a signal ends a start, and what cannot be told of it.
pub(crate) fn ends(number: u8) -> bool {
    ENDING.contains(&i32::from(number))
}

/// The descriptors to wait on.
pub(crate) struct Watch {
    signals: Signals,
    pub(crate) decryptor: Channel,
    pub(crate) stage: Channel,
    /// What the monitor's threads say; none once nobody is to be heard any more.
    pub(crate) monitor: Option<Inbox<Notice>>,
    /// What the verifier says by itself; none before the workload runs.
    pub(crate) events: OnceCell<Subscription>,
}

/// The user's signals.
pub(crate) struct Signals {
    ending: OwnedFd,
    passed: OwnedFd,
    /// There is a workload: [`PASSED`] and [`SUSPEND`] are heard.
    passing: Cell<bool>,
}

impl Signals {
    fn passed(&self) -> Option<&OwnedFd> {
        Some(&self.passed).filter(|_| self.passing.get())
    }
}

/// What came. A helper that is gone is `None`.
pub(crate) enum Heard {
    Signal(u8),
    Decryptor(Option<decryptor::Report>),
    Stage(Option<(stage::Report, Vec<OwnedFd>)>),
    Monitor(Notice),
    Event(events::Notice),
    /// Nothing in the time given.
    Nothing,
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

impl Watch {
    /// From here on signals are heard, by whoever waits on this: before there is anything that they would leave behind.
    pub(crate) fn signals() -> Result<Signals, Failure> {
        let passed: Vec<i32> = PASSED.into_iter().chain([SUSPEND.into()]).collect();
        let passed = countersign_sys::signals(&passed).map_err(other)?;
        let ending = countersign_sys::signals(&ENDING).map_err(other)?;
        Ok(Signals { ending, passed, passing: Cell::new(false) })
    }

    pub(crate) const fn new(signals: Signals, decryptor: Channel, stage: Channel, monitor: Inbox<Notice>) -> Self {
        Self { signals, decryptor, stage, monitor: Some(monitor), events: OnceCell::new() }
    }

    /// There is a workload from here on; what came for it before is dropped. Whether its user had suspended it by then, and not continued.
    pub(crate) fn pass(&self) -> bool {
        let (mut numbers, mut suspended) = ([0; 64], false);
        while let Ok(n @ 1..) = rustix::io::read(&self.signals.passed, &mut numbers) {
            let last = numbers.iter().take(n).rfind(|number| [SUSPEND, CONTINUE].contains(number));
            suspended = last.map_or(suspended, |last| *last == SUSPEND);
        }
        self.signals.passing.set(true);
        suspended
    }

    /// Waits for the next thing. What the decryptor says comes first: it explains what the stage says. That it is gone comes after
    /// what the stage says, which may have brought it about.
    pub(crate) fn next(&self, patience: Option<Duration>) -> Result<Heard, Failure> {
        let patience = patience.map(Timespec::try_from).transpose().map_err(other)?;
        // A monitor that is not heard any more: the signals stand in for it, and nothing is read there.
        let ending = &self.signals.ending;
        let monitor = self.monitor.as_ref().map_or(ending.as_fd(), Inbox::as_fd);
        let events = self.events.get().map_or(ending.as_fd(), Subscription::as_fd);
        let passed = self.signals.passed().unwrap_or(ending);
        let [signals, passed, decryptor, stage, monitor, events] = loop {
            let mut fds = [
                PollFd::new(ending, PollFlags::IN),
                PollFd::new(passed, PollFlags::IN),
                PollFd::from_borrowed_fd(self.decryptor.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.stage.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(monitor, PollFlags::IN),
                PollFd::from_borrowed_fd(events, PollFlags::IN),
            ];
            match poll(&mut fds, patience.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                other_result => {
                    other_result.map_err(other)?;
                    break fds.map(|fd| !fd.revents().is_empty());
                }
            }
        };
        let mut gone = false;
        if decryptor {
            match self.decryptor.receive().map_err(other)? {
                Some((report, _)) => return Ok(Heard::Decryptor(Some(report))),
                None => gone = true,
            }
        }
        if stage {
            return Ok(Heard::Stage(self.stage.receive().map_err(other)?));
        }
        if gone {
            return Ok(Heard::Decryptor(None));
        }
        let pipes = [Some(ending).filter(|_| signals), self.signals.passed().filter(|_| passed)];
        for pipe in pipes.into_iter().flatten() {
            let mut number = [0];
            if rustix::io::read(pipe, &mut number).is_ok_and(|n| n > 0) {
                let [number] = number;
                return Ok(Heard::Signal(number));
            }
        }
        let said = self.events.get().filter(|_| events).and_then(Subscription::next);
        if let Some(said) = said {
            return Ok(Heard::Event(said));
        }
        let notice = self.monitor.as_ref().filter(|_| monitor).and_then(Inbox::take);
        Ok(notice.map_or(Heard::Nothing, Heard::Monitor))
    }

    /// Waits until something can be read from `fd`; false when something of this is to be heard first.
    pub(crate) fn until(&self, fd: BorrowedFd<'_>) -> Result<bool, Failure> {
        loop {
            let mut fds = [
                PollFd::new(&self.signals.ending, PollFlags::IN),
                PollFd::from_borrowed_fd(self.decryptor.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.stage.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(fd, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                polled => {
                    polled.map_err(other)?;
                    let [signals, decryptor, stage, _] = fds.map(|fd| !fd.revents().is_empty());
                    return Ok(!signals && !decryptor && !stage);
                }
            }
        }
    }

    /// What the decryptor has said that was not heard yet, if it has.
    pub(crate) fn explanation(&self) -> Option<decryptor::Report> {
        let mut fds = [PollFd::from_borrowed_fd(self.decryptor.as_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now)).ok()? == 0 {
            return None;
        }
        self.decryptor.receive().ok()?.map(|(report, _)| report)
    }

    /// Has the kernel drop the image's decrypted pages, while the mount is still there; not for long.
    pub(crate) fn forget(&self, patience: Duration) {
        let started = Instant::now();
        if self.decryptor.send(&decryptor::Word::Forget, &[]).is_err() {
            return;
        }
        loop {
            let left = Timespec::try_from(patience.saturating_sub(started.elapsed()));
            let mut fds = [PollFd::from_borrowed_fd(self.decryptor.as_fd(), PollFlags::IN)];
            match left.map(|left| poll(&mut fds, Some(&left))) {
                Ok(Ok(1..)) => {}
                _ => return,
            }
            if !matches!(self.decryptor.receive::<decryptor::Report>(), Ok(Some((report, _))) if !matches!(report, decryptor::Report::Forgotten))
            {
                return;
            }
        }
    }
}
