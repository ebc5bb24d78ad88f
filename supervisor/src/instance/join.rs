//! Another command line in a running instance: in its namespaces, with no more privileges than its own processes.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, kill_process};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::folder::Instances;
use super::{handle, living, other, stats};
use crate::exit::{Failure, Stage};
use crate::run::{Given, Task};
use crate::watch::all_signals;

/// How long bubblewrap may take to make the container.
const SET_UP: Duration = Duration::from_secs(10);

const NAMESPACES: [(&str, ThreadNameSpaceType); 7] = [
    ("user", ThreadNameSpaceType::USER),
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("pid", ThreadNameSpaceType::PROCESS_ID),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("net", ThreadNameSpaceType::NETWORK),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
];

/// Runs a command line in an instance; its exit code.
///
/// # Errors
/// [`Stage::Usage`] when the instance does not run, [`Stage::Namespaces`] when it cannot be entered, [`Stage::Start`].
pub fn join(instances: Option<&Path>, name: &str, task: &Task, flags: &[Given]) -> Result<u8, Failure> {
    let instance = Instances::open(instances)?.named(name)?;
    let note = instance.running()?;
    let gone = || Failure::new(Stage::Start, format!("the instance {name} has just ended"), "supervisor instance list");
    let init = handle(note.init).ok_or_else(gone)?;
    // As long as its supervisor lives, so does the first process, or that id is nobody's.
    living(&instance, &note)?.ok_or_else(gone)?;
    let entering = |e: &dyn std::fmt::Display| {
        Failure::new(Stage::Namespaces, format!("the instance {name} cannot be entered: {e}"), "run it as its owner")
    };
    if !note.runtime.is_nested() {
        set_up(note.init).map_err(|e| entering(&e))?;
    }
    // What is started here is watched, frozen and ended with the rest.
    let cgroup = stats::cgroup(note.init)
        .ok()
        .map(|folder| fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")));
    let cgroup = cgroup.transpose().map_err(|e| entering(&e))?;
    let here = std::env::current_dir();
    let at_terminal = matches!(task, Task::Shell(_)) && crate::runtime::Share::now().is_any();
    let mut command = {
        let root = PathBuf::from(format!("/proc/{}/root", note.init));
        note.runtime.join(name, &root, &instance.path("runtime"), task, flags)?
    };
    let link = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let mut kinds = ThreadNameSpaceType::empty();
    for (kind, flag) in NAMESPACES {
        if link(&note.init.to_string(), kind).map_err(|e| entering(&e))?
            != link("self", kind).map_err(|e| entering(&e))?
        {
            kinds |= flag;
        }
    }
    countersign_sys::keep_descriptors().map_err(other)?;
    let signals = countersign_sys::signals(&all_signals()).map_err(other)?;
    move_into_thread_name_spaces(init.as_fd(), kinds).map_err(|e| entering(&e))?;
    crate::runtime::drop_privileges(note.runtime.is_nested()).map_err(|e| entering(&e))?;
    // Where the user is, in a runtime that shows the machine; else at the root.
    if !note.runtime.is_nested() || here.and_then(std::env::set_current_dir).is_err() {
        std::env::set_current_dir("/").map_err(|e| entering(&e))?;
    }
    countersign_sys::end_with_parent(&mut command);
    if let Some(procs) = cgroup {
        countersign_sys::join_cgroup(&mut command, procs.into());
    }
    // A shell gets the user's terminal and may not type into it, whatever else runs gets a session without one: it would be in this process's
    // group, and all of that is in its reach then.
    let filter = crate::runtime::terminal_filter().filter(|_| at_terminal);
    match &filter {
        Some(filter) => countersign_sys::filter_calls(&mut command, filter),
        None => countersign_sys::start_in_new_session(&mut command),
    };
    let child = command.spawn().map_err(|e| {
        let what = format!("{:?} cannot be started in the instance: {e}", command.get_program());
        Failure::new(Stage::Start, what, "give a program that is in the image, with its path")
    })?;
    wait(child, &signals, filter.is_some())
}

/// Waits until bubblewrap has made the container: its first process gives its capabilities up last. Before, the image is not its root yet.
fn set_up(init: u32) -> io::Result<()> {
    let asked = Instant::now();
    loop {
        let status = fs::read_to_string(format!("/proc/{init}/status"))?;
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        if capabilities.is_some_and(|set| set.trim().bytes().all(|digit| digit == b'0')) {
            return Ok(());
        }
        if asked.elapsed() > SET_UP {
            return Err(io::Error::other("it is not set up"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Passes signals on until it ends. Those of a terminal's keys reach what is at the `terminal` by themselves.
fn wait(mut child: Child, signals: &std::os::fd::OwnedFd, terminal: bool) -> Result<u8, Failure> {
    let pid = rustix::process::Pid::from_child(&child);
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(other)?;
    loop {
        let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => drop(ready.map_err(other)?),
        }
        let [ended, signalled] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            let status = child.wait().map_err(other)?;
            let code = status.code().or_else(|| status.signal().map(|signal| signal.saturating_add(128)));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(Stage::Other.code()));
        }
        let mut number = [0];
        if signalled && rustix::io::read(signals, &mut number).is_ok_and(|n| n > 0) {
            let number = i32::from(number.first().copied().unwrap_or_default());
            let keys = [Signal::INT, Signal::QUIT, Signal::WINCH];
            if let Some(signal) = Signal::from_named_raw(number).filter(|signal| !(terminal && keys.contains(signal))) {
                let _ = kill_process(pid, signal);
            }
        }
    }
}
