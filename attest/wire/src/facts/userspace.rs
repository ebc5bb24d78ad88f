//! From systemd's userspace log to facts.

use super::{Events, Fact, Facts, Log, Strength};
use crate::eventlog::Examined;
use crate::systemd_log::Record;

pub(super) fn facts(examined: &Examined<'_, '_>, records: &[Record], facts: &mut Facts) {
    for record in records {
        let mut covering = examined.banks.iter().filter(|bank| bank.covers().contains(record.pcr)).peekable();
        if covering.peek().is_none() {
            continue;
        }
        // The text is believed only where it hashes to the digest in every bank that covers the PCR.
        let authentic = covering.all(|bank| {
            let hash = bank.alg().digest(&[record.text.as_bytes()]);
            record.digests.iter().any(|(alg, digest)| *alg == bank.alg() && digest.as_slice() == hash.as_bytes())
        });
        if !authentic {
            continue;
        }
        let fact = |value: &str| Fact {
            value: value.to_owned(),
            strength: Strength::Authenticated,
            log: Log::Systemd,
            events: Events::one(record.index),
        };
        match record.pcr {
            11 => facts.phases.push(fact(&record.text)),
            15 => {
                if let Some(id) = record.text.strip_prefix("machine-id:") {
                    facts.machine_id = Some(fact(id));
                } else if let Some(mounted) = record.text.strip_prefix("file-system:") {
                    facts.file_systems.push(fact(mounted));
                }
            }
            _ => {}
        }
    }
}
