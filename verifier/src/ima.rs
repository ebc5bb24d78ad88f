//! IMA entries against reference sets: which files of a host are accepted, denied or unknown.
//!
//! Sets are compiled once into a [`Reference`], which all hosts share ([`loaded`]): digests in one block a hash algorithm, found without a
//! comparison of more than a few; nothing is copied or parsed for a request. [`appraise`] replays a list, looks each of
//! its files up on the way, and leaves counts and a bounded number of findings in the host's [`ImaState`].

mod cache;
mod judge;
mod keyring;
mod modsig;
mod reference;
mod state;
mod table;

pub use cache::{loaded, remember};
pub use judge::{appraise, judge};
pub use keyring::{Key, Keyring, NoKey};
pub use reference::{BadReference, Reference, identity};
pub use state::{Finding, FindingKind, ImaState, SavedBank, Tally};
pub use table::Found;
