//! Why a verdict was a no: the event or file behind each reason, the nearest accepted value, what changed since the last good boot, and
//! the command that would accept it or mend it.
//!
//! Offline and pure: from a verdict document and, where the evidence was signed, the record that it was made from. Nothing here
//! decides. What the PCRs do not vouch for is marked with a `?`.

mod boots;
mod bundle;
mod files;
mod fixes;
mod nearest;

pub use bundle::explain_bundle;
pub use countersign_wire::explanation::{EventWords, Explanation, FileWords, Finding, Nearest, Since};
pub(crate) use nearest::explain_wants;

use std::collections::BTreeSet;

use countersign_policy::input::Reference;
use countersign_wire::eventlog::PcrSet;
use countersign_wire::record::Record;
use serde::Deserialize;

use crate::appraise::Context;
use crate::store::from_cbor;

/// Things of one kind that are explained one by one.
const SHOWN: usize = 32;

/// Where the last good boot comes from.
#[derive(Debug)]
pub(crate) enum Before {
    /// Nobody knows: this is a bundle.
    Bundle,
    /// There is none.
    Nothing,
    /// The newest earlier verdict that allowed: its id, its time, and what it was made from.
    Verdict { id: String, time_ms: i64, basis: Box<Basis> },
}

/// What a verdict was made from.
#[derive(Debug)]
pub(crate) struct Basis {
    pub(crate) evidence: Vec<u8>,
    pub(crate) context: Context,
}

impl Basis {
    /// That of a record.
    pub(crate) fn of(record: Record) -> Result<Self, crate::error::Error> {
        Ok(Self { context: from_cbor(&record.context)?, evidence: record.evidence })
    }
}

/// All that an explanation is made from.
#[derive(Debug)]
pub(crate) struct Material {
    /// The verdict document.
    pub(crate) document: Vec<u8>,
    /// What it was made from; none where nobody's TPM signed the evidence.
    pub(crate) basis: Option<Basis>,
    /// The IMA reference sets that the context names: documents in their order.
    pub(crate) sets: Vec<Vec<u8>>,
    /// The last good boot.
    pub(crate) before: Before,
    /// Why the host is in its state now, where the database knows.
    pub(crate) state_reason: Option<String>,
}

/// The part of a verdict document that is explained.
#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    id: String,
    host: String,
    purpose: String,
    time_ms: i64,
    allow: bool,
    checks: Vec<DocumentCheck>,
    reasons: Vec<DocumentReason>,
}

#[derive(Debug, Deserialize)]
struct DocumentCheck {
    id: String,
    result: String,
}

#[derive(Debug, Deserialize)]
struct DocumentReason {
    source: String,
    id: String,
    message: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    got: Option<String>,
    #[serde(default)]
    want: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

impl Document {
    fn read(document: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(document).map_err(|e| format!("the verdict document: {e}"))
    }

    /// Whether the PCRs vouch for the boot log: exactly when the appraisal found that it leads to them.
    fn vouches(&self) -> bool {
        self.passed("boot-log") && self.passed("pcr-values")
    }

    fn passed(&self, id: &str) -> bool {
        self.checks.iter().any(|check| check.id == id && check.result == "pass")
    }
}

/// The boot log in a verdict's evidence and the PCRs of the SHA-256 bank that vouch for it; `None` where none do.
///
/// # Errors
/// The document cannot be read, in words.
pub(crate) fn vouched_log(document: &[u8], basis: &Basis) -> Result<Option<(Vec<u8>, PcrSet)>, String> {
    let document = Document::read(document)?;
    Ok(boots::Boot::of(basis).filter(|_| document.vouches()).map(boots::Boot::into_log))
}

/// Explains a verdict.
///
/// # Errors
/// The document cannot be read, in words.
pub(crate) fn explain(material: &Material) -> Result<Explanation, String> {
    let document = Document::read(&material.document)?;
    let context = material.basis.as_ref().map(|basis| &basis.context);
    let boot = material.basis.as_ref().and_then(boots::Boot::of);
    let vouched = document.vouches();
    let reference = context.and_then(|context| serde_json::from_slice::<Reference>(&context.reference).ok());
    let reference = reference.unwrap_or_default();
    let mut notes = Vec::new();
    let mut findings: Vec<Finding> = document.reasons.iter().map(Finding::from).collect();
    let mut also = Vec::new();
    let mut more = 0usize;
    if let Some(boot) = &boot {
        let events = boot.events();
        let search = nearest::Search::new(&reference, &events);
        let mut named = Vec::new();
        let mut replaced = BTreeSet::new();
        for finding in &mut findings {
            let Some(event) = finding.subject.as_deref().and_then(nearest::event_index) else { continue };
            let Some(event) = events.iter().find(|known| known.index == event) else { continue };
            named.push(event.index);
            replaced.insert(format!("PCR {}", event.pcr));
            if named.len() <= SHOWN {
                search.explain(event, finding);
            }
        }
        // Where another thing was measured, the accepted one is missing: that is the same fact, and the event says more of it.
        findings.retain(|finding| {
            finding.id != "pcr-complete" || finding.subject.as_ref().is_none_or(|pcr| !replaced.contains(pcr))
        });
        if !vouched && !named.is_empty() {
            notes.push("the log does not lead to the quoted PCRs: what it says of an event proves nothing".to_owned());
        }
        if vouched && !document.allow {
            for event in search.unknown().filter(|event| !named.contains(&event.index)) {
                let finding = Finding {
                    id: "boot-event".into(),
                    message: "measured, and not among the reference values".into(),
                    ..Finding::default()
                };
                put(&mut also, &mut more, finding, |finding| search.explain(event, finding));
            }
        }
        if vouched && reference.values.iter().all(|value| value.content.is_none()) && !reference.values.is_empty() {
            notes.push("the reference values were stored without words: add the sets again to see them".to_owned());
        }
    }
    if let Some(Basis { evidence, context }) = &material.basis
        && !document.allow
    {
        let sets = context.ima.as_ref().map(|ima| ima.sets.as_slice()).unwrap_or_default();
        if let Some(state) = crate::appraise::ima_state(evidence, context) {
            files::explain(&state, sets, &material.sets, &mut findings, |finding| {
                put(&mut also, &mut more, finding, |_| ());
            });
        }
        for findings in [&mut findings, &mut also] {
            files::packages(findings, sets, &material.sets);
        }
    }
    let total = findings.len();
    let grouped = shorten(findings);
    more = more.saturating_add(total.saturating_sub(grouped.len()));
    let mut findings = grouped;
    let names = context.map(|context| context.host.name.clone());
    let place = fixes::Place { host: &document.host, name: names.as_deref(), verdict: &document.id };
    let hint = |finding: &Finding| {
        let same = |reason: &&DocumentReason| reason.id == finding.id && reason.message == finding.message;
        document.reasons.iter().find(same).and_then(|reason| reason.hint.clone())
    };
    let off = findings.iter().chain(&also).any(fixes::secure_boot_off);
    for finding in findings.iter_mut().chain(&mut also) {
        finding.fix = fixes::of(finding, hint(finding), &place, off);
    }
    if findings.iter().any(|finding| finding.id == "host-suspended")
        && let Some(reason) = &material.state_reason
    {
        notes.push(format!("the host is suspended now because: {reason}"));
    }
    if material.basis.is_none() {
        notes
            .push("the host's TPM did not sign this evidence, so it was not kept: anybody may have sent it".to_owned());
    }
    let mut commands: Vec<String> = Vec::new();
    for fix in findings.iter().chain(&also).flat_map(|finding| &finding.fix) {
        if !commands.contains(fix) {
            commands.push(fix.clone());
        }
    }
    let failed = document.checks.iter().filter(|check| check.result == "fail").map(|check| check.id.clone()).collect();
    let since = boots::since(boot.as_ref().filter(|_| vouched), &material.before);
    Ok(Explanation {
        failed,
        host_name: names,
        verdict: document.id,
        host: document.host,
        purpose: document.purpose,
        time_ms: document.time_ms,
        allow: document.allow,
        findings,
        also,
        more,
        since,
        commands,
        notes,
    })
}

/// Adds a finding while there is room.
fn put(list: &mut Vec<Finding>, more: &mut usize, mut finding: Finding, explain: impl FnOnce(&mut Finding)) {
    if list.len() < SHOWN {
        explain(&mut finding);
        list.push(finding);
    } else {
        *more = more.saturating_add(1);
    }
}

/// The reasons of which there are fewest first, at most [`SHOWN`] of an id: one switch that is off says more than the events that follow from it.
fn shorten(findings: Vec<Finding>) -> Vec<Finding> {
    let mut kinds: Vec<Vec<Finding>> = Vec::new();
    for finding in findings {
        let same = |kind: &&mut Vec<Finding>| {
            kind.first().is_some_and(|first| (&first.source, &first.id) == (&finding.source, &finding.id))
        };
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.push(finding),
            None => kinds.push(vec![finding]),
        }
    }
    // What is missing says less than what is there.
    kinds.sort_by_key(|kind| (kind.len(), kind.first().is_some_and(|first| first.id == "pcr-complete")));
    for kind in &mut kinds {
        // Those that say most first, then in the order of the log.
        kind.sort_by_key(|found| (found.nearest.is_none(), found.event.as_ref().map(|event| event.index)));
    }
    kinds.into_iter().flat_map(|kind| kind.into_iter().take(SHOWN)).collect()
}

impl From<&DocumentReason> for Finding {
    fn from(reason: &DocumentReason) -> Self {
        Self {
            source: reason.source.clone(),
            id: reason.id.clone(),
            message: reason.message.clone(),
            subject: reason.subject.clone(),
            got: reason.got.clone(),
            want: reason.want.clone(),
            ..Self::default()
        }
    }
}
