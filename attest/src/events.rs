//! What the verifier says between attestations: a thread that holds `GET /v1/events` open and hands over what comes.
//!
//! The connection is authenticated as the host (its 24-hour certificate, read anew for each connection) and to the pinned CA. When it breaks it
//! is made again, with a growing, random wait, and goes on behind the last event that came. Nothing depends on it: who hears nothing for too
//! long still has its lease.

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use countersign_wire::event::{HostEvent, Reader};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::error::HostError;
use crate::host::Host;
use crate::random::random;

/// Longest silence: the verifier says every 15 s that it is there.
const SILENCE: Duration = Duration::from_secs(50);
/// First wait before the connection is made again, and the longest one.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// A connection that lasted this long was a good one: the next wait is the first again.
const GOOD: Duration = Duration::from_secs(30);
/// Notices that wait to be taken; beyond that the thread waits, and then the verifier.
const WAITING: usize = 256;

/// What the subscription hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The verifier is heard: from here on nothing is missed.
    Connected,
    /// The verifier is not heard; it is tried again.
    Lost {
        /// Why.
        reason: String,
        /// After which time it is tried again.
        wait: Duration,
    },
    /// An event.
    Event(HostEvent),
}

/// A thread that follows the verifier's events. Dropped, the thread ends at the next sign of the verifier, at the latest after its longest
/// silence; it holds nothing but its connection.
#[derive(Debug)]
pub struct Subscription {
    notices: Receiver<Notice>,
    ready: Arc<OwnedFd>,
    ignored: Arc<AtomicU64>,
    _running: Sender<()>,
}

impl Subscription {
    /// Follows the events of an enrolled host.
    ///
    /// # Errors
    /// [`HostError::State`] when there is no descriptor left; everything later is a [`Notice::Lost`].
    pub fn start(host: &Host) -> Result<Self, HostError> {
        let failed = |e: std::io::Error| HostError::State { path: "eventfd".into(), source: e };
        // As a semaphore: each notice makes it readable once.
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        let ready = Arc::new(eventfd(0, flags).map_err(|e| failed(e.into()))?);
        let ignored = Arc::new(AtomicU64::new(0));
        let (sender, notices) = sync_channel(WAITING);
        let (running, stopped) = channel();
        let follower =
            Follower { host: host.again(), notices: sender, ready: Arc::clone(&ready), ignored: Arc::clone(&ignored) };
        let thread = std::thread::Builder::new().name("events".into());
        thread.spawn(move || follower.follow(&stopped)).map_err(failed)?;
        Ok(Self { notices, ready, ignored, _running: running })
    }

    /// The next notice that is there; never waits.
    #[must_use]
    pub fn next(&self) -> Option<Notice> {
        let mut count = [0; 8];
        rustix::io::read(&*self.ready, &mut count).ok()?;
        self.notices.try_recv().ok()
    }

    /// Waits for a notice.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> Option<Notice> {
        let end = Instant::now().checked_add(patience);
        loop {
            if let Some(notice) = self.next() {
                return Some(notice);
            }
            let left = end?.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut fds = [PollFd::new(self, PollFlags::IN)];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }

    /// Events that this version does not know and that were passed over.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }
}

/// Readable while there is a notice.
impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

/// The thread.
struct Follower {
    host: Host,
    notices: SyncSender<Notice>,
    ready: Arc<OwnedFd>,
    ignored: Arc<AtomicU64>,
}

/// The subscription was dropped.
struct Unsubscribed;

impl Follower {
    fn follow(self, stopped: &Receiver<()>) {
        let (mut last, mut wait) = (None, WAIT.0);
        loop {
            let began = Instant::now();
            let Ok(error) = self.connection(&mut last, stopped) else { return };
            if began.elapsed() >= GOOD {
                wait = WAIT.0;
            }
            // Between half of it and all: hosts that lost the verifier together do not come back together.
            let half = wait / 2;
            let now = half.saturating_add(half.mul_f64(f64::from(u16::from_be_bytes(random())) / f64::from(u16::MAX)));
            if self.say(Notice::Lost { reason: error.to_string(), wait: now }).is_err() {
                return;
            }
            if !matches!(stopped.recv_timeout(now), Err(RecvTimeoutError::Timeout)) {
                return;
            }
            wait = wait.saturating_mul(2).min(WAIT.1);
        }
    }

    /// One connection, to its end.
    fn connection(&self, last: &mut Option<u64>, stopped: &Receiver<()>) -> Result<HostError, Unsubscribed> {
        let opened = self.host.client_within(SILENCE, true).and_then(|client| client.stream("/v1/events", *last));
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(HostError::Refused { problem, .. }) if problem.id == "host-revoked" => {
                self.say(Notice::Event(HostEvent::Revoked { reason: problem.title.clone() }))?;
                return Ok(HostError::Refused { status: 403, problem });
            }
            Err(error) => return Ok(error),
        };
        self.say(Notice::Connected)?;
        let mut reader = Reader::default();
        let mut piece = [0; 4096];
        loop {
            if !matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                return Err(Unsubscribed);
            }
            let read = match stream.read(&mut piece) {
                Ok(0) => return Ok(HostError::unexpected("the verifier ended the event stream")),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(HostError::unexpected(format!("event stream: {e}"))),
            };
            let events = match reader.push(piece.get(..read).unwrap_or_default()) {
                Ok(events) => events,
                Err(e) => return Ok(HostError::unexpected(e.to_string())),
            };
            for event in events {
                match event {
                    Some(event) => self.say(Notice::Event(event))?,
                    None => drop(self.ignored.fetch_add(1, Ordering::Relaxed)),
                }
            }
            // Only what was handed over is not asked for again.
            *last = reader.last().or(*last);
        }
    }

    fn say(&self, notice: Notice) -> Result<(), Unsubscribed> {
        self.notices.send(notice).map_err(|_| Unsubscribed)?;
        // It can only fail when the counter is full, and then the descriptor is readable.
        let _ = rustix::io::write(&*self.ready, &1u64.to_ne_bytes());
        Ok(())
    }
}
