//! Apptainer and SingularityCE: as on the machine itself, but in a process namespace that ends with the run, and without privileges.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_wire::obligations::RuntimeFlag;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::barrier::Mounted;
use super::flags::Given;
use super::workload::{Bubble, Held, Waiting};
use super::{Make, Place, Share, Task, flags, obliged, said, terminal};
use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::stage::start;
use crate::watch::all_signals;

/// The runtime's program and the flags that it gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(super) make: Make,
    /// As it says itself.
    pub(super) version: String,
    pub(super) path: PathBuf,
    pub(super) flags: Vec<OsString>,
    /// It says errors only.
    pub(super) silent: bool,
    /// Flags that policy demands.
    pub(super) demanded: Vec<RuntimeFlag>,
}

impl Program {
    /// Starts it, on a root that it finds when the barrier is opened.
    pub(super) fn start(
        &self,
        place: &Place<'_>,
        task: &Task,
        stdin: OwnedFd,
        cgroup: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    ) -> Result<Waiting, Failure> {
        let barrier = Mounted::around(place.shown)?;
        let (bubble, agent) = self.bubble(place, task)?;
        let waiting = bubble.start(said(Some(self.path.as_os_str())), stdin, cgroup)?;
        // It is served by a thread, and a process with threads starts none in a cgroup.
        let barrier = barrier.serve()?;
        // A runtime that would have the terminal does not get it before it is needed: until then its keys are the supervisor's.
        let agent = if place.terminal.is_any() {
            Some(agent)
        } else {
            // One that has ended has said why, and is found to have ended.
            let _ = agent.send(&Cue::Run, &[]);
            None
        };
        Ok(waiting.held(Held { barrier, agent }))
    }

    /// The command line, and how to tell its first process that the barrier is there.
    fn bubble(&self, place: &Place<'_>, task: &Task) -> Result<(Bubble, Channel), Failure> {
        let root = place.ids.user == 0;
        let mut bubble = Bubble::new(place.ids)?;
        let command = &mut bubble.command;
        for name in flags::key_variables() {
            command.env_remove(name);
        }
        command.args(["--dev-bind", "/", "/", "--cap-drop", "ALL"]);
        // The root may be in its first place still.
        command.arg("--tmpfs").arg(place.root.parent().unwrap_or(place.root));
        if !place.terminal.is_any() {
            command.arg("--new-session");
        }
        // Here already: it holds whatever the runtime makes of its flags.
        if self.demanded.contains(&RuntimeFlag::NetNone) {
            command.arg("--unshare-net");
        }
        // Nobody moves himself out of the run's cgroup, or thaws it.
        for place in crate::group::mount_points().map_err(start)? {
            command.arg("--ro-bind").arg(&place).arg(&place);
        }
        // For the agent, which gives them up; root needs the other one to make a user namespace with itself in it.
        command.args(["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]);
        if root {
            command.args(["--cap-add", "CAP_SETFCAP"]);
        }
        let (gate, agent) = bubble.agent()?;
        let command = &mut bubble.command;
        command.arg("--").arg(std::env::current_exe().map_err(start)?).arg("runtime-process");
        command.arg("--gate").arg(gate.to_string());
        command.args(["--terminal", place.terminal.word()]);
        let pid_file = |folder: &Path| folder.join("pid");
        if let Task::Start { folder, .. } = task {
            std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(start)?;
            self.keep_notes_in(folder, command);
            command.arg("--instance").arg(pid_file(folder));
        }
        command.arg("--").arg(&self.path).args(self.silent.then_some("--silent")).args(verb(task));
        // Without a set-uid helper, which would leave the run's namespaces. Root in the container has no privileges here anyway.
        command.arg("--userns").args(root.then_some("--no-privs")).args(&self.flags);
        command.args(obliged::switches(&self.demanded, task));
        match task {
            Task::Run(arguments) | Task::Exec(arguments) | Task::Shell(arguments) => {
                command.arg(place.shown).args(arguments);
            }
            Task::Start { name, folder, arguments } => {
                command.arg("--pid-file").arg(pid_file(folder)).arg(place.shown).arg(name).args(arguments);
            }
        }
        Ok((bubble, agent))
    }
}

impl Program {
    /// A command line for another process in an instance.
    pub(super) fn join(&self, instance: &str, folder: &Path, task: &Task, flags: &[Given]) -> Command {
        let mut command = Command::new(&self.path);
        for name in flags::key_variables() {
            command.env_remove(name);
        }
        self.keep_notes_in(folder, &mut command);
        let root = rustix::process::geteuid().is_root();
        command
            .args(verb(task))
            .args(root.then_some("--no-privs"))
            .args(flags.iter().map(Given::argument))
            .args(self.demanded.contains(&RuntimeFlag::Containall).then_some("--cleanenv"))
            .arg(format!("instance://{instance}"));
        match task {
            Task::Run(arguments) | Task::Exec(arguments) | Task::Shell(arguments) | Task::Start { arguments, .. } => {
                command.args(arguments);
            }
        }
        command
    }

    /// Its notes about instances, which are true in this run's namespaces only, and their logs.
    fn keep_notes_in(&self, folder: &Path, command: &mut Command) {
        let name = match self.make {
            Make::Builtin | Make::Apptainer => "APPTAINER_CONFIGDIR",
            Make::Singularity => "SINGULARITY_CONFIGDIR",
        };
        command.env(name, folder);
    }
}

const fn verb(task: &Task) -> &'static [&'static str] {
    match task {
        Task::Run(_) => &["run"],
        Task::Exec(_) => &["exec"],
        Task::Shell(_) => &["shell"],
        Task::Start { .. } => &["instance", "start"],
    }
}

/// What the stage tells the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cue {
    /// Become the runtime.
    Run,
}

/// The agent: first process of the machine's view that a runtime gets. It shows the processes of this namespace under /proc, gives up all
/// privileges, waits for the word on the descriptor `gate` and becomes the runtime. bubblewrap could mount /proc too, but hides parts of it from
/// root: then no container may mount its own.
pub(crate) fn main(gate: u32, terminal: Share, instance: Option<&Path>, program: &[OsString]) -> u8 {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        let _ = io::Write::write_all(&mut anstream::stderr(), format!("error: {what}: {e}\n").as_bytes());
        Stage::Start.code()
    };
    let word = own_processes().and_then(|()| drop_privileges(true)).map_err(io::Error::from);
    match word.and_then(|()| wait(&gate_of(gate)?)) {
        Ok(true) => {}
        // The stage is gone, and nobody is there to be told.
        Ok(false) => return Stage::Start.code(),
        Err(e) => return failed("the runtime's namespace", &e),
    }
    if let Err(e) = terminal::take(terminal) {
        return failed("the terminal", &e);
    }
    let Some((program, arguments)) = program.split_first() else { return Stage::Usage.code() };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(pid_file) = instance {
        return keep(command, pid_file).unwrap_or_else(|e| failed("the instance", &e));
    }
    let e = command.exec();
    failed(&program.to_string_lossy(), &e)
}

/// Stays until the instance that the command starts has ended: the namespaces end with this process.
fn keep(mut command: Command, pid_file: &Path) -> io::Result<u8> {
    let signals = countersign_sys::signals(&all_signals())?;
    let started = command.status()?;
    if !started.success() {
        return Ok(started.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Stage::Start.code()));
    }
    let text = std::fs::read_to_string(pid_file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => drop(ready?),
        }
        let [ended, signalled] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            return Ok(0);
        }
        let mut number = [0];
        if signalled && rustix::io::read(&signals, &mut number).is_ok() {
            let [number] = number.map(i32::from);
            // What is to end it does so as the runtime's own `instance stop`.
            let signal = Signal::from_named_raw(number).filter(|signal| *signal != Signal::TERM).unwrap_or(Signal::INT);
            let _ = pidfd_send_signal(&process, signal);
        }
    }
}

fn gate_of(number: u32) -> io::Result<Channel> {
    countersign_sys::keep_descriptors()?;
    Ok(countersign_sys::inherited_descriptor(number)?.into())
}

/// Whether the word came, and not the end.
fn wait(gate: &Channel) -> io::Result<bool> {
    match gate.receive()? {
        Some((Cue::Run, _)) => Ok(true),
        None => Ok(false),
    }
}

fn own_processes() -> rustix::io::Result<()> {
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
}

/// Keeps no capability, also beyond the next program, and no way to one. Below a `nested` runtime root keeps what it needs to be mapped into a
/// user namespace.
pub(crate) fn drop_privileges(nested: bool) -> rustix::io::Result<()> {
    use rustix::thread::{
        capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    };
    clear_ambient_capability_set()?;
    let keep =
        if nested && rustix::process::geteuid().is_root() { CapabilitySet::SETFCAP } else { CapabilitySet::empty() };
    for capability in capabilities(None)?.permitted.difference(keep).iter() {
        remove_capability_from_bounding_set(capability)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() })
}

#[cfg(test)]
mod tests {
    use super::{Cue, wait};
    use crate::channel::Channel;

    #[test]
    fn the_word_is_said_and_not_the_end() {
        let told = |cue: Option<Cue>| {
            let (inside, gate) = Channel::pair().unwrap();
            if let Some(cue) = cue {
                gate.send(&cue, &[]).unwrap();
            }
            inside
        };
        assert!(wait(&told(Some(Cue::Run))).unwrap());
        assert!(!wait(&told(None)).unwrap());
        let (inside, gate) = Channel::pair().unwrap();
        gate.send(&"another word", &[]).unwrap();
        assert!(wait(&inside).is_err());
    }
}
