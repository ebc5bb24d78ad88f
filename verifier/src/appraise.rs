//! The appraisal: code decides what is authentic, policy decides what is acceptable (DESIGN.md section 6).
//!
//! Pure and deterministic: the same evidence and the same [`Context`] give the same verdict, byte for byte, now and for an auditor years
//! later. No I/O, no clock, no randomness.
//!
//! ```text
//! bytes -> Evidence -> Authentic -> Replayed -> Verdict
//! ```

mod authentic;
mod boots;
mod checks;
mod clock;
mod decide;
mod ima;
mod obligations;
mod policies;
pub mod quote;
mod receipts;
mod remote;
mod replayed;
pub(crate) mod runlog;
mod snapshot;

pub use authentic::Authentic;
pub use decide::{HostUpdate, Judged, ReleaseBasis};
pub use ima::{ImaContext, NamedSet};
pub(crate) use obligations::DAY_MS;
pub use obligations::ReleasesOfBoot;
pub use receipts::ReceiptUpdate;
pub use remote::{DISAGREES, RemoteAnswer, RemoteDecision};
pub use replayed::Replayed;
pub use snapshot::{
    Baseline, ChallengeRecord, Context, HostSnapshot, ReceiptStatus, RunState, StoredReceipt, WorkloadRecord,
};

use countersign_policy::Role;
use countersign_policy::input::Input;
use countersign_policy::verdict::{Check, Decision, Reason};
use countersign_wire::cbor;
use countersign_wire::evidence::Evidence;
use sha2::{Digest as _, Sha256};

use checks::{Checks, Failure, Stop};

/// Every check, in the order in which they are made. The first that fails ends the appraisal; the rest are `not-appraised`.
pub const ORDER: [&str; 18] = [
    "evidence",         // one deterministic CBOR message within its limits
    "challenge",        // known, issued to this host, fresh
    "host-state",       // enrolled and neither pending nor revoked
    "algorithm",        // the AK is restricted, signs only, and of an accepted kind
    "quote-signature",  // by the enrolled AK; magic and type
    "qualifying-data",  // extraData covers the nonce and the statement
    "statement",        // the right purpose and workload
    "qualified-signer", // the AK is a child of the enrolled EK
    "pcr-selection",    // what was asked for, each PCR exactly once
    "pcr-digest",       // the values hash to the quoted digest
    "clock",            // no counter and no clock goes back
    "boot-log",         // replays in every quoted bank, and claims nothing false
    "ima-list",         // one prefix leads to PCR 10 in every bank
    "run-log",          // replays on top of what the boot log leaves
    "pcr-values",       // every quoted PCR is what the logs lead to
    "receipts",         // contains what it must, nothing void
    "host-policy",      // the operator's
    "workload-policy",  // the image owner's
];

/// Appraises evidence.
#[must_use]
pub fn appraise(evidence: &[u8], context: &Context) -> Judged {
    prepare(evidence, context).judge(context)
}

/// Evidence that went through every check but the policies', whatever came out.
#[derive(Debug)]
pub struct Prepared {
    replayed: Option<Replayed>,
    checks: Vec<Check>,
    reasons: Vec<Reason>,
    suspend: Option<String>,
    signed: bool,
    digest: [u8; 32],
}

/// The first half of [`appraise`]: what can be said before a policy is asked.
#[must_use]
pub fn prepare(evidence: &[u8], context: &Context) -> Prepared {
    let mut checks = Checks::default();
    let replayed = stages(evidence, context, &mut checks).ok();
    let (suspend, signed) = (checks.contradiction(), checks.passed("qualifying-data"));
    let (checks, reasons) = checks.finish(&ORDER);
    Prepared { replayed, checks, reasons, suspend, signed, digest: Sha256::digest(evidence).into() }
}

impl Prepared {
    /// What policies are given; none for evidence that is not authentic.
    #[must_use]
    pub fn input(&self, context: &Context) -> Option<Input> {
        self.replayed.as_ref().map(|replayed| decide::input(replayed, context))
    }

    /// The second half of [`appraise`]: both policies decide. `context` is the one that was prepared with; only its policies, and what an engine
    /// elsewhere said of them, may be others.
    #[must_use]
    pub fn judge(&self, context: &Context) -> Judged {
        let replayed = self.replayed.as_ref();
        let (verdict, allow) =
            decide::decide(replayed, self.checks.clone(), self.reasons.clone(), context, self.digest);
        let accepted = replayed.filter(|_| allow);
        Judged {
            update: accepted.map(decide::update),
            release: accepted.and_then(|replayed| decide::release_basis(replayed, &verdict, context)),
            suspend: self.suspend.clone(),
            signed: self.signed,
            verdict,
        }
    }
}

/// What each policy decides on an input, as a verdict counts it: the host policy, and for a release the workload's.
pub(crate) fn decisions(input: &Input, context: &Context) -> Vec<(Role, Decision)> {
    let reference = policies::reference(&context.reference).document;
    let mut decided = vec![(Role::Host, decide::by_host_policy(context, input, &reference))];
    if let Some(bundle) = &context.workload_policy {
        decided.push((Role::Workload, decide::evaluate(Role::Workload, bundle, input, &reference)));
    }
    decided
}

/// The input that both policies would get, for tools.
///
/// # Errors
/// The evidence is not authentic: the reasons of its verdict.
pub fn policy_input(evidence: &[u8], context: &Context) -> Result<Input, Vec<Reason>> {
    let mut checks = Checks::default();
    match stages(evidence, context, &mut checks) {
        Ok(replayed) => Ok(decide::input(&replayed, context)),
        Err(Stop) => Err(checks.finish(&ORDER).1),
    }
}

fn stages(evidence: &[u8], context: &Context, checks: &mut Checks) -> Result<Replayed, Stop> {
    let parsed =
        cbor::decode::<Evidence>(evidence).map_err(|e| Failure::new(e.to_string(), "evidence").about("evidence"));
    let evidence = checks.run("evidence", parsed)?;
    let authentic = authentic::authenticate(evidence, context, checks)?;
    replayed::replay(authentic, context, checks)
}

/// What an IMA list was found to hold; none for evidence that fails before, or without a list.
pub(crate) fn ima_state(evidence: &[u8], context: &Context) -> Option<crate::ima::ImaState> {
    stages(evidence, context, &mut Checks::default()).ok()?.ima.map(ima::Measured::into_state)
}

/// All checks but the policies': [`appraise`] without its decision. For benches.
///
/// # Errors
/// The check that refuses the evidence.
#[doc(hidden)]
pub fn appraise_without_policies(evidence: &[u8], context: &Context) -> Result<Replayed, &'static str> {
    let mut checks = Checks::default();
    stages(evidence, context, &mut checks).map_err(|Stop| checks.failure().unwrap_or_default())
}

/// The verdict document's bytes: compact JSON in field order.
#[must_use]
pub fn verdict_bytes(verdict: &countersign_policy::verdict::Verdict) -> Vec<u8> {
    serde_json::to_vec(verdict).unwrap_or_default()
}
