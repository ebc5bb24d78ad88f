//! Credentials and import blobs, opened again by an independent software TPM: only the right key, Name and label fit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::sync::LazyLock;

use countersign_tpm::alg::HashAlg;
use countersign_tpm::codec::Reader;
use countersign_tpm::credential::make_credential;
use countersign_tpm::ek::{CertifiedKey, Template};
use countersign_tpm::import::wrap_sealed;
use countersign_tpm::kdf::{hmac, kdfa, kdfe};
use countersign_tpm::public::{Curve, Key, Name, Public, attributes};
use countersign_tpm::wrap::{Use, WrapError, cfb_decrypt, cfb_encrypt, seed};
use rand_core::UnwrapErr;
use rsa::traits::PublicKeyParts as _;

type Rng = UnwrapErr<getrandom::SysRng>;

fn rng() -> Rng {
    UnwrapErr(getrandom::SysRng)
}

/// An EK with its private key.
enum Tpm {
    Rsa(Public, Box<rsa::PrivateKey>),
    P256(Public, p256::SecretKey),
    P384(Public, p384::SecretKey),
}

macro_rules! ecc {
    ($curve:ident, $variant:ident, $curve_id:expr) => {{
        use $curve::elliptic_curve::Generate as _;
        use $curve::elliptic_curve::sec1::ToSec1Point as _;
        let secret = $curve::SecretKey::generate_from_rng(&mut rng());
        let point = secret.public_key().to_sec1_point(false);
        let (x, y) = point.as_bytes()[1..].split_at($curve_id.size());
        let key = CertifiedKey::Ecc { curve: $curve_id, x: x.to_vec(), y: y.to_vec() };
        Tpm::$variant(Template::rebuild(&key).unwrap().1, secret)
    }};
}

static TPMS: LazyLock<[Tpm; 3]> = LazyLock::new(|| {
    let private = rsa::PrivateKey::new(&mut rng(), 2048).unwrap();
    let key = CertifiedKey::Rsa { modulus: private.n_bytes().to_vec(), exponent: 65_537 };
    let rsa = Tpm::Rsa(Template::rebuild(&key).unwrap().1, Box::new(private));
    [rsa, ecc!(p256, P256, Curve::P256), ecc!(p384, P384, Curve::P384)]
});

fn split_point(secret: &[u8], size: usize) -> Vec<u8> {
    let (x, y) =
        Reader::all(secret, "TPMS_ECC_POINT", |reader| Ok((reader.tpm2b(size, "x")?, reader.tpm2b(size, "y")?)))
            .unwrap();
    assert_eq!((x.len(), y.len()), (size, size), "coordinates are padded");
    [&[4], x, y].concat()
}

impl Tpm {
    fn ek(&self) -> &Public {
        match self {
            Self::Rsa(ek, _) | Self::P256(ek, _) | Self::P384(ek, _) => ek,
        }
    }

    /// The seed from an encrypted secret (Part 1, B.10.3 and C.6.3), or none for another label.
    fn seed(&self, label: &str, secret: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Rsa(_, key) => {
                let oaep = rsa::Oaep::<sha2::Sha256>::new_with_label([label.as_bytes(), &[0]].concat());
                key.decrypt(oaep, secret).ok()
            }
            Self::P256(_, key) => {
                let point = split_point(secret, 32);
                let theirs = p256::PublicKey::from_sec1_bytes(&point).unwrap();
                let z = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), theirs.as_affine());
                let ours = self.ek().ecc_point().unwrap();
                let parties = (&point[1..33], &ours[1..33]);
                Some(kdfe(HashAlg::Sha256, z.raw_secret_bytes(), label, parties.0, parties.1, 256)?.to_vec())
            }
            Self::P384(_, key) => {
                let point = split_point(secret, 48);
                let theirs = p384::PublicKey::from_sec1_bytes(&point).unwrap();
                let z = p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), theirs.as_affine());
                let ours = self.ek().ecc_point().unwrap();
                let parties = (&point[1..49], &ours[1..49]);
                Some(kdfe(HashAlg::Sha384, z.raw_secret_bytes(), label, parties.0, parties.1, 384)?.to_vec())
            }
        }
    }

    /// What is in an outer wrap, or none when its HMAC is not over this Name by this seed.
    fn open(&self, seed: &[u8], name: &Name, blob: &[u8]) -> Option<Vec<u8>> {
        let alg = self.ek().name_alg;
        let bits = if alg == HashAlg::Sha384 { 256 } else { 128 };
        let (mac, encrypted) =
            Reader::all(blob, "blob", |reader| Ok((reader.tpm2b(64, "integrity")?, reader.rest()))).unwrap();
        let key = kdfa(alg, seed, "INTEGRITY", &[], &[], u16::try_from(alg.size() * 8).unwrap())?;
        if hmac(alg, &key, &[encrypted, name.as_bytes()])?.as_bytes() != mac {
            return None;
        }
        let key = kdfa(alg, seed, "STORAGE", name.as_bytes(), &[], bits)?;
        let mut data = encrypted.to_vec();
        assert!(cfb_decrypt(&key, &[0; 16], &mut data));
        Some(Reader::all(&data, "TPM2B", |reader| reader.tpm2b(400, "TPM2B").map(<[u8]>::to_vec)).unwrap())
    }
}

#[test]
fn credentials() {
    let name = Name::of(HashAlg::Sha256, &[b"an AK"]);
    for tpm in TPMS.iter() {
        let size = tpm.ek().name_alg.size();
        for length in [0, 1, size] {
            let secret = vec![0x5a; length];
            let credential = make_credential(tpm.ek(), &name, &secret, &mut rng()).unwrap();
            let seed = tpm.seed("IDENTITY", &credential.secret).unwrap();
            assert_eq!(seed.len(), size);
            assert_eq!(tpm.open(&seed, &name, &credential.blob), Some(secret));
            let other = Name::of(HashAlg::Sha256, &[b"another AK"]);
            assert_eq!(tpm.open(&seed, &other, &credential.blob), None, "bound to the Name");
            let other = tpm.seed("DUPLICATE", &credential.secret);
            assert!(other.is_none_or(|seed| tpm.open(&seed, &name, &credential.blob).is_none()), "bound to the use");
            let mut changed = credential.blob.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert_eq!(tpm.open(&seed, &name, &changed), None, "authenticated");
        }
        let error = make_credential(tpm.ek(), &name, &vec![0; size + 1], &mut rng()).unwrap_err();
        assert_eq!(error, WrapError::TooLong { got: size + 1, max: size });
    }
}

#[test]
fn import_blobs() {
    let key = [0xa7; 64];
    for (tpm, sizes) in TPMS.iter().zip([(140, 256), (140, 68), (156, 100)]) {
        let blob = wrap_sealed(tpm.ek(), &[9; 32], &key, &mut rng()).unwrap();
        assert_eq!((blob.duplicate.len(), blob.seed.len()), sizes);
        assert_eq!(blob.public.attributes, 0x0000_0480);
        assert_eq!(blob.public.auth_policy, [9; 32]);
        assert_eq!(blob.public.to_bytes().len(), 78);
        let name = blob.public.name();
        let seed = tpm.seed("DUPLICATE", &blob.seed).unwrap();
        let sensitive = tpm.open(&seed, &name, &blob.duplicate).unwrap();
        let (kind, auth, obfuscation, data) = Reader::all(&sensitive, "TPMT_SENSITIVE", |reader| {
            let kind = reader.u16_be("sensitiveType")?;
            Ok((kind, reader.tpm2b(64, "authValue")?, reader.tpm2b(64, "seedValue")?, reader.tpm2b(128, "sensitive")?))
        })
        .unwrap();
        assert_eq!((kind, auth, data), (0x0008, [].as_slice(), key.as_slice()));
        let unique = HashAlg::Sha256.digest(&[obfuscation, data]).as_bytes().to_vec();
        assert_eq!(blob.public.key, Key::Sealed { unique });

        // Another policy is another Name, and then nothing opens.
        let mut other = blob.public.clone();
        other.auth_policy = vec![8; 32];
        assert_eq!(tpm.open(&seed, &other.name(), &blob.duplicate), None);
        // Two wraps of one secret share nothing.
        let again = wrap_sealed(tpm.ek(), &[9; 32], &key, &mut rng()).unwrap();
        assert_ne!(again.public, blob.public);
        assert_ne!(again.duplicate, blob.duplicate);
        assert!(!blob.duplicate.windows(8).any(|window| window == &key[..8]));
    }
    let error = wrap_sealed(TPMS[1].ek(), &[9; 32], &[0; 129], &mut rng()).unwrap_err();
    assert_eq!(error, WrapError::TooLong { got: 129, max: 128 });
}

#[test]
fn salts() {
    for tpm in TPMS.iter() {
        let (salt, encrypted) = seed(tpm.ek(), Use::Secret, &mut rng()).unwrap();
        assert_eq!(tpm.seed("SECRET", &encrypted), Some(salt.to_vec()));
    }
}

#[test]
fn parents_that_are_none() {
    let refused = |change: fn(&mut Public)| {
        let mut ek = TPMS[1].ek().clone();
        change(&mut ek);
        let error = wrap_sealed(&ek, &[0; 32], b"key", &mut rng()).unwrap_err();
        assert!(matches!(error, WrapError::Parent(_)), "{error}");
    };
    let unrestricted: fn(&mut Public) = |ek| ek.attributes &= !attributes::RESTRICTED;
    let signing: fn(&mut Public) = |ek| ek.attributes &= !attributes::DECRYPT;
    let off_curve: fn(&mut Public) = |ek| {
        if let Key::Ecc { y, .. } = &mut ek.key {
            y[31] ^= 1;
        }
    };
    let no_cipher: fn(&mut Public) = |ek| {
        if let Key::Ecc { symmetric, .. } = &mut ek.key {
            *symmetric = None;
        }
    };
    let odd_cipher: fn(&mut Public) = |ek| {
        if let Key::Ecc { symmetric, .. } = &mut ek.key {
            *symmetric = Some(192);
        }
    };
    let infinity: fn(&mut Public) = |ek| {
        if let Key::Ecc { x, y, .. } = &mut ek.key {
            x.clear();
            y.clear();
        }
    };
    let sealed: fn(&mut Public) = |ek| ek.key = Key::Sealed { unique: Vec::new() };
    let tiny: fn(&mut Public) = |ek| {
        ek.key = Key::Rsa {
            symmetric: Some(128),
            scheme: countersign_tpm::public::Scheme::Null,
            bits: 2048,
            exponent: 0,
            modulus: vec![0; 256],
        }
    };
    for change in [unrestricted, signing, off_curve, no_cipher, odd_cipher, infinity, sealed, tiny] {
        refused(change);
    }
    for template in Template::ALL {
        assert!(seed(&template.template(), Use::Duplicate, &mut rng()).is_err(), "a template has no key: {template:?}");
    }
}

#[test]
fn cfb() {
    // SP 800-38A, F.3.13 (CFB128-AES128, first two blocks) and a partial last block.
    let key = hex::decode("2b7e151628aed2a6abf7158809cf4f3c").unwrap();
    let iv: [u8; 16] = hex::decode("000102030405060708090a0b0c0d0e0f").unwrap().try_into().unwrap();
    let plain = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap();
    let cipher = hex::decode("3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b").unwrap();
    for length in [32, 20, 16, 1, 0] {
        let mut data = plain[..length].to_vec();
        assert!(cfb_encrypt(&key, &iv, &mut data));
        assert_eq!(data, cipher[..length]);
        assert!(cfb_decrypt(&key, &iv, &mut data));
        assert_eq!(data, plain[..length]);
    }
    assert!(!cfb_encrypt(&key[..15], &iv, &mut [0; 4]));
    assert!(!cfb_decrypt(&[0; 24], &iv, &mut [0; 4]));
}
