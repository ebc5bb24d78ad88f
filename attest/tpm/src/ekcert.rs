//! EK certificates: found in NV, checked against curated roots, and the EK public area rebuilt from them
//! (TCG EK Credential Profile 2.5, sections 2.1.5 and 3).

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage as KeyUsageExtension};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::alg::HashAlg;
use crate::codec::{Malformed, Reader};
use crate::der;
use crate::ek::{CertifiedKey, Template};
use crate::limits;
use crate::public::{Curve, Public};

/// tcg-kp-EKCertificate, 2.23.133.8.1, as the contents of a DER OBJECT IDENTIFIER.
const EKU_EK: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-RSAES-OAEP, used by some EK certificates.
const RSAES_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// tcg-at-tpmManufacturer, tcg-at-tpmModel, tcg-at-tpmVersion.
const TPM_FACTS: [(ObjectIdentifier, &str); 3] = [
    (ObjectIdentifier::new_unwrap("2.23.133.2.1"), "manufacturer"),
    (ObjectIdentifier::new_unwrap("2.23.133.2.2"), "model"),
    (ObjectIdentifier::new_unwrap("2.23.133.2.3"), "version"),
];
/// Characters that are kept of a TPM fact.
const FACT_CHARS: usize = 64;

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
    /// More than is accepted.
    #[error("{what}: {got} is over the limit of {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// Its keyUsage allows neither keyEncipherment nor keyAgreement: no certificate of an EK.
    #[error("its keyUsage allows neither keyEncipherment nor keyAgreement: it is for another kind of key than an EK")]
    Usage,
    /// A key that no accepted template has.
    #[error("its key is of a kind that no accepted EK template has: {0}")]
    Key(String),
    /// A curated certificate that cannot be an anchor.
    #[error("a curated root cannot be an anchor: {0}")]
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
    /// Which of the curated certificates that is: its position in `roots`.
    pub root_index: usize,
    /// `manufacturer`, `model` and `version` (EK Credential Profile 2.5, 3.1.2), as the certificate has them; none where it is not
    /// readable.
    pub facts: Vec<(&'static str, String)>,
}

impl CheckedEk {
    /// Whether the certificate itself says that the TPM is a simulator (swtpm's do). A certificate that does not say so proves nothing:
    /// which roots are for development is the verifier's to know.
    #[must_use]
    pub fn says_simulator(&self) -> bool {
        self.facts.iter().any(|(fact, value)| {
            let value = value.to_ascii_lowercase();
            *fact == "model" && (value.contains("swtpm") || value.contains("simulator"))
        })
    }
}

/// A certificate that may be curated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its subject, in words (RFC 4514).
    pub subject: String,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
}

/// Looks at a certificate before it is curated: readable, fit to be an anchor, and a CA by its basicConstraints. Whether it is
/// genuine is for the operator to check.
///
/// # Errors
/// [`EkCertError::Root`], [`EkCertError::Parse`], [`EkCertError::TooLarge`].
pub fn check_root(der: &[u8]) -> Result<Root, EkCertError> {
    let certificate = parse(der)?;
    anchor_from_trusted_cert(&CertificateDer::from(der)).map_err(|e| EkCertError::Root(e.to_string()))?;
    let constraints = certificate.tbs_certificate().get_extension::<BasicConstraints>();
    if !matches!(constraints, Ok(Some((_, BasicConstraints { ca: true, .. })))) {
        return Err(EkCertError::Root("its basicConstraints do not make it a CA".into()));
    }
    let fingerprint = HashAlg::Sha256.digest(&[der]).as_bytes().try_into().unwrap_or_default();
    Ok(Root { subject: certificate.tbs_certificate().subject().to_string(), fingerprint })
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

fn bounded(what: &'static str, got: usize, max: usize) -> Result<(), EkCertError> {
    if got > max { Err(EkCertError::TooLarge { what, got, max }) } else { Ok(()) }
}

fn parse(der: &[u8]) -> Result<CertificateInner<Raw>, EkCertError> {
    bounded("bytes of a certificate", der.len(), limits::CERTIFICATE)?;
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
    key_of(&parse(der)?)
}

fn key_of(certificate: &CertificateInner<Raw>) -> Result<CertifiedKey, EkCertError> {
    key_in(certificate.tbs_certificate().subject_public_key_info())
}

/// The public area that a TPM has whose EK is this SubjectPublicKeyInfo (DER): the template for its kind of key with the numbers in it.
///
/// # Errors
/// [`EkCertError::TooLarge`], [`EkCertError::Parse`]; [`EkCertError::Key`] for a key that no accepted template has.
pub fn from_spki(der: &[u8]) -> Result<Public, EkCertError> {
    bounded("bytes of a key", der.len(), limits::CERTIFICATE)?;
    let spki = SubjectPublicKeyInfoOwned::from_der(der).map_err(|e| EkCertError::Parse(e.to_string()))?;
    let key = key_in(&spki)?;
    Template::rebuild(&key).map(|(_, public)| public).ok_or_else(|| EkCertError::Key(kind(&key)))
}

fn key_in(spki: &SubjectPublicKeyInfoOwned) -> Result<CertifiedKey, EkCertError> {
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

/// Checks an EK certificate and rebuilds the EK's public area from it. In this order:
///
/// 1. it is a certificate within [`limits`], and so are those of `chain`;
/// 2. a path of signatures leads to one of `roots`. Each of them is an anchor, also an intermediate one, and an anchor's own dates and
///    extensions do not count: curating it was the decision. `chain` comes from the host and only helps to find the path. SHA-1 is
///    not accepted; nor is a CA, a certificate outside of its dates, an unknown critical extension (the subject alternative name may be
///    critical and the subject empty), or an extended key usage that does not name EK certificates;
/// 3. its keyUsage, where it has one, is that of a key that decrypts or agrees;
/// 4. an accepted template has its kind of key.
///
/// `now` is seconds since 1970. Revocation is not checked: vendors publish next to none, and the operator removes roots and hosts.
///
/// # Errors
/// [`EkCertError`] says which step failed.
pub fn check(der: &[u8], chain: &[Vec<u8>], roots: &[Vec<u8>], now: u64) -> Result<CheckedEk, EkCertError> {
    let certificate = parse(der)?;
    bounded("certificates in the chain", chain.len(), limits::CHAIN)?;
    for link in chain {
        bounded("bytes of a certificate", link.len(), limits::CERTIFICATE)?;
    }

    let root_ders: Vec<CertificateDer<'_>> = roots.iter().map(|root| CertificateDer::from(root.as_slice())).collect();
    let mut anchors: Vec<TrustAnchor<'_>> = Vec::with_capacity(roots.len());
    for root in &root_ders {
        anchors.push(anchor_from_trusted_cert(root).map_err(|e| EkCertError::Root(e.to_string()))?);
    }
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let end_entity = CertificateDer::from(der);
    let end_entity = EndEntityCert::try_from(&end_entity).map_err(|e| EkCertError::Parse(e.to_string()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let usage = KeyUsage::required_if_present(EKU_EK);
    // ring has no verification algorithm with SHA-1.
    let path = end_entity
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &chain, now, usage, None, None)
        .map_err(|e| EkCertError::Chain {
            issuer: certificate.tbs_certificate().issuer().to_string(),
            reason: e.to_string(),
        })?;
    // Subject and key: two roots may have one subject.
    let root_index = anchors.iter().position(|anchor| anchor == path.anchor());
    let (root_index, root) = root_index
        .and_then(|at| roots.get(at).map(|der| (at, der)))
        .ok_or_else(|| EkCertError::Root("the path ends at none of them".into()))?;
    let root = subject(root)?;

    // Off-spec: RSA EKs should have keyEncipherment and ECC EKs keyAgreement (Credential Profile 3.2.10); either is taken for either.
    match certificate.tbs_certificate().get_extension::<KeyUsageExtension>() {
        Ok(None) => {}
        Ok(Some((_, usage))) if usage.key_encipherment() || usage.key_agreement() => {}
        Ok(Some(_)) => return Err(EkCertError::Usage),
        Err(e) => return Err(EkCertError::Parse(e.to_string())),
    }
    let key = key_of(&certificate)?;
    let (template, public) = Template::rebuild(&key).ok_or_else(|| EkCertError::Key(kind(&key)))?;
    Ok(CheckedEk { template, public, root, root_index, facts: facts(&certificate) })
}

fn kind(key: &CertifiedKey) -> String {
    match key {
        CertifiedKey::Rsa { modulus, exponent } => {
            format!("RSA-{} with exponent {exponent}", modulus.len().saturating_mul(8))
        }
        CertifiedKey::Ecc { curve, .. } => format!("{curve:?}"),
    }
}

/// TPM manufacturer, model and version from the subject alternative name.
fn facts(certificate: &CertificateInner<Raw>) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for extension in certificate.tbs_certificate().extensions().into_iter().flatten() {
        if extension.extn_id == SUBJECT_ALT_NAME && read_facts(extension.extn_value.as_bytes(), &mut found).is_err() {
            found.clear();
        }
    }
    found
}

/// GeneralNames (RFC 5280, 4.2.1.6); each input byte is read once.
fn read_facts(san: &[u8], found: &mut Vec<(&'static str, String)>) -> Result<(), Malformed> {
    let mut names = Reader::all(san, "subjectAltName", |reader| der::tagged(reader, der::SEQUENCE, "subjectAltName"))?;
    while names.left() > 0 {
        let (tag, mut name) = der::element(&mut names, "GeneralName")?;
        if tag != der::DIRECTORY_NAME {
            continue;
        }
        let mut rdns = der::tagged(&mut name, der::SEQUENCE, "directoryName")?;
        while rdns.left() > 0 {
            let mut rdn = der::tagged(&mut rdns, der::SET, "RelativeDistinguishedName")?;
            while rdn.left() > 0 {
                let mut attribute = der::tagged(&mut rdn, der::SEQUENCE, "AttributeTypeAndValue")?;
                let oid = der::tagged(&mut attribute, der::OID, "AttributeType")?.rest();
                let (_, mut value) = der::element(&mut attribute, "AttributeValue")?;
                if let Some((_, fact)) = TPM_FACTS.iter().find(|(known, _)| known.as_bytes() == oid) {
                    let text = String::from_utf8_lossy(value.rest()).into_owned();
                    found.push((*fact, text.chars().filter(|c| !c.is_control()).take(FACT_CHARS).collect()));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
