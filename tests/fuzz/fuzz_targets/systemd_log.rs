//! systemd's userspace log.
#![no_main]

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::PcrBank;
use countersign_wire::systemd_log;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(records) = systemd_log::parse(data) else { return };
    assert!(records.iter().all(|record| record.pcr < 24));
    for alg in HashAlg::ALL {
        let _ = systemd_log::replay(&records, &mut PcrBank::initial(alg));
    }
});
