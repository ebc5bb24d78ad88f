//! Configuration of a verifier: `verifier.toml` in its state folder.

mod services;

use std::path::Path;

use serde::Deserialize;

use crate::error::Error;
pub use services::{BundleConfig, LogConfig, OpaConfig};

/// What `verifier init` writes: every key with its meaning.
pub const EXAMPLE: &str = include_str!("../verifier.toml.example");

/// A verifier's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address in tokens: `https://host:port`. Port 0 stands for the one that `serve` gets.
    pub url: String,
    /// Address to listen on; none listens on the host and port of `url`.
    pub listen: Option<String>,
    /// Seconds that a challenge lives.
    pub challenge_ttl_s: u32,
    /// How many hosts without a join token may wait for an operator at a time; 0 admits by tokens only.
    pub pending_hosts: u32,
    /// Days that evidence is stored; none keeps it for ever.
    pub evidence_days: Option<u32>,
    /// Whether software TPMs may get keys.
    pub dangerous_allow_simulated_hosts: bool,
    /// The host policy's bundle, where none was loaded.
    pub host_policy: Vec<u8>,
    /// Whether that came from a folder of the operator's: then it is tried before it decides.
    pub own_host_policy: bool,
    /// An Open Policy Agent that decides the host policy beside the embedded engine.
    pub opa: Option<OpaConfig>,
    /// Where host policies are fetched from.
    pub bundle: Option<BundleConfig>,
    /// Where decisions are reported.
    pub log: Option<LogConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    url: String,
    #[serde(default)]
    listen: Option<String>,
    #[serde(default)]
    challenge_ttl_s: Option<u32>,
    #[serde(default)]
    pending_hosts: Option<u32>,
    #[serde(default)]
    evidence_days: Option<u32>,
    #[serde(default)]
    dangerous_allow_simulated_hosts: bool,
    #[serde(default)]
    host_policy: Option<std::path::PathBuf>,
    #[serde(default)]
    engine: services::EngineSection,
    #[serde(default)]
    policy: services::PolicySection,
}

impl Config {
    /// Reads the configuration of a state folder; COUNTERSIGN_URL, COUNTERSIGN_LISTEN, COUNTERSIGN_ENGINE_URL, COUNTERSIGN_BUNDLE_URL and
    /// COUNTERSIGN_DECISION_LOG_URL override it. A policy of the operator's own is not compiled here: `serve` tries it first.
    ///
    /// # Errors
    /// [`Error::State`] names the key.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("verifier.toml");
        let bad = |reason: String| Error::State { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let own = file.host_policy.filter(|path| !path.as_os_str().is_empty());
        let own_host_policy = own.is_some();
        let host_policy = match own {
            None => countersign_policy::shipped_host_policy().to_vec(),
            Some(folder) => {
                countersign_policy::PolicyBundle::from_dir(&dir.join(folder)).map_err(|e| bad(e.to_string()))?
            }
        };
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = env("COUNTERSIGN_URL").unwrap_or(file.url);
        if !url.starts_with("https://") {
            return Err(bad(format!("url {url:?} does not start with https://")));
        }
        let opa = file.engine.read(dir, env("COUNTERSIGN_ENGINE_URL"))?;
        let (bundle, log) =
            file.policy.read(dir, env("COUNTERSIGN_BUNDLE_URL"), env("COUNTERSIGN_DECISION_LOG_URL"))?;
        if file.evidence_days == Some(0) {
            return Err(bad("evidence_days is 0; at least 1, or none to keep evidence for ever".into()));
        }
        Ok(Self {
            url,
            listen: env("COUNTERSIGN_LISTEN").or(file.listen),
            challenge_ttl_s: file.challenge_ttl_s.unwrap_or(60).clamp(5, 600),
            pending_hosts: file.pending_hosts.unwrap_or(64),
            evidence_days: file.evidence_days,
            dangerous_allow_simulated_hosts: file.dangerous_allow_simulated_hosts,
            host_policy,
            own_host_policy,
            opa,
            bundle,
            log,
        })
    }
}
