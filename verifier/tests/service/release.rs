//! What may be registered and released.

use countersign_verifier::admin::{LEAST_SELECTION, Request};

use crate::lab::{Lab, denied, problem};

#[test]
fn a_release_has_both_signatures_over_the_least_selection() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let release = machine.release(&lab, workload).release.unwrap();
    assert_eq!(release.selection.pcrs, LEAST_SELECTION);
    assert!((1..=300).contains(&release.expiration));
    assert_eq!(release.approval_key, lab.service.keys.approval_public().to_bytes());
    assert_ne!(release.approval_key, release.verdict_key);
    assert_eq!((release.reset_count, release.restart_count), (5, 0));
}

#[test]
fn least_selections_that_no_approval_covers() {
    let lab = Lab::new();
    for least in [vec![10], vec![0, 15], vec![16], vec![255]] {
        assert_eq!(problem(lab.register(least)), "workload");
    }
    lab.register(vec![7]).unwrap();
}

#[test]
fn a_host_whose_run_pcr_the_workload_wants_is_denied_with_the_reason() {
    let lab = Lab::new();
    let mut machine = lab.vendor.machine();
    machine.enrol(&lab, Some(&lab.token(None))).unwrap();
    let workload = lab.register(vec![7, 13]).unwrap();
    assert_eq!(denied(&machine.release(&lab, workload)), ["approval-selection"]);
    assert_eq!(lab.verdicts().len(), 1, "recorded");
}

#[test]
fn a_withdrawn_or_unknown_workload() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let challenge = lab.challenge(&machine, Some(workload)).unwrap();
    let evidence = machine.evidence(&challenge, Some(workload));
    lab.ask(Request::WorkloadWithdraw { workload }).unwrap();
    // Even the challenge that was open gets nothing.
    let answer = lab.answer(evidence, countersign_wire::statement::Purpose::Release).unwrap();
    assert_eq!(denied(&answer), ["workload-withdrawn"]);
    assert_eq!(problem(lab.challenge(&machine, Some(workload))), "workload-withdrawn");
    let shown = lab.ask(Request::WorkloadShow { workload }).unwrap();
    assert_eq!((&shown["withdrawn"], &shown["name"]), (&true.into(), &"app".into()));
    let unknown = countersign_wire::id::WorkloadId([1; 32]);
    assert_eq!(problem(lab.challenge(&machine, Some(unknown))), "workload-unknown");
    assert_eq!(problem(lab.ask(Request::WorkloadShow { workload: unknown })), "not-found");
    assert_eq!(problem(lab.ask(Request::WorkloadWithdraw { workload: unknown })), "not-found");
    let audit: Vec<String> = lab.run(async {
        let pool = crate::nonces::pool(&lab).await;
        sqlx::query_scalar("SELECT action FROM audit ORDER BY number").fetch_all(&pool).await.unwrap()
    });
    assert!(audit.contains(&"workload-withdraw".to_owned()), "{audit:?}");
    // Its owner registers it again.
    lab.register(Vec::new()).unwrap();
    assert!(machine.release(&lab, workload).allow);
}

#[test]
fn a_policy_that_changed_its_mind() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    assert!(machine.release(&lab, workload).allow);
    lab.ask(Request::ReferenceRevoke { name: "recorded".into() }).unwrap();
    assert!(denied(&machine.release(&lab, workload)).contains(&"reference-missing".to_owned()));
}

#[test]
fn a_host_under_a_development_ca_gets_no_release() {
    let lab = Lab::new();
    let development = crate::lab::Vendor::new("Development");
    lab.trust(&development, true).unwrap();
    let mut machine = development.machine();
    machine.enrol(&lab, Some(&lab.token(None))).unwrap();
    let workload = lab.register(Vec::new()).unwrap();
    assert!(machine.attest(&lab).allow);
    assert_eq!(denied(&machine.release(&lab, workload)), ["simulated-host"]);
}
