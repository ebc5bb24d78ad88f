//! What policy asks of a host for as long as something runs on it.

pub use crate::obligations::{DEFAULT_LEASE_S, Obligations as Terms, OnViolation};
