//! Lies by types, places and structure: none of them is measured. As in `doctored.rs`, the TPM holds what the doctored digests lead to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

mod support;

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, EventType as T, PcrSet, Registers};
use countersign_wire::facts::{Facts, Strength};
use support::{Log, check, fixture, shared};

type Case = (&'static str, &'static str, fn(&mut Log));
type Real = (&'static str, fn(&mut Log));

const GLOBAL: &str = "61dfe48bca93d211aa0d00e098032b8c";
const DATABASE: &str = "cbb219d73a3d9645a3bcdad00e67656f";
const SHIM: &str = "50ab5d6046e00043abb63dd810dd8b23";
const OTHERS: &str = "000102030405060708090a0b0c0d0e0f";
const LOCALITY: &[u8] = b"StartupLocality\0";

fn grub() -> Log {
    Log::open(&fixture("sb-ms-shim-grub212/binary_bios_measurements"))
}

fn uki() -> Log {
    Log::open(&fixture("sb-snakeoil-uki-systemd-pcrphase-ima/binary_bios_measurements"))
}

/// UEFI_VARIABLE_DATA.
fn variable(guid: &str, name: &str, data: &[u8]) -> Vec<u8> {
    let length = |n: usize| u64::try_from(n).unwrap().to_le_bytes();
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [hex::decode(guid).unwrap(), length(name.len() / 2).into(), length(data.len()).into(), name, data.to_vec()].concat()
}

fn verdict(log: &Log) -> Result<Option<bool>, String> {
    check(&log.bytes(), &log.pcrs(), b"", Registers::Tpm)
}

fn facts(log: &Log) -> Facts {
    let bytes = log.bytes();
    let log = EventLog::parse(&bytes).unwrap();
    Facts::of(&log.examine(&[(HashAlg::Sha256, PcrSet::ALL)], Registers::Tpm).unwrap(), &[])
}

/// Each recorded boot, ours and those of others that lie beside the checkout.
fn recorded() -> Vec<(String, Log)> {
    let mut files = Vec::new();
    for name in ["sb-ms-shim-grub212", "nosb-direct-k6.1-sha384-imapad", "sb-snakeoil-systemdboot-uki"] {
        files.push((name.to_owned(), fixture(&format!("{name}/binary_bios_measurements"))));
    }
    match shared("eventlogs") {
        None => println!("skipped: no folder shared/eventlogs beside the checkout"),
        Some(folder) => {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|end| end == "bin") {
                    files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    let agile = |bytes: &[u8]| EventLog::parse(bytes).is_ok_and(|log| log.spec_id.is_some());
    files.into_iter().filter(|(_, bytes)| agile(bytes)).map(|(name, bytes)| (name, Log::open(&bytes))).collect()
}

fn refused(cases: &[Case], open: fn() -> Log) {
    let judged = cases.iter().map(|(name, rule, doctor)| {
        let mut log = open();
        doctor(&mut log);
        (*name, (*rule).to_owned(), verdict(&log))
    });
    let wrong: Vec<_> = judged.filter(|(_, rule, verdict)| verdict.as_ref() != Err(rule)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn accepted(cases: &[Real], open: fn() -> Log) {
    let judged = cases.iter().map(|(name, real)| {
        let mut log = open();
        real(&mut log);
        (*name, verdict(&log))
    });
    let wrong: Vec<_> = judged.filter(|(_, verdict)| *verdict != Ok(Some(true))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn where_pcr_0_began() {
    fn say(log: &mut Log, at: usize, pcr: u32, rest: &[u8]) {
        let event = log.event(pcr, T::NO_ACTION, &[LOCALITY, rest].concat());
        log.events.insert(at, event);
    }
    refused(
        &[
            ("a locality that no TPM starts at", "startup-locality", |log| say(log, 0, 0, &[1])),
            ("a locality with a byte behind it", "startup-locality", |log| say(log, 0, 0, &[0, 0])),
            ("no locality", "startup-locality", |log| say(log, 0, 0, &[])),
            ("a locality in PCR 1", "startup-locality", |log| say(log, 0, 1, &[0])),
            ("locality 4, then another", "startup-locality", |log| {
                say(log, 0, 0, &[0]);
                say(log, 0, 0, &[4]);
            }),
            ("a hardware root of trust in PCR 4", "startup-locality", |log| {
                let at = log.first(4, T::EFI_ACTION);
                log.events[at] = log.event(4, T::EFI_HCRTM_EVENT, b"HCRTM");
            }),
            ("a late hardware root of trust", "startup-locality", |log| {
                let event = log.event(0, T::EFI_HCRTM_EVENT, b"HCRTM");
                log.events.push(event);
            }),
        ],
        grub,
    );
    // What it leads to is for the TPM to say: this one began at 0.
    let mut hardware = grub();
    let event = hardware.event(0, T::EFI_HCRTM_EVENT, b"HCRTM");
    hardware.events.insert(0, event);
    say(&mut hardware, 1, 0, &[3]);
    assert_eq!(verdict(&hardware), Err("pcr 0".into()), "said after a hardware root of trust: without effect");
}

#[test]
fn the_structure_of_a_log() {
    let bytes = grub().bytes();
    let changed = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        check(&changed, &grub().pcrs(), b"", Registers::Tpm)
    };
    // The header: PCR, type, 20 bytes of digest, size; then signature, platform class, minor, major, errata, uintnSize.
    assert_eq!(changed(8, 1), Err("format".into()), "the specification id has a digest");
    assert_eq!(changed(32 + 21, 1), Err("format".into()), "specVersionMajor");
    assert_eq!(changed(32 + 23, 4), Err("format".into()), "uintnSize");
    assert_eq!(changed(32 + 23, 1), Ok(Some(true)), "firmware of 32 bits");
    for (alg, size, good) in
        [(0x12, 32, true), (0x12, 20, false), (0x27, 48, false), (0x28, 48, true), (0x29, 32, false)]
    {
        let mut log = grub();
        log.banks.push((alg, size));
        assert_eq!(verdict(&log).is_ok(), good, "{alg:#x} of {size} bytes");
    }
    refused(
        &[
            ("a second specification id", "format", |log| {
                let event = log.event(0, T::NO_ACTION, b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02");
                log.events.push(event);
            }),
            ("SecureBoot in an event that extends nothing", "relabelled", |log| {
                let event = log.event(7, T::NO_ACTION, &variable(GLOBAL, "SecureBoot", &[0]));
                log.events.insert(0, event);
            }),
            ("an authority in an event that extends nothing", "relabelled", |log| {
                let event = log.event(7, T::NO_ACTION, &variable(SHIM, "SbatLevel", b"sbat,1,2099010100\n"));
                log.events.push(event);
            }),
            ("a variable of the policy in no PCR", "bank", |log| {
                let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[4];
                log.events[at].pcr = 0xffff_ffff;
            }),
        ],
        grub,
    );
}

#[test]
fn variables_of_the_policy() {
    refused(
        &[
            ("SecureBoot of two bytes", "secure-boot-variable", |log| {
                let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
                log.events[at] = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[1, 0]));
            }),
            ("SecureBoot neither on nor off", "secure-boot-variable", |log| {
                let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
                log.events[at] = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[2]));
            }),
            ("SecureBoot in PCR 1", "secure-boot-variable", |log| {
                let event = log.event(1, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[0]));
                log.events.insert(0, event);
            }),
            ("dbx moved to PCR 3", "secure-boot-variable", |log| {
                let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[4];
                log.events[at].pcr = 3;
            }),
            ("a setting in PCR 1 changed", "data", |log| {
                let (data, told) = (variable(OTHERS, "Setup", &[1]), variable(OTHERS, "Setup", &[0]));
                let event = log.hashing(1, T::EFI_VARIABLE_DRIVER_CONFIG, &data, &told);
                log.events.insert(0, event);
            }),
            ("no separator in PCR 7", "separator", |log| drop(log.events.remove(log.first(7, T::SEPARATOR)))),
            ("the separator of PCR 7 behind shim", "separator", |log| {
                let separator = log.events.remove(log.first(7, T::SEPARATOR));
                let at = log.find(7, T::EFI_VARIABLE_AUTHORITY)[1] + 1;
                log.events.insert(at, separator);
            }),
            ("the separator of PCR 7 behind GRUB", "separator", |log| {
                log.events.retain(|event| event.kind != T::EFI_VARIABLE_AUTHORITY);
                let separator = log.events.remove(log.first(7, T::SEPARATOR));
                log.events.push(separator);
            }),
        ],
        grub,
    );
    accepted(
        &[
            ("settings in PCR 1, whole and by their contents", |log| {
                let data = variable(OTHERS, "Setup", &[1, 2, 3]);
                let whole = log.event(1, T::EFI_VARIABLE_DRIVER_CONFIG, &data);
                let contents = log.hashing(1, T::EFI_VARIABLE_DRIVER_CONFIG, &[1, 2, 3], &data);
                log.events.splice(0..0, [whole, contents]);
            }),
            ("PCR 7 separated after the other PCRs, behind an authority", |log| {
                let authority = log.first(7, T::EFI_VARIABLE_AUTHORITY);
                let separator = log.events.remove(log.first(7, T::SEPARATOR));
                log.events.insert(authority, separator);
            }),
        ],
        grub,
    );
}

/// An executable under a type that is none of an executable, in each log that there is.
#[test]
fn executables_under_other_types() {
    let kinds = [T::POST_CODE, T::ACTION, T::EVENT_TAG, T::COMPACT_HASH, T::IPL, T::NONHOST_CODE, T(0x8401)];
    let mut tried = 0;
    for (name, log) in recorded() {
        for at in 0..log.events.len() {
            if !(T::EFI_BOOT_SERVICES_APPLICATION.0..=T::EFI_RUNTIME_SERVICES_DRIVER.0).contains(&log.events[at].kind.0)
            {
                continue;
            }
            for kind in kinds {
                let mut log = log.clone();
                log.events[at].kind = kind;
                assert_eq!(verdict(&log), Err("relabelled".into()), "{name}: event {} as {kind}", at + 1);
                tried += 1;
            }
        }
    }
    // Those of our own fixtures alone.
    assert!(tried >= 7 * kinds.len(), "{tried}");
}

#[test]
fn authorities_under_other_types() {
    let kinds = [
        T::EFI_VARIABLE_BOOT,
        T::EFI_ACTION,
        T::EFI_SPDM_DEVICE_POLICY,
        T::EFI_SPDM_DEVICE_AUTHORITY,
        T::EVENT_TAG,
        T::IPL,
    ];
    let mut tried = 0;
    for (name, log) in recorded() {
        for at in log.find(7, T::EFI_VARIABLE_AUTHORITY) {
            for kind in kinds {
                let mut log = log.clone();
                log.events[at].kind = kind;
                assert!(verdict(&log).is_err(), "{name}: event {} as {kind}", at + 1);
                tried += 1;
            }
        }
    }
    assert!(tried >= 3 * kinds.len(), "{tried}");
    refused(
        &[
            ("an authority relabelled as a device's, and changed", "data", |log| {
                let at = log.first(7, T::EFI_VARIABLE_AUTHORITY);
                log.events[at].kind = T::EFI_SPDM_DEVICE_AUTHORITY;
                log.events[at].data = variable(OTHERS, "devdb", b"x");
            }),
            ("an action that is no words", "relabelled", |log| {
                let event = log.event(7, T::EFI_ACTION, &[1, 2, 3, 0xff]);
                log.events.push(event);
            }),
        ],
        grub,
    );
    accepted(
        &[("a device's authority", |log| {
            let event = log.event(7, T::EFI_SPDM_DEVICE_AUTHORITY, &variable(OTHERS, "devdb", &[7; 40]));
            log.events.push(event);
        })],
        grub,
    );
}

#[test]
fn relabelled_and_then_changed() {
    refused(
        &[
            ("a firmware's action told in other words", "data", |log| {
                let at = log.first(4, T::EFI_ACTION);
                log.events[at].kind = T::ACTION;
                log.events[at].data = b"Booting BCV Device".to_vec();
            }),
            ("GRUB's command line renamed and changed", "data", |log| {
                let line = |data: &[u8]| data.starts_with(b"kernel_cmdline: ");
                let at = log.events.iter().position(|event| line(&event.data)).unwrap();
                log.events[at].data = b"grub_kernel_cmdlin: x\0".to_vec();
            }),
            ("a command of GRUB's without its prefix", "data", |log| {
                let at = log.first(8, T::IPL);
                log.events[at].data = b"insmod\0".to_vec();
            }),
        ],
        grub,
    );
    refused(
        &[
            ("the name of a section changed where it is measured", "data", |log| {
                let at = log.first(11, T::IPL);
                log.events[at].data[2] = b'x';
            }),
            ("the name of a section changed beside its contents", "data", |log| {
                let at = log.find(11, T::IPL)[1];
                log.events[at].data[2] = b'x';
            }),
            ("both", "data", |log| {
                for at in [0, 1] {
                    let at = log.find(11, T::IPL)[at];
                    log.events[at].data[2] = b'x';
                }
            }),
        ],
        uki,
    );
    accepted(
        &[("GRUB's words behind prefixes that nobody knows yet", |log| {
            let events = [("new_cmdline: x\0", "x"), ("grub_linux x y\0", "x y"), ("grub_linux x y\0", "x y\0")]
                .map(|(told, measured)| log.hashing(8, T::IPL, measured.as_bytes(), told.as_bytes()));
            log.events.extend(events);
        })],
        grub,
    );
    accepted(
        &[("a stub that measures contents and no names", |log| {
            let names: Vec<usize> = log.find(11, T::IPL).into_iter().step_by(2).collect();
            for at in names.into_iter().rev() {
                log.events.remove(at);
            }
        })],
        uki,
    );
}

/// What an operating system extended elsewhere replaces no fact of the firmware's.
#[test]
fn facts_come_from_the_pcrs_that_are_theirs() {
    let before = facts(&grub());
    let mut log = grub();
    for pcr in [9, 12, 14, 23] {
        let events = [
            log.event(pcr, T::EFI_VARIABLE_AUTHORITY, &variable(SHIM, "SbatLevel", b"sbat,1,2099010100\n")),
            log.event(pcr, T::EFI_VARIABLE_AUTHORITY, &variable(DATABASE, "db", &[7; 48])),
            log.event(pcr, T::S_CRTM_VERSION, b"9\09\0\0\0"),
            log.event(pcr, T::EFI_ACTION, b"UEFI Debug Mode"),
            log.event(pcr, T::EFI_ACTION, b"DMA Protection Disabled"),
            log.event(
                pcr,
                T::EFI_VARIABLE_BOOT,
                &variable(GLOBAL, "Boot0042", b"\x01\0\0\0\x04\0x\0\0\0\x7f\xff\x04\0"),
            ),
            log.hashing(pcr, T::EFI_BOOT_SERVICES_APPLICATION, b"x", &[0; 32]),
            log.hashing(pcr, T::EFI_BOOT_SERVICES_DRIVER, b"x", &[0; 32]),
        ];
        log.events.extend(events);
    }
    let late = log.event(0, T::S_CRTM_VERSION, b"9\09\0\0\0");
    log.events.push(late);
    let line = log.hashing(12, T::IPL, b"/evil", b"kernel_cmdline: /evil");
    log.events.push(line);
    assert_eq!(verdict(&log), Ok(Some(true)), "no lie: nobody defines what these PCRs hold");
    assert_eq!(facts(&log), before);
}

#[test]
fn words_about_debugger_and_dma() {
    let said = |words: &[u8]| {
        let mut log = grub();
        let event = log.event(7, T::EFI_ACTION, words);
        log.events.insert(log.first(7, T::SEPARATOR), event);
        assert_eq!(verdict(&log), Ok(Some(true)));
        let facts = facts(&log);
        let value = |fact: &Option<countersign_wire::facts::Fact<bool>>| fact.as_ref().map(|fact| fact.value);
        (value(&facts.debug_mode), value(&facts.dma_protection_disabled))
    };
    assert_eq!(said(b"UEFI Debug Mode"), (Some(true), Some(false)));
    assert_eq!(said(b"UEFI Debug Mode\0"), (Some(true), Some(false)));
    assert_eq!(said(b"DMA Protection Disabled\0"), (Some(false), Some(true)));
    assert_eq!(said(b"SVM Enabled, DMA Protection Disabled, All PCIe"), (Some(false), Some(true)));
    assert_eq!(
        said(b"SVM Enabled, DMA Protection Enabled, All PCIe"),
        (Some(false), None),
        "not defined: nothing is said"
    );
    assert_eq!(said(b"Kernel DMA: off"), (Some(false), None));
    assert_eq!(said(b"JTAG debug unlocked"), (None, Some(false)));
    assert_eq!(said(b"Something else"), (Some(false), Some(false)));
    let utf16: Vec<u8> = "DMA Protection Disabled".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(said(&utf16), (Some(false), Some(true)));
}

/// An executable whose event was relabelled and changed cannot be told from what it pretends to be, but its digest is not lost.
#[test]
fn what_pcr_4_holds_is_listed() {
    let mut log = grub();
    let at = log.find(4, T::EFI_BOOT_SERVICES_APPLICATION)[2];
    log.events[at].kind = T::EVENT_TAG;
    log.events[at].data = b"x".to_vec();
    let (before, after) = (facts(&grub()), facts(&log));
    assert_eq!(verdict(&log), Ok(Some(true)));
    let digests = |facts: &Facts| facts.applications.iter().map(|fact| fact.value.digest).collect::<Vec<_>>();
    assert_eq!(digests(&after), digests(&before));
    assert_eq!(after.applications[2].strength, Strength::Named);
}

/// The type of an executable is not measured, and its PCR is.
#[test]
fn drivers_of_pcr_2_are_no_applications() {
    let mut log = grub();
    let rom = log.hashing(2, T::EFI_BOOT_SERVICES_APPLICATION, b"rom", &[0; 32]);
    log.events.insert(log.first(2, T::SEPARATOR), rom);
    assert_eq!(verdict(&log), Ok(Some(true)));
    let (before, after) = (facts(&grub()), facts(&log));
    assert_eq!((after.option_roms.len(), after.applications.len()), (1, before.applications.len()));
}

#[test]
fn a_version_that_is_not_what_was_measured() {
    let mut log = grub();
    let at = log.first(0, T::S_CRTM_VERSION);
    log.events[at].data = b"9\09\0\0\0".to_vec();
    assert_eq!(verdict(&log), Ok(Some(true)), "servers do so");
    let facts = facts(&log);
    assert_eq!(facts.firmware_version, None);
    assert_eq!(
        (facts.firmware[0].value.name.as_str(), facts.firmware[0].strength),
        ("EV_S_CRTM_VERSION", Strength::Named)
    );
}

/// To the profiles of TPM 1.2 and of conventional BIOSes PCR 7 is the manufacturer's.
#[test]
fn pcr_7_of_a_conventional_bios() {
    let mut log = grub();
    log.events.clear();
    for kind in [T::POST_CODE, T::ACTION, T::PLATFORM_CONFIG_FLAGS, T::COMPACT_HASH, T::EVENT_TAG, T(0x8401)] {
        let event = log.event(7, kind, b"x");
        log.events.push(event);
    }
    for pcr in 0..8 {
        let separator = log.event(pcr, T::SEPARATOR, &[0; 4]);
        log.events.push(separator);
    }
    assert_eq!(verdict(&log), Ok(None));
    assert_eq!(facts(&log).debug_mode, None, "nobody measures it there");
    let mut hidden = log.clone();
    let policy = log.event(7, T::COMPACT_HASH, &variable(GLOBAL, "SecureBoot", &[0]));
    hidden.events.push(policy);
    assert_eq!(verdict(&hidden), Err("relabelled".into()), "a policy makes it no BIOS");
    let action = log.event(5, T::EFI_ACTION, b"x");
    log.events.push(action);
    assert_eq!(verdict(&log), Err("pcr7-type".into()));
}
