//! A verdict as the host shows it to people. The document is the verifier's (`docs/formats.md`); unknown fields are kept.

use countersign_wire::answer::Answer;
use countersign_wire::explanation::{Explanation, printable};
use serde::{Deserialize, Serialize};

/// Reasons of one kind that are shown; the verdict at the verifier has them all.
const SHOWN: usize = 3;

/// What of a verdict is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Verdict id.
    pub id: String,
    /// `attest` or `release`.
    pub purpose: String,
    /// Why not.
    pub reasons: Vec<Reason>,
    /// The verifier's explanation, where it sent one: the text of `verifier explain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Box<Explanation>>,
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
    /// What an answer that denies is printed as: its verdict's reasons and its explanation, if that is of this verdict.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        let mut denial = Self::read(&answer.verdict);
        let explanation = answer.explanation.as_deref().and_then(Explanation::from_json);
        denial.explanation = explanation.filter(|explanation| explanation.verdict == denial.id).map(Box::new);
        denial
    }

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
            explanation: None,
        })
    }

    /// The reasons by kind; those of which there are fewest first: one switch that is off says more than a hundred events that follow from it.
    fn kinds(&self) -> Vec<Vec<&Reason>> {
        let mut kinds: Vec<Vec<&Reason>> = Vec::new();
        for reason in &self.reasons {
            let same = |kind: &&mut Vec<&Reason>| {
                kind.first().is_some_and(|first| (&first.source, &first.id) == (&reason.source, &reason.id))
            };
            match kinds.iter_mut().find(same) {
                Some(kind) => kind.push(reason),
                None => kinds.push(vec![reason]),
            }
        }
        kinds.sort_by_key(Vec::len);
        kinds
    }

    /// The explanation; without one the reasons in words, a block for each kind.
    #[must_use]
    pub fn words(&self) -> String {
        match &self.explanation {
            Some(explanation) => format!("{}\n", explanation.words()),
            None => self.reasons_in_words(),
        }
    }

    fn reasons_in_words(&self) -> String {
        let mut out = format!("verdict {}\n", printable(&self.id));
        for kind in self.kinds() {
            let mut message = None;
            for reason in kind.iter().take(SHOWN) {
                if message != Some(&reason.message) {
                    message = Some(&reason.message);
                    let (id, source) = (printable(&reason.id), printable(&reason.source));
                    out.push_str(&format!("  {id} ({source}): {}\n", printable(&reason.message)));
                }
                for (name, value) in [("where", &reason.subject), ("got", &reason.got), ("want", &reason.want)] {
                    if let Some(value) = value {
                        out.push_str(&format!("    {name:5} {}\n", printable(value)));
                    }
                }
            }
            let more = kind.len().saturating_sub(SHOWN);
            if more > 0 {
                out.push_str(&format!("    and {more} more: verifier explain {}\n", printable(&self.id)));
            }
        }
        out
    }

    /// What to do: the hint of the first reason that has one, in the order in which they are shown; else the explanation's first command.
    #[must_use]
    pub fn hint(&self) -> String {
        let first = self.kinds().into_iter().flatten().find_map(|reason| reason.hint.clone());
        let first = first.or_else(|| self.explanation.as_ref()?.commands.first().cloned());
        first.unwrap_or_else(|| format!("verifier explain {}", self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(id: &str, n: usize) -> Reason {
        Reason {
            source: "host-policy".into(),
            id: id.into(),
            message: format!("{id} failed"),
            subject: Some(format!("event {n}")),
            got: None,
            want: None,
            hint: Some(format!("mend {id}")),
        }
    }

    #[test]
    fn what_says_most_comes_first_and_the_rest_is_counted() {
        let mut reasons: Vec<Reason> = (0..9).map(|n| reason("boot-chain", n)).collect();
        reasons.push(reason("secure-boot", 9));
        let denial = Denial { id: "7f".into(), purpose: "release".into(), reasons, explanation: None };
        let words = denial.words();
        assert!(words.find("secure-boot (host-policy)").unwrap() < words.find("boot-chain (host-policy)").unwrap());
        assert_eq!(words.matches("boot-chain failed").count(), 1, "{words}");
        assert_eq!(words.matches("where").count(), 1 + SHOWN, "{words}");
        assert!(words.ends_with("    and 6 more: verifier explain 7f\n"), "{words}");
        assert_eq!(denial.hint(), "mend secure-boot");
    }
}
