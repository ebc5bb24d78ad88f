//! Logs that do not lead to the PCRs, and logs that do and still lie.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{Event, EventLog};
use countersign_wire::id::RunId;
use countersign_wire::ima;
use countersign_wire::runlog::{Event as RunEvent, RunLog};

use crate::support::boot;
use crate::support::case::{Case, RUN_PCR, accepted, reasons, refused, suspended};

const RUN: RunId = RunId([6; 16]);

fn log() -> EventLog<'static> {
    EventLog::parse(boot::LOG).unwrap()
}

/// Where a part of the recorded log lies in it.
fn at(part: &[u8]) -> usize {
    part.as_ptr().addr() - boot::LOG.as_ptr().addr()
}

/// The events of a log written again, each as `each` says.
fn rewritten(each: impl Fn(&Event<'_>) -> Vec<Vec<u8>>) -> Vec<u8> {
    let log = log();
    let mut bytes = boot::LOG[..log.events[0].offset].to_vec();
    bytes.extend(log.events.iter().flat_map(each).flatten());
    bytes
}

/// TCG_PCR_EVENT2.
fn event(pcr: u32, kind: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut bytes = [pcr.to_le_bytes(), kind.to_le_bytes(), (digests.len() as u32).to_le_bytes()].concat();
    for (alg, digest) in digests {
        bytes.extend(alg.to_le_bytes());
        bytes.extend(*digest);
    }
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

fn as_is(given: &Event<'_>) -> Vec<u8> {
    event(given.pcr, given.kind.0, &given.digests().collect::<Vec<_>>(), given.data)
}

fn with_log(bytes: Vec<u8>) -> Case {
    let mut case = Case::attest();
    case.event_log = Some(bytes);
    case
}

#[test]
fn a_log_altered_with_pcrs_untouched() {
    assert_eq!(rewritten(|event| vec![as_is(event)]), boot::LOG);
    let mut tried = 0;
    for event in log().events.iter().filter(|event| event.extends()) {
        let mut bytes = boot::LOG.to_vec();
        bytes[at(event.digest(HashAlg::Sha256).unwrap())] ^= 1;
        let judged = with_log(bytes).judge();
        // A separator's digest is fixed: changing it is noticed before PCRs are compared.
        if judged.verdict.reasons[0].id == "boot-log" {
            refused(&judged, "boot-log", &event.describe());
        } else {
            refused(&judged, "pcr-values", &format!("PCR {}, sha256", event.pcr));
        }
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn events_left_out_repeated_exchanged_or_moved_to_another_pcr() {
    let chosen =
        log().events.iter().find(|event| event.pcr == 4 && event.digest(HashAlg::Sha256).is_some()).unwrap().index;
    let left_out = rewritten(|event| if event.index == chosen { vec![] } else { vec![as_is(event)] });
    let repeated = rewritten(|event| vec![as_is(event); if event.index == chosen { 2 } else { 1 }]);
    for bytes in [left_out, repeated] {
        let judged = with_log(bytes).judge();
        assert!(["pcr-values", "boot-log"].contains(&judged.verdict.reasons[0].id.as_str()));
        assert!(!judged.verdict.allow && judged.suspend.is_none());
    }
    // Two events of PCR 8 exchanged: the same set of digests, another value.
    let eights: Vec<_> = log().events.iter().filter(|event| event.pcr == 8).copied().collect();
    let (first, second) = (eights[0], eights[1]);
    assert_ne!(first.digest(HashAlg::Sha256), second.digest(HashAlg::Sha256));
    let exchanged = rewritten(|event| match event.index {
        index if index == first.index => vec![as_is(&second)],
        index if index == second.index => vec![as_is(&first)],
        _ => vec![as_is(event)],
    });
    refused(&with_log(exchanged).judge(), "pcr-values", "PCR 8, sha256");
    let moved = rewritten(|given| {
        let pcr = if given.index == first.index { 12 } else { given.pcr };
        vec![event(pcr, given.kind.0, &given.digests().collect::<Vec<_>>(), given.data)]
    });
    refused(&with_log(moved).judge(), "pcr-values", "PCR 8, sha256");
    let nowhere = rewritten(|given| {
        let pcr = if given.index == first.index { 24 } else { given.pcr };
        vec![event(pcr, given.kind.0, &given.digests().collect::<Vec<_>>(), given.data)]
    });
    refused(&with_log(nowhere).judge(), "boot-log", "event_log");
    // An event that extends nothing is missed in PCR 8, whatever digest it has.
    let hidden = |digests: fn(&[u8]) -> Vec<u8>| {
        let bytes = rewritten(|given| {
            let all: Vec<(u16, &[u8])> = given.digests().collect();
            if given.index != first.index {
                return vec![event(given.pcr, given.kind.0, &all, given.data)];
            }
            let made: Vec<(u16, Vec<u8>)> = all.iter().map(|(alg, digest)| (*alg, digests(digest))).collect();
            let made: Vec<(u16, &[u8])> = made.iter().map(|(alg, digest)| (*alg, digest.as_slice())).collect();
            vec![event(given.pcr, 3, &made, given.data)]
        });
        with_log(bytes).judge()
    };
    refused(&hidden(<[u8]>::to_vec), "pcr-values", "PCR 8, sha256");
    refused(&hidden(|digest| vec![0; digest.len()]), "pcr-values", "PCR 8, sha256");
}

#[test]
fn a_log_cut_short() {
    let parsed = log();
    let last = parsed.events.iter().rfind(|event| event.extends() && event.pcr != 5).unwrap().offset;
    let no = with_log(boot::LOG[..last].to_vec()).judge();
    assert_eq!(no.verdict.reasons[0].id, "pcr-values");
    // Only all of what is extended at ExitBootServices may be missing: some firmware does not log it, and PCR 5 itself proves it.
    let exit: Vec<_> = parsed.events.iter().filter(|event| event.data.starts_with(b"Exit Boot Services")).collect();
    assert_eq!(exit.len(), 2);
    refused(&with_log(boot::LOG[..exit[1].offset].to_vec()).judge(), "pcr-values", "PCR 5, sha256");
    let unlogged = rewritten(|event| {
        let logged = !exit.iter().any(|exit| exit.index == event.index);
        logged.then(|| as_is(event)).into_iter().collect()
    });
    accepted(&with_log(unlogged.clone()).judge());
    let mut other = with_log(unlogged);
    other.extend(5, &HashAlg::Sha256.digest(&[b"something else"]));
    refused(&other.judge(), "pcr-values", "PCR 5, sha256");
    for end in [boot::LOG.len() - 1, last + 5, 40, 0] {
        refused(&with_log(boot::LOG[..end].to_vec()).judge(), "boot-log", "event_log");
    }
}

#[test]
fn pcrs_changed_with_the_log_untouched() {
    for pcr in boot::ASKED.filter(|pcr| *pcr != RUN_PCR && *pcr != ima::PCR) {
        let mut case = Case::attest();
        case.extend(pcr, &HashAlg::Sha256.digest(&[b"a boot kit"]));
        let no = refused(&case.judge(), "pcr-values", &format!("PCR {pcr}, sha256"));
        // PCRs 11 and 12 have no event: they must hold what a reset leaves.
        let what = if [11, 12].contains(&pcr) { "no event extends it, so 0000" } else { "the log leads to " };
        assert!(no.want.starts_with(what), "{no:?}");
    }
}

#[test]
fn no_log_explains_nothing() {
    let mut case = Case::attest();
    case.event_log = None;
    assert!(reasons(&case.judge()).contains(&"boot-log"));
    let mut case = Case::release();
    case.event_log = None;
    let judged = case.judge();
    let ids = reasons(&judged);
    assert!(ids.contains(&"boot-log") && ids.contains(&"workload-secure-boot"), "{ids:?}");
}

#[test]
fn secure_boot_claimed_in_data_that_does_not_hash_to_its_digest() {
    let variable = log()
        .events
        .iter()
        .find(|event| {
            event.pcr == 7 && event.data.windows(4).any(|part| part == b"S\0e\0" && event.data.ends_with(&[1]))
        })
        .copied()
        .unwrap();
    let mut bytes = boot::LOG.to_vec();
    bytes[at(variable.data) + variable.data.len() - 1] = 0;
    // Whatever the data says now, the TPM does not vouch for it.
    let subject = format!("event {} (PCR 7, EV_EFI_VARIABLE_DRIVER_CONFIG)", variable.index);
    refused(&with_log(bytes).judge(), "boot-log", &subject);
}

#[test]
fn types_are_not_measured() {
    // A boot application under the label of a driver: the PCRs are the same, the reference values are not.
    let application = log()
        .events
        .iter()
        .find(|event| event.pcr == 4 && event.kind.to_string().contains("APPLICATION"))
        .copied()
        .unwrap();
    let relabelled = rewritten(|given| {
        let kind = if given.index == application.index { 0x8000_0004 } else { given.kind.0 };
        vec![event(given.pcr, kind, &given.digests().collect::<Vec<_>>(), given.data)]
    });
    assert_eq!(reasons(&with_log(relabelled).judge()), ["boot-chain", "pcr-complete"]);
    let separator =
        log().events.iter().find(|event| event.pcr == 7 && event.kind.to_string() == "EV_SEPARATOR").copied().unwrap();
    let hidden = rewritten(|given| {
        let kind = if given.index == separator.index { 0x8000_0007 } else { given.kind.0 };
        vec![event(given.pcr, kind, &given.digests().collect::<Vec<_>>(), given.data)]
    });
    let no =
        refused(&with_log(hidden).judge(), "boot-log", &format!("event {} (PCR 7, EV_EFI_ACTION)", separator.index));
    assert_eq!(no.got, "a separator's digest under another type");
}

#[test]
fn sha1_does_not_vouch_for_sha256() {
    accepted(&Case::attest().with_bank(HashAlg::Sha1).judge());
    let only = |given: &Event<'_>, alg: HashAlg| {
        let digests: Vec<_> = given.digests().filter(|(id, _)| *id == alg.id()).collect();
        event(given.pcr, given.kind.0, &digests, given.data)
    };
    let some = log().events.iter().find(|event| event.pcr == 4 && event.extends()).unwrap().index;
    let mut case = Case::attest().with_bank(HashAlg::Sha1);
    // True SHA-1 digests, one false SHA-256 digest.
    let parsed = log();
    let event8 = parsed.events.iter().find(|event| event.pcr == 8).unwrap();
    let mut bytes = boot::LOG.to_vec();
    bytes[at(event8.digest(HashAlg::Sha256).unwrap())] ^= 1;
    case.event_log = Some(bytes.clone());
    let subject = format!("event {} (PCR 8, EV_IPL)", event8.index);
    refused(&case.judge(), "boot-log", &subject);
    refused(&with_log(bytes).judge(), "boot-log", &subject);
    // One event, or all, without a SHA-256 digest.
    let one = rewritten(|event| vec![if event.index == some { only(event, HashAlg::Sha1) } else { as_is(event) }]);
    let all = rewritten(|event| vec![only(event, HashAlg::Sha1)]);
    for bytes in [one, all] {
        case.event_log = Some(bytes.clone());
        let no = refused(&case.judge(), "boot-log", "event_log");
        assert!(no.got.contains("has no sha256 digest"), "{no:?}");
        refused(&with_log(bytes).judge(), "boot-log", "event_log");
    }
    // The reverse: SHA-256 is true and SHA-1, which was quoted too, is not.
    case.event_log = Some(rewritten(|event| vec![only(event, HashAlg::Sha256)]));
    refused(&case.judge(), "boot-log", "event_log");
    // A log of TPM 1.2's time, with digests of SHA-1 only.
    let legacy = parsed.events.iter().flat_map(|event| {
        let digest = event.digest(HashAlg::Sha1).unwrap_or(&[0; 20]);
        let size = u32::try_from(event.data.len()).unwrap();
        [&event.pcr.to_le_bytes(), &event.kind.0.to_le_bytes(), digest, &size.to_le_bytes(), event.data].concat()
    });
    let no = refused(&with_log(legacy.collect()).judge(), "boot-log", "event_log");
    assert!(no.got.contains("no sha256 bank"), "{no:?}");
}

/// An entry of template ima-ng in a binary list.
fn ima_entry(pcr: u32, path: &str, violation: bool) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let data = [sized(&[b"sha256:\0".as_slice(), &[9; 32]].concat()), sized(format!("{path}\0").as_bytes())].concat();
    let hash = HashAlg::Sha1.digest(&[&data]);
    let hash = if violation { vec![0; 20] } else { hash.as_bytes().to_vec() };
    [pcr.to_le_bytes().to_vec(), hash, sized(b"ima-ng"), sized(&data)].concat()
}

#[test]
fn ima_beyond_the_quoted_prefix_is_ignored() {
    let expected = Case::attest().judge().verdict.checks;
    for beyond in [ima_entry(10, "/usr/bin/later", false), b"no entry at all".to_vec(), vec![0xff; 4096]] {
        let mut case = Case::attest();
        case.ima.as_mut().unwrap().extend(beyond);
        let judged = case.judge();
        accepted(&judged);
        assert_eq!(judged.verdict.checks, expected);
    }
}

#[test]
fn an_altered_ima_list() {
    let path = ima::entries(boot::IMA).unwrap().next().unwrap().unwrap().path;
    let path = path.as_ptr().addr() - boot::IMA.as_ptr().addr();
    let mut case = Case::attest();
    case.ima.as_mut().unwrap()[path] ^= 1;
    refused(&case.judge(), "ima-list", "ima_log");
    case.ima = Some(Vec::new());
    refused(&case.judge(), "ima-list", "ima_log");
    case.ima = Some(boot::IMA[..boot::IMA.len() - 1].to_vec());
    refused(&case.judge(), "ima-list", "ima_log");
    case.ima = None;
    refused(&case.judge(), "pcr-values", "PCR 10, sha256");
    // PCR 10 moved and the list did not.
    let mut case = Case::attest();
    case.extend(10, &HashAlg::Sha256.digest(&[b"a file"]));
    refused(&case.judge(), "ima-list", "ima_log");
    let judged = Case::attest().tampered(|evidence| evidence.ima.as_mut().unwrap().from = 1);
    refused(&judged, "ima-list", "ima");
}

/// A host policy that wants so many entries and no violation.
fn policy_that_wants(entries: u64) -> Vec<u8> {
    let rule =
        format!("verdict := {{\"allow\": true}} if {{ input.ima.entries == {entries}; input.ima.violations == 0 }}");
    crate::policy::bundle("host", &rule)
}

#[test]
fn ima_entries_that_pcr_10_does_not_vouch_for_are_no_facts() {
    let entries = u64::try_from(ima::entries(boot::IMA).unwrap().count()).unwrap();
    let entry = ima_entry(10, "/usr/bin/attest", false);
    let with = |list: Vec<u8>, wanted: u64| {
        let mut case = Case::attest();
        case.context.host_policy = policy_that_wants(wanted);
        case.ima = Some(list);
        case
    };
    accepted(&with(boot::IMA.to_vec(), entries).judge());
    // Injected for another PCR: no extend of PCR 10 answers for it.
    let injected = [ima_entry(11, "/usr/bin/attest", false), boot::IMA.to_vec()].concat();
    refused(&with(injected, entries + 1).judge(), "ima-list", "ima_log");
    // A violation extends ones whatever its data says.
    let mut violation = with([boot::IMA.to_vec(), ima_entry(10, "/usr/bin/attest", true)].concat(), entries + 1);
    violation.extend(10, &Digest::filled(HashAlg::Sha256, 0xff));
    assert_eq!(reasons(&violation.judge()), ["policy-undefined"]);
    // The real thing.
    let data = entry[entry.len() - (4 + 40 + 4 + 16)..].to_vec();
    let mut measured = with([boot::IMA.to_vec(), entry].concat(), entries + 1);
    measured.extend(10, &HashAlg::Sha256.digest(&[&data]));
    accepted(&measured.judge());
}

fn with_entries() -> Case {
    let mut case = Case::release();
    let workload = case.context.workload.as_ref().unwrap().id;
    case.log(&[
        RunEvent::Start { run: RUN, workload, time_ms: 1 },
        RunEvent::Resume {},
        RunEvent::End { run: RUN, status: "exit 0".into() },
    ]);
    case
}

#[test]
fn a_run_log_cut_reordered_or_altered() {
    accepted(&with_entries().judge());
    let pcr = format!("run log, PCR {RUN_PCR}, sha256");
    let full = with_entries().run_log;
    let lines: Vec<&[u8]> = full.split_inclusive(|byte| *byte == b'\n').collect();
    // Cut behind an entry, to nothing, and one entry more than was extended.
    for kept in 0..lines.len() {
        let mut case = with_entries();
        case.run_log = lines[..kept].concat();
        refused(&case.judge(), "run-log", &pcr);
    }
    let absent = with_entries().tampered(|evidence| evidence.run_log = None);
    refused(&absent, "run-log", &pcr);
    let mut case = with_entries();
    let (line, _) = RunLog::parse(&full).unwrap().next(RUN_PCR, &[HashAlg::Sha256], RunEvent::Resume {}).unwrap();
    case.run_log.extend(line);
    refused(&case.judge(), "run-log", &pcr);
    // No log at all.
    let altered = String::from_utf8(full.clone()).unwrap().replace("exit 0", "exit 1").into_bytes();
    let swapped = [lines[1], lines[0], lines[2]].concat();
    let without_middle = [lines[0], lines[2]].concat();
    let half = full[..full.len() - 1].to_vec();
    for bytes in [altered, swapped, without_middle, half, b"\n".to_vec(), vec![0xff; 100]] {
        let mut case = with_entries();
        case.run_log = bytes;
        refused(&case.judge(), "run-log", "run log");
    }
}

#[test]
fn a_run_log_of_another_pcr_or_bank() {
    let mut case = Case::attest();
    let (line, digests) = RunLog::empty().next(12, &[HashAlg::Sha256], RunEvent::Resume {}).unwrap();
    case.run_log = line;
    case.extend(12, &digests[0]);
    let no = refused(&case.judge(), "run-log", "run log");
    assert_eq!((no.got.as_str(), no.want.as_str()), ("Some(12)", "PCR 13"));
    // SHA-256 only, where SHA-1 was quoted too.
    let mut case = Case::attest().with_bank(HashAlg::Sha1);
    let (line, digests) = RunLog::empty().next(RUN_PCR, &[HashAlg::Sha256], RunEvent::Resume {}).unwrap();
    case.run_log = line;
    case.extend(RUN_PCR, &digests[0]);
    refused(&case.judge(), "run-log", &format!("run log, PCR {RUN_PCR}, sha1"));
    // Somebody else extended the run PCR.
    let mut case = Case::attest();
    case.extend(RUN_PCR, &HashAlg::Sha256.digest(&[b"somebody else"]));
    refused(&case.judge(), "run-log", &format!("run log, PCR {RUN_PCR}, sha256"));
}

/// The next attestation of the same machine: the verifier keeps what the last one left.
fn next(mut case: Case) -> Case {
    let update = case.judge().update.unwrap();
    case.context.host.baseline = Some(update.baseline);
    case.context.host.receipts = update.receipts.receipts;
    case.clock.clock += 1000;
    case
}

#[test]
fn a_part_of_a_run_log_goes_on_from_what_was_proved() {
    let mut case = next(with_entries().logged(&[1]).named(1));
    let known = case.context.host.baseline.clone().unwrap().run.unwrap();
    assert_eq!(known.entries, 4);
    let read = case.run_log.len();
    let part = move |case: &Case| {
        let bytes = case.run_log[read..].to_vec();
        case.tampered(|evidence| (evidence.run_from, evidence.run_log) = (Some(4), Some(bytes)))
    };
    // Nothing new, and more entries; what is left is what the whole log leaves.
    accepted(&part(&case));
    case.log(&[RunEvent::Resume {}, RunEvent::End { run: RUN, status: "exit 1".into() }]);
    accepted(&part(&case));
    let left = |judged: countersign_verifier::appraise::Judged| judged.update.unwrap().baseline.run.unwrap();
    assert_eq!(left(part(&case)), left(case.judge()));
    assert_eq!(left(part(&case)).entries, 6);
    // Cut, from elsewhere, of nothing known, after another beginning.
    let pcr = format!("run log, PCR {RUN_PCR}, sha256");
    let bytes = case.run_log[read..].to_vec();
    let nothing = case.tampered(|evidence| (evidence.run_from, evidence.run_log) = (Some(4), None));
    refused(&nothing, "run-log", &pcr);
    for from in [0, 3, 5, u64::MAX] {
        let part = bytes.clone();
        let elsewhere = case.tampered(|evidence| (evidence.run_from, evidence.run_log) = (Some(from), Some(part)));
        refused(&elsewhere, "run-log", "run log");
    }
    let mut first = case.clone();
    first.context.host.baseline = None;
    first.context.host.receipts.clear();
    refused(&part(&first), "run-log", "run log");
    let mut other = case.clone();
    other.context.host.baseline.as_mut().unwrap().run.as_mut().unwrap().last = [1; 32];
    refused(&part(&other), "run-log", "run log");
    // Another boot, where its PCRs may be others.
    for (resets, restarts) in [(1, 0), (0, 1)] {
        let mut later = case.clone();
        later.clock.reset_count += resets;
        later.clock.restart_count += restarts;
        refused(&part(&later), "run-log", "run log");
    }
    // A boot log that claims what stands in the run PCR.
    let mut claims = case.clone();
    claims.context.host.baseline.as_mut().unwrap().run.as_mut().unwrap().before[0].value = vec![1; 32];
    refused(&part(&claims), "run-log", &pcr);
    // A bank that was not quoted then.
    let mut bank = case.clone();
    bank.context.host.baseline.as_mut().unwrap().run.as_mut().unwrap().before.clear();
    refused(&part(&bank), "run-log", &pcr);
}

#[test]
fn a_whole_run_log_that_does_not_go_on_is_another_machines() {
    let machine = Case::attest();
    let case = next(machine.clone().logged(&[1, 2]).named(2));
    accepted(&case.judge());
    for logged in [&[][..], &[1], &[1, 3], &[1, 3, 2]] {
        let mut copy = machine.clone().logged(logged).named(2);
        copy.context.host = case.context.host.clone();
        copy.clock = case.clock;
        suspended(&copy.judge(), "receipts", "receipts");
    }
}

#[test]
fn a_log_that_was_read_before_speaks_for_no_other() {
    let case = Case::attest();
    let facts = |case: &Case| {
        let bytes = countersign_wire::cbor::encode(&case.evidence());
        countersign_verifier::appraise::policy_input(&bytes, &case.context).unwrap().boot.unwrap().facts
    };
    let first = facts(&case);
    // The same PCRs: where an executable lay is not measured.
    let log = log();
    let image = log.events.iter().find(|event| event.pcr == 4 && event.is_image()).unwrap().data;
    let path = image.windows(6).position(|part| part == b".\0e\0f\0" || part == b".\0E\0F\0").unwrap();
    let mut bytes = boot::LOG.to_vec();
    bytes[at(image) + path + 2] = b'x';
    let other = facts(&with_log(bytes));
    assert_eq!((&other.secure_boot, &other.databases), (&first.secure_boot, &first.databases));
    assert_ne!(other.applications, first.applications);
    assert_eq!(facts(&case), first);
    // Lies are refused whatever was read before them, and change nothing.
    let zero = log.events.iter().find(|event| event.kind.to_string() == "EV_SEPARATOR").unwrap();
    let mut lies = boot::LOG.to_vec();
    lies[zero.offset + 4] ^= 1;
    for _ in 0..2 {
        refused(&with_log(lies.clone()).judge(), "boot-log", "event 9 (PCR 7, EV_ACTION)");
        assert_eq!(facts(&case), first);
    }
}
