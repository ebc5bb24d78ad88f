//! Boot log to facts: parse, replay, judge and authenticate all events, against the hashes that this needs; and the same behind a quote.

use std::hint::black_box;

use anyhow::{Context as _, anyhow, ensure};
use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, PcrBank, PcrSet, Registers};
use countersign_wire::facts::read_boot;

use super::hashes::{Hash, against_hashes};
use super::log::Extends;
use super::quote::{Recorded, bare_p256};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::GOOD_LOG;

pub(super) const TOPIC: Topic = Topic { rows: &["log-facts", "quote-log-facts"], measure };

const ROUNDS: usize = 501;

/// The hashes that facts need: every extend, and every event's data that a digest vouches for.
struct Floor<'a> {
    extends: Extends,
    parts: Vec<&'a [u8]>,
}

impl<'a> Floor<'a> {
    fn of(log: &EventLog<'a>) -> anyhow::Result<Self> {
        let extends = Extends::of(log)?;
        let examined = log.examine(&[(HashAlg::Sha256, PcrSet::ALL)], Registers::Tpm)?;
        extends.check(examined.banks.first().context("no bank")?)?;
        Ok(Self { extends, parts: examined.events().filter_map(|(_, _, part)| part).collect() })
    }

    fn hashes(&self, hash: Hash) {
        black_box(black_box(&self.extends).all(hash));
        for part in black_box(&self.parts) {
            black_box(hash(part));
        }
    }
}

/// What is measured: the log's PCRs; its facts were derived.
fn read() -> anyhow::Result<PcrBank> {
    let (bank, facts) = read_boot(black_box(GOOD_LOG), HashAlg::Sha256).map_err(|e| anyhow!(e))?;
    black_box(facts);
    Ok(bank)
}

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let log = EventLog::parse(GOOD_LOG)?;
    let floor = Floor::of(&log)?;
    ensure!(read_boot(GOOD_LOG, HashAlg::Sha256).map_err(|e| anyhow!(e))?.1.secure_boot.is_some(), "no facts");
    let (extends, parts) = (floor.extends.0.len(), floor.parts.len());
    let bytes: usize = floor.parts.iter().map(|part| part.len()).sum();
    let alone = against_hashes(
        ROUNDS,
        &mut || {
            black_box(read()?);
            Ok(())
        },
        &|hash| {
            floor.hashes(hash);
            Ok(())
        },
    )?;
    let events = u32::try_from(log.events.len())?;
    let first = Row {
        name: "log-facts".to_owned(),
        value: alone.value * 1e6,
        unit: "us",
        against: format!("{extends} bare extends + {parts} data hashes ({})", alone.library),
        against_value: alone.floor * 1e6,
        goal: Goal::AtMost(1.5),
        samples: ROUNDS,
        note: format!(
            "{:.0} ns for each of {events} events; the data hashes are over {bytes} of {} bytes",
            alone.value * 1e9 / f64::from(events),
            GOOD_LOG.len()
        ),
    };
    let (quote, signature) = (Recorded::p256()?, bare_p256()?);
    let key = quote.key()?;
    let quoted = against_hashes(
        ROUNDS,
        &mut || {
            quote.verify(&key)?;
            quote.agrees(&read()?)
        },
        &|hash| {
            floor.hashes(hash);
            signature()
        },
    )?;
    let second = Row {
        name: "quote-log-facts".to_owned(),
        value: quoted.value * 1e6,
        unit: "us",
        against: format!("that floor + ring's bare verification ({})", quoted.library),
        against_value: quoted.floor * 1e6,
        goal: Goal::AtMost(1.3),
        samples: ROUNDS,
        note: format!("{:.0} quotes with their logs a second", 1.0 / quoted.value),
    };
    Ok(vec![first, second])
}
