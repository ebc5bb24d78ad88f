//! Decision logs in OPA's format (<https://www.openpolicyagent.org/docs/management-decision-logs>): what is in them, and to a file, one JSON object a line.
//!
//! They are made from the stored verdicts, behind a cursor: a decision never waits for its log, and nothing is lost when the verifier or this command
//! stops. After a crash the last entries may stand twice, with the same decision id.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use countersign_policy::verdict::Verdict;
use countersign_policy::{PolicyBundle, Role};
use countersign_wire::record::Record;
use serde_json::{Value, json};

use crate::appraise::{Context, decisions, policy_input};
use crate::error::Error;
use crate::service::Service;
use crate::store::from_cbor;

/// Verdicts that are read at once.
const BATCH: i64 = 200;

/// The entries of one stored verdict: the host policy's decision, and for a release the workload policy's. Evidence that was refused before any policy
/// saw it has none. Fields named by `masks` (JSON Pointers below the entry, `/input/...` or `/result/...`) are taken away and listed in `erased`.
#[must_use]
pub fn entries(context: &Context, evidence: &[u8], verdict: &Verdict, masks: &[String]) -> Vec<Value> {
    let Ok(input) = policy_input(evidence, context) else { return Vec::new() };
    let mut made = Vec::new();
    for (role, decision) in decisions(&input, context) {
        let bundle = match role {
            Role::Host => Some(&context.host_policy),
            Role::Workload => context.workload_policy.as_ref(),
        };
        let parsed = bundle.and_then(|bundle| PolicyBundle::parse(bundle).ok());
        let (revision, digest) = parsed
            .map_or_else(Default::default, |parsed| (parsed.manifest().revision.clone(), hex::encode(parsed.digest())));
        let mut labels = json!({"app": "countersign", "engine": verdict.basis.engine, "host": verdict.host});
        if let (Role::Host, Some(remote), Some(labels)) = (role, &verdict.basis.remote, labels.as_object_mut()) {
            labels.insert("remote".into(), json!(remote.engine));
            labels.insert("remote_decision_id".into(), json!(remote.decision_id));
        }
        let mut entry = json!({
            "labels": labels,
            "decision_id": format!("{}-{}", verdict.id, if role == Role::Host { "host" } else { "workload" }),
            "timestamp": input.time,
            "path": format!("{}/verdict", role.package().replace('.', "/")),
            "bundles": {(role.package()): {"revision": revision, "digest": digest}},
            "input": input,
            "result": {"allow": decision.allow, "reasons": decision.reasons, "obligations": decision.obligations},
        });
        mask(&mut entry, masks);
        made.push(entry);
    }
    made
}

/// Takes fields away, as OPA's `remove` masks do.
fn mask(entry: &mut Value, masks: &[String]) {
    let mut erased = Vec::new();
    for pointer in masks.iter().filter(|pointer| pointer.starts_with("/input/") || pointer.starts_with("/result/")) {
        let Some((parent, key)) = pointer.rsplit_once('/') else { continue };
        let removed = match entry.pointer_mut(parent) {
            Some(Value::Object(map)) => map.remove(key).is_some(),
            _ => false,
        };
        if removed {
            erased.push(json!(pointer));
        }
    }
    if let (false, Some(map)) = (erased.is_empty(), entry.as_object_mut()) {
        map.insert("erased".into(), Value::Array(erased));
    }
}

/// How far a log was written: each has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    /// `verifier policy log`.
    File,
    /// The receiver of `[policy.log]`.
    Http,
}

impl Cursor {
    fn path(self, dir: &Path) -> PathBuf {
        dir.join("policy").join(match self {
            Self::File => "log-cursor",
            Self::Http => "log-cursor-http",
        })
    }

    fn get(self, dir: &Path) -> Result<i64, Error> {
        let path = self.path(dir);
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|e| state(&path, &e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(state(&path, &e)),
        }
    }

    pub(super) fn set(self, dir: &Path, row: i64) -> Result<(), Error> {
        super::store::replace(&self.path(dir), row.to_string().as_bytes())
    }

    /// Where to read on. A database that ends before the cursor was restored from a backup: all of it is logged again, and nothing is lost.
    async fn after(self, service: &Service) -> Result<i64, Error> {
        let cursor = self.get(&service.dir)?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT max(rowid) FROM verdicts").fetch_one(service.store.pool()).await?;
        Ok(if last.unwrap_or(0) < cursor { 0 } else { cursor })
    }

    /// Verdicts that are not logged yet.
    pub(super) async fn waiting(self, service: &Service) -> Result<u64, Error> {
        let cursor = self.after(service).await?;
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM verdicts WHERE rowid > ?")
            .bind(cursor)
            .fetch_one(service.store.pool())
            .await?;
        Ok(u64::try_from(waiting).unwrap_or(0))
    }
}

fn state(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::State { path: path.display().to_string(), reason: e.to_string() }
}

/// The next verdicts behind a cursor, by row, with their entries; empty at the end.
pub(super) async fn read(service: &Service, cursor: Cursor, masks: &[String]) -> Result<Vec<(i64, Vec<Value>)>, Error> {
    let rows: Vec<(i64, Vec<u8>, Vec<u8>)> =
        sqlx::query_as("SELECT rowid, document, record FROM verdicts WHERE rowid > ? ORDER BY rowid LIMIT ?")
            .bind(cursor.after(service).await?)
            .bind(BATCH)
            .fetch_all(service.store.pool())
            .await?;
    let corrupt = |e: &dyn std::fmt::Display| Error::Corrupt(e.to_string());
    let mut decoded = Vec::new();
    for (row, document, record) in rows {
        // Evidence that nobody's TPM signed has no record, and no policy saw it.
        if record.is_empty() {
            decoded.push((row, None));
            continue;
        }
        let verdict: Verdict = serde_json::from_slice(&document).map_err(|e| corrupt(&e))?;
        let record: Record = countersign_wire::cbor::decode(&record).map_err(|e| corrupt(&e))?;
        let context: Context = from_cbor(&record.context)?;
        service.load_sets(context.ima.as_ref()).await?;
        decoded.push((row, Some((context, record.evidence, verdict))));
    }
    let masks = masks.to_vec();
    let made = tokio::task::spawn_blocking(move || {
        let entries =
            |(context, evidence, verdict): (Context, Vec<u8>, Verdict)| entries(&context, &evidence, &verdict, &masks);
        decoded.into_iter().map(|(row, stored)| (row, stored.map(entries).unwrap_or_default())).collect()
    });
    made.await.map_err(|e| Error::Internal(e.to_string()))
}

/// Appends the entries of every verdict since the last call to a file; answers how many.
///
/// # Errors
/// [`Error`]: the cursor stays where it was.
pub async fn export(service: &Service, file: &Path, masks: &[String]) -> Result<usize, Error> {
    let mut written: usize = 0;
    loop {
        let batch = read(service, Cursor::File, masks).await?;
        let Some((last, _)) = batch.last() else { return Ok(written) };
        let last = *last;
        let mut text = String::new();
        for entry in batch.iter().flat_map(|(_, entries)| entries) {
            text.push_str(&entry.to_string());
            text.push('\n');
            written = written.saturating_add(1);
        }
        let open = std::fs::OpenOptions::new().create(true).append(true).open(file);
        open.and_then(|mut out| out.write_all(text.as_bytes()).and_then(|()| out.sync_all()))
            .map_err(|e| state(file, &e))?;
        Cursor::File.set(&service.dir, last)?;
    }
}
