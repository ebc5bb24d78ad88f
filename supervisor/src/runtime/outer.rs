//! Apptainer and SingularityCE: as on the machine itself, but in a process namespace that ends with the run, and without privileges.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::workload::Bubble;
use super::{Make, Place, Task, flags, said, terminal};
use crate::exit::{Failure, Stage};
use crate::stage::start;

/// The runtime's program and the flags that it gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(super) make: Make,
    pub(super) path: PathBuf,
    pub(super) flags: Vec<OsString>,
}

impl Program {
    /// The command line, and what it starts in words.
    pub(super) fn command(&self, place: &Place<'_>, task: &Task) -> Result<(Bubble, String), Failure> {
        let root = place.ids.user == 0;
        let mut bubble = Bubble::new(place.ids)?;
        let command = &mut bubble.command;
        for name in flags::key_variables() {
            command.env_remove(name);
        }
        command.args(["--dev-bind", "/", "/", "--cap-drop", "ALL"]);
        // For the agent, which gives it up; root needs the other one to make a user namespace with itself in it.
        command.args(["--cap-add", "CAP_SYS_ADMIN"]);
        if root {
            command.args(["--cap-add", "CAP_SETFCAP"]);
        }
        command.arg("--").arg(std::env::current_exe().map_err(start)?).arg("runtime-process");
        if place.terminal {
            command.arg("--terminal");
        }
        command.arg("--").arg(&self.path);
        let (verb, arguments) = match task {
            Task::Run(arguments) => ("run", arguments),
            Task::Exec(arguments) => ("exec", arguments),
            Task::Shell(arguments) => ("shell", arguments),
        };
        // Without a set-uid helper, which would leave the run's namespaces. Root in the container has no privileges here anyway.
        command.args([verb, "--userns"]).args(root.then_some("--no-privs"));
        command.args(&self.flags).arg(place.root).args(arguments);
        Ok((bubble, said(Some(self.path.as_os_str()))))
    }
}

/// The agent: first process of the machine's view that a runtime gets. It shows the processes of this namespace under /proc, gives up all
/// privileges and becomes the runtime. bubblewrap could mount /proc too, but hides parts of it from root: then no container may mount its own.
pub(crate) fn main(terminal: bool, program: &[OsString]) -> u8 {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        let _ = std::io::Write::write_all(&mut anstream::stderr(), format!("error: {what}: {e}\n").as_bytes());
        Stage::Start.code()
    };
    if let Err(e) = own_processes().and_then(|()| drop_privileges()) {
        return failed("the runtime's namespace", &e);
    }
    if terminal && let Err(e) = terminal::take() {
        return failed("the terminal", &e);
    }
    let Some((program, arguments)) = program.split_first() else { return Stage::Usage.code() };
    let e = Command::new(program).args(arguments).exec();
    failed(&program.to_string_lossy(), &e)
}

fn own_processes() -> rustix::io::Result<()> {
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
}

/// Keeps nothing, also beyond the next program; root keeps what it needs to be mapped into a user namespace.
fn drop_privileges() -> rustix::io::Result<()> {
    use rustix::thread::{
        capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    };
    clear_ambient_capability_set()?;
    let keep = if rustix::process::geteuid().is_root() { CapabilitySet::SETFCAP } else { CapabilitySet::empty() };
    for capability in capabilities(None)?.permitted.difference(keep).iter() {
        remove_capability_from_bounding_set(capability)?;
    }
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() })
}
