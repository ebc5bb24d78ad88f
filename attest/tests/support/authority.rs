//! A verifier in a few lines, with keys of its own: for what the real one never signs.

use countersign_attest::endorsement::{Ak, AkBlob, Ek, EndorsementAuth};
use countersign_attest::random::system_rng;
use countersign_attest::tpm::Tpm;
use countersign_attest::unseal::Waiting;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::ek::Template;
use countersign_tpm::import::{Import, wrap_sealed};
use countersign_tpm::pcr::{PcrSelection, pcr_digest};
use countersign_tpm::policy::{Approved, sealed_policy};
use countersign_tpm::public::{Curve, Key, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_wire::answer::Release;
use countersign_wire::challenge::Bank;
use countersign_wire::id::{HostId, WorkloadId};
use countersign_wire::release::{approval_hash, policy_ref, unseal_cp_hash, verdict_hash};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature as EcdsaSignature, SigningKey};
use p256::elliptic_curve::Generate as _;

pub(crate) const SECRET: &[u8] = &[0x5a; 64];
pub(crate) const PCRS: [u8; 3] = [0, 7, 14];

/// An authority key of the verifier.
pub(crate) struct Authority(SigningKey);

impl Authority {
    pub(crate) fn new() -> Self {
        Self(SigningKey::generate_from_rng(&mut system_rng()))
    }

    pub(crate) fn public(&self) -> Public {
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

    pub(crate) fn sign(&self, digest: &[u8; 32]) -> Vec<u8> {
        let signature: EcdsaSignature = self.0.sign_prehash(digest).unwrap();
        let (r, s) = (signature.r().to_bytes(), signature.s().to_bytes());
        Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes()
    }
}

/// A host and its verifier in one.
pub(crate) struct Broker {
    pub(crate) ek: Ek,
    pub(crate) approval: Authority,
    pub(crate) verdict: Authority,
    pub(crate) reference: [u8; 32],
    pub(crate) import: Import,
}

impl Broker {
    pub(crate) fn new(tpm: &mut Tpm, template: Template) -> Self {
        let ek = Ek::open(tpm, template, None, &EndorsementAuth::default()).unwrap();
        let (approval, verdict) = (Authority::new(), Authority::new());
        let reference = policy_ref(&WorkloadId([1; 32]), &HostId([2; 32]), b"an AK's Name");
        let policy = sealed_policy(&approval.public().name(), &verdict.public().name(), &reference);
        let import = wrap_sealed(&ek.key.public, &policy, SECRET, &mut system_rng()).unwrap();
        Self { ek, approval, verdict, reference, import }
    }

    pub(crate) fn approved(&self, tpm: &mut Tpm) -> Approved {
        let selection = PcrSelection::single(HashAlg::Sha256, &PCRS);
        let values: Vec<Digest> = tpm.read_pcrs(&selection).unwrap().into_iter().map(|(_, _, value)| value).collect();
        let digest = pcr_digest(HashAlg::Sha256, &values).as_bytes().try_into().unwrap();
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

    pub(crate) fn release(&self, waiting: &Waiting, approved: &Approved, expiration: u32) -> Release {
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
