//! The `supervisor` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_supervisor::cli::main().into()
}
