//! When this process may be stopped: not while it keeps others from the TPM. What a terminal or a batch system stops waits for its turn to end, and
//! takes none meanwhile.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Turns {
    /// Threads that have the machine-wide lock or a place in its queue.
    taken: usize,
    /// Somebody wants this process to be without.
    resting: bool,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { taken: 0, resting: false });
static CHANGED: Condvar = Condvar::new();

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A turn at the machine-wide lock, from the place in its queue to the lock's end.
#[derive(Debug)]
pub(crate) struct Turn(());

impl Turn {
    /// Begins one, once nobody wants this process to be without.
    pub(crate) fn begin() -> Self {
        let mut turns = turns();
        while turns.resting {
            turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.taken = turns.taken.saturating_add(1);
        Self(())
    }

    /// Whether to give up a place in the queue, so that this process can be stopped.
    pub(crate) fn is_to_end() -> bool {
        turns().resting
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        turns.taken = turns.taken.saturating_sub(1);
        CHANGED.notify_all();
    }
}

/// Does something (stops this process) while no thread of this process has the machine-wide lock or waits for it, and none gets it. `None`: one
/// had it for longer than `patience`.
pub fn without_lock<T>(patience: Duration, work: impl FnOnce() -> T) -> Option<T> {
    let asked = Instant::now();
    let mut turns = turns();
    // One at a time.
    while turns.resting {
        turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
    }
    turns.resting = true;
    while turns.taken > 0 && asked.elapsed() < patience {
        let left = patience.saturating_sub(asked.elapsed());
        turns = CHANGED.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    let free = turns.taken == 0;
    drop(turns);
    let done = free.then(work);
    self::turns().resting = false;
    CHANGED.notify_all();
    done
}
