//! The release protocol on a real swtpm, with both kinds of EK; the test plays the verifier.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use countersign_attest::endorsement::{Ak, AkBlob, Ek, EndorsementAuth, find_certificates};
use countersign_attest::random::system_rng;
use countersign_attest::tpm::{Tpm, TpmError};
use countersign_attest::unseal::{UnsealError, Waiting};
use countersign_tpm::ak;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::credential::make_credential;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert::certified_key;
use countersign_tpm::import::{Import, wrap_sealed};
use countersign_tpm::pcr::{PcrSelection, pcr_digest};
use countersign_tpm::policy::{Approved, sealed_policy};
use countersign_tpm::public::{Curve, Key, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_tpm_sim::{Error, Options, Sim};
use countersign_wire::answer::Release;
use countersign_wire::challenge::Bank;
use countersign_wire::id::{HostId, WorkloadId};
use countersign_wire::release::{approval_hash, policy_ref, unseal_cp_hash, verdict_hash};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature as EcdsaSignature, SigningKey};
use p256::elliptic_curve::Generate as _;
use tempfile::TempDir;

const SECRET: &[u8] = &[0x5a; 64];
const PCRS: [u8; 3] = [0, 7, 14];

fn sim() -> Option<(TempDir, Sim)> {
    let dir = TempDir::new().unwrap();
    match Sim::create(dir.path().join("t"), &Options::named("node-1")) {
        Ok(mut sim) => {
            sim.start().unwrap();
            Some((dir, sim))
        }
        Err(Error::MissingTool(tool)) => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn connect(sim: &Sim) -> Tpm {
    Tpm::connect(&sim.tpm_arg().parse().unwrap()).unwrap()
}

/// An authority key of the verifier.
struct Authority(SigningKey);

impl Authority {
    fn new() -> Self {
        Self(SigningKey::generate_from_rng(&mut system_rng()))
    }

    fn public(&self) -> Public {
        let point = self.0.verifying_key().to_sec1_point(false);
        Public {
            name_alg: HashAlg::Sha256,
            attributes: attributes::USER_WITH_AUTH | attributes::SIGN,
            auth_policy: Vec::new(),
            key: Key::Ecc {
                symmetric: None,
                scheme: Scheme::Ecdsa(HashAlg::Sha256),
                curve: Curve::P256,
                x: point.x().unwrap().to_vec(),
                y: point.y().unwrap().to_vec(),
            },
        }
    }

    fn sign(&self, digest: &[u8; 32]) -> Vec<u8> {
        let signature: EcdsaSignature = self.0.sign_prehash(digest).unwrap();
        let (r, s) = (signature.r().to_bytes(), signature.s().to_bytes());
        Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes()
    }
}

/// A host and its verifier in one.
struct Stage {
    ek: Ek,
    approval: Authority,
    verdict: Authority,
    reference: [u8; 32],
    import: Import,
}

impl Stage {
    fn new(tpm: &mut Tpm, template: Template) -> Self {
        let ek = Ek::open(tpm, template, None, &EndorsementAuth::default()).unwrap();
        let (approval, verdict) = (Authority::new(), Authority::new());
        let reference = policy_ref(&WorkloadId([1; 32]), &HostId([2; 32]), b"an AK's Name");
        let policy = sealed_policy(&approval.public().name(), &verdict.public().name(), &reference);
        let import = wrap_sealed(&ek.key.public, &policy, SECRET, &mut system_rng()).unwrap();
        Self { ek, approval, verdict, reference, import }
    }

    fn approved(&self, tpm: &mut Tpm, sim: &Sim) -> Approved {
        let selection = PcrSelection::single(HashAlg::Sha256, &PCRS);
        let values: Vec<Digest> = tpm.read_pcrs(&selection).unwrap().into_iter().map(|(_, _, value)| value).collect();
        let digest = pcr_digest(HashAlg::Sha256, &values).as_bytes().try_into().unwrap();
        let _ = sim;
        let blob = AkBlob::create(tpm, &self.ek).unwrap();
        let ak = Ak::load(tpm, &self.ek, &blob).unwrap();
        let (quoted, _) = tpm.quote(&ak.key.object, b"nonce", &selection).unwrap();
        ak.close(tpm).unwrap();
        let clock = Quote::parse(&quoted).unwrap().clock;
        Approved {
            reset_count: clock.reset_count,
            restart_count: clock.restart_count,
            clock_limit: clock.clock + 600_000,
            selection,
            pcr_digest: digest,
        }
    }

    fn release(&self, waiting: &Waiting, approved: &Approved, expiration: u32) -> Release {
        let cp_hash = unseal_cp_hash(waiting.object_name());
        let nonce: [u8; 32] = waiting.nonce_tpm().try_into().unwrap();
        Release {
            approval_key: self.approval.public().to_bytes(),
            verdict_key: self.verdict.public().to_bytes(),
            policy_ref: self.reference,
            selection: Bank { alg: HashAlg::Sha256.id(), pcrs: PCRS.to_vec() },
            pcr_digest: approved.pcr_digest,
            reset_count: approved.reset_count,
            restart_count: approved.restart_count,
            clock_limit: approved.clock_limit,
            approval: self.approval.sign(&approval_hash(&approved.digest(), &self.reference)),
            expiration,
            verdict: self.verdict.sign(&verdict_hash(&nonce, expiration, &cp_hash, &self.reference)),
            lease_s: 60,
        }
    }
}

fn code(error: &UnsealError) -> u32 {
    match error {
        UnsealError::Tpm(TpmError::Refused { code, .. }) => code.0,
        UnsealError::Tpm(_) | UnsealError::Release(_) => panic!("{error}"),
    }
}

#[test]
fn released_with_both_kinds_of_ek_and_within_the_command_budget() {
    let Some((_dir, sim)) = sim() else { return };
    for (template, budget) in [(Template::Rsa2048, 22), (Template::P384, 25)] {
        let mut tpm = connect(&sim);
        let stage = Stage::new(&mut tpm, template);
        let approved = stage.approved(&mut tpm, &sim);
        let before = tpm.commands();
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
        let private = waiting.private.clone();
        let release = stage.release(&waiting, &approved, 30);
        let secret = waiting.unseal(&mut tpm, &release).unwrap();
        assert_eq!(secret.as_slice(), SECRET);
        assert!(tpm.commands() - before <= budget, "{} commands", tpm.commands() - before);

        // Later starts load what Import returned.
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, Some(&private)).unwrap();
        let release = stage.release(&waiting, &approved, 30);
        assert_eq!(waiting.unseal(&mut tpm, &release).unwrap().as_slice(), SECRET);
        // Nothing is left loaded.
        assert!(tpm.handles(0x8000_0000).unwrap().is_empty());
        assert!(tpm.handles(0x0200_0000).unwrap().is_empty() && tpm.handles(0x0300_0000).unwrap().is_empty());
    }
}

#[test]
fn looser_or_foreign_signatures_are_refused_by_the_tpm() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Stage::new(&mut tpm, Template::Rsa2048);
    let approved = stage.approved(&mut tpm, &sim);
    type Change = fn(&Stage, &Waiting, &mut Release);
    let changes: [(&str, u32, Change); 7] = [
        ("a verdict for another session", 0x5db, |s, w, r| {
            let cp_hash = unseal_cp_hash(w.object_name());
            r.verdict = s.verdict.sign(&verdict_hash(&[7; 32], 30, &cp_hash, &s.reference));
        }),
        ("a verdict for another object", 0x5db, |s, w, r| {
            let nonce = w.nonce_tpm().try_into().unwrap();
            r.verdict = s.verdict.sign(&verdict_hash(&nonce, 30, &unseal_cp_hash(b"other"), &s.reference));
        }),
        ("a raised expiration", 0x5db, |_, _, r| r.expiration = 300),
        ("a verdict by the approval key", 0x5db, |s, w, r| {
            let nonce = w.nonce_tpm().try_into().unwrap();
            let hash = verdict_hash(&nonce, 30, &unseal_cp_hash(w.object_name()), &s.reference);
            r.verdict = s.approval.sign(&hash);
        }),
        ("an approval for another boot", 0x2db, |_, _, r| r.restart_count += 1),
        ("a later clock limit", 0x2db, |_, _, r| r.clock_limit += 1),
        ("another workload's reference", 0x2db, |_, _, r| {
            r.policy_ref = policy_ref(&WorkloadId([9; 32]), &HostId([2; 32]), b"an AK's Name");
        }),
    ];
    for (what, expected, change) in changes {
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
        let mut release = stage.release(&waiting, &approved, 30);
        change(&stage, &waiting, &mut release);
        let error = waiting.unseal(&mut tpm, &release).unwrap_err();
        assert_eq!(code(&error), expected, "{what}: {error}");
        tpm = connect_again(tpm, &sim);
    }
}

/// A failed release may leave objects behind, as a dead program would; the next connection clears them.
fn connect_again(old: Tpm, sim: &Sim) -> Tpm {
    drop(old);
    let mut tpm = connect(sim);
    tpm.flush_leftovers().unwrap();
    tpm
}

#[test]
fn changed_pcrs_and_resets_void_an_approval() {
    let Some((_dir, mut sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Stage::new(&mut tpm, Template::P384);
    let approved = stage.approved(&mut tpm, &sim);

    let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
    let release = stage.release(&waiting, &approved, 30);
    tpm.extend(7, &[HashAlg::Sha256.digest(&[b"another boot loader"])]).unwrap();
    let error = waiting.unseal(&mut tpm, &release).unwrap_err();
    assert_eq!(code(&error), 0x1c4, "{error}");
    drop(tpm);

    sim.reset().unwrap();
    let mut tpm = connect(&sim);
    let ek = Ek::open(&mut tpm, Template::P384, Some(&stage.ek.key.public), &EndorsementAuth::default()).unwrap();
    let waiting = Waiting::open(&mut tpm, &ek, &stage.import, None).unwrap();
    // The old approval, with a fresh verdict: PolicyCounterTimer says no.
    let fresh = stage.release(&waiting, &approved, 30);
    let error = waiting.unseal(&mut tpm, &fresh).unwrap_err();
    assert_eq!(code(&error), 0x126, "{error}");
}

#[test]
fn credential_and_quote() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let (certificates, _) = find_certificates(&mut tpm).unwrap();
    let templates: Vec<Template> = certificates.iter().map(|found| found.template).collect();
    assert_eq!(templates, [Template::Rsa2048, Template::P384]);
    for found in certificates {
        let (_, rebuilt) = Template::rebuild(&certified_key(&found.der).unwrap()).unwrap();
        let mut ek = Ek::open(&mut tpm, found.template, Some(&rebuilt), &EndorsementAuth::default()).unwrap();
        assert!(ek.make_persistent(&mut tpm));
        let blob = AkBlob::create(&mut tpm, &ek).unwrap();
        ak::check(&blob.public).unwrap();
        let mut ak = Ak::load(&mut tpm, &ek, &blob).unwrap();
        let credential = make_credential(&rebuilt, &blob.public.name(), b"32 bytes", &mut system_rng()).unwrap();
        let opened = ak.activate(&mut tpm, &ek, &credential.blob, &credential.secret).unwrap();
        assert_eq!(opened.as_slice(), b"32 bytes");
        let other = make_credential(&rebuilt, &rebuilt.name(), b"32 bytes", &mut system_rng()).unwrap();
        assert!(ak.activate(&mut tpm, &ek, &other.blob, &other.secret).is_err(), "a credential for another key");
        tpm.flush_leftovers_but(&[ak.key.object.handle]).unwrap();

        assert!(ak.make_persistent(&mut tpm));
        let ak = Ak::open(&mut tpm, &ek, &blob).unwrap();
        let selection = PcrSelection::single(HashAlg::Sha256, &(0..15).collect::<Vec<_>>());
        let (quoted, signature) = tpm.quote(&ak.key.object, &[3; 32], &selection).unwrap();
        let quote = Quote::parse(&quoted).unwrap();
        let qualified = ak::qualified_name(&rebuilt.name(), &blob.public.name()).unwrap();
        assert_eq!(quote.qualified_signer, qualified.as_bytes());
        assert_eq!(quote.extra_data, [3; 32]);
        let values: Vec<Digest> = tpm.read_pcrs(&selection).unwrap().into_iter().map(|(_, _, value)| value).collect();
        assert_eq!(quote.pcr_digest, pcr_digest(HashAlg::Sha256, &values).as_bytes());
        let fixed = Signature::parse(&signature).unwrap().to_fixed(32).unwrap();
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&blob.public.ecc_point().unwrap()).unwrap();
        let fixed = EcdsaSignature::from_slice(&fixed).unwrap();
        p256::ecdsa::signature::Verifier::verify(&key, &quoted, &fixed).unwrap();
    }
}
