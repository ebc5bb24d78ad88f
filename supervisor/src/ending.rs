//! How a run's workload is asked to end: by its user's signals, which it may heed when it likes, or by a stop, which it has to heed in time.

use std::time::{Duration, Instant};

/// How long the workload may take to end after a stop of the policy or of the verifier's operator; then it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// A signal that comes again within this is the same: a batch system sends it to each process of a job, and a job's script passes it on.
pub(crate) const SAME: Duration = Duration::from_secs(1);
/// SIGINT.
pub(crate) const INTERRUPT: u8 = 2;
/// SIGTERM.
pub(crate) const TERM: u8 = 15;

/// What the workload was asked for.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// When it got its first SIGINT.
    interrupted: Option<Instant>,
    /// When it got its first SIGTERM.
    termed: Option<Instant>,
    /// When it was told to stop.
    stopped: Option<Instant>,
}

/// What is to be done with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The workload gets it.
    Passed,
    /// The run is killed.
    Kills,
}

impl Ending {
    /// A signal of the user's. The second SIGINT kills, and the second SIGTERM; no other signal ever does.
    pub(crate) fn signal(&mut self, number: u8, now: Instant) -> Fate {
        let first = match number {
            INTERRUPT => &mut self.interrupted,
            TERM => &mut self.termed,
            _ => return Fate::Passed,
        };
        let again = now.saturating_duration_since(*first.get_or_insert(now)) >= SAME;
        if again { Fate::Kills } else { Fate::Passed }
    }

    /// A stop; whether it is the first.
    pub(crate) fn stop(&mut self, now: Instant) -> bool {
        let first = self.stopped.is_none();
        self.stopped.get_or_insert(now);
        // Whoever sends another one has waited.
        self.termed.get_or_insert(now);
        first
    }

    /// How long the workload may still take; `None`: as long as it likes.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        self.stopped.map(|asked| GRACE.saturating_sub(now.saturating_duration_since(asked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_signal_sets_no_limit_and_its_second_kills() {
        let start = Instant::now();
        let mut ending = Ending::default();
        for number in [1, 3, 10, 12, 14, 18, 28] {
            for times in 0..3 {
                assert_eq!(ending.signal(number, start + HOUR * times), Fate::Passed, "{number}");
            }
        }
        for (first, other) in [(INTERRUPT, TERM), (TERM, INTERRUPT)] {
            let mut ending = Ending::default();
            assert_eq!(ending.signal(first, start), Fate::Passed);
            assert_eq!(ending.signal(first, start + SAME / 2), Fate::Passed, "it is the same one");
            assert_eq!(ending.left(start + HOUR), None, "the workload decides when it ends");
            assert_eq!(ending.signal(1, start + HOUR), Fate::Passed);
            assert_eq!(ending.signal(other, start + HOUR), Fate::Passed, "warned by one, ended by the other");
            assert_eq!(ending.signal(first, start + SAME), Fate::Kills);
        }
    }

    #[test]
    fn a_stop_has_a_limit_that_nothing_prolongs() {
        let start = Instant::now();
        let mut ending = Ending::default();
        assert!(ending.stop(start));
        assert_eq!(ending.left(start), Some(GRACE));
        assert!(!ending.stop(start + GRACE / 2));
        for number in [1, INTERRUPT, 10] {
            assert_eq!(ending.signal(number, start + GRACE / 2), Fate::Passed);
        }
        assert_eq!(ending.left(start + GRACE / 2), Some(GRACE / 2));
        assert_eq!(ending.left(start + GRACE), Some(Duration::ZERO));
        assert_eq!(ending.signal(TERM, start + SAME), Fate::Kills, "its user does not want to wait");
    }
}
