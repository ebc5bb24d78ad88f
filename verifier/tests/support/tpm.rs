//! A TPM in software: real structures by real keys. It does what a TPM never would, which is what the tests need of it.

use countersign_tpm::alg::HashAlg;
use countersign_tpm::attest::ClockInfo;
use countersign_tpm::codec::Reader;
use countersign_tpm::ek::{CertifiedKey, Template};
use countersign_tpm::kdf::{hmac, kdfa, kdfe};
use countersign_tpm::public::{Curve, Key, Public};
use countersign_tpm::signature::Signature;
use countersign_tpm::wrap::cfb_decrypt;
use countersign_tpm::{ak, ak::qualified_name};
use countersign_verifier::keys::rng;
use countersign_wire::id::HostId;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::DecodePrivateKey as _;

/// An EK (P-256), an AK under it, and a clock.
pub(crate) struct SoftTpm {
    ek_key: p256::SecretKey,
    pub(crate) ek: Public,
    ak_key: SigningKey,
    pub(crate) clock: ClockInfo,
}

impl SoftTpm {
    pub(crate) fn new() -> Self {
        Self::with_ek(&rcgen::KeyPair::generate().unwrap())
    }

    /// A TPM whose EK is a key that was certified elsewhere.
    pub(crate) fn with_ek(key: &rcgen::KeyPair) -> Self {
        let ek_key = p256::SecretKey::from_pkcs8_der(&key.serialize_der()).unwrap();
        let point = SigningKey::from(&ek_key).verifying_key().to_sec1_point(false);
        let (x, y) = (point.x().unwrap().to_vec(), point.y().unwrap().to_vec());
        let (_, ek) = Template::rebuild(&CertifiedKey::Ecc { curve: Curve::P256, x, y }).unwrap();
        let clock = ClockInfo { clock: 100_000, reset_count: 5, restart_count: 0, safe: true };
        Self { ek_key, ek, ak_key: SigningKey::generate_from_rng(&mut rng()), clock }
    }

    /// TPM2_Clear and a new enrolment: another AK under the same EK.
    pub(crate) fn new_ak(&mut self) {
        self.ak_key = SigningKey::generate_from_rng(&mut rng());
    }

    pub(crate) fn host(&self) -> HostId {
        HostId::of_ek_spki(&self.ek.spki().unwrap())
    }

    /// The AK's public area.
    pub(crate) fn ak(&self) -> Public {
        let point = self.ak_key.verifying_key().to_sec1_point(false);
        let mut public = ak::template();
        if let Key::Ecc { x, y, .. } = &mut public.key {
            (*x, *y) = (point.x().unwrap().to_vec(), point.y().unwrap().to_vec());
        }
        public
    }

    /// qualifiedSigner of quotes by the AK.
    pub(crate) fn signer(&self) -> Vec<u8> {
        qualified_name(&self.ek.name(), &self.ak().name()).unwrap().as_bytes().to_vec()
    }

    /// TPMT_SIGNATURE by the AK.
    pub(crate) fn sign(&self, attest: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.ak_key.sign(attest);
        let (r, s) = (signature.r().to_bytes(), signature.s().to_bytes());
        Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes()
    }

    /// TPM2_ActivateCredential (Part 1, 24; C.6.3); `None` when the credential is for another EK or AK.
    pub(crate) fn activate(&self, blob: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
        let (x, y) =
            Reader::all(secret, "TPMS_ECC_POINT", |reader| Ok((reader.tpm2b(32, "x")?, reader.tpm2b(32, "y")?)))
                .ok()?;
        let theirs = p256::PublicKey::from_sec1_bytes(&[&[4], x, y].concat()).ok()?;
        let z = p256::ecdh::diffie_hellman(self.ek_key.to_nonzero_scalar(), theirs.as_affine());
        let ours = self.ek.ecc_point()?;
        let seed = kdfe(HashAlg::Sha256, z.raw_secret_bytes(), "IDENTITY", x, ours.get(1..33)?, 256)?;
        let (mac, encrypted) =
            Reader::all(blob, "TPM2B_ID_OBJECT", |reader| Ok((reader.tpm2b(32, "integrity")?, reader.rest()))).ok()?;
        let name = self.ak().name();
        let key = kdfa(HashAlg::Sha256, &seed, "INTEGRITY", &[], &[], 256)?;
        if hmac(HashAlg::Sha256, &key, &[encrypted, name.as_bytes()])?.as_bytes() != mac {
            return None;
        }
        let key = kdfa(HashAlg::Sha256, &seed, "STORAGE", name.as_bytes(), &[], 128)?;
        let mut data = encrypted.to_vec();
        assert!(cfb_decrypt(&key, &[0; 16], &mut data));
        Reader::all(&data, "TPM2B_DIGEST", |reader| reader.tpm2b(32, "secret").map(<[u8]>::to_vec)).ok()
    }
}
