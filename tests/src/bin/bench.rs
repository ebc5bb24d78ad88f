//! `make bench`: the project's speeds, each against a floor or peer of the same run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use countersign_tests::bench::{Options, load_policies, run};

/// Measures the project's speeds, each against a floor or peer of the same run, and writes OUT/summary.json.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of the programs (a release build)
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Folder for summary.json and what is made on the way
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Measure this row only; may be given several times
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// For policy-memory: load so many policies, print the memory before and behind, and end
    #[arg(long, hide = true)]
    load_policies: Option<u32>,
}

fn main() -> ExitCode {
    let given = Arguments::parse();
    if let Some(count) = given.load_policies {
        return countersign_tests::process::finish("bench", load_policies(count));
    }
    let options = Options { bin_dir: given.bin_dir, out: given.out, only: given.only, json: given.json };
    countersign_tests::process::finish("bench", run(&options))
}
