//! The difference between two boots: of a log with itself there is none.
#![no_main]

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, PcrSet, Registers};
use countersign_wire::facts::{Changes, Facts, diff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first two bytes say where the second log begins.
    let Some((head, rest)) = data.split_at_checked(2) else { return };
    let at = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let Some((was, now)) = rest.split_at_checked(at) else { return };
    let (Ok(was), Ok(now)) = (EventLog::parse(was), EventLog::parse(now)) else { return };
    let wanted = [(HashAlg::Sha256, PcrSet::ALL)];
    let (Ok(was), Ok(now)) = (was.examine(&wanted, Registers::Tpm), now.examine(&wanted, Registers::Tpm)) else { return };
    let (before, after) = (Facts::of(&was, &[]), Facts::of(&now, &[]));
    let _ = diff((&was, &before), (&now, &after));
    assert_eq!(diff((&now, &after), (&now, &after)), Changes::default());
});
