//! `supervisor instance`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::run::{RunArgs, plan, signed};
use super::{done, print};
use crate::exit::{Failure, Stage, TABLE};
use crate::instance;
use crate::run::{Given, Task};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start an instance: its startscript runs until it ends or is stopped; `supervisor exec instance://NAME` runs more in it
    #[command(after_help = TABLE)]
    Start {
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        name: String,
        /// Arguments of the startscript
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// List the user's running instances
    List {
        #[command(flatten)]
        place: PlaceArgs,
        /// Those of this name; `*` at the end stands for any more of it
        name: Option<String>,
    },
    /// Stop an instance: ask it, and kill it when it does not end
    Stop {
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// All of the user's instances
        #[arg(short, long, conflicts_with = "name")]
        all: bool,
        /// What it is asked with: HUP, INT, QUIT, USR1, USR2, TERM, or the signal's number
        #[arg(short, long, value_parser = instance::signal, default_value = "TERM")]
        signal: rustix::process::Signal,
        /// Kill it at once, in order
        #[arg(short = 'F', long, conflicts_with_all = ["signal", "timeout"])]
        force: bool,
        /// Seconds that it may take to end by itself
        #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
        timeout: u32,
    },
    /// Show what an instance uses, and what this host cannot say about it
    Stats {
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        name: String,
    },
    #[command(hide = true)]
    Join {
        #[command(flatten)]
        place: PlaceArgs,
        verb: String,
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(super) struct PlaceArgs {
    /// Where instances are noted (default: /run/countersign, the user's runtime or state folder)
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_INSTANCE_DIR")]
    instance_dir: Option<PathBuf>,
}

/// Does it; the exit code.
pub(super) fn run(command: Command, flags: Vec<Given>, json: bool) -> Result<u8, Failure> {
    let shows = matches!(command, Command::List { .. } | Command::Stats { .. });
    let value = match command {
        Command::Start { run, place, name, arguments } => {
            if run.status_fd.is_some() {
                let hint = "the command returns when the instance runs; supervisor instance list --json";
                return Err(Failure::new(Stage::Usage, "--status-fd is for runs that do not stay", hint));
            }
            if run.daemon.is_some() {
                let hint = "run it as root, without --daemon: instances belong to who started them";
                return Err(Failure::new(Stage::Usage, "the daemon keeps no instances", hint));
            }
            let plan = plan(run, Task::Run(Vec::new()), flags);
            signed(&plan)?;
            instance::start(place.instance_dir.as_deref(), &name, arguments, plan)?
        }
        Command::List { place, name } => instance::list(place.instance_dir.as_deref(), name.as_deref())?,
        Command::Stop { place, name, all: _, signal, force, timeout } => {
            let grace = Duration::from_secs(if force { 0 } else { timeout.into() });
            instance::stop(place.instance_dir.as_deref(), name.as_deref(), (signal, grace))?
        }
        Command::Stats { place, name } => instance::stats(place.instance_dir.as_deref(), &name)?,
        Command::Join { place, verb, name, arguments } => {
            let task = match verb.as_str() {
                "exec" if arguments.is_empty() => {
                    let hint = format!("supervisor exec instance://{name} COMMAND");
                    return Err(Failure::new(Stage::Usage, "no command was given", hint));
                }
                "exec" => Task::Exec(arguments),
                "shell" => Task::Shell(arguments),
                _ => Task::Run(arguments),
            };
            return instance::join(place.instance_dir.as_deref(), &name, &task, &flags);
        }
    };
    let say = if shows { print } else { done };
    say(json, &value).map(|()| 0)
}
