//! The `tpm-sim` command.

mod cli;
mod out;
mod run;

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    let out = out::Out::new(cli.json);
    match run::run(&cli, &out) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => out.failure(&failure),
    }
}
