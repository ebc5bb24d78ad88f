//! A candidate policy decides beside the one in force: it is recorded, and changes nothing.

use std::process::Command;

use countersign_verifier::policy::{preview, store};
use serde_json::{Value, json};

use crate::lab::{Lab, denied, problem};
use crate::policies::{DAY, Signer, released};

fn verifier(lab: &Lab, args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
    let done = command.arg("--state-dir").arg(lab.path()).arg("--json").args(args).output().unwrap();
    assert!(done.status.success(), "{args:?} {done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn recorded(lab: &Lab) -> Vec<Value> {
    let rows: Vec<Vec<u8>> = lab.run(async {
        let pool = crate::nonces::pool(lab).await;
        let query = "SELECT c.document FROM candidate_verdicts c JOIN verdicts v ON v.id = c.verdict ORDER BY v.rowid";
        sqlx::query_scalar(query).fetch_all(&pool).await.unwrap()
    });
    rows.iter().map(|row| serde_json::from_slice(row).unwrap()).collect()
}

#[test]
fn a_candidate_is_recorded_shown_and_promoted_and_changes_nothing_before() {
    let (lab, mut machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    assert_eq!(problem(lab.run(preview::audited(&lab.service, 10))), "not-found");
    let strict = signer.strict(2);
    std::fs::write(lab.path().join("strict.tar.gz"), &strict).unwrap();
    let file = lab.path().join("strict.tar.gz");
    let file = file.to_str().unwrap();
    verifier(&lab, &["policy", "load", file, "--audit"]);
    let workload = lab.register(Vec::new()).unwrap();
    let attested = machine.attest(&lab);
    let released = machine.release(&lab, workload);
    assert!(attested.allow && released.allow && released.release.is_some(), "the candidate refuses nothing");
    machine.accept(&released);
    let documents = recorded(&lab);
    assert_eq!(documents.len(), 2);
    for (document, answer) in documents.iter().zip([&attested, &released]) {
        assert_eq!((&document["mode"], &document["allow"]), (&json!("audit-only"), &json!(false)));
        assert_eq!(document["id"], answer.verdict_id.to_string());
        assert_eq!(document["reasons"][0]["id"], "unheard-of");
        assert_ne!(document["basis"]["host_policy"], verdict(answer)["basis"]["host_policy"]);
        assert_eq!(verdict(answer)["mode"], "enforce");
    }
    let audited = verifier(&lab, &["policy", "audit"]);
    assert_eq!((&audited["decided"], &audited["subjects"]), (&json!(2), &json!(2)));
    let changes = audited["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2, "the host, and the host with its workload");
    assert!(changes.iter().all(|change| change["was"] == true && change["would_be"] == false));
    assert!(changes[0]["reasons"][0].as_str().unwrap().starts_with("unheard-of: "), "{changes:?}");
    let status = verifier(&lab, &["policy", "status"]);
    assert_eq!((&status["candidate"]["revision"], &status["current"]), (&json!(2), &json!(null)));
    assert_eq!(status["highest"], 0, "a candidate's revision is not taken");
    // The same bundle without --audit is enforced, and no candidate any more.
    verifier(&lab, &["policy", "load", file]);
    assert_eq!(denied(&machine.attest(&lab)), ["unheard-of"]);
    assert_eq!(recorded(&lab).len(), 2);
    let status = verifier(&lab, &["policy", "status"]);
    assert_eq!((&status["candidate"], &status["current"]["revision"]), (&json!(null), &json!(2)));
}

fn verdict(answer: &countersign_wire::answer::Answer) -> Value {
    serde_json::from_slice(&answer.verdict).unwrap()
}

#[test]
fn a_candidate_never_grants_and_its_errors_change_nothing() {
    let (lab, mut machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    store::load(lab.path(), &signer.strict(1), &lab.service.trial).unwrap();
    store::load_candidate(lab.path(), &signer.good(2), &lab.service.trial).unwrap();
    assert_eq!(denied(&machine.attest(&lab)), ["unheard-of"], "though the candidate would allow");
    assert_eq!(recorded(&lab).last().unwrap()["allow"], true);
    let audited = lab.run(preview::audited(&lab.service, 10)).unwrap();
    assert!(audited.changes[0].would_be && audited.changes[0].reasons[0].starts_with("unheard-of: "));
    // What is refused as a policy is refused as a candidate, and the old one stays.
    let before = store::status(lab.path()).unwrap().candidate;
    let expired = signer.sign(&released(countersign_policy::shipped_host_policy(), 3, store::now_ms() - DAY));
    for bad in [signer.strict(1), expired, b"nonsense".to_vec()] {
        store::load_candidate(lab.path(), &bad, &lab.service.trial).unwrap_err();
    }
    assert_eq!(store::status(lab.path()).unwrap().candidate, before);
    // One that is broken on disk is recorded as what it is: a no with a reason.
    store::load(lab.path(), &signer.good(4), &lab.service.trial).unwrap();
    std::fs::write(lab.path().join("policy/candidate"), b"nonsense").unwrap();
    assert!(machine.attest(&lab).allow);
    assert_eq!(recorded(&lab).last().unwrap()["reasons"][0]["id"], "policy-refused");
    // One that cannot be recorded, neither.
    lab.run(async {
        let pool = crate::nonces::pool(&lab).await;
        sqlx::query("DROP TABLE candidate_verdicts").execute(&pool).await.unwrap();
    });
    assert!(machine.attest(&lab).allow);
    assert!(store::drop_candidate(lab.path()).unwrap());
    assert!(!store::drop_candidate(lab.path()).unwrap());
    assert!(machine.attest(&lab).allow);
}
