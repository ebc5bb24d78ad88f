//! The recorded boot `sb-ms-shim-grub212`: its logs, what its TPM held, and reference values made from it.

use countersign_policy::input::{Reference, ReferenceValue};
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_verifier::admin::DEFAULT_PCRS;
use countersign_wire::eventlog::EventLog;
use countersign_wire::evidence::{BankValues, PcrValue};

pub(crate) const LOG: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
pub(crate) const IMA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ima_binary");
const PCRS: &str = include_str!("../../../fixtures/sb-ms-shim-grub212/PCRS.json");
/// The PCRs that a verifier asks for.
pub(crate) const ASKED: std::ops::Range<u8> = 0..15;

/// What the TPM held.
pub(crate) fn value(alg: HashAlg, pcr: u8) -> Digest {
    let all: serde_json::Value = serde_json::from_str(PCRS).unwrap();
    let text = all[alg.name()][pcr.to_string()].as_str().unwrap();
    Digest::new(alg, &hex::decode(text).unwrap()).unwrap()
}

/// One bank of it.
pub(crate) fn bank(alg: HashAlg) -> BankValues {
    let pcr = |index| PcrValue { index, value: value(alg, index).as_bytes().to_vec() };
    BankValues { alg: alg.id(), pcrs: ASKED.map(pcr).collect() }
}

/// `data.countersign.reference` of a verifier that accepts this boot.
pub(crate) fn reference() -> Vec<u8> {
    let log = EventLog::parse(LOG).unwrap();
    let values = log.events.iter().filter(|event| event.extends()).filter_map(|event| {
        let pcr = u8::try_from(event.pcr).ok().filter(|pcr| DEFAULT_PCRS.contains(pcr))?;
        let digest = hex::encode(event.digest(HashAlg::Sha256)?);
        Some(ReferenceValue {
            name: "recorded".into(),
            bank: "sha256".into(),
            pcr,
            kind: event.kind.to_string(),
            digest,
            content: None,
        })
    });
    serde_json::to_vec(&Reference { revision: 1, values: values.collect() }).unwrap()
}
