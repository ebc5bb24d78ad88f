//! Host side of attestation: the TPM client, the host's keys, evidence, enrolment and release.

pub mod endorsement;
pub mod random;
pub mod tpm;
pub mod unseal;
