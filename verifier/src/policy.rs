//! Policies from their author's desk to a verdict: signed bundles, loading and rolling back, a remote Open Policy Agent, and attacks on a good host
//! (`verifier policy`).

mod attacks;
mod claims;
pub mod decision_log;
mod log;
mod machine;
pub mod mutate;
pub mod opa;
pub mod preview;
pub mod sandbox;
pub mod signed;
mod steps;
pub mod store;
