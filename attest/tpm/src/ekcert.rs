//! EK certificates: found in NV, checked against curated roots, and the EK public area rebuilt from them
//! (TCG EK Credential Profile 2.5, sections 2.1.5 and 3).

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::ek::{CertifiedKey, Template};
use crate::public::{Curve, Public};

/// tcg-kp-EKCertificate, 2.23.133.8.1, as the contents of a DER OBJECT IDENTIFIER.
const EKU_EK: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-RSAES-OAEP, used by some EK certificates.
const RSAES_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// tcg-at-tpmManufacturer, tcg-at-tpmModel, tcg-at-tpmVersion.
const TPM_FACTS: [(ObjectIdentifier, &str); 3] = [
    (ObjectIdentifier::new_unwrap("2.23.133.2.1"), "manufacturer"),
    (ObjectIdentifier::new_unwrap("2.23.133.2.2"), "model"),
    (ObjectIdentifier::new_unwrap("2.23.133.2.3"), "version"),
];

/// Why an EK certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EkCertError {
    /// The NV contents hold no certificate.
    #[error("NV contents are no certificate: {0}")]
    Nv(&'static str),
    /// Not a certificate.
    #[error("not a certificate: {0}")]
    Parse(String),
    /// No path to a curated root.
    #[error("issued by {issuer:?}: no path to a trusted root ({reason})")]
    Chain {
        /// Issuer of the EK certificate.
        issuer: String,
        /// What path building says.
        reason: String,
    },
    /// A key that no accepted template has.
    #[error("its key is of a kind that no accepted EK template has: {0}")]
    Key(String),
    /// A root that cannot be an anchor.
    #[error("a trusted root cannot be read: {0}")]
    Root(String),
}

/// An EK certificate with a path to a curated root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedEk {
    /// The template of its key.
    pub template: Template,
    /// The EK's public area, rebuilt.
    pub public: Public,
    /// Subject of the curated certificate that the path ends at.
    pub root: String,
    /// Manufacturer, model and version (Credential Profile 3.1.2), where the certificate has them readably.
    pub facts: Vec<(&'static str, String)>,
}

/// The DER certificate in an NV index: a 7-byte header 10 01 .. is skipped, and padding behind the certificate (00, 11 and FF were
/// seen) is cut.
///
/// # Errors
/// [`EkCertError::Nv`].
pub fn from_nv(contents: &[u8]) -> Result<&[u8], EkCertError> {
    let der = if contents.starts_with(&[0x10, 0x01]) { contents.get(7..).unwrap_or_default() } else { contents };
    let Some([0x30, 0x82, high, low]) = der.first_chunk::<4>().copied() else {
        return Err(EkCertError::Nv("it does not start with a DER SEQUENCE of two length bytes"));
    };
    let length = usize::from(u16::from_be_bytes([high, low])).saturating_add(4);
    der.get(..length).ok_or(EkCertError::Nv("it is shorter than its length says"))
}

fn parse(der: &[u8]) -> Result<CertificateInner<Raw>, EkCertError> {
    CertificateInner::<Raw>::from_der(der).map_err(|e| EkCertError::Parse(e.to_string()))
}

/// Subject of a certificate, in words (RFC 4514).
///
/// # Errors
/// [`EkCertError::Parse`].
pub fn subject(der: &[u8]) -> Result<String, EkCertError> {
    Ok(parse(der)?.tbs_certificate().subject().to_string())
}

/// The key of a certificate. Says nothing about who issued it.
///
/// # Errors
/// [`EkCertError::Key`] for a key of another kind than the accepted ones.
pub fn certified_key(der: &[u8]) -> Result<CertifiedKey, EkCertError> {
    let certificate = parse(der)?;
    let spki = certificate.tbs_certificate().subject_public_key_info();
    let bits = spki.subject_public_key.as_bytes().ok_or_else(|| EkCertError::Key("unused bits".into()))?;
    let algorithm = spki.algorithm.oid;
    if algorithm == RSA_ENCRYPTION || algorithm == RSAES_OAEP {
        use rsa::pkcs1::DecodeRsaPublicKey as _;
        use rsa::traits::PublicKeyParts as _;
        let key = rsa::PublicKey::from_pkcs1_der(bits).map_err(|e| EkCertError::Key(e.to_string()))?;
        let bytes = key.e().to_be_bytes();
        let mut exponent: u64 = 0;
        for byte in bytes.iter() {
            let shifted = exponent.checked_mul(256).ok_or_else(|| EkCertError::Key("huge exponent".into()))?;
            exponent = shifted | u64::from(*byte);
        }
        return Ok(CertifiedKey::Rsa { modulus: key.n_bytes().to_vec(), exponent });
    }
    if algorithm != EC_PUBLIC_KEY {
        return Err(EkCertError::Key(algorithm.to_string()));
    }
    let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
    let curve = match curve {
        Some(oid) if oid == SECP256R1 => Curve::P256,
        Some(oid) if oid == SECP384R1 => Curve::P384,
        other => return Err(EkCertError::Key(format!("curve {}", other.map_or_else(String::new, |o| o.to_string())))),
    };
    let on_curve = match curve {
        Curve::P256 => p256::PublicKey::from_sec1_bytes(bits).is_ok(),
        Curve::P384 => p384::PublicKey::from_sec1_bytes(bits).is_ok(),
    };
    match bits.split_first().map(|(form, xy)| (form, xy.split_at_checked(curve.size()))) {
        Some((4, Some((x, y)))) if on_curve && y.len() == curve.size() => {
            Ok(CertifiedKey::Ecc { curve, x: x.to_vec(), y: y.to_vec() })
        }
        _ => Err(EkCertError::Key("not an uncompressed point on its curve".into())),
    }
}

/// Checks an EK certificate against curated roots and rebuilds the EK's public area from it.
///
/// Every curated certificate is an anchor, also an intermediate one; certificates from the host only help to find a path. SHA-1
/// signatures are not accepted. `now` is seconds since 1970.
///
/// # Errors
/// [`EkCertError`] says which step failed.
pub fn check(der: &[u8], chain: &[Vec<u8>], roots: &[Vec<u8>], now: u64) -> Result<CheckedEk, EkCertError> {
    let certificate = parse(der)?;
    let issuer = certificate.tbs_certificate().issuer().to_string();
    let root_ders: Vec<CertificateDer<'_>> = roots.iter().map(|root| CertificateDer::from(root.as_slice())).collect();
    let mut anchors: Vec<TrustAnchor<'_>> = Vec::with_capacity(roots.len());
    for root in &root_ders {
        anchors.push(anchor_from_trusted_cert(root).map_err(|e| EkCertError::Root(e.to_string()))?);
    }
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let end_entity = CertificateDer::from(der);
    let end_entity = EndEntityCert::try_from(&end_entity).map_err(|e| EkCertError::Parse(e.to_string()))?;
    let path = end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &chain,
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            KeyUsage::required_if_present(EKU_EK),
            None,
            None,
        )
        .map_err(|e| EkCertError::Chain { issuer: issuer.clone(), reason: e.to_string() })?;
    let anchor = path.anchor().subject.as_ref().to_vec();
    let mut root = issuer;
    for der in roots {
        let candidate = parse(der)?;
        let subject = candidate.tbs_certificate().subject();
        // webpki keeps a subject without its outer SEQUENCE header.
        if subject.to_der().is_ok_and(|whole| whole.ends_with(&anchor)) {
            root = subject.to_string();
            break;
        }
    }
    let key = certified_key(der)?;
    let (template, public) = Template::rebuild(&key).ok_or_else(|| EkCertError::Key(kind(&key)))?;
    Ok(CheckedEk { template, public, root, facts: facts(&certificate) })
}

fn kind(key: &CertifiedKey) -> String {
    match key {
        CertifiedKey::Rsa { modulus, exponent } => {
            format!("RSA-{} with exponent {exponent}", modulus.len().saturating_mul(8))
        }
        CertifiedKey::Ecc { curve, .. } => format!("{curve:?}"),
    }
}

/// TPM manufacturer, model and version from the subject alternative name. Some vendors encode that SET out of order; then there are
/// no facts, which is no error.
fn facts(certificate: &CertificateInner<Raw>) -> Vec<(&'static str, String)> {
    let Ok(Some((_, SubjectAltName(names)))) = certificate.tbs_certificate().get_extension::<SubjectAltName>() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for name in names {
        let GeneralName::DirectoryName(name) = name else { continue };
        for attribute in name.iter_rdn().flat_map(|rdn| rdn.iter()) {
            let Some((_, fact)) = TPM_FACTS.iter().find(|(oid, _)| *oid == attribute.oid) else { continue };
            let text = String::from_utf8_lossy(attribute.value.value()).into_owned();
            found.push((*fact, text.chars().filter(|c| !c.is_control()).take(64).collect()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::public::Key;

    const RSA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/nv_0x1c00002.der");
    const ECC: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/nv_0x1c00016.der");
    const ISSUER: &str = include_str!("../../../fixtures/sb-ms-shim-grub212/issuercert.pem");
    const ROOT: &str = include_str!("../../../fixtures/sb-ms-shim-grub212/swtpm-localca-rootca-cert.pem");
    const EK_PUBLIC: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ek.pub");
    /// 2026-11-24, after the fixtures were recorded.
    const NOW: u64 = 1_795_500_000;

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
}
