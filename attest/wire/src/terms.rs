//! What policy asks of a host for as long as something runs on it: the part of a verdict's obligations that the host keeps by itself.

use serde::{Deserialize, Serialize};

/// Seconds of a lease where policy names none.
pub const DEFAULT_LEASE_S: u32 = 300;

/// What to do with a running workload that fell out of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnViolation {
    /// Record and report.
    Alert,
    /// Freeze the container.
    Freeze,
    /// End it with grace.
    Stop,
    /// End it at once.
    Kill,
}

/// The terms of a run. Names as in the verdict's `obligations`; obligations of other kinds are not the host's to keep, or are read elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Seconds that the run may go on without a new verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u32>,
    /// Seconds between attestations while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reattest_s: Option<u32>,
    /// What to do on a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_violation: Option<OnViolation>,
    /// Seconds that a frozen container is kept before it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze_hold_s: Option<u32>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    obligations: Terms,
}

impl Terms {
    /// The terms of a verdict document (JSON).
    ///
    /// # Errors
    /// It is no such document, or names a reaction that this version does not know.
    pub fn of_verdict(document: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(document).map(|document: Document| document.obligations)
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

    /// The stricter of two: the shortest times, the hardest reaction.
    #[must_use]
    pub fn stricter(&self, other: &Self) -> Self {
        let min = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        Self {
            lease_s: min(self.lease_s, other.lease_s),
            reattest_s: min(self.reattest_s, other.reattest_s),
            on_violation: self.on_violation.max(other.on_violation),
            freeze_hold_s: min(self.freeze_hold_s, other.freeze_hold_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_from_a_verdict() {
        let document = br#"{"id":"00","obligations":{"lease_s":600,"reattest_s":500,"on_violation":"freeze","cap":"once-per-boot"}}"#;
        let terms = Terms::of_verdict(document).unwrap();
        assert_eq!((terms.lease_s(), terms.on_violation), (600, Some(OnViolation::Freeze)));
        assert_eq!(terms.interval_s(), 500);
        assert_eq!(Terms { reattest_s: Some(600), ..terms }.interval_s(), 300, "within the lease");
        assert_eq!(Terms::of_verdict(b"{}").unwrap(), Terms::default());
        assert_eq!((Terms::default().lease_s(), Terms::default().interval_s()), (300, 150));
        assert!(Terms::of_verdict(br#"{"obligations":{"on_violation":"pray"}}"#).is_err());
        assert!(Terms::of_verdict(b"no").is_err());
    }

    #[test]
    fn stricter() {
        let one = Terms { lease_s: Some(10), on_violation: Some(OnViolation::Alert), ..Terms::default() };
        let two = Terms {
            lease_s: Some(20),
            reattest_s: Some(3),
            on_violation: Some(OnViolation::Stop),
            freeze_hold_s: None,
        };
        let both = one.stricter(&two);
        assert_eq!(both, Terms { lease_s: Some(10), ..two });
    }
}
