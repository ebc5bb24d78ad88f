//! TPM 2.0 structures, Names, policy digests, credentials and import blobs in software.
//!
//! Pure: no I/O, no clock, no randomness of its own.

pub mod codec;
