//! Keys that their owner holds: a workload's volume key, wrapped offline for one host. The verifier can say yes, and never reads the key.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::random::system_rng;
use countersign_sif::dsse::SignerKey;
use countersign_sif::escrow::EscrowKey;
use countersign_tpm::ak;
use countersign_tpm::ekcert::{self, CheckedEk, EkCertError};
use countersign_tpm::import::wrap_sealed;
use countersign_tpm::policy::sealed_policy;
use countersign_tpm::public::{Name, Public};
use countersign_wire::artefact::{self, Artefact};
use countersign_wire::challenge::ImportBlob;
use countersign_wire::enrol::HostCard;
use countersign_wire::grant::Grant;
use countersign_wire::id::HostId;
use countersign_wire::release::policy_ref;
use countersign_wire::trust::TrustBundle;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::exit::{Failure, Stage};
use crate::owner::{self, Verifier, read};

/// EK certificates of one card that are looked at, as the verifier does.
const CERTIFICATES: usize = 8;

/// What `grant` is told.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The image.
    pub image: &'a Path,
    /// Trusted signers.
    pub signers: &'a [SignerKey],
    /// What opens the escrow.
    pub escrow: &'a EscrowKey,
    /// The host's card, learned from the host.
    pub host_card: &'a Path,
    /// The owner's own roots: PEM files, or folders of them.
    pub ek_roots: &'a [PathBuf],
    /// The verifier's trust bundle, learned from its operator.
    pub trust: &'a Path,
    /// Whether a simulated TPM may get the key.
    pub dangerous_allow_simulated: bool,
    /// Where the grant goes.
    pub output: Option<&'a Path>,
    /// The verifier that it is given to.
    pub verifier: Option<&'a Verifier<'a>>,
}

fn refuse(what: impl std::fmt::Display, hint: &str) -> Failure {
    Failure::new(Stage::Protect, what.to_string(), hint)
}

/// Checks the host's EK against the owner's own roots, and wraps the volume key to it, for the AK of its card and the keys of the trust bundle.
///
/// The card comes from the host, not from the verifier. That its AK lives in the TPM of its EK is not in it: an AK that does not opens nothing,
/// because the sealed object's policy names it, and the verifier signs for the AK only that it has seen activated by that EK and that quotes
/// with its qualified name.
///
/// # Errors
/// [`Failure`]; nothing is wrapped or written then.
pub fn grant(plan: &Plan<'_>) -> Result<Value, Failure> {
    let hint = "attest show -o host.card makes it, on the host";
    let card: HostCard = artefact_file(plan.host_card, hint)?;
    let hint = "the verifier's operator has it: trust.bundle in the state folder";
    let trust: TrustBundle = artefact_file(plan.trust, hint)?;
    let (ek, simulated) = checked_ek(plan, &card)?;
    let ak = Public::parse(&card.ak_public).map_err(|e| refuse(format!("the card's AK: {e}"), hint))?;
    ak::check(&ak).map_err(|e| refuse(format!("the card's AK: {e}"), "attest enroll makes one that is accepted"))?;
    let name = |public: &[u8]| -> Result<Name, Failure> {
        Ok(Public::parse(public).map_err(|e| refuse(format!("{}: {e}", plan.trust.display()), hint))?.name())
    };
    let (approval, verdict) = (name(&trust.approval_key)?, name(&trust.verdict_key)?);
    let (image, key) = owner::open(plan.image, plan.signers, plan.escrow)?;
    let workload = image.binding().workload;
    let policy = sealed_policy(&approval, &verdict, &policy_ref(&workload, &card.host, ak.name().as_bytes()));
    let import = wrap_sealed(&ek.public, &policy, key.as_slice(), &mut system_rng())
        .map_err(|e| refuse(format!("the host's EK: {e}"), ""))?;
    drop(key);
    let grant = Grant {
        version: 1,
        workload,
        host: card.host,
        ak_name: ak.name().as_bytes().to_vec(),
        approval: approval.as_bytes().to_vec(),
        verdict: verdict.as_bytes().to_vec(),
        import: ImportBlob { public: import.public.to_bytes(), duplicate: import.duplicate, seed: import.seed },
    };
    let file = artefact::to_file(&grant);
    let mut made = json!({"workload": workload, "host": card.host, "ek_root": ek.root, "simulated": simulated});
    let fields = made.as_object_mut();
    if let (Some(path), Some(fields)) = (plan.output, fields) {
        std::fs::write(path, &file).map_err(|e| refuse(format!("{}: {e}", path.display()), "check the folder"))?;
        fields.insert("grant".into(), json!(path));
    }
    if let Some(verifier) = plan.verifier {
        verifier.ask(&json!({"op": "grant-add", "grant": STANDARD.encode(&file)}))?;
    }
    Ok(made)
}

fn artefact_file<T: Artefact>(path: &Path, hint: &str) -> Result<T, Failure> {
    read(Stage::Configuration, path, hint, |bytes| artefact::from_file(&bytes))
}

/// The card's EK, rebuilt from its certificate with a path to one of the owner's roots; and whether it is a simulator's.
fn checked_ek(plan: &Plan<'_>, card: &HostCard) -> Result<(CheckedEk, bool), Failure> {
    let roots = roots(plan.ek_roots)?;
    let bad = |what: String| refuse(what, "the card is not that of one genuine host: attest show -o host.card there");
    let shown = Public::parse(&card.ek_public).map_err(|e| bad(format!("the card's EK: {e}")))?;
    let chain: Vec<Vec<u8>> = card.chain.iter().map(|der| der.to_vec()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut refused: Option<EkCertError> = None;
    let mut found = None;
    for certificate in card.ek_certificates.iter().take(CERTIFICATES) {
        match ekcert::check(&certificate.der, &chain, &roots, now) {
            Ok(checked) if checked.public == shown => found = found.or(Some(checked)),
            Ok(_) => {}
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    let Some(ek) = found else {
        return Err(match refused {
            Some(e) => refuse(
                format!("the card's EK certificate: {e}"),
                "--ek-root takes the roots of TPM vendors that you trust, as PEM files or a folder of them",
            ),
            None => bad("the card's EK is not the one that its certificate certifies".into()),
        });
    };
    let id = ek.public.spki().map(|spki| HostId::of_ek_spki(&spki));
    if id != Some(card.host) {
        return Err(bad(format!("the card says host {}, and its EK is another host's", card.host)));
    }
    // swtpm's own CA is a development CA whatever its certificates say.
    let simulated = ek.says_simulator() || ek.root.to_ascii_lowercase().contains("swtpm");
    if simulated && !plan.dangerous_allow_simulated {
        return Err(refuse(
            "the host's TPM is a simulator: whoever runs it reads the key",
            "--dangerous-allow-simulated grants it nevertheless, for development",
        ));
    }
    Ok((ek, simulated))
}

/// Every certificate in the files, and in the files of the folders.
fn roots(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Failure> {
    let hint = "--ek-root takes PEM files with CA certificates, or a folder of them";
    let bad = |path: &Path, e: &dyn std::fmt::Display| {
        Failure::new(Stage::Configuration, format!("{}: {e}", path.display()), hint)
    };
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| bad(path, &e))?;
            let mut inside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            inside.retain(|path| path.is_file());
            inside.sort();
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    let mut roots = Vec::new();
    for path in &files {
        let pem = read(Stage::Configuration, path, hint, Ok::<_, std::io::Error>)?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let der = certificate.map_err(|e| bad(path, &e))?;
            ekcert::check_root(&der).map_err(|e| bad(path, &e))?;
            roots.push(der.to_vec());
        }
    }
    if roots.is_empty() {
        return Err(Failure::new(Stage::Configuration, "no EK root: no certificate in what --ek-root names", hint));
    }
    Ok(roots)
}
