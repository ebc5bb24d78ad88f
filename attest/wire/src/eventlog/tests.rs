use super::*;

const GOOD: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const GOOD_PCRS: &str = include_str!("../../../../fixtures/sb-ms-shim-grub212/PCRS.json");
const OFF: &[u8] = include_bytes!("../../../../fixtures/nosb-shim-grub212/binary_bios_measurements");

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
        assert_eq!(log.secure_boot(&[alg]), Some(true));
        assert!(log.exit_boot_services(&[alg]));
    }
    assert!(matches!(log.replay(HashAlg::Sha512), Err(ReplayError::NoBank(HashAlg::Sha512))));
    let off = EventLog::parse(OFF).unwrap();
    assert_eq!(off.secure_boot(&[HashAlg::Sha256]), Some(false));
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
            let _ = (log.replay(HashAlg::Sha256), log.lies(HashAlg::Sha256), log.secure_boot(&[HashAlg::Sha1]));
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
            self.0.extend(alg.digest(&[hashed]).as_bytes());
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
        ("separator", Maker::new().event(4, separator, &[0xff; 4])),
        ("separator", Maker::new().with(4, separator, &[HashAlg::Sha1, HashAlg::Sha256], b"evil", &[0; 4])),
        ("secure-boot-variable", Maker::new().event(7, config, &on).event(7, config, &on)),
        ("secure-boot-variable", Maker::new().event(7, separator, &[0; 4]).event(7, config, &on)),
        ("secure-boot-variable", Maker::new().event(7, config, &[on.as_slice(), &[0]].concat())),
        ("pcr7-type", Maker::new().event(7, EventType(0x1234), b"x")),
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
    let state = |maker: Maker| EventLog::parse(&maker.0).unwrap().secure_boot(&banks);
    assert_eq!(state(Maker::new().event(7, config, &on)), Some(true));
    assert_eq!(state(Maker::new().event(7, config, &off)), Some(false));
    assert_eq!(state(Maker::new().with(7, config, &banks, &off, &on)), None);
    assert_eq!(state(Maker::new().event(7, config, &secure_boot_variable(&[]))), None);
    assert_eq!(state(Maker::new().event(7, config, &secure_boot_variable(&[2]))), None);
    assert_eq!(state(Maker::new().event(7, config, &secure_boot_variable(&[1, 1]))), None);
    assert_eq!(state(Maker::new().event(4, config, &on)), None);
}
