//! Host side of attestation: TPM client, evidence, enrolment.
