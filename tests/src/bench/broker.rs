//! A verifier in a few lines, for the unseal path alone: it signs at once what a real one signs after an appraisal.

use anyhow::Context as _;
use countersign_attest::endorsement::Ek;
use countersign_attest::random::system_rng;
use countersign_attest::unseal::Waiting;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::attest::Quote;
use countersign_tpm::import::{Import, wrap_sealed};
use countersign_tpm::policy::{Approved, sealed_policy};
use countersign_tpm::public::{Curve, Key, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_wire::answer::Release;
use countersign_wire::challenge::Bank;
use countersign_wire::id::{HostId, WorkloadId};
use countersign_wire::release::{approval_hash, policy_ref, unseal_cp_hash, verdict_hash};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::Private;

/// Milliseconds after the quote until which an approval holds, and seconds from the session's start that a verdict does.
const APPROVAL_MS: u64 = 600_000;
const VERDICT_S: u32 = 30;

/// An authority key.
struct Authority {
    key: EcKey<Private>,
    public: Public,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = EcKey::generate(&group)?;
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        key.public_key().affine_coordinates(&group, &mut x, &mut y, &mut *BigNumContext::new()?)?;
        let public = Public {
            name_alg: HashAlg::Sha256,
            attributes: attributes::USER_WITH_AUTH | attributes::SIGN,
            auth_policy: Vec::new(),
            key: Key::Ecc {
                symmetric: None,
                scheme: Scheme::Ecdsa(HashAlg::Sha256),
                curve: Curve::P256,
                x: x.to_vec_padded(32)?,
                y: y.to_vec_padded(32)?,
            },
        };
        Ok(Self { key, public })
    }

    fn sign(&self, digest: &[u8; 32]) -> anyhow::Result<Vec<u8>> {
        let signature = EcdsaSig::sign(digest, &self.key)?;
        let (r, s) = (signature.r().to_vec_padded(32)?, signature.s().to_vec_padded(32)?);
        Ok(Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes())
    }
}

/// The keys, and a secret sealed under them.
pub(super) struct Broker {
    approval: Authority,
    verdict: Authority,
    reference: [u8; 32],
    pub(super) import: Import,
}

impl Broker {
    /// Seals a secret to an EK.
    pub(super) fn new(ek: &Ek, secret: &[u8]) -> anyhow::Result<Self> {
        let (approval, verdict) = (Authority::new()?, Authority::new()?);
        let reference = policy_ref(&WorkloadId([1; 32]), &HostId([2; 32]), b"the Name of an AK");
        let policy = sealed_policy(&approval.public.name(), &verdict.public.name(), &reference);
        let import = wrap_sealed(&ek.key.public, &policy, secret, &mut system_rng())?;
        Ok(Self { approval, verdict, reference, import })
    }

    /// Approves what was quoted, for the session that waits.
    pub(super) fn answer(&self, waiting: &Waiting, quote: &[u8]) -> anyhow::Result<Release> {
        let quote = Quote::parse(quote)?;
        let bank = quote.selection.0.first().context("an empty selection")?;
        let (alg, pcrs) = (bank.alg, bank.pcrs().collect());
        let approved = Approved {
            reset_count: quote.clock.reset_count,
            restart_count: quote.clock.restart_count,
            clock_limit: quote.clock.clock.saturating_add(APPROVAL_MS),
            selection: quote.selection.clone(),
            pcr_digest: quote.pcr_digest.try_into()?,
        };
        let cp_hash = unseal_cp_hash(waiting.object_name());
        let nonce: [u8; 32] = waiting.nonce_tpm().try_into()?;
        Ok(Release {
            approval_key: self.approval.public.to_bytes(),
            verdict_key: self.verdict.public.to_bytes(),
            policy_ref: self.reference,
            selection: Bank { alg, pcrs },
            pcr_digest: approved.pcr_digest,
            reset_count: approved.reset_count,
            restart_count: approved.restart_count,
            clock_limit: approved.clock_limit,
            approval: self.approval.sign(&approval_hash(&approved.digest(), &self.reference))?,
            expiration: VERDICT_S,
            verdict: self.verdict.sign(&verdict_hash(&nonce, VERDICT_S, &cp_hash, &self.reference))?,
            lease_s: 60,
        })
    }
}
