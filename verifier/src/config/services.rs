//! The other services that a verifier may be told to use: an Open Policy Agent, a bundle server, a receiver of decision logs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::endpoint::{Endpoint, Named};
use crate::error::Error;

/// A real Open Policy Agent that decides the host policy beside the embedded engine.
#[derive(Debug, Clone)]
pub struct OpaConfig {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Name of the host policy's bundle in it.
    pub bundle: String,
    /// Deadline of one decision.
    pub deadline: Duration,
    /// How long ago it may have heard of its bundle's server at most; none does not ask.
    pub max_bundle_age: Option<Duration>,
    /// Refuse answers without a decision id.
    pub decision_id: bool,
    /// Take versions that are known to be unsafe.
    pub dangerous_allow_old_opa: bool,
}

/// A server of signed bundles that is asked for the host policy.
#[derive(Debug, Clone)]
pub struct BundleConfig {
    /// Where the bundle is: the whole address.
    pub endpoint: Endpoint,
    /// Time between two questions, before a tenth of jitter.
    pub interval: Duration,
    /// For how long the server may stay silent before everything is denied; none decides on.
    pub max_age: Option<Duration>,
}

/// A receiver of decision logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Where it is: entries go to `/logs` below it.
    pub endpoint: Endpoint,
    /// Fields to leave out, JSON Pointers.
    pub mask: Vec<String>,
    /// Time between two looks at what is to be sent.
    pub interval: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    #[default]
    Embedded,
    Opa,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EngineSection {
    kind: Kind,
    url: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    bundle: Option<String>,
    timeout_ms: Option<u32>,
    max_bundle_age_s: Option<u32>,
    require_decision_id: bool,
    dangerous_allow_old_opa: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicySection {
    bundle: Option<BundleSection>,
    log: Option<LogSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BundleSection {
    url: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    interval_s: Option<u32>,
    max_age_s: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogSection {
    url: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    mask: Vec<String>,
    interval_s: Option<u32>,
}

fn wrong(key: &str, reason: impl Into<String>) -> Error {
    Error::State { path: format!("verifier.toml: {key}"), reason: reason.into() }
}

fn seconds(key: &str, given: Option<u32>, least: u32) -> Result<Option<Duration>, Error> {
    match given {
        Some(value) if value < least => Err(wrong(key, format!("{value} s, at least {least}"))),
        other => Ok(other.map(|value| Duration::from_secs(value.into()))),
    }
}

impl EngineSection {
    /// `url` overrides the file's.
    pub(super) fn read(self, dir: &Path, url: Option<String>) -> Result<Option<OpaConfig>, Error> {
        if self.kind == Kind::Embedded {
            return match self.url {
                None => Ok(None),
                Some(_) => Err(wrong("engine.url", "is for kind = \"opa\"; this is kind = \"embedded\"")),
            };
        }
        let url = url.or(self.url).ok_or_else(|| wrong("engine.url", "kind = \"opa\" needs it"))?;
        if url.starts_with("http://") {
            return Err(wrong("engine.url", "an engine decides who gets keys: https:// or unix:PATH"));
        }
        let named = Named { url: &url, ca: self.ca.as_deref(), token_file: self.token_file.as_deref() };
        let timeout = self.timeout_ms.unwrap_or(2000);
        if !(10..=60_000).contains(&timeout) {
            return Err(wrong("engine.timeout_ms", format!("{timeout} is not from 10 to 60000")));
        }
        Ok(Some(OpaConfig {
            endpoint: Endpoint::load(dir, named)?,
            bundle: self.bundle.unwrap_or_else(|| "countersign".to_owned()),
            deadline: Duration::from_millis(timeout.into()),
            max_bundle_age: seconds("engine.max_bundle_age_s", self.max_bundle_age_s, 1)?,
            decision_id: self.require_decision_id,
            dangerous_allow_old_opa: self.dangerous_allow_old_opa,
        }))
    }
}

impl PolicySection {
    /// `bundle_url` and `log_url` override the file's.
    pub(super) fn read(
        self,
        dir: &Path,
        bundle_url: Option<String>,
        log_url: Option<String>,
    ) -> Result<(Option<BundleConfig>, Option<LogConfig>), Error> {
        let given = self.bundle.unwrap_or_default();
        let bundle = match bundle_url.or(given.url) {
            None => None,
            Some(url) => {
                let named = Named { url: &url, ca: given.ca.as_deref(), token_file: given.token_file.as_deref() };
                let interval = seconds("policy.bundle.interval_s", given.interval_s, 1)?;
                Some(BundleConfig {
                    endpoint: Endpoint::load(dir, named)?,
                    interval: interval.unwrap_or(Duration::from_secs(60)),
                    max_age: seconds("policy.bundle.max_age_s", given.max_age_s, 1)?,
                })
            }
        };
        let given = self.log.unwrap_or_default();
        let log = match log_url.or(given.url) {
            None => None,
            Some(url) if url.starts_with("http://") => {
                return Err(wrong("policy.log.url", "decisions name hosts and what they run: https:// or unix:PATH"));
            }
            Some(url) => {
                let named = Named { url: &url, ca: given.ca.as_deref(), token_file: given.token_file.as_deref() };
                let outside = |mask: &&String| !mask.starts_with("/input/") && !mask.starts_with("/result/");
                if let Some(mask) = given.mask.iter().find(outside) {
                    return Err(wrong("policy.log.mask", format!("{mask:?} begins with neither /input/ nor /result/")));
                }
                let interval = seconds("policy.log.interval_s", given.interval_s, 1)?;
                Some(LogConfig {
                    endpoint: Endpoint::load(dir, named)?,
                    mask: given.mask,
                    interval: interval.unwrap_or(Duration::from_secs(5)),
                })
            }
        };
        Ok((bundle, log))
    }
}
