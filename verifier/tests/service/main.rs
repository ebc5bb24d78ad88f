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
mod candidate;
mod engine;
mod enrolment;
mod explain;
mod http;
mod kill;
mod lab;
mod nonces;
mod obligations;
mod policies;
mod poll;
mod release;
mod report;
mod restore;
#[path = "../support/mod.rs"]
mod support;
mod swap;
mod web;
