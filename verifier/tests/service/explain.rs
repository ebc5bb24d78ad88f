//! Why a host was refused: the event or file, the nearest accepted value, what changed, what to do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_verifier::admin::Request;
use countersign_verifier::error::Error;
use countersign_verifier::explain::{Explanation, Finding, Since, explain_bundle};
use countersign_wire::answer::Answer;
use countersign_wire::eventlog::{EventLog, EventType};
use countersign_wire::evidence::PcrValue;
use countersign_wire::id::VerdictId;
use countersign_wire::ima::synthetic;
use countersign_wire::refset::{Denied, Origin, ReferenceSet};
use serde_json::{Value, json};

use crate::lab::{Lab, Machine};
use crate::support::boot;
use crate::support::case::RUN_PCR;

const NOSB_LOG: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/binary_bios_measurements");
const NOSB_IMA: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/ima_binary");
const NOSB_PCRS: &str = include_str!("../../../fixtures/nosb-shim-grub212/PCRS.json");

/// A log in which events were measured otherwise: by index, the new data and what was hashed.
fn rewrite(log: &[u8], change: impl Fn(u32, u32, EventType, &[u8]) -> Option<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let parsed = EventLog::parse(log).unwrap();
    let mut out = log[..parsed.events[0].offset].to_vec();
    for (at, event) in parsed.events.iter().enumerate() {
        let end = parsed.events.get(at + 1).map_or(log.len(), |next| next.offset);
        let Some((data, measured)) = change(event.index, event.pcr, event.kind, event.data) else {
            out.extend(&log[event.offset..end]);
            continue;
        };
        out.extend(event.pcr.to_le_bytes());
        out.extend(event.kind.0.to_le_bytes());
        out.extend(u32::try_from(parsed.banks.len()).unwrap().to_le_bytes());
        for (id, _) in &parsed.banks {
            out.extend(id.to_le_bytes());
            out.extend(HashAlg::from_id(*id).unwrap().digest(&[&measured]).as_bytes());
        }
        out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        out.extend(data);
    }
    EventLog::parse(&out)
        .unwrap()
        .examine(
            &[(HashAlg::Sha256, countersign_wire::eventlog::PcrSet::ALL)],
            countersign_wire::eventlog::Registers::Tpm,
        )
        .unwrap();
    out
}

/// GRUB reads this kernel, with these contents.
fn with_kernel(log: &[u8], version: &str) -> Vec<u8> {
    let name = format!("/vmlinuz-{version}\0").into_bytes();
    rewrite(log, |_, pcr, kind, data| {
        let kernel = pcr == 9 && kind == EventType::IPL && data.starts_with(b"/vmlinuz");
        kernel.then(|| (name.clone(), format!("kernel {version}").into_bytes()))
    })
}

/// dbx with this many hashes.
fn with_dbx(log: &[u8], hashes: u32) -> Vec<u8> {
    rewrite(log, |_, pcr, kind, data| {
        let dbx = b"d\0b\0x\0";
        if pcr != 7 || kind != EventType::EFI_VARIABLE_DRIVER_CONFIG || data.get(32..38) != Some(dbx) {
            return None;
        }
        let mut list = hex::decode("2616c4c14c509240aca941f936934328").unwrap();
        list.extend((28 + 48 * hashes).to_le_bytes());
        list.extend([0; 4]);
        list.extend(48u32.to_le_bytes());
        for n in 0..hashes {
            list.extend([0x77; 16]);
            list.extend(HashAlg::Sha256.digest(&[&n.to_le_bytes()]).as_bytes());
        }
        let mut variable = data[..24].to_vec();
        variable.extend(u64::try_from(list.len()).unwrap().to_le_bytes());
        variable.extend(dbx);
        variable.extend(list);
        Some((variable.clone(), variable))
    })
}

/// The machine booted this log.
fn boots(machine: &mut Machine, log: Vec<u8>) {
    let (was, now) = (EventLog::parse(boot::LOG).unwrap(), EventLog::parse(&log).unwrap());
    let (was, now) = (was.replay(HashAlg::Sha256).unwrap(), now.replay(HashAlg::Sha256).unwrap());
    for PcrValue { index, value } in &mut machine.case.pcrs[0].pcrs {
        if was.value(*index) != now.value(*index) {
            *value = now.value(*index).unwrap().as_bytes().to_vec();
        }
    }
    machine.case.event_log = Some(log);
}

fn reference(lab: &Lab, log: &[u8]) {
    let eventlog = STANDARD.encode(log);
    lab.ask(Request::ReferenceAdd { name: "recorded".into(), eventlog, pcrs: Vec::new() }).unwrap();
}

fn explain(lab: &Lab, answer: &Answer) -> Explanation {
    let value = lab.ask(Request::VerdictExplain { id: answer.verdict_id }).unwrap();
    serde_json::from_value(value).unwrap()
}

/// What went to the host along with the verdict.
fn told(answer: &Answer) -> Option<Explanation> {
    answer.explanation.as_deref().map(|json| Explanation::from_json(json).unwrap())
}

fn named<'e>(findings: &'e [Finding], name: &str) -> &'e Finding {
    let is = |finding: &&Finding| {
        let content = finding.event.as_ref().and_then(|event| event.content.as_ref());
        content.is_some_and(|content| content.name == name)
    };
    findings.iter().find(is).unwrap_or_else(|| panic!("{name}: {findings:#?}"))
}

#[track_caller]
fn says(explanation: &Explanation, lines: &[&str]) {
    let words = explanation.words();
    for line in lines {
        assert!(words.contains(line), "{line:?} is not in:\n{words}");
    }
}

/// A machine that was accepted with this log, then rebooted.
fn accepted_with(log: &[u8]) -> (Lab, Machine, String) {
    let (lab, mut machine) = Lab::enrolled();
    reference(&lab, log);
    boots(&mut machine, log.to_vec());
    let answer = machine.attest(&lab);
    assert!(answer.allow, "{}", String::from_utf8_lossy(&answer.verdict));
    machine.reboot();
    (lab, machine, answer.verdict_id.to_string())
}

#[test]
fn an_accepted_host_has_nothing_against_it() {
    let (lab, mut machine) = Lab::enrolled();
    let explanation = explain(&lab, &machine.attest(&lab));
    assert!(explanation.allow && explanation.findings.is_empty() && explanation.also.is_empty());
    assert_eq!((explanation.since.clone(), explanation.commands.clone()), (Since::NoEarlierBoot, Vec::new()));
    says(&explanation, &["ALLOW attest", "nothing stands against it"]);
}

#[test]
fn secure_boot_off() {
    let (lab, mut machine, good) = accepted_with(boot::LOG);
    let pcrs: Value = serde_json::from_str(NOSB_PCRS).unwrap();
    for PcrValue { index, value } in machine.case.pcrs[0].pcrs.iter_mut().filter(|pcr| pcr.index != RUN_PCR) {
        *value = hex::decode(pcrs["sha256"][index.to_string()].as_str().unwrap()).unwrap();
    }
    machine.case.event_log = Some(NOSB_LOG.to_vec());
    machine.case.ima = Some(NOSB_IMA.to_vec());
    let answer = machine.attest(&lab);
    let explanation = explain(&lab, &answer);
    assert_eq!(explanation.failed, ["host-policy"]);
    assert_eq!(explanation.findings[0].id, "secure-boot", "the one switch before the events that follow from it");
    assert_eq!(
        explanation.commands,
        ["switch Secure Boot on in the firmware's set-up and reboot"],
        "nothing to accept"
    );
    let variable = named(&explanation.findings, "SecureBoot");
    let event = variable.event.as_ref().unwrap();
    assert_eq!((event.index, event.pcr, event.kind.as_str()), (4, 7, "EV_EFI_VARIABLE_DRIVER_CONFIG"));
    let nearest = variable.nearest.as_ref().unwrap();
    assert_eq!((nearest.difference.as_str(), nearest.set.as_str()), ("SecureBoot on -> off", "recorded"));
    let Since::Compared { verdict, facts, .. } = &explanation.since else { panic!("{:?}", explanation.since) };
    assert_eq!(*verdict, good);
    let secure_boot = facts.iter().find(|change| change.fact == "secure-boot").unwrap();
    assert_eq!(secure_boot.words(), "secure-boot: on -> off");
    says(&explanation, &["  measured SecureBoot = off", "accepted SecureBoot = on", "(set recorded, nearest of"]);
    // The host is told the same, in place of digests that say nothing.
    let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
    let reasons = verdict["reasons"].as_array().unwrap();
    let told = reasons.iter().any(|reason| {
        reason["want"]
            .as_str()
            .is_some_and(|want| want.ends_with("SecureBoot = on (set recorded): SecureBoot on -> off"))
    });
    assert!(told, "{reasons:#?}");
}

#[test]
fn an_unknown_kernel() {
    let (lab, mut machine, good) = accepted_with(&with_kernel(boot::LOG, "6.1.0-50"));
    boots(&mut machine, with_kernel(boot::LOG, "6.1.0-51"));
    let mut package = Origin::new("deb", "linux-image-amd64");
    package.version = "6.1.148-1".into();
    package.files = vec![format!("sha256:{} /boot/vmlinuz-6.1.0-51", HashAlg::Sha256.digest(&[b"kernel 6.1.0-51"]))];
    add_set(&lab, &ReferenceSet { origins: vec![package], ..ReferenceSet::default() });
    let explanation = explain(&lab, &machine.attest(&lab));
    let kernel = named(&explanation.findings, "/vmlinuz-6.1.0-51");
    assert_eq!(kernel.nearest.as_ref().unwrap().difference, "kernel 6.1.0-50 -> 6.1.0-51");
    assert_eq!(kernel.belongs_to, ["deb linux-image-amd64 6.1.148-1 (as /boot/vmlinuz-6.1.0-51)"]);
    assert_eq!(explanation.findings.len(), 1, "{:#?}", explanation.findings);
    let id = explanation.verdict.get(..8).unwrap();
    assert_eq!(explanation.commands[0], format!("verifier reference add node-{id} --verdict {}", explanation.verdict));
    let Since::Compared { verdict, facts, events, .. } = &explanation.since else { panic!("{:?}", explanation.since) };
    assert_eq!((verdict, facts.len(), events.len()), (&good, 1, 2));
    assert!(facts[0].words().contains("6.1.0-50 (sha256:"), "{facts:?}");
    says(&explanation, &["boot-chain (host-policy): ", "change   kernel 6.1.0-50 -> 6.1.0-51", "/vmlinuz-6.1.0-51?"]);
    // The very command makes it so.
    let id = explanation.verdict.parse().unwrap();
    lab.ask(Request::ReferenceAddVerdict { name: "as-said".into(), id, pcrs: Vec::new() }).unwrap();
    let again = machine.attest(&lab);
    assert!(again.allow, "{}", String::from_utf8_lossy(&again.verdict));
}

#[test]
fn a_log_that_nobody_vouches_for_is_no_reference() {
    let (lab, mut machine, _) = accepted_with(&with_kernel(boot::LOG, "6.1.0-50"));
    // Another log than the one that the quoted PCRs come from.
    machine.case.event_log = Some(with_kernel(boot::LOG, "6.1.0-51"));
    let id = machine.attest(&lab).verdict_id;
    let refused = lab.ask(Request::ReferenceAddVerdict { name: "lie".into(), id, pcrs: Vec::new() }).unwrap_err();
    assert!(refused.to_string().contains("no boot log that the quoted PCRs vouch for"), "{refused}");
    let id = VerdictId([7; 16]);
    assert!(lab.ask(Request::ReferenceAddVerdict { name: "none".into(), id, pcrs: Vec::new() }).is_err());
}

#[test]
fn a_changed_dbx() {
    let (lab, mut machine, _) = accepted_with(&with_dbx(boot::LOG, 371));
    boots(&mut machine, with_dbx(boot::LOG, 420));
    let explanation = explain(&lab, &machine.attest(&lab));
    let dbx = named(&explanation.findings, "dbx");
    assert_eq!(dbx.nearest.as_ref().unwrap().difference, "dbx 371 -> 420 entries");
    let Since::Compared { facts, .. } = &explanation.since else { panic!("{:?}", explanation.since) };
    let words = facts[0].words();
    assert!(words.starts_with("dbx: 371 entries, ") && words.ends_with("(49 new, 0 gone)"), "{words}");
    says(&explanation, &["change   dbx 371 -> 420 entries"]);
    // An older one is to be updated, not accepted.
    machine.reboot();
    boots(&mut machine, with_dbx(boot::LOG, 300));
    let explanation = explain(&lab, &machine.attest(&lab));
    assert!(explanation.commands[0].starts_with("fwupdmgr update "), "{:?}", explanation.commands);
    assert_eq!(explanation.commands.len(), 1);
}

fn add_set(lab: &Lab, set: &ReferenceSet) {
    let set = zstd::encode_all(set.to_json().unwrap().as_slice(), 3).unwrap();
    let set = STANDARD.encode(set);
    lab.ask(Request::ReferenceAddSet { name: "files".into(), set, signer: String::new() }).unwrap();
}

#[test]
fn files_unknown_and_denied() {
    let (lab, mut machine) = Lab::enrolled();
    let (known, denied) = (synthetic::path(1), synthetic::path(2));
    let digest = format!("sha256:{}", synthetic::digest(2));
    let mut package = Origin::new("deb", "coreutils");
    package.version = "9.1-1".into();
    package.files = vec![format!("sha256:{} {known}", "11".repeat(32))];
    let deny = vec![Denied { digest, reason: "CVE-2026-1".into() }];
    add_set(&lab, &ReferenceSet { origins: vec![package], deny, ..ReferenceSet::default() });
    let list = synthetic::list(50);
    let pcr = machine.case.pcrs[0].pcrs.iter_mut().find(|pcr| pcr.index == 10).unwrap();
    pcr.value = list.pcr(Digest::filled(HashAlg::Sha256, 0)).as_bytes().to_vec();
    machine.case.ima = Some(list.bytes);
    // The shipped policy may leave files to the operator; something else is wrong in any case.
    boots(&mut machine, with_dbx(boot::LOG, 9));
    let explanation = explain(&lab, &machine.attest(&lab));
    let of = |path: &str| {
        let is = |finding: &&Finding| finding.file.as_ref().is_some_and(|file| file.path == path);
        explanation.findings.iter().chain(&explanation.also).find(is).unwrap()
    };
    let unknown = of(&known);
    assert_eq!((unknown.id.as_str(), unknown.accepted), ("ima-unknown", Some(1)));
    assert_eq!(unknown.belongs_to, ["deb coreutils 9.1-1"]);
    assert_eq!(unknown.nearest.as_ref().unwrap().digest, format!("sha256:{}", "11".repeat(32)));
    assert!(unknown.fix[0].starts_with("attest learn deb-installed coreutils -o node-"), "{:?}", unknown.fix);
    let denied = of(&denied);
    assert_eq!((denied.id.as_str(), denied.got.as_deref()), ("ima-denied", Some("denied: CVE-2026-1")));
    assert_eq!(denied.belongs_to, ["deny-list of set files: CVE-2026-1"]);
    assert!(denied.fix[0].starts_with("put another version"), "{:?}", denied.fix);
    assert!(explanation.also.len() <= 32 && explanation.more > 0, "bounded");
}

#[test]
fn a_suspended_host() {
    let (lab, mut machine) = Lab::enrolled();
    let host = machine.case.host().to_string();
    let state = countersign_wire::enrol::HostState::Suspended;
    lab.ask(Request::HostState { host: host.clone(), state, reason: "stolen?\u{1b}[2J".into() }).unwrap();
    let explanation = explain(&lab, &machine.attest(&lab));
    assert_eq!(explanation.findings.iter().map(|finding| finding.id.as_str()).collect::<Vec<_>>(), ["host-suspended"]);
    assert_eq!(explanation.commands, [format!("verifier host admit {host}")]);
    says(&explanation, &["note: the host is suspended now because: stolen?\\u{1b}[2J"]);
}

#[test]
fn the_host_is_told_the_same() {
    let (lab, mut machine) = Lab::enrolled();
    let answer = machine.attest(&lab);
    assert_eq!((answer.allow, answer.explanation), (true, None), "nothing stands against an allow");
    let (lab, mut machine, good) = accepted_with(&with_dbx(boot::LOG, 371));
    boots(&mut machine, with_dbx(boot::LOG, 420));
    let answer = machine.attest(&lab);
    let told_host = told(&answer).unwrap();
    assert_eq!(told_host, explain(&lab, &answer));
    says(&told_host, &["change   dbx 371 -> 420 entries", "what to do", "  verifier reference add node-"]);
    let Since::Compared { verdict, .. } = &told_host.since else { panic!("{:?}", told_host.since) };
    assert_eq!(verdict, &good);
    // Evidence that the AK did not sign: whoever sent it is told nothing of the host.
    let challenge = lab.challenge(&machine, None).unwrap();
    let mut evidence: countersign_wire::evidence::Evidence =
        countersign_wire::cbor::decode(&machine.evidence(&challenge, None)).unwrap();
    *evidence.signature.last_mut().unwrap() ^= 1;
    let answer = lab.answer(countersign_wire::cbor::encode(&evidence), challenge.purpose).unwrap();
    assert_eq!((answer.allow, answer.explanation), (false, None));
    // Why an operator stopped a host is for operators.
    let host = machine.case.host().to_string();
    let state = countersign_wire::enrol::HostState::Suspended;
    lab.ask(Request::HostState { host, state, reason: "stolen?".into() }).unwrap();
    let answer = machine.attest(&lab);
    let (told_host, stored) = (told(&answer).unwrap(), explain(&lab, &answer));
    assert!(stored.words().contains("stolen?") && !told_host.words().contains("stolen?"));
    assert_eq!((told_host.failed, told_host.findings), (stored.failed, stored.findings));
}

#[test]
fn a_tampered_log() {
    let (lab, mut machine, _) = accepted_with(boot::LOG);
    // Another kernel was booted; the log of the good boot is sent along.
    let pcr = machine.case.pcrs[0].pcrs.iter_mut().find(|pcr| pcr.index == 4).unwrap();
    pcr.value = Digest::new(HashAlg::Sha256, &pcr.value).unwrap().extend(&[1; 32]).as_bytes().to_vec();
    let explanation = explain(&lab, &machine.attest(&lab));
    assert_eq!(explanation.failed, ["pcr-values"]);
    assert_eq!(explanation.since, Since::NotAuthentic);
    assert_eq!(explanation.findings[0].subject.as_deref(), Some("PCR 4, sha256"));
    assert!(explanation.also.is_empty(), "nothing is said of what nobody vouches for");
    says(&explanation, &["pcr-values (appraisal): ", "the PCRs vouch for no boot log", "  reboot the host: a log"]);
    // The data of an event was changed: it no longer hashes to its digest.
    machine.reboot();
    let mut log = boot::LOG.to_vec();
    let event = EventLog::parse(boot::LOG).unwrap().events.iter().find(|event| event.index == 4).unwrap().offset;
    let end = EventLog::parse(boot::LOG).unwrap().events.iter().find(|event| event.index == 5).unwrap().offset;
    assert!(event < end);
    log[end - 1] ^= 1;
    machine.case.event_log = Some(log);
    let explanation = explain(&lab, &machine.attest(&lab));
    assert_eq!(explanation.failed, ["boot-log"]);
    let finding = &explanation.findings[0];
    assert_eq!(finding.event.as_ref().map(|event| (event.index, event.pcr)), Some((4, 7)), "{finding:#?}");
    assert_eq!(finding.event.as_ref().unwrap().content, None, "what it claims is not repeated");
}

#[test]
fn evidence_that_nobody_signed() {
    let (lab, mut machine) = Lab::enrolled();
    let challenge = lab.challenge(&machine, None).unwrap();
    let mut evidence: countersign_wire::evidence::Evidence =
        countersign_wire::cbor::decode(&machine.evidence(&challenge, None)).unwrap();
    *evidence.signature.last_mut().unwrap() ^= 1;
    let answer = lab.answer(countersign_wire::cbor::encode(&evidence), challenge.purpose).unwrap();
    let explanation = explain(&lab, &answer);
    assert_eq!(explanation.failed, ["quote-signature"]);
    says(&explanation, &["note: the host's TPM did not sign this evidence"]);
}

#[test]
fn a_bundle_without_a_database() {
    let (lab, mut machine, _) = accepted_with(&with_dbx(boot::LOG, 3));
    boots(&mut machine, with_dbx(boot::LOG, 4));
    let answer = machine.attest(&lab);
    let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
    let path = lab.path().join("run.bundle");
    std::fs::write(&path, &file).unwrap();
    let offline = explain_bundle(&file).unwrap();
    let stored = explain(&lab, &answer);
    assert_eq!(
        (&offline.findings, &offline.commands),
        (&stored.findings, &stored.commands),
        "the same but for the past"
    );
    assert_eq!(offline.since, Since::NotInThisBundle);
    let command = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.arg("explain").args(arguments).env("HOME", "/nonexistent").env_remove("XDG_STATE_HOME");
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, out) = command(&[path.as_os_str()]);
    assert_eq!((code, out.trim_end()), (0, offline.words().as_str()));
    assert!(out.contains("not in this bundle") && out.contains("nobody vouches for this bundle"), "{out}");
    let (code, out) = command(&[path.as_os_str(), "--json".as_ref()]);
    assert_eq!((code, serde_json::from_str::<Explanation>(&out).unwrap()), (0, offline));
    for change in [8, file.len() / 2, file.len() - 1] {
        let mut changed = file.clone();
        changed[change] ^= 1;
        assert!(explain_bundle(&changed).is_err(), "byte {change}");
    }
}

#[test]
fn the_shape_of_the_json() {
    let (lab, mut machine, good) = accepted_with(&with_dbx(boot::LOG, 371));
    boots(&mut machine, with_dbx(boot::LOG, 420));
    let answer = machine.attest(&lab);
    let json = lab.ask(Request::VerdictExplain { id: answer.verdict_id }).unwrap();
    let finding = &json["findings"][0];
    assert_eq!(finding["source"], "host-policy");
    assert_eq!(finding["event"]["type"], "EV_EFI_VARIABLE_DRIVER_CONFIG");
    let content = json!({"name": "dbx", "text": "420 entries", "entries": 420, "strength": "authenticated"});
    assert_eq!(finding["event"]["content"], content);
    assert_eq!(finding["nearest"]["content"]["entries"], 371);
    assert_eq!(finding["nearest"]["difference"], "dbx 371 -> 420 entries");
    assert_eq!((&json["since"]["state"], &json["since"]["verdict"]), (&"compared".into(), &good.into()));
    assert_eq!((&json["allow"], &json["failed"]), (&false.into(), &json!(["host-policy"])));
    for field in ["verdict", "host", "host_name", "purpose", "time_ms", "also", "more", "commands", "notes"] {
        assert!(json.get(field).is_some(), "{field}");
    }
}

#[test]
fn an_unknown_verdict() {
    let (lab, _) = Lab::enrolled();
    let error = lab.ask(Request::VerdictExplain { id: VerdictId([9; 16]) }).unwrap_err();
    let Error::Request(problem) = &error else { panic!("{error:?}") };
    assert_eq!((problem.id.as_str(), problem.hint.as_deref()), ("not-found", Some("verifier verdict list")));
    assert_eq!(error.exit_code(), 20);
}

#[test]
fn the_command_on_a_state_folder() {
    let (lab, mut machine) = Lab::enrolled();
    boots(&mut machine, with_dbx(boot::LOG, 9));
    let answer = machine.attest(&lab);
    let command = |id: &VerdictId| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.arg("--state-dir").arg(lab.path()).args(["explain", &id.to_string()]);
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = command(&answer.verdict_id);
    assert_eq!((code, out.trim_end()), (0, explain(&lab, &answer).words().as_str()));
    let (code, out, err) = command(&VerdictId([9; 16]));
    assert_eq!((code, out.as_str()), (20, ""));
    assert!(err.starts_with("error: there is no verdict 0909") && err.contains("hint: verifier verdict list"), "{err}");
}

#[test]
fn reference_values_without_words() {
    // Rows as older versions stored them.
    let (lab, mut machine, _) = accepted_with(&with_dbx(boot::LOG, 3));
    let plain = "UPDATE reference_sets SET data = \
        (SELECT json_group_array(json_remove(value, '$.content')) FROM json_each(reference_sets.data))";
    lab.run(async { sqlx::query(plain).execute(&crate::nonces::pool(&lab).await).await }).unwrap();
    boots(&mut machine, with_dbx(boot::LOG, 4));
    let explanation = explain(&lab, &machine.attest(&lab));
    let dbx = named(&explanation.findings, "dbx");
    let nearest = dbx.nearest.as_ref().unwrap();
    assert_eq!(
        (nearest.content.as_ref(), nearest.difference.as_str()),
        (None, "another digest"),
        "the one that is missing"
    );
    says(&explanation, &["note: the reference values were stored without words"]);
}
