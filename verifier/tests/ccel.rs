//! `verifier check eventlog --ccel`: a TDX guest's log beside its ACPI table, from files to exit code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

use std::path::Path;
use std::process::Command;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::EventLog;
use serde_json::{Value, json};

const LOG: &[u8] = include_bytes!("../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
/// Bytes of the log's area.
const AREA: u64 = 0x1_0000;

/// The ACPI table, of a kind of confidential computing.
fn table(cc_type: u8, area: u64) -> Vec<u8> {
    let mut bytes = b"CCEL\x38\0\0\0\x01\0INTEL EDK2    ".to_vec();
    bytes.resize(36, 0);
    bytes.extend([cc_type, 0, 0, 0]);
    bytes.extend(area.to_le_bytes());
    bytes.extend(0x7fbe_8000u64.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = 0u8.wrapping_sub(sum);
    bytes
}

/// The recorded boot as a TDX guest would log it, with a vendor's event for PCR 1; and what RTMR[0] to RTMR[3] hold then.
fn guest() -> (Vec<u8>, [Digest; 4]) {
    let alg = HashAlg::Sha384;
    let mut log = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
    let spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0c\0\x30\0\0";
    log.extend([0; 20]);
    log.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
    log.extend(spec);
    let mut registers = [Digest::filled(alg, 0); 4];
    let mut add = |index: u32, kind: u32, digest: &[u8], data: &[u8]| {
        log.extend([index.to_le_bytes(), kind.to_le_bytes(), 1u32.to_le_bytes()].concat());
        log.extend(alg.id().to_le_bytes());
        log.extend(digest);
        log.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        log.extend(data);
        let register = &mut registers[usize::try_from(index).unwrap() - 1];
        *register = alg.digest(&[register.as_bytes(), digest]);
    };
    add(1, 0x0000_8401, alg.digest(&[b"x"]).as_bytes(), b"a vendor's");
    for event in &EventLog::parse(LOG).unwrap().events {
        let index = match event.pcr {
            1 | 7 => 1,
            2..=6 => 2,
            8..=15 => 3,
            _ => continue,
        };
        add(index, event.kind.0, event.digest(alg).unwrap(), event.data);
    }
    log.resize(usize::try_from(AREA).unwrap(), 0xff);
    (log, registers)
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(log: &[u8], table: &[u8], pcrs: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("log", log);
        write("CCEL", table);
        write("pcrs", pcrs.to_string().as_bytes());
        Self { folder }
    }

    /// Exit code and what was printed.
    fn check(&self, with_table: bool) -> (Option<i32>, Value) {
        let path = |name: &str| Path::join(self.folder.path(), name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.args(["--json", "check", "eventlog"]).arg(path("log")).arg("--pcrs").arg(path("pcrs"));
        if with_table {
            command.arg("--ccel").arg(path("CCEL"));
        }
        let output = command.output().unwrap();
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        (output.status.code(), serde_json::from_slice(&text).unwrap())
    }
}

/// The registers under these names.
fn named(names: [&str; 4], registers: &[Digest; 4]) -> Value {
    let values = names.iter().zip(registers).map(|(name, value)| ((*name).to_owned(), json!(value.to_string())));
    json!({"sha384": values.collect::<serde_json::Map<_, _>>()})
}

#[test]
fn a_guest_log_and_its_table() {
    let (log, registers) = guest();
    let tdx = table(2, AREA);
    for names in [["1", "2", "3", "4"], ["rtmr0", "rtmr1", "rtmr2", "rtmr3"], ["0", "1", "2", "3"]] {
        let files = Files::new(&log, &tdx, &named(names, &registers));
        for with_table in [true, false] {
            let (code, printed) = files.check(with_table);
            assert_eq!((code, &printed["secure_boot"]), (Some(0), &json!(true)), "{names:?}: {printed}");
            assert_eq!(printed["facts"]["authorities"][0]["value"]["source"], "db");
        }
    }
    let numbers = Files::new(&log, &tdx, &named(["0", "1", "2", "3"], &registers));
    assert_eq!(numbers.check(true).1["pcrs"], named(["0", "1", "2", "3"], &registers), "as they were asked for");
    let mut with_mrtd = named(["rtmr0", "rtmr1", "rtmr2", "rtmr3"], &registers);
    with_mrtd["sha384"]["MRTD"] = json!("ab".repeat(48));
    let (code, printed) = Files::new(&log, &tdx, &with_mrtd).check(true);
    assert_eq!((code, printed["pcrs"]["sha384"].as_object().unwrap().len()), (Some(0), 4), "no log speaks of MRTD");
}

#[test]
fn what_is_refused() {
    let (log, registers) = guest();
    let good = named(["rtmr0", "rtmr1", "rtmr2", "rtmr3"], &registers);
    let check = |log: &[u8], table: &[u8], pcrs: &Value| {
        let (code, printed) = Files::new(log, table, pcrs).check(true);
        assert_ne!(code, Some(0));
        printed["error"]["check"].as_str().unwrap().to_owned()
    };
    assert_eq!(check(&log, &table(1, AREA), &good), "ccel", "another kind of guest");
    assert_eq!(check(&log, &table(2, AREA - 1), &good), "ccel", "a log longer than its area");
    let mut broken = table(2, AREA);
    broken[9] ^= 1;
    assert_eq!(check(&log, &broken, &good), "ccel", "the table's checksum");
    let exchanged = named(["rtmr1", "rtmr0", "rtmr2", "rtmr3"], &registers);
    assert_eq!(check(&log, &table(2, AREA), &exchanged), "pcr");
    let exchanged = named(["1", "0", "2", "3"], &registers);
    assert_eq!(check(&log, &table(2, AREA), &exchanged), "pcr", "numbered as RTMRs");
    let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut flipped = log.clone();
    let at = flipped.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    flipped[at] ^= 1;
    assert_eq!(check(&flipped, &table(2, AREA), &good), "data");
    let mut longer = log.clone();
    *longer.last_mut().unwrap() = 0;
    assert_eq!(check(&longer, &table(2, AREA), &good), "format", "bytes behind the last event");
}
