//! Policies change while hosts attest: every request is answered, and by one policy. And policies that come another way are tried first.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use countersign_policy::PolicyBundle;
use countersign_verifier::policy::store;
use countersign_wire::answer::Answer;
use countersign_wire::cbor;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::kill::Process;
use crate::lab::{Lab, problem};
use crate::policies::Signer;

const MACHINES: usize = 6;
const LOADS: usize = 12;

#[test]
fn a_policy_swap_under_load_loses_no_request() {
    let lab = Lab::new();
    let signer = Signer::trusted(&lab);
    let mut machines: Vec<_> = (0..MACHINES).map(|_| lab.vendor.machine()).collect();
    for machine in &machines {
        machine.enrol(&lab, Some(&lab.token(None))).unwrap();
    }
    // Which policy, by digest, says what.
    let mut says = BTreeMap::new();
    let bundles: Vec<Vec<u8>> = (0..=LOADS)
        .map(|number| {
            let revision = u64::try_from(number).unwrap() + 1;
            let allow = number % 2 == 0;
            let signed = if allow { signer.good(revision) } else { signer.strict(revision) };
            says.insert(hex::encode(Sha256::digest(&signed)), allow);
            signed
        })
        .collect();
    let (first, rest) = bundles.split_first().unwrap();
    store::load(lab.path(), first, &lab.service.trial).unwrap();
    let process = Process::start(&lab);
    let loaded = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let loader = {
        let (dir, trial, rest) = (lab.path().to_owned(), lab.service.trial.clone(), rest.to_vec());
        let (loaded, stop) = (Arc::clone(&loaded), Arc::clone(&stop));
        std::thread::spawn(move || {
            for bundle in rest {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                store::load(&dir, &bundle, &trial).unwrap();
                loaded.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let (mut seen, mut answered) = (BTreeMap::<bool, usize>::new(), 0);
    while loaded.load(Ordering::SeqCst) < LOADS || seen.len() < 2 {
        let sent: Vec<_> = machines
            .iter_mut()
            .map(|machine| {
                let challenge = lab.challenge(machine, None).unwrap();
                let evidence = machine.evidence(&challenge, None);
                process.send(&lab, "/v1/attest", &evidence)
            })
            .collect();
        for (machine, sent) in machines.iter_mut().zip(sent) {
            let bytes = sent.join().unwrap().expect("every request is answered");
            let answer: Answer = cbor::decode(&bytes).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&bytes)));
            let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
            let allow = says[verdict["basis"]["host_policy"].as_str().unwrap()];
            let ids: Vec<&str> =
                verdict["reasons"].as_array().unwrap().iter().map(|reason| reason["id"].as_str().unwrap()).collect();
            assert_eq!((answer.allow, ids), (allow, if allow { vec![] } else { vec!["unheard-of"] }));
            if answer.allow {
                machine.accept(&answer);
            }
            *seen.entry(allow).or_default() += 1;
            answered += 1;
        }
        assert!(answered < 20_000, "the loads do not come to an end");
    }
    stop.store(true, Ordering::SeqCst);
    loader.join().unwrap();
    assert_eq!(lab.verdicts().len().min(1000), answered.min(1000));
}

#[test]
fn a_host_policy_in_a_folder_is_tried_before_it_decides() {
    let mut lab = Lab::new();
    let folder = lab.path().join("mine/countersign/host");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("host.rego"), "package countersign.host\n").unwrap();
    lab.configure("host_policy = \"mine\"");
    for (text, words) in [
        ("verdict := {\"allow\": time.now_ns() > 0}", "time.now_ns"),
        ("verdict := {", "host.rego:4"),
        ("verdict := {\"allow\": true}", "of which nothing is known"),
        (
            "xs := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30]\n\
             verdict := {\"allow\": count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs]) == 0}",
            "policy-timeout",
        ),
    ] {
        std::fs::write(folder.join("host.rego"), format!("package countersign.host\n\n{text}\n")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
        let done = command.arg("--state-dir").arg(lab.path()).arg("serve").output().unwrap();
        assert_eq!(done.status.code(), Some(4), "{text}");
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(stderr.contains("host_policy: ") && stderr.contains(words), "{text}: {stderr}");
    }
    let good = "verdict := {\"allow\": input.version == 1}";
    std::fs::write(folder.join("host.rego"), format!("package countersign.host\n\n{good}\n")).unwrap();
    drop(Process::start(&lab));
}

#[test]
fn a_workload_policy_is_tried_before_it_is_registered() {
    let lab = Lab::new();
    let workload = |text: &str| {
        let file = format!("package countersign.workload\n\n{text}\n").into_bytes();
        PolicyBundle::build(BTreeMap::from([("countersign/workload/workload.rego".to_owned(), file)])).unwrap()
    };
    for (text, words) in [
        ("verdict := {\"allow\": http.send({\"method\": \"get\", \"url\": \"x\"}).ok}", "http.send"),
        ("f(x) := f(x + 1)\nverdict := {\"allow\": f(1) == 2}", "recurs"),
        ("verdict := {\"allow\": false, \"obligations\": {\"teleport\": 1}}", "obligation-unknown"),
        (
            "xs := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30]\n\
             verdict := {\"allow\": count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs]) == 0}",
            "policy-timeout",
        ),
    ] {
        let refused = lab.register_under(&workload(text), Vec::new()).unwrap_err();
        assert!(refused.to_string().contains(words), "{text}: {refused}");
        assert_eq!(problem(Err::<(), _>(refused)), "workload");
    }
    // Another policy is another workload.
    let one = lab.register_under(&workload("verdict := {\"allow\": input.version == 1}"), Vec::new()).unwrap();
    let two = lab.register_under(&workload("verdict := {\"allow\": input.version < 2}"), Vec::new()).unwrap();
    assert_ne!(one, two);
}
