//! [`Replayed`] -> verdict: both policies are asked, and a no is explained.

use countersign_policy::input::{self, Input};
use countersign_policy::verdict::{Basis, Check, Decision, Mode, Obligations, Outcome, Reason, Source, Verdict};
use countersign_policy::{Compiled, PolicyBundle, ReferenceData, Role, engine_version};
use countersign_tpm::alg::HashAlg;
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_tpm::policy::covers;
use countersign_tpm::public::Public;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{PolicyDigest, RunId, WorkloadId};
use countersign_wire::statement::Purpose;
use countersign_wire::time::rfc3339;
use sha2::{Digest as _, Sha256};

use super::authentic::Authentic;
use super::clock::Continuity;
use super::policies::Known;
use super::quote::digest_of;
use super::receipts::ReceiptUpdate;
use super::remote::RemoteDecision;
use super::replayed::{Replayed, pcrs_for_policy};
use super::snapshot::{Baseline, Context};
use crate::explain::explain_wants;
use crate::ima::ImaState;

/// What the transaction that accepts stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUpdate {
    /// Counters and clock of this quote.
    pub baseline: Baseline,
    /// New standing of the receipts.
    pub receipts: ReceiptUpdate,
    /// The IMA list so far, for the next increment; none without a list.
    pub ima: Option<ImaState>,
    /// SubjectPublicKeyInfo of the TLS key to certify.
    pub tls_key: Option<Vec<u8>>,
}

/// What a release is signed from: nothing that the request says beside the signed statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseBasis {
    /// The workload.
    pub workload: WorkloadId,
    /// The run.
    pub run: RunId,
    /// Name of the sealed object.
    pub object_name: Vec<u8>,
    /// nonceTPM of the waiting session.
    pub nonce_tpm: [u8; 32],
    /// Name of the AK that signed the quote.
    pub ak_name: Vec<u8>,
    /// Quoted resetCount.
    pub reset_count: u32,
    /// Quoted restartCount.
    pub restart_count: u32,
    /// Quoted clock, ms.
    pub clock_ms: u64,
    /// PCRs of the approval (SHA-256 bank): everything quoted but the run PCR and IMA's.
    pub selection: PcrSelection,
    /// Their digest, from the quoted values.
    pub pcr_digest: [u8; 32],
    /// Obligation: the lease, seconds.
    pub lease_s: u32,
}

/// The outcome of one appraisal.
#[derive(Debug)]
pub struct Judged {
    /// The verdict document.
    pub verdict: Verdict,
    /// For an allow: what to store.
    pub update: Option<HostUpdate>,
    /// A signed contradiction: the host is to be suspended, for this reason.
    pub suspend: Option<String>,
    /// Whether the enrolled AK signed the quote and the statement: otherwise anybody may have sent this.
    pub signed: bool,
    /// For an allowed release: what to sign.
    pub release: Option<ReleaseBasis>,
}

/// The host policy, and for a release the workload's own, decide on authenticated facts.
pub(super) fn decide(
    replayed: Option<&Replayed>,
    mut checks: Vec<Check>,
    mut reasons: Vec<Reason>,
    context: &Context,
    evidence_digest: [u8; 32],
) -> (Verdict, bool) {
    let mut obligations = Obligations::default();
    let reference = super::policies::reference(&context.reference);
    if let Some(replayed) = replayed {
        let input = input(replayed, context);
        if let Some(words) = &reference.unreadable {
            // A policy that refuses what is listed would accept everything under an empty list.
            reasons.push(by_verifier("reference-unreadable", words, Some("restore the verifier's database".into())));
        }
        let mut count = |id: &str, decision: Decision| {
            let first = decision.reasons.first();
            let outcome = if decision.allow {
                Outcome::Pass
            } else {
                Outcome::Fail {
                    got: first.map_or_else(String::new, |reason| reason.message.clone()),
                    want: "allow".into(),
                    subject: first.and_then(|reason| reason.subject.clone()),
                    hint: first.and_then(|reason| reason.hint.clone()),
                }
            };
            if let Some(check) = checks.iter_mut().find(|check| check.id == id) {
                check.outcome = outcome;
            }
            reasons.extend(decision.reasons);
            obligations = obligations.stricter(&decision.obligations);
        };
        count("host-policy", by_host_policy(context, &input, &reference.document));
        if context.challenge.purpose == Purpose::Release {
            match &context.workload_policy {
                Some(bundle) => count("workload-policy", evaluate(Role::Workload, bundle, &input, &reference.document)),
                None if context.workload.is_some() => reasons.push(by_verifier(
                    "workload-withdrawn",
                    "this workload was withdrawn",
                    Some(
                        "its owner registers it again, or the image that replaced it: supervisor register APP.sif"
                            .into(),
                    ),
                )),
                None => reasons.push(by_verifier(
                    "workload-unknown",
                    "this workload is not registered here",
                    Some(crate::service::REGISTER.into()),
                )),
            }
        }
        if context.challenge.purpose == Purpose::Release
            && let Some((workload, bundle)) = context.workload.as_ref().zip(context.workload_policy.as_ref())
            && PolicyDigest::of(bundle) != workload.policy_digest
        {
            reasons.push(by_verifier(
                "workload-policy-digest",
                "the stored policy of this workload is not the one that was registered with it",
                Some("supervisor register APP.sif".into()),
            ));
        }
        if context.challenge.purpose == Purpose::Release
            && let Some(workload) = &context.workload
            && !covers(&approval_selection(&replayed.authentic, context), &workload.least_selection)
        {
            reasons.push(by_verifier(
                "approval-selection",
                "the PCRs that can be approved on this host do not cover the workload's least selection",
                Some("register the workload with a least selection without PCR 10, 15 and the host's run PCR".into()),
            ));
        }
        if context.challenge.purpose == Purpose::Attest
            && let Some(check) = checks.iter_mut().find(|check| check.id == "workload-policy")
        {
            check.outcome = Outcome::NotAppraised { why: "no workload is asked for".into() };
        }
        reasons.extend(super::obligations::unmet(&obligations, replayed, context));
        if context.host.state == HostState::Suspended {
            reasons.push(by_verifier(
                "host-suspended",
                "the host is suspended: it is appraised and gets nothing",
                Some(format!("verifier host show {0}, then verifier host admit {0}", context.host.host)),
            ));
        }
        if let Some(why) = &context.stale {
            reasons.push(by_verifier("stale-bundle", why, Some("verifier policy status".into())));
        }
        if context.host.simulated && !context.allow_simulated && context.challenge.purpose == Purpose::Release {
            reasons.push(by_verifier(
                "simulated-host",
                "nothing is released to a simulated TPM",
                Some("set dangerous_allow_simulated_hosts in verifier.toml, for development only".into()),
            ));
        }
        explain_wants(&mut reasons, &reference.values, replayed.authentic.evidence.event_log.as_deref(), context);
    }
    let allow = replayed.is_some() && reasons.is_empty();
    let release = replayed.and_then(|replayed| replayed.authentic.statement.release.as_ref());
    let verdict = Verdict {
        version: 1,
        id: context.verdict_id.to_string(),
        host: context.host.host.to_string(),
        purpose: purpose(context.challenge.purpose).to_owned(),
        time_ms: context.now_ms,
        allow,
        simulated: context.host.simulated,
        mode: Mode::Enforce,
        checks,
        reasons,
        obligations: if allow { obligations } else { Obligations::default() },
        workload: context.challenge.workload.map(|id| id.to_string()),
        run: release.map(|release| release.run.to_string()),
        basis: basis(context, &reference, evidence_digest),
    };
    (verdict, allow)
}

fn by_verifier(id: &str, message: &str, hint: Option<String>) -> Reason {
    let message = message.to_owned();
    Reason { source: Source::Verifier, id: id.to_owned(), message, subject: None, got: None, want: None, hint }
}

/// `attest` or `release`.
pub(super) const fn purpose(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Attest => "attest",
        Purpose::Release => "release",
    }
}

fn basis(context: &Context, reference: &Known, evidence: [u8; 32]) -> Basis {
    Basis {
        engine: engine_version(),
        host_policy: hex::encode(Sha256::digest(&context.host_policy)),
        workload_policy: context.workload_policy.as_ref().map(|bundle| hex::encode(Sha256::digest(bundle))),
        reference_revision: reference.values.revision,
        reference_digest: hex::encode(reference.digest),
        evidence: hex::encode(evidence),
        remote: context.remote.as_ref().map(RemoteDecision::basis),
    }
}

/// The host policy's decision: the embedded engine's, together with that of an engine elsewhere where one was asked.
pub(super) fn by_host_policy(context: &Context, input: &Input, reference: &ReferenceData) -> Decision {
    let own = evaluate(Role::Host, &context.host_policy, input, reference);
    match &context.remote {
        Some(remote) => remote.with(own),
        None => own,
    }
}

pub(super) fn evaluate(role: Role, bundle: &[u8], input: &Input, reference: &ReferenceData) -> Decision {
    let compiled = super::policies::compiled(role, bundle);
    match compiled {
        Ok(policy) => policy.ready(reference).decide(input),
        Err(e) => Decision {
            allow: false,
            reasons: vec![Reason {
                source: if role == Role::Host { Source::HostPolicy } else { Source::WorkloadPolicy },
                id: "policy-refused".into(),
                message: e,
                subject: None,
                got: None,
                want: None,
                hint: None,
            }],
            obligations: Obligations::default(),
        },
    }
}

/// Compiles a policy from a bundle.
pub(super) fn compile(role: Role, bundle: &[u8]) -> Result<Compiled, String> {
    let bundle = PolicyBundle::parse(bundle).map_err(|e| e.to_string())?;
    Compiled::new(&bundle, role).map_err(|e| e.to_string())
}

/// What policies are given.
pub(super) fn input(replayed: &Replayed, context: &Context) -> Input {
    let authentic = &replayed.authentic;
    let skipped_resets = match authentic.continuity {
        Continuity::Reset { skipped } => skipped,
        Continuity::First | Continuity::Same | Continuity::Restarted => 0,
    };
    Input {
        version: 1,
        purpose: purpose(context.challenge.purpose).to_owned(),
        time_ms: context.now_ms,
        time: rfc3339(context.now_ms),
        host: input::Host {
            id: context.host.host.to_string(),
            name: context.host.name.clone(),
            simulated: context.host.simulated,
            ak_name: Public::parse(&context.host.ak_public).map_or_else(|_| String::new(), |ak| ak.name().to_string()),
            ek_root: context.host.ek_root.clone(),
            tpm: context.host.tpm.iter().map(|label| (label.name.clone(), label.value.clone())).collect(),
        },
        quote: input::Quote {
            firmware_version: format!("{:016x}", authentic.firmware_version),
            reset_count: authentic.reading.reset_count,
            restart_count: authentic.reading.restart_count,
            clock_ms: authentic.reading.clock_ms,
            safe: authentic.reading.safe,
            skipped_resets,
            first: authentic.continuity == Continuity::First,
        },
        pcrs: pcrs_for_policy(authentic),
        boot: replayed.boot(),
        ima: replayed.ima.as_ref().map(|measured| measured.facts(context.ima.as_ref())),
        workload: context.workload.as_ref().map(|workload| input::Workload {
            id: workload.id.to_string(),
            payload_root: workload.payload_root.to_string(),
            policy: workload.policy_digest.to_string(),
            name: workload.name.clone(),
        }),
        run: None,
    }
}

/// What an allow leaves behind.
pub(super) fn update(replayed: &Replayed) -> HostUpdate {
    let reading = replayed.authentic.reading;
    HostUpdate {
        baseline: Baseline {
            reset_count: reading.reset_count,
            restart_count: reading.restart_count,
            clock_ms: reading.clock_ms,
            safe: reading.safe,
            life: replayed.receipts.life,
            run: replayed.run.clone(),
        },
        receipts: replayed.receipts.clone(),
        ima: replayed.ima.as_ref().map(|measured| measured.state(replayed.receipts.life, reading)),
        tls_key: replayed.authentic.statement.tls_key.clone(),
    }
}

/// What an approval can be over: everything quoted in the SHA-256 bank, but not PCR 10, which moves with every file, nor the run PCR, which
/// moves with every receipt.
fn approval_selection(authentic: &Authentic, context: &Context) -> PcrSelection {
    let quoted = authentic.selection.0.iter().find(|bank| bank.alg == HashAlg::Sha256.id());
    let usable = |pcr: &u8| *pcr != context.host.run_pcr && *pcr != countersign_wire::ima::PCR;
    let pcrs: Vec<u8> = quoted.into_iter().flat_map(BankSelection::pcrs).filter(usable).collect();
    PcrSelection::single(HashAlg::Sha256, &pcrs)
}

/// What an allowed release is signed from.
pub(super) fn release_basis(replayed: &Replayed, verdict: &Verdict, context: &Context) -> Option<ReleaseBasis> {
    let authentic = &replayed.authentic;
    let request = authentic.statement.release.as_ref()?;
    let selection = approval_selection(authentic, context);
    let digest = digest_of(HashAlg::Sha256, &selection, |alg, pcr| authentic.pcr(alg, pcr)).ok()?;
    Some(ReleaseBasis {
        workload: request.workload,
        run: request.run,
        object_name: request.object_name.clone(),
        nonce_tpm: request.nonce_tpm.as_slice().try_into().ok()?,
        ak_name: Public::parse(&context.host.ak_public).ok()?.name().as_bytes().to_vec(),
        reset_count: authentic.reading.reset_count,
        restart_count: authentic.reading.restart_count,
        clock_ms: authentic.reading.clock_ms,
        selection,
        pcr_digest: digest.as_bytes().try_into().ok()?,
        lease_s: verdict.obligations.lease_s.unwrap_or(300),
    })
}
