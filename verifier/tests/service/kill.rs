//! `kill -9` of a real `verifier serve`, or an operator, between the decision and the answer.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use countersign_wire::answer::Answer;
use countersign_wire::cbor;
use countersign_wire::statement::Purpose;

use crate::lab::Lab;

/// The program, in a process of its own.
pub(crate) struct Process {
    child: Child,
    pub(crate) url: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Process {
    pub(crate) fn start(lab: &Lab) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_verifier"))
            .arg("--state-dir")
            .arg(lab.path())
            .arg("serve")
            .env("COUNTERSIGN_LOG", "countersign_verifier=debug")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let url = ready.strip_prefix("ready ").unwrap().trim().to_owned();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, url, log }
    }

    /// Waits until the program says this in its log, and kills it there.
    fn kill_at(mut self, word: &str) {
        self.wait_for(word);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "the log ended before {word:?}");
        }
    }

    /// Sends evidence in a thread; the answer, if one comes.
    pub(crate) fn send(&self, lab: &Lab, path: &str, evidence: &[u8]) -> thread::JoinHandle<Option<Vec<u8>>> {
        let (http, url) = (crate::http::client(lab), format!("{}{path}", self.url));
        let evidence = evidence.to_vec();
        thread::spawn(move || {
            let response = http.post(url).body(evidence).send().ok()?;
            response.bytes().ok().map(|bytes| bytes.to_vec())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn killed_after_the_decision_nothing_is_written_and_nothing_signed() {
    let (mut lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let challenge = lab.challenge(&machine, Some(workload)).unwrap();
    let evidence = machine.evidence(&challenge, Some(workload));
    let known = lab.everything();
    let process = Process::start(&lab);
    // Whoever holds the write lock stops the program between deciding and recording.
    let pool = lab.run(crate::nonces::pool(&lab));
    let lock = lab.run(pool.begin_with("BEGIN IMMEDIATE")).unwrap();
    let answer = process.send(&lab, "/v1/release", &evidence);
    process.kill_at("decided");
    assert_eq!(answer.join().unwrap(), None, "no answer came");
    lab.run(lock.rollback()).unwrap();
    lab.reopen();
    assert_eq!((lab.everything(), lab.verdicts().len()), (known, 0));
    // The same evidence is still good, once.
    let answer = lab.answer(evidence.clone(), Purpose::Release).unwrap();
    assert!(answer.allow && answer.release.is_some());
    assert_eq!(lab.answer(evidence, Purpose::Release).unwrap(), answer);
    assert_eq!(lab.verdicts().len(), 1);
}

#[test]
fn killed_after_the_record_the_stored_answer_is_sent() {
    let (mut lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let challenge = lab.challenge(&machine, Some(workload)).unwrap();
    let evidence = machine.evidence(&challenge, Some(workload));
    let process = Process::start(&lab);
    let sent = process.send(&lab, "/v1/release", &evidence);
    process.kill_at("recorded");
    let sent = sent.join().unwrap();
    lab.reopen();
    let known = lab.everything();
    let stored = lab.run(lab.service.answer(evidence.clone(), Purpose::Release)).unwrap();
    assert!(sent.is_none_or(|sent| sent == stored), "whatever left is what was recorded");
    let answer: Answer = cbor::decode(&stored).unwrap();
    assert!(answer.allow && answer.release.is_some());
    let verdicts = lab.verdicts();
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0]["id"], answer.verdict_id.to_string());
    assert_eq!(lab.everything(), known, "nothing is signed or counted twice");
    // A process that starts now says the same.
    let process = Process::start(&lab);
    assert_eq!(process.send(&lab, "/v1/release", &evidence).join().unwrap(), Some(stored));
}

#[test]
fn what_an_operator_revokes_during_an_appraisal_is_revoked() {
    for (change, refused) in [
        ("UPDATE workloads SET withdrawn = 1", "workload-withdrawn"),
        ("UPDATE settings SET value = value + 1 WHERE key = 'reference_revision'", "conflict"),
    ] {
        let (lab, mut machine) = Lab::enrolled();
        let workload = lab.register(Vec::new()).unwrap();
        let challenge = lab.challenge(&machine, Some(workload)).unwrap();
        let evidence = machine.evidence(&challenge, Some(workload));
        let mut process = Process::start(&lab);
        let pool = lab.run(crate::nonces::pool(&lab));
        let mut lock = lab.run(pool.begin_with("BEGIN IMMEDIATE")).unwrap();
        let answer = process.send(&lab, "/v1/release", &evidence);
        process.wait_for("decided");
        lab.run(sqlx::query(change).execute(&mut *lock)).unwrap();
        lab.run(lock.commit()).unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&answer.join().unwrap().unwrap()).unwrap();
        assert_eq!(problem["type"], refused);
        assert_eq!(lab.verdicts().len(), 0);
    }
}
