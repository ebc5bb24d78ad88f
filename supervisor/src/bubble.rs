//! The workload under bubblewrap: read-only root, its own processes, mounts and ids, no new privileges, no capabilities.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::stage::{Program, Report, Word, missing, start};

/// Where Singularity and Apptainer images have their entry point.
const RUNSCRIPT: &str = ".singularity.d/runscript";
/// Longest line of bubblewrap's status that is read.
const STATUS: usize = 64 * 1024;

/// What to run in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// The image's runscript with these arguments; without one, the arguments are the command line.
    Run(Vec<OsString>),
    /// This command line.
    Exec(Vec<OsString>),
    /// A shell.
    Shell(Vec<OsString>),
}

impl Task {
    fn command_line(&self, root: &Path) -> Vec<OsString> {
        let has = |path: &str| root.join(path).symlink_metadata().is_ok();
        let shell = || OsString::from(if has("bin/bash") { "/bin/bash" } else { "/bin/sh" });
        match self {
            Self::Run(arguments) if has(RUNSCRIPT) => {
                [OsString::from(format!("/{RUNSCRIPT}"))].into_iter().chain(arguments.iter().cloned()).collect()
            }
            Self::Run(arguments) | Self::Exec(arguments) if !arguments.is_empty() => arguments.clone(),
            Self::Run(_) | Self::Exec(_) => vec![shell()],
            Self::Shell(arguments) => [shell()].into_iter().chain(arguments.iter().cloned()).collect(),
        }
    }
}

/// The user's ids, which the workload keeps.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ids {
    user: u32,
    group: u32,
}

impl Ids {
    /// Those of another user, on whose behalf this is.
    pub(crate) const fn new(user: u32, group: u32) -> Self {
        Self { user, group }
    }

    /// Those of this process; to be asked before it enters a user namespace.
    pub(crate) fn own() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }
}

/// Runs the workload; its exit code, or `None` when the supervisor is gone.
pub(crate) fn workload(
    channel: &Channel,
    root: &Path,
    task: &Task,
    ids: Ids,
    stdin: OwnedFd,
    squashfuse: &Child,
) -> Result<Option<u8>, Failure> {
    let program = Program::Bubblewrap.find()?;
    let (status, writer) = std::io::pipe().map_err(start)?;
    let command_line = task.command_line(root);
    let mut command = Command::new(&program);
    countersign_sys::end_with_parent(&mut command);
    // The container's first process is bubblewrap's own, and the workload can read that one's environment too.
    command.env_clear().env("LC_ALL", "C");
    command.arg("--ro-bind").arg(root).arg("/");
    // A link is not followed: it would lead out of the image.
    let has = |name: &str| root.join(name).symlink_metadata().is_ok_and(|found| found.is_dir());
    if has("proc") {
        command.args(["--proc", "/proc"]);
    }
    if has("dev") {
        command.args(["--dev", "/dev"]);
    }
    if has("tmp") {
        command.args(["--tmpfs", "/tmp"]);
    }
    command.arg("--unshare-user").args(["--uid", &ids.user.to_string(), "--gid", &ids.group.to_string()]);
    command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    command.args(["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--chdir", "/"]);
    command.args(["--clearenv", "--setenv", "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    for name in ["TERM", "LANG", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.arg("--setenv").arg(name).arg(value);
        }
    }
    command.arg("--json-status-fd").arg(writer.as_raw_fd().to_string());
    command.arg("--").args(&command_line);
    command.stdin(Stdio::from(stdin));
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).map_err(start)?;
    let mut bubblewrap = command.spawn().map_err(|e| missing(&program, &e))?;
    drop((writer, command));
    let outcome = watch(channel, File::from(OwnedFd::from(status)), &mut bubblewrap, squashfuse);
    if !matches!(outcome, Ok(Some(_))) {
        let _ = bubblewrap.kill();
    }
    let ended = bubblewrap.wait().map_err(start)?;
    let Some(told) = outcome? else { return Ok(None) };
    let code = told.code.and_then(|code| u8::try_from(code).ok());
    // Without a code the command line was never executed; bubblewrap has said why on standard error.
    code.map(Some).ok_or_else(|| {
        if let Some(signal) = ended.signal() {
            return Failure::new(
                Stage::Start,
                format!("bubblewrap was killed (signal {signal})"),
                "run the command again",
            );
        }
        let name = command_line.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Failure::new(
            Stage::Start,
            format!("the workload cannot be started: bubblewrap could not run {name:?}"),
            "give a program that is in the image, with its path",
        )
    })
}

/// What bubblewrap has told on its status descriptor.
#[derive(Debug, Default)]
struct Told {
    bytes: Vec<u8>,
    /// First process of the container, by its id here.
    init: Option<Pid>,
    /// Exit code of a workload that was executed.
    code: Option<i64>,
}

impl Told {
    /// Reads what is there; false at the end.
    fn read(&mut self, status: &mut File) -> bool {
        let mut part = [0; 1024];
        let n = status.read(&mut part).unwrap_or(0);
        self.bytes.extend(part.get(..n).unwrap_or_default());
        let documents = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<serde_json::Value>();
        for document in documents.map_while(Result::ok) {
            let number = |name: &str| document.get(name).and_then(serde_json::Value::as_i64);
            self.init = self.init.or_else(|| Pid::from_raw(i32::try_from(number("child-pid")?).ok()?));
            self.code = self.code.or_else(|| number("exit-code"));
        }
        n > 0 && self.bytes.len() < STATUS
    }

    /// The workload's first process: number 2 behind bubblewrap's own number 1.
    fn workload(&self) -> Option<Pid> {
        let init = self.init?.as_raw_nonzero().to_string();
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
            let second = || field("NSpid:").and_then(|ids| ids.split_whitespace().last()) == Some("2");
            if field("PPid:").is_some_and(|parent| parent.trim() == init) && second() {
                return Pid::from_raw(pid);
            }
        }
        None
    }
}

/// Whether a process has ended, or does so within a moment: its files are closed before it counts as ended.
fn ends_soon(process: &OwnedFd) -> Result<bool, Failure> {
    let moment = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut fds, Some(&moment)) {
        Err(rustix::io::Errno::INTR) => Ok(false),
        ready => Ok(ready.map_err(start)? > 0),
    }
}

/// Waits until bubblewrap ends; `None` when the supervisor is gone.
fn watch(
    channel: &Channel,
    mut status: File,
    bubblewrap: &mut Child,
    squashfuse: &Child,
) -> Result<Option<Told>, Failure> {
    let process = |child: &Child| {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        pidfd_open(pid, PidfdFlags::empty())
    };
    let (bubble, files) = (process(bubblewrap).map_err(start)?, process(squashfuse).map_err(start)?);
    let mut told = Told::default();
    let (mut open, mut announced) = (true, false);
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN),
            PollFd::new(&bubble, PollFlags::IN),
            PollFd::new(&files, PollFlags::IN),
        ];
        if open {
            fds.push(PollFd::new(&status, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(start)?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_ready = |n: usize| ready.get(n).copied().unwrap_or(false);
        if is_ready(3) {
            open = told.read(&mut status);
            if told.init.is_some() && !announced {
                announced = true;
                channel.send(&Report::Started, &[]).map_err(start)?;
            }
        } else if is_ready(2) || (is_ready(1) && told.code != Some(0) && ends_soon(&files)?) {
            // Before bubblewrap's own end: a workload that loses its files dies of it (SIGBUS), and its code would say nothing of why.
            let hint = "the system's log may say why (out of memory?)";
            return Err(Failure::new(Stage::Namespaces, "squashfuse ended: the container has lost its files", hint));
        } else if is_ready(1) {
            return Ok(Some(told));
        } else if is_ready(0) {
            let signal = match channel.receive::<Word>().map_err(start)? {
                Some((Word::Signal(number), _)) => Signal::from_named_raw(i32::from(number)).unwrap_or(Signal::TERM),
                Some((Word::Interrupt, _)) => {
                    // The group is the container's (--new-session): its number 1 is bubblewrap's, which the kernel spares.
                    let group = told.workload().and_then(|pid| getpgid(Some(pid)).ok());
                    if let Some(group) = group.filter(|group| told.init == Some(*group)) {
                        let _ = kill_process_group(group, Signal::INT);
                    }
                    continue;
                }
                Some((Word::Serving, _)) | None => return Ok(None),
            };
            match told.workload() {
                Some(pid) => drop(kill_process(pid, signal)),
                // Not there yet, or not any more.
                None => drop(bubblewrap.kill()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runscript_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let run = Task::Run(words(&["a", "b"]));
        assert_eq!(run.command_line(root), words(&["a", "b"]));
        assert_eq!(Task::Run(Vec::new()).command_line(root), words(&["/bin/sh"]));
        std::fs::create_dir(root.join(".singularity.d")).unwrap();
        std::fs::write(root.join(RUNSCRIPT), "").unwrap();
        assert_eq!(run.command_line(root), words(&["/.singularity.d/runscript", "a", "b"]));
        assert_eq!(Task::Exec(words(&["a"])).command_line(root), words(&["a"]));
        std::fs::create_dir(root.join("bin")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("bin/bash")).unwrap();
        assert_eq!(Task::Shell(words(&["-l"])).command_line(root), words(&["/bin/bash", "-l"]));
    }

    #[test]
    fn bubblewraps_status_in_pieces() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut status = File::from(OwnedFd::from(reader));
        let mut told = Told::default();
        for (piece, init, code) in [
            ("{ \"child-pid\": 12", None, None),
            ("34, \"mnt-namespace\": 5 }\n", Some(1234), None),
            ("{ \"exit-code\": 3 }\n", Some(1234), Some(3)),
        ] {
            std::io::Write::write_all(&mut writer, piece.as_bytes()).unwrap();
            assert!(told.read(&mut status));
            assert_eq!((told.init.map(|pid| pid.as_raw_nonzero().get()), told.code), (init, code), "{piece}");
        }
        drop(writer);
        assert!(!told.read(&mut status));
    }
}
