//! Decision logs to a receiver over HTTP, as OPA's decision log plug-in sends them: a gzipped JSON array to `POST /logs`
//! (<https://www.openpolicyagent.org/docs/management-decision-logs>).
//!
//! The stored verdicts are the spool and a cursor in the state folder says how far it was read: nothing is kept twice, nothing is dropped, a decision
//! never waits, and what a stopped verifier had not reported it reports when it is back. After a crash the last entries may come twice, with
//! the same decision id.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use reqwest::header;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decision_log::{Cursor, read};
use super::poll::{jittered, words};
use super::store;
use crate::config::LogConfig;
use crate::error::Error;
use crate::service::Service;

/// Longest upload.
const UPLOAD: Duration = Duration::from_secs(30);
/// Bytes of JSON after which an upload is closed; one decision may be longer.
const CHUNK: usize = 1 << 20;
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
const FILE: &str = "policy/report.json";

/// How reporting goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reported {
    /// To whom.
    pub url: String,
    /// Verdicts that wait to be reported, when it was written.
    pub waiting: u64,
    /// Failures in a row.
    pub failures: u64,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "log        {}: {} verdicts wait", self.url, self.waiting)?;
        match &self.error {
            Some(error) => write!(f, "; {} failures in a row: {error}", self.failures),
            None => Ok(()),
        }
    }
}

/// How reporting goes; none before the first time.
#[must_use]
pub fn reported(dir: &Path) -> Option<Reported> {
    serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()
}

/// Reports whatever is decided, for as long as the verifier runs.
pub(crate) async fn run(service: Service, config: LogConfig) {
    let client = config
        .endpoint
        .client()
        .and_then(|(builder, base)| Ok((builder.timeout(UPLOAD).build().map_err(|e| e.to_string())?, base)));
    let (client, base) = match client {
        Ok(client) => client,
        Err(e) => return tracing::error!(error = e, "no decisions are reported"),
    };
    let url = format!("{base}/logs");
    let mut failures: u64 = 0;
    loop {
        let sent = round(&service, &config, &client, &url).await;
        let error = sent.as_ref().err().map(ToString::to_string);
        failures = if error.is_some() { failures.saturating_add(1) } else { 0 };
        if let Some(error) = &error {
            tracing::warn!(error, failures, "decision log");
        }
        note(&service, &config, failures, error).await;
        match sent {
            Ok(0) => {
                let _ = tokio::time::timeout(config.interval, service.decided.notified()).await;
            }
            Ok(_) => {}
            Err(_) => {
                let doublings = u32::try_from(failures.saturating_sub(1).min(16)).unwrap_or(16);
                let pause = PAUSE.0.saturating_mul(2_u32.saturating_pow(doublings)).min(PAUSE.1);
                tokio::time::sleep(jittered(pause)).await;
            }
        }
    }
}

async fn note(service: &Service, config: &LogConfig, failures: u64, error: Option<String>) {
    let waiting = Cursor::Http.waiting(service).await.unwrap_or_default();
    let reported = Reported { url: config.endpoint.address.clone(), waiting, failures, error };
    if self::reported(&service.dir).as_ref() == Some(&reported) {
        return;
    }
    let json = serde_json::to_vec(&reported).unwrap_or_default();
    if let Err(e) = store::replace(&service.dir.join(FILE), &json) {
        tracing::error!(error = %e, "policy/report.json");
    }
}

/// Sends the next verdicts' entries; answers how many verdicts are done.
async fn round(service: &Service, config: &LogConfig, client: &reqwest::Client, url: &str) -> Result<usize, Error> {
    let batch = read(service, Cursor::Http, &config.mask).await?;
    let done = batch.len();
    let mut chunk: Vec<Value> = Vec::new();
    let mut bytes: usize = 0;
    let mut last = None;
    for (row, entries) in batch {
        for entry in entries {
            bytes = bytes.saturating_add(entry.to_string().len());
            chunk.push(entry);
        }
        last = Some(row);
        if bytes >= CHUNK {
            upload(config, client, url, &chunk).await?;
            Cursor::Http.set(&service.dir, row)?;
            (chunk, bytes, last) = (Vec::new(), 0, None);
        }
    }
    if let Some(row) = last {
        if !chunk.is_empty() {
            upload(config, client, url, &chunk).await?;
        }
        Cursor::Http.set(&service.dir, row)?;
    }
    Ok(done)
}

async fn upload(config: &LogConfig, client: &reqwest::Client, url: &str, entries: &[Value]) -> Result<(), Error> {
    let failed = |e: String| Error::State { path: config.endpoint.address.clone(), reason: e };
    let json = serde_json::to_vec(entries).map_err(|e| failed(e.to_string()))?;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let packed = packer.write_all(&json).and_then(|()| packer.finish()).map_err(|e| failed(e.to_string()))?;
    let mut request = client
        .post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(packed);
    if let Some(token) = &config.endpoint.token {
        request = request.bearer_auth(token.as_str());
    }
    let status = request.send().await.map_err(|e| failed(words(&e)))?.status();
    if status.is_success() { Ok(()) } else { Err(failed(format!("the receiver answers {status}"))) }
}
