//! A verdict as the host shows it to people. The document is the verifier's (`docs/formats.md`); unknown fields are kept.

use serde::{Deserialize, Serialize};

use crate::out::printable;

/// What of a verdict is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Verdict id.
    pub id: String,
    /// `attest` or `release`.
    pub purpose: String,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// One reason against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Who says so.
    pub source: String,
    /// Stable id.
    pub id: String,
    /// One sentence.
    pub message: String,
    /// Event, file or field behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub got: Option<String>,
    /// What was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub want: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Denial {
    /// Reads what is printed out of a verdict document; one that cannot be read is shown as such.
    #[must_use]
    pub fn read(document: &[u8]) -> Self {
        serde_json::from_slice(document).unwrap_or_else(|e| Self {
            id: String::new(),
            purpose: "request".into(),
            reasons: vec![Reason {
                source: "verifier".into(),
                id: "unreadable-verdict".into(),
                message: format!("the verdict document cannot be read: {e}"),
                subject: None,
                got: None,
                want: None,
                hint: None,
            }],
        })
    }

    /// The reasons in words, one block each.
    #[must_use]
    pub fn words(&self) -> String {
        let mut out = format!("verdict {}\n", printable(&self.id));
        for reason in &self.reasons {
            out.push_str(&format!(
                "  {} ({}): {}\n",
                printable(&reason.id),
                printable(&reason.source),
                printable(&reason.message)
            ));
            for (name, value) in [("where", &reason.subject), ("got", &reason.got), ("want", &reason.want)] {
                if let Some(value) = value {
                    out.push_str(&format!("    {name:5} {}\n", printable(value)));
                }
            }
        }
        out
    }

    /// What to do: the first reason's hint.
    #[must_use]
    pub fn hint(&self) -> String {
        let first = self.reasons.iter().find_map(|reason| reason.hint.clone());
        first.unwrap_or_else(|| format!("verifier verdict show {}", self.id))
    }
}
