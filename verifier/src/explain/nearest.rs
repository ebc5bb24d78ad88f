//! The accepted value that is nearest to what was measured.

use std::collections::{BTreeMap, BTreeSet};

use countersign_policy::input::{Reference, ReferenceValue};
use countersign_policy::verdict::{Reason, Source};

use super::boots::{events, wanted};
use super::{EventWords, Finding, Nearest, SHOWN};
use crate::appraise::Context;

const BANK: &str = "sha256";

/// Values of one PCR and event type.
type Kind<'s> = (u8, &'s str);

/// Reference values made for the search, beside the events of one boot.
pub(super) struct Search<'s> {
    values: BTreeMap<Kind<'s>, Vec<&'s ReferenceValue>>,
    referenced: BTreeSet<u8>,
    accepted: BTreeSet<(u8, &'s str, &'s str)>,
    events: &'s [EventWords],
    measured: BTreeSet<(u8, &'s str, &'s str)>,
}

/// The index in a subject that begins with `event N`: as policies and the appraisal name events.
pub(super) fn event_index(subject: &str) -> Option<u32> {
    let rest = subject.strip_prefix("event ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

impl<'s> Search<'s> {
    pub(super) fn new(reference: &'s Reference, events: &'s [EventWords]) -> Self {
        let mut values: BTreeMap<Kind<'s>, Vec<&ReferenceValue>> = BTreeMap::new();
        let (mut referenced, mut accepted) = (BTreeSet::new(), BTreeSet::new());
        for value in reference.values.iter().filter(|value| value.bank == BANK) {
            values.entry((value.pcr, &value.kind)).or_default().push(value);
            referenced.insert(value.pcr);
            accepted.insert((value.pcr, value.kind.as_str(), value.digest.as_str()));
        }
        let measured = events.iter().map(|event| (event.pcr, event.kind.as_str(), event.digest.as_str())).collect();
        Self { values, referenced, accepted, events, measured }
    }

    /// Events of PCRs that have reference values, and that are not among them.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &'s EventWords> {
        self.events.iter().filter(|event| {
            self.referenced.contains(&event.pcr)
                && !self.accepted.contains(&(event.pcr, event.kind.as_str(), event.digest.as_str()))
        })
    }

    /// Says what an event is, and what would be accepted in its place.
    pub(super) fn explain(&self, event: &EventWords, finding: &mut Finding) {
        if finding.subject.is_none() {
            finding.subject = Some(format!("event {} (PCR {}, {})", event.index, event.pcr, event.kind));
        }
        if self.referenced.contains(&event.pcr) {
            let all = self.values.get(&(event.pcr, event.kind.as_str())).map(Vec::as_slice).unwrap_or_default();
            finding.accepted = Some(all.len());
            finding.nearest = self.nearest(event);
        }
        if event.kind == "EV_EFI_VARIABLE_AUTHORITY"
            && let Some(content) = event.content.as_ref().filter(|content| content.text.contains("CN="))
        {
            finding.belongs_to.push(format!("certificate {} of {}", content.text, content.name));
        }
        finding.event = Some(event.clone());
    }

    /// Of the values of the same PCR and type: of the same variable or file where the event has one; first those that this boot did not measure,
    /// since one of them is what stood in its place; then the most alike.
    pub(super) fn nearest(&self, event: &EventWords) -> Option<Nearest> {
        let all = self.values.get(&(event.pcr, event.kind.as_str()))?;
        let unused =
            |value: &ReferenceValue| !self.measured.contains(&(value.pcr, value.kind.as_str(), value.digest.as_str()));
        if all.iter().any(|value| value.digest == event.digest) {
            return None;
        }
        let rank = |value: &&&ReferenceValue| {
            let likeness = match (&value.content, &event.content) {
                (Some(was), Some(now)) => was.likeness(now)?,
                _ => 0,
            };
            Some((unused(value), likeness))
        };
        let ranked = all.iter().filter_map(|value| Some((rank(&value)?, *value)));
        // The first of equals, so that the same sets always give the same value.
        let (rank, value) = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
        if rank.1 == 0 {
            // Nothing says what either is: only the one value that is missing can be said to stand in its place.
            let mut missing = all.iter().filter(|value| unused(value));
            if missing.next().is_none() || missing.next().is_some() {
                return None;
            }
        }
        let difference = match (&value.content, &event.content) {
            (Some(was), Some(now)) => was.difference(now),
            _ => "another digest".to_owned(),
        };
        Some(Nearest {
            set: value.name.clone(),
            digest: value.digest.clone(),
            content: value.content.clone(),
            difference,
        })
    }
}

/// Replaces what the host policy wanted of an event, some of the accepted digests, by the nearest accepted value. Only where the reason names an
/// event and its digest; the decision stays the policy's.
pub(crate) fn explain_wants(reasons: &mut [Reason], reference: &Reference, log: Option<&[u8]>, context: &Context) {
    let about_event = |reason: &Reason| {
        let subject = reason.subject.as_deref().filter(|_| reason.source == Source::HostPolicy);
        subject.and_then(event_index).filter(|_| reason.got.is_some())
    };
    if !reasons.iter().any(|reason| about_event(reason).is_some()) {
        return;
    }
    let events = events(log.unwrap_or_default(), &wanted(&context.challenge.selection));
    let search = Search::new(reference, &events);
    let named = reasons.iter_mut().filter_map(|reason| Some((about_event(reason)?, reason)));
    for (index, reason) in named.take(SHOWN) {
        let event = events.iter().find(|event| event.index == index && reason.got.as_ref() == Some(&event.digest));
        let Some(nearest) = event.and_then(|event| search.nearest(event)) else { continue };
        let content = nearest.content.as_ref().map_or_else(String::new, |content| format!(" {}", content.words()));
        reason.want = Some(format!("{}{content} (set {}): {}", nearest.digest, nearest.set, nearest.difference));
    }
}
