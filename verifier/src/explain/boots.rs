//! The boot behind a verdict, and how it differs from the last good one.

use countersign_tpm::alg::HashAlg;
use countersign_wire::cbor;
use countersign_wire::eventlog::{EventLog, Examined, PcrSet, Registers};
use countersign_wire::evidence::Evidence;
use countersign_wire::facts::{Content, Facts, diff};
use countersign_wire::systemd_log;

use super::{Basis, Before, EventWords, SHOWN, Since};

/// A boot log with the PCRs that were asked for.
#[derive(Debug)]
pub(super) struct Boot {
    log: Vec<u8>,
    userspace: Vec<systemd_log::Record>,
    wanted: Vec<(HashAlg, PcrSet)>,
}

impl Boot {
    /// The boot log in a verdict's evidence; none without one.
    pub(super) fn of(basis: &Basis) -> Option<Self> {
        let evidence: Evidence = cbor::decode(&basis.evidence).ok()?;
        let userspace = evidence.systemd_log.as_deref().and_then(|bytes| systemd_log::parse(bytes).ok());
        Some(Self {
            log: evidence.event_log?,
            userspace: userspace.unwrap_or_default(),
            wanted: wanted(&basis.context.challenge.selection),
        })
    }

    /// The log, and which PCRs of the SHA-256 bank were asked for.
    pub(super) fn into_log(self) -> (Vec<u8>, PcrSet) {
        let asked = self.wanted.iter().find(|(alg, _)| *alg == HashAlg::Sha256).map(|(_, pcrs)| *pcrs);
        (self.log, asked.unwrap_or(PcrSet::NONE))
    }

    /// Its events. Of a log that is refused, what it claims, with nothing vouched for.
    pub(super) fn events(&self) -> Vec<EventWords> {
        events(&self.log, &self.wanted)
    }

    /// What comes of the log, judged in the PCRs that were asked for.
    fn examine<T>(&self, with: impl FnOnce(&Examined<'_, '_>, &Facts) -> T) -> Option<T> {
        let log = EventLog::parse(&self.log).ok()?;
        let examined = log.examine(&self.wanted, Registers::Tpm).ok()?;
        let facts = Facts::of(&examined, &self.userspace);
        Some(with(&examined, &facts))
    }
}

/// The PCRs of a selection, by bank.
pub(super) fn wanted(selection: &[countersign_wire::challenge::Bank]) -> Vec<(HashAlg, PcrSet)> {
    let bank = |bank: &countersign_wire::challenge::Bank| {
        Some((HashAlg::from_id(bank.alg)?, bank.pcrs.iter().copied().collect::<PcrSet>()))
    };
    selection.iter().filter_map(bank).collect()
}

/// Every event of a log that extends one of these PCRs and has a SHA-256 digest.
pub(super) fn events(log: &[u8], wanted: &[(HashAlg, PcrSet)]) -> Vec<EventWords> {
    let Ok(log) = EventLog::parse(log) else { return Vec::new() };
    let words = |event: &countersign_wire::eventlog::Event<'_>, pcr: u8, part: Option<&[u8]>| {
        let digest = hex::encode(event.digest(HashAlg::Sha256)?);
        let (index, kind) = (event.index, event.kind.to_string());
        Some(EventWords { index, pcr, kind, digest, content: Content::of(event, part) })
    };
    match log.examine(wanted, Registers::Tpm) {
        Ok(examined) => examined.events().filter_map(|(event, pcr, part)| words(event, pcr, part)).collect(),
        Err(_) => {
            let claimed = log.events.iter().filter_map(|event| words(event, u8::try_from(event.pcr).ok()?, None));
            claimed.collect()
        }
    }
}

/// What changed since the last good boot. `now` is a boot that the PCRs vouch for.
pub(super) fn since(now: Option<&Boot>, before: &Before) -> Since {
    let (id, time_ms, basis) = match before {
        Before::Bundle => return Since::NotInThisBundle,
        Before::Nothing => return Since::NoEarlierBoot,
        Before::Verdict { id, time_ms, basis } => (id, *time_ms, basis),
    };
    let Some(now) = now else { return Since::NotAuthentic };
    let Some(was) = Boot::of(basis) else { return Since::NoEarlierBoot };
    let changes = was.examine(|first, before| now.examine(|second, after| diff((first, before), (second, after))));
    let Some(changes) = changes.flatten() else { return Since::NotAuthentic };
    let mut events = changes.events;
    let more_events = events.len().saturating_sub(SHOWN);
    events.truncate(SHOWN);
    Since::Compared { verdict: id.clone(), time_ms, facts: changes.facts, events, more_events }
}
