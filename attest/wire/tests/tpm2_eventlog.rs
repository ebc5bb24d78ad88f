//! tpm2_eventlog of tpm2-tools replays the same logs to the same PCRs, or we know why it does not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, EventType as T};
use support::{Log, fixture, shared};

/// How tpm2_eventlog can part from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It replays these PCRs to other values.
    Differs(&'static [u8]),
    /// It takes a log that we refuse.
    Takes,
}

/// What tpm2_eventlog 5.4 is known to do otherwise: name of the log, how, and why.
const DIVERGENCES: [(&str, Known, &str); 3] = [
    ("locality-3", Known::Differs(&[0]), "it takes no notice of StartupLocality: PCR 0 begins with zeros there"),
    ("hardware-root-of-trust", Known::Differs(&[0]), "it does not know EV_EFI_HCRTM_EVENT: PCR 0 begins with zeros"),
    ("specid-vendordata.bin", Known::Takes, "vendorInfoSize is 4 and no byte follows: the structure is cut"),
];

type Replayed = BTreeMap<String, BTreeMap<u8, String>>;

/// The `pcrs` part of its YAML output; `None` if it refuses the log.
fn theirs(bytes: &[u8]) -> Option<Replayed> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = Command::new("tpm2_eventlog").arg(file.path()).output().unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut all = Replayed::new();
    let mut bank = String::new();
    for line in text.lines().skip_while(|line| *line != "pcrs:").skip(1) {
        let (key, value) = line.split_once(':').unwrap();
        match value.trim().strip_prefix("0x") {
            Some(digest) => {
                let pcr = key.trim().parse().unwrap();
                all.entry(bank.clone()).or_default().insert(pcr, digest.to_owned());
            }
            None => bank = key.trim().to_owned(),
        }
    }
    Some(all)
}

/// Our replay of the PCRs that events extend.
fn ours(bytes: &[u8]) -> Replayed {
    let log = EventLog::parse(bytes).unwrap();
    let mut all = Replayed::new();
    for alg in log.known_banks() {
        let Ok(bank) = log.replay(alg) else { continue };
        for pcr in (0..24u8).filter(|pcr| bank.extended(*pcr)) {
            all.entry(alg.name().to_owned()).or_default().insert(pcr, bank.value(pcr).unwrap().to_string());
        }
    }
    all
}

fn logs() -> Vec<(String, Vec<u8>)> {
    let mut logs: Vec<(String, Vec<u8>)> = [
        "sb-ms-shim-grub212",
        "nosb-shim-grub212",
        "nosb-direct-k6.1-sha384-imapad",
        "sb-snakeoil-uki-systemd-pcrphase-ima",
        "nosb-systemdboot-uki",
        "sb-snakeoil-systemdboot-uki",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), fixture(&format!("{name}/binary_bios_measurements"))))
    .collect();
    let base = Log::open(&logs[0].1);
    let mut locality = base.clone();
    locality.events.insert(0, base.event(0, T::NO_ACTION, b"StartupLocality\0\x03"));
    logs.push(("locality-3".into(), locality.bytes()));
    let mut root = base.clone();
    root.events.insert(0, base.event(0, T::EFI_HCRTM_EVENT, b"HCRTM"));
    logs.push(("hardware-root-of-trust".into(), root.bytes()));
    let mut launch = base.clone();
    launch.events.push(base.event(17, T::POST_CODE, b"launch"));
    logs.push(("dynamic-launch".into(), launch.bytes()));
    if let Some(folder) = shared("eventlogs") {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "bin") {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                logs.push((name, std::fs::read(&path).unwrap()));
            }
        }
    } else {
        println!("skipped: no folder shared/eventlogs beside the checkout");
    }
    logs
}

#[test]
fn the_same_pcrs_or_a_reason() {
    let Ok(version) = Command::new("tpm2_eventlog").arg("--version").output() else {
        println!("skipped: tpm2_eventlog is not installed");
        return;
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let is_5_4 = version.contains("\"5.4\"");
    let mut compared = 0;
    for (name, bytes) in logs() {
        let known = DIVERGENCES.iter().find(|(log, ..)| *log == name).map(|(_, known, _)| *known);
        let theirs = theirs(&bytes);
        if EventLog::parse(&bytes).is_err() {
            // Whether it refuses the log too is its own affair, if we know of it.
            assert!(theirs.is_none() || known == Some(Known::Takes), "{name}");
            continue;
        }
        let Some(theirs) = theirs else { panic!("{name}: only tpm2_eventlog refuses it") };
        let ours = ours(&bytes);
        for alg in HashAlg::ALL {
            let (Some(ours), Some(theirs)) = (ours.get(alg.name()), theirs.get(alg.name())) else { continue };
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name} {alg}");
            let differs: Vec<u8> = ours.keys().copied().filter(|pcr| ours[pcr] != theirs[pcr]).collect();
            let expected = if let Some(Known::Differs(pcrs)) = known { pcrs } else { &[] };
            // Another version may have learnt what 5.4 does not know; it may not differ in anything else.
            assert!(differs.iter().all(|pcr| expected.contains(pcr)), "{name} {alg}: {differs:?}");
            assert!(!is_5_4 || differs == expected, "{name} {alg}: {differs:?}, known: {expected:?}");
            compared += 1;
        }
    }
    // Those of our own fixtures alone.
    assert!(compared >= 15, "{compared} banks");
}
