//! A backup of the database put back: hosts are not punished for it, and what was used up stays so.

use countersign_verifier::admin::Request;
use countersign_wire::answer::Answer;
use countersign_wire::statement::Purpose;

use crate::lab::{Lab, Machine, problem};

/// A consistent copy of the database, as a backup is.
fn back_up(lab: &Lab) {
    let copy = lab.path().join("backup.db");
    lab.run(async {
        let pool = crate::nonces::pool(lab).await;
        sqlx::query("VACUUM INTO ?").bind(copy.display().to_string()).execute(&pool).await.unwrap();
        pool.close().await;
    });
}

/// The copy put back, as a new process finds it; and the operator says so.
fn restore(lab: &mut Lab) {
    let path = |name: &str| lab.path().join(name);
    for name in ["verifier.db-wal", "verifier.db-shm"] {
        let _ = std::fs::remove_file(path(name));
    }
    std::fs::rename(path("backup.db"), path("verifier.db")).unwrap();
    lab.reopen();
    lab.ask(Request::Restored {}).unwrap();
}

fn marked(answer: &Answer) -> bool {
    let verdict: serde_json::Value = serde_json::from_slice(&answer.verdict).unwrap();
    verdict["checks"].as_array().unwrap().iter().any(|check| check["id"] == "verifier-state-lost")
}

#[test]
fn lost_receipts_are_accepted_once_and_marked() {
    let (mut lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    back_up(&lab);
    machine.attest(&lab);
    machine.attest(&lab);
    restore(&mut lab);
    let answer = machine.attest(&lab);
    assert!(answer.allow && marked(&answer));
    let answer = machine.attest(&lab);
    assert!(answer.allow && !marked(&answer));
    assert_eq!(lab.state(), "active");
    // A second restore without saying so: genuine, and refused.
    back_up(&lab);
    machine.attest(&lab);
    for name in ["verifier.db-wal", "verifier.db-shm"] {
        let _ = std::fs::remove_file(lab.path().join(name));
    }
    std::fs::rename(lab.path().join("backup.db"), lab.path().join("verifier.db")).unwrap();
    lab.reopen();
    assert_eq!(crate::lab::denied(&machine.attest(&lab)), ["receipts"]);
    assert_eq!(lab.state(), "active", "refused, not suspended");
    lab.ask(Request::Restored {}).unwrap();
    assert!(marked(&machine.attest(&lab)));
}

#[test]
fn a_backup_from_before_reboots() {
    for reboots in [1, 2] {
        let (mut lab, mut machine) = Lab::enrolled();
        machine.attest(&lab);
        back_up(&lab);
        for _ in 0..reboots {
            machine.attest(&lab);
            machine.reboot();
        }
        machine.attest(&lab);
        machine.attest(&lab);
        restore(&mut lab);
        let answer = machine.attest(&lab);
        assert!(answer.allow && marked(&answer), "{:?}", String::from_utf8_lossy(&answer.verdict));
        assert!(machine.attest(&lab).allow);
        machine.reboot();
        assert!(machine.attest(&lab).allow);
        assert_eq!(lab.state(), "active");
    }
}

#[test]
fn nonces_tokens_and_enrolments_do_not_come_back() {
    let (mut lab, mut machine) = Lab::enrolled();
    let token = lab.token(None);
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    let waiting: Machine = lab.vendor.machine();
    let request = waiting.request(Some(&token));
    let enrolment = lab.run(lab.service.enrol(&request)).unwrap();
    back_up(&lab);
    restore(&mut lab);
    assert_eq!(problem(lab.answer(evidence, Purpose::Attest)), "challenge-unknown");
    let proof = waiting.prove(&lab, &request, &enrolment);
    assert_eq!(problem(lab.run(lab.service.enrol_proof(&proof))), "enrolment-unknown");
    assert_eq!(problem(waiting.enrol(&lab, Some(&token))), "token");
    waiting.enrol(&lab, Some(&lab.token(None))).unwrap();
}
