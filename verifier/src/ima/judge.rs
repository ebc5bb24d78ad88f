//! Entries against a reference, one at a time.

use countersign_wire::ima::{BOOT_AGGREGATE, BadIma, Entry, entries};
use minicbor::bytes::ByteVec;

use super::keyring::{Key, Keyring};
use super::reference::Reference;
use super::state::{Finding, FindingKind, ImaState, KEYS};
use super::table::{Found, Probe};

/// Entries that are looked up at once: their memory is fetched side by side.
const AHEAD: usize = 32;

/// Appraises the first `count` entries of `list`, which were replayed, and adds them to `state`: the host's entries from `state.entries` on.
/// Without a reference only violations and kexecs are counted.
///
/// In this order: a violation; a denied digest; a digest that is accepted at this path; an excluded path; a key that may be learned; a
/// signature by an accepted key; else unknown.
///
/// # Errors
/// A field of an entry breaks the format, which no kernel writes.
pub fn judge(list: &[u8], count: u64, reference: Option<&Reference>, state: &mut ImaState) -> Result<(), BadIma> {
    let mut learned = Keyring::default();
    for der in &state.keys {
        learned.keys_from(der);
    }
    let mut list = entries(list)?.take(usize::try_from(count).unwrap_or(usize::MAX));
    let mut judge = Judge { reference, learned, state };
    let mut ahead: Vec<(Entry<'_>, Option<Probe>)> = Vec::with_capacity(AHEAD);
    loop {
        let mut ended = Ok(());
        for entry in list.by_ref().take(AHEAD) {
            match entry {
                Ok(entry) => {
                    let probe = reference.and_then(|reference| reference.probe(&entry));
                    ahead.push((entry, probe));
                }
                Err(e) => ended = Err(e),
            }
        }
        ahead.iter().for_each(|(entry, probe)| judge.entry(entry, *probe));
        ended?;
        if ahead.len() < AHEAD {
            return Ok(());
        }
        ahead.clear();
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
    fn entry(&mut self, entry: &Entry<'_>, probe: Option<Probe>) {
        let index = self.state.entries;
        self.state.entries = index.saturating_add(1);
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
        let found = reference.find(entry, probe);
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
        if entry.signature.is_empty() {
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
