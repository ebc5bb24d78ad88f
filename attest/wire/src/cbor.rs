//! Deterministic CBOR (RFC 8949 section 4.2.1): one value has one encoding, and any other is refused.

use minicbor::{Decode, Encode};

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCbor {
    /// More bytes than this kind of message may have.
    #[error("{what}: {got} bytes, at most {max} are allowed")]
    TooLong {
        /// The message.
        what: &'static str,
        /// Bytes received.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not CBOR of the expected shape.
    #[error("{what}: malformed at byte {offset}: {reason}")]
    Malformed {
        /// The message.
        what: &'static str,
        /// Where decoding stopped.
        offset: usize,
        /// What the decoder says.
        reason: String,
    },
    /// Well-formed, but not the one deterministic encoding.
    #[error("{what}: not the deterministic encoding (differs at byte {offset})")]
    NotDeterministic {
        /// The message.
        what: &'static str,
        /// First byte that differs from the canonical form.
        offset: usize,
    },
    /// A version that this program does not know.
    #[error("{what}: version {got}, this program knows {known}")]
    Version {
        /// The message.
        what: &'static str,
        /// What the message says.
        got: u16,
        /// What is known here.
        known: u16,
    },
}

/// A message: its name for errors and the most bytes it may have.
pub trait Message: Encode<()> + for<'b> Decode<'b, ()> {
    /// Name of the message in errors.
    const WHAT: &'static str;
    /// Longest encoding accepted, in bytes.
    const MAX: usize;
    /// The only version of it that exists so far.
    const VERSION: u16 = 1;
    /// The version that this value states.
    fn version(&self) -> u16;
}

/// The deterministic encoding of a message.
#[must_use]
pub fn encode<T: Message>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing into a Vec cannot fail; an impossible failure leaves an encoding that no decoder accepts.
    if minicbor::encode(message, &mut out).is_err() {
        out.clear();
    }
    out
}

/// Reads a message, refusing oversize, trailing bytes, unknown versions and other than deterministic encodings.
///
/// # Errors
/// [`BadCbor`] names the message and the offset.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T, BadCbor> {
    if bytes.len() > T::MAX {
        return Err(BadCbor::TooLong { what: T::WHAT, got: bytes.len(), max: T::MAX });
    }
    let mut decoder = minicbor::Decoder::new(bytes);
    let value: T = decoder.decode().map_err(|e| BadCbor::Malformed {
        what: T::WHAT,
        offset: e.position().unwrap_or_else(|| decoder.position()),
        reason: e.to_string(),
    })?;
    if decoder.position() != bytes.len() {
        return Err(BadCbor::Malformed { what: T::WHAT, offset: decoder.position(), reason: "trailing bytes".into() });
    }
    if value.version() != T::VERSION {
        return Err(BadCbor::Version { what: T::WHAT, got: value.version(), known: T::VERSION });
    }
    // The canonical form is compared as it is written: evidence is long, and a copy of it would cost more than the comparison.
    let mut rest = Expected { bytes, offset: 0 };
    if minicbor::encode(&value, &mut rest).is_err() || rest.offset != bytes.len() {
        return Err(BadCbor::NotDeterministic { what: T::WHAT, offset: rest.offset });
    }
    Ok(value)
}

/// A writer that takes exactly these bytes.
struct Expected<'a> {
    bytes: &'a [u8],
    /// How many were written so far.
    offset: usize,
}

impl minicbor::encode::Write for Expected<'_> {
    type Error = Differs;

    fn write_all(&mut self, written: &[u8]) -> Result<(), Differs> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let same = if rest.starts_with(written) {
            written.len()
        } else {
            rest.iter().zip(written).take_while(|(a, b)| a == b).count()
        };
        self.offset = self.offset.saturating_add(same);
        if same == written.len() { Ok(()) } else { Err(Differs) }
    }
}

/// The encoding is another one.
#[derive(Debug, thiserror::Error)]
#[error("not the deterministic encoding")]
struct Differs;

/// Implements [`Message`] for a struct with a field `version: u16`.
macro_rules! message {
    ($name:ty, $what:literal, $max:expr) => {
        impl $crate::cbor::Message for $name {
            const WHAT: &'static str = $what;
            const MAX: usize = $max;
            fn version(&self) -> u16 {
                self.version
            }
        }
    };
}
pub(crate) use message;
