//! What this program starts itself as.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use crate::{daemon, doctor, instance, runtime};

/// Roles in which the program starts itself. Each start waits for them: they are read without the commands, which take longer.
#[derive(Debug, Parser)]
#[command(name = "supervisor")]
pub(super) enum Helper {
    #[command(name = "decryptor-process")]
    Decryptor,
    #[command(name = "stage-process")]
    Stage,
    #[command(name = "namespace-process")]
    Namespace,
    #[command(name = "instance-process")]
    Instance,
    #[command(name = "session-process")]
    Session,
    #[command(name = "runtime-process")]
    Runtime {
        #[arg(long)]
        gate: u32,
        #[arg(long)]
        terminal: runtime::Share,
        #[arg(long)]
        instance: Option<PathBuf>,
        #[arg(last = true)]
        program: Vec<OsString>,
    },
}

impl Helper {
    pub(super) fn main(self) -> u8 {
        match self {
            Self::Decryptor => crate::decryptor::main(),
            Self::Stage => crate::stage::main(),
            Self::Namespace => doctor::namespace_process(),
            Self::Instance => instance::main(),
            Self::Session => daemon::session(),
            Self::Runtime { gate, terminal, instance, program } => {
                runtime::agent(gate, terminal, instance.as_deref(), &program)
            }
        }
    }
}
