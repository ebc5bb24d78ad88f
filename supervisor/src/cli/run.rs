//! `supervisor run`, `exec` and `shell`.

use std::path::PathBuf;

use clap::Args;

use super::host::HostArgs;
use crate::daemon;
use crate::exit::{Failure, Stage};
use crate::run::{self, Given, Plan, Task};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The owner's public key (PEM); several may be given. The daemon's rules may know it already
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_SIGNER")]
    signer: Vec<PathBuf>,
    /// Have this host's daemon run it (default: where the TPM is out of your reach and the daemon is there)
    #[arg(
        long,
        value_name = "SOCKET",
        env = "COUNTERSIGN_DAEMON",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    pub(super) daemon: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
    /// The container runtime: auto (what is installed, else the built-in one), builtin, apptainer, singularity, or a path
    #[arg(long, value_name = "RUNTIME", default_value = "auto", env = "COUNTERSIGN_RUNTIME")]
    runtime: PathBuf,
    /// Write the evidence bundle of the release into a file
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Write JSON lines about the stages to this descriptor
    #[arg(long, value_name = "N")]
    pub(super) status_fd: Option<u32>,
    /// The image
    image: PathBuf,
}

/// Runs it, or has the daemon do so.
pub(super) fn start(given: RunArgs, task: Task, flags: Vec<Given>) -> Result<u8, Failure> {
    let socket = given.daemon.clone();
    let plan = plan(given, task, flags);
    if let Some(socket) = daemon::wanted(socket.as_deref(), &plan)? {
        return daemon::run(&socket, &plan);
    }
    signed(&plan)?;
    run::run(&plan)
}

/// Without the daemon, whose rules may know signers, somebody has to be trusted.
pub(super) fn signed(plan: &Plan) -> Result<(), Failure> {
    if plan.signers.is_empty() {
        let hint = "--signer FILE: the owner's public key, which `supervisor inspect IMAGE` names";
        return Err(Failure::new(Stage::Usage, "no signer is trusted", hint));
    }
    Ok(())
}

pub(super) fn plan(given: RunArgs, task: Task, flags: Vec<Given>) -> Plan {
    Plan {
        image: given.image,
        signers: given.signer,
        task,
        runtime: given.runtime,
        flags,
        config: given.host.config,
        tpm: given.host.tpm,
        state_dir: given.host.state_dir,
        bundle: given.bundle,
        status_fd: given.status_fd,
        caller: None,
    }
}
