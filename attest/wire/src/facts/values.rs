//! Values that take their text form only when they are shown: facts are made for every attestation, and read for few.

use std::fmt;

use countersign_tpm::alg::{Digest, HashAlg};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::x509;

/// Indices of the one or two events behind a fact.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    indices: [u32; 2],
    count: u8,
}

impl Events {
    /// No event.
    pub const NONE: Self = Self { indices: [0; 2], count: 0 };

    /// One event.
    #[must_use]
    pub const fn one(index: u32) -> Self {
        Self { indices: [index, 0], count: 1 }
    }

    /// Two events.
    #[must_use]
    pub const fn two(first: u32, second: u32) -> Self {
        Self { indices: [first, second], count: 2 }
    }

    /// The indices.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        self.indices.get(..usize::from(self.count)).unwrap_or_default()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl Serialize for Events {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Events {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Vec::<u32>::deserialize(deserializer)?.as_slice() {
            [] => Ok(Self::NONE),
            [one] => Ok(Self::one(*one)),
            [first, second] => Ok(Self::two(*first, *second)),
            more => Err(de::Error::invalid_length(more.len(), &"at most two events")),
        }
    }
}

/// A digest that names its algorithm: `sha256:0a1b...`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tagged(pub Digest);

impl fmt::Display for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.alg().name(), self.0)
    }
}

impl fmt::Debug for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Tagged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Tagged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = || {
            let (alg, value) = text.split_once(':')?;
            Digest::new(HashAlg::from_name(alg)?, &hex::decode(value).ok()?)
        };
        read().map(Self).ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"alg:hex"))
    }
}

/// A certificate. In JSON `{"subject", "sha256"}`: the subject, most specific part first, and the SHA-256 of the DER encoding in hex.
#[derive(Clone)]
pub struct Certificate(Form);

#[derive(Clone)]
enum Form {
    /// As it stands in the log.
    Der(Box<[u8]>),
    /// As it was read from JSON.
    Described(Described),
}

/// A certificate in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    subject: String,
    sha256: String,
}

impl Certificate {
    pub(super) fn new(der: &[u8]) -> Self {
        Self(Form::Der(der.into()))
    }

    fn described(&self) -> Described {
        match &self.0 {
            Form::Der(der) => Described { subject: self.subject(), sha256: x509::fingerprint(der) },
            Form::Described(described) => described.clone(),
        }
    }

    /// The subject, most specific part first: `CN=..., O=...`. Empty for what is no certificate.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.0 {
            Form::Der(der) => x509::subject(der).unwrap_or_default(),
            Form::Described(described) => described.subject.clone(),
        }
    }

    /// SHA-256 of the DER encoding, hex.
    #[must_use]
    pub fn sha256(&self) -> String {
        match &self.0 {
            Form::Der(der) => x509::fingerprint(der),
            Form::Described(described) => described.sha256.clone(),
        }
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Der(one), Form::Der(two)) => one == two,
            _ => self.described() == other.described(),
        }
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.described().fmt(f)
    }
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.described().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Described::deserialize(deserializer).map(|described| Self(Form::Described(described)))
    }
}
