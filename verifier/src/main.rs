//! The `verifier` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_verifier::cli::main().into()
}
