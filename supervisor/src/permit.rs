//! The decryptor's permit to answer reads (decision 0026). The supervisor's main thread prolongs it while it watches the run; one that was
//! stopped does not, and what the kernel has not cached waits until it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use countersign_attest::lease::boot_time;

/// How often it is prolonged.
const BEAT: Duration = Duration::from_secs(3);
/// For how long, within the lease.
const TERM: Duration = Duration::from_secs(10);
/// For how long when the lease has just ended: what waits for a read can neither be frozen nor ended.
const TO_ACT: Duration = Duration::from_secs(2);

/// The supervisor's side: when to prolong it, and until when. All times are CLOCK_BOOTTIME: a machine that sleeps watches nothing.
#[derive(Debug, Default)]
pub(crate) struct Prolonging {
    /// When to do it next.
    due: Duration,
    /// Until when it was.
    until: Duration,
}

impl Prolonging {
    /// How long there is nothing to be done.
    pub(crate) const fn patience(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// Until when reads may be answered, if it is time to say so. Without a lease to lose the run goes on as policy wants it to.
    pub(crate) fn next(&mut self, now: Duration, lease: Option<Duration>) -> Option<Duration> {
        let shorter = lease.is_some_and(|end| end > now && end < self.until);
        if now < self.due && !shorter {
            return None;
        }
        let until = match lease {
            Some(end) if end <= now => now.saturating_add(TO_ACT),
            Some(end) => end.min(now.saturating_add(TERM)),
            None => now.saturating_add(TERM),
        };
        (self.due, self.until) = (until.min(now.saturating_add(BEAT)), until);
        Some(until)
    }
}

/// The decryptor's side.
#[derive(Debug)]
pub(crate) struct Permit {
    /// CLOCK_BOOTTIME, milliseconds; [`OVER`].
    until: AtomicU64,
    lock: Mutex<()>,
    prolonged: Condvar,
}

/// Nothing is read any more.
const OVER: u64 = 0;

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Permit {
    /// One without an end: before the workload runs.
    pub(crate) const fn new() -> Self {
        Self { until: AtomicU64::new(u64::MAX), lock: Mutex::new(()), prolonged: Condvar::new() }
    }

    /// Gives it another end.
    pub(crate) fn prolong(&self, until: u64) {
        self.set(until.max(OVER.saturating_add(1)));
    }

    /// Ends it for good: who waits for it is refused.
    pub(crate) fn end(&self) {
        self.set(OVER);
    }

    fn set(&self, until: u64) {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.until.load(Ordering::Relaxed) != OVER {
            self.until.store(until, Ordering::Relaxed);
        }
        self.prolonged.notify_all();
    }

    /// Whether there is one now; `None` when there is to be none any more.
    fn now(&self) -> Option<bool> {
        match self.until.load(Ordering::Relaxed) {
            OVER => None,
            until => Some(millis(boot_time()) < until),
        }
    }

    /// Waits for it; false when there is to be none any more.
    pub(crate) fn wait(&self) -> bool {
        if self.now() == Some(true) {
            return true;
        }
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.now() {
                Some(true) => return true,
                Some(false) => held = self.prolonged.wait(held).unwrap_or_else(PoisonError::into_inner),
                None => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_prolonged_within_the_lease() {
        let mut prolonging = Prolonging::default();
        assert_eq!(prolonging.patience(s(100)), s(0));
        assert_eq!(prolonging.next(s(100), Some(s(1000))), Some(s(110)));
        assert_eq!((prolonging.next(s(102), Some(s(1000))), prolonging.patience(s(102))), (None, s(1)));
        assert_eq!(prolonging.next(s(103), Some(s(105))), Some(s(105)), "no longer than the lease");
        assert_eq!(prolonging.patience(s(103)), s(2), "and then it is time to act");
        assert_eq!(prolonging.next(s(105), Some(s(105))), Some(s(107)));
        assert_eq!(prolonging.next(s(106), None), None);
        assert_eq!(prolonging.next(s(107), None), Some(s(117)), "policy lets it go on");
        assert_eq!(prolonging.next(s(108), Some(s(115))), Some(s(115)), "a lease that was not known before");
        assert_eq!(prolonging.next(s(109), Some(s(115))), None);
        // Stopped for an hour: at once, and no longer than it takes to act.
        assert_eq!(prolonging.next(s(3700), Some(s(1000))), Some(s(3702)));
    }

    #[test]
    fn reads_wait_for_it() {
        let permit = Permit::new();
        assert!(permit.wait(), "without an end");
        permit.prolong(millis(boot_time() + s(3600)));
        assert!(permit.wait());
        // From before: none now, also for a clock that has just begun.
        for ended in [millis(boot_time()).saturating_sub(1), 0] {
            permit.prolong(ended);
            let (told, answer) = channel();
            let permit = &permit;
            std::thread::scope(|scope| {
                scope.spawn(move || told.send(permit.wait()).unwrap());
                assert_eq!(answer.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout));
                permit.prolong(millis(boot_time() + s(3600)));
                assert!(answer.recv().unwrap());
            });
        }
        permit.prolong(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| permit.wait());
            permit.end();
            assert!(!waiting.join().unwrap());
        });
        permit.prolong(u64::MAX);
        assert!(!permit.wait(), "for good");
    }
}
