//! Whether a thread still gets on. What a monitor looks at was made by others, and a file system that does not answer keeps whoever asks it:
//! the main thread, which asks nobody, notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long one step of a thread may take.
pub(super) const LONGEST: Duration = Duration::from_secs(10);
/// The most that counts between two looks at a pulse. Whoever looks does so every three seconds; one that was stopped, or slept with its machine,
/// has not waited meanwhile.
const COUNTS: Duration = Duration::from_secs(4);

/// The thread's side: its number is odd while it is at a step.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    /// A step that may not come back.
    pub(super) fn step<T>(&self, step: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::Relaxed);
        let done = step();
        self.0.fetch_add(1, Ordering::Relaxed);
        done
    }
}

/// The side of whoever watches it.
#[derive(Debug)]
pub(super) struct Patience {
    pulse: Arc<Pulse>,
    /// The step that was seen last, when that was, and how long it has been waited for.
    step: u64,
    seen: Instant,
    waited: Duration,
    told: bool,
}

impl Patience {
    pub(super) fn with(pulse: Arc<Pulse>, now: Instant) -> Self {
        Self { pulse, step: 0, seen: now, waited: Duration::ZERO, told: false }
    }

    /// Whether the thread is at a step that takes too long.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let (step, before) = (self.pulse.0.load(Ordering::Relaxed), self.step);
        let since = now.saturating_duration_since(std::mem::replace(&mut self.seen, now));
        if step != before || step.is_multiple_of(2) {
            (self.step, self.waited, self.told) = (step, Duration::ZERO, false);
            return false;
        }
        self.waited = self.waited.saturating_add(since.min(COUNTS));
        self.waited >= LONGEST
    }

    /// As [`Patience::is_over`], once for each such step.
    pub(super) fn ends(&mut self, now: Instant) -> bool {
        self.is_over(now) && !std::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_that_takes_too_long_is_told_once() {
        let pulse = Arc::new(Pulse::default());
        let start = Instant::now();
        let mut patience = Patience::with(Arc::clone(&pulse), start);
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(!patience.ends(at(1000)), "it waits for something to do, as long as that takes");
        for from in [2000, 3000] {
            pulse.step(|| {
                assert!(!patience.ends(at(from)), "just begun, or not: whoever was stopped cannot tell");
                assert!(!patience.ends(at(from + 3)) && !patience.ends(at(from + 6)) && !patience.ends(at(from + 9)));
                assert!(patience.ends(at(from + 12)));
                assert!(!patience.ends(at(from + 15)) && patience.is_over(at(from + 15)));
            });
            assert!(!patience.is_over(at(from + 16)), "it came back");
        }
        // Stopped for an hour in the middle of a step, and again.
        pulse.step(|| {
            assert!(!patience.is_over(at(4000)) && !patience.is_over(at(8000)) && !patience.is_over(at(12000)));
            assert!(patience.is_over(at(16000)));
        });
        // One step after the other: each is quick.
        for s in 0..100 {
            pulse.step(|| assert!(!patience.is_over(at(20_000 + 3 * s))));
        }
    }
}
