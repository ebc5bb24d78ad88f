//! TLS: the server's certificate and the hosts' 24-hour certificates, all by this verifier's CA.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_wire::id::HostId;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, SubjectPublicKeyInfo};
use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use crate::error::Error;
use crate::keys::Keys;

/// Life of a host's certificate, milliseconds.
const HOST_MS: i64 = 24 * 3600 * 1000;
/// Life of the server's certificate, made anew at each start, milliseconds. Hosts check the CA, not the dates.
const SERVER_MS: i64 = 90 * 24 * 3600 * 1000;
/// A certificate is valid from a little before now: clocks differ.
const EARLIER_MS: i64 = 5 * 60 * 1000;

fn internal(e: impl std::fmt::Display) -> Error {
    Error::Internal(format!("certificate: {e}"))
}

fn issuer(keys: &Keys) -> Result<Issuer<'static, KeyPair>, Error> {
    let key = KeyPair::try_from(keys.ca_key.as_slice()).map_err(internal)?;
    Issuer::from_ca_cert_der(&CertificateDer::from(keys.ca.clone()), key).map_err(internal)
}

fn params(name: &str, now_ms: i64, life_ms: i64, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, Error> {
    let time = |ms: i64| {
        let seconds = ms.div_euclid(1000);
        time::OffsetDateTime::from_unix_timestamp(seconds).map_err(internal)
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = time(now_ms.saturating_sub(EARLIER_MS))?;
    params.not_after = time(now_ms.saturating_add(life_ms))?;
    params.extended_key_usages = vec![usage];
    Ok(params)
}

/// A host's certificate for the TLS key that its attested statement names.
///
/// # Errors
/// [`Error::Request`] for a key that cannot be certified.
pub fn host_certificate(keys: &Keys, host: &HostId, spki: &[u8], now_ms: i64) -> Result<Vec<u8>, Error> {
    let key = SubjectPublicKeyInfo::from_der(spki)
        .map_err(|e| Error::request("tls-key", format!("the TLS key cannot be certified: {e}"), None))?;
    let params = params(&host.to_string(), now_ms, HOST_MS, ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok(params.signed_by(&key, &issuer(keys)?).map_err(internal)?.der().to_vec())
}

/// The host that a verified client certificate names.
#[must_use]
pub fn host_of(certificate: &[u8]) -> Option<HostId> {
    let subject = countersign_tpm::ekcert::subject(certificate).ok()?;
    subject.strip_prefix("CN=")?.parse().ok()
}

/// TLS 1.3 for a server at `host`; client certificates by our CA are asked for, not required.
///
/// # Errors
/// [`Error::Internal`].
pub fn server_config(keys: &Keys, host: &str, now_ms: i64) -> Result<ServerConfig, Error> {
    let mut params = params(host, now_ms, SERVER_MS, ExtendedKeyUsagePurpose::ServerAuth)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    params.subject_alt_names = vec![match bare.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(bare.try_into().map_err(internal)?),
    }];
    let key = KeyPair::generate().map_err(internal)?;
    let certificate = params.signed_by(&key, &issuer(keys)?).map_err(internal)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(keys.ca.clone())).map_err(internal)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(internal)?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(internal)?
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .map_err(internal)
}

/// The certificates in a PEM file; a DER file is one certificate.
#[must_use]
pub fn pem_certificates(file: &[u8]) -> Vec<Vec<u8>> {
    use rustls_pki_types::pem::PemObject as _;
    if file.starts_with(&[0x30]) {
        return vec![file.to_vec()];
    }
    CertificateDer::pem_slice_iter(file).filter_map(Result::ok).map(|der| der.to_vec()).collect()
}

/// The public key in a PEM file (SubjectPublicKeyInfo, DER); any other file as it is.
#[must_use]
pub fn public_key(file: Vec<u8>) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    SubjectPublicKeyInfoDer::from_pem_slice(&file).map_or(file, |der| der.to_vec())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::public_key;

    #[test]
    fn a_public_key_in_pem_is_read_and_other_files_stay() {
        let der = vec![0x30, 3, 2, 1, 5];
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
        assert_eq!(public_key(pem.clone().into_bytes()), der);
        for other in [der, b"\0\x01 rubbish".to_vec(), pem.replace("PUBLIC", "PRIVATE").into_bytes()] {
            assert_eq!(public_key(other.clone()), other);
        }
    }
}
