//! swtpm under control, and a second TPM stack to check the first against.
