//! Host side of attestation: the TPM client, the host's keys, evidence, enrolment and release.

pub mod cli;
pub mod client;
pub mod config;
pub mod endorsement;
pub mod error;
pub mod events;
pub mod exit;
pub mod hook;
pub mod host;
pub mod inspect;
pub mod journal;
pub mod learn;
pub mod lease;
mod notify;
pub mod out;
mod queue;
pub mod random;
pub mod rest;
pub mod runs;
pub mod serve;
pub mod state;
pub mod token;
pub mod tpm;
pub mod unseal;
pub mod verdict;

pub use config::{Config, Overrides};
pub use error::HostError;
pub use host::{Attested, Host, Observer, Released, Step};
