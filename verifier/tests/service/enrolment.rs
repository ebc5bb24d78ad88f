//! Who may join: EK certificates, activation, tokens, states.

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_tpm::public::attributes;
use countersign_verifier::admin::Request;
use countersign_wire::enrol::HostState;
use countersign_wire::id::HostId;

use crate::lab::{Lab, Vendor, denied, problem};
use crate::support::case::Case;
use crate::support::tpm::SoftTpm;

#[test]
fn an_ek_certificate_of_an_unknown_ca() {
    let lab = Lab::new();
    // Of the same name as the trusted one.
    for vendor in [Vendor::new("Another"), Vendor::new("Vendor")] {
        let stranger = vendor.machine();
        assert_eq!(problem(stranger.enrol(&lab, Some(&lab.token(None)))), "ek-certificate");
        // Its own root sent along as part of the chain.
        let mut request = stranger.request(Some(&lab.token(None)));
        request.card.chain = vec![vendor.root.clone().into()];
        assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek-certificate");
    }
    let mut none = lab.vendor.machine().request(Some(&lab.token(None)));
    none.card.ek_certificates.clear();
    assert_eq!(problem(lab.run(lab.service.enrol(&none))), "ek-certificate");
}

#[test]
fn a_genuine_certificate_with_another_ek_or_host_id() {
    let lab = Lab::new();
    let (machine, other) = (lab.vendor.machine(), lab.vendor.machine());
    let token = lab.token(None);
    let mut request = machine.request(Some(&token));
    request.card.ek_public = other.case.tpm.ek.to_bytes();
    assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek");
    // The certified key under attributes that would let it decrypt anything.
    let mut loose = machine.case.tpm.ek.clone();
    loose.attributes &= !attributes::RESTRICTED;
    request.card.ek_public = loose.to_bytes();
    assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek");
    let mut request = machine.request(Some(&token));
    request.card.host = other.case.host();
    assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek");
    request.card.host = HostId([0; 32]);
    assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek");
    // The token was not used up by any of this.
    machine.enrol(&lab, Some(&token)).unwrap();
}

#[test]
fn a_second_certificate_may_lead_to_a_root() {
    use countersign_wire::enrol::EkCertificate;
    let lab = Lab::new();
    let machine = lab.vendor.machine();
    let token = lab.token(None);
    // The lower index holds one that leads nowhere, for an EK of another kind.
    let stranger = Vendor::new("Unknown").machine();
    let mut request = machine.request(Some(&token));
    request.card.ek_certificates.insert(0, EkCertificate { nv_index: 0x01c0_0002, der: stranger.certificate.clone() });
    let mut first = request.clone();
    first.card.ek_public = stranger.case.tpm.ek.to_bytes();
    first.card.host = stranger.case.host();
    assert_eq!(problem(lab.run(lab.service.enrol(&first))), "ek-other");
    let challenge = lab.run(lab.service.enrol(&request)).unwrap();
    let enrolled = lab.run(lab.service.enrol_proof(&machine.prove(&lab, &request, &challenge))).unwrap();
    assert_eq!(enrolled.host, machine.case.host());
    request.card.ek_certificates = vec![request.card.ek_certificates[0].clone(); 9];
    assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ek-certificate", "more than are looked at");
}

#[test]
fn an_ak_that_is_not_restricted() {
    let lab = Lab::new();
    let machine = lab.vendor.machine();
    for bit in
        [attributes::RESTRICTED, attributes::FIXED_TPM, attributes::FIXED_PARENT, attributes::SENSITIVE_DATA_ORIGIN]
    {
        let mut request = machine.request(Some(&lab.token(None)));
        let mut ak = machine.case.tpm.ak();
        ak.attributes &= !bit;
        request.card.ak_public = ak.to_bytes();
        assert_eq!(problem(lab.run(lab.service.enrol(&request))), "ak");
    }
}

#[test]
fn a_wrong_activation_proof() {
    let lab = Lab::new();
    let machine = lab.vendor.machine();
    let token = lab.token(None);
    let request = machine.request(Some(&token));
    let challenge = lab.run(lab.service.enrol(&request)).unwrap();
    let mut proof = machine.prove(&lab, &request, &challenge);
    proof.proof[0] ^= 1;
    assert_eq!(problem(lab.run(lab.service.enrol_proof(&proof))), "activation");
    // One attempt: the right proof comes too late.
    proof.proof[0] ^= 1;
    assert_eq!(problem(lab.run(lab.service.enrol_proof(&proof))), "enrolment-unknown");
    // A proof made with what was true in another enrolment.
    let challenge = lab.run(lab.service.enrol(&request)).unwrap();
    let other = lab.run(lab.service.enrol(&request)).unwrap();
    let mut crossed = machine.prove(&lab, &request, &challenge);
    crossed.id = other.id;
    assert_eq!(problem(lab.run(lab.service.enrol_proof(&crossed))), "activation");
    // The transcript covers the TLS key: somebody in between exchanged it.
    let mut changed = request.clone();
    changed.tls_key = lab.vendor.machine().request(None).tls_key;
    let challenge = lab.run(lab.service.enrol(&changed)).unwrap();
    let proof = machine.prove(&lab, &request, &challenge);
    assert_eq!(problem(lab.run(lab.service.enrol_proof(&proof))), "activation");
    for proof in [Vec::new(), vec![0; 32]] {
        let challenge = lab.run(lab.service.enrol(&request)).unwrap();
        let proof = countersign_wire::enrol::EnrolProof { version: 1, id: challenge.id, proof };
        assert_eq!(problem(lab.run(lab.service.enrol_proof(&proof))), "activation");
    }
    machine.enrol(&lab, Some(&token)).unwrap();
}

#[test]
fn a_credential_opens_only_with_its_ek_and_ak() {
    let lab = Lab::new();
    let machine = lab.vendor.machine();
    let challenge = lab.run(lab.service.enrol(&machine.request(None))).unwrap();
    // The AK of another TPM (a relay, or software) under this genuine EK certificate.
    let mut relayed = machine.request(None);
    relayed.card.ak_public = SoftTpm::new().ak().to_bytes();
    let relayed = lab.run(lab.service.enrol(&relayed)).unwrap();
    assert!(machine.case.tpm.activate(&relayed.credential, &relayed.secret).is_none());
    assert!(machine.case.tpm.activate(&challenge.credential, &challenge.secret).is_some());
    assert!(lab.vendor.machine().case.tpm.activate(&challenge.credential, &challenge.secret).is_none());
}

#[test]
fn a_join_token_is_good_once_for_a_new_host_and_in_its_time() {
    let lab = Lab::new();
    let (first, second) = (lab.vendor.machine(), lab.vendor.machine());
    let token = lab.token(None);
    first.enrol(&lab, Some(&token)).unwrap();
    assert_eq!(problem(second.enrol(&lab, Some(&token))), "token");
    assert_eq!(problem(second.enrol(&lab, Some(&lab.token_for(None, 0)))), "token", "expired");
    assert_eq!(problem(second.enrol(&lab, Some(&lab.token(Some(&first))))), "token", "for another host");
    let mut forged = lab.token(None);
    forged.secret = [0; 32];
    assert_eq!(problem(second.enrol(&lab, Some(&forged))), "token", "a wrong secret");
    forged.id = [0; 16];
    assert_eq!(problem(second.enrol(&lab, Some(&forged))), "token", "an unknown token");
    second.enrol(&lab, Some(&lab.token(None))).unwrap();
}

#[test]
fn without_a_token_a_host_waits_for_an_operator() {
    let lab = Lab::new();
    let mut machine = lab.vendor.machine();
    for _ in 0..2 {
        let enrolled = machine.enrol(&lab, None).unwrap();
        assert_eq!((enrolled.state, enrolled.certificate), (HostState::Pending, None));
    }
    assert_eq!(problem(lab.challenge(&machine, None)), "host-pending");
    let workload = lab.register(Vec::new()).unwrap();
    assert_eq!(problem(lab.challenge(&machine, Some(workload))), "host-pending");
    // A token that is bad admits nobody, and is not forgotten over that.
    let spent = lab.token(None);
    lab.vendor.machine().enrol(&lab, Some(&spent)).unwrap();
    assert_eq!(problem(machine.enrol(&lab, Some(&spent))), "token");
    // Another AK: still the same TPM, which nobody has admitted.
    machine.clear();
    assert_eq!(machine.enrol(&lab, None).unwrap().state, HostState::Pending);
    lab.set(&machine, "active");
    assert!(machine.enrol(&lab, None).unwrap().certificate.is_some());
    assert!(machine.attest(&lab).allow);
    assert!(machine.release(&lab, workload).release.is_some());
}

#[test]
fn a_token_admits_a_host_that_waits() {
    let lab = Lab::new();
    for own in [false, true] {
        let mut machine = lab.vendor.machine();
        machine.enrol(&lab, None).unwrap();
        let token = lab.token(own.then_some(&machine));
        assert_eq!(machine.enrol(&lab, Some(&token)).unwrap().state, HostState::Active);
        assert!(machine.attest(&lab).allow);
        assert_eq!(problem(lab.vendor.machine().enrol(&lab, Some(&token))), "token", "used up");
    }
}

#[test]
fn as_many_wait_as_the_configuration_says() {
    let mut lab = Lab::new();
    let path = lab.path().join("verifier.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("# pending_hosts = 64", "pending_hosts = 2")).unwrap();
    lab.reopen();
    let waiting: Vec<_> = (0..2).map(|_| lab.vendor.machine()).collect();
    for machine in &waiting {
        assert_eq!(machine.enrol(&lab, None).unwrap().state, HostState::Pending);
    }
    let third = lab.vendor.machine();
    assert_eq!(problem(third.enrol(&lab, None)), "token");
    assert_eq!(waiting[0].enrol(&lab, None).unwrap().state, HostState::Pending, "those that wait go on waiting");
    third.enrol(&lab, Some(&lab.token(None))).unwrap();
    lab.set(&waiting[1], "revoked");
    assert_eq!(problem(waiting[1].enrol(&lab, None)), "host-revoked");
    assert_eq!(lab.vendor.machine().enrol(&lab, None).unwrap().state, HostState::Pending, "there is room again");
}

#[test]
fn two_enrolments_at_once_use_a_token_once() {
    let lab = Lab::new();
    let (first, second) = (lab.vendor.machine(), lab.vendor.machine());
    let token = lab.token(None);
    let proofs = [&first, &second].map(|machine| {
        let request = machine.request(Some(&token));
        let challenge = lab.run(lab.service.enrol(&request)).unwrap();
        machine.prove(&lab, &request, &challenge)
    });
    let [one, two] = proofs.each_ref().map(|proof| {
        let (service, proof) = (lab.service.clone(), proof.clone());
        async move { service.enrol_proof(&proof).await }
    });
    let (one, two) = lab.run(async { tokio::join!(tokio::spawn(one), tokio::spawn(two)) });
    let good = [one.unwrap(), two.unwrap()].into_iter().filter(Result::is_ok).count();
    assert_eq!((good, lab.state().as_str()), (1, "active"));
}

#[test]
fn tokens_admit_neither_revoked_nor_suspended_hosts() {
    let (lab, mut machine) = Lab::enrolled();
    lab.set(&machine, "suspended");
    // The same AK with a fresh token: it stays what it is, and gets no certificate.
    for token in [lab.token(None), lab.token(Some(&machine))] {
        let enrolled = machine.enrol(&lab, Some(&token)).unwrap();
        assert_eq!((enrolled.state, enrolled.certificate), (HostState::Suspended, None));
    }
    // A new AK with a token for new hosts: neither.
    machine.clear();
    let enrolled = machine.enrol(&lab, Some(&lab.token(None))).unwrap();
    assert_eq!((enrolled.state, enrolled.certificate), (HostState::Suspended, None));
    lab.set(&machine, "revoked");
    for token in [lab.token(None), lab.token(Some(&machine))] {
        assert_eq!(problem(machine.enrol(&lab, Some(&token))), "host-revoked");
    }
    // Revoked is for ever.
    let host = machine.case.host().to_string();
    let again = Request::HostState { host, state: HostState::Active, reason: "sorry".into() };
    assert_eq!(problem(lab.ask(again)), "host-unknown");
}

#[test]
fn stopping_a_host_voids_the_tokens_that_it_holds() {
    let (lab, mut machine) = Lab::enrolled();
    // Diskless nodes hold tokens for many starts. Root of a stopped one makes a new AK.
    let held = lab.token(Some(&machine));
    lab.set(&machine, "suspended");
    machine.clear();
    assert_eq!(machine.enrol(&lab, Some(&held)).unwrap().state, HostState::Suspended);
    // One that was made since admits the next.
    machine.clear();
    assert_eq!(machine.enrol(&lab, Some(&lab.token(Some(&machine)))).unwrap().state, HostState::Active);
    // So does a contradiction.
    assert!(machine.attest(&lab).allow);
    let held = lab.token(Some(&machine));
    (machine.case.clock.clock, machine.case.clock.reset_count) = (0, 0);
    assert_eq!(denied(&machine.attest(&lab)), ["clock"]);
    machine.clear();
    assert_eq!(machine.enrol(&lab, Some(&held)).unwrap().state, HostState::Suspended);
}

#[test]
fn a_cleared_tpm_is_suspended_until_it_is_readmitted() {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    machine.attest(&lab);
    let before = lab.challenge(&machine, Some(workload)).unwrap().import.unwrap();
    machine.clear();
    assert_eq!(machine.enrol(&lab, None).unwrap().state, HostState::Suspended);
    assert_eq!(denied(&machine.attest(&lab)), ["host-suspended"]);
    lab.set(&machine, "active");
    // Counters and clock from zero are a new baseline, not a contradiction.
    for _ in 0..2 {
        assert!(machine.attest(&lab).allow);
    }
    assert_eq!(lab.state(), "active");
    // Blobs for the AK that is gone are made anew: no old approval fits them.
    let after = lab.challenge(&machine, Some(workload)).unwrap().import.unwrap();
    assert_ne!(before.public, after.public);
    // A token for this host does it in one step.
    machine.clear();
    assert_eq!(machine.enrol(&lab, Some(&lab.token(Some(&machine)))).unwrap().state, HostState::Active);
    assert!(machine.attest(&lab).allow);
}

#[test]
fn a_clear_without_a_new_enrolment_suspends() {
    let (lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    (machine.case.clock.clock, machine.case.clock.reset_count) = (0, 0);
    assert_eq!(denied(&machine.attest(&lab)), ["clock"]);
    assert_eq!(lab.state(), "suspended");
    lab.set(&machine, "active");
    assert!(machine.attest(&lab).allow);
}

#[test]
fn a_readmitted_host_may_lose_its_first_answer() {
    let (lab, mut machine) = Lab::enrolled();
    machine.attest(&lab);
    lab.set(&machine, "suspended");
    lab.set(&machine, "active");
    machine.reboot();
    machine.attest_and_lose(&lab);
    assert!(machine.attest(&lab).allow);
    machine.reboot();
    assert!(machine.attest(&lab).allow);
    assert_eq!(lab.state(), "active");
}

#[test]
fn roots_are_told_apart_by_more_than_their_name() {
    let lab = Lab::new();
    let (real, development) = (Vendor::new("Twin"), Vendor::new("Twin"));
    lab.trust(&real, false).unwrap();
    lab.trust(&development, true).unwrap();
    for (vendor, simulated) in [(&real, false), (&development, true)] {
        let machine = vendor.machine();
        machine.enrol(&lab, Some(&lab.token(None))).unwrap();
        let host = lab.ask(Request::HostShow { host: machine.case.host().to_string() }).unwrap();
        assert_eq!(host["simulated"], simulated);
    }
}

#[test]
fn only_a_ca_becomes_a_root() {
    let lab = Lab::new();
    let certificates = |der: &[u8]| Request::EkRootAdd { certificates: vec![STANDARD.encode(der)], development: false };
    let ek = lab.vendor.machine().certificate;
    assert_eq!(problem(lab.ask(certificates(&ek))), "ek-root");
    assert_eq!(problem(lab.ask(certificates(b"\x30\x03abc"))), "ek-root");
    // One bad certificate in a file, and none of it is trusted.
    let good = Vendor::new("Good");
    let both = vec![STANDARD.encode(&good.root), STANDARD.encode(&ek)];
    assert_eq!(problem(lab.ask(Request::EkRootAdd { certificates: both, development: false })), "ek-root");
    assert_eq!(lab.ask(Request::EkRootList {}).unwrap()["roots"].as_array().unwrap().len(), 1);
}

#[test]
fn a_state_folder_that_everybody_may_write() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new();
    std::fs::set_permissions(lab.path(), std::fs::Permissions::from_mode(0o757)).unwrap();
    let error = lab.run(countersign_verifier::service::Service::open(lab.path())).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn run_pcrs() {
    let lab = Lab::new();
    for pcr in [0, 7, 10, 16, 23, 255] {
        let mut request = lab.vendor.machine().request(Some(&lab.token(None)));
        request.card.run_pcr = pcr;
        assert_eq!(problem(lab.run(lab.service.enrol(&request))), "run-pcr", "{pcr}");
    }
    // PCR 15 is asked for when it is the run PCR.
    let mut machine = lab.vendor.machine();
    let mut request = machine.request(Some(&lab.token(None)));
    request.card.run_pcr = 15;
    let challenge = lab.run(lab.service.enrol(&request)).unwrap();
    lab.run(lab.service.enrol_proof(&machine.prove(&lab, &request, &challenge))).unwrap();
    let asked = lab.challenge(&machine, None).unwrap();
    assert!(asked.selection[0].pcrs.contains(&15));
    machine.case = Case { tpm: Rc::clone(&machine.case.tpm), ..machine.case };
    let evidence = machine.evidence(&asked, None);
    // A quote that leaves it out is no answer to that.
    let answer = lab.answer(evidence, countersign_wire::statement::Purpose::Attest).unwrap();
    assert_eq!(denied(&answer), ["pcr-selection"]);
}
