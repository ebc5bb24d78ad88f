//! The swtpm process: started, found again, ended.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::control::Control;
use crate::error::Error;
use crate::manufacture::tail;
use crate::tools;

/// How long swtpm may take to answer after its start, or to end.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks for the socket of a starting swtpm.
const LOOK: Duration = Duration::from_millis(2);

/// A shell that keeps swtpm only as long as its own input is open: our end of that pipe closes with us, however we end.
/// It ignores the signals that a terminal sends to all, so that it is there to do so. Its output is swtpm's alone: that pipe
/// closes when swtpm ends.
const KEEPER: &str = "\"$@\" </dev/null & pid=$!; exec >/dev/null 2>&1; trap '' INT TERM HUP; read -r line; \
                      kill -9 $pid; wait $pid";

/// Where the parts of one TPM's process are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `--tpmstate`.
    pub(crate) state: PathBuf,
    /// Data socket.
    pub(crate) data: PathBuf,
    /// Control socket.
    pub(crate) control: PathBuf,
    /// Process id.
    pub(crate) pid: PathBuf,
    /// swtpm's log.
    pub(crate) log: PathBuf,
}

/// What swtpm does at power on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerOn {
    /// TPM2_Startup(CLEAR) at locality 0.
    Clear,
    /// TPM2_Startup(STATE).
    State,
    /// Powered, no TPM2_Startup yet.
    NoStartup,
    /// Not yet powered: waits for CMD_INIT.
    Off,
}

/// How long the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the [`Sim`](crate::Sim), and never longer than this process.
    Scoped,
    /// Until it is stopped; another process finds it with [`Sim::open`](crate::Sim::open).
    Detached,
}

/// A running swtpm.
pub(crate) enum Process {
    /// Under a keeper that ends it with us.
    Scoped {
        /// The keeper.
        keeper: Child,
        /// Closing it ends the keeper.
        leash: Option<ChildStdin>,
        /// Closed by swtpm's end.
        alive: Option<ChildStdout>,
    },
    /// On its own.
    Detached {
        /// Stays that of this process, even when its number is given to another.
        handle: OwnedFd,
        /// If we started it: to be reaped.
        child: Option<Child>,
    },
}

impl Process {
    /// Starts swtpm and waits until it answers.
    pub(crate) fn start(places: &Places, power: PowerOn, lifetime: Lifetime) -> Result<Self, Error> {
        let swtpm = tools::find("swtpm")?;
        for stale in [&places.data, &places.control, &places.pid] {
            match std::fs::remove_file(stale) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file("remove", stale)(error)),
            }
        }
        let mut args = vec!["socket".to_owned(), "--tpm2".to_owned()];
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        option("--tpmstate", format!("dir={}", tools::plain_path(&places.state)?));
        option("--server", format!("type=unixio,path={},mode=0600", tools::plain_path(&places.data)?));
        option("--ctrl", format!("type=unixio,path={},mode=0600", tools::plain_path(&places.control)?));
        option("--pid", format!("file={}", tools::plain_path(&places.pid)?));
        option("--log", format!("file={},level=1,truncate", tools::plain_path(&places.log)?));
        match power {
            PowerOn::Clear => option("--flags", "not-need-init,startup-clear".to_owned()),
            PowerOn::State => option("--flags", "not-need-init,startup-state".to_owned()),
            PowerOn::NoStartup => option("--flags", "not-need-init".to_owned()),
            PowerOn::Off => {}
        }
        let process = match lifetime {
            Lifetime::Scoped => {
                let shell = tools::find("sh")?;
                let mut command = tools::command(&shell);
                command.arg("-c").arg(KEEPER).arg("tpm-sim-keeper").arg(&swtpm).args(args);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                let mut keeper = command.spawn().map_err(Error::file("run", shell))?;
                let (leash, alive) = (keeper.stdin.take(), keeper.stdout.take());
                Self::Scoped { keeper, leash, alive }
            }
            Lifetime::Detached => {
                let mut command = tools::command(&swtpm);
                // A process group of its own: what a terminal sends to our group does not reach it.
                command.args(args).process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = command.spawn().map_err(Error::file("run", &swtpm))?;
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                    Some(Ok(handle)) => Self::Detached { handle, child: Some(child) },
                    other => {
                        let _gone = child.kill().and_then(|()| child.wait());
                        return Err(Error::Start(format!("no handle on the process: {other:?}")));
                    }
                }
            }
        };
        process.wait_ready(places)
    }

    /// The running swtpm of these places, if there is one.
    pub(crate) fn find(places: &Places) -> Result<Option<Self>, Error> {
        let Ok(text) = std::fs::read_to_string(&places.pid) else { return Ok(None) };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return Ok(None) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
        // The handle is taken first: if the command line is that of our swtpm, the handle is too.
        let Ok(line) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return Ok(None) };
        let state = format!("dir={}", tools::plain_path(&places.state)?);
        let ours = line.split(|&byte| byte == 0).any(|arg| arg == state.as_bytes());
        Ok(ours.then_some(Self::Detached { handle, child: None }))
    }

    fn wait_ready(mut self, places: &Places) -> Result<Self, Error> {
        let end = Instant::now().checked_add(DEADLINE);
        let failed = loop {
            match Control::Capability.send(&places.control) {
                Ok(()) => return Ok(self),
                Err(_) if self.ends_within(Duration::ZERO) => break "it ended",
                Err(_) if end.is_some_and(|end| Instant::now() > end) => break "it does not answer",
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        self.kill();
        Err(Error::Start(format!("{failed}; {}", read_log(&places.log))))
    }

    /// How long it lives.
    pub(crate) const fn lifetime(&self) -> Lifetime {
        match self {
            Self::Scoped { .. } => Lifetime::Scoped,
            Self::Detached { .. } => Lifetime::Detached,
        }
    }

    /// Whether swtpm ends by itself within the time.
    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        match self {
            Self::Scoped { alive, .. } => alive.as_ref().is_none_or(|pipe| closed(pipe.as_fd(), PollFlags::HUP, time)),
            Self::Detached { handle, .. } => closed(handle.as_fd(), PollFlags::IN, time),
        }
    }

    /// Waits for swtpm to end after CMD_SHUTDOWN; ends it if it does not.
    pub(crate) fn finish(mut self) {
        self.ends_within(DEADLINE);
        self.kill();
    }

    /// SIGKILL, as a power cut, and waits until it is gone. Errors mean that it is gone already.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Scoped { keeper, leash, .. } => {
                drop(leash.take());
                let _gone = keeper.wait();
            }
            Self::Detached { handle, child } => {
                let _gone = pidfd_send_signal(&*handle, Signal::KILL);
                closed(handle.as_fd(), PollFlags::IN, DEADLINE);
                if let Some(child) = child {
                    let _gone = child.wait();
                }
            }
        }
    }
}

/// Whether the descriptor shows this event within the time.
fn closed(descriptor: BorrowedFd<'_>, event: PollFlags, time: Duration) -> bool {
    let end = Instant::now().checked_add(time);
    loop {
        let left = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        // HUP is reported unasked; asking for nothing else keeps swtpm's messages from waking us.
        let mut fds = [PollFd::from_borrowed_fd(descriptor, event.difference(PollFlags::HUP))];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) | Ok(0) => return false,
            Ok(_) => return fds.iter().any(|fd| fd.revents().intersects(event)),
        }
    }
}

fn read_log(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(log) if !log.is_empty() => tail(&log),
        _ => "it left no message".to_owned(),
    }
}
