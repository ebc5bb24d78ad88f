//! Every byte that crosses a boundary: messages, boot logs, IMA lists, run logs.
//!
//! Pure: no I/O, no clock, no randomness. What this crate parses is *well-formed*, never *authentic*:
//! the verifier decides that.

pub mod answer;
pub mod artefact;
pub mod cbor;
pub mod cel;
pub mod challenge;
pub mod dsse;
pub mod enrol;
pub mod event;
pub mod eventlog;
pub mod evidence;
pub mod explanation;
pub mod facts;
pub mod finding;
pub mod grant;
pub mod id;
pub mod ima;
pub mod limits;
pub mod obligations;
pub mod problem;
pub mod receipt;
pub mod record;
pub mod refset;
pub mod release;
pub mod runlog;
pub mod statement;
pub mod systemd_log;
pub mod time;
pub mod trust;

pub use countersign_tpm::codec;
