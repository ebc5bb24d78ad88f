//! Configuration of a verifier: `verifier.toml` in its state folder.

use std::path::Path;

use serde::Deserialize;

use crate::error::Error;

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
    /// The host policy's bundle.
    pub host_policy: Vec<u8>,
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
}

impl Config {
    /// Reads the configuration of a state folder; COUNTERSIGN_URL and COUNTERSIGN_LISTEN override it.
    ///
    /// # Errors
    /// [`Error::State`] names the key.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("verifier.toml");
        let bad = |reason: String| Error::State { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let host_policy = match file.host_policy.filter(|path| !path.as_os_str().is_empty()) {
            None => countersign_policy::shipped_host_policy().to_vec(),
            Some(folder) => {
                countersign_policy::PolicyBundle::from_dir(&dir.join(folder)).map_err(|e| bad(e.to_string()))?
            }
        };
        let parsed = countersign_policy::PolicyBundle::parse(&host_policy).map_err(|e| bad(e.to_string()))?;
        countersign_policy::Compiled::new(&parsed, countersign_policy::Role::Host).map_err(|e| bad(e.to_string()))?;
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = env("COUNTERSIGN_URL").unwrap_or(file.url);
        if !url.starts_with("https://") {
            return Err(bad(format!("url {url:?} does not start with https://")));
        }
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
        })
    }
}
