//! The kernel's IMA list: binary (`binary_runtime_measurements`) and ASCII (`ascii_runtime_measurements`).
//!
//! Source: Linux `security/integrity/ima` (ima_fs.c, ima_template.c, ima_template_lib.c, ima_crypto.c). Integers are in the machine's byte
//! order, little endian here. A list is well-formed, nothing more, until [`replay_to`] leads to quoted values; then its entries are
//! authentic up to that prefix, except that the contents of a violation are only named: the kernel extends ones for it.
//!
//! Nothing here keeps entries: [`frames`] and [`entries`] borrow from the list and hold one entry at a time.

mod aggregate;
mod ascii;
mod entry;
mod hash;
mod list;
mod replay;
mod signature;
#[doc(hidden)]
pub mod synthetic;
mod template;

pub use aggregate::{BOOT_AGGREGATE, boot_aggregates};
pub use ascii::{looks_ascii, to_binary};
pub use entry::{DigestKind, Entries, Entry, entries};
pub use hash::KernelHash;
pub use list::{BadIma, Extent, Frame, Frames, extent, frames};
pub use replay::{ImaReplayError, Prefix, replay_each, replay_to};
pub use signature::{BadSignature, FileSignature, SignatureKind};
pub use template::{Field, Layout};

/// PCR that IMA extends by default.
pub const PCR: u8 = 10;

#[cfg(test)]
mod tests;
