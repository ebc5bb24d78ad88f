//! Decision logs in OPA's format (<https://www.openpolicyagent.org/docs/management-decision-logs>): what is in them, and to a file, one JSON object a line.
//!
//! They are made from the stored verdicts, behind a cursor: a decision never waits for its log, and nothing is lost when the verifier or this command
//! stops. After a crash the last entries may stand twice, with the same decision id.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use countersign_policy::verdict::Verdict;
use countersign_policy::{PolicyBundle, Role};
use countersign_wire::time::rfc3339;
use serde_json::{Value, json};

use crate::appraise::{Context, decisions, policy_input};
use crate::error::Error;
use crate::service::{Service, records};
use crate::store::from_cbor;

/// Verdicts that are read at once.
const BATCH: usize = 200;
/// Bytes of records after which no more are read.
const BATCH_BYTES: usize = 32 << 20;

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

/// rowid, time, verdict id, document, record.
type StoredVerdict = (i64, i64, Vec<u8>, Vec<u8>, Vec<u8>);

/// The next verdicts behind a cursor, by row, with their entries; empty at the end. Of long records fewer: each may have tens of megabytes of logs.
pub(super) async fn read(service: &Service, cursor: Cursor, masks: &[String]) -> Result<Vec<(i64, Vec<Value>)>, Error> {
    let mut after = cursor.after(service).await?;
    let (mut made, mut bytes) = (Vec::new(), 0_usize);
    while made.len() < BATCH && bytes < BATCH_BYTES {
        let next: Option<StoredVerdict> = sqlx::query_as(
            "SELECT rowid, time_ms, id, document, record FROM verdicts WHERE rowid > ? ORDER BY rowid LIMIT 1",
        )
        .bind(after)
        .fetch_optional(service.store.pool())
        .await?;
        let Some((row, time_ms, id, document, record)) = next else { break };
        let entries = match logged(service, &document, record, masks, &mut bytes).await {
            // It is no better the next time, and what comes after it is to be logged.
            Err(Error::Corrupt(why)) => {
                let verdict = hex::encode(id);
                tracing::error!(verdict, why, "decision log: a stored verdict cannot be read");
                vec![unreadable(&verdict, time_ms, &why)]
            }
            made => made?,
        };
        made.push((row, entries));
        after = row;
    }
    Ok(made)
}

/// The entries of a stored verdict; adds the length of its record to `bytes`.
async fn logged(
    service: &Service,
    document: &[u8],
    record: Vec<u8>,
    masks: &[String],
    bytes: &mut usize,
) -> Result<Vec<Value>, Error> {
    // Evidence that nobody's TPM signed has no record, and no policy saw it.
    if record.is_empty() {
        return Ok(Vec::new());
    }
    let verdict: Verdict = serde_json::from_slice(document).map_err(|e| Error::Corrupt(e.to_string()))?;
    let record = records::decode(record)?;
    *bytes = bytes.saturating_add(record.evidence.len()).saturating_add(record.context.len());
    let context: Context = from_cbor(&record.context)?;
    service.load_sets(context.ima.as_ref()).await?;
    let (evidence, masks) = (record.evidence, masks.to_vec());
    let made = tokio::task::spawn_blocking(move || entries(&context, &evidence, &verdict, &masks));
    made.await.map_err(|e| Error::Internal(e.to_string()))
}

/// What stands in the log for a stored verdict that cannot be read: OPA's field for a decision that failed.
fn unreadable(verdict: &str, time_ms: i64, why: &str) -> Value {
    json!({
        "labels": {"app": "countersign"},
        "decision_id": format!("{verdict}-host"),
        "timestamp": rfc3339(time_ms),
        "error": {"code": "record-corrupt", "message": format!("the stored verdict cannot be read: {why}")},
    })
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
