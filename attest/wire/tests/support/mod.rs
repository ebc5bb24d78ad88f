//! Logs taken apart and put together again, and the PCRs that a TPM would hold after them.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests; each uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{EventLog, EventType, NO_PCR, PcrSet, Refusal, Registers};
use countersign_wire::systemd_log;

/// PCR values by bank.
pub(crate) type Pcrs = BTreeMap<HashAlg, BTreeMap<u8, Digest>>;

/// An event that can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) pcr: u32,
    pub(crate) kind: EventType,
    pub(crate) digests: Vec<(u16, Vec<u8>)>,
    pub(crate) data: Vec<u8>,
}

/// A crypto-agile log that can be changed.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) banks: Vec<(u16, u16)>,
    pub(crate) events: Vec<Event>,
}

impl Log {
    pub(crate) fn open(bytes: &[u8]) -> Self {
        let log = EventLog::parse(bytes).unwrap();
        let events = log.events.iter().map(|event| Event {
            pcr: event.pcr,
            kind: event.kind,
            digests: event.digests().map(|(alg, digest)| (alg, digest.to_vec())).collect(),
            data: event.data.to_vec(),
        });
        Self { banks: log.banks.clone(), events: events.collect() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0".to_vec();
        spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        spec.extend(u32::try_from(self.banks.len()).unwrap().to_le_bytes());
        for (alg, size) in &self.banks {
            spec.extend(alg.to_le_bytes());
            spec.extend(size.to_le_bytes());
        }
        spec.push(0);
        let mut log = vec![0, 0, 0, 0, 3, 0, 0, 0];
        log.extend([0; 20]);
        log.extend(u32::try_from(spec.len()).unwrap().to_le_bytes());
        log.extend(spec);
        for event in &self.events {
            log.extend(event.bytes());
        }
        log
    }

    /// Indices of the events of a PCR and type.
    pub(crate) fn find(&self, pcr: u32, kind: EventType) -> Vec<usize> {
        let found = |(_, event): &(usize, &Event)| event.pcr == pcr && event.kind == kind;
        self.events.iter().enumerate().filter(found).map(|(at, _)| at).collect()
    }

    pub(crate) fn first(&self, pcr: u32, kind: EventType) -> usize {
        self.find(pcr, kind)[0]
    }

    /// An event of which the data is what was measured.
    pub(crate) fn event(&self, pcr: u32, kind: EventType, data: &[u8]) -> Event {
        self.hashing(pcr, kind, data, data)
    }

    /// An event of which something else was measured; of an event that extends nothing the digests are zeros.
    pub(crate) fn hashing(&self, pcr: u32, kind: EventType, hashed: &[u8], data: &[u8]) -> Event {
        let algs = self.banks.iter().filter_map(|(alg, _)| HashAlg::from_id(*alg));
        let digest = |alg: HashAlg| match kind {
            EventType::NO_ACTION => Digest::filled(alg, 0),
            _ => alg.digest(&[hashed]),
        };
        let digests = algs.map(|alg| (alg.id(), digest(alg).as_bytes().to_vec())).collect();
        Event { pcr, kind, digests, data: data.to_vec() }
    }

    /// What a TPM holds after exactly these extends: computed here, without the code under test.
    pub(crate) fn pcrs(&self) -> Pcrs {
        let mut pcrs = Pcrs::new();
        for alg in self.banks.iter().filter_map(|(alg, _)| HashAlg::from_id(*alg)) {
            let mut bank: BTreeMap<u8, Digest> = BTreeMap::new();
            for event in &self.events {
                if event.kind == EventType::NO_ACTION || event.pcr == NO_PCR || event.pcr >= 24 {
                    continue;
                }
                let pcr = u8::try_from(event.pcr).unwrap();
                let Some((_, digest)) = event.digests.iter().find(|(id, _)| *id == alg.id()) else { continue };
                let old = bank.entry(pcr).or_insert_with(|| Digest::filled(alg, 0));
                *old = alg.digest(&[old.as_bytes(), digest]);
            }
            pcrs.insert(alg, bank);
        }
        pcrs
    }
}

impl Event {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.pcr.to_le_bytes().to_vec();
        out.extend(self.kind.0.to_le_bytes());
        out.extend(u32::try_from(self.digests.len()).unwrap().to_le_bytes());
        for (alg, digest) in &self.digests {
            out.extend(alg.to_le_bytes());
            out.extend(digest);
        }
        out.extend(u32::try_from(self.data.len()).unwrap().to_le_bytes());
        out.extend(&self.data);
        out
    }
}

/// What a check says of a log: replayed PCRs and Secure Boot, or the id of the rule that refuses it.
pub(crate) fn check(log: &[u8], pcrs: &Pcrs, systemd: &[u8], registers: Registers) -> Result<Option<bool>, String> {
    let log = EventLog::parse(log).map_err(|_| "format".to_owned())?;
    let records = systemd_log::parse(systemd).map_err(|_| "userspace".to_owned())?;
    let wanted: Vec<(HashAlg, PcrSet)> =
        pcrs.iter().map(|(alg, values)| (*alg, values.keys().copied().collect())).collect();
    let mut examined = log.examine(&wanted, registers).map_err(|refusal| match refusal {
        Refusal::Lie(lie) => lie.check.to_owned(),
        Refusal::Replay(_) => "bank".to_owned(),
    })?;
    for bank in &mut examined.banks {
        systemd_log::replay(&records, bank).map_err(|_| "userspace".to_owned())?;
    }
    let vouched = |alg, pcr| pcrs.get(&alg)?.get(&pcr).copied();
    examined.compare(vouched).map_err(|mismatch| format!("pcr {}", mismatch.pcr))?;
    Ok(examined.secure_boot())
}

/// PCRS.json.
pub(crate) fn pcrs(text: &str) -> Pcrs {
    let banks: BTreeMap<String, BTreeMap<u8, String>> = serde_json::from_str(text).unwrap();
    let digest = |alg, value: &str| Digest::new(alg, &hex::decode(value).unwrap()).unwrap();
    banks
        .into_iter()
        .map(|(name, values)| {
            let alg = HashAlg::from_name(&name).unwrap();
            (alg, values.into_iter().map(|(pcr, value)| (pcr, digest(alg, &value))).collect())
        })
        .collect()
}

/// Where test data of others lies, beside the checkout: in one of its parents' folders `shared`.
pub(crate) fn shared(folder: &str) -> Option<PathBuf> {
    let mut here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    while here.pop() {
        let found = here.join("shared").join(folder);
        if found.is_dir() {
            return Some(found);
        }
    }
    None
}

pub(crate) fn fixture(path: &str) -> Vec<u8> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/");
    std::fs::read(format!("{root}{path}")).unwrap()
}
