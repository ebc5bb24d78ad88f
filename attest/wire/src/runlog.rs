//! Our run log: what Countersign did in this boot, hash-chained and extended into the run PCR (DESIGN.md section 10).
//!
//! One JSON object a line, in the shape of TCG's canonical event log (CEL-JSON). What is extended into each bank is the hash of the
//! `content` object's bytes as they stand in the line; `content.prev` is the SHA-256 of the line before, with its newline.

use countersign_tpm::alg::{Digest, HashAlg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::finding::{Finding, Reaction};
use crate::id::{HostId, RunId, WorkloadId};
use crate::limits;
use crate::receipt::Receipt;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// An attestation was accepted.
    Receipt {
        /// Whose.
        host: HostId,
        /// The receipt's 56 bytes, hex.
        receipt: String,
    },
    /// A workload is about to start.
    Start {
        /// The run.
        run: RunId,
        /// What runs.
        workload: WorkloadId,
        /// When, milliseconds since 1970 by the host's clock.
        time_ms: i64,
    },
    /// The run's monitor saw something.
    Finding {
        /// The run.
        run: RunId,
        /// What it saw.
        finding: Finding,
    },
    /// Something was done about findings.
    Reaction {
        /// The run.
        run: RunId,
        /// What.
        reaction: Reaction,
        /// When, milliseconds since 1970 by the host's clock.
        time_ms: i64,
    },
    /// A workload ended.
    End {
        /// The run.
        run: RunId,
        /// How: `exit N`, `signal N`, or why it was ended.
        status: String,
    },
    /// The TPM was resumed (TPM2_Startup(STATE)): the PCRs and this log go on.
    Resume {},
    /// Something that this version does not know: kept as it stands, never written.
    #[serde(skip)]
    Other {
        /// Its type.
        kind: String,
        /// The whole event, JSON.
        text: String,
    },
}

/// The types that this version knows: an entry of one of them must have its shape.
const KNOWN: [&str; 6] = ["receipt", "start", "finding", "reaction", "end", "resume"];

impl Event {
    /// The entry for a receipt.
    #[must_use]
    pub fn receipt(host: HostId, receipt: &Receipt) -> Self {
        Self::Receipt { host, receipt: hex::encode(receipt.to_bytes()) }
    }

    /// The run that the event is about, where it is about one.
    #[must_use]
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::Start { run, .. }
            | Self::Finding { run, .. }
            | Self::Reaction { run, .. }
            | Self::End { run, .. } => Some(*run),
            Self::Receipt { .. } | Self::Resume {} => None,
            Self::Other { text, .. } => {
                let text: serde_json::Value = serde_json::from_str(text).ok()?;
                text.get("run")?.as_str()?.parse().ok()
            }
        }
    }

    /// Its type, and the whole of it as JSON.
    #[must_use]
    pub fn described(&self) -> (&str, String) {
        let kind = match self {
            Self::Receipt { .. } => "receipt",
            Self::Start { .. } => "start",
            Self::Finding { .. } => "finding",
            Self::Reaction { .. } => "reaction",
            Self::End { .. } => "end",
            Self::Resume {} => "resume",
            Self::Other { kind, text } => return (kind, text.clone()),
        };
        (kind, serde_json::to_string(self).unwrap_or_default())
    }

    /// The receipt of a receipt entry.
    #[must_use]
    pub fn as_receipt(&self) -> Option<Receipt> {
        match self {
            Self::Receipt { receipt, .. } => Receipt::from_bytes(&hex::decode(receipt).ok()?),
            Self::Start { .. }
            | Self::Finding { .. }
            | Self::Reaction { .. }
            | Self::End { .. }
            | Self::Resume {}
            | Self::Other { .. } => None,
        }
    }
}

#[derive(Serialize)]
struct ContentOut {
    prev: String,
    event: Event,
}

#[derive(Deserialize)]
struct ContentIn<'a> {
    prev: String,
    #[serde(borrow)]
    event: &'a serde_json::value::RawValue,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

/// Reads an event. A newer program of the host may write types that this version does not know.
fn event(text: &str) -> Result<Event, String> {
    serde_json::from_str(text).or_else(|e: serde_json::Error| {
        let Kind { kind } = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if KNOWN.contains(&kind.as_str()) {
            Err(e.to_string())
        } else {
            Ok(Event::Other { kind, text: text.to_owned() })
        }
    })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestField {
    #[serde(rename = "hashAlg")]
    alg: String,
    digest: String,
}

#[derive(Serialize)]
struct LineOut<'a> {
    recnum: u64,
    pcr: u8,
    digests: Vec<DigestField>,
    content_type: &'a str,
    content: &'a serde_json::value::RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineIn<'a> {
    recnum: u64,
    pcr: u8,
    digests: Vec<DigestField>,
    content_type: String,
    #[serde(borrow)]
    content: &'a serde_json::value::RawValue,
}

const CONTENT_TYPE: &str = "countersign";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// What was, or is to be, extended: one digest for each bank.
    pub digests: Vec<Digest>,
    /// Offset of the first byte behind the entry's line.
    pub end: usize,
}

/// A log whose chain and digests are consistent. Whether the PCR agrees is for [`RunLog::replay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunLog {
    /// The run PCR; `None` for an empty log.
    pub pcr: Option<u8>,
    /// How many entries come before these: 0 for a whole log.
    pub first: u64,
    /// The entries.
    pub entries: Vec<Entry>,
    last: [u8; 32],
}

/// The end of a log that was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Entries up to there.
    pub entries: u64,
    /// SHA-256 of the last one's line, with its newline.
    pub last: [u8; 32],
}

/// Why bytes are not a run log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("run log, entry {index} at byte {offset}: {reason}")]
pub struct BadRunLog {
    /// Index of the entry.
    pub index: u64,
    /// Offset of its line.
    pub offset: usize,
    /// What is wrong.
    pub reason: String,
}

impl RunLog {
    /// A log without entries.
    #[must_use]
    pub const fn empty() -> Self {
        Self { pcr: None, first: 0, entries: Vec::new(), last: [0; 32] }
    }

    /// Parses a log and checks its chain: numbers from 0, each `prev`, each digest, one PCR.
    ///
    /// # Errors
    /// [`BadRunLog`] names entry and offset. A last line without its newline is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadRunLog> {
        Self::empty().read(bytes)
    }

    /// Parses the part of a log behind a position: its numbers and its chain go on from there.
    ///
    /// # Errors
    /// As [`RunLog::parse`].
    pub fn parse_after(bytes: &[u8], before: &Position) -> Result<Self, BadRunLog> {
        Self { first: before.entries, last: before.last, ..Self::empty() }.read(bytes)
    }

    /// Takes in what comes next, whole lines.
    ///
    /// # Errors
    /// As [`RunLog::parse`].
    pub fn read(mut self, bytes: &[u8]) -> Result<Self, BadRunLog> {
        if bytes.len() > limits::RUN_LOG {
            let reason = format!("{} bytes are over the limit of {}", bytes.len(), limits::RUN_LOG);
            return Err(BadRunLog { index: 0, offset: 0, reason });
        }
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.push(line)?;
        }
        Ok(self)
    }

    /// Takes in the line that comes next, with its newline.
    ///
    /// # Errors
    /// As [`RunLog::parse`]; then the log is as before.
    pub fn push(&mut self, line: &[u8]) -> Result<(), BadRunLog> {
        let (index, offset) = (self.count(), self.entries.last().map_or(0, |entry| entry.end));
        let bad = |reason: String| BadRunLog { index, offset, reason };
        let (entry, pcr) = self.entry(line, index, offset).map_err(bad)?;
        self.pcr = Some(pcr);
        self.last = Sha256::digest(line).into();
        self.entries.push(entry);
        Ok(())
    }

    /// Entries up to the end, those before these included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.first.saturating_add(u64::try_from(self.entries.len()).unwrap_or(u64::MAX))
    }

    /// Its end.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { entries: self.count(), last: self.last }
    }

    /// Offset behind the entries up to a position, in a whole log's bytes; `None` when the log does not go through there.
    #[must_use]
    pub fn offset_of(bytes: &[u8], position: &Position) -> Option<usize> {
        let lines = usize::try_from(position.entries).ok().filter(|lines| *lines > 0)?;
        let mut end = 0_usize;
        let mut last: &[u8] = &[];
        let mut rest = bytes.split_inclusive(|&byte| byte == b'\n');
        for _ in 0..lines {
            last = rest.next()?;
            end = end.saturating_add(last.len());
        }
        let hash: [u8; 32] = Sha256::digest(last).into();
        (last.ends_with(b"\n") && hash == position.last).then_some(end)
    }

    fn entry(&self, line: &[u8], index: u64, offset: usize) -> Result<(Entry, u8), String> {
        let text = line.strip_suffix(b"\n").ok_or("the last line is cut off")?;
        let raw: LineIn<'_> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if raw.recnum != index {
            return Err(format!("recnum {}, expected {index}", raw.recnum));
        }
        if raw.content_type != CONTENT_TYPE {
            return Err(format!("content_type {:?}, expected {CONTENT_TYPE:?}", raw.content_type));
        }
        if raw.pcr >= 24 || self.pcr.is_some_and(|pcr| pcr != raw.pcr) {
            return Err(format!(
                "PCR {}, expected {}",
                raw.pcr,
                self.pcr.map_or("one below 24".into(), |p| p.to_string())
            ));
        }
        let bytes = raw.content.get().as_bytes();
        let mut digests: Vec<Digest> = Vec::new();
        for field in &raw.digests {
            let alg = HashAlg::from_name(&field.alg).ok_or_else(|| format!("unknown bank {:?}", field.alg))?;
            let digest = alg.digest(&[bytes]);
            if digest.to_string() != field.digest {
                return Err(format!("{alg} digest {:?} is not that of the content ({digest})", field.digest));
            }
            if digests.iter().any(|other| other.alg() == alg) {
                return Err(format!("two {alg} digests"));
            }
            digests.push(digest);
        }
        let content: ContentIn<'_> = serde_json::from_str(raw.content.get()).map_err(|e| e.to_string())?;
        let prev = hex::encode(self.last);
        if content.prev != prev {
            return Err(format!("prev {:?}, expected {prev:?}: the chain is broken", content.prev));
        }
        Ok((Entry { event: event(content.event.get())?, digests, end: offset.saturating_add(line.len()) }, raw.pcr))
    }

    /// The line that would come next, with its newline, and what is to be extended into each bank.
    ///
    /// # Errors
    /// The event cannot be written as JSON, which no event of ours is.
    pub fn next(&self, pcr: u8, banks: &[HashAlg], event: Event) -> Result<(Vec<u8>, Vec<Digest>), BadRunLog> {
        let index = self.count();
        let bad = |e: serde_json::Error| BadRunLog { index, offset: 0, reason: e.to_string() };
        let content =
            serde_json::value::to_raw_value(&ContentOut { prev: hex::encode(self.last), event }).map_err(bad)?;
        let digests: Vec<Digest> = banks.iter().map(|alg| alg.digest(&[content.get().as_bytes()])).collect();
        let fields = digests.iter().map(|d| DigestField { alg: d.alg().name().into(), digest: d.to_string() });
        let line =
            LineOut { recnum: index, pcr, digests: fields.collect(), content_type: CONTENT_TYPE, content: &content };
        let mut line = serde_json::to_vec(&line).map_err(bad)?;
        line.push(b'\n');
        Ok((line, digests))
    }

    /// The PCR's value in a bank after each entry, beginning with `initial` before the first. `None` if an entry has no digest for it.
    #[must_use]
    pub fn replay(&self, initial: Digest) -> Option<Vec<Digest>> {
        let mut values = vec![initial];
        let mut value = initial;
        for entry in &self.entries {
            let digest = entry.digests.iter().find(|digest| digest.alg() == initial.alg())?;
            value = value.extend(digest.as_bytes());
            values.push(value);
        }
        Some(values)
    }

    /// The receipts in it, in order.
    #[must_use]
    pub fn receipts(&self) -> Vec<Receipt> {
        self.entries.iter().filter_map(|entry| entry.event.as_receipt()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Kind;

    const BANKS: [HashAlg; 2] = [HashAlg::Sha1, HashAlg::Sha256];

    fn log(events: &[Event]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for event in events {
            let (line, _) = RunLog::parse(&bytes).unwrap().next(13, &BANKS, event.clone()).unwrap();
            bytes.extend(line);
        }
        bytes
    }

    fn sample() -> Vec<u8> {
        let receipt = Receipt { number: 1, random: [2; 16], mac: [3; 32] };
        log(&[
            Event::receipt(HostId([1; 32]), &receipt),
            Event::Start { run: RunId([4; 16]), workload: WorkloadId([5; 32]), time_ms: 6 },
            Event::Resume {},
            Event::Finding {
                run: RunId([4; 16]),
                finding: Finding::new(Kind::Ptrace, "traced", "", 7).of(9, "/bin/x"),
            },
            Event::Reaction { run: RunId([4; 16]), reaction: Reaction::Alert, time_ms: 8 },
            Event::End { run: RunId([4; 16]), status: "exit 0".into() },
        ])
    }

    #[test]
    fn round_trip_and_replay() {
        let bytes = sample();
        let log = RunLog::parse(&bytes).unwrap();
        assert_eq!((log.entries.len(), log.pcr), (6, Some(13)));
        assert_eq!(log.receipts(), [Receipt { number: 1, random: [2; 16], mac: [3; 32] }]);
        let values = log.replay(Digest::filled(HashAlg::Sha256, 0)).unwrap();
        assert_eq!(values.len(), 7);
        assert!(log.replay(Digest::filled(HashAlg::Sha384, 0)).is_none());
        assert_eq!(RunLog::parse(b"").unwrap(), RunLog::empty());
    }

    #[test]
    fn a_part_goes_on_from_a_position_and_from_no_other() {
        let bytes = sample();
        let whole = RunLog::parse(&bytes).unwrap();
        for n in 1..whole.entries.len() {
            let cut = whole.entries[n - 1].end;
            let position = RunLog::parse(&bytes[..cut]).unwrap().position();
            assert_eq!(RunLog::offset_of(&bytes, &position), Some(cut));
            let part = RunLog::parse_after(&bytes[cut..], &position).unwrap();
            assert_eq!((part.position(), part.entries.len()), (whole.position(), whole.entries.len() - n));
            assert_eq!(RunLog::offset_of(&bytes[cut..], &position), None, "a part is no whole log");
            for other in [
                Position { entries: position.entries + 1, ..position },
                Position { entries: position.entries - 1, ..position },
                Position { last: [1; 32], ..position },
            ] {
                assert_eq!(RunLog::offset_of(&bytes, &other), None);
                assert!(RunLog::parse_after(&bytes[cut..], &other).is_err());
            }
        }
        let beyond = Position { entries: 7, last: whole.position().last };
        assert_eq!(RunLog::offset_of(&bytes, &beyond), None);
        assert_eq!(RunLog::parse_after(b"", &beyond).unwrap().position(), beyond);
    }

    #[test]
    fn a_boot_has_room_for_months() {
        let receipt = Event::receipt(HostId([1; 32]), &Receipt { number: 99_999, random: [2; 16], mac: [3; 32] });
        let room = |banks: &[HashAlg]| {
            let log = RunLog { first: 99_999, ..RunLog::empty() };
            limits::RUN_LOG / log.next(13, banks, receipt.clone()).unwrap().0.len()
        };
        // As docs/operations.md says.
        assert!(room(&HashAlg::ALL) >= 79_000, "{}", room(&HashAlg::ALL));
        assert!(room(&[HashAlg::Sha256]) >= 130_000, "{}", room(&[HashAlg::Sha256]));
    }

    #[test]
    fn types_of_a_newer_program_are_kept_and_known_ones_keep_their_shape() {
        let other = r#"{"type":"migrated","run":"04","to":["x", 1]}"#;
        let read = event(other).unwrap();
        assert_eq!(read, Event::Other { kind: "migrated".into(), text: other.into() });
        assert!(RunLog::empty().next(13, &BANKS, read).is_err(), "never written");
        for known in KNOWN {
            assert!(event(&format!(r#"{{"type":{known:?},"surplus":1}}"#)).is_err(), "{known}");
        }
        assert!(event("{}").is_err());
        assert!(event("7").is_err());
    }

    #[test]
    fn cut_reordered_and_changed_logs_are_refused() {
        let bytes = sample();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
        let whole: Vec<usize> = RunLog::parse(&bytes).unwrap().entries.iter().map(|entry| entry.end).collect();
        for end in 1..bytes.len() {
            assert_eq!(RunLog::parse(&bytes[..end]).is_ok(), whole.contains(&end), "{end}");
        }
        assert!(RunLog::parse(&[lines[1], lines[0]].concat()).is_err());
        assert!(RunLog::parse(&[lines[0], lines[2]].concat()).is_err());
        assert!(RunLog::parse(&[lines[0], lines[0]].concat()).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(RunLog::parse(&changed).is_err(), "byte {at} changed and accepted");
        }
    }
}
