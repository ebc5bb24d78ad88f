//! Entries against a reference, one at a time.

use countersign_tpm::alg::Digest;
use countersign_wire::ima::{
    BOOT_AGGREGATE, BadIma, Entry, Field, Frame, ImaReplayError, KernelHash, Prefix, entries, frames, replay_each,
};
use minicbor::bytes::ByteVec;

use super::keyring::{Key, Keyring};
use super::reference::Reference;
use super::state::{Finding, FindingKind, ImaState, KEYS};
use super::table::{Found, Probe};

/// Replays `list` from `start` to `quoted` and appraises what the quote covers: `state` goes on from `state.entries`. In one pass, in which each file is
/// looked up while the next one is hashed; what that found counts only once the list leads to the quoted values.
///
/// # Errors
/// The list leads nowhere, or a field of an entry breaks the format, which no kernel writes. `state` is then as it was.
pub fn appraise(
    list: &[u8],
    start: &[Digest],
    quoted: &[Digest],
    reference: Option<&Reference>,
    state: &mut ImaState,
) -> Result<Prefix, ImaReplayError> {
    let mut lookup = Lookup::new(reference);
    let prefix = replay_each(list, start, quoted, |frame| lookup.see(frame))?;
    lookup.judge(list, prefix.entries, state)?;
    Ok(prefix)
}

/// Appraises the first `count` entries of `list`, which were replayed, and adds them to `state`: the host's entries from `state.entries` on.
/// Without a reference only violations and kexecs are counted.
///
/// In this order: a violation; a denied digest; a digest that is accepted at this path; an excluded path; a key that may be learned; a
/// signature by an accepted key; else unknown.
///
/// # Errors
/// A field of an entry breaks the format, which no kernel writes. `state` is then as it was.
pub fn judge(list: &[u8], count: u64, reference: Option<&Reference>, state: &mut ImaState) -> Result<(), BadIma> {
    let mut lookup = Lookup::new(reference);
    let mut seen: u64 = 0;
    for frame in frames(list)?.take(usize::try_from(count).unwrap_or(usize::MAX)) {
        lookup.see(&frame?);
        seen = seen.saturating_add(1);
    }
    lookup.judge(list, seen, state)
}

/// Tells the files that a set accepts from the rest, which needs a closer look.
struct Lookup<'r, 'a> {
    reference: Option<&'r Reference>,
    /// The record behind the last one found.
    next: usize,
    /// The last file, whose memory is on its way.
    pending: Option<(Probe, &'a [u8; 32], Place)>,
    accepted: u64,
    rest: Vec<Place>,
}

/// Index and offset of an entry in the part at hand.
type Place = (u64, usize);

impl<'r, 'a> Lookup<'r, 'a> {
    const fn new(reference: Option<&'r Reference>) -> Self {
        Self { reference, next: 0, pending: None, accepted: 0, rest: Vec::new() }
    }

    fn see(&mut self, frame: &Frame<'a>) {
        let place = (frame.index, frame.offset);
        if frame.index == 0 {
            *self = Self::new(self.reference);
        }
        self.resolve();
        match (frame.plain().filter(|(_, path)| *path != BOOT_AGGREGATE), self.reference) {
            (Some((digest, path)), Some(reference)) if !reference.denies(digest) => {
                let (files, alg) = (reference.allow(), KernelHash::SHA256);
                if files.is_record(alg, self.next, digest, path) {
                    self.next = self.next.saturating_add(1);
                    bump(&mut self.accepted);
                } else {
                    self.pending = Some((files.probe(alg, digest, path), digest, place));
                }
            }
            // Without sets nothing is accepted, and nothing has to be.
            (Some(_), None) => {}
            _ => self.rest.push(place),
        }
    }

    fn resolve(&mut self) {
        let (Some((probe, digest, place)), Some(reference)) = (self.pending.take(), self.reference) else { return };
        match reference.allow().number(probe, digest) {
            Some(number) => {
                self.next = number.saturating_add(1);
                bump(&mut self.accepted);
            }
            None => self.rest.push(place),
        }
    }

    /// Adds what was seen to the state.
    fn judge(mut self, list: &[u8], count: u64, state: &mut ImaState) -> Result<(), BadIma> {
        self.resolve();
        let mut learned = Keyring::default();
        for der in &state.keys {
            learned.keys_from(der);
        }
        let mut next = state.clone();
        let mut judge = Judge { reference: self.reference, learned, state: &mut next };
        for (index, offset) in self.rest {
            let elsewhere = |mut bad: BadIma| {
                bad.malformed.offset = bad.malformed.offset.saturating_add(offset);
                BadIma { index, ..bad }
            };
            let entry = entries(list.get(offset..).unwrap_or_default()).map_err(elsewhere)?.next();
            if let Some(entry) = entry {
                judge.entry(&entry.map_err(elsewhere)?, state.entries.saturating_add(index));
            }
        }
        next.tally.accepted = next.tally.accepted.saturating_add(self.accepted);
        next.entries = next.entries.saturating_add(count);
        *state = next;
        Ok(())
    }
}

impl Keyring {
    fn keys_from(&mut self, der: &[u8]) {
        if let Ok(key) = Key::from_certificate(der) {
            self.add(key);
        }
    }
}

struct Judge<'a> {
    reference: Option<&'a Reference>,
    learned: Keyring,
    state: &'a mut ImaState,
}

impl Judge<'_> {
    fn entry(&mut self, entry: &Entry<'_>, index: u64) {
        if entry.is_violation() {
            bump(&mut self.state.tally.violations);
            self.note(FindingKind::Violation, index, entry, || {
                "the file was written while it was measured, or measured while it was written".into()
            });
            return;
        }
        if entry.path == BOOT_AGGREGATE {
            // The first one is judged by the PCRs. A later one is another kernel's, and accepted by nothing but a reference.
            if index == 0 {
                return;
            }
            bump(&mut self.state.tally.kexecs);
        }
        let Some(reference) = self.reference else { return };
        if let Some(reason) = reference.denied(entry) {
            bump(&mut self.state.tally.denied);
            let reason = format!("denied: {reason}");
            self.note(FindingKind::Denied, index, entry, || reason);
            return;
        }
        let found = reference.find(entry);
        if found == Found::Yes {
            bump(&mut self.state.tally.accepted);
        } else if reference.excludes(entry.path) {
            bump(&mut self.state.tally.excluded);
        } else if self.learn(reference, entry) {
            bump(&mut self.state.tally.keys);
        } else {
            match self.signature(reference, entry) {
                Ok(()) => bump(&mut self.state.tally.signed),
                Err(reason) => {
                    bump(&mut self.state.tally.unknown);
                    self.note(FindingKind::Unknown, index, entry, || match found {
                        Found::Elsewhere(path) => {
                            format!("accepted only as {}{reason}", String::from_utf8_lossy(path))
                        }
                        Found::No | Found::Yes => format!("no reference set has this digest{reason}"),
                    });
                }
            }
        }
    }

    /// Whether an accepted key signed it; the error is empty for an entry without a signature.
    fn signature(&self, reference: &Reference, entry: &Entry<'_>) -> Result<(), String> {
        if entry.signature.is_empty() && entry.field(Field::Modsig).is_none_or(<[u8]>::is_empty) {
            return Err(String::new());
        }
        reference.keyring().check_with(Some(&self.learned), entry).map_err(|why| format!("; {why}"))
    }

    /// A key that the list measures, in a keyring that keys may be learned from.
    fn learn(&mut self, reference: &Reference, entry: &Entry<'_>) -> bool {
        let Some(der) = entry.buffer.filter(|_| reference.learns_from(entry.path)) else { return false };
        if entry.buffer_is_digested() != Some(true) {
            return false;
        }
        let Ok(key) = Key::from_certificate(der) else { return false };
        let known = self.state.keys.iter().any(|known| known.as_slice() == der);
        if !known {
            if self.state.keys.len() >= KEYS {
                return false;
            }
            self.state.keys.push(ByteVec::from(der.to_vec()));
            self.learned.add(key);
        }
        true
    }

    fn note(&mut self, kind: FindingKind, index: u64, entry: &Entry<'_>, reason: impl FnOnce() -> String) {
        self.state.note(kind, || Finding {
            kind,
            entry: index,
            path: String::from_utf8_lossy(entry.path).into_owned(),
            digest: format!("{}:{}", String::from_utf8_lossy(entry.digest_alg), hex::encode(entry.digest)),
            reason: reason(),
        });
    }
}

fn bump(count: &mut u64) {
    *count = count.saturating_add(1);
}
