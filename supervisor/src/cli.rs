//! The `supervisor` command line.

mod helper;
mod host;
mod instance;
mod owner;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::Value;

use crate::exit::{Failure, Stage, TABLE};
use crate::run::{Given, Task};
use crate::{out, runtime};
use helper::Helper;
use host::{DaemonArgs, HostArgs};
use owner::{GrantArgs, InspectArgs, ProtectArgs, RegisterArgs, RekeyArgs, UnprotectArgs};
use run::RunArgs;

const EXAMPLES: &str = "\
Examples:
  supervisor protect rootfs/ --sign owner.pem --escrow escrow.pub.pem -o app.sif
  supervisor register app.sif --signer owner.pub.pem --escrow-key escrow.pem \\
      --url https://verifier:7448 --token-file operator.token --ca ca.pem
  supervisor inspect app.sif --signer owner.pub.pem --full
  supervisor run --signer owner.pub.pem app.sif cat /secret.txt
  supervisor shell --signer owner.pub.pem app.sif
  supervisor exec --signer owner.pub.pem --nv -B /data --pwd /data app.sif train.py
  supervisor instance start --signer owner.pub.pem app.sif web
  supervisor doctor";

const DAEMON: &str = "\
Users then run images with `supervisor run IMAGE`; docs/operations.md says how to set a host with several users up.
A rule says who may run what, and whether containers may see their users' folders (--bind; not without binds = true).
SIGHUP (systemctl reload) reads the rules again; SIGTERM ends the runs, then the daemon.";

/// Protects container images, and runs them on hosts that TPM and policy accept.
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, after_help = format!("{EXAMPLES}\n\n{TABLE}"), max_term_width = 120)]
struct Cli {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say errors only, and what a command is asked to show
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt and sign an image, with its policy inside
    Protect(ProtectArgs),
    /// Give an image's policy to a verifier, and its key unless its owner keeps it
    Register(RegisterArgs),
    /// Wrap an image's key for one host, offline: the verifier can say yes, and never reads the key
    Grant(GrantArgs),
    /// Write a protected image as a plain one, with the escrow key
    Unprotect(UnprotectArgs),
    /// Encrypt an image anew, with another key, escrow or policy: another workload, to be registered again
    Rekey(RekeyArgs),
    /// Check an image and show what is in it
    Inspect(InspectArgs),
    /// Run an image when the TPM and the policies agree: its runscript with arguments, or, where it has none, a command line
    #[command(after_help = TABLE)]
    Run {
        #[command(flatten)]
        run: RunArgs,
        /// Arguments of the runscript, or the command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command line in an image, past its runscript
    #[command(after_help = TABLE)]
    Exec {
        #[command(flatten)]
        run: RunArgs,
        /// The command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a shell in an image
    #[command(after_help = TABLE)]
    Shell {
        #[command(flatten)]
        run: RunArgs,
        /// The shell's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Runs that stay: start, list, stop, use of machine
    #[command(subcommand)]
    Instance(instance::Command),
    /// Serve the users of this host, who get no access to its TPM: started by systemd, as root
    #[command(after_help = DAEMON)]
    Daemon(DaemonArgs),
    /// Show what runs under this host's daemon: your own runs, or everybody's to root
    Ps {
        /// The daemon's socket (default: as /etc/countersign/supervisor.toml says)
        #[arg(long, value_name = "SOCKET", env = "COUNTERSIGN_DAEMON")]
        daemon: Option<PathBuf>,
    },
    /// Check whether this host can run protected images, and say what to do where it cannot
    Doctor(HostArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// The folder
        dir: PathBuf,
    },
}

/// Runs the command line; returns the exit code.
#[must_use]
pub fn main() -> u8 {
    let line: Vec<OsString> = std::env::args_os().collect();
    if line.get(1).is_some_and(|word| word.as_encoded_bytes().ends_with(b"-process")) {
        return Helper::try_parse_from(line).map_or_else(|e| out::usage(&e), Helper::main);
    }
    let split = match runtime::split(line, &Cli::command()) {
        Ok(split) => split,
        Err(failure) => return out::finish(Err(failure), out::wants_json()),
    };
    let cli = match Cli::try_parse_from(split.own) {
        Ok(cli) => cli,
        Err(e) => return out::usage(&e),
    };
    if cli.quiet {
        out::be_quiet();
    }
    out::finish(cli.command.run(split.flags, cli.json), cli.json)
}

impl Command {
    /// Does it; the exit code.
    fn run(self, flags: Vec<Given>, json: bool) -> Result<u8, Failure> {
        match self {
            Self::Run { run: given, arguments } => return run::start(given, Task::Run(arguments), flags),
            Self::Exec { run: given, command } => return run::start(given, Task::Exec(command), flags),
            Self::Shell { run: given, arguments } => return run::start(given, Task::Shell(arguments), flags),
            Self::Instance(command) => return instance::run(command, flags, json),
            Self::Doctor(given) => return given.examine(json),
            Self::Daemon(given) => return given.run(),
            Self::Ps { daemon } => host::ps(daemon.as_deref(), json)?,
            Self::Protect(given) => given.run(json)?,
            Self::Register(given) => given.run(json)?,
            Self::Grant(given) => given.run(json)?,
            Self::Unprotect(given) => given.run(json)?,
            Self::Rekey(given) => given.run(json)?,
            Self::Inspect(given) => given.run(json)?,
            Self::Completions { shell } => {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "supervisor", &mut text);
                out::raw(&text)?;
            }
            Self::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir).map_err(|e| {
                Failure::new(Stage::Other, format!("{}: {e}", dir.display()), "make the folder first: mkdir -p DIR")
            })?,
        }
        Ok(0)
    }
}

/// What was done: nothing of it when only errors are to be said, unless JSON was asked for.
fn done(json: bool, value: &Value) -> Result<(), Failure> {
    if out::is_quiet() && !json { Ok(()) } else { print(json, value) }
}

/// JSON, or a line a field and a line an object.
fn print(json: bool, value: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let words = || {
        let mut lines = Vec::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            match value.as_array() {
                Some(list) => lines.extend(list.iter().map(|entry| {
                    let fields =
                        entry.as_object().into_iter().flatten().filter(|(_, value)| value.as_str() != Some(""));
                    let fields = fields.map(|(name, value)| format!("{name} {}", text(value)));
                    format!("  {}", fields.collect::<Vec<_>>().join("  "))
                })),
                None => lines.push(format!("{name:12} {}", text(value))),
            }
        }
        lines.join("\n")
    };
    out::print(json, value, words)
}
