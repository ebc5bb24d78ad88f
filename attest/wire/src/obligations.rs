//! What a policy asks of the host and of the verifier when it allows. Policies write it as JSON; the answer to a host carries it as CBOR.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Longest time of an obligation, seconds: a year.
pub const SECONDS: u32 = 31_536_000;
/// Seconds of a lease where policy names none.
pub const DEFAULT_LEASE_S: u32 = 300;
/// Highest cap: releases of one workload on one host in one boot.
pub const CAP: u32 = 1_000;

/// What to do with a running workload that fell out of policy, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum OnViolation {
    /// Record and report.
    #[n(0)]
    Alert,
    /// Freeze the container.
    #[n(1)]
    Freeze,
    /// End it with grace.
    #[n(2)]
    Stop,
    /// End it at once.
    #[n(3)]
    Kill,
}

/// A flag that the container's runtime must be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum RuntimeFlag {
    /// No network but loopback.
    #[n(0)]
    NetNone,
    /// An own process namespace.
    #[n(1)]
    Pid,
    /// Nothing of the host's file systems and environment.
    #[n(2)]
    Containall,
    /// No privileges, whoever starts it.
    #[n(3)]
    NoPrivs,
}

/// Obligations that come with an allow. An unknown one denies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields, default)]
#[cbor(array)]
pub struct Obligations {
    /// Seconds that a run may go on without a new verdict, 1 to a year.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(0)]
    pub lease_s: Option<u32>,
    /// Seconds between attestations while it runs, 1 to a year.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(1)]
    pub reattest_s: Option<u32>,
    /// What to do on a violation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(2)]
    pub on_violation: Option<OnViolation>,
    /// Seconds that a frozen container is kept before it is ended, 1 to a year (default 600).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(3)]
    pub freeze_hold_s: Option<u32>,
    /// How often a workload is released on one host in one boot, 1 to 1,000. The verifier counts its own answers, also those that were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(4)]
    pub cap: Option<u32>,
    /// Flags that the runtime must be given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[n(5)]
    pub runtime_flags: Vec<RuntimeFlag>,
    /// Seconds that the evidence of this verdict is kept at least, 1 to a year.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[n(6)]
    pub retain_evidence_s: Option<u32>,
}

#[derive(Deserialize)]
struct VerdictDocument {
    #[serde(default)]
    obligations: Obligations,
}

/// A value outside of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {got}, not from 1 to {max}")]
pub struct OutOfRange {
    /// The obligation.
    pub field: &'static str,
    /// Its value.
    pub got: u32,
    /// The highest one that is taken.
    pub max: u32,
}

impl Obligations {
    /// What a verdict document (JSON) asks for.
    ///
    /// # Errors
    /// Why it cannot be read: it is no such document, names an obligation that this version does not know, or a value out of its range.
    pub fn of_verdict(document: &[u8]) -> Result<Self, String> {
        let read: Result<VerdictDocument, _> = serde_json::from_slice(document);
        let found = read.map_err(|e| format!("obligations of the verdict: {e}"))?.obligations;
        found.check().map_err(|e| format!("obligations of the verdict: {e}"))?;
        Ok(found)
    }

    /// The lease, seconds.
    #[must_use]
    pub fn lease_s(&self) -> u32 {
        self.lease_s.unwrap_or(DEFAULT_LEASE_S)
    }

    /// Seconds between attestations: what policy asks for; half the lease where it asks for none, or for one after the lease's end.
    #[must_use]
    pub fn interval_s(&self) -> u32 {
        let lease = self.lease_s();
        self.reattest_s.filter(|asked| *asked < lease).unwrap_or(lease / 2).max(1)
    }

    /// Whether each value lies in its range: for the policy's own document and for what came over the wire.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first that does not.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let values = [
            ("lease_s", self.lease_s, SECONDS),
            ("reattest_s", self.reattest_s, SECONDS),
            ("freeze_hold_s", self.freeze_hold_s, SECONDS),
            ("cap", self.cap, CAP),
            ("retain_evidence_s", self.retain_evidence_s, SECONDS),
        ];
        let outside = |(field, value, max): (&'static str, Option<u32>, u32)| {
            let got = value.filter(|value| !(1..=max).contains(value))?;
            Some(OutOfRange { field, got, max })
        };
        values.into_iter().find_map(outside).map_or(Ok(()), Err)
    }

    /// The stricter of two, for each by itself: the shortest times, the hardest reaction, the lowest cap, every flag, the longest retention.
    #[must_use]
    pub fn stricter(&self, other: &Self) -> Self {
        let min = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        let mut flags: Vec<RuntimeFlag> = self.runtime_flags.iter().chain(&other.runtime_flags).copied().collect();
        flags.sort_unstable();
        flags.dedup();
        Self {
            lease_s: min(self.lease_s, other.lease_s),
            reattest_s: min(self.reattest_s, other.reattest_s),
            on_violation: self.on_violation.max(other.on_violation),
            freeze_hold_s: min(self.freeze_hold_s, other.freeze_hold_s),
            cap: min(self.cap, other.cap),
            runtime_flags: flags,
            retain_evidence_s: self.retain_evidence_s.max(other.retain_evidence_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any() -> impl Strategy<Value = Obligations> {
        let seconds = || proptest::option::of(1..=SECONDS);
        let reaction = proptest::sample::select(vec![
            None,
            Some(OnViolation::Alert),
            Some(OnViolation::Freeze),
            Some(OnViolation::Stop),
            Some(OnViolation::Kill),
        ]);
        let flags = proptest::sample::subsequence(
            vec![RuntimeFlag::NetNone, RuntimeFlag::Pid, RuntimeFlag::Containall, RuntimeFlag::NoPrivs],
            0..=4,
        );
        (seconds(), seconds(), reaction, seconds(), proptest::option::of(1..=CAP), flags, seconds()).prop_map(
            |(lease_s, reattest_s, on_violation, freeze_hold_s, cap, runtime_flags, retain_evidence_s)| Obligations {
                lease_s,
                reattest_s,
                on_violation,
                freeze_hold_s,
                cap,
                runtime_flags,
                retain_evidence_s,
            },
        )
    }

    proptest! {
        #[test]
        fn the_stricter_of_two_takes_nothing_back(a in any(), b in any()) {
            let both = a.stricter(&b);
            prop_assert_eq!(&both, &b.stricter(&a));
            prop_assert_eq!(&both, &both.stricter(&a));
            prop_assert_eq!(&a, &a.stricter(&Obligations::default()));
            prop_assert!(both.check().is_ok());
            for one in [&a, &b] {
                let shorter = |both: Option<u32>, one: Option<u32>| one.is_none_or(|one| both.is_some_and(|both| both <= one));
                prop_assert!(shorter(both.lease_s, one.lease_s) && shorter(both.reattest_s, one.reattest_s));
                prop_assert!(shorter(both.freeze_hold_s, one.freeze_hold_s) && shorter(both.cap, one.cap));
                prop_assert!(both.on_violation >= one.on_violation && both.retain_evidence_s >= one.retain_evidence_s);
                prop_assert!(one.runtime_flags.iter().all(|flag| both.runtime_flags.contains(flag)));
            }
        }

        #[test]
        fn json_and_cbor_hold_all_of_it(given in any()) {
            let json = serde_json::to_string(&given).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Obligations>(&json).unwrap(), &given);
            let cbor = minicbor::to_vec(&given).unwrap();
            prop_assert_eq!(minicbor::decode::<Obligations>(&cbor).unwrap(), given);
        }
    }

    #[test]
    fn read_from_a_verdict() {
        let document = br#"{"id":"00","obligations":{"lease_s":600,"reattest_s":500,"on_violation":"freeze","cap":1}}"#;
        let terms = Obligations::of_verdict(document).unwrap();
        assert_eq!((terms.lease_s(), terms.on_violation), (600, Some(OnViolation::Freeze)));
        assert_eq!(terms.interval_s(), 500);
        assert_eq!(Obligations { reattest_s: Some(600), ..terms }.interval_s(), 300, "within the lease");
        assert_eq!(Obligations::of_verdict(b"{}").unwrap(), Obligations::default());
        assert_eq!((Obligations::default().lease_s(), Obligations::default().interval_s()), (300, 150));
        for bad in [&br#"{"obligations":{"on_violation":"pray"}}"#[..], br#"{"obligations":{"lease_s":0}}"#, b"no"] {
            assert!(Obligations::of_verdict(bad).is_err());
        }
    }

    #[test]
    fn ranges() {
        let with = |change: fn(&mut Obligations)| {
            let mut given = Obligations::default();
            change(&mut given);
            given.check().map_err(|e| e.field)
        };
        assert_eq!(with(|o| o.cap = Some(CAP)), Ok(()));
        assert_eq!(with(|o| o.cap = Some(0)), Err("cap"));
        assert_eq!(with(|o| o.cap = Some(CAP + 1)), Err("cap"));
        assert_eq!(with(|o| o.lease_s = Some(0)), Err("lease_s"));
        assert_eq!(with(|o| o.reattest_s = Some(SECONDS + 1)), Err("reattest_s"));
        assert_eq!(with(|o| o.freeze_hold_s = Some(0)), Err("freeze_hold_s"));
        assert_eq!(with(|o| o.retain_evidence_s = Some(u32::MAX)), Err("retain_evidence_s"));
    }
}
