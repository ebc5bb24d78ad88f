//! TPM 2.0 structures, Names, policy digests, credentials and import blobs in software, for both sides of attestation.
//!
//! Pure: no I/O, no clock, no randomness of its own (it is passed in).
//!
//! | module | what is in it | TPM 2.0 |
//! |---|---|---|
//! | [`codec`] | the one reader and writer of bytes | |
//! | [`alg`], [`kdf`] | hashes, HMAC, KDFa, KDFe | Part 1, 11.4 |
//! | [`public`], [`signature`], [`attest`], [`pcr`] | TPMT_PUBLIC and Names, TPMT_SIGNATURE, TPMS_ATTEST, selections | Part 2, 10 to 12 |
//! | [`policy`] | policy digests, and the two policies of a release | Part 3, 23 |
//! | [`wrap`], [`credential`], [`import`] | what only one TPM can open | Part 1, 22 to 24 |
//! | [`ek`], [`ekcert`], [`ak`] | endorsement and attestation keys | EK Credential Profile |
//! | [`rc`] | response codes in words | Part 2, 6.6 |

pub mod ak;
pub mod alg;
pub mod attest;
pub mod codec;
pub mod credential;
mod der;
pub mod ek;
pub mod ekcert;
pub mod import;
pub mod kdf;
pub mod limits;
pub mod pcr;
pub mod policy;
pub mod public;
pub mod rc;
pub mod signature;
pub mod wrap;
