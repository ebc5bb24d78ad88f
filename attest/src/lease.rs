//! Leases: how long what runs on this host may go on without a new verdict (DESIGN.md sections 2 and 10).
//!
//! One attestation renews all leases of the host. Whoever attests writes, under the machine-wide lock, one small file: when and how the last
//! attestation ended, and the terms of each run. Other programs of the host share the result as long as it is fresh enough for the shortest
//! interval that any run asks for. Times are CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody sets.
//!
//! The file is authenticated with a key derived from the host's TLS key: a damaged one, one of another boot, or one of another host is no
//! lease. Who can read that key (root and the owner of the state folder) can make leases: they are enforced by our code, not by the TPM.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_tpm::alg::HashAlg;
use countersign_tpm::kdf::hmac;
use countersign_wire::id::{RunId, VerdictId, WorkloadId};
use countersign_wire::limits;
use countersign_wire::obligations::Obligations;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::error::HostError;
use crate::random::part_of;
use crate::state::StateDir;
use crate::verdict::Denial;

/// The file.
const FILE: &str = "leases";
/// Longest file, bytes: some thousand runs.
const MAX: usize = 16 * limits::MESSAGE;
/// Runs that have a lease at a time; when there are more, those that end first are forgotten.
const RUNS: usize = 1024;
/// Reasons of a denial that are kept; the verifier has them all.
const REASONS: usize = 32;
/// What the MAC is over, before the text.
const CONTEXT: &[u8] = b"countersign/leases/v1";
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// CLOCK_BOOTTIME: goes on while the machine sleeps.
#[must_use]
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The kernel's id of this boot.
fn boot_id() -> Result<String, HostError> {
    let text = std::fs::read_to_string(BOOT_ID);
    text.map(|text| text.trim().to_owned()).map_err(|source| HostError::State { path: BOOT_ID.into(), source })
}

/// What came of asking for new leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The host was accepted.
    Accepted(Accepted),
    /// The host was refused: what runs keeps the lease that it has, and policy's `on_violation` says what to do now.
    Denied(Denied),
}

/// The last attestation that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Names the verdict.
    pub verdict: VerdictId,
    /// When it was asked for, CLOCK_BOOTTIME.
    #[serde(with = "millis")]
    pub at: Duration,
    /// What the host policy asks for. A run's own terms are at least as strict.
    pub terms: Obligations,
}

/// An attestation that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// When, CLOCK_BOOTTIME.
    #[serde(with = "millis")]
    pub at: Duration,
    /// Why.
    pub denial: Box<Denial>,
}

/// The lease of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The verdict that it stands on.
    pub verdict: VerdictId,
    /// From when on it has ended, CLOCK_BOOTTIME.
    pub until: Duration,
    /// When to renew it, CLOCK_BOOTTIME: policy's interval, with jitter.
    pub next: Duration,
    /// What policy asks for.
    pub terms: Obligations,
}

impl Accepted {
    /// From when on a run with these terms has no lease any more, CLOCK_BOOTTIME.
    #[must_use]
    pub fn until(&self, terms: &Obligations) -> Duration {
        let lease_s = self.terms.lease_s().min(terms.lease_s());
        self.at.saturating_add(Duration::from_secs(lease_s.into()))
    }

    /// When whoever keeps these terms should renew, CLOCK_BOOTTIME: in the last fifth of the interval, chosen at random, so that neither the
    /// programs of a host nor the hosts of a verifier ask in step.
    #[must_use]
    pub fn next(&self, terms: &Obligations) -> Duration {
        let interval = Duration::from_secs(self.terms.interval_s().min(terms.interval_s()).into());
        self.at.saturating_add(interval.saturating_sub(part_of(interval.mul_f64(0.2))))
    }

    /// The lease of a run with these terms.
    #[must_use]
    pub fn lease(&self, terms: &Obligations) -> Lease {
        let terms = self.terms.stricter(terms);
        Lease { verdict: self.verdict, until: self.until(&terms), next: self.next(&terms), terms }
    }
}

/// The terms under which a run was released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    workload: WorkloadId,
    /// The release: an attestation of its own.
    released: Accepted,
}

/// The file's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leases {
    boot: String,
    accepted: Option<Accepted>,
    denied: Option<Denied>,
    runs: BTreeMap<RunId, Run>,
}

impl Leases {
    /// The leases of this boot; none when the file is missing, damaged, of another boot or not by this host.
    pub(crate) fn read(state: &StateDir) -> Result<Self, HostError> {
        let boot = boot_id()?;
        let none = || Self { boot: boot.clone(), ..Self::default() };
        let Some(file) = state.read(FILE, MAX).unwrap_or_default() else { return Ok(none()) };
        let opened = key(state)?.and_then(|key| open(&key, &file));
        Ok(opened.filter(|leases| leases.boot == boot).unwrap_or_else(none))
    }

    /// Replaces the file; to be called under the lock. Runs without a lease are forgotten.
    pub(crate) fn write(&mut self, state: &StateDir) -> Result<(), HostError> {
        let now = boot_time();
        let until = |run: &Run| run.released.until(&run.released.terms).max(self.until(&run.released.terms));
        let mut ends: Vec<(Duration, RunId)> = self.runs.iter().map(|(id, run)| (until(run), *id)).collect();
        ends.sort_unstable();
        let surplus = ends.len().saturating_sub(RUNS);
        for (at, (end, id)) in ends.into_iter().enumerate() {
            if end <= now || at < surplus {
                self.runs.remove(&id);
            }
        }
        // A folder without a TLS key has never been enrolled: there is nothing to keep.
        let Some(key) = key(state)? else { return Ok(()) };
        let text = serde_json::to_string(self).map_err(|e| HostError::Corrupt(format!("leases: {e}")))?;
        state.write_for_this_boot(FILE, format!("{}\n{text}\n", hex::encode(mac(&key, text.as_bytes())?)).as_bytes())
    }

    fn until(&self, terms: &Obligations) -> Duration {
        self.accepted.as_ref().map_or(Duration::ZERO, |accepted| accepted.until(terms))
    }

    /// An attestation was accepted: every lease begins anew.
    pub(crate) fn accept(&mut self, accepted: Accepted) {
        self.denied = None;
        self.accepted = Some(accepted);
    }

    /// An attestation was refused: what was accepted before goes on until its end.
    pub(crate) fn deny(&mut self, mut denied: Denied) {
        // What others need to know of it, with the explanation, whose length is bounded; a verdict with thousands of reasons must not push the
        // leases out of their file.
        let explanation = denied.denial.explanation.take();
        denied.denial.reasons.truncate(REASONS);
        while serde_json::to_vec(&denied).is_ok_and(|text| text.len() > limits::MESSAGE) {
            if denied.denial.reasons.pop().is_none() {
                break;
            }
        }
        denied.denial.explanation = explanation;
        self.denied = Some(denied);
    }

    /// A run was released.
    pub(crate) fn release(&mut self, run: RunId, workload: WorkloadId, released: Accepted) {
        self.runs.insert(run, Run { workload, released });
    }

    /// A run ended.
    pub(crate) fn end(&mut self, run: RunId) -> bool {
        self.runs.remove(&run).is_some()
    }

    /// The lease of a run: from the newer of its release and the last accepted attestation.
    pub(crate) fn of(&self, run: RunId) -> Option<Lease> {
        let run = self.runs.get(&run)?;
        let newest = self.accepted.as_ref().filter(|accepted| accepted.at > run.released.at);
        Some(newest.unwrap_or(&run.released).lease(&run.released.terms))
    }

    /// The shortest interval that anything on this host asks for.
    fn interval(&self) -> Duration {
        let host = self.accepted.as_ref().map(|accepted| &accepted.terms);
        let all = host.into_iter().chain(self.runs.values().map(|run| &run.released.terms));
        let shortest = all.map(Obligations::interval_s).min().unwrap_or_else(|| Obligations::default().interval_s());
        Duration::from_secs(shortest.into())
    }

    /// How the last attestation ended.
    pub(crate) fn last(&self) -> Option<Renewal> {
        let denied = self.denied.clone().map(Renewal::Denied);
        denied.or_else(|| self.accepted.clone().map(Renewal::Accepted))
    }

    /// The last outcome, if it is of `since` or later and fresh enough for everything on this host. [`Accepted::next`] is never this early.
    pub(crate) fn shared(&self, since: Duration) -> Option<Renewal> {
        let (now, fresh) = (boot_time(), self.interval().mul_f64(0.75));
        self.last().filter(|last| {
            let at = last.at();
            at >= since && at <= now && now.saturating_sub(at) < fresh
        })
    }
}

impl Renewal {
    /// When it was asked for, CLOCK_BOOTTIME.
    #[must_use]
    pub const fn at(&self) -> Duration {
        match self {
            Self::Accepted(accepted) => accepted.at,
            Self::Denied(denied) => denied.at,
        }
    }
}

/// The MAC's key: nobody has it who cannot speak for this host already.
fn key(state: &StateDir) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, HostError> {
    Ok(state.read("tls.key", 4096)?.map(zeroize::Zeroizing::new))
}

fn mac(key: &[u8], text: &[u8]) -> Result<Vec<u8>, HostError> {
    let mac = hmac(HashAlg::Sha256, key, &[CONTEXT, text]);
    mac.map(|mac| mac.as_bytes().to_vec()).ok_or_else(|| HostError::Corrupt("HMAC-SHA256 is missing".into()))
}

fn open(key: &[u8], file: &[u8]) -> Option<Leases> {
    let (given, text) = std::str::from_utf8(file).ok()?.strip_suffix('\n')?.split_once('\n')?;
    let want = mac(key, text.as_bytes()).ok()?;
    let good = bool::from(want.ct_eq(&hex::decode(given).ok()?));
    if good { serde_json::from_str(text).ok() } else { None }
}

/// A time as milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests;
