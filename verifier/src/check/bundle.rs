//! `verifier check bundle`: recompute a verdict from its evidence, with no network, no TPM and no database.

use countersign_policy::verdict::Verdict;
use countersign_tpm::ekcert;
use countersign_tpm::public::Public;
use countersign_wire::artefact;
use countersign_wire::cbor;
use countersign_wire::evidence::Evidence;
use countersign_wire::record::{Bundle, Record, signed_message};
use countersign_wire::trust::TrustBundle;
use p256::ecdsa::signature::Verifier as _;
use p256::pkcs8::DecodePublicKey as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{CheckError, code};
use crate::appraise::{Context, RemoteAnswer, appraise, verdict_bytes};
use crate::store::from_cbor;

/// A bundle whose verdict was recomputed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedBundle {
    /// Verdict id.
    pub verdict: String,
    /// What was decided.
    pub allow: bool,
    /// `attest` or `release`.
    pub purpose: String,
    /// Host id.
    pub host: String,
    /// Workload id.
    pub workload: Option<String>,
    /// Whether the trust bundle is the one that was given; false for `--unanchored`.
    pub anchored: bool,
    /// SHA-256 of the trust bundle.
    pub trust: String,
    /// Whether the host's TPM is simulated.
    pub simulated: bool,
    /// What rests on the verifier's word alone.
    pub rests_on_the_verifier: Vec<String>,
}

/// Checks a bundle file. `trust` is the SHA-256 of the trust bundle that the auditor got elsewhere; none checks consistency only.
///
/// # Errors
/// [`CheckError`].
pub fn check_bundle(file: &[u8], trust: Option<[u8; 32]>) -> Result<CheckedBundle, CheckError> {
    let input = |e: String, want: &str| CheckError::new(code::INPUT, "bundle", e, want);
    let bundle: Bundle = artefact::from_file(file).map_err(|e| input(e.to_string(), "an evidence bundle"))?;
    let digest = TrustBundle::digest(&bundle.trust);
    if let Some(want) = trust
        && want != digest
    {
        return Err(CheckError::new(code::TRUST, "trust", hex::encode(digest), hex::encode(want)).about("trust bundle"));
    }
    let anchor: TrustBundle = cbor::decode(&bundle.trust).map_err(|e| input(e.to_string(), "a trust bundle"))?;
    let key = p256::ecdsa::VerifyingKey::from_public_key_der(&anchor.log_key)
        .map_err(|e| input(e.to_string(), "a P-256 log key"))?;
    let signature = p256::ecdsa::Signature::from_der(&bundle.signature)
        .map_err(|e| CheckError::new(code::SIGNATURE, "record-signature", e.to_string(), "ECDSA (DER)"))?;
    key.verify(&signed_message(&bundle.record), &signature).map_err(|_| {
        CheckError::new(
            code::SIGNATURE,
            "record-signature",
            "does not verify",
            "a signature by the trust bundle's log key",
        )
    })?;
    let record: Record = cbor::decode(&bundle.record).map_err(|e| input(e.to_string(), "a record"))?;
    let context: Context = from_cbor(&record.context).map_err(|e| input(e.to_string(), "a context"))?;
    check_enrolment(&record, &context)?;
    load_sets(&bundle, &context)?;
    let judged = appraise(&record.evidence, &context);
    let recomputed = verdict_bytes(&judged.verdict);
    if recomputed != record.verdict {
        let at = recomputed.iter().zip(&record.verdict).take_while(|(a, b)| a == b).count();
        let show = |bytes: &[u8]| {
            let from = at.saturating_sub(20);
            let part: Vec<u8> = bytes.iter().skip(from).take(100).copied().collect();
            String::from_utf8_lossy(&part).into_owned()
        };
        return Err(CheckError::new(code::VERDICT, "verdict", show(&record.verdict), show(&recomputed))
            .about(format!("byte {at}")));
    }
    let verdict: Verdict = judged.verdict;
    let mut rests =
        vec!["that the AK lives in the certified TPM (credential activation cannot be shown to others)".to_owned()];
    if let Some(remote) = &context.remote {
        rests.push(match &remote.answer {
            RemoteAnswer::Document(_) => format!(
                "that {} decided so by revision {} of {} (decision id {}); allow and reason ids are the embedded engine's too",
                remote.engine,
                remote.revision,
                remote.bundle,
                remote.decision_id.as_deref().unwrap_or("none")
            ),
            RemoteAnswer::Failed { id, .. } => format!("that {} gave no usable answer ({id})", remote.engine),
        });
    }
    if let Some(why) = &context.stale {
        rests.push(format!("that its policy bundle was stale ({why})"));
    }
    let run = context.host.baseline.as_ref().and_then(|baseline| baseline.run.as_ref());
    let part = cbor::decode::<Evidence>(&record.evidence).is_ok_and(|evidence| evidence.run_from.is_some());
    if let Some(run) = run.filter(|_| part) {
        rests.push(format!(
            "that the first {} entries of the run log came with earlier evidence and replayed",
            run.entries
        ));
    }
    if !context.vouched.is_empty() {
        rests.push("that receipts unknown to its database were its own".to_owned());
    }
    Ok(CheckedBundle {
        verdict: verdict.id,
        allow: verdict.allow,
        purpose: verdict.purpose,
        host: verdict.host,
        workload: verdict.workload,
        anchored: trust.is_some(),
        trust: hex::encode(digest),
        simulated: verdict.simulated,
        rests_on_the_verifier: rests,
    })
}

/// The parts of a bundle file. Nothing is checked.
pub(crate) fn open(file: &[u8]) -> Result<(Bundle, Record), CheckError> {
    let input = |e: String, want: &str| CheckError::new(code::INPUT, "bundle", e, want);
    let bundle: Bundle = artefact::from_file(file).map_err(|e| input(e.to_string(), "an evidence bundle"))?;
    let record: Record = cbor::decode(&bundle.record).map_err(|e| input(e.to_string(), "a record"))?;
    Ok((bundle, record))
}

/// The IMA reference sets that the signed context names are those that came beside the record.
pub(crate) fn load_sets(bundle: &Bundle, context: &Context) -> Result<(), CheckError> {
    let Some(ima) = context.ima.as_ref().filter(|ima| !ima.sets.is_empty()) else { return Ok(()) };
    let given = bundle.sets.as_deref().unwrap_or_default();
    let bad = |got: String, want: String| CheckError::new(code::INPUT, "ima-reference", got, want).about("bundle");
    if given.len() != ima.sets.len() {
        return Err(bad(format!("{} reference sets", given.len()), format!("{}", ima.sets.len())));
    }
    for (set, given) in ima.sets.iter().zip(given) {
        let digest: [u8; 32] = Sha256::digest(given.as_slice()).into();
        if digest != set.digest {
            return Err(bad(hex::encode(digest), format!("{} (set {:?})", hex::encode(set.digest), set.name)));
        }
    }
    if crate::ima::loaded(&ima.reference()).is_none() {
        let compiled = crate::ima::Reference::compile(given.iter().map(|set| set.as_slice()));
        crate::ima::remember(compiled.map_err(|e| bad(e.to_string(), "reference sets".into()))?);
    }
    Ok(())
}

/// The EK in the context is the one that the certificate certifies, under the root that is named.
fn check_enrolment(record: &Record, context: &Context) -> Result<(), CheckError> {
    let enrolment = &record.enrolment;
    let bad = |got: String, want: &str| CheckError::new(code::TRUST, "ek-certificate", got, want);
    let chain: Vec<Vec<u8>> = enrolment.chain.iter().map(|der| der.to_vec()).collect();
    let ek = Public::parse(&enrolment.ek_public).map_err(|e| bad(e.to_string(), "an EK"))?;
    // An EK without a certificate was listed by the verifier's operator: there is nothing else to check, and the verdict says so.
    let certified = if enrolment.ek_certificate.is_empty() && context.host.ek_root == "allow-list" {
        ek.clone()
    } else {
        ekcert::check(&enrolment.ek_certificate, &chain, std::slice::from_ref(&enrolment.root), enrolment.time)
            .map_err(|e| bad(e.to_string(), "a path to the root in the record"))?
            .public
    };
    if certified != ek || ek.name().as_bytes() != context.host.ek_name {
        return Err(bad("another EK".into(), "the EK that the certificate certifies"));
    }
    let spki = ek.spki().unwrap_or_default();
    if countersign_wire::id::HostId::of_ek_spki(&spki) != context.host.host {
        return Err(bad("a host id of another EK".into(), "SHA-256 of the EK's public key"));
    }
    let evidence: Result<Evidence, _> = cbor::decode(&record.evidence);
    if evidence.is_ok_and(|evidence| evidence.host != context.host.host) {
        return Err(bad("evidence of another host".into(), "the enrolled host"));
    }
    Ok(())
}

/// `--trust FILE|SHA256`: the digest meant.
///
/// # Errors
/// Neither 64 hex digits nor a trust bundle file.
pub(crate) fn trust_digest(text: &str) -> Result<[u8; 32], CheckError> {
    let mut digest = [0; 32];
    if hex::decode_to_slice(text, &mut digest).is_ok() {
        return Ok(digest);
    }
    let bad = |e: String| CheckError::new(code::INPUT, "trust", e, "a trust bundle's file or its SHA-256").about(text);
    let file = super::read_bounded(std::path::Path::new(text), artefact::longest::<TrustBundle>())
        .map_err(|e| bad(e.to_string()))?;
    match artefact::body::<TrustBundle>(&file) {
        Ok(body) => Ok(Sha256::digest(body).into()),
        Err(e) => Err(bad(e.to_string())),
    }
}
