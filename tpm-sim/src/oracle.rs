//! tpm2-tss, the second TPM stack.
