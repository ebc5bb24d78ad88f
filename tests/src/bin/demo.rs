//! `make demo`: the main job, once through.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use countersign_tests::demo::{Options, tell};

/// Shows the main job on a software TPM, step by step: an encrypted image runs only where TPM and policy agree.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of the programs
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Folder for everything that the demo makes; emptied first
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let given = Arguments::parse();
    countersign_tests::process::finish("demo", tell(&Options { bin_dir: given.bin_dir, dir: given.dir }))
}
