//! IMA: replay of a list, and look-up of each of its files in a reference set, against the hashes that the replay needs.

use std::fs;
use std::hint::black_box;

use anyhow::{Context as _, bail, ensure};
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_verifier::ima::{ImaState, Reference, appraise};
use countersign_wire::ima::synthetic::{self, Synthetic};
use countersign_wire::ima::{KernelHash, frames};
use countersign_wire::refset::{FileDigest, Origin, ReferenceSet};

use super::hashes::{Hash, against_hashes};
use super::measure::in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["ima-100k", "ima-100k-rss", "ima-linear"], measure };

const ROUNDS: usize = 25;
/// Rounds of the longest measurement.
const LONG_ROUNDS: usize = 9;
/// Files of the list, and of the set.
const FILES: u32 = 100_000;
/// Entries of one part of the longest list; a whole one is more than a piece of evidence may carry.
const PART: u32 = 250_000;
/// Parts of the longest list.
const PARTS: u32 = 4;
/// Memory that is allowed, MiB.
const MEMORY: f64 = 64.0;

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let before = Memory::now()?.resident;
    let reference = Reference::compile([set(FILES)?.as_slice()])?;
    let list = Part::new(synthetic::list(FILES), zero());
    let memory = memory(before, &list, &reference)?;
    let mut rows = vec![speed(&list, &reference)?, memory];
    rows.push(linear(&list, &reference)?);
    Ok(rows)
}

/// PCR 10 of a host that measured nothing.
pub(super) fn zero() -> Digest {
    Digest::filled(HashAlg::Sha256, 0)
}

/// A reference set of the first `files` files of a synthetic list, as JSON.
pub(super) fn set(files: u32) -> anyhow::Result<Vec<u8>> {
    let file = |n| {
        let (digest, path) = (synthetic::digest(n).as_bytes().to_vec(), Some(synthetic::path(n).into_bytes()));
        FileDigest { alg: KernelHash::SHA256, digest, path }.to_string()
    };
    let origin = Origin { files: (0..files).map(file).collect(), ..Origin::new("manual", "bench") };
    Ok(ReferenceSet { origins: vec![origin], ..ReferenceSet::default() }.to_json()?)
}

/// A part of a host's list, and PCR 10 before and after it.
struct Part {
    bytes: Vec<u8>,
    start: Digest,
    quoted: Digest,
}

impl Part {
    fn new(list: Synthetic, start: Digest) -> Self {
        let quoted = list.pcr(start);
        Self { bytes: list.bytes, start, quoted }
    }

    /// What the verifier does with it.
    fn appraise(&self, reference: &Reference, state: &mut ImaState) -> anyhow::Result<()> {
        appraise(black_box(&self.bytes), &[self.start], &[self.quoted], Some(reference), state)?;
        Ok(())
    }
}

fn speed(list: &Part, reference: &Reference) -> anyhow::Result<Row> {
    let mut state = ImaState::default();
    list.appraise(reference, &mut state)?;
    ensure!(state.tally.accepted == u64::from(FILES), "{:?}: not every file is accepted", state.tally);
    let frames = frames(&list.bytes)?.collect::<Result<Vec<_>, _>>()?;
    let hashed: Vec<&[u8]> = frames.iter().map(|frame| frame.data()).collect();
    ensure!(bare(&hashed, super::hashes::by_sha2) == list.quoted.as_bytes(), "the floor does other work");
    let measured = against_hashes(
        ROUNDS,
        &mut || {
            let mut state = ImaState::default();
            list.appraise(reference, &mut state)?;
            black_box(state);
            Ok(())
        },
        &|hash| {
            black_box(bare(black_box(&hashed), hash));
            Ok(())
        },
    )?;
    let entries = f64::from(FILES) + 1.0;
    Ok(Row {
        name: "ima-100k".to_owned(),
        value: entries / measured.value,
        unit: "entries per second",
        against: format!("its bare hashes and extends ({})", measured.library),
        against_value: entries / measured.floor,
        goal: Goal::AtLeast(0.8),
        samples: ROUNDS,
        note: format!(
            "ima-ng, SHA-256, each file looked up among {} digests; {:.0} ns an entry",
            reference.digests(),
            measured.value * 1e9 / entries
        ),
    })
}

/// The hash of each entry, and the extend.
fn bare(entries: &[&[u8]], hash: Hash) -> [u8; 32] {
    entries.iter().fold([0; 32], |pcr, entry| {
        let mut message = [0; 64];
        let (old, new) = message.split_at_mut(32);
        old.copy_from_slice(&pcr);
        new.copy_from_slice(&hash(entry));
        hash(&message)
    })
}

/// Time of an entry in longer and longer lists. The files of the set come again and again.
fn linear(list: &Part, reference: &Reference) -> anyhow::Result<Row> {
    let mut parts = Vec::new();
    let mut start = zero();
    let mut files = (0..FILES).cycle();
    for _ in 0..PARTS {
        let mut list = Synthetic::default();
        for file in files.by_ref().take(usize::try_from(PART)?) {
            list.push_file(&synthetic::path(file), synthetic::digest(file).as_bytes());
        }
        let part = Part::new(list, start);
        start = part.quoted;
        parts.push(part);
    }
    let short = Part::new(synthetic::list(FILES / 10), zero());
    let run = |parts: &[Part]| {
        let mut state = ImaState::default();
        parts.iter().try_for_each(|part| part.appraise(reference, &mut state))?;
        black_box(&state);
        anyhow::Ok(state.entries)
    };
    ensure!(run(&parts)? == u64::from(PART * PARTS), "not every entry is appraised");
    let of = |list: &Part| {
        let mut state = ImaState::default();
        list.appraise(reference, &mut state)?;
        black_box(&state);
        anyhow::Ok(())
    };
    let medians = in_turn(
        LONG_ROUNDS,
        &mut [&mut || of(&short), &mut || of(list), &mut || parts.first().map_or(Ok(()), of), &mut || {
            run(&parts).map(drop)
        }],
    )?;
    let [short, hundred, part, million] = medians.as_slice() else { bail!("four medians") };
    let each = |seconds: &f64, entries: u32| seconds * 1e9 / f64::from(entries);
    Ok(Row {
        name: "ima-linear".to_owned(),
        value: each(million, PART * PARTS),
        unit: "ns an entry",
        against: format!("the same in a list of {FILES}"),
        against_value: each(hundred, FILES),
        goal: Goal::AtMost(1.1),
        samples: LONG_ROUNDS,
        note: format!(
            "{:.0} ns of {}, {:.0} of {FILES}, {:.0} of {PART}, {:.0} of {} (in {PARTS} parts)",
            each(short, FILES / 10),
            FILES / 10,
            each(hundred, FILES),
            each(part, PART),
            each(million, PART * PARTS),
            PART * PARTS
        ),
    })
}

/// What the process has in memory, MiB.
struct Memory {
    resident: f64,
    /// Since the last [`Memory::forget_peak`].
    peak: f64,
}

impl Memory {
    fn now() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line in status")?;
            let kib: u32 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
            anyhow::Ok(f64::from(kib) / 1024.0)
        };
        Ok(Self { resident: field("VmRSS")?, peak: field("VmHWM")? })
    }

    /// Linux proc(5): /proc/self/clear_refs, 5.
    fn forget_peak() -> anyhow::Result<()> {
        Ok(fs::write("/proc/self/clear_refs", "5")?)
    }
}

/// All that the appraisal needs: the list, the compiled set, and what is used on the way at its peak.
fn memory(before: f64, list: &Part, reference: &Reference) -> anyhow::Result<Row> {
    Memory::forget_peak()?;
    let start = Memory::now()?.resident;
    let mut state = ImaState::default();
    list.appraise(reference, &mut state)?;
    let peak = Memory::now()?.peak;
    let mib = |bytes: usize| anyhow::Ok(f64::from(u32::try_from(bytes)?) / 1_048_576.0);
    Ok(Row {
        name: "ima-100k-rss".to_owned(),
        value: peak - before,
        unit: "MiB",
        against: "goal".to_owned(),
        against_value: MEMORY,
        goal: Goal::Below(1.0),
        samples: 1,
        note: format!(
            "the list {:.1}, the compiled set {:.1}, what the appraisal added {:.1}; the rest: what compiling and the allocator left",
            mib(list.bytes.len())?,
            mib(reference.bytes())?,
            peak - start
        ),
    })
}
