//! Boot logs.

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{self, EventLog, PcrBank, PcrSet, Registers, Variable};
use countersign_wire::facts::{Changes, Facts, diff};
use countersign_wire::systemd_log as userspace;

/// The firmware's event log: parsed, replayed, judged, turned into facts and into a canonical event log.
pub fn eventlog(data: &[u8]) {
    let Ok(log) = EventLog::parse(data) else { return };
    assert!(log.events.windows(2).all(|pair| pair[0].offset < pair[1].offset));
    assert!(log.padding <= data.len());
    for alg in log.known_banks() {
        for registers in [Registers::Tpm, Registers::Cc] {
            let Ok(examined) = log.examine(&[(alg, PcrSet::ALL)], registers) else { continue };
            // What is judged true replays, and to the same values.
            if registers == Registers::Tpm {
                assert_eq!(log.replay(alg).as_ref(), Ok(&examined.banks[0]));
            }
            let facts = Facts::of(&examined, &[]);
            let text = serde_json::to_string(&facts).unwrap();
            assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        }
    }
    if let Ok(read) = countersign_wire::cel::parse(countersign_wire::cel::write(&log, &[]).as_bytes())
        && let Ok(again) = EventLog::parse(&read.firmware)
    {
        for alg in again.known_banks() {
            if let (Ok(one), Ok(two)) = (log.replay(alg), again.replay(alg)) {
                assert_eq!(one, two);
            }
        }
    }
}

/// A TDX guest's ACPI table and log.
pub fn ccel(data: &[u8]) {
    let _ = eventlog::ccel::Table::parse(data);
    if let Ok(log) = EventLog::parse(data) {
        let _ = eventlog::ccel::looks_like(&log);
    }
}

/// The canonical event log: what is read is written and read again as the same.
pub fn cel(data: &[u8]) {
    let _ = countersign_wire::cel::looks_like(data);
    let Ok(logs) = countersign_wire::cel::parse(data) else { return };
    let Ok(log) = EventLog::parse(&logs.firmware) else { return };
    let again = countersign_wire::cel::parse(countersign_wire::cel::write(&log, &logs.userspace).as_bytes()).unwrap();
    assert_eq!(again.userspace.len(), logs.userspace.len());
}

/// systemd's userspace log.
pub fn systemd_log(data: &[u8]) {
    let Ok(records) = userspace::parse(data) else { return };
    assert!(records.iter().all(|record| record.pcr < 24));
    for alg in HashAlg::ALL {
        let _ = userspace::replay(&records, &mut PcrBank::initial(alg));
    }
}

/// The difference between two boots: of a log with itself there is none.
pub fn boot_diff(data: &[u8]) {
    // The first two bytes say where the second log begins.
    let Some((head, rest)) = data.split_at_checked(2) else { return };
    let at = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let Some((was, now)) = rest.split_at_checked(at) else { return };
    let (Ok(was), Ok(now)) = (EventLog::parse(was), EventLog::parse(now)) else { return };
    let wanted = [(HashAlg::Sha256, PcrSet::ALL)];
    let (Ok(was), Ok(now)) = (was.examine(&wanted, Registers::Tpm), now.examine(&wanted, Registers::Tpm)) else {
        return;
    };
    let (before, after) = (Facts::of(&was, &[]), Facts::of(&now, &[]));
    let _ = diff((&was, &before), (&now, &after));
    assert_eq!(diff((&now, &after), (&now, &after)), Changes::default());
}

/// UEFI_VARIABLE_DATA: without a tail where the strict reading takes it.
pub fn variable(data: &[u8]) {
    if let Ok(strict) = Variable::parse(data) {
        let (variable, tail) = Variable::parse_with_tail(data).unwrap();
        assert_eq!((variable.data, tail), (strict.data, 0));
        let _ = strict.name();
    }
}
