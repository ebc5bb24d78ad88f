//! What every runtime here is started by: bubblewrap, which gives the container its own ids and processes and ends them all with the stage.

use std::fs::File;
use std::io::{PipeReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use countersign_sys::Spawned;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process, kill_process_group, pidfd_open};

use super::Ids;
use super::barrier::Barrier;
use super::outer::Cue;
use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::stage::{Program, Report, Word, missing, start};
use crate::watch::ends;

/// Longest line of bubblewrap's status that is read.
const STATUS: usize = 64 * 1024;

/// A command line of bubblewrap in the making.
#[derive(Debug)]
pub(super) struct Bubble {
    pub(super) command: Command,
    status: PipeReader,
    gate: Option<Gate>,
    /// What it inherits.
    kept: Vec<OwnedFd>,
}

/// What holds a runtime up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) barrier: Barrier,
    /// To the agent, which waits too where the runtime would take the terminal before it comes to the barrier.
    pub(super) agent: Option<Channel>,
}

/// What holds a workload up whose container is made: bubblewrap waits for a byte from here (its `--block-fd`). At an end it would go on, so this
/// is a socket that has none; whoever waits at it without hope ends with its namespace.
#[derive(Debug)]
pub(super) struct Gate(OwnedFd);

impl Gate {
    /// One, and what to wait at.
    fn made() -> Result<(OwnedFd, Self), Failure> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        pair.map(|(inside, gate)| (inside, Self(gate))).map_err(start)
    }

    /// Lets it run. Who has ended meanwhile says so himself.
    fn open(self) {
        let _ = rustix::io::write(&self.0, &[1]);
    }
}

/// bubblewrap at work.
#[derive(Debug)]
pub(crate) struct Waiting {
    bubblewrap: Spawned,
    status: File,
    held: Option<Held>,
    gate: Option<Gate>,
    /// What it is to start, in words.
    what: String,
}

/// The user's standard input, and the entrance to the run's cgroup and its folder, if there is one.
pub(crate) type Given = (OwnedFd, Option<(OwnedFd, OwnedFd)>);

impl Bubble {
    pub(super) fn new(ids: Ids) -> Result<Self, Failure> {
        let mut command = Command::new(Program::Bubblewrap.find()?);
        countersign_sys::end_with_parent(&mut command);
        command.arg("--unshare-user").args(["--uid", &ids.user.to_string(), "--gid", &ids.group.to_string()]);
        command.args(["--unshare-pid", "--die-with-parent"]);
        let (status, writer) = std::io::pipe().map_err(start)?;
        let mut bubble = Self { command, status, gate: None, kept: Vec::new() };
        bubble.give("--json-status-fd", writer.into())?;
        Ok(bubble)
    }

    /// What bubblewrap starts waits for the word ([`Cue`]) on this descriptor, and at its end there is nothing to be run any more; the word is said
    /// on the channel.
    pub(super) fn agent(&mut self) -> Result<(RawFd, Channel), Failure> {
        // Nobody else can open a socket by /proc, as he could a pipe.
        let (inside, agent) = Channel::pair().map_err(start)?;
        Ok((self.keep(inside.into_fd())?, agent))
    }

    /// The workload waits until it is watched. To be said before what it is.
    pub(super) fn holds(&mut self) -> Result<(), Failure> {
        let (inside, gate) = Gate::made()?;
        self.give("--block-fd", inside)?;
        self.gate = Some(gate);
        Ok(())
    }

    fn keep(&mut self, fd: OwnedFd) -> Result<RawFd, Failure> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map_err(start)?;
        let number = fd.as_raw_fd();
        self.kept.push(fd);
        Ok(number)
    }

    /// An option with a descriptor.
    pub(super) fn give(&mut self, option: &str, fd: OwnedFd) -> Result<(), Failure> {
        let number = self.keep(fd)?;
        self.command.arg(option).arg(number.to_string());
        Ok(())
    }

    /// Starts it, which is `what` in words.
    pub(super) fn start(
        self,
        what: String,
        stdin: OwnedFd,
        cgroup: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    ) -> Result<Waiting, Failure> {
        let Self { mut command, status, gate, kept } = self;
        command.stdin(Stdio::from(stdin));
        let bubblewrap = spawn(&mut command, cgroup).map_err(|e| missing(Path::new(command.get_program()), &e))?;
        drop(kept);
        Ok(Waiting { bubblewrap, status: File::from(OwnedFd::from(status)), held: None, gate, what })
    }
}

/// Starts bubblewrap in the run's cgroup, if there is one, as the first process of a namespace: neither a terminal's keys nor signals that a batch
/// system sends to all processes of a job end it, or stop it, before its workload has ended.
fn spawn(command: &mut Command, cgroup: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>) -> std::io::Result<Spawned> {
    let Some((entrance, folder)) = cgroup else { return countersign_sys::spawn_first(command, None) };
    if let Ok(born) = countersign_sys::spawn_first(command, Some(folder)) {
        return Ok(born);
    }
    // Where this process may not start one there, who opened the entrance may move one there.
    countersign_sys::spawn_first(countersign_sys::join_cgroup(command, entrance.try_clone_to_owned()?), None)
}

impl Waiting {
    /// What it holds it up.
    pub(super) fn held(self, held: Held) -> Self {
        Self { held: Some(held), ..self }
    }

    /// Puts the file system that is mounted at `root` behind the barrier.
    pub(super) fn hand_over(&self, root: &Path) -> Result<(), Failure> {
        self.held.as_ref().map_or(Ok(()), |held| held.barrier.take(root))
    }

    /// Ends it before it has run anything.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let _ = self.bubblewrap.kill();
        self.held.map(|held| held.barrier.remove()).transpose()?;
        self.bubblewrap.wait().map_err(start)?;
        Ok(())
    }

    /// The workload's exit code, or `None` when the supervisor is gone.
    pub(super) fn run(self, channel: &Channel, squashfuse: &Child) -> Result<Option<u8>, Failure> {
        let Self { bubblewrap, status, held, gate, what } = self;
        let told = Told::of(bubblewrap.pid());
        let outcome = watch(channel, (status, told), (held, gate), &bubblewrap, squashfuse);
        if !matches!(outcome, Ok(Some(_))) {
            let _ = bubblewrap.kill();
        }
        let ended = bubblewrap.wait().map_err(start)?;
        let Some(told) = outcome? else { return Ok(None) };
        let code = told.code.and_then(|code| u8::try_from(code).ok());
        // Without a code the command line was never executed; bubblewrap has said why on standard error.
        code.map(Some).ok_or_else(|| {
            if let Some(signal) = ended.terminating_signal() {
                return Failure::new(
                    Stage::Start,
                    format!("bubblewrap was killed (signal {signal})"),
                    "run the command again",
                );
            }
            Failure::new(
                Stage::Start,
                format!("the workload cannot be started: bubblewrap could not run {what}"),
                "give a program that is in the image, with its path",
            )
        })
    }
}

/// Runs what bubblewrap is to start (`what` in words), once the word is said, and its workload once it is watched; the workload's exit code, or
/// `None` when the supervisor is gone.
pub(super) fn run(
    channel: &Channel,
    bubble: Bubble,
    what: String,
    (stdin, cgroup): Given,
    squashfuse: &Child,
) -> Result<Option<u8>, Failure> {
    if !matches!(channel.receive::<Word>().map_err(start)?, Some((Word::Start, _))) {
        return Ok(None);
    }
    let waiting = bubble.start(what, stdin, borrowed(cgroup.as_ref()))?;
    drop(cgroup);
    waiting.run(channel, squashfuse)
}

pub(super) fn borrowed(cgroup: Option<&(OwnedFd, OwnedFd)>) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
    cgroup.map(|(entrance, folder)| (entrance.as_fd(), folder.as_fd()))
}

/// What bubblewrap has told on its status descriptor.
#[derive(Debug)]
struct Told {
    bytes: Vec<u8>,
    /// bubblewrap itself.
    parent: Pid,
    /// First process of the container, by its id here.
    init: Option<Pid>,
    /// Exit code of a workload that was executed.
    code: Option<i64>,
}

impl Told {
    const fn of(parent: Pid) -> Self {
        Self { bytes: Vec::new(), parent, init: None, code: None }
    }

    /// Reads what is there; false at the end.
    fn read(&mut self, status: &mut File) -> bool {
        let mut part = [0; 1024];
        let n = status.read(&mut part).unwrap_or(0);
        self.bytes.extend(part.get(..n).unwrap_or_default());
        let documents = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<serde_json::Value>();
        for document in documents.map_while(Result::ok) {
            let number = |name: &str| document.get(name).and_then(serde_json::Value::as_i64);
            // Its own number for it is that of the namespace that it is in.
            self.init = self.init.or_else(|| number("child-pid").and_then(|_| child_of(self.parent, "1")));
            self.code = self.code.or_else(|| number("exit-code"));
        }
        n > 0 && self.bytes.len() < STATUS
    }

    /// The workload's first process: number 2 behind bubblewrap's own number 1.
    fn workload(&self) -> Option<Pid> {
        child_of(self.init?, "2")
    }
}

/// A process's child that has this number in its own process namespace.
fn child_of(parent: Pid, number: &str) -> Option<Pid> {
    let parent = parent.as_raw_nonzero().to_string();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let numbered = || field("NSpid:").and_then(|ids| ids.split_whitespace().last()) == Some(number);
        if field("PPid:").is_some_and(|of| of.trim() == parent) && numbered() {
            return Pid::from_raw(pid);
        }
    }
    None
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
    (mut status, mut told): (File, Told),
    (mut held, mut gate): (Option<Held>, Option<Gate>),
    bubblewrap: &Spawned,
    squashfuse: &Child,
) -> Result<Option<Told>, Failure> {
    let open_process = |pid: Option<Pid>| pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty());
    let bubble = open_process(Some(bubblewrap.pid())).map_err(start)?;
    let files = i32::try_from(squashfuse.id()).ok().and_then(Pid::from_raw);
    let files = open_process(files).map_err(start)?;
    let (mut open, mut announced) = (true, false);
    loop {
        if let Some(init) = told.init.filter(|_| !announced && held.is_none()) {
            announced = true;
            let init = u32::try_from(init.as_raw_nonzero().get()).unwrap_or_default();
            channel.send(&Report::Started(init), &[]).map_err(start)?;
        }
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
        } else if is_ready(2) || (is_ready(1) && told.code != Some(0) && ends_soon(&files)?) {
            // Before bubblewrap's own end: a workload that loses its files dies of it (SIGBUS), and its code would say nothing of why.
            let hint = "the system's log may say why (out of memory?)";
            return Err(Failure::new(Stage::Namespaces, "squashfuse ended: the container has lost its files", hint));
        } else if is_ready(1) && held.is_some() {
            // The runtime had no use for the image: what it says of that is what it would have said without us, once the run is logged.
            return match told.code {
                Some(_) => Ok(starts(channel)?.then_some(told)),
                None => Err(start("what is around the runtime ended before the runtime did")),
            };
        } else if is_ready(1) {
            return Ok(Some(told));
        } else if is_ready(0) {
            let number = match channel.receive::<Word>().map_err(start)? {
                Some((Word::Signal(number), _)) => number,
                Some((Word::Key(number), _)) => {
                    // The group is the container's (--new-session): its number 1 is bubblewrap's, which the kernel spares.
                    let group = told.workload().and_then(|pid| getpgid(Some(pid)).ok());
                    let group = group.filter(|group| told.init == Some(*group));
                    if let Some((group, signal)) = group.zip(Signal::from_named_raw(i32::from(number))) {
                        let _ = kill_process_group(group, signal);
                    }
                    continue;
                }
                Some((Word::Start, _)) => {
                    if let Some(Held { barrier, agent }) = held.take() {
                        // What waits has ended where this fails, and said why.
                        let _ = agent.map(|agent| agent.send(&Cue::Run, &[]));
                        barrier.open();
                    }
                    continue;
                }
                Some((Word::Watched, _)) => {
                    gate.take().into_iter().for_each(Gate::open);
                    continue;
                }
                Some((Word::Runtime(_) | Word::Make(_), _)) | None => return Ok(None),
            };
            match (told.workload(), Signal::from_named_raw(i32::from(number))) {
                (Some(pid), Some(signal)) => drop(kill_process(pid, signal)),
                // Not there yet, or not any more: it ends as of the signal, unless it had ended by itself.
                (None, _) if ends(number) => {
                    told.code.get_or_insert(i64::from(number).saturating_add(128));
                    drop(bubblewrap.kill());
                }
                _ => {}
            }
        }
    }
}

/// Whether the word comes to start the workload, whatever comes before.
fn starts(channel: &Channel) -> Result<bool, Failure> {
    loop {
        match channel.receive::<Word>().map_err(start)? {
            Some((Word::Start, _)) => return Ok(true),
            Some((Word::Signal(_) | Word::Key(_) | Word::Watched, _)) => {}
            Some((Word::Runtime(_) | Word::Make(_), _)) | None => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_gate_opens_by_its_word_and_not_at_its_end() {
        let waits = |inside: &OwnedFd| {
            let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            poll(&mut [PollFd::new(inside, PollFlags::IN)], Some(&moment)).unwrap() == 0
        };
        let (inside, gate) = Gate::made().unwrap();
        assert!(waits(&inside));
        gate.open();
        assert_eq!(rustix::io::read(&inside, &mut [0; 1]), Ok(1));
        let (inside, gate) = Gate::made().unwrap();
        drop(gate);
        assert!(waits(&inside), "nobody can open it any more");
    }

    #[test]
    fn bubblewraps_status_in_pieces() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut status = File::from(OwnedFd::from(reader));
        let mut told = Told::of(rustix::process::getpid());
        for (piece, code) in [
            ("{ \"child-pid\": 12", None),
            ("34, \"mnt-namespace\": 5 }\n", None),
            ("{ \"exit-", None),
            ("code\": 3 }\n", Some(3)),
        ] {
            writer.write_all(piece.as_bytes()).unwrap();
            assert!(told.read(&mut status));
            assert_eq!((told.init, told.code), (None, code), "{piece}: nobody is number 1 below a test");
        }
        drop(writer);
        assert!(!told.read(&mut status));
    }
}
