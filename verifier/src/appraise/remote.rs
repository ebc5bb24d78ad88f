//! What an engine elsewhere said about the host policy, as recorded in the context of a verdict.
//!
//! It never stands alone: the embedded engine decides the same, and only where both agree on `allow` and on the ids of the reasons does it
//! count. An auditor who appraises the record again makes the same comparison.

use std::collections::BTreeSet;

use countersign_policy::verdict::{Decision, RemoteBasis, Source};
use countersign_policy::{decision, deny, reason};
use minicbor::{Decode, Encode};

/// Reason: the engines differ on `allow` or on the ids of the reasons.
pub const DISAGREES: &str = "opa-disagrees";

/// A decision of an engine elsewhere. That it was given is the verifier's word.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RemoteDecision {
    /// Engine and version, for example `opa 1.21.3`; `opa unknown` when it said nothing.
    #[n(0)]
    pub engine: String,
    /// Name of its bundle.
    #[n(1)]
    pub bundle: String,
    /// Revision of that bundle, as asked for and, in an answer, as stated.
    #[n(2)]
    pub revision: String,
    /// Its own id of the decision.
    #[n(3)]
    pub decision_id: Option<String>,
    /// What it came to.
    #[n(4)]
    pub answer: RemoteAnswer,
}

/// What asking an engine elsewhere came to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum RemoteAnswer {
    /// The policy's verdict document, JSON.
    #[n(0)]
    Document(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// No usable answer.
    #[n(1)]
    Failed {
        /// Reason id.
        #[n(0)]
        id: String,
        /// One sentence.
        #[n(1)]
        message: String,
    },
}

impl RemoteDecision {
    /// How a verdict names it.
    pub(super) fn basis(&self) -> RemoteBasis {
        RemoteBasis {
            engine: self.engine.clone(),
            bundle: self.bundle.clone(),
            revision: self.revision.clone(),
            decision_id: self.decision_id.clone(),
        }
    }

    /// The decision that counts, where `own` is the embedded engine's.
    pub(super) fn with(&self, own: Decision) -> Decision {
        let document = match &self.answer {
            RemoteAnswer::Failed { id, message } => return deny(Source::HostPolicy, id, message.clone()),
            RemoteAnswer::Document(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
        };
        // OPA knows no expiry of ours.
        if own.reasons.iter().any(|own| own.id == reason::EXPIRED) {
            return own;
        }
        let mut theirs = decision(document, Source::HostPolicy);
        if theirs.allow == own.allow && ids(&theirs) == ids(&own) {
            theirs.obligations = theirs.obligations.stricter(&own.obligations);
            return theirs;
        }
        // No answer of the documented shape is no opinion that could differ.
        if ids(&theirs).contains(reason::TYPE) || ids(&theirs).contains(reason::OBLIGATION) {
            return theirs;
        }
        let words = |decision: &Decision| {
            let list = ids(decision).into_iter().collect::<Vec<_>>().join(", ");
            if decision.allow { "allow".to_owned() } else { format!("deny ({list})") }
        };
        let message = format!("{} says {}, the embedded engine says {}", self.engine, words(&theirs), words(&own));
        let mut denied = deny(Source::HostPolicy, DISAGREES, message);
        denied.reasons.extend(theirs.reasons);
        denied
    }
}

fn ids(decision: &Decision) -> BTreeSet<&str> {
    decision.reasons.iter().map(|reason| reason.id.as_str()).collect()
}
