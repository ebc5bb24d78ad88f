//! The `tpm-sim` command.

fn main() {}
