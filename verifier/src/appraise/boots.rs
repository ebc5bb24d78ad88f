//! Boot logs that were read before: a host sends the same one until it boots again, and what is read from it depends on nothing else.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{PcrBank, PcrSet};

use super::authentic::Authentic;
use super::replayed::Booted;

/// Bytes that are kept; when there are more, all are forgotten and read again as they come.
const KEPT: usize = 16 << 20;
/// Bytes that a log counts beside its own: what was read from it.
const READ: usize = 16 << 10;

/// What a boot log leads to, and all that this depends on.
#[derive(Debug)]
pub(super) struct Read {
    wanted: Vec<(HashAlg, PcrSet)>,
    /// PCR 5 of each bank: what firmware does not log there is found by its value.
    pcr5: Vec<Option<Digest>>,
    event_log: Vec<u8>,
    systemd_log: Option<Vec<u8>>,
    pub(super) banks: Vec<PcrBank>,
    pub(super) boot: Booted,
}

#[derive(Default)]
struct Kept {
    logs: HashMap<u64, Arc<Read>>,
    bytes: usize,
}

static KEEPER: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Read {
    pub(super) fn new(authentic: &Authentic, wanted: &[(HashAlg, PcrSet)], banks: Vec<PcrBank>, boot: Booted) -> Self {
        Self {
            pcr5: pcr5(authentic, wanted).collect(),
            wanted: wanted.to_vec(),
            event_log: authentic.evidence.event_log.clone().unwrap_or_default(),
            systemd_log: authentic.evidence.systemd_log.clone(),
            banks,
            boot,
        }
    }

    /// Whether it is the answer for this evidence: byte for byte, no digest stands for the log.
    fn answers(&self, authentic: &Authentic, wanted: &[(HashAlg, PcrSet)]) -> bool {
        let evidence = &authentic.evidence;
        self.wanted == wanted
            && pcr5(authentic, wanted).eq(self.pcr5.iter().copied())
            && evidence.event_log.as_ref() == Some(&self.event_log)
            && evidence.systemd_log == self.systemd_log
    }

    fn bytes(&self) -> usize {
        self.event_log.len().saturating_add(self.systemd_log.as_ref().map_or(0, Vec::len)).saturating_add(READ)
    }
}

/// What was read from this log before.
pub(super) fn find(authentic: &Authentic, wanted: &[(HashAlg, PcrSet)]) -> Option<Arc<Read>> {
    let kept = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    let read = kept.logs.get(&place(authentic)).map(Arc::clone)?;
    drop(kept);
    read.answers(authentic, wanted).then_some(read)
}

/// Keeps what was read from a log.
pub(super) fn keep(authentic: &Authentic, read: Read) -> Arc<Read> {
    let (read, place) = (Arc::new(read), place(authentic));
    let mut kept = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    let before = kept.logs.get(&place).map_or(0, |before| before.bytes());
    kept.bytes = kept.bytes.saturating_sub(before).saturating_add(read.bytes());
    if kept.bytes > KEPT {
        kept.logs.clear();
        kept.bytes = read.bytes();
    }
    kept.logs.insert(place, Arc::clone(&read));
    read
}

/// Where a log is kept: by the firmware's PCRs, which are the same as long as the log is.
fn place(authentic: &Authentic) -> u64 {
    let mut hasher = HASHER.build_hasher();
    for pcr in authentic.evidence.pcrs.iter().flat_map(|bank| &bank.pcrs).filter(|pcr| pcr.index < 8) {
        pcr.value.hash(&mut hasher);
    }
    hasher.finish()
}

fn pcr5<'a>(authentic: &'a Authentic, wanted: &'a [(HashAlg, PcrSet)]) -> impl Iterator<Item = Option<Digest>> + 'a {
    wanted.iter().map(|(alg, _)| authentic.pcr(*alg, 5))
}
