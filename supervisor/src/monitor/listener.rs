//! The thread that hears what the kernel announces. It asks the file systems of what was executed, and may have to wait for them: nothing
//! else does with it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_attest::lease::boot_time;
use rustix::event::{PollFd, PollFlags, poll};

use super::executions::{Executions, Marked, Unwatched, lost};
use super::inbox::Inbox;
use super::now_ms;
use super::pulse::Pulse;
use super::teller::Teller;

/// How long what was announced by the end is told, should it not end.
const LAST: Duration = Duration::from_secs(5);

/// What it needs.
pub(super) struct Listener {
    pub(super) stop: Arc<OwnedFd>,
    pub(super) executions: Executions,
    /// What there is to listen to, once there is a container.
    pub(super) marked: Inbox<Marked>,
    pub(super) teller: Teller,
    pub(super) pulse: Arc<Pulse>,
}

impl Listener {
    /// To the end; what was announced by then is told.
    pub(super) fn run(self) {
        let marked = loop {
            match (self.wait(self.marked.as_fd()), self.marked.take()) {
                (Ok(false), Some(marked)) => break marked,
                (Ok(false), None) => {}
                (Ok(true), _) => return,
                (Err(e), _) => return self.deaf(&e),
            }
        };
        let unwatched = self.pulse.step(|| self.executions.watch(&marked));
        let say = |unwatched: &[Unwatched]| {
            let places: Vec<String> = unwatched.iter().map(Unwatched::to_string).collect();
            format!("executions are seen at intervals only in {}", places.join(", "))
        };
        let (hidden, unwatched): (Vec<_>, Vec<_>) = unwatched.into_iter().partition(|mount| mount.is_out_of_reach);
        if !hidden.is_empty() {
            self.teller.warn(say(&hidden));
        }
        if !unwatched.is_empty() {
            self.teller.tell(vec![lost(&say(&unwatched), now_ms())], boot_time());
        }
        self.teller.watched();
        loop {
            let waited = self.wait(self.executions.as_fd());
            match waited {
                Ok(false) => drop(self.tell(&marked)),
                Ok(true) => return self.tell_last(&marked),
                Err(e) => {
                    self.tell_last(&marked);
                    return self.deaf(&e);
                }
            }
        }
    }

    /// Tells some of what was announced; false when there is no more.
    fn tell(&self, marked: &Marked) -> bool {
        let at = boot_time();
        let found = self.pulse.step(|| self.executions.take(marked, now_ms()));
        found.map(|found| self.teller.tell(found, at)).is_some()
    }

    /// All that was announced.
    fn tell_last(&self, marked: &Marked) {
        let began = Instant::now();
        while self.tell(marked) {
            if began.elapsed() > LAST {
                return self
                    .teller
                    .tell(vec![lost("more executions at the end than could be told", now_ms())], boot_time());
            }
        }
    }

    fn deaf(&self, error: &io::Error) {
        self.teller.blind(&format!("nobody listens for executions any more: {error}"));
    }

    /// Waits until something can be read from `fd`; true when it is over.
    fn wait(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        let [stop, _] = fds;
        Ok(!stop.revents().is_empty())
    }
}
