//! Decision logs to a receiver over HTTP.

use std::collections::BTreeMap;
use std::io::{Read as _, Write};
use std::sync::{Arc, Mutex};

use countersign_verifier::policy::report::reported;
use countersign_wire::statement::Purpose;
use serde_json::{Value, json};

use crate::kill::Process;
use crate::lab::{Lab, Machine};
use crate::policies::until;
use crate::web::{Asked, Web, reply};

type Got = Arc<Mutex<Vec<Value>>>;

fn unpack(asked: &Asked) -> Vec<Value> {
    assert_eq!(asked.line, "POST /logs HTTP/1.1");
    assert_eq!(asked.header("content-encoding"), Some("gzip"));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    assert_eq!(asked.header("authorization"), Some("Bearer secret"));
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(asked.body.as_slice()).read_to_end(&mut json).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn take(got: &Got) -> impl FnMut(&Asked, &mut dyn Write) + Send + 'static {
    let got = Arc::clone(got);
    move |asked, out| {
        got.lock().unwrap().extend(unpack(asked));
        let _ = out.write_all(&reply("200 OK", &[], b""));
    }
}

fn lab() -> (Lab, Machine) {
    let (mut lab, machine) = Lab::enrolled();
    countersign_verifier::keys::write_secret(&lab.path().join("log.token"), b"secret\n").unwrap();
    let socket = lab.path().join("logs.sock");
    lab.configure(&format!(
        "[policy.log]\nurl = \"unix:{}\"\ntoken_file = \"log.token\"\nmask = [\"/input/host/name\"]\ninterval_s = 1",
        socket.display()
    ));
    (lab, machine)
}

/// One attestation over HTTPS; its verdict id.
fn attest(lab: &Lab, process: &Process, machine: &mut Machine) -> String {
    let challenge = lab.challenge(machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    let answer = process.send(lab, "/v1/attest", &evidence).join().unwrap().unwrap();
    let answer: countersign_wire::answer::Answer = countersign_wire::cbor::decode(&answer).unwrap();
    if answer.allow {
        machine.accept(&answer);
    }
    answer.verdict_id.to_string()
}

/// How often each decision came.
fn count(got: &Got) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for entry in got.lock().unwrap().iter() {
        *count.entry(entry["decision_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    count
}

#[test]
fn decisions_reach_their_receiver_whatever_happens_to_it() {
    let (lab, mut machine) = lab();
    let socket = lab.path().join("logs.sock");
    let got = Got::default();
    let mut want = Vec::new();
    // Nobody is there: decisions are made all the same.
    let process = Process::start(&lab);
    want.push(attest(&lab, &process, &mut machine));
    let down = until("a failure", || reported(lab.path()).filter(|reported| reported.failures > 1));
    assert!(down.waiting >= 1 && down.error.is_some(), "{down:?}");
    // It answers 500, then breaks off, then waits: nothing counts as received.
    let web = Web::unix(&socket, |asked, out| {
        unpack(asked);
        let _ = out.write_all(&reply("500 Oh", &[], b""));
    });
    until("a refusal", || {
        reported(lab.path()).filter(|reported| reported.error.as_ref().is_some_and(|e| e.contains("500")))
    });
    web.answers(|asked, _| drop(unpack(asked)));
    until("a broken one", || {
        reported(lab.path()).filter(|reported| reported.error.as_ref().is_some_and(|e| !e.contains("500")))
    });
    let (asked, is_asked) = std::sync::mpsc::channel();
    let (go, on) = std::sync::mpsc::channel::<()>();
    web.answers(move |_, _| {
        let _ = asked.send(());
        let _ = on.recv();
    });
    is_asked.recv().unwrap();
    want.push(attest(&lab, &process, &mut machine));
    want.push(attest(&lab, &process, &mut machine));
    // The verifier dies while its report is under way.
    drop(process);
    drop(go);
    let process = Process::start(&lab);
    want.push(attest(&lab, &process, &mut machine));
    web.answers(take(&got));
    until("all of them", || (count(&got).len() == want.len()).then_some(()));
    want.push(attest(&lab, &process, &mut machine));
    until("the next one", || (count(&got).len() == want.len()).then_some(()));
    let count = count(&got);
    let mut ids: Vec<String> = want.iter().map(|id| format!("{id}-host")).collect();
    ids.sort();
    assert_eq!(count.keys().cloned().collect::<Vec<_>>(), ids);
    for entry in got.lock().unwrap().iter() {
        assert_eq!(entry["path"], "countersign/host/verdict");
        assert_eq!(entry["result"]["allow"], true);
        assert_eq!(entry["erased"], json!(["/input/host/name"]));
        assert_eq!(entry["input"]["host"].get("name"), None);
        assert!(entry["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    until("an empty spool", || reported(lab.path()).filter(|reported| reported.waiting == 0 && reported.failures == 0));
    // Started again, it says nothing twice.
    drop(process);
    let sent = got.lock().unwrap().len();
    let process = Process::start(&lab);
    want.push(attest(&lab, &process, &mut machine));
    until("the last one", || (got.lock().unwrap().len() == sent + 1).then_some(()));
}

#[test]
fn evidence_that_nobodys_tpm_signed_stops_no_log() {
    let (lab, mut machine) = lab();
    let got = Got::default();
    let _web = Web::unix(&lab.path().join("logs.sock"), take(&got));
    let challenge = lab.challenge(&machine, None).unwrap();
    let mut evidence: countersign_wire::evidence::Evidence =
        countersign_wire::cbor::decode(&machine.evidence(&challenge, None)).unwrap();
    evidence.signature[20] ^= 1;
    let answer = lab.answer(countersign_wire::cbor::encode(&evidence), Purpose::Attest).unwrap();
    assert!(!answer.allow);
    let process = Process::start(&lab);
    let id = attest(&lab, &process, &mut machine);
    until("the entry behind it", || (!got.lock().unwrap().is_empty()).then_some(()));
    assert_eq!(got.lock().unwrap()[0]["decision_id"], format!("{id}-host"));
}

#[test]
fn a_record_that_cannot_be_read_stops_no_log() {
    let (lab, mut machine) = Lab::enrolled();
    let ids: Vec<String> = (0..3).map(|_| machine.attest(&lab).verdict_id.to_string()).collect();
    let pool = lab.run(crate::nonces::pool(&lab));
    let stored = |id: &str| -> Vec<u8> {
        let row = sqlx::query_scalar("SELECT record FROM verdicts WHERE id = ?").bind(hex::decode(id).unwrap());
        lab.run(row.fetch_one(&pool)).unwrap()
    };
    let store = |id: &str, record: Vec<u8>| {
        let row = sqlx::query("UPDATE verdicts SET record = ? WHERE id = ?").bind(record);
        lab.run(row.bind(hex::decode(id).unwrap()).execute(&pool)).unwrap();
    };
    // As a disk error leaves it; as an older verifier wrote it.
    let (half, whole) = (stored(&ids[0]), stored(&ids[1]));
    store(&ids[0], half[..half.len() / 2].to_vec());
    let plain = zstd::decode_all(whole.as_slice()).unwrap();
    assert!(whole.len() * 2 < plain.len(), "{} of {}", whole.len(), plain.len());
    store(&ids[1], plain);
    let file = lab.path().join("decisions.jsonl");
    let written = lab.run(countersign_verifier::policy::decision_log::export(&lab.service, &file, &[])).unwrap();
    assert_eq!(written, 3);
    let text = std::fs::read_to_string(&file).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (entry, id) in entries.iter().zip(&ids) {
        assert_eq!(entry["decision_id"], format!("{id}-host"));
        assert!(entry["timestamp"].is_string());
    }
    assert_eq!(entries[0]["error"]["code"], "record-corrupt");
    assert_eq!((&entries[1]["result"]["allow"], &entries[2]["result"]["allow"]), (&json!(true), &json!(true)));
    // And an auditor gets what was signed.
    let id = countersign_wire::id::VerdictId(hex::decode(&ids[1]).unwrap().try_into().unwrap());
    let file = lab.run(lab.service.bundle(&id, None)).unwrap();
    let trust = countersign_wire::trust::TrustBundle::digest(&lab.service.keys.trust);
    countersign_verifier::check::check_bundle(&file, Some(trust)).unwrap();
}
