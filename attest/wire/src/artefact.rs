//! Files that Countersign writes: eight bytes that say what it is, then one CBOR message.

use crate::cbor::{self, BadCbor, Message};
use crate::enrol::HostCard;
use crate::evidence::Evidence;
use crate::record::Bundle;
use crate::trust::TrustBundle;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Bundle`].
    Bundle,
    /// [`HostCard`].
    HostCard,
    /// [`TrustBundle`].
    TrustBundle,
    /// [`Evidence`].
    Evidence,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bundle, Self::HostCard, Self::TrustBundle, Self::Evidence];

    /// The first eight bytes.
    #[must_use]
    pub const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Bundle => b"CSBUNDL1",
            Self::HostCard => b"CSCARD01",
            Self::TrustBundle => b"CSTRUST1",
            Self::Evidence => b"CSEVID01",
        }
    }

    /// The kind of a file, by its first bytes.
    #[must_use]
    pub fn of(file: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| file.starts_with(kind.magic()))
    }
}

/// A message that has a file form.
pub trait Artefact: Message {
    /// Its kind.
    const KIND: Kind;
}

impl Artefact for Bundle {
    const KIND: Kind = Kind::Bundle;
}
impl Artefact for HostCard {
    const KIND: Kind = Kind::HostCard;
}
impl Artefact for TrustBundle {
    const KIND: Kind = Kind::TrustBundle;
}
impl Artefact for Evidence {
    const KIND: Kind = Kind::Evidence;
}

/// Why a file is not the artefact wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadArtefact {
    /// Another kind of file.
    #[error("the file does not start with {want:?}: {got}")]
    Kind {
        /// What it should start with.
        want: String,
        /// What it is instead, as far as can be told.
        got: String,
    },
    /// The message in it is not well-formed.
    #[error(transparent)]
    Cbor(#[from] BadCbor),
}

/// Bytes of the longest file of a kind.
#[must_use]
pub const fn longest<T: Artefact>() -> usize {
    T::MAX.saturating_add(T::KIND.magic().len())
}

/// The file for an encoded message.
#[must_use]
pub fn to_file<T: Artefact>(message: &T) -> Vec<u8> {
    [T::KIND.magic().as_slice(), &cbor::encode(message)].concat()
}

/// The message's bytes in a file of this kind.
///
/// # Errors
/// [`BadArtefact::Kind`].
pub fn body<T: Artefact>(file: &[u8]) -> Result<&[u8], BadArtefact> {
    file.strip_prefix(T::KIND.magic()).ok_or_else(|| BadArtefact::Kind {
        want: String::from_utf8_lossy(T::KIND.magic()).into_owned(),
        got: Kind::of(file).map_or_else(|| "no file of ours".to_owned(), |kind| format!("a {kind:?} file")),
    })
}

/// Reads a file.
///
/// # Errors
/// [`BadArtefact`].
pub fn from_file<T: Artefact>(file: &[u8]) -> Result<T, BadArtefact> {
    Ok(cbor::decode(body::<T>(file)?)?)
}
