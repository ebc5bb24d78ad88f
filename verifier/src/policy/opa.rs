//! A real Open Policy Agent as engine, over HTTP, HTTPS or a Unix socket.
//!
//! OPA answers 200 `{}` for a path that does not exist, keeps deciding by a stale bundle, and has no deadline of its own. So: our own deadline; a
//! literal `allow == true` in a document of the documented shape, or no; and with every answer its version and its bundle's revision are checked.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use countersign_policy::verdict::Decision;
use countersign_policy::{PolicyEngine, Role, decision, deny, reason};
use serde_json::{Value, json};

/// The first version whose bundle signatures can be relied on.
pub const SAFE_VERSION: [u64; 3] = [1, 21, 3];
/// Bytes of an answer.
const ANSWER: u64 = 1 << 20;

/// Reason: no connection, no answer, or one that cannot be read.
pub const UNREACHABLE: &str = "opa-unreachable";
/// Reason: no answer before the deadline.
pub const DEADLINE: &str = "opa-deadline";
/// Reason: older than [`SAFE_VERSION`], or of unknown version.
pub const VERSION: &str = "opa-version";
/// Reason: not by the bundle that was asked for, or without a decision id.
pub const PROVENANCE: &str = "opa-provenance";

/// Where an OPA is and what is asked of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port`; `unix:PATH` for a socket.
    pub address: String,
    /// Bearer token.
    pub token: Option<String>,
    /// The only CA that is trusted (PEM), for https.
    pub ca: Option<Vec<u8>>,
    /// Deadline of one decision.
    pub deadline: Duration,
    /// Name and revision that the policy's bundle must have.
    pub bundle: Option<(String, String)>,
    /// Refuse answers without a decision id (OPA gives one when it keeps a decision log).
    pub decision_id: bool,
    /// Take versions that are known to be unsafe.
    pub dangerous_allow_old_opa: bool,
}

/// An OPA.
pub struct Opa {
    options: Options,
    role: Role,
    client: reqwest::blocking::Client,
    base: String,
    version: Mutex<String>,
}

impl std::fmt::Debug for Opa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opa").field("address", &self.options.address).finish_non_exhaustive()
    }
}

impl Opa {
    /// A client. Nothing is asked yet.
    ///
    /// # Errors
    /// The address or the CA cannot be used; a token without TLS or a socket.
    pub fn new(options: Options, role: Role) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::blocking::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(options.deadline);
        let base = if let Some(path) = options.address.strip_prefix("unix:") {
            builder = builder.unix_socket(PathBuf::from(path));
            "http://localhost".to_owned()
        } else if options.address.starts_with("https://") {
            let ca = options.ca.as_deref().ok_or("https needs the CA of the OPA server")?;
            let ca = reqwest::Certificate::from_pem(ca).map_err(|e| e.to_string())?;
            builder = builder.tls_certs_only([ca]).https_only(true);
            options.address.trim_end_matches('/').to_owned()
        } else if options.address.starts_with("http://") {
            if options.token.is_some() {
                return Err("a token is sent over https or a Unix socket only".into());
            }
            options.address.trim_end_matches('/').to_owned()
        } else {
            return Err(format!("{:?} is neither http://, https:// nor unix:PATH", options.address));
        };
        let client = builder.build().map_err(|e| e.to_string())?;
        Ok(Self { options, role, client, base, version: Mutex::new("unknown".into()) })
    }

    /// Gives OPA the verifier's reference values, at `data.countersign.reference`.
    ///
    /// # Errors
    /// OPA does not take them.
    pub fn put_reference(&self, document: &Value) -> Result<(), String> {
        let request = self.request(reqwest::Method::PUT, "/v1/data/countersign/reference").json(document);
        let response = request.send().map_err(|e| e.to_string())?;
        if response.status().is_success() { Ok(()) } else { Err(format!("OPA answers {}", response.status())) }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::blocking::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.options.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn ask(&self, input: &Value) -> Result<Value, (&'static str, String)> {
        let path =
            format!("/v1/data/{}/verdict?provenance&strict-builtin-errors=true", self.role.package().replace('.', "/"));
        let unreachable = |e: &dyn std::fmt::Display| (UNREACHABLE, format!("OPA at {}: {e}", self.options.address));
        let sent = self.request(reqwest::Method::POST, &path).json(&json!({"input": input})).send();
        let response = sent.map_err(|e| {
            if e.is_timeout() {
                (DEADLINE, format!("OPA did not answer within {} ms", self.options.deadline.as_millis()))
            } else {
                unreachable(&e)
            }
        })?;
        let status = response.status();
        let mut body = Vec::new();
        response.take(ANSWER.saturating_add(1)).read_to_end(&mut body).map_err(|e| {
            if e.kind() == std::io::ErrorKind::TimedOut {
                (DEADLINE, "OPA's answer did not end in time".to_owned())
            } else {
                unreachable(&e)
            }
        })?;
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            let id = if status.is_server_error() { reason::ERROR } else { UNREACHABLE };
            return Err((id, format!("OPA answers {status}: {text}")));
        }
        serde_json::from_slice(&body).map_err(|e| unreachable(&e))
    }

    /// Version, bundle revision and decision id of an answer.
    fn provenance(&self, answer: &Value) -> Result<(), (&'static str, String)> {
        let version = answer.pointer("/provenance/version").and_then(Value::as_str).unwrap_or_default();
        if let Ok(mut known) = self.version.lock() {
            version.clone_into(&mut known);
        }
        let numbers: Vec<u64> = version.split(['.', '-']).take(3).filter_map(|part| part.parse().ok()).collect();
        if !self.options.dangerous_allow_old_opa && (numbers.len() < 3 || numbers.as_slice() < &SAFE_VERSION[..]) {
            return Err((
                VERSION,
                format!("OPA {version:?} is older than 1.21.3, whose bundle signatures can be relied on"),
            ));
        }
        if let Some((name, revision)) = &self.options.bundle {
            let got = answer.pointer("/provenance/bundles").and_then(|bundles| bundles.get(name));
            let got = got.and_then(|bundle| bundle.get("revision")).and_then(Value::as_str);
            if got != Some(revision) {
                return Err((
                    PROVENANCE,
                    format!("OPA decided by revision {got:?} of bundle {name}, not {revision:?}"),
                ));
            }
        }
        if self.options.decision_id && answer.get("decision_id").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err((PROVENANCE, "OPA's answer has no decision id".into()));
        }
        Ok(())
    }
}

impl PolicyEngine for Opa {
    fn engine(&self) -> String {
        format!("opa {}", self.version.lock().map_or_else(|_| "unknown".into(), |version| version.clone()))
    }

    fn decide(&self, input: &Value) -> Decision {
        let source = self.role.source();
        if let Some(refused) = countersign_policy::malformed(input, source) {
            return refused;
        }
        let answer = self.ask(input).and_then(|answer| self.provenance(&answer).map(|()| answer));
        match answer {
            Err((id, message)) => deny(source, id, message),
            Ok(mut answer) => match answer.get_mut("result").map(Value::take) {
                None => {
                    deny(source, reason::UNDEFINED, format!("data.{}.verdict is undefined in OPA", self.role.package()))
                }
                Some(document) => decision(document, source),
            },
        }
    }
}
