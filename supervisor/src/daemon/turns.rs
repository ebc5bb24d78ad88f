//! Whose turn it is at the TPM: users in turn, each with one start at a time, so that nobody's many starts hold up another's one.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Turns at a time. One works with the TPM, under the machine's lock; the others read their image meanwhile, or talk to the verifier.
const TURNS: usize = 4;
/// A turn that has lasted so long holds nobody up any more.
const LONGEST: Duration = Duration::from_secs(60);

/// Sessions that wait for a turn, and those that have one. Sessions and users are numbers.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: BTreeMap<u32, VecDeque<u64>>,
    /// Users with waiting sessions, the one whose turn is next first.
    order: VecDeque<u32>,
    having: Vec<(u32, u64, Instant)>,
}

impl Turns {
    /// A session wants a turn.
    pub(super) fn ask(&mut self, user: u32, session: u64) {
        let waiting = self.waiting.entry(user).or_default();
        if waiting.is_empty() {
            self.order.push_back(user);
        }
        waiting.push_back(session);
    }

    /// A session has had its turn, or is gone.
    pub(super) fn leave(&mut self, session: u64) {
        self.having.retain(|(_, having, _)| *having != session);
        for waiting in self.waiting.values_mut() {
            waiting.retain(|waiting| *waiting != session);
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        self.order.retain(|user| self.waiting.contains_key(user));
    }

    /// The next session that gets a turn, if one does.
    pub(super) fn next(&mut self, now: Instant) -> Option<u64> {
        self.having.retain(|(_, _, since)| now.saturating_duration_since(*since) < LONGEST);
        if self.having.len() >= TURNS {
            return None;
        }
        let position = self.order.iter().position(|user| !self.having.iter().any(|(having, ..)| having == user))?;
        let user = self.order.remove(position)?;
        let waiting = self.waiting.get_mut(&user)?;
        let session = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&user);
        } else {
            self.order.push_back(user);
        }
        self.having.push((user, session, now));
        Some(session)
    }

    /// When a turn lapses at the earliest, while somebody waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let first = self.having.iter().map(|(_, _, since)| *since).min()?;
        (!self.order.is_empty()).then(|| first.checked_add(LONGEST)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(turns: &mut Turns, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| turns.next(now)).collect()
    }

    #[test]
    fn users_in_turn_each_with_one() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for session in 10..20 {
            turns.ask(1, session);
        }
        turns.ask(2, 20);
        turns.ask(2, 21);
        turns.ask(3, 30);
        assert_eq!(all(&mut turns, now), [10, 20, 30]);
        turns.leave(10);
        assert_eq!(all(&mut turns, now), [11]);
        turns.leave(20);
        turns.leave(11);
        assert_eq!(all(&mut turns, now), [21, 12]);
        // Whoever gives up waiting is not called.
        turns.leave(13);
        turns.leave(12);
        assert_eq!(all(&mut turns, now), [14]);
    }

    #[test]
    fn not_more_than_so_many_and_none_for_ever() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for user in 0..6 {
            turns.ask(user, u64::from(user));
        }
        assert_eq!(all(&mut turns, now), [0, 1, 2, 3]);
        assert_eq!(turns.deadline(), Some(now + LONGEST));
        turns.ask(0, 100);
        assert!(all(&mut turns, now + LONGEST / 2).is_empty());
        assert_eq!(all(&mut turns, now + LONGEST), [4, 5, 100]);
        assert_eq!(turns.deadline(), None);
    }
}
