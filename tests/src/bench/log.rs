//! Boot log: parse and replay, against the bare hash extends that it needs.

use std::hint::black_box;

use anyhow::{Context as _, ensure};
use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, PcrBank};

use super::hashes::{Hash, against_hashes, by_sha2};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::GOOD_LOG;

pub(super) const TOPIC: Topic = Topic { rows: &["log-replay"], measure };

const ROUNDS: usize = 501;

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let log = EventLog::parse(GOOD_LOG)?;
    let extends = Extends::of(&log)?;
    extends.check(&log.replay(HashAlg::Sha256)?)?;
    let measured = against_hashes(
        ROUNDS,
        &mut || {
            black_box(EventLog::parse(black_box(GOOD_LOG))?.replay(HashAlg::Sha256)?);
            Ok(())
        },
        &|hash| {
            black_box(black_box(&extends).all(hash));
            Ok(())
        },
    )?;
    Ok(vec![Row {
        name: "log-replay".to_owned(),
        value: measured.value * 1e6,
        unit: "us",
        against: format!("its {} bare extends ({})", extends.0.len(), measured.library),
        against_value: measured.floor * 1e6,
        goal: Goal::AtMost(1.5),
        samples: ROUNDS,
        note: format!("{} bytes, {} events", GOOD_LOG.len(), log.events.len()),
    }])
}

/// PCR and SHA-256 digest of each event that extends.
pub(super) struct Extends(pub(super) Vec<(usize, [u8; 32])>);

impl Extends {
    pub(super) fn of(log: &EventLog<'_>) -> anyhow::Result<Self> {
        let mut extends = Vec::new();
        for event in log.events.iter().filter(|event| event.extends()) {
            let digest: [u8; 32] = event.digest(HashAlg::Sha256).context("no SHA-256 digest")?.try_into()?;
            extends.push((usize::try_from(event.pcr)?, digest));
        }
        Ok(Self(extends))
    }

    /// That they lead where the replay leads.
    pub(super) fn check(&self, replayed: &PcrBank) -> anyhow::Result<()> {
        let pcrs = self.all(by_sha2);
        for pcr in 0..8u8 {
            let want = pcrs.get(usize::from(pcr)).copied().unwrap_or_default();
            ensure!(replayed.value(pcr).context("no PCR")?.as_bytes() == want, "PCR {pcr}: the floor does other work");
        }
        Ok(())
    }

    /// The extends and nothing else: PCR = H(PCR || digest).
    pub(super) fn all(&self, hash: Hash) -> [[u8; 32]; 24] {
        let mut pcrs = [[0; 32]; 24];
        let mut message = [0; 64];
        for (pcr, digest) in &self.0 {
            let Some(value) = pcrs.get_mut(*pcr) else { continue };
            let (old, new) = message.split_at_mut(32);
            old.copy_from_slice(value);
            new.copy_from_slice(digest);
            *value = hash(&message);
        }
        pcrs
    }
}
