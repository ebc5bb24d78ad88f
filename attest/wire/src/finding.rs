//! Findings: what a run's monitor saw that the workload's policy has to judge (DESIGN.md section 10).
//!
//! A finding is what the host's own code says. It stands in the run log, so the next quote tells it with the TPM's authority; that
//! nothing was found is worth as much as the host's code.

use std::fmt;

use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::cbor::message;
use crate::limits;

/// What kind of thing was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Kind {
    /// A process whose executable is not in the image.
    #[n(0)]
    ProcessNotInImage,
    /// A mount that was not there when the workload started.
    #[n(1)]
    NewMount,
    /// A process in a namespace that was not there when the workload started.
    #[n(2)]
    NewNamespace,
    /// A process with capabilities that the workload did not start with.
    #[n(3)]
    CapabilityGained,
    /// A process that another one traces.
    #[n(4)]
    Ptrace,
    /// A socket that accepts connections or datagrams from others.
    #[n(5)]
    ListeningSocket,
    /// The host's kernel loaded a module.
    #[n(6)]
    KernelModuleLoaded,
    /// The host's clock was set.
    #[n(7)]
    TimeJump,
    /// A block of the image is not what its owner signed.
    #[n(8)]
    Integrity,
    /// The lease ran out before the verifier renewed it.
    #[n(9)]
    LeaseExpired,
    /// The verifier revoked or suspended the host, or withdrew the workload.
    #[n(10)]
    Revoked,
    /// The verifier refused to renew the lease.
    #[n(11)]
    AttestationDenied,
    /// The monitor could not look: what happened meanwhile is not known.
    #[n(12)]
    MonitorBlind,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::ProcessNotInImage,
        Self::NewMount,
        Self::NewNamespace,
        Self::CapabilityGained,
        Self::Ptrace,
        Self::ListeningSocket,
        Self::KernelModuleLoaded,
        Self::TimeJump,
        Self::Integrity,
        Self::LeaseExpired,
        Self::Revoked,
        Self::AttestationDenied,
        Self::MonitorBlind,
    ];

    /// Its name in JSON and in policies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessNotInImage => "process-not-in-image",
            Self::NewMount => "new-mount",
            Self::NewNamespace => "new-namespace",
            Self::CapabilityGained => "capability-gained",
            Self::Ptrace => "ptrace",
            Self::ListeningSocket => "listening-socket",
            Self::KernelModuleLoaded => "kernel-module-loaded",
            Self::TimeJump => "time-jump",
            Self::Integrity => "integrity",
            Self::LeaseExpired => "lease-expired",
            Self::Revoked => "revoked",
            Self::AttestationDenied => "attestation-denied",
            Self::MonitorBlind => "monitor-blind",
        }
    }

    /// How bad it is by itself, for people and their alerts. What is done about it is the policy's to say.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::TimeJump | Self::ListeningSocket => Severity::Low,
            Self::KernelModuleLoaded | Self::NewMount | Self::NewNamespace | Self::LeaseExpired => Severity::Medium,
            Self::ProcessNotInImage
            | Self::CapabilityGained
            | Self::Ptrace
            | Self::Integrity
            | Self::Revoked
            | Self::AttestationDenied
            | Self::MonitorBlind => Severity::High,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How bad a kind of finding is by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Happens in good runs too.
    Low,
    /// Unusual.
    Medium,
    /// Somebody is doing what the image's owner did not intend.
    High,
}

/// Text of a finding: at most [`limits::FINDING_TEXT`] bytes, no control characters. Paths and names come from the workload: nothing in
/// them may look like another line.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Text(String);

impl Text {
    /// Makes any text one: control characters become U+FFFD, and what is too long is cut.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut out = String::new();
        for character in text.chars() {
            let character = if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
            if out.len().saturating_add(character.len_utf8()) > limits::FINDING_TEXT {
                break;
            }
            out.push(character);
        }
        Self(out)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() > limits::FINDING_TEXT {
            return Err("a finding's text is too long");
        }
        if text.chars().any(char::is_control) {
            return Err("a finding's text has control characters");
        }
        Ok(Self(text))
    }
}

impl<C> Encode<C> for Text {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Text {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let at = d.position();
        Self::try_from(d.str()?.to_owned()).map_err(|e| DecodeError::message(e).at(at))
    }
}

const fn one() -> u16 {
    1
}

/// One finding. JSON leaves the version out: a run log has its own.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cbor(array)]
pub struct Finding {
    /// Wire version, 1.
    #[n(0)]
    #[serde(skip, default = "one")]
    pub version: u16,
    /// What kind of thing.
    #[n(1)]
    pub kind: Kind,
    /// What was seen, in words.
    #[n(2)]
    pub what: Text,
    /// Where: a mount's place, a namespace, an address, a block; one shape for each kind (docs/operations.md, Monitoring). Empty where `what` says
    /// it all.
    #[n(3)]
    #[serde(rename = "where", default, skip_serializing_if = "is_empty")]
    pub place: Text,
    /// The process, by its id on the host.
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The process's executable, as the kernel names it.
    #[n(5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Text>,
    /// When, milliseconds since 1970 by the host's clock.
    #[n(6)]
    pub time_ms: i64,
}
message!(Finding, "finding", limits::FINDING);

fn is_empty(text: &Text) -> bool {
    text.0.is_empty()
}

impl Finding {
    /// A finding that is about no process.
    #[must_use]
    pub fn new(kind: Kind, what: &str, place: &str, time_ms: i64) -> Self {
        let (what, place) = (Text::new(what), Text::new(place));
        Self { version: 1, kind, what, place, pid: None, executable: None, time_ms }
    }

    /// The same, about a process.
    #[must_use]
    pub fn of(self, pid: u32, executable: &str) -> Self {
        Self { pid: Some(pid), executable: Some(Text::new(executable)), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)?;
        if !self.place.0.is_empty() {
            write!(f, " ({})", self.place)?;
        }
        match (self.pid, &self.executable) {
            (Some(pid), Some(executable)) => write!(f, ", process {pid} {executable}"),
            (Some(pid), None) => write!(f, ", process {pid}"),
            (None, _) => Ok(()),
        }
    }
}

/// What was done about findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reaction {
    /// Recorded and reported; the workload goes on.
    Alert,
    /// The workload's processes do not run, its key is kept.
    Freeze,
    /// They run again.
    Thaw,
    /// Ended: asked first, then killed.
    Stop,
    /// Ended at once.
    Kill,
}

impl fmt::Display for Reaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alert => "alert",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Stop => "stop",
            Self::Kill => "kill",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json_form() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(minicbor::to_vec(kind).unwrap(), [u8::try_from(number).unwrap()]);
        }
        for reaction in [Reaction::Alert, Reaction::Freeze, Reaction::Thaw, Reaction::Stop, Reaction::Kill] {
            assert_eq!(serde_json::to_value(reaction).unwrap(), reaction.to_string());
        }
    }

    #[test]
    fn texts_are_bounded_and_one_line() {
        let long = "é".repeat(limits::FINDING_TEXT);
        assert_eq!(Text::new(&long).as_str().len(), limits::FINDING_TEXT);
        assert_eq!(Text::new("a\nb\u{7f}").as_str(), "a\u{fffd}b\u{fffd}");
        let json = |what: &str| serde_json::json!({"kind": "ptrace", "what": what, "time_ms": 1}).to_string();
        assert!(serde_json::from_str::<Finding>(&json("traced")).is_ok());
        assert!(serde_json::from_str::<Finding>(&json(&long)).is_err());
        assert!(serde_json::from_str::<Finding>(&json("two\nlines")).is_err());
        assert!(serde_json::from_str::<Finding>(r#"{"kind":"other","what":"x","time_ms":1}"#).is_err());
    }

    #[test]
    fn the_json_form() {
        let finding = Finding::new(Kind::ListeningSocket, "listens on tcp port 80", "0.0.0.0:80", 5).of(7, "/bin/x");
        let json = serde_json::to_value(&finding).unwrap();
        let want = serde_json::json!({"kind": "listening-socket", "what": "listens on tcp port 80", "where": "0.0.0.0:80",
            "pid": 7, "executable": "/bin/x", "time_ms": 5});
        assert_eq!(json, want);
        assert_eq!(serde_json::from_value::<Finding>(json).unwrap(), finding);
        assert_eq!(finding.to_string(), "listening-socket: listens on tcp port 80 (0.0.0.0:80), process 7 /bin/x");
    }
}
