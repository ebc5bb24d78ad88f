//! HTTPS to the verifier: TLS 1.3, only the pinned CA, one deadline for all that the verifier does in an operation.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use countersign_wire::cbor::{self, Message};
use countersign_wire::problem::Problem;
use reqwest::blocking::{Client as Http, RequestBuilder, Response};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_cert::der::Decode as _;

use crate::error::HostError;

/// Largest answer accepted (a bundle holds a whole IMA list), in bytes.
const MAX_ANSWER: usize = countersign_wire::limits::RECORD;

/// A client of one verifier.
#[derive(Debug)]
pub struct Client {
    http: Http,
    url: String,
    patience: Patience,
}

/// A TLS client certificate (DER) and its key (PKCS#8 DER).
pub struct Identity {
    /// Certificate.
    pub certificate: Vec<u8>,
    /// Key.
    pub key: zeroize::Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What is left of the time that the verifier may take in one operation. What the TPM takes in between has deadlines of its own: making an
/// RSA EK alone takes seconds.
#[derive(Debug)]
struct Patience(Mutex<Duration>);

impl Patience {
    fn left(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, time: Duration) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(time);
    }
}

impl Client {
    /// A client that trusts servers with a certificate by this CA (DER) only; dates are not checked, because a host's clock may be wrong
    /// and nonces give freshness.
    ///
    /// # Errors
    /// The address is not HTTPS, or the CA cannot be an anchor.
    pub fn new(url: &str, ca: &[u8], identity: Option<Identity>, patience: Duration) -> Result<Self, HostError> {
        Self::build(url, Arc::new(Pinned { ca: CertificateDer::from(ca.to_vec()) }), identity, patience)
    }

    /// A client for content that is addressed by its hash: whoever answers, the answer is checked by the caller.
    fn for_content(url: &str, patience: Duration) -> Result<Self, HostError> {
        Self::build(url, Arc::new(Anybody), None, patience)
    }

    fn build(
        url: &str,
        verifier: Arc<dyn ServerCertVerifier>,
        identity: Option<Identity>,
        patience: Duration,
    ) -> Result<Self, HostError> {
        let bad = |reason: String| HostError::Config { path: url.to_owned(), reason };
        if !url.starts_with("https://") {
            return Err(bad("the verifier's address must start with https://".into()));
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::try_from(identity.key.to_vec()).map_err(|e| bad(e.to_owned()))?;
                let chain = vec![CertificateDer::from(identity.certificate)];
                config.with_client_auth_cert(chain, key).map_err(|e| bad(e.to_string()))?
            }
        };
        let http = Http::builder()
            .tls_backend_preconfigured(config)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(patience)
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let patience = Patience(Mutex::new(patience));
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), patience })
    }

    /// Fetches the trust bundle with this SHA-256 (hex digits in errors), before anything is sent.
    ///
    /// # Errors
    /// [`HostError::Trust`] when another bundle comes.
    pub fn fetch_trust(url: &str, digest: &[u8; 32], patience: Duration) -> Result<Vec<u8>, HostError> {
        let client = Self::for_content(url, patience)?;
        let bytes = client.get("/v1/trust")?;
        let got = countersign_wire::trust::TrustBundle::digest(&bytes);
        if got != *digest {
            return Err(HostError::Trust { url: url.to_owned(), got: hex::encode(got), want: hex::encode(digest) });
        }
        Ok(bytes)
    }

    /// GET; the body of a 2xx answer.
    ///
    /// # Errors
    /// [`HostError::Unreachable`] and [`HostError::Refused`].
    pub fn get(&self, path: &str) -> Result<Vec<u8>, HostError> {
        self.send(self.http.get(format!("{}{path}", self.url)))
    }

    /// POST of a message; the answer is one too.
    ///
    /// # Errors
    /// As [`Client::get`], and [`HostError::Answer`].
    pub fn post<Q: Message, A: Message>(&self, path: &str, message: &Q) -> Result<A, HostError> {
        let body = cbor::encode(message);
        let request = self.http.post(format!("{}{path}", self.url)).header("content-type", "application/cbor");
        Ok(cbor::decode(&self.send(request.body(body))?)?)
    }

    /// POST of evidence, compressed.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub fn post_compressed<A: Message>(&self, path: &str, body: &[u8]) -> Result<A, HostError> {
        let compressed = zstd::encode_all(body, 3).map_err(|e| self.unreachable(e.to_string()))?;
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/cbor")
            .header("content-encoding", "zstd");
        Ok(cbor::decode(&self.send(request.body(compressed))?)?)
    }

    /// POST of JSON with a bearer token; the body of a 2xx answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_json(&self, path: &str, token: &str, body: Vec<u8>) -> Result<Vec<u8>, HostError> {
        let request = self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        self.send(request.bearer_auth(token).body(body))
    }

    /// Whether the verifier is ready; its clock, where it tells it (RFC 9110, 6.6.1).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn ready(&self) -> Result<Option<SystemTime>, HostError> {
        let response = self.http.get(format!("{}/readyz", self.url)).send().map_err(|e| self.unreachable(words(&e)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(status, &self.body(response)?));
        }
        let date = response.headers().get("date").and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        Ok(date)
    }

    /// GET of a stream of events, behind the last one that came; each read of it may take as long as the client's patience.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn stream(&self, path: &str, last: Option<u64>) -> Result<Response, HostError> {
        let mut request = self.http.get(format!("{}{path}", self.url)).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().map_err(|e| self.unreachable(words(&e)))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(refused(status, &self.body(response)?)) }
    }

    fn unreachable(&self, reason: String) -> HostError {
        HostError::Unreachable { url: self.url.clone(), reason }
    }

    /// Sends a request, and again when the verifier asks for that (429 and 503 with Retry-After) and the deadline leaves room for it.
    fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, HostError> {
        let started = Instant::now();
        let outcome = self.try_send(request, started);
        self.patience.spend(started.elapsed());
        outcome
    }

    fn try_send(&self, request: RequestBuilder, started: Instant) -> Result<Vec<u8>, HostError> {
        let left = || self.patience.left().saturating_sub(started.elapsed());
        loop {
            let left_now = left();
            if left_now.is_zero() {
                return Err(self.unreachable("no answer before the deadline".into()));
            }
            let this = request.try_clone().ok_or_else(|| self.unreachable("the request cannot be repeated".into()))?;
            let response = this.timeout(left_now).send().map_err(|e| self.unreachable(words(&e)))?;
            let status = response.status();
            let wait = retry_after(&response);
            let body = self.body(response)?;
            if status.is_success() {
                return Ok(body);
            }
            match wait {
                Some(wait) if wait < left() => std::thread::sleep(wait),
                _ => return Err(refused(status, &body)),
            }
        }
    }

    fn body(&self, response: Response) -> Result<Vec<u8>, HostError> {
        use std::io::Read as _;
        let mut body = Vec::new();
        let limit = u64::try_from(MAX_ANSWER).unwrap_or(u64::MAX).saturating_add(1);
        response.take(limit).read_to_end(&mut body).map_err(|e| self.unreachable(e.to_string()))?;
        if body.len() > MAX_ANSWER {
            return Err(HostError::unexpected(format!("it is longer than {MAX_ANSWER} bytes")));
        }
        Ok(body)
    }
}

/// What the verifier refused.
fn refused(status: reqwest::StatusCode, body: &[u8]) -> HostError {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        id: "http".into(),
        title: format!("HTTP {status}"),
        detail: None,
        hint: None,
    });
    HostError::Refused { status: status.as_u16(), problem }
}

/// How long the verifier asks to wait: it is busy, or this host asks too often.
fn retry_after(response: &Response) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The innermost causes: "connection refused" rather than "error sending request".
fn words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer before the deadline".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Accepts certificates by one CA for the right name, whatever the date.
#[derive(Debug)]
struct Pinned {
    ca: CertificateDer<'static>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let general = |reason: String| rustls::Error::General(reason);
        let anchor = webpki::anchor_from_trusted_cert(&self.ca).map_err(|e| general(e.to_string()))?;
        let certificate =
            webpki::EndEntityCert::try_from(end_entity).map_err(|e| general(format!("its certificate: {e}")))?;
        // The path is judged at a time when the certificate was valid.
        let parsed = x509_cert::Certificate::from_der(end_entity).map_err(|e| general(e.to_string()))?;
        let begin = parsed.tbs_certificate().validity().not_before.to_unix_duration();
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                intermediates,
                UnixTime::since_unix_epoch(begin),
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|e| general(format!("not the pinned verifier: {e}")))?;
        certificate
            .verify_is_valid_for_subject_name(server_name)
            .map_err(|e| general(format!("the verifier's certificate is for another name: {e}")))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts any server: only for content that is checked by its hash.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_spent_on_the_verifier_alone() {
        let client = Client::new("https://127.0.0.1:1", &[], None, Duration::from_secs(10)).unwrap();
        assert_eq!(client.patience.left(), Duration::from_secs(10), "no clock runs beside it");
        client.patience.spend(Duration::from_secs(4));
        client.patience.spend(Duration::from_secs(4));
        assert_eq!(client.patience.left(), Duration::from_secs(2), "requests share it");
        client.patience.spend(Duration::from_secs(4));
        let error = client.get("/").unwrap_err().to_string();
        assert!(error.contains("no answer before the deadline"), "{error}");
    }

    #[test]
    fn keys_are_not_shown() {
        let identity = Identity { certificate: vec![1], key: vec![222, 173].into() };
        assert!(!format!("{identity:?}").contains("222"));
    }
}
