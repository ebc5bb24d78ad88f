//! A session: a process for each connection, a child of the daemon, that talks to one client and is its run's supervisor.
//!
//! Whatever a client sends, or does not send, is between it and this process.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::caller::{Caller, daemon_gone};
use super::message::{Answer, Ask, Brief, Reply, Request, Word};
use crate::channel::Channel;
use crate::ending::GRACE;
use crate::exit::{Failure, Stage};
use crate::run::{Plan, run_with};
use crate::status::Status;
use crate::watch::{ENDING, PASSED, SUSPEND};

/// How long a client may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(10);
/// How long a client may take to leave, once it has its answer.
const LEAVE: Duration = Duration::from_secs(2);

/// Runs the session on its standard input.
pub(crate) fn main() -> u8 {
    // Neither the daemon's terminal, where it has one, nor its keys' signals.
    let _ = rustix::process::setsid();
    let Ok(daemon) = Channel::from_stdin() else { return Stage::Other.code() };
    let Ok(Some((brief, mut fds))) = daemon.receive::<Brief>() else { return Stage::Other.code() };
    let process = if fds.len() > 1 { fds.pop() } else { None };
    let Some(client) = fds.pop().map(Channel::from) else { return Stage::Other.code() };
    // Open until the end: once it is closed, the daemon takes this process for ended, and ends it.
    let Ok(_open) = daemon.try_clone() else { return Stage::Other.code() };
    let mut ear = None;
    let answer = match serve(&client, brief, daemon, process, &mut ear) {
        Ok(answer) => answer,
        Err(failure) => Answer::Failed(failure),
    };
    if let Some(ear) = &ear {
        ear.over.store(true, Ordering::Relaxed);
    }
    let _ = client.send(&answer, &[]);
    // What a client has sent and nobody has read would, on closing, take the answer with it.
    if let Some(ear) = ear {
        let _ = ear.gone.recv_timeout(LEAVE);
    }
    0
}

fn usage(e: impl std::fmt::Display) -> Failure {
    Failure::new(
        Stage::Usage,
        format!("the daemon does not understand the request: {e}"),
        "use the supervisor of the daemon's version",
    )
}

/// The request.
fn asked(client: &Channel) -> Result<(Request, Vec<OwnedFd>), Failure> {
    let patience = Timespec::try_from(REQUEST).map_err(usage)?;
    let mut fds = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)];
    if poll(&mut fds, Some(&patience)).map_err(usage)? == 0 {
        return Err(usage(format!("none came within {} s", REQUEST.as_secs())));
    }
    client.receive().map_err(usage)?.ok_or_else(|| usage("the client is gone"))
}

fn serve(
    client: &Channel,
    brief: Brief,
    daemon: Channel,
    process: Option<OwnedFd>,
    ear: &mut Option<Ear>,
) -> Result<Answer, Failure> {
    client.send(&Answer::Ready, &[]).map_err(usage)?;
    let (request, fds) = asked(client)?;
    let start = match request {
        Request::Run(start) => *start,
        Request::List => {
            daemon.send(&Ask::List, &[]).map_err(|_| daemon_gone())?;
            return match daemon.receive::<Reply>() {
                Ok(Some((Reply::Runs(runs, more), _))) => Ok(Answer::Runs(runs, more)),
                _ => Err(daemon_gone()),
            };
        }
    };
    let (task, at_terminal) = (start.task.clone(), start.terminal);
    let mut caller = Caller::new(&brief.peer, &brief.grant, start, fds, daemon)?;
    if at_terminal {
        let again = client.try_clone().map_err(usage)?;
        client.send(&Answer::Terminal, &[caller.take_terminal(again)?.as_fd()]).map_err(usage)?;
    }
    *ear = Some(Ear::open(client.try_clone().map_err(usage)?, process));
    let plan = Plan {
        image: "image".into(),
        signers: Vec::new(),
        task,
        runtime: "builtin".into(),
        flags: caller.flags(),
        config: brief.host.config,
        tpm: brief.host.tpm,
        state_dir: brief.host.state_dir,
        // It holds the host's logs, which tell of other users' runs.
        bundle: None,
        status_fd: caller.status_fd(),
        caller: Some(Arc::new(caller)),
    };
    run_with(&plan, Status::open(plan.status_fd)?).map(Answer::Ended)
}

/// Listens to the client while its run goes on: passes signals on, and ends the run when the client is gone.
struct Ear {
    /// The run is over: nothing is to be ended any more.
    over: Arc<AtomicBool>,
    /// Hears when the client is gone.
    gone: Receiver<()>,
}

impl Ear {
    fn open(client: Channel, process: Option<OwnedFd>) -> Self {
        let (told, gone) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        std::thread::spawn(move || listen(&client, process.as_ref(), &seen, &told));
        Self { over, gone }
    }
}

fn listen(client: &Channel, process: Option<&OwnedFd>, over: &AtomicBool, told: &Sender<()>) {
    while let Some(number) = heard(client, process) {
        let number = i32::from(number);
        // What is for a workload alone would end this process before it listens.
        let passed = PASSED.contains(&number) || number == i32::from(SUSPEND);
        let known = ENDING.contains(&number) || (passed && countersign_sys::is_heard(number));
        if let Some(signal) = Signal::from_named_raw(number).filter(|_| known) {
            let _ = kill_process(getpid(), signal);
        }
    }
    let _ = told.send(());
    if over.load(Ordering::Relaxed) {
        return;
    }
    // As if it had asked for it, and again. Whatever holds the run up then, it ends with this process.
    for patience in [GRACE, LEAVE.saturating_add(LEAVE)] {
        let _ = kill_process(getpid(), Signal::TERM);
        std::thread::sleep(patience);
    }
    let _ = kill_process(getpid(), Signal::KILL);
}

/// The next signal; `None` once the client is gone, or sends what it should not.
fn heard(client: &Channel, process: Option<&OwnedFd>) -> Option<u8> {
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)];
        fds.extend(process.map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.ok()?,
        };
        if fds.first().is_some_and(|fd| fd.revents().is_empty()) {
            // The process that connected has ended; another that has its end of the socket does not count.
            return None;
        }
        let (Word::Signal(number), fds) = client.receive::<Word>().ok()??;
        return fds.is_empty().then_some(number);
    }
}
