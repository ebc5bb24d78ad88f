//! Hostile logs: every length field, and logs that declare or hold far more than any machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, clippy::panic, reason = "tests")]

mod support;

use countersign_tpm::alg::HashAlg;
use countersign_wire::codec::Reason;
use countersign_wire::eventlog::{BadEventLog, EventLog, EventType as T, PcrSet, Refusal, Registers};
use countersign_wire::facts::{Facts, diff};
use countersign_wire::limits;
use support::{Log, fixture};

const ALL: [(HashAlg, PcrSet); 1] = [(HashAlg::Sha256, PcrSet::ALL)];

/// Everything that reads a log; it must end, and never in a panic.
fn read(bytes: &[u8]) {
    let Ok(log) = EventLog::parse(bytes) else { return };
    for registers in [Registers::Tpm, Registers::Cc] {
        if let Ok(examined) = log.examine(&ALL, registers) {
            let facts = Facts::of(&examined, &[]);
            let _ = (serde_json::to_string(&facts).unwrap(), diff((&examined, &facts), (&examined, &facts)));
        }
    }
    for event in &log.events {
        let _ = (event.text(HashAlg::Sha256), event.describe());
    }
}

#[test]
fn every_length_field() {
    const VALUES: [u32; 4] = [0, 15, 0xffff, 0xffff_ffff];
    for name in ["sb-snakeoil-systemdboot-uki", "sb-ms-shim-grub212"] {
        let good = fixture(&format!("{name}/binary_bios_measurements"));
        let mut fields: Vec<usize> = vec![28, 32 + 24];
        let log = EventLog::parse(&good).unwrap();
        for event in &log.events {
            let digests: usize = event.digests().map(|(_, digest)| digest.len() + 2).sum();
            let size = event.offset + 12 + digests;
            fields.extend([event.offset + 8, size]);
            // Lengths inside the data: of variables, device paths, signature lists, certificates, tags.
            fields.extend((0..event.data.len().min(64)).step_by(4).map(|at| size + 4 + at));
        }
        for at in fields {
            for value in VALUES {
                let mut changed = good.clone();
                if let Some(field) = changed.get_mut(at..at + 4) {
                    field.copy_from_slice(&value.to_le_bytes());
                }
                read(&changed);
            }
        }
    }
}

/// The same inside variables that the TPM did vouch for: the digests are made to fit.
#[test]
fn lengths_inside_authenticated_data() {
    let good = Log::open(&fixture("sb-ms-shim-grub212/binary_bios_measurements"));
    let targets = [
        good.find(7, T::EFI_VARIABLE_DRIVER_CONFIG),
        good.find(7, T::EFI_VARIABLE_AUTHORITY),
        good.find(1, T::EFI_VARIABLE_BOOT),
    ];
    for target in targets.concat() {
        let event = &good.events[target];
        for at in (0..event.data.len().min(96)).step_by(2) {
            for value in [0u16, 0xffff] {
                let mut data = event.data.clone();
                if let Some(field) = data.get_mut(at..at + 2) {
                    field.copy_from_slice(&value.to_le_bytes());
                }
                let mut log = good.clone();
                log.events[target] = good.event(event.pcr, event.kind, &data);
                read(&log.bytes());
            }
        }
    }
}

#[test]
fn four_billion_of_anything() {
    let good = fixture("sb-ms-shim-grub212/binary_bios_measurements");
    let log = EventLog::parse(&good).unwrap();
    let first = log.events[0].offset;
    let field = |at: usize| {
        let mut changed = good.clone();
        changed[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let BadEventLog::Malformed { event, malformed } = EventLog::parse(&changed).unwrap_err();
        (event, malformed.field, malformed.offset, malformed.reason)
    };
    let max = u64::from(limits::LOG_BANKS);
    let too_large = Reason::TooLarge { got: u64::from(u32::MAX), max };
    assert_eq!(field(first + 8), (1, "digests.count", first + 8, too_large));
    assert_eq!(field(32 + 24), (0, "numberOfAlgorithms", 32 + 24, Reason::Value(u64::from(u32::MAX))));
    assert!(matches!(field(28), (0, "event", 32, Reason::Truncated { .. })));
    // As many events as the limit on bytes admits: the smallest ones, which extend nothing.
    let event = [T::NO_ACTION.0.to_le_bytes(), [0; 4], [0; 4]].concat();
    let event = [&[0; 4][..], &event].concat();
    let count = (limits::EVENT_LOG - first) / event.len();
    let full = [&good[..first], &event.repeat(count)].concat();
    assert_eq!(EventLog::parse(&full).unwrap().events.len(), count);
    read(&full);
    assert!(EventLog::parse(&[full.as_slice(), &[1; 32]].concat()).is_err(), "one event more is over the limit");
}

/// Work grows with the bytes, not with their square.
#[test]
fn many_names() {
    let mut log = Log::open(&fixture("sb-ms-shim-grub212/binary_bios_measurements"));
    log.banks.retain(|(alg, _)| *alg == HashAlg::Sha256.id());
    for event in &mut log.events {
        event.digests.retain(|(alg, _)| *alg == HashAlg::Sha256.id());
    }
    for number in 0..15_000 {
        let name = format!("/vmlinuz-{number}");
        let line = log.hashing(8, T::IPL, name.as_bytes(), format!("kernel_cmdline: {name}\0").as_bytes());
        let file = log.hashing(9, T::IPL, b"contents", format!("{name}\0").as_bytes());
        log.events.extend([line, file]);
    }
    let bytes = log.bytes();
    let parsed = EventLog::parse(&bytes).unwrap();
    let facts = Facts::of(&parsed.examine(&ALL, Registers::Tpm).unwrap(), &[]);
    assert_eq!((facts.kernels.len(), facts.command_lines.len()), (15_001, 15_001));
    read(&bytes);

    let mut log = Log::open(&fixture("sb-ms-shim-grub212/binary_bios_measurements"));
    let at = log.first(7, T::SEPARATOR);
    let made: Vec<_> = (0..limits::POLICY_VARIABLES)
        .map(|number| {
            let mut data = vec![7; 16];
            data.extend(4u64.to_le_bytes());
            data.extend(0u64.to_le_bytes());
            data.extend(format!("{number:04}").encode_utf16().flat_map(u16::to_le_bytes));
            log.event(7, T::EFI_VARIABLE_DRIVER_CONFIG, &data)
        })
        .collect();
    log.events.splice(at..at, made);
    let bytes = log.bytes();
    let parsed = EventLog::parse(&bytes).unwrap();
    let Err(Refusal::Lie(lie)) = parsed.examine(&ALL, Registers::Tpm) else { panic!("too many variables pass") };
    assert_eq!((lie.check, lie.got.as_str()), ("secure-boot-variable", "more than 256 variables"));
}
