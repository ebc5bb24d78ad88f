//! Why a verdict was a no, as the verifier tells it to its operators, to auditors, and to the host that was refused.
//!
//! Made by the verifier; text and JSON are made from it here, on both sides by the same code. It decides nothing. What the PCRs do not vouch
//! for is marked with a `?`.

mod words;

use serde::{Deserialize, Serialize};

use crate::facts::{Change, Content, EventChange};
use crate::limits;

/// An explanation. Text and JSON are made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Verdict id.
    pub verdict: String,
    /// Host id.
    pub host: String,
    /// The host's label. Not an identity.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_name: Option<String>,
    /// `attest` or `release`.
    pub purpose: String,
    /// When it was decided, milliseconds since 1970.
    pub time_ms: i64,
    /// What was decided.
    pub allow: bool,
    /// Checks that failed, by id, in their order.
    pub failed: Vec<String>,
    /// Each reason against, with what is behind it.
    pub findings: Vec<Finding>,
    /// Events and files that nothing accepts and that no reason names: they would be the next ones.
    pub also: Vec<Finding>,
    /// How many more there are than `findings` and `also` show.
    pub more: usize,
    /// What changed since the host's last good boot.
    pub since: Since,
    /// Commands that would accept this or mend it; each once.
    pub commands: Vec<String>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// One thing that stands against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Who said no: `appraisal`, `host-policy`, `workload-policy` or `verifier`; empty in `also`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub source: String,
    /// The check's or reason's id.
    pub id: String,
    /// One sentence.
    pub message: String,
    /// Event, file or field, as the verdict names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// What was found.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub got: Option<String>,
    /// What was expected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub want: Option<String>,
    /// The event behind it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event: Option<EventWords>,
    /// The file behind it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<FileWords>,
    /// How many values are accepted in its place: of the event's PCR and type, or of the file's path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accepted: Option<usize>,
    /// The nearest of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nearest: Option<Nearest>,
    /// Packages and certificates that it belongs to, as far as they are known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub belongs_to: Vec<String>,
    /// Commands, or what to do where no command does it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub fix: Vec<String>,
}

/// An event of the boot log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventWords {
    /// Index in the log.
    pub index: u32,
    /// PCR.
    pub pcr: u8,
    /// Type name. Not measured.
    #[serde(rename = "type")]
    pub kind: String,
    /// SHA-256 digest, hex.
    pub digest: String,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<Content>,
}

/// A file of the IMA list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileWords {
    /// Index in the list.
    pub entry: u64,
    /// Path as the kernel logged it.
    pub path: String,
    /// `alg:hex`.
    pub digest: String,
}

/// An accepted value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// The reference set.
    pub set: String,
    /// Digest: hex of an event, `alg:hex` of a file.
    pub digest: String,
    /// What it is; absent in sets that were stored without.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<Content>,
    /// From it to what was found: `dbx 371 -> 420 entries`.
    pub difference: String,
}

/// What changed since the host's last good boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Since {
    /// A bundle holds one boot.
    NotInThisBundle,
    /// This verifier never accepted this host before.
    NoEarlierBoot,
    /// This evidence holds no boot log that the PCRs vouch for.
    NotAuthentic,
    /// The two logs, compared.
    Compared {
        /// The verdict that accepted the earlier one.
        verdict: String,
        /// When, milliseconds since 1970.
        time_ms: i64,
        /// Facts that changed.
        facts: Vec<Change>,
        /// The first events that only one of them has.
        events: Vec<EventChange>,
        /// How many more events there are.
        more_events: usize,
    },
}

impl Explanation {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        words::words(self)
    }

    /// JSON of at most [`limits::EXPLANATION`] bytes, for the host: what says least is left out, and counted.
    #[must_use]
    pub fn to_json(mut self) -> Option<Vec<u8>> {
        loop {
            let json = serde_json::to_vec(&self).ok()?;
            if json.len() <= limits::EXPLANATION {
                return Some(json);
            }
            if !self.shorten() {
                return None;
            }
        }
    }

    /// Reads what [`Explanation::to_json`] made; none for anything else.
    #[must_use]
    pub fn from_json(json: &[u8]) -> Option<Self> {
        if json.len() > limits::EXPLANATION { None } else { serde_json::from_slice(json).ok() }
    }

    /// Leaves the second half of one list out: what no reason names first, the reasons themselves last. False when nothing is left to leave out.
    fn shorten(&mut self) -> bool {
        if let Since::Compared { facts, events, more_events, .. } = &mut self.since {
            if halve(events, more_events) {
                return true;
            }
            if self.also.is_empty() && facts.len() > 1 {
                facts.truncate(facts.len() / 2);
                return true;
            }
        }
        if halve(&mut self.also, &mut self.more) || halve(&mut self.findings, &mut self.more) {
            let fixes: Vec<&String> = self.findings.iter().chain(&self.also).flat_map(|finding| &finding.fix).collect();
            self.commands.retain(|command| fixes.contains(&command));
            return true;
        }
        false
    }
}

/// Keeps the first half of a list and counts the rest. False for an empty list.
fn halve<T>(list: &mut Vec<T>, more: &mut usize) -> bool {
    let keep = list.len() / 2;
    *more = more.saturating_add(list.len().saturating_sub(keep));
    let some = !list.is_empty();
    list.truncate(keep);
    some
}

/// Text with control characters escaped: what comes from elsewhere must not steer the reader's terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests;
