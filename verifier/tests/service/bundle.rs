//! Evidence for others: a bundle recomputes under its verifier's trust bundle, and under no other.

use countersign_verifier::appraise::Context;
use countersign_verifier::check::{CheckError, check_bundle};
use countersign_wire::artefact;
use countersign_wire::cbor;
use countersign_wire::record::{Bundle, Record, signed_message};
use countersign_wire::trust::TrustBundle;

use crate::lab::{Lab, Machine};

fn released() -> (Lab, Machine, Vec<u8>) {
    let (lab, mut machine) = Lab::enrolled();
    let workload = lab.register(Vec::new()).unwrap();
    let answer = machine.release(&lab, workload);
    assert!(answer.allow);
    let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
    (lab, machine, file)
}

fn trust(lab: &Lab) -> [u8; 32] {
    TrustBundle::digest(&lab.service.keys.trust)
}

/// A bundle whose record was changed and signed by this verifier's log key.
fn signed_again(lab: &Lab, file: &[u8], change: impl FnOnce(&mut Record)) -> Vec<u8> {
    let mut bundle: Bundle = artefact::from_file(file).unwrap();
    let mut record: Record = cbor::decode(&bundle.record).unwrap();
    change(&mut record);
    bundle.record = cbor::encode(&record);
    bundle.signature = lab.service.keys.sign_record(&signed_message(&bundle.record)).unwrap();
    artefact::to_file(&bundle)
}

#[track_caller]
fn failed(lab: &Lab, file: &[u8]) -> (u8, String) {
    let CheckError { code, check, .. } = check_bundle(file, Some(trust(lab))).unwrap_err();
    (code, check)
}

#[test]
fn an_allow_and_a_denial_recompute() {
    let (lab, mut machine, file) = released();
    let checked = check_bundle(&file, Some(trust(&lab))).unwrap();
    assert!(checked.allow && checked.anchored && !checked.simulated);
    assert_eq!(checked.host, machine.case.host().to_string());
    machine.case.ima = None;
    let answer = machine.attest(&lab);
    let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
    let checked = check_bundle(&file, Some(trust(&lab))).unwrap();
    assert_eq!((checked.allow, checked.verdict), (false, answer.verdict_id.to_string()));
}

#[test]
fn a_bundle_made_with_ones_own_ca_tpm_and_policy() {
    let (real, _, _) = released();
    let (own, _, file) = released();
    assert_eq!(failed(&real, &file), (47, "trust".into()));
    let consistent = check_bundle(&file, None).unwrap();
    assert!(consistent.allow && !consistent.anchored, "--unanchored says that it is consistent, and no more");
    // Under the real trust bundle's bytes, signed by the forger's log key.
    let mut bundle: Bundle = artefact::from_file(&file).unwrap();
    bundle.trust = real.service.keys.trust.clone();
    assert_eq!(failed(&real, &artefact::to_file(&bundle)), (44, "record-signature".into()));
    // The real trust bundle with the forger's log key in it is another trust bundle.
    let mut mixed: TrustBundle = cbor::decode(&real.service.keys.trust).unwrap();
    let forged: TrustBundle = cbor::decode(&own.service.keys.trust).unwrap();
    mixed.log_key = forged.log_key;
    bundle.trust = cbor::encode(&mixed);
    assert_eq!(failed(&real, &artefact::to_file(&bundle)), (47, "trust".into()));
}

#[test]
fn every_region_of_a_bundle_is_covered() {
    let (lab, _, file) = released();
    let bundle: Bundle = artefact::from_file(&file).unwrap();
    let start = |part: &[u8]| file.windows(part.len()).position(|at| at == part).unwrap();
    let (trusted, record, signature) = (start(&bundle.trust), start(&bundle.record), start(&bundle.signature));
    let regions = [
        (0..8, &[40][..]),
        (trusted..trusted + bundle.trust.len(), &[47]),
        (record..record + bundle.record.len(), &[44]),
        (signature..signature + bundle.signature.len(), &[44]),
    ];
    for (region, codes) in regions {
        for at in region.clone().step_by(region.len() / 40 + 1).chain([region.end - 1]) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            let (code, check) = failed(&lab, &changed);
            assert!(codes.contains(&code), "byte {at} of {region:?}: {code} {check}");
        }
    }
    for end in (0..file.len()).step_by(997).chain([file.len() - 1]) {
        assert_eq!(failed(&lab, &file[..end]).0, 40);
    }
    assert_eq!(failed(&lab, &[file.as_slice(), &[0]].concat()).0, 40);
}

#[test]
fn not_even_the_verifier_signs_a_verdict_that_does_not_follow() {
    let (lab, mut machine, file) = released();
    // A denial sold as an allow.
    machine.case.ima = None;
    let answer = machine.attest(&lab);
    let denial = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
    let sold = signed_again(&lab, &denial, |record| {
        let text = String::from_utf8(record.verdict.clone()).unwrap();
        record.verdict = text.replace("\"allow\":false", "\"allow\":true").into_bytes();
    });
    assert_eq!(failed(&lab, &sold), (48, "verdict".into()));
    // Another policy, other evidence, another time than the verdict says.
    let change = |record: &mut Record, change: &dyn Fn(&mut Context)| {
        let mut context: Context = minicbor::decode(&record.context).unwrap();
        change(&mut context);
        record.context = minicbor::to_vec(&context).unwrap();
    };
    let policy = countersign_policy::shipped_workload_policy();
    type Change<'a> = &'a dyn Fn(&mut Context);
    let changes: [Change<'_>; 5] = [
        &|context| context.host_policy = policy.to_vec(),
        &|context| context.reference = b"{\"revision\":9,\"values\":[]}".to_vec(),
        &|context| context.now_ms += 1,
        &|context| context.host.state = countersign_wire::enrol::HostState::Suspended,
        &|context| context.challenge.nonce.0[0] ^= 1,
    ];
    for each in changes {
        let file = signed_again(&lab, &file, |record| change(record, each));
        assert_eq!(failed(&lab, &file), (48, "verdict".into()));
    }
    let other = signed_again(&lab, &file, |record| *record.evidence.last_mut().unwrap() ^= 1);
    assert_eq!(failed(&lab, &other).0, 48);
    // The EK of another certificate, or a certificate of another root.
    let (_, _, foreign) = released();
    let foreign: Bundle = artefact::from_file(&foreign).unwrap();
    let foreign: Record = cbor::decode(&foreign.record).unwrap();
    let swapped = signed_again(&lab, &file, |record| record.enrolment = foreign.enrolment.clone());
    assert_eq!(failed(&lab, &swapped), (47, "ek-certificate".into()));
    let rooted = signed_again(&lab, &file, |record| record.enrolment.root = foreign.enrolment.root.clone());
    assert_eq!(failed(&lab, &rooted), (47, "ek-certificate".into()));
}

#[test]
fn the_command_says_the_same() {
    let (lab, _, file) = released();
    let (other, _, _) = released();
    let path = lab.path().join("run.bundle");
    std::fs::write(&path, &file).unwrap();
    let check = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.args(["check", "bundle"]).arg(&path).args(arguments);
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let trust_file = lab.path().join("trust.bundle");
    let digest = hex::encode(trust(&lab));
    for trust in [trust_file.as_os_str(), digest.as_ref()] {
        let (code, out, _) = check(&["--trust".as_ref(), trust]);
        assert_eq!(code, 0, "{out}");
        assert!(out.contains("recomputed: allow (release)") && out.contains("anchored in the trust bundle"), "{out}");
    }
    let (code, out, err) = check(&["--trust".as_ref(), other.path().join("trust.bundle").as_os_str()]);
    assert_eq!((code, out.as_str()), (47, ""));
    assert!(err.starts_with("error: trust, trust bundle\n") && err.contains("\nhint: get the trust bundle"), "{err}");
    let (code, out, _) = check(&["--unanchored".as_ref()]);
    assert_eq!(code, 0);
    assert!(out.contains("NOT anchored: anybody can make such a bundle"), "{out}");
    // Neither, or both, is a usage error.
    assert_eq!(check(&[]).0, 2);
    assert_eq!(check(&["--unanchored".as_ref(), "--trust".as_ref(), digest.as_ref()]).0, 2);
    let (code, out, _) = check(&["--json".as_ref(), "--trust".as_ref(), "00".repeat(32).as_ref()]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["error"]["code"], &json["error"]["check"]), (47, &47.into(), &"trust".into()));
}

/// The sets that travel beside a record make a bundle longer than any record.
#[test]
fn a_bundle_longer_than_a_record() {
    let (lab, _, file) = released();
    let mut bundle: Bundle = artefact::from_file(&file).unwrap();
    bundle.sets = Some(vec![vec![b' '; countersign_wire::limits::REFERENCE_SET - 1024].into(); 2]);
    let long = artefact::to_file(&bundle);
    assert!(long.len() > countersign_wire::limits::RECORD);
    let path = lab.path().join("long.bundle");
    std::fs::write(&path, &long).unwrap();
    let trust = hex::encode(trust(&lab));
    let verifier = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_verifier"));
        let output = command.args(arguments).env("HOME", "/nonexistent").env_remove("XDG_STATE_HOME").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    verifier(&["check".as_ref(), "bundle".as_ref(), path.as_os_str(), "--trust".as_ref(), trust.as_ref()]);
    verifier(&["explain".as_ref(), path.as_os_str()]);
}
