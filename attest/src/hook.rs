//! A webhook of the host's own configuration: events go there by HTTP POST. Never an address from an image or from the verifier.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::blocking::Client as Http;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::error::HostError;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where events go.
#[derive(Debug, Clone)]
pub struct Hook {
    http: Http,
    url: String,
}

impl Hook {
    /// `http://` and `https://` addresses; the latter with the CA (PEM file) that the server's certificate must lead to.
    ///
    /// # Errors
    /// [`HostError::Config`] names the key.
    pub fn new(url: &str, ca: Option<&PathBuf>) -> Result<Self, HostError> {
        let bad = |path: &str, reason: String| HostError::Config { path: path.into(), reason };
        let mut builder = Http::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        if url.starts_with("https://") {
            let path = ca.ok_or_else(|| bad("webhook", "an https address needs webhook_ca".into()))?;
            let at = format!("webhook_ca {}", path.display());
            let pem = std::fs::read(path).map_err(|e| bad(&at, e.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|e| bad(&at, e.to_string()))?;
                roots.add(certificate).map_err(|e| bad(&at, e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(bad(&at, "no PEM certificate".into()));
            }
        } else if !url.starts_with("http://") {
            return Err(bad("webhook", format!("{url:?} is no http or https address")));
        }
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("webhook", e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(tls);
        let http = builder.build().map_err(|e| bad("webhook", e.to_string()))?;
        Ok(Self { http, url: url.to_owned() })
    }

    /// Sends one event.
    ///
    /// # Errors
    /// What failed, in words: no answer in time, or another status than 2xx.
    pub fn post(&self, content_type: &str, body: &str) -> Result<(), String> {
        let request = self.http.post(&self.url).header("content-type", content_type).body(body.to_owned());
        let response = request.send().map_err(|e| e.without_url().to_string())?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(format!("HTTP {status}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert!(Hook::new("http://127.0.0.1:1/x", None).is_ok());
        let words = |url: &str, ca: Option<&PathBuf>| Hook::new(url, ca).unwrap_err().to_string();
        assert!(words("https://a/", None).contains("webhook_ca"));
        assert!(words("ftp://a/", None).contains("no http"));
        assert!(words("https://a/", Some(&"/nowhere".into())).contains("/nowhere"));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let closed = Hook::new(&format!("http://127.0.0.1:{port}/secret"), None).unwrap();
        let error = closed.post("text/plain", "x").unwrap_err();
        assert!(!error.contains("secret"), "addresses may hold tokens: {error}");
    }
}
