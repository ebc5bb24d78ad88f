//! The host policy from a server of signed bundles: asked with the ETag of what is in force, loaded as `verifier policy load` does.
//!
//! Only a good answer counts as one: "not modified", or a bundle whose signature holds and that is the newest that was ever loaded here. A server that
//! sends anything else is as good as silent, and the time since the last good answer is what `max_age_s` bounds.

use std::path::Path;
use std::time::Duration;

use reqwest::{StatusCode, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::store;
use crate::config::BundleConfig;
use crate::error::Error;
use crate::service::Service;

/// Longest download.
const DOWNLOAD: Duration = Duration::from_secs(30);
/// Least age of a good answer: it may come while a decision is made, but not from the future.
const EARLIEST_MS: i64 = -60_000;
const FILE: &str = "policy/poll.json";

/// How polling goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Polled {
    /// Whom it asks.
    pub url: String,
    /// The ETag that came with the newest good bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The last good answer, milliseconds since 1970; 0: none yet.
    pub good_ms: i64,
    /// When it asked last.
    pub asked_ms: i64,
    /// What came of it.
    pub outcome: String,
    /// Questions in a row without a good answer.
    pub failures: u64,
    /// SHA-256 (hex) over the last bundle that was refused and the keys that were trusted then: it is not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl std::fmt::Display for Polled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, good_ms, asked_ms, outcome, failures, .. } = self;
        write!(f, "polled     {url}: {outcome} ({asked_ms} ms since 1970; last good answer {good_ms}")?;
        if *failures > 0 { write!(f, "; {failures} failures in a row)") } else { f.write_str(")") }
    }
}

/// How polling went last; none before the first time.
#[must_use]
pub fn polled(dir: &Path) -> Option<Polled> {
    serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
}

/// Why the policy is too old to decide by; none when its server gave a good answer recently enough.
pub(crate) fn stale(dir: &Path, max_age: Duration, now_ms: i64) -> Option<String> {
    let good = polled(dir).map_or(0, |polled| polled.good_ms);
    let most = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
    let age = now_ms.saturating_sub(good);
    let since = match good {
        0 => "never".to_owned(),
        // The clock was set back: how long ago it was is not known.
        _ if age < EARLIEST_MS => format!("{} s after now", age.saturating_neg() / 1000),
        _ => format!("{} s ago", age / 1000),
    };
    (good == 0 || age < EARLIEST_MS || age > most)
        .then(|| format!("the bundle server gave a good answer {since}; at most {} s are allowed", max_age.as_secs()))
}

/// Asks again and again.
pub(crate) async fn run(service: Service, config: BundleConfig) {
    let client = match config
        .endpoint
        .client()
        .and_then(|(builder, base)| Ok((builder.timeout(DOWNLOAD).build().map_err(|e| e.to_string())?, base)))
    {
        Ok(client) => client,
        // Tried when the configuration was read.
        Err(e) => return tracing::error!(error = e, "no policy is polled"),
    };
    let mut told = String::new();
    loop {
        let polled = ask(&service, &client, &config).await;
        let (url, outcome) = (&polled.url, &polled.outcome);
        // Each outcome once, not at every question.
        if *outcome != told {
            match polled.failures {
                0 => tracing::info!(url, outcome, "policy bundle"),
                _ => tracing::warn!(url, outcome, "policy bundle"),
            }
            told.clone_from(outcome);
        }
        if let Err(e) = write(&service.dir, &polled) {
            tracing::error!(error = %e, "policy/poll.json");
        }
        tokio::time::sleep(jittered(config.interval)).await;
    }
}

/// Nine to eleven tenths: verifiers that were started together do not ask together.
pub(super) fn jittered(time: Duration) -> Duration {
    let tenth = u32::from(u8::from_be_bytes(crate::keys::random()));
    let part = time.checked_div(5).unwrap_or_default().saturating_mul(tenth).checked_div(255).unwrap_or_default();
    time.saturating_mul(9).checked_div(10).unwrap_or(time).saturating_add(part)
}

fn write(dir: &Path, polled: &Polled) -> Result<(), Error> {
    let json = serde_json::to_vec(polled).map_err(|e| Error::Internal(e.to_string()))?;
    store::replace(&dir.join(FILE), &json)
}

/// What a good answer said, with the ETag to ask with next time.
struct Good {
    outcome: String,
    etag: Option<String>,
}

/// One question.
async fn ask(service: &Service, client: &(reqwest::Client, String), config: &BundleConfig) -> Polled {
    let url = config.endpoint.address.clone();
    // Of another server nothing is known.
    let mut known = polled(&service.dir).filter(|polled| polled.url == url).unwrap_or_default();
    (known.url, known.asked_ms) = (url, store::now_ms());
    match answer(service, client, config, &mut known).await {
        Ok(good) => {
            (known.outcome, known.etag) = (good.outcome, good.etag);
            (known.failures, known.good_ms, known.refused) = (0, known.asked_ms, None);
        }
        Err(why) => {
            (known.outcome, known.failures) = (why, known.failures.saturating_add(1));
        }
    }
    known
}

async fn answer(
    service: &Service,
    (client, base): &(reqwest::Client, String),
    config: &BundleConfig,
    known: &mut Polled,
) -> Result<Good, String> {
    let mut request = client.get(base);
    if let Some(token) = &config.endpoint.token {
        request = request.bearer_auth(token.as_str());
    }
    // Only what is in force is worth a "not modified".
    let in_force = store::active(&service.dir).map_err(|e| e.to_string())?.is_some();
    if let Some(etag) = known.etag.as_ref().filter(|_| in_force) {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let asked_with = known.etag.is_some() && in_force;
    let mut response = request.send().await.map_err(|e| format!("not reached: {}", words(&e)))?;
    match response.status() {
        StatusCode::NOT_MODIFIED if asked_with => {
            return Ok(Good { outcome: "not modified".into(), etag: known.etag.clone() });
        }
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(format!("refused: the server answers {status}, a redirect")),
        status => return Err(format!("refused: the server answers {status}")),
    }
    let etag = response.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let limit = countersign_policy::limits::BUNDLE_BYTES;
    let mut bundle = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|e| format!("broke off: {}", words(&e)))? {
        if bundle.len().saturating_add(part.len()) > limit {
            return Err(format!("refused: more than {limit} bytes"));
        }
        bundle.extend_from_slice(&part);
    }
    let this = store::circumstances(&service.dir, &bundle).map_err(|e| e.to_string())?;
    if known.refused.as_ref() == Some(&this) {
        return Err(known.outcome.clone());
    }
    let service = service.clone();
    let taken = tokio::task::spawn_blocking(move || take(&service, &bundle));
    match taken.await.map_err(|e| e.to_string())? {
        Ok(outcome) => Ok(Good { outcome, etag }),
        // It follows from the bytes, and is the same the next time.
        Err(e @ Error::Request(_)) => {
            known.refused = Some(this);
            Err(format!("refused: {e}"))
        }
        Err(e) => Err(format!("not loaded: {e}")),
    }
}

/// Loads a bundle, unless it is in force already, or was until an operator rolled it back.
fn take(service: &Service, bundle: &[u8]) -> Result<String, Error> {
    if let Some(about) = store::newest(&service.dir, bundle)? {
        let active = store::active(&service.dir)?;
        let is = |stored: Option<&Vec<u8>>| stored.is_some_and(|own| hex::encode(Sha256::digest(own)) == about.digest);
        if is(active.as_ref()) {
            return Ok(format!("unchanged: revision {}", about.revision));
        }
        if active.is_some() && is(store::previous(&service.dir)?.as_ref()) {
            return Ok(format!("the newest one, which was rolled back here: revision {}", about.revision));
        }
    }
    store::load(&service.dir, bundle, &service.trial).map(|about| format!("loaded: revision {}", about.revision))
}

/// An error with its causes: reqwest's own words name only the address.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_answer_in_the_future_is_none() {
        let dir = tempfile::TempDir::new().unwrap();
        let stale = |good_ms| {
            write(dir.path(), &Polled { good_ms, ..Polled::default() }).unwrap();
            stale(dir.path(), Duration::from_secs(10), 1_000_000)
        };
        assert!(stale(0).unwrap().contains("never"));
        assert!(stale(1_000_000 - 10_001).unwrap().contains("10 s ago"));
        assert_eq!((stale(1_000_000 - 10_000), stale(1_000_500)), (None, None));
        assert!(stale(2_000_000).unwrap().contains("1000 s after now"));
    }
}
