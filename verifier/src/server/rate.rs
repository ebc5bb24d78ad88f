//! Allowances: a bucket per address for strangers, one per host for known hosts.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use countersign_wire::id::HostId;

use crate::error::Error;

/// Requests that may come at once.
const BURST: f64 = 60.0;
/// Requests a second in the long run.
const RATE: f64 = 10.0;
/// Buckets kept; when there are more, full ones are forgotten.
const KEPT: usize = 100_000;

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct Rates {
    addresses: Buckets<IpAddr>,
    hosts: Buckets<HostId>,
}

impl Rates {
    pub(super) fn address(&self, address: IpAddr) -> Result<(), Error> {
        self.addresses.take(address, Instant::now())
    }

    pub(super) fn host(&self, host: HostId) -> Result<(), Error> {
        self.hosts.take(host, Instant::now())
    }
}

#[derive(Debug)]
struct Buckets<K>(Mutex<HashMap<K, (f64, Instant)>>);

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Buckets<K> {
    fn take(&self, key: K, now: Instant) -> Result<(), Error> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > KEPT {
            buckets.retain(|_, (_, seen)| now.saturating_duration_since(*seen).as_secs() < 10);
        }
        let (left, seen) = buckets.entry(key).or_insert((BURST, now));
        *left = (*left + now.saturating_duration_since(*seen).as_secs_f64() * RATE).min(BURST);
        *seen = now;
        if *left < 1.0 {
            // Jitter: clients that were refused together should not come back together.
            let jitter = u32::from(crate::keys::random::<1>().first().copied().unwrap_or(0) % 4);
            return Err(Error::Busy(1u32.saturating_add(jitter)));
        }
        *left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let buckets = Buckets::default();
        let start = Instant::now();
        for _ in 0..60 {
            assert!(buckets.take(1, start).is_ok());
        }
        assert!(matches!(buckets.take(1, start), Err(Error::Busy(_))));
        assert!(buckets.take(2, start).is_ok(), "another key has its own");
        assert!(buckets.take(1, start + Duration::from_millis(200)).is_ok());
    }
}
