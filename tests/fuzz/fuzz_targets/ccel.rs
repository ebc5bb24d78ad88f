//! A TDX guest's ACPI table and log.
#![no_main]

use countersign_wire::eventlog::{EventLog, ccel};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = ccel::Table::parse(data);
    if let Ok(log) = EventLog::parse(data) {
        let _ = ccel::looks_like(&log);
    }
});
