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
/// Buckets kept; when there are more, full ones are forgotten, or all.
const KEPT: usize = 100_000;

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct Rates {
    addresses: Buckets<IpAddr>,
    hosts: Buckets<HostId>,
}

impl Rates {
    pub(super) fn address(&self, address: IpAddr) -> Result<(), Error> {
        self.addresses.take(network(address), Instant::now())
    }

    pub(super) fn host(&self, host: HostId) -> Result<(), Error> {
        self.hosts.take(host, Instant::now())
    }
}

/// What shares an allowance: an IPv4 address, or the /64 that anybody with IPv6 has to himself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
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
        if buckets.len() >= KEPT && !buckets.contains_key(&key) {
            buckets.retain(|_, (_, seen)| now.saturating_duration_since(*seen).as_secs() < 10);
            // All of them new: starting over bounds memory, and costs the next ones that come as little as the first.
            if buckets.len() >= KEPT {
                buckets.clear();
            }
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

    #[test]
    fn one_allowance_for_a_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn no_more_buckets_than_are_kept() {
        let buckets = Buckets::default();
        let start = Instant::now();
        for key in 0..KEPT * 2 + 10 {
            assert!(buckets.take(key, start).is_ok());
        }
        assert!(buckets.0.lock().unwrap().len() <= KEPT);
    }
}
