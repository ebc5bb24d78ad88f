//! The verifier around the appraisal: nonces, enrolment, tokens, restarts and restored databases, HTTPS. The hosts are software and misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "tests"
)]

mod bundle;
mod enrolment;
mod explain;
mod http;
mod kill;
mod lab;
mod nonces;
mod obligations;
mod release;
mod restore;
#[path = "../support/mod.rs"]
mod support;
