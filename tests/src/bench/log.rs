//! Boot log: parse and replay, against the bare hash extends that it needs.

use std::hint::black_box;

use anyhow::{Context as _, bail, ensure};
use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::EventLog;
use sha2::{Digest as _, Sha256};

use super::measure::in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::GOOD_LOG;

pub(super) const TOPIC: Topic = Topic { rows: &["log-replay"], measure };

const ROUNDS: usize = 501;

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let log = EventLog::parse(GOOD_LOG)?;
    let mut extends = Vec::new();
    for event in log.events.iter().filter(|event| event.extends()) {
        let digest: [u8; 32] = event.digest(HashAlg::Sha256).context("no SHA-256 digest")?.try_into()?;
        extends.push((usize::try_from(event.pcr)?, digest));
    }
    let by_sha2 = |message: &[u8; 64]| -> [u8; 32] { Sha256::digest(message).into() };
    let by_ring = |message: &[u8; 64]| -> [u8; 32] {
        ring::digest::digest(&ring::digest::SHA256, message).as_ref().try_into().unwrap_or_default()
    };
    let replayed = log.replay(HashAlg::Sha256)?;
    for pcr in 0..8u8 {
        let want = extend_all(&extends, by_sha2).get(usize::from(pcr)).copied().unwrap_or_default();
        ensure!(replayed.value(pcr).context("no PCR")?.as_bytes() == want, "PCR {pcr}: the floor does other work");
    }
    let medians = in_turn(
        ROUNDS,
        &mut [
            &mut || {
                black_box(EventLog::parse(black_box(GOOD_LOG))?.replay(HashAlg::Sha256)?);
                Ok(())
            },
            &mut || {
                black_box(extend_all(black_box(&extends), by_sha2));
                Ok(())
            },
            &mut || {
                black_box(extend_all(black_box(&extends), by_ring));
                Ok(())
            },
        ],
    )?;
    let [value, sha2, ring] = medians.as_slice() else { bail!("three medians") };
    let (floor, which) = if sha2 < ring { (sha2, "sha2") } else { (ring, "ring") };
    Ok(vec![Row {
        name: "log-replay".to_owned(),
        value: value * 1e6,
        unit: "us",
        against: format!("its {} bare extends ({which})", extends.len()),
        against_value: floor * 1e6,
        goal: Goal::AtMost(1.5),
        samples: ROUNDS,
        note: format!("{} bytes, {} events", GOOD_LOG.len(), log.events.len()),
    }])
}

/// The extends and nothing else: PCR = H(PCR || digest).
fn extend_all(extends: &[(usize, [u8; 32])], hash: impl Fn(&[u8; 64]) -> [u8; 32]) -> [[u8; 32]; 24] {
    let mut pcrs = [[0; 32]; 24];
    let mut message = [0; 64];
    for (pcr, digest) in extends {
        let Some(value) = pcrs.get_mut(*pcr) else { continue };
        let (old, new) = message.split_at_mut(32);
        old.copy_from_slice(value);
        new.copy_from_slice(digest);
        *value = hash(&message);
    }
    pcrs
}
