//! Decision logs in OPA's format (<https://www.openpolicyagent.org/docs/management-decision-logs>), to a file, one JSON object a line.
//!
//! They are made from the stored verdicts, behind a cursor: a decision never waits for its log, and nothing is lost when the verifier or this command
//! stops. After a crash the last entries may stand twice, with the same decision id.

use std::io::Write as _;
use std::path::Path;

use countersign_policy::verdict::Verdict;
use countersign_policy::{Compiled, PolicyBundle, ReferenceData, Role, reference_document};
use serde_json::{Value, json};

use crate::appraise::{Context, policy_input};
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
    let values = serde_json::from_slice(&context.reference).unwrap_or_default();
    let reference = ReferenceData::new(&reference_document(&values));
    let policies = [(Role::Host, Some(&context.host_policy)), (Role::Workload, context.workload_policy.as_ref())];
    let mut made = Vec::new();
    for (role, bundle) in policies {
        let Some(bundle) = bundle else { continue };
        let parsed = PolicyBundle::parse(bundle);
        let decided = parsed.as_ref().ok().and_then(|parsed| Compiled::new(parsed, role).ok());
        let Some(decision) = decided.map(|policy| policy.ready(&reference).decide(&input)) else { continue };
        let (revision, digest) = parsed.map_or_else(
            |_| (String::new(), String::new()),
            |parsed| (parsed.manifest().revision.clone(), hex::encode(parsed.digest())),
        );
        let path = format!("{}/verdict", role.package().replace('.', "/"));
        let mut entry = json!({
            "labels": {"app": "countersign", "engine": verdict.basis.engine, "host": verdict.host},
            "decision_id": format!("{}-{}", verdict.id, if role == Role::Host { "host" } else { "workload" }),
            "timestamp": input.time,
            "path": path,
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

/// Appends the entries of every verdict since the last call to a file; answers how many.
///
/// # Errors
/// [`Error`]: the cursor stays where it was.
pub async fn export(service: &Service, file: &Path, masks: &[String]) -> Result<usize, Error> {
    let cursor_path = service.dir.join("policy").join("log-cursor");
    let state = |path: &Path, e: &dyn std::fmt::Display| Error::State {
        path: path.display().to_string(),
        reason: e.to_string(),
    };
    let mut cursor: i64 = match std::fs::read_to_string(&cursor_path) {
        Ok(text) => text.trim().parse().map_err(|e| state(&cursor_path, &e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(state(&cursor_path, &e)),
    };
    let mut written: usize = 0;
    loop {
        let rows: Vec<(i64, Vec<u8>, Vec<u8>)> =
            sqlx::query_as("SELECT rowid, document, record FROM verdicts WHERE rowid > ? ORDER BY rowid LIMIT ?")
                .bind(cursor)
                .bind(BATCH)
                .fetch_all(service.store.pool())
                .await?;
        let Some((last, _, _)) = rows.last() else { return Ok(written) };
        let last = *last;
        let mut text = String::new();
        // Without evidence (not signed by the TPM, or deleted since) there is no input to log.
        for (_, document, record) in rows.iter().filter(|(_, _, record)| !record.is_empty()) {
            let corrupt = |e: &dyn std::fmt::Display| Error::Corrupt(e.to_string());
            let verdict: Verdict = serde_json::from_slice(document).map_err(|e| corrupt(&e))?;
            let record: countersign_wire::record::Record =
                countersign_wire::cbor::decode(record).map_err(|e| corrupt(&e))?;
            let context: Context = from_cbor(&record.context)?;
            for entry in entries(&context, &record.evidence, &verdict, masks) {
                text.push_str(&entry.to_string());
                text.push('\n');
                written = written.saturating_add(1);
            }
        }
        let open = std::fs::OpenOptions::new().create(true).append(true).open(file);
        open.and_then(|mut out| out.write_all(text.as_bytes()).and_then(|()| out.sync_all()))
            .map_err(|e| state(file, &e))?;
        super::store::replace(&cursor_path, last.to_string().as_bytes())?;
        cursor = last;
    }
}
