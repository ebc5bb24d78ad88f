//! Two recorded boots, from bytes to a trusted quote: certificate, EK, AK, signature, qualified signer, PCR digest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::pcr::pcr_digest;
use countersign_tpm::public::Public;
use countersign_tpm::signature::Signature;
use countersign_tpm::{ak, ekcert};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm};

/// 2026-11-25, after the fixtures were made.
const NOW: u64 = 1_795_600_000;

fn fixture(boot: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(boot)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn pcrs(folder: &Path) -> BTreeMap<(HashAlg, u8), Digest> {
    let json: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&read(&folder.join("PCRS.json"))).unwrap();
    let mut values = BTreeMap::new();
    for (bank, pcrs) in json {
        let alg = HashAlg::from_name(&bank).unwrap();
        for (pcr, value) in pcrs {
            values.insert((alg, pcr.parse().unwrap()), Digest::new(alg, &hex::decode(value).unwrap()).unwrap());
        }
    }
    values
}

/// The key within a SubjectPublicKeyInfo, as ring takes it.
fn ring_key(spki: &[u8]) -> Vec<u8> {
    use x509_cert::der::Decode as _;
    let spki = x509_cert::spki::SubjectPublicKeyInfoOwned::from_der(spki).unwrap();
    spki.subject_public_key.raw_bytes().to_vec()
}

fn verified(public: &Public, message: &[u8], signature: &[u8]) -> bool {
    let signature = Signature::parse(signature).unwrap();
    let (algorithm, bytes): (&dyn VerificationAlgorithm, Vec<u8>) = match signature {
        Signature::Ecdsa { hash: HashAlg::Sha256, .. } => (&ECDSA_P256_SHA256_FIXED, signature.to_fixed(32).unwrap()),
        Signature::Rsassa { hash: HashAlg::Sha256, signature } => (&RSA_PKCS1_2048_8192_SHA256, signature.to_vec()),
        other @ (Signature::Rsassa { .. } | Signature::Rsapss { .. } | Signature::Ecdsa { .. }) => panic!("{other:?}"),
    };
    UnparsedPublicKey::new(algorithm, ring_key(&public.spki().unwrap())).verify(message, &bytes).is_ok()
}

#[test]
fn from_bytes_to_a_trusted_quote() {
    for boot in ["sb-ms-shim-grub212", "nosb-shim-grub212"] {
        let folder = fixture(boot);
        let pem = String::from_utf8(read(&folder.join("issuercert.pem"))).unwrap();
        let (_, issuer) =
            x509_cert::der::pem::decode_vec(pem[pem.find("-----BEGIN").unwrap()..].trim_end().as_bytes()).unwrap();

        let nv = read(&folder.join("nv_0x1c00002.der"));
        let ek = ekcert::check(ekcert::from_nv(&nv).unwrap(), &[], &[issuer], NOW).unwrap();
        assert_eq!(ek.public, Public::parse_file(&read(&folder.join("ek.pub"))).unwrap(), "{boot}");
        assert!(ek.says_simulator());

        for kind in ["ecc", "rsa"] {
            let file = |what: &str| read(&folder.join(what.replace('*', kind)));
            let public = Public::parse_file(&file("ak_*.tpmt")).unwrap();
            ak::check(&public).unwrap();
            assert_eq!(public.name().as_bytes(), file("ak_*.name"));

            let (message, signature) = (file("quote_*.msg"), file("quote_*.sig"));
            assert!(verified(&public, &message, &signature), "{boot} {kind}");
            let mut changed = message.clone();
            changed[40] ^= 1;
            assert!(!verified(&public, &changed, &signature), "{boot} {kind}");

            let quote = Quote::parse(&message).unwrap();
            let signer = ak::qualified_name(&ek.public.name(), &public.name()).unwrap();
            assert_eq!(quote.qualified_signer, signer.as_bytes(), "{boot} {kind}");

            let values = pcrs(&folder);
            let selected = quote.selection.0.iter().flat_map(|bank| {
                let alg = HashAlg::from_id(bank.alg).unwrap();
                bank.pcrs().map(move |pcr| (alg, pcr))
            });
            let digest = pcr_digest(HashAlg::Sha256, selected.map(|key| &values[&key]));
            assert_eq!(quote.digest(HashAlg::Sha256), Some(digest), "{boot} {kind}");
            assert_eq!(quote.digest(HashAlg::Sha384), None);
        }
    }
}
