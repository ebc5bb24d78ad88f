//! What is made of stored verdicts: decision logs, and what a new policy would change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use countersign_policy::shipped_host_policy;
use countersign_verifier::appraise::{appraise, verdict_bytes};
use countersign_verifier::policy::mutate::{shipped_evidence, shipped_settings, with_settings};
use countersign_verifier::policy::{decision_log, preview, store};
use countersign_verifier::service::Service;
use countersign_wire::cbor;
use countersign_wire::record::{EnrolmentRecord, Record};
use serde_json::Value;

/// A verifier with one stored verdict about the shipped host.
async fn verifier(dir: &std::path::Path) -> Service {
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_verifier"))
        .arg("--state-dir")
        .arg(dir)
        .args(["init", "--dev"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let service = Service::open(dir).await.unwrap();
    let (context, evidence) = shipped_evidence().unwrap();
    let verdict = appraise(&evidence, &context).verdict;
    assert!(verdict.allow, "{:?}", verdict.reasons);
    let document = verdict_bytes(&verdict);
    let enrolment = EnrolmentRecord {
        ek_certificate: Vec::new(),
        chain: Vec::new(),
        root: Vec::new(),
        ek_public: Vec::new(),
        time: 0,
    };
    let record = Record {
        version: 1,
        context: minicbor::to_vec(&context).unwrap(),
        evidence,
        verdict: document.clone(),
        enrolment,
    };
    let path = format!("sqlite://{}", dir.join("verifier.db").display());
    let mut database = <sqlx::SqliteConnection as sqlx::Connection>::connect(&path).await.unwrap();
    sqlx::query("INSERT INTO verdicts (id, host, time_ms, purpose, allow, workload, document, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(context.verdict_id.0.as_slice())
        .bind(context.host.host.0.as_slice())
        .bind(context.now_ms)
        .bind(&verdict.purpose)
        .bind(true)
        .bind(None::<Vec<u8>>)
        .bind(document)
        .bind(cbor::encode(&record))
        .execute(&mut database)
        .await
        .unwrap();
    service
}

#[tokio::test]
async fn decisions_are_logged_once_with_masked_fields_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let service = verifier(&dir.path().join("state")).await;
    let file = dir.path().join("decisions.jsonl");
    let masks = ["/input/host/name".to_owned(), "/input/nothing".to_owned(), "/decision_id".to_owned()];
    assert_eq!(decision_log::export(&service, &file, &masks).await.unwrap(), 2);
    assert_eq!(decision_log::export(&service, &file, &masks).await.unwrap(), 0, "behind the cursor");
    let text = std::fs::read_to_string(&file).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<&str> = entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["countersign/host/verdict", "countersign/workload/verdict"]);
    for entry in &entries {
        assert_eq!(entry["result"]["allow"], true);
        assert_eq!(entry["input"]["host"].get("name"), None);
        assert_eq!(entry["erased"], serde_json::json!(["/input/host/name"]));
        assert!(entry["decision_id"].is_string() && entry["timestamp"].is_string());
    }
    // A lost cursor repeats, with the same ids: nothing is lost.
    std::fs::remove_file(dir.path().join("state/policy/log-cursor")).unwrap();
    assert_eq!(decision_log::export(&service, &file, &[]).await.unwrap(), 2);
}

#[tokio::test]
async fn a_preview_says_what_would_change_and_why_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = verifier(&dir.path().join("state")).await;
    let same = preview::preview(&service, shipped_host_policy(), 10).await.unwrap();
    assert_eq!((same.looked_at, same.changes.len()), (1, 0));
    let mut settings = shipped_settings().unwrap();
    settings.hosts = vec!["00".repeat(32)];
    let stricter = with_settings(shipped_host_policy(), &settings).unwrap();
    let found = preview::preview(&service, &stricter, 10).await.unwrap();
    assert_eq!(found.changes.len(), 1);
    assert!(found.changes[0].was && !found.changes[0].would_be);
    assert!(found.changes[0].reasons[0].starts_with("host-known: "), "{:?}", found.changes);
    assert_eq!(store::active(&service.dir).unwrap(), None);
}
