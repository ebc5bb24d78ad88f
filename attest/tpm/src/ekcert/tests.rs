//! EK certificates: recorded, made up and forged.

use super::*;
use crate::public::Key;

const RSA: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/nv_0x1c00002.der");
const ECC: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/nv_0x1c00016.der");
const ISSUER: &str = include_str!("../../../../fixtures/sb-ms-shim-grub212/issuercert.pem");
const ROOT: &str = include_str!("../../../../fixtures/sb-ms-shim-grub212/swtpm-localca-rootca-cert.pem");
const EK_PUBLIC: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/ek.pub");
/// 2026-11-25, after the fixtures were made.
const NOW: u64 = 1_795_600_000;

fn pem(text: &str) -> Vec<u8> {
    let (_, der) =
        x509_cert::der::pem::decode_vec(text[text.find("-----BEGIN").unwrap()..].trim_end().as_bytes()).unwrap();
    der
}

#[test]
fn recorded_certificates() {
    let (issuer, root) = (pem(ISSUER), pem(ROOT));
    let rsa = check(from_nv(RSA).unwrap(), &[], std::slice::from_ref(&issuer), NOW).unwrap();
    assert_eq!(rsa.template, Template::Rsa2048);
    assert_eq!(rsa.public, Public::parse_file(EK_PUBLIC).unwrap());
    let ecc = check(from_nv(ECC).unwrap(), std::slice::from_ref(&issuer), &[root], NOW).unwrap();
    assert_eq!(ecc.template, Template::P384);
    assert!(matches!(ecc.public.key, Key::Ecc { curve: Curve::P384, .. }));
    assert_eq!(ecc.facts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["manufacturer", "model", "version"]);
    assert!(!ecc.root.is_empty());
    assert_eq!(Template::of(&ecc.public), Some(Template::P384));
}

#[test]
fn unknown_ca_and_expiry() {
    let rsa = from_nv(RSA).unwrap();
    assert!(matches!(check(rsa, &[pem(ISSUER)], &[], NOW), Err(EkCertError::Chain { .. })));
    assert!(matches!(check(rsa, &[], &[pem(ISSUER)], 0), Err(EkCertError::Chain { .. })));
}

#[test]
fn nv_header_and_padding() {
    let der = from_nv(RSA).unwrap();
    for padding in [0x00, 0x11, 0xff] {
        let mut stored = vec![0x10, 0x01, 0, 0, 0x10, 0x02, 0];
        stored.extend_from_slice(der);
        stored.extend([padding; 9]);
        assert_eq!(from_nv(&stored).unwrap(), der);
    }
    assert!(from_nv(&[]).is_err());
    assert!(from_nv(&der[..der.len() - 1]).is_err());
}

#[test]
fn truncations_and_changed_bytes() {
    let der = from_nv(ECC).unwrap();
    let issuer = [pem(ISSUER)];
    for end in 0..der.len() {
        assert!(check(&der[..end], &[], &issuer, NOW).is_err());
    }
    for at in (0..der.len()).step_by(3) {
        let mut changed = der.to_vec();
        changed[at] ^= 0x41;
        assert!(check(&changed, &[], &issuer, NOW).is_err(), "{at}");
    }
}

const SHA1: &[u8] = include_bytes!("../../tests/fixtures/sha1/ek-sha1.der");
const SHA256: &[u8] = include_bytes!("../../tests/fixtures/sha1/ek-sha256.der");
const SHA1_ROOT: &[u8] = include_bytes!("../../tests/fixtures/sha1/root.der");
const SAN: &[u64] = &[2, 5, 29, 17];

/// A made-up vendor: a root, an intermediate CA and EK certificates of it.
struct Vendor {
    root: Vec<u8>,
    intermediate: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

fn ca(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params
}

impl Vendor {
    fn new() -> Self {
        let root_key = rcgen::KeyPair::generate().unwrap();
        let root = ca("Vendor root").self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = rcgen::Issuer::new(ca("Vendor root"), root_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let intermediate = ca("Vendor issuing CA").signed_by(&key, &root_issuer).unwrap().der().to_vec();
        Self { root, intermediate, issuer: rcgen::Issuer::new(ca("Vendor issuing CA"), key) }
    }

    fn issue(&self, params: &rcgen::CertificateParams) -> Vec<u8> {
        self.issue_for(params, &rcgen::PKCS_ECDSA_P384_SHA384)
    }

    fn issue_for(&self, params: &rcgen::CertificateParams, alg: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(alg).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    fn check(&self, der: &[u8]) -> Result<CheckedEk, EkCertError> {
        check(der, std::slice::from_ref(&self.intermediate), std::slice::from_ref(&self.root), NOW)
    }
}

/// Tag, length below 128, contents.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    [&[tag, u8::try_from(contents.len()).unwrap()], contents.as_slice()].concat()
}

fn fact(last: u8, value: &str) -> Vec<u8> {
    tlv(0x30, &[&tlv(0x06, &[&[0x67, 0x81, 0x05, 0x02, last]]), &tlv(0x0c, &[value.as_bytes()])])
}

/// An EK certificate as the profile wants it: empty subject, critical subject alternative name. All three facts stand in one SET, not in
/// DER's order, as some vendors have it.
fn ek() -> rcgen::CertificateParams {
    let set = tlv(0x31, &[&fact(3, "id:00010002"), &fact(1, "id:56454E44"), &fact(2, "V\u{7}1")]);
    let san = tlv(0x30, &[&tlv(0xa4, &[&tlv(0x30, &[&set])])]);
    let mut extension = rcgen::CustomExtension::from_oid_content(SAN, san);
    extension.set_criticality(true);
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions = vec![extension];
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    params
}

#[test]
fn profile_certificates_with_a_chain_from_the_host() {
    let vendor = Vendor::new();
    let der = vendor.issue(&ek());
    let checked = vendor.check(&der).unwrap();
    assert_eq!(checked.template, Template::P384);
    assert_eq!((checked.root.as_str(), checked.root_index), ("CN=Vendor root", 0));
    let facts: Vec<_> = checked.facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(
        facts,
        [("version", "id:00010002"), ("manufacturer", "id:56454E44"), ("model", "V1")],
        "no control characters"
    );
    assert!(!checked.says_simulator());

    // Without the intermediate there is no path; with it curated there is one, and that one is named.
    let other = Vendor::new();
    assert!(matches!(check(&der, &[], std::slice::from_ref(&vendor.root), NOW), Err(EkCertError::Chain { .. })));
    let roots = [other.root.clone(), vendor.intermediate.clone(), vendor.root.clone()];
    let checked = check(&der, &[], &roots, NOW).unwrap();
    assert_eq!((checked.root.as_str(), checked.root_index), ("CN=Vendor issuing CA", 1));
    // Two roots with one subject: the one that signed is found.
    let roots = [other.root, vendor.root.clone()];
    assert_eq!(check(&der, std::slice::from_ref(&vendor.intermediate), &roots, NOW).unwrap().root_index, 1);

    let p256 = vendor.issue_for(&ek(), &rcgen::PKCS_ECDSA_P256_SHA256);
    let checked = vendor.check(&p256).unwrap();
    assert_eq!(checked.template, Template::P256);
    assert_eq!(checked.public.attributes, 0x0003_00B2);
}

#[test]
fn no_extended_key_usage_passes_another_one_does_not() {
    let vendor = Vendor::new();
    let mut params = ek();
    params.extended_key_usages.clear();
    assert!(vendor.check(&vendor.issue(&params)).is_ok());
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    assert!(matches!(vendor.check(&vendor.issue(&params)), Err(EkCertError::Chain { .. })));
    // tcg-kp-AIKCertificate
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    assert!(matches!(vendor.check(&vendor.issue(&params)), Err(EkCertError::Chain { .. })));
}

#[test]
fn certificates_for_something_else() {
    let vendor = Vendor::new();
    let mut signing = ek();
    signing.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    assert_eq!(vendor.check(&vendor.issue(&signing)), Err(EkCertError::Usage));
    let mut another_ca = ek();
    another_ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    assert!(matches!(vendor.check(&vendor.issue(&another_ca)), Err(EkCertError::Chain { .. })));
    assert!(matches!(
        vendor.check(&vendor.issue_for(&ek(), &rcgen::PKCS_ED25519)),
        Err(EkCertError::Key(algorithm)) if algorithm == "1.3.101.112"
    ));
    let mut critical = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    critical.set_criticality(true);
    let mut unknown = ek();
    unknown.custom_extensions.push(critical);
    assert!(matches!(vendor.check(&vendor.issue(&unknown)), Err(EkCertError::Chain { .. } | EkCertError::Parse(_))));
}

#[test]
fn an_ek_certificate_issues_nothing() {
    // A TPM's owner who could use the EK as a CA key: the path must not go through an end entity.
    let vendor = Vendor::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let middle = ek().signed_by(&key, &vendor.issuer).unwrap().der().to_vec();
    let forged =
        Vendor { root: vendor.root.clone(), intermediate: middle.clone(), issuer: rcgen::Issuer::new(ek(), key) };
    let der = forged.issue(&ek());
    let chain = [vendor.intermediate.clone(), middle];
    assert!(matches!(check(&der, &chain, &[vendor.root], NOW), Err(EkCertError::Chain { .. })));
}

#[test]
fn sha1_is_refused() {
    let roots = [SHA1_ROOT.to_vec()];
    let checked = check(SHA256, &[], &roots, NOW).unwrap();
    assert_eq!(checked.template, Template::Rsa2048);
    assert_eq!(checked.facts, []);
    let Err(EkCertError::Chain { reason, .. }) = check(SHA1, &[], &roots, NOW) else { panic!("accepted") };
    assert!(reason.contains("UnsupportedSignatureAlgorithm"), "{reason}");
}

#[test]
fn what_may_be_curated() {
    let vendor = Vendor::new();
    let root = check_root(&vendor.root).unwrap();
    assert_eq!(root.subject, "CN=Vendor root");
    assert_eq!(root.fingerprint.as_slice(), HashAlg::Sha256.digest(&[&vendor.root]).as_bytes());
    assert!(check_root(&pem(ISSUER)).is_ok());
    assert!(matches!(check_root(&vendor.issue(&ek())), Err(EkCertError::Root(_))));
    assert!(matches!(check_root(b"-----BEGIN"), Err(EkCertError::Parse(_))));
    for end in 0..vendor.root.len() {
        assert!(check_root(&vendor.root[..end]).is_err());
    }
}

#[test]
fn too_much() {
    let vendor = Vendor::new();
    let der = vendor.issue(&ek());
    let many = vec![vendor.intermediate.clone(); 9];
    assert!(matches!(
        check(&der, &many, std::slice::from_ref(&vendor.root), NOW),
        Err(EkCertError::TooLarge { got: 9, max: 8, .. })
    ));
    let huge = [vec![0x30; 10_000]];
    assert!(matches!(check(&der, &huge, std::slice::from_ref(&vendor.root), NOW), Err(EkCertError::TooLarge { .. })));
    assert!(matches!(check(&huge[0], &[], &[vendor.root], NOW), Err(EkCertError::TooLarge { .. })));
}

#[test]
fn alternative_names_with_wrong_lengths() {
    let set = tlv(0x31, &[&fact(1, "id:1"), &fact(2, "m")]);
    let san = tlv(0x30, &[&tlv(0x82, &[b"host.example"]), &tlv(0xa4, &[&tlv(0x30, &[&set])])]);
    let mut found = Vec::new();
    read_facts(&san, &mut found).unwrap();
    assert_eq!(found, [("manufacturer", "id:1".to_owned()), ("model", "m".to_owned())]);
    for end in 0..san.len() {
        assert!(read_facts(&san[..end], &mut Vec::new()).is_err());
    }
    for at in 0..san.len() {
        for value in 0..=255 {
            let mut changed = san.clone();
            changed[at] = value;
            let mut found = Vec::new();
            let _ = read_facts(&changed, &mut found);
            assert!(found.len() <= 3);
        }
    }
}
