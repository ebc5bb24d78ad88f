//! How the verifier says no before there is a verdict: an HTTP error with this JSON body.

use serde::{Deserialize, Serialize};

/// Body of every HTTP answer that is not 2xx (media type `application/problem+json`, RFC 9457 member names).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable identifier, for example `challenge-expired`.
    #[serde(rename = "type")]
    pub id: String,
    /// One sentence: what is wrong.
    pub title: String,
    /// The values involved: got, want.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do about it, as a command where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
