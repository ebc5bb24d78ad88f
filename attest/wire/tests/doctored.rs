//! Logs that lie: each is made from a recorded boot, and each is refused by the rule that it breaks.
//!
//! Unless a case says otherwise the TPM is the attacker's accomplice: its PCRs are what the doctored digests lead to, so nothing but the
//! rule can find the lie.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::too_many_lines, reason = "tests")]

mod support;

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventType as T, Registers};
use support::{Log, Pcrs, check, fixture, pcrs};

/// What is done to the log, what becomes of it, and how.
type Case = (&'static str, &'static str, fn(&mut Log));

fn grub() -> Log {
    Log::open(&fixture("sb-ms-shim-grub212/binary_bios_measurements"))
}

fn uki() -> Log {
    Log::open(&fixture("sb-snakeoil-uki-systemd-pcrphase-ima/binary_bios_measurements"))
}

/// UEFI_VARIABLE_DATA.
fn variable(guid: &str, name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = hex::decode(guid).unwrap();
    out.extend(u64::try_from(name.len()).unwrap().to_le_bytes());
    out.extend(u64::try_from(data.len()).unwrap().to_le_bytes());
    out.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    out.extend(data);
    out
}

const GLOBAL: &str = "61dfe48bca93d211aa0d00e098032b8c";
const DATABASE: &str = "cbb219d73a3d9645a3bcdad00e67656f";
const OTHERS: &str = "000102030405060708090a0b0c0d0e0f";

/// The verdict on a log, with the PCRs that its own digests lead to.
fn verdict(log: &Log) -> Result<Option<bool>, String> {
    check(&log.bytes(), &log.pcrs(), b"", Registers::Tpm)
}

#[test]
fn the_untouched_logs_pass() {
    assert_eq!(verdict(&grub()), Ok(Some(true)));
    assert_eq!(verdict(&uki()), Ok(Some(true)));
}

/// A lie that leaves every digest as it was, or that the TPM went along with.
#[test]
fn lies() {
    let cases: &[Case] = &[
        // Separators.
        ("separator relabelled as an action (PCR 7)", "separator", |log| {
            let at = log.first(7, T::SEPARATOR);
            log.events[at].kind = T::EFI_ACTION;
        }),
        ("separator relabelled as a post code (PCR 0)", "separator", |log| {
            let at = log.first(0, T::SEPARATOR);
            log.events[at].kind = T::POST_CODE;
        }),
        ("separator relabelled as an unknown vendor type (PCR 2)", "separator", |log| {
            let at = log.first(2, T::SEPARATOR);
            log.events[at].kind = T(0x8401);
        }),
        ("separator relabelled as S-CRTM contents (PCR 0, the only one)", "separator", |log| {
            let at = log.first(0, T::SEPARATOR);
            log.events[at].kind = T::S_CRTM_CONTENTS;
        }),
        ("separator relabelled as S-CRTM contents (PCR 7)", "separator", |log| {
            let at = log.first(7, T::SEPARATOR);
            log.events[at].kind = T::S_CRTM_CONTENTS;
        }),
        ("separator twice (PCR 7)", "separator", |log| {
            let again = log.events[log.first(7, T::SEPARATOR)].clone();
            log.events.push(again);
        }),
        ("separator twice (PCR 4)", "separator", |log| {
            let again = log.events[log.first(4, T::SEPARATOR)].clone();
            log.events.push(again);
        }),
        ("separator of ones: the firmware failed", "separator", |log| {
            let at = log.first(5, T::SEPARATOR);
            log.events[at] = log.event(5, T::SEPARATOR, &[0xff; 4]);
        }),
        ("separator of an error, with words", "separator", |log| {
            let at = log.first(5, T::SEPARATOR);
            log.events[at] = log.hashing(5, T::SEPARATOR, &[1, 0, 0, 0], b"out of order");
        }),
        ("separator with other data", "separator", |log| {
            let at = log.first(3, T::SEPARATOR);
            log.events[at].data = vec![0, 0, 0, 1];
        }),
        ("separator with trailing bytes", "separator", |log| {
            let at = log.first(3, T::SEPARATOR);
            log.events[at] = log.event(3, T::SEPARATOR, &[0; 5]);
        }),
        ("separator's data over another digest", "separator", |log| {
            let at = log.first(6, T::SEPARATOR);
            log.events[at] = log.hashing(6, T::SEPARATOR, b"evil", &[0; 4]);
        }),
        ("something else under a separator's type", "separator", |log| {
            let at = log.first(4, T::EFI_ACTION);
            log.events[at].kind = T::SEPARATOR;
        }),
        ("an operating system's separator that does not hash", "data", |log| {
            let event = log.hashing(12, T::SEPARATOR, b"WBCL", b"wbcl");
            log.events.push(event);
        }),
        // The Secure Boot variable and its companions.
        ("SecureBoot flipped, digest kept", "data", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("SecureBoot twice", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            let again = log.events[at].clone();
            log.events.insert(at + 1, again);
        }),
        ("SecureBoot twice, the second one off", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            let off = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[0]));
            log.events.insert(at + 1, off);
        }),
        ("SecureBoot twice, the second one somebody else's", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            let other = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(OTHERS, "SecureBoot", &[0]));
            log.events.insert(at + 1, other);
        }),
        ("SecureBoot twice, the second one's name with its NUL", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            let other = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot\0", &[1]));
            log.events.insert(at + 1, other);
        }),
        ("SecureBoot after the separator", "secure-boot-variable", |log| {
            let event = log.events.remove(log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG));
            log.events.push(event);
        }),
        ("dbx after the separator", "secure-boot-variable", |log| {
            let dbx = log.events.remove(log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[4]);
            log.events.push(dbx);
        }),
        ("db twice", "secure-boot-variable", |log| {
            let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[3];
            let again = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(DATABASE, "db", &[]));
            log.events.insert(at + 1, again);
        }),
        ("SecureBoot with a trailing byte", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            let data = [variable(GLOBAL, "SecureBoot", &[1]), vec![0]].concat();
            log.events[at] = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &data);
        }),
        ("SecureBoot cut short", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].data.pop();
        }),
        ("SecureBoot relabelled as a boot variable", "relabelled", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].kind = T::EFI_VARIABLE_BOOT;
        }),
        ("SecureBoot relabelled as an authority", "relabelled", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].kind = T::EFI_VARIABLE_AUTHORITY;
        }),
        ("SecureBoot relabelled as a device policy", "relabelled", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].kind = T::EFI_SPDM_DEVICE_POLICY;
        }),
        ("SecureBoot relabelled as an action", "relabelled", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].kind = T::EFI_ACTION;
        }),
        ("SecureBoot relabelled as a tag", "pcr7-type", |log| {
            let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
            log.events[at].kind = T::EVENT_TAG;
        }),
        ("db relabelled as an authority", "relabelled", |log| {
            let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[3];
            log.events[at].kind = T::EFI_VARIABLE_AUTHORITY;
        }),
        ("an authority relabelled as a boot loader's event", "relabelled", |log| {
            let at = log.first(7, T::EFI_VARIABLE_AUTHORITY);
            log.events[at].kind = T::IPL;
        }),
        ("an authority relabelled as policy", "secure-boot-variable", |log| {
            let at = log.first(7, T::EFI_VARIABLE_AUTHORITY);
            log.events[at].kind = T::EFI_VARIABLE_DRIVER_CONFIG;
        }),
        ("an unknown type in PCR 7", "pcr7-type", |log| {
            let event = log.event(7, T(0x0000_1234), b"x");
            log.events.push(event);
        }),
        ("a vendor's type in PCR 7", "pcr7-type", |log| {
            let event = log.event(7, T(0x8000_4711), b"x");
            log.events.push(event);
        }),
        ("a post code in PCR 7", "pcr7-type", |log| {
            let event = log.event(7, T::POST_CODE, b"x");
            log.events.push(event);
        }),
        ("a boot loader's event in PCR 7 before the separator", "pcr7-type", |log| {
            let event = log.event(7, T::IPL, b"MokSBState\0");
            log.events.insert(log.first(7, T::SEPARATOR), event);
        }),
        // Data that claims a fact and does not hash.
        ("PK changed, digest kept", "data", |log| {
            let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[1];
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("dbx emptied, digest kept", "data", |log| {
            let at = log.find(7, T::EFI_VARIABLE_DRIVER_CONFIG)[4];
            log.events[at].data = variable(DATABASE, "dbx", &[]);
        }),
        ("an authority's certificate changed", "data", |log| {
            let at = log.first(7, T::EFI_VARIABLE_AUTHORITY);
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("an authority with one surplus byte", "data", |log| {
            let at = log.first(7, T::EFI_VARIABLE_AUTHORITY);
            log.events[at].data.push(0);
        }),
        ("SbatLevel raised", "data", |log| {
            let at = log.find(7, T::EFI_VARIABLE_AUTHORITY)[1];
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("the boot order changed", "data", |log| {
            let at = log.first(1, T::EFI_VARIABLE_BOOT);
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("a boot option's path changed", "data", |log| {
            let at = log.find(1, T::EFI_VARIABLE_BOOT)[1];
            let middle = log.events[at].data.len() - 10;
            log.events[at].data[middle] ^= 1;
        }),
        ("the partition table changed", "data", |log| {
            let at = log.first(5, T::EFI_GPT_EVENT);
            *log.events[at].data.last_mut().unwrap() ^= 1;
        }),
        ("the kernel command line changed", "data", |log| {
            let line = |data: &[u8]| data.starts_with(b"kernel_cmdline: ");
            let at = log.events.iter().position(|event| line(&event.data)).unwrap();
            log.events[at].data.splice(16..16, *b"quiet ");
        }),
        ("a command of GRUB's changed", "data", |log| {
            let at = log.first(8, T::IPL);
            let end = log.events[at].data.len() - 2;
            log.events[at].data[end] ^= 1;
        }),
        ("an action's words changed", "data", |log| {
            let at = log.first(4, T::EFI_ACTION);
            log.events[at].data = b"Calling something else".to_vec();
        }),
        ("ExitBootServices' failure told as success", "data", |log| {
            let at = log.find(5, T::EFI_ACTION)[1];
            let failed = log.event(5, T::EFI_ACTION, b"Exit Boot Services Returned with Failure");
            log.events[at].digests = failed.digests;
        }),
        ("systemd-boot's kernel parameters changed", "data", |log| {
            let text = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
            let event = log.hashing(12, T::IPL, &text("root=/dev/sda1 ro"), &text("root=/dev/sda1 rw"));
            log.events.push(event);
        }),
        // Other relabelled types.
        ("an action relabelled as an executable", "relabelled", |log| {
            let at = log.first(4, T::EFI_ACTION);
            log.events[at].kind = T::EFI_BOOT_SERVICES_APPLICATION;
        }),
        ("ExitBootServices relabelled as a post code", "relabelled", |log| {
            let at = log.first(5, T::EFI_ACTION);
            log.events[at].kind = T::POST_CODE;
        }),
        ("switched-off DMA protection relabelled as a tag", "relabelled", |log| {
            let event = log.event(7, T::EVENT_TAG, b"DMA Protection Disabled");
            log.events.push(event);
        }),
        ("an executable relabelled as a boot loader's event", "relabelled", |log| {
            let at = log.first(4, T::EFI_BOOT_SERVICES_APPLICATION);
            log.events[at].kind = T::IPL;
        }),
        ("a partition table relabelled", "relabelled", |log| {
            let at = log.first(5, T::EFI_GPT_EVENT);
            log.events[at].kind = T::TABLE_OF_DEVICES;
        }),
        // Where PCR 0 began.
        ("a locality after PCR 0 was extended", "startup-locality", |log| {
            let event = log.event(0, T::NO_ACTION, b"StartupLocality\0\x03");
            log.events.push(event);
        }),
        ("two localities", "startup-locality", |log| {
            let (zero, three) = (b"StartupLocality\0\0", b"StartupLocality\0\x03");
            for data in [zero, three] {
                let event = log.event(0, T::NO_ACTION, data);
                log.events.insert(0, event);
            }
        }),
        // PCR indices and digests.
        ("PCR 24", "bank", |log| {
            let event = log.event(24, T::POST_CODE, b"x");
            log.events.push(event);
        }),
        ("PCR 0xfffffffe", "bank", |log| {
            let event = log.event(0xffff_fffe, T::POST_CODE, b"x");
            log.events.push(event);
        }),
        ("PCR 24 of an event that extends nothing", "bank", |log| {
            let event = log.event(24, T::NO_ACTION, b"x");
            log.events.push(event);
        }),
        ("two digests of one algorithm", "format", |log| {
            let at = log.first(4, T::EFI_ACTION);
            let again = log.events[at].digests[1].clone();
            log.events[at].digests.push(again);
        }),
        ("two digests of one algorithm in an event that extends nothing", "format", |log| {
            let mut event = log.event(0, T::NO_ACTION, b"x");
            event.digests.push(event.digests[0].clone());
            log.events.insert(0, event);
        }),
        ("a listed bank without a digest", "bank", |log| {
            let at = log.first(4, T::EFI_ACTION);
            log.events[at].digests.remove(1);
        }),
        ("a digest of a bank that is not listed", "format", |log| {
            let at = log.first(4, T::EFI_ACTION);
            log.events[at].digests.push((HashAlg::Sha512.id(), vec![0; 64]));
        }),
    ];
    let mut names = std::collections::BTreeSet::new();
    for (name, rule, doctor) in cases {
        assert!(names.insert(*name), "{name} twice");
        let mut log = grub();
        doctor(&mut log);
        assert_eq!(verdict(&log), Err((*rule).to_owned()), "{name}");
    }
    assert!(names.len() >= 60);
}

/// Changes of the log that the TPM did not go along with.
#[test]
fn logs_that_do_not_lead_to_the_pcrs() {
    let held = grub().pcrs();
    let cases: &[Case] = &[
        ("an event left out", "pcr 4", |log| drop(log.events.remove(log.first(4, T::EFI_BOOT_SERVICES_APPLICATION)))),
        ("an event added", "pcr 8", |log| {
            let event = log.event(8, T::IPL, b"grub_cmd: x\0");
            let event = support::Event { digests: log.event(8, T::IPL, b"x").digests, ..event };
            log.events.push(event);
        }),
        ("two events exchanged", "pcr 8", |log| {
            let at = log.find(8, T::IPL);
            log.events.swap(at[0], at[1]);
        }),
        ("an event moved to another PCR", "pcr 4", |log| {
            let at = log.first(4, T::EFI_BOOT_SERVICES_APPLICATION);
            log.events[at].pcr = 9;
        }),
        ("an event moved to no PCR", "bank", |log| {
            let at = log.first(4, T::EFI_BOOT_SERVICES_APPLICATION);
            log.events[at].pcr = 0xffff_ffff;
        }),
        ("an event relabelled as one that extends nothing", "pcr 4", |log| {
            let at = log.first(4, T::EFI_BOOT_SERVICES_APPLICATION);
            log.events[at].kind = T::NO_ACTION;
        }),
        ("a locality that the TPM did not start at", "pcr 0", |log| {
            let event = log.event(0, T::NO_ACTION, b"StartupLocality\0\x03");
            log.events.insert(0, event);
        }),
        ("a hardware root of trust that there is not", "pcr 0", |log| {
            log.events[0].kind = T::EFI_HCRTM_EVENT;
        }),
        ("one digest of one bank changed", "pcr 4", |log| {
            let at = log.first(4, T::EFI_BOOT_SERVICES_APPLICATION);
            log.events[at].digests[2].1[0] ^= 1;
        }),
    ];
    for (name, want, doctor) in cases {
        let mut log = grub();
        doctor(&mut log);
        assert_eq!(check(&log.bytes(), &held, b"", Registers::Tpm), Err((*want).to_owned()), "{name}");
    }
}

#[test]
fn a_bank_vouches_for_itself_only() {
    // True SHA-1 digests beside false SHA-256 ones, and the reverse.
    for (false_bank, true_bank) in [(HashAlg::Sha256, HashAlg::Sha1), (HashAlg::Sha1, HashAlg::Sha256)] {
        let held = grub().pcrs();
        let mut log = grub();
        let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
        let off = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[0]));
        let slot = log.events[at].digests.iter().position(|(alg, _)| *alg == false_bank.id()).unwrap();
        log.events[at].digests[slot] = off.digests[slot].clone();
        let only = |alg: HashAlg| Pcrs::from([(alg, held[&alg].clone())]);
        assert_eq!(check(&log.bytes(), &only(true_bank), b"", Registers::Tpm), Ok(Some(true)));
        assert_eq!(check(&log.bytes(), &only(false_bank), b"", Registers::Tpm), Err("data".into()));
        assert_eq!(check(&log.bytes(), &held, b"", Registers::Tpm), Err("data".into()), "every listed bank counts");
    }
    let mut unlisted = grub().pcrs();
    unlisted.insert(HashAlg::Sha512, Default::default());
    assert_eq!(check(&grub().bytes(), &unlisted, b"", Registers::Tpm), Err("bank".into()));
}

#[test]
fn what_real_machines_do_passes() {
    type Real = (&'static str, fn(&mut Log));
    let cases: &[Real] = &[
        ("an empty S-CRTM measured as four zero bytes", |log| {
            let event = log.event(0, T::S_CRTM_CONTENTS, &[0; 4]);
            log.events.insert(0, event);
        }),
        ("a boot variable measured whole", |log| {
            let at = log.first(1, T::EFI_VARIABLE_BOOT);
            let data = log.events[at].data.clone();
            log.events[at] = log.event(1, T::EFI_VARIABLE_BOOT, &data);
        }),
        ("an authority of an old shim: five surplus bytes hashed, six logged", |log| {
            let data = variable("50ab5d6046e00043abb63dd810dd8b23", "Shim", b"0\x82");
            let (five, six) = ([data.clone(), vec![0; 5]].concat(), [data, vec![0; 6]].concat());
            let event = log.hashing(7, T::EFI_VARIABLE_AUTHORITY, &five, &six);
            log.events.push(event);
        }),
        ("an authority of an old shim with one surplus byte", |log| {
            let data = variable("50ab5d6046e00043abb63dd810dd8b23", "Shim", b"0\x82");
            let event = log.hashing(7, T::EFI_VARIABLE_AUTHORITY, &data, &[data.clone(), vec![0]].concat());
            log.events.push(event);
        }),
        ("a locality that is said again", |log| {
            let event = log.event(0, T::NO_ACTION, b"StartupLocality\0\0");
            log.events.insert(0, event.clone());
            log.events.push(event);
        }),
        ("a digest of what extends nothing", |log| {
            let action = log.event(0, T::POST_CODE, b"x");
            log.events.insert(0, support::Event { kind: T::NO_ACTION, ..action });
        }),
        ("a vendor's event in PCR 2 behind the separator", |log| {
            let event = log.event(2, T(0x8401), &[1]);
            log.events.push(event);
        }),
        ("GRUB's text with its NUL", |log| {
            let event = log.hashing(8, T::IPL, b"true\0", b"grub_cmd: true\0");
            log.events.push(event);
        }),
        ("Windows' separators", |log| {
            for pcr in [12, 13, 14] {
                let event = log.event(pcr, T::SEPARATOR, b"WBCL");
                log.events.push(event);
            }
        }),
        ("Windows' tags, and its last event in no PCR", |log| {
            let tag = [&[1, 0, 1, 0x40, 4, 0, 0, 0][..], b"SIPA"].concat();
            for (pcr, kind) in [(11, T::EVENT_TAG), (13, T::EVENT_TAG), (0xffff_ffff, T::NO_ACTION)] {
                let event = log.event(pcr, kind, &tag);
                log.events.push(event);
            }
        }),
        ("a vendor's words about DMA in PCR 7", |log| {
            let event = log.event(7, T::EFI_ACTION, b"SVM Enabled, DMA Protection Enabled, All PCIe");
            log.events.insert(3, event);
        }),
        ("an authority before the separator", |log| {
            let event = log.events.remove(log.first(7, T::EFI_VARIABLE_AUTHORITY));
            log.events.insert(log.first(7, T::SEPARATOR), event);
        }),
        ("a hand-off table behind the separator", |log| {
            let event = log.hashing(1, T::EFI_HANDOFF_TABLES2, b"SMBIOS", b"pointers");
            log.events.push(event);
        }),
        ("what systemd-stub calls the credentials that it measures", |log| {
            let name: Vec<u8> = "Credentials initrd\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
            let event = log.hashing(12, T::IPL, b"cpio", &name);
            log.events.push(event);
        }),
        ("kernel parameters without their NUL, and with half of it", |log| {
            let text: Vec<u8> = "root=/dev/sda1\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
            let (short, shorter) = (&text[..text.len() - 2], &text[..text.len() - 1]);
            let events = [log.hashing(12, T::IPL, short, &text), log.hashing(8, T::IPL, &text, shorter)];
            log.events.extend(events);
        }),
        ("an action with its NUL", |log| {
            let action = "Returning from EFI Application from Boot Option";
            let event = log.hashing(4, T::EFI_ACTION, action.as_bytes(), format!("{action}\0").as_bytes());
            log.events.push(event);
        }),
        ("four zero bytes in an operating system's PCR", |log| {
            let event = log.event(11, T::COMPACT_HASH, &[0; 4]);
            log.events.push(event);
        }),
        ("an operating system's separators of zeros", |log| {
            for _ in 0..2 {
                let event = log.event(14, T::SEPARATOR, &[0; 4]);
                log.events.push(event);
            }
        }),
        ("a device policy in PCR 7", |log| {
            let data = variable(OTHERS, "devdb", &[]);
            let event = log.event(7, T::EFI_SPDM_DEVICE_POLICY, &data);
            log.events.insert(log.first(7, T::SEPARATOR), event);
        }),
        ("DMA protection off, said after the separator", |log| {
            let event = log.event(7, T::EFI_ACTION, b"DMA Protection Disabled");
            log.events.push(event);
        }),
    ];
    for (name, real) in cases {
        let mut log = grub();
        real(&mut log);
        assert_eq!(verdict(&log), Ok(Some(true)), "{name}");
    }
    // A SecureBoot variable of length 0: nothing is known.
    let mut log = grub();
    let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
    log.events[at] = log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &variable(GLOBAL, "SecureBoot", &[]));
    assert_eq!(verdict(&log), Ok(None));
}

/// SeaBIOS: no event of UEFI's, separators of ones without data, a longer specification id, and in old versions SHA-1 in every bank.
#[test]
fn a_conventional_bios() {
    let mut log = grub();
    log.events.clear();
    log.events.push(log.event(1, T::EVENT_TAG, &[1, 0, 0, 0, 4, 0, 0, 0, 7, 7, 7, 7]));
    log.events.push(log.event(2, T::ACTION, b"Start Option ROM Scan"));
    for pcr in 0..8 {
        log.events.push(log.hashing(pcr, T::SEPARATOR, &[0xff; 4], b""));
    }
    log.events.push(log.hashing(4, T::IPL, &[0x90; 440], b"MBR"));
    assert_eq!(verdict(&log), Ok(None));
    let mut padded = log.clone();
    for event in &mut padded.events {
        let sha1 = event.digests.iter().find(|(alg, _)| *alg == HashAlg::Sha1.id()).unwrap().1.clone();
        for (_, digest) in &mut event.digests {
            let length = digest.len();
            *digest = [sha1.as_slice(), &[0; 64]].concat()[..length].to_vec();
        }
    }
    assert_eq!(verdict(&padded), Ok(None));
    // The specification id ends with vendorInfoSize.
    let bytes = log.bytes();
    let events = countersign_wire::eventlog::EventLog::parse(&bytes).unwrap().events[0].offset;
    let size = u32::from_le_bytes(bytes[28..32].try_into().unwrap());
    let longer = |zeros: &[u8]| {
        let mut changed = bytes.clone();
        changed.splice(events..events, zeros.iter().copied());
        changed[28..32].copy_from_slice(&(size + u32::try_from(zeros.len()).unwrap()).to_le_bytes());
        check(&changed, &log.pcrs(), b"", Registers::Tpm)
    };
    assert_eq!(longer(&[0; 3]), Ok(None));
    for bad in [&[0; 2][..], &[0; 4], &[0, 0, 1]] {
        assert_eq!(longer(bad), Err("format".into()), "{bad:?}");
    }
    // Firmware of UEFI has no such excuse, and an error stays one.
    let mut uefi = log.clone();
    uefi.events.push(log.event(5, T::EFI_ACTION, b"x"));
    assert_eq!(verdict(&uefi), Err("separator".into()));
    let mut failed = log.clone();
    failed.events[4] = log.hashing(2, T::SEPARATOR, &[1, 0, 0, 0], b"");
    assert_eq!(verdict(&failed), Err("separator".into()));
    let mut twice = log.clone();
    twice.events.push(log.events[5].clone());
    assert_eq!(verdict(&twice), Err("separator".into()));
    let mut other = log.clone();
    other.events[4] = log.hashing(2, T::SEPARATOR, b"evil", b"");
    assert_eq!(verdict(&other), Err("separator".into()));
}

#[test]
fn only_listed_pcrs_count() {
    let only = |log: &Log, wanted: &[u8]| {
        let mut held = log.pcrs();
        for bank in held.values_mut() {
            bank.retain(|pcr, _| wanted.contains(pcr));
        }
        check(&log.bytes(), &held, b"", Registers::Tpm)
    };
    // A lie about PCR 7 is nobody's business who asks about PCR 4; nothing of PCR 7 is then believed.
    let mut log = grub();
    let at = log.first(7, T::EFI_VARIABLE_DRIVER_CONFIG);
    *log.events[at].data.last_mut().unwrap() ^= 1;
    assert_eq!(only(&log, &[4]), Ok(None));
    assert_eq!(only(&log, &[4, 7]), Err("data".into()));
    // The same for a missing digest.
    let mut log = grub();
    let at = log.first(8, T::IPL);
    log.events[at].digests.clear();
    assert_eq!(only(&log, &[7]), Ok(Some(true)));
    assert_eq!(only(&log, &[8]), Err("bank".into()));
    // A PCR that no TPM has is one in any case.
    let mut log = grub();
    let event = log.event(24, T::POST_CODE, b"x");
    log.events.push(event);
    assert_eq!(only(&log, &[7]), Err("bank".into()));
    // A listed PCR without events holds its initial value.
    let mut held = grub().pcrs();
    let bank = held.get_mut(&HashAlg::Sha256).unwrap();
    bank.insert(23, countersign_tpm::alg::Digest::filled(HashAlg::Sha256, 0));
    bank.insert(17, countersign_tpm::alg::Digest::filled(HashAlg::Sha256, 0xff));
    assert_eq!(check(&grub().bytes(), &held, b"", Registers::Tpm), Ok(Some(true)));
    held.get_mut(&HashAlg::Sha256).unwrap().insert(23, HashAlg::Sha256.digest(&[b"x"]));
    assert_eq!(check(&grub().bytes(), &held, b"", Registers::Tpm), Err("pcr 23".into()));
}

/// A TDX guest's log: SHA-384, one index for several PCRs, separators of each, padding to the ACPI table's length.
#[test]
fn confidential_computing_registers() {
    let mut log = grub();
    log.banks = vec![(HashAlg::Sha384.id(), 48)];
    for event in &mut log.events {
        event.digests.retain(|(alg, _)| *alg == HashAlg::Sha384.id());
        event.pcr = match event.pcr {
            1 | 7 => 1,
            2..=6 => 2,
            8..=15 => 3,
            other => other,
        };
    }
    log.events.retain(|event| event.pcr != 0);
    let padded = [log.bytes(), vec![0xff; 4096]].concat();
    assert_eq!(check(&padded, &log.pcrs(), b"", Registers::Cc), Ok(Some(true)));
    let parsed = countersign_wire::eventlog::EventLog::parse(&padded).unwrap();
    assert!(countersign_wire::eventlog::ccel::looks_like(&parsed));
    let tpm = grub().bytes();
    assert!(!countersign_wire::eventlog::ccel::looks_like(&countersign_wire::eventlog::EventLog::parse(&tpm).unwrap()));
    let mut third = log.clone();
    let separator = third.events[third.first(1, T::SEPARATOR)].clone();
    third.events.push(separator);
    assert_eq!(check(&third.bytes(), &third.pcrs(), b"", Registers::Cc), Err("separator".into()));
    let mut flipped = log.clone();
    let at = flipped.first(1, T::EFI_VARIABLE_DRIVER_CONFIG);
    *flipped.events[at].data.last_mut().unwrap() ^= 1;
    assert_eq!(check(&flipped.bytes(), &log.pcrs(), b"", Registers::Cc), Err("data".into()));
}

#[test]
fn systemd_records_are_held_against_the_same_pcrs() {
    let name = "sb-snakeoil-uki-systemd-pcrphase-ima";
    let log = fixture(&format!("{name}/binary_bios_measurements"));
    let systemd = fixture(&format!("{name}/tpm2-measure.log"));
    let mut held = pcrs(&String::from_utf8(fixture(&format!("{name}/PCRS.json"))).unwrap());
    for bank in held.values_mut() {
        bank.remove(&10);
    }
    assert_eq!(check(&log, &held, b"", Registers::Tpm), Err("pcr 11".into()), "the log of systemd is missing");
    let lines: Vec<&[u8]> = systemd.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(check(&log, &held, &lines[..3].concat(), Registers::Tpm), Err("pcr 11".into()));
    let exchanged = [lines[1], lines[0], lines[2], lines[3]].concat();
    assert_eq!(check(&log, &held, &exchanged, Registers::Tpm), Err("pcr 15".into()));
    // Records of PCRs that are not listed do not count, and systemd's NV indices extend no PCR.
    let nv =
        b"\x1e{\"nvIndexName\":\"hardware\",\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"00\"}]}\n".as_slice();
    assert_eq!(check(&log, &held, &[&systemd, nv].concat(), Registers::Tpm), Ok(Some(true)));
    let only_sha256 = String::from_utf8(systemd).unwrap().replace("\"sha1\"", "\"md5\"");
    assert_eq!(check(&log, &held, only_sha256.as_bytes(), Registers::Tpm), Err("userspace".into()));
}
