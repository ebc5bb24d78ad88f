//! Another service that the verifier talks to as a client: over https with one trusted CA, over a Unix socket, or over plain http.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::Error;

/// Where a service is, and what it is shown.
#[derive(Clone)]
pub struct Endpoint {
    /// `https://host:port/path`, `unix:PATH`, or `http://host:port/path`.
    pub address: String,
    /// The only CA that is trusted (PEM), for https.
    pub ca: Option<Vec<u8>>,
    /// Bearer token.
    pub token: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An endpoint as a configuration file names it; paths are relative to the state folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) url: &'a str,
    pub(crate) ca: Option<&'a Path>,
    pub(crate) token_file: Option<&'a Path>,
}

impl Endpoint {
    /// Reads the files that the configuration names. A token is read only from a file that nobody else can read.
    pub(crate) fn load(dir: &Path, named: Named<'_>) -> Result<Self, Error> {
        let failed = |path: &Path, reason: String| Error::State { path: path.display().to_string(), reason };
        let ca = match named.ca.map(|path| dir.join(path)) {
            Some(path) => Some(std::fs::read(&path).map_err(|e| failed(&path, e.to_string()))?),
            None => None,
        };
        let token = match named.token_file.map(|path| dir.join(path)) {
            Some(path) => {
                let bytes = crate::keys::read_secret(&path)?;
                let text = std::str::from_utf8(&bytes).map_err(|e| failed(&path, e.to_string()))?;
                Some(Zeroizing::new(text.trim().to_owned()))
            }
            None => None,
        };
        let endpoint = Self { address: named.url.to_owned(), ca, token };
        // Wrong from the start is told at the start.
        endpoint.client().map(drop).map_err(|reason| Error::State { path: endpoint.address.clone(), reason })?;
        Ok(endpoint)
    }

    /// A client that follows no redirect and no proxy, and the text in front of every path.
    ///
    /// # Errors
    /// The address or the CA cannot be used; a token that would travel in the clear.
    pub(crate) fn client(&self) -> Result<(reqwest::ClientBuilder, String), String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let base = self.address.trim_end_matches('/').to_owned();
        if let Some(path) = self.address.strip_prefix("unix:") {
            Ok((builder.unix_socket(PathBuf::from(path)), "http://localhost".to_owned()))
        } else if base.starts_with("https://") {
            let ca = self.ca.as_deref().ok_or("https needs the CA of the server")?;
            let ca = reqwest::Certificate::from_pem(ca).map_err(|e| e.to_string())?;
            Ok((builder.tls_certs_only([ca]).https_only(true), base))
        } else if base.starts_with("http://") {
            if self.token.is_some() {
                return Err("a token is sent over https or a Unix socket only".into());
            }
            Ok((builder, base))
        } else {
            Err(format!("{:?} is neither http://, https:// nor unix:PATH", self.address))
        }
    }
}
