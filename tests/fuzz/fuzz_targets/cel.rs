//! The canonical event log: what is read is written and read again as the same.
#![no_main]

use countersign_wire::cel;
use countersign_wire::eventlog::EventLog;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = cel::looks_like(data);
    let Ok(logs) = cel::parse(data) else { return };
    let Ok(log) = EventLog::parse(&logs.firmware) else { return };
    let again = cel::parse(cel::write(&log, &logs.userspace).as_bytes()).unwrap();
    assert_eq!(again.userspace.len(), logs.userspace.len());
});
