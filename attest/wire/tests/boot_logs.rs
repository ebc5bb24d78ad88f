//! True logs are accepted: our recorded boots, and logs of others where they lie beside the checkout.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, clippy::panic, reason = "tests")]

mod support;

use std::path::Path;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{EventLog, Format, PcrSet, Registers};
use countersign_wire::facts::Facts;
use countersign_wire::{cel, ima};
use support::{Pcrs, check, fixture, pcrs, shared};

const FIXTURES: [(&str, bool); 6] = [
    ("nosb-systemdboot-uki", false),
    ("sb-snakeoil-systemdboot-uki", true),
    ("sb-ms-shim-grub212", true),
    ("nosb-shim-grub212", false),
    ("nosb-direct-k6.1-sha384-imapad", false),
    ("sb-snakeoil-uki-systemd-pcrphase-ima", true),
];

/// PCRs without PCR 10: the kernel's IMA list explains that one.
fn without_ima(mut all: Pcrs) -> Pcrs {
    for bank in all.values_mut() {
        bank.remove(&ima::PCR);
    }
    all
}

#[test]
fn our_recorded_boots() {
    for (name, secure_boot) in FIXTURES {
        let log = fixture(&format!("{name}/binary_bios_measurements"));
        let systemd = if name.contains("pcrphase") { fixture(&format!("{name}/tpm2-measure.log")) } else { Vec::new() };
        let held = without_ima(pcrs(&String::from_utf8(fixture(&format!("{name}/PCRS.json"))).unwrap()));
        assert_eq!(held.len(), 3);
        assert_eq!(check(&log, &held, &systemd, Registers::Tpm), Ok(Some(secure_boot)), "{name}");
        // A PCR that holds another value is refused, whichever it is, in whichever bank.
        for (alg, values) in &held {
            for pcr in values.keys() {
                let mut changed = held.clone();
                changed.get_mut(alg).unwrap().insert(*pcr, alg.digest(&[b"another"]));
                assert_eq!(check(&log, &changed, &systemd, Registers::Tpm), Err(format!("pcr {pcr}")), "{name} {alg}");
            }
        }
        // Through the canonical event log and back.
        let parsed = EventLog::parse(&log).unwrap();
        let read = cel::parse(cel::write(&parsed, &[]).as_bytes()).unwrap();
        assert_eq!(check(&read.firmware, &held, &systemd, Registers::Tpm), Ok(Some(secure_boot)), "{name} as CEL");
    }
}

#[test]
fn public_logs_of_others() {
    let Some(folder) = shared("eventlogs") else {
        println!("skipped: no folder shared/eventlogs beside the checkout");
        return;
    };
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    for (name, want) in expected["logs"].as_object().unwrap() {
        let bytes = std::fs::read(folder.join(want["file"].as_str().unwrap())).unwrap();
        if want["parse"] != "ok" {
            assert!(EventLog::parse(&bytes).is_err(), "{name}: {}", want["parse"]);
            continue;
        }
        let log = EventLog::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let format = if want["format"] == "sha1-legacy" { Format::Sha1 } else { Format::CryptoAgile };
        assert_eq!(log.format, format, "{name}");
        let algs: Vec<&str> = log.known_banks().map(HashAlg::name).collect();
        assert_eq!(serde_json::json!(algs), want["algs"], "{name}");
        let held = pcrs(&want["pcrs"].to_string());
        let got = check(&bytes, &held, b"", Registers::Tpm);
        assert_eq!(serde_json::json!(got.unwrap()), want["secure_boot"], "{name}");
        for (alg, values) in &held {
            let bank = log.replay(*alg).unwrap();
            for (pcr, value) in values {
                assert_eq!(bank.value(*pcr), Some(*value), "{name} {alg} {pcr}");
            }
            for pcr in (0..24u8).filter(|pcr| !values.contains_key(pcr)) {
                let fill = if (17..=22).contains(&pcr) { 0xff } else { 0 };
                assert_eq!(bank.value(pcr), Some(Digest::filled(*alg, fill)), "{name} {alg} {pcr}");
            }
            let examined = log.examine(&[(*alg, PcrSet::ALL)], Registers::Tpm).unwrap();
            let text = serde_json::to_string(&Facts::of(&examined, &[])).unwrap();
            assert!(serde_json::from_str::<Facts>(&text).is_ok());
        }
    }
}

/// PCRs of a sample: one file for each.
fn sample_pcrs(folder: &Path) -> Pcrs {
    let mut all = Pcrs::new();
    for alg in HashAlg::ALL {
        let bank = folder.join(format!("pcr-{}", alg.name()));
        for pcr in (0..24u8).filter(|pcr| *pcr != ima::PCR) {
            let Ok(text) = std::fs::read_to_string(bank.join(pcr.to_string())) else { continue };
            // An empty file is a read that failed.
            let Ok(value) = hex::decode(text.trim()) else { continue };
            if let Some(digest) = Digest::new(alg, &value) {
                all.entry(alg).or_default().insert(pcr, digest);
            }
        }
    }
    all
}

#[test]
fn recorded_samples() {
    let Some(folder) = shared("samples") else {
        println!("skipped: no folder shared/samples beside the checkout");
        return;
    };
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(log) = std::fs::read(path.join("binary_bios_measurements")) else { continue };
        let systemd = std::fs::read(path.join("tpm2-measure.log")).unwrap_or_default();
        let held = sample_pcrs(&path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(held.len() >= 2, "{name}");
        assert_eq!(check(&log, &held, &systemd, Registers::Tpm), Ok(Some(name.starts_with("sb-"))), "{name}");
        checked += 1;
    }
    assert!(checked >= 9, "{checked} samples");
}
