//! What the tests share: a TPM in software, a recorded boot, and evidence that says whatever a test wants.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod boot;
pub(crate) mod case;
pub(crate) mod tpm;
