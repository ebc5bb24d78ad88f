use countersign_tpm::alg::Digest;

use super::*;
use crate::limits;

const GOOD: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const GOOD_PCRS: &str = include_str!("../../../../fixtures/sb-ms-shim-grub212/PCRS.json");
const OFF: &[u8] = include_bytes!("../../../../fixtures/nosb-shim-grub212/binary_bios_measurements");

const SHA256: [(HashAlg, PcrSet); 1] = [(HashAlg::Sha256, PcrSet::ALL)];
const BOTH: [(HashAlg, PcrSet); 2] = [(HashAlg::Sha1, PcrSet::ALL), (HashAlg::Sha256, PcrSet::ALL)];

fn hexed(alg: HashAlg, pcr: u8, pcrs: &str) -> String {
    let pcrs: serde_json::Value = serde_json::from_str(pcrs).unwrap();
    pcrs[alg.name()][pcr.to_string()].as_str().unwrap().to_owned()
}

#[test]
fn recorded_log_replays_in_every_bank() {
    let log = EventLog::parse(GOOD).unwrap();
    assert_eq!(log.events.len(), 48);
    for alg in log.known_banks() {
        let bank = log.replay(alg).unwrap();
        for pcr in (0..24).filter(|pcr| *pcr != 10) {
            assert_eq!(bank.value(pcr).unwrap().to_string(), hexed(alg, pcr, GOOD_PCRS), "{alg} {pcr}");
        }
        assert_eq!(log.lies(alg), None);
        let examined = log.examine(&[(alg, PcrSet::ALL)], Registers::Tpm).unwrap();
        assert_eq!(examined.secure_boot(), Some(true));
        assert!(examined.exit_boot_services());
        assert_eq!(examined.banks, [bank]);
    }
    assert!(matches!(log.replay(HashAlg::Sha512), Err(ReplayError::NoBank(HashAlg::Sha512))));
    let off = EventLog::parse(OFF).unwrap();
    assert_eq!(off.examine(&SHA256, Registers::Tpm).unwrap().secure_boot(), Some(false));
}

#[test]
fn truncations_and_inner_lengths() {
    let mut whole = Vec::new();
    let log = EventLog::parse(GOOD).unwrap();
    for event in &log.events {
        whole.push(event.offset);
    }
    for end in 0..GOOD.len() {
        let parsed = EventLog::parse(&GOOD[..end]);
        assert_eq!(parsed.is_ok(), whole.contains(&end), "cut at {end}");
    }
    for at in (0..GOOD.len()).step_by(7) {
        let mut changed = GOOD.to_vec();
        changed[at] = 0xff;
        if let Ok(log) = EventLog::parse(&changed) {
            for registers in [Registers::Tpm, Registers::Cc] {
                if let Ok(examined) = log.examine(&BOTH, registers) {
                    let _ = (examined.secure_boot(), crate::facts::Facts::of(&examined, &[]));
                }
            }
        }
    }
    assert!(EventLog::parse(&vec![0; limits::EVENT_LOG + 1]).is_err());
}

/// A small log with a SHA-256 and a SHA-1 bank.
struct Maker(Vec<u8>);

impl Maker {
    fn new() -> Self {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0, 4, 0, 20, 0, 11, 0, 32, 0, 0]);
        let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
        log.extend([0; 20]);
        log.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
        log.extend(spec);
        Self(log)
    }

    fn event(self, pcr: u32, kind: EventType, data: &[u8]) -> Self {
        self.with(pcr, kind, &[HashAlg::Sha1, HashAlg::Sha256], data, data)
    }

    fn with(mut self, pcr: u32, kind: EventType, banks: &[HashAlg], hashed: &[u8], data: &[u8]) -> Self {
        self.0.extend(pcr.to_le_bytes());
        self.0.extend(kind.0.to_le_bytes());
        self.0.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
        for alg in banks {
            self.0.extend(alg.id().to_le_bytes());
            let none = kind == EventType::NO_ACTION;
            let digest = if none { Digest::filled(*alg, 0) } else { alg.digest(&[hashed]) };
            self.0.extend(digest.as_bytes());
        }
        self.0.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        self.0.extend(data);
        self
    }

    fn lie(&self) -> Option<&'static str> {
        EventLog::parse(&self.0).unwrap().lies(HashAlg::Sha256).map(|lie| lie.check)
    }
}

fn secure_boot_variable(data: &[u8]) -> Vec<u8> {
    let mut out = hex::decode("61dfe48bca93d211aa0d00e098032b8c").unwrap();
    out.extend(10u64.to_le_bytes());
    out.extend(u64::try_from(data.len()).unwrap().to_le_bytes());
    out.extend("SecureBoot".encode_utf16().flat_map(u16::to_le_bytes));
    out.extend(data);
    out
}

#[test]
fn a_bank_without_digests_does_not_replay() {
    let log = Maker::new().with(0, EventType::POST_CODE, &[HashAlg::Sha1], b"x", b"x").0;
    let log = EventLog::parse(&log).unwrap();
    assert!(log.replay(HashAlg::Sha1).is_ok());
    assert!(matches!(log.replay(HashAlg::Sha256), Err(ReplayError::NoDigest { .. })));
}

#[test]
fn two_digests_of_one_algorithm_are_malformed() {
    let twice = [HashAlg::Sha256, HashAlg::Sha256];
    let log = Maker::new().with(0, EventType::POST_CODE, &twice, b"x", b"x").0;
    assert!(matches!(EventLog::parse(&log), Err(BadEventLog::Malformed { event: 1, .. })));
    let unlisted = Maker::new().with(0, EventType::POST_CODE, &[HashAlg::Sha384], b"x", b"x").0;
    assert!(EventLog::parse(&unlisted).is_err());
}

#[test]
fn pcr_indices() {
    let log = Maker::new().event(NO_PCR, EventType::POST_CODE, b"x").0;
    let bank = EventLog::parse(&log).unwrap().replay(HashAlg::Sha256).unwrap();
    assert_eq!(bank, PcrBank::initial(HashAlg::Sha256));
    for pcr in [24, 255, 256, 0x7fff_ffff] {
        let log = Maker::new().event(pcr, EventType::POST_CODE, b"x").0;
        let error = EventLog::parse(&log).unwrap().replay(HashAlg::Sha256).unwrap_err();
        assert!(matches!(error, ReplayError::PcrIndex { .. }), "{pcr}");
    }
}

#[test]
fn startup_locality_counts_before_the_first_extend_only() {
    let locality = b"StartupLocality\0\x03";
    let first = Maker::new().event(0, EventType::NO_ACTION, locality).event(0, EventType::POST_CODE, b"x");
    let plain = Maker::new().event(0, EventType::POST_CODE, b"x");
    let late = Maker::new().event(0, EventType::POST_CODE, b"x").event(0, EventType::NO_ACTION, locality);
    let value = |maker: &Maker| EventLog::parse(&maker.0).unwrap().replay(HashAlg::Sha256).unwrap().value(0);
    assert_ne!(value(&first), value(&plain));
    assert_eq!(value(&late), value(&plain));
    assert_eq!(first.lie(), None);
    assert_eq!(late.lie(), Some("startup-locality"));
    let hcrtm = Maker::new().event(0, EventType::EFI_HCRTM_EVENT, b"x");
    assert_ne!(value(&hcrtm), value(&plain));
}

#[test]
fn logs_that_replay_and_lie() {
    let config = EventType::EFI_VARIABLE_DRIVER_CONFIG;
    let on = secure_boot_variable(&[1]);
    let separator = EventType::SEPARATOR;
    let cases: [(&str, Maker); 8] = [
        ("separator", Maker::new().event(0, EventType::POST_CODE, &[0; 4])),
        ("separator", Maker::new().event(7, separator, &[0; 4]).event(7, separator, &[0; 4])),
        ("separator", Maker::new().event(4, separator, &[0xff; 4]).event(5, EventType::EFI_ACTION, b"x")),
        ("separator", Maker::new().with(4, separator, &[HashAlg::Sha1, HashAlg::Sha256], b"evil", &[0; 4])),
        ("secure-boot-variable", Maker::new().event(7, config, &on).event(7, config, &on)),
        ("secure-boot-variable", Maker::new().event(7, separator, &[0; 4]).event(7, config, &on)),
        ("secure-boot-variable", Maker::new().event(7, config, &[on.as_slice(), &[0]].concat())),
        ("pcr7-type", Maker::new().event(7, EventType(0x1234), b"x").event(5, EventType::EFI_ACTION, b"x")),
    ];
    for (check, log) in &cases {
        assert_eq!(log.lie(), Some(*check));
    }
    assert_eq!(Maker::new().event(7, config, &on).event(7, separator, &[0; 4]).lie(), None);
}

#[test]
fn secure_boot_is_believed_only_when_measured() {
    let config = EventType::EFI_VARIABLE_DRIVER_CONFIG;
    let banks = [HashAlg::Sha1, HashAlg::Sha256];
    let (on, off) = (secure_boot_variable(&[1]), secure_boot_variable(&[0]));
    let state = |maker: Maker| {
        let log = EventLog::parse(&maker.0).unwrap();
        log.examine(&BOTH, Registers::Tpm).map(|examined| examined.secure_boot()).map_err(|refusal| match refusal {
            Refusal::Lie(lie) => lie.check,
            Refusal::Replay(_) => "replay",
        })
    };
    assert_eq!(state(Maker::new().event(7, config, &on)), Ok(Some(true)));
    assert_eq!(state(Maker::new().event(7, config, &off)), Ok(Some(false)));
    assert_eq!(state(Maker::new().with(7, config, &banks, &off, &on)), Err("data"));
    assert_eq!(state(Maker::new().event(7, config, &secure_boot_variable(&[]))), Ok(None), "a real machine has this");
    for bad in [&[2][..], &[1, 1], &[0, 0]] {
        let log = Maker::new().event(7, config, &secure_boot_variable(bad));
        assert_eq!(state(log), Err("secure-boot-variable"), "{bad:?}");
    }
    assert_eq!(state(Maker::new().event(4, config, &on)), Err("secure-boot-variable"));
}

#[test]
fn unknown_banks_are_passed_over() {
    // SM3 (0x0012) stands before SHA-256 in each event.
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0, 0x12, 0, 32, 0, 11, 0, 32, 0, 0]);
    let mut bytes = vec![0, 0, 0, 0, 3, 0, 0, 0];
    bytes.extend([0; 20]);
    bytes.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
    bytes.extend(spec);
    bytes.extend([4, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 0x12, 0]);
    bytes.extend([9; 32]);
    bytes.extend([11, 0]);
    bytes.extend([7; 32]);
    bytes.extend([1, 0, 0, 0, b'x']);
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(log.banks, [(0x12, 32), (11, 32)]);
    assert_eq!(log.known_banks().collect::<Vec<_>>(), [HashAlg::Sha256]);
    assert_eq!(log.events[0].digest(HashAlg::Sha256), Some(&[7; 32][..]));
    assert_eq!(log.events[0].data, b"x");
    assert!(log.replay(HashAlg::Sha256).is_ok());
}

#[test]
fn digests_in_any_order() {
    let normal = Maker::new().event(5, EventType::EFI_ACTION, b"x").0;
    let before = Maker::new().0.len();
    // PCR, type, count; SHA-1 and SHA-256 with their algorithms; data.
    let (head, rest) = normal[before..].split_at(12);
    let (digests, data) = rest.split_at(22 + 34);
    let (sha1, sha256) = digests.split_at(22);
    let log = |first, second| [&normal[..before], head, first, second, data].concat();
    assert_eq!(log(sha1, sha256), normal);
    let (swapped, twice) = (log(sha256, sha1), log(sha256, sha256));
    let read = EventLog::parse(&swapped).unwrap();
    let event = read.events.last().unwrap();
    assert_eq!(event.digest(HashAlg::Sha1), Some(&sha1[2..]));
    assert_eq!(event.digest(HashAlg::Sha256), Some(&sha256[2..]));
    assert_eq!(event.data, b"x");
    let twice = EventLog::parse(&twice).unwrap_err().to_string();
    assert!(twice.contains("two digests of one algorithm"), "{twice}");
    let twice = EventLog::parse(&log(sha1, sha1)).unwrap_err().to_string();
    assert!(twice.contains("two digests of one algorithm"), "{twice}");
}

#[test]
fn the_format_of_tpm_1_2() {
    let mut bytes = Vec::new();
    for (pcr, kind, data) in [(0u32, EventType::S_CRTM_VERSION, &b"1"[..]), (4, EventType::SEPARATOR, &[0xff; 4])] {
        bytes.extend(pcr.to_le_bytes());
        bytes.extend(kind.0.to_le_bytes());
        bytes.extend(HashAlg::Sha1.digest(&[data]).as_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
    }
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!((log.format, log.count()), (Format::Sha1, 2));
    assert!(log.examine(&[(HashAlg::Sha1, PcrSet::ALL)], Registers::Tpm).is_ok());
    let error = log.examine(&SHA256, Registers::Tpm).unwrap_err();
    assert_eq!(error, Refusal::Replay(ReplayError::NoBank(HashAlg::Sha256)), "it vouches for no other bank");
    // Its profiles define less: digests of what extends nothing, and what is measured of a variable in PCR 1.
    let mut looser = bytes.clone();
    for (pcr, kind) in [(0u32, EventType::NO_ACTION), (1, EventType::EFI_VARIABLE_DRIVER_CONFIG)] {
        looser.extend(pcr.to_le_bytes());
        looser.extend(kind.0.to_le_bytes());
        looser.extend([7; 20]);
        looser.extend([1, 0, 0, 0, b'x']);
    }
    let log = EventLog::parse(&looser).unwrap();
    assert!(log.examine(&[(HashAlg::Sha1, PcrSet::ALL)], Registers::Tpm).is_ok());
    // A specification id of TPM 1.2's own does not switch the format.
    let mut old = vec![0, 0, 0, 0, 3, 0, 0, 0];
    old.extend([0; 20]);
    old.extend([16, 0, 0, 0]);
    old.extend(b"Spec ID Event00\0");
    old.extend(&bytes);
    assert_eq!(EventLog::parse(&old).unwrap().events.len(), 3);
}

#[test]
fn padding_behind_the_last_event() {
    for (byte, least) in [(0u8, 16usize), (0xff, 8)] {
        for length in 0..64 {
            let bytes = [GOOD, &vec![byte; length]].concat();
            let log = EventLog::parse(&bytes);
            assert_eq!(log.is_ok(), length == 0 || length >= least, "{length} bytes of {byte:#x}");
            if let Ok(log) = log {
                assert_eq!((log.padding, log.events.len()), (length, 48));
            }
        }
    }
    assert!(EventLog::parse(&[GOOD, &[0; 40], &[1]].concat()).is_err());
}

#[test]
fn pcrs_that_a_dynamic_launch_resets() {
    let digest = HashAlg::Sha256.digest(&[b"x"]);
    let log = Maker::new().event(17, EventType::POST_CODE, b"x").0;
    let bank = EventLog::parse(&log).unwrap().replay(HashAlg::Sha256).unwrap();
    assert_eq!(bank.value(17), Some(Digest::filled(HashAlg::Sha256, 0).extend(digest.as_bytes())));
    assert_eq!(bank.value(18), Some(Digest::filled(HashAlg::Sha256, 0xff)), "no event: its initial value");
}

#[test]
fn exit_boot_services_that_are_extended_and_not_logged() {
    let log = Maker::new().event(5, EventType::SEPARATOR, &[0; 4]).0;
    let log = EventLog::parse(&log).unwrap();
    let extend = |value: Digest, text: &str| value.extend(value.alg().digest(&[text.as_bytes()]).as_bytes());
    let end = |alg: HashAlg, texts: &[&str]| {
        let start = log.replay(alg).unwrap().value(5).unwrap();
        texts.iter().fold(start, |value, text| extend(value, text))
    };
    let (call, success) = ("Exit Boot Services Invocation", "Exit Boot Services Returned with Success");
    let failure = "Exit Boot Services Returned with Failure";
    let five: PcrSet = [5].into_iter().collect();
    let wanted = [(HashAlg::Sha1, five), (HashAlg::Sha256, five)];
    let reached = |texts: [&[&str]; 2]| {
        let mut examined = log.examine(&wanted, Registers::Tpm).unwrap();
        let result = examined.compare(|alg, _| Some(end(alg, texts[usize::from(alg == HashAlg::Sha256)])));
        result.map(|()| examined.exit_boot_services()).map_err(|mismatch| mismatch.pcr)
    };
    assert_eq!(reached([&[call, success]; 2]), Ok(true));
    assert_eq!(reached([&[call, failure, call, success]; 2]), Ok(true));
    assert_eq!(reached([&[call, failure]; 2]), Ok(false));
    assert_eq!(reached([&[]; 2]), Ok(false));
    assert_eq!(reached([&[call, success], &[]]), Err(5), "one bank must not vouch for another");
    assert_eq!(reached([&[call, "something else"]; 2]), Err(5));
    assert_eq!(reached([&[success]; 2]), Err(5), "a log that lacks only the end was cut");
}
