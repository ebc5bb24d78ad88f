//! Obligations that the verifier itself keeps: how often a workload is released, and how long evidence is stored.

use countersign_policy::verdict::{Obligations, Reason, Source};
use countersign_wire::statement::Purpose;
use minicbor::{Decode, Encode};

use super::replayed::Replayed;
use super::snapshot::Context;

/// Milliseconds of a day, as `evidence_days` counts them.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// Releases of one workload on one host in one boot, by the verifier's own record; refunded ones left out.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ReleasesOfBoot {
    /// Life of the PCRs, as in [`super::Baseline`].
    #[n(0)]
    pub life: u64,
    /// resetCount.
    #[n(1)]
    pub reset_count: u32,
    /// restartCount.
    #[n(2)]
    pub restart_count: u32,
    /// How many.
    #[n(3)]
    pub count: u32,
}

/// What these obligations ask of this verifier and cannot have.
pub(super) fn unmet(obligations: &Obligations, replayed: &Replayed, context: &Context) -> Vec<Reason> {
    let reason = |id: &str, message: &str, got: String, want: String, hint: String| Reason {
        source: Source::Verifier,
        id: id.to_owned(),
        message: message.to_owned(),
        subject: None,
        got: Some(got),
        want: Some(want),
        hint: Some(hint),
    };
    let mut reasons = Vec::new();
    if let Some(cap) = obligations.cap.filter(|_| context.challenge.purpose == Purpose::Release) {
        let count = released(replayed, context);
        if count.is_none_or(|count| count >= cap) {
            reasons.push(reason(
                "cap-reached",
                "this workload was released on this host in this boot as often as its policies allow",
                count.map_or_else(|| "not known".to_owned(), |count| format!("{count} releases")),
                format!("fewer than {cap}"),
                "reboot the host; an answer that was lost is given back by: verifier release refund RUN".to_owned(),
            ));
        }
    }
    let kept = context.evidence_days.map(|days| u64::from(days).saturating_mul(86_400));
    if let Some((wanted, kept)) = obligations.retain_evidence_s.zip(kept)
        && u64::from(wanted) > kept
    {
        reasons.push(reason(
            "evidence-retention",
            "the policy wants evidence kept for longer than this verifier keeps it",
            format!("retain_evidence_s {wanted}"),
            format!("at most {kept} (evidence_days in verifier.toml)"),
            "raise evidence_days in verifier.toml, or lower retain_evidence_s".to_owned(),
        ));
    }
    reasons
}

/// Releases of this boot: those under the same life of the PCRs (a TPM Resume goes on with it) and those under the same counters (an operator's
/// admission starts a new life). None when the record was not asked.
fn released(replayed: &Replayed, context: &Context) -> Option<u32> {
    let (life, reading) = (replayed.receipts.life, replayed.authentic.reading);
    let here = |of: &&ReleasesOfBoot| {
        of.life == life || (of.reset_count, of.restart_count) == (reading.reset_count, reading.restart_count)
    };
    let counts = context.released.as_ref()?.iter().filter(here).map(|of| of.count);
    Some(counts.fold(0, u32::saturating_add))
}
