//! The `attest` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_attest::cli::main().into()
}
