//! The client's side: `supervisor run|exec|shell --daemon` and `supervisor ps`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use countersign_attest::tpm::TpmAddress;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, Mode, OFlags, access, open};
use serde_json::{Value, json};

use super::binds::{BINDS, opened, too_many};
use super::caller::daemon_gone;
use super::message::{Answer, ENVIRONMENT, Listed, Request, Start, VALUE, Word};
use super::settings::{Settings, When};
use super::terminal::{self, Relay};
use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::owner::signer;
use crate::run::{Ended, Plan, config};
use crate::runtime;
use crate::watch::{CONTINUE, SUSPEND, all_signals, ends};

/// SIGWINCH.
const RESIZED: i32 = 28;

/// The daemon's socket, when it is the daemon that is to be asked: the one given; else as `[client] daemon` says.
///
/// # Errors
/// [`Stage::Usage`] for options of a run without the daemon; [`Stage::Configuration`] for a file that cannot be read.
pub(crate) fn wanted(given: Option<&Path>, plan: &Plan) -> Result<Option<PathBuf>, Failure> {
    let own = plan.config.is_some() || plan.tpm.is_some() || plan.state_dir.is_some();
    if let Some(socket) = given {
        let hint = "leave --config, --tpm, --state-dir and their variables out, or --daemon";
        if own {
            return Err(Failure::new(Stage::Usage, "the daemon has a configuration of its own", hint));
        }
        return Ok(Some(place(socket)?));
    }
    if own || rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let settings = Settings::read(None)?;
    let socket = settings.daemon.socket;
    Ok(match settings.client.daemon {
        When::Never => None,
        When::Always => Some(socket),
        When::Auto => Some(socket).filter(|socket| socket.exists() && is_out_of_reach(plan)),
    })
}

/// Where the daemon listens; an empty path stands for the configured one.
fn place(given: &Path) -> Result<PathBuf, Failure> {
    if given.as_os_str().is_empty() { Ok(Settings::read(None)?.daemon.socket) } else { Ok(given.to_owned()) }
}

/// Whether the TPM is a device that this user may not use.
fn is_out_of_reach(plan: &Plan) -> bool {
    match config(plan.config.as_deref(), plan.tpm.as_deref(), plan.state_dir.clone()) {
        Ok(config) => match &config.tpm {
            TpmAddress::Device(device) => access(device, Access::READ_OK | Access::WRITE_OK).is_err(),
            TpmAddress::Unix(_) | TpmAddress::Tcp { .. } => false,
        },
        Err(_) => false,
    }
}

/// A connection to the daemon, which listens.
fn connect(socket: &Path) -> Result<Channel, Failure> {
    let channel = Channel::connect(socket).map_err(|e| {
        let hint = "systemctl start countersign-supervisor.socket (as root), or --daemon=SOCKET";
        Failure::new(Stage::Unreachable, format!("the daemon at {}: {e}", socket.display()), hint)
    })?;
    match hear(&channel)?.map(|(answer, _)| answer) {
        Some(Answer::Ready) => Ok(channel),
        Some(Answer::Failed(failure)) => Err(failure),
        Some(Answer::Terminal | Answer::Suspend | Answer::Ended(_) | Answer::Runs(..)) | None => Err(daemon_gone()),
    }
}

fn hear(channel: &Channel) -> Result<Option<(Answer, Vec<OwnedFd>)>, Failure> {
    let hint = "use the supervisor of the daemon's version";
    let heard = channel.receive::<Answer>();
    heard.map_err(|e| Failure::new(Stage::Unreachable, format!("the daemon's answer: {e}"), hint))
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

/// Has the daemon run a workload; the exit code, as of a run without it.
///
/// # Errors
/// [`Failure`] names the stage, whether here, at the daemon or in the run.
pub(crate) fn run(socket: &Path, plan: &Plan) -> Result<u8, Failure> {
    if plan.bundle.is_some() {
        let hint = "the administrator has it: verifier verdict show, verifier bundle";
        let what = "--bundle: the host's logs tell of its other users, the daemon gives them to nobody";
        return Err(Failure::new(Stage::Usage, what, hint));
    }
    if !["auto", "builtin"].iter().any(|name| plan.runtime == Path::new(name)) {
        let hint = "--runtime builtin, and a variable COUNTERSIGN_RUNTIME that says nothing else";
        return Err(Failure::new(Stage::Usage, "the daemon has the built-in runtime only", hint));
    }
    let settings = runtime::Settings::of(&plan.flags)?;
    let binds = settings.binds().map(|(source, _)| opened(source)).collect::<Result<Vec<_>, _>>()?;
    if binds.len() > BINDS {
        return Err(too_many(binds.len()));
    }
    let signers = plan.signers.iter().map(|path| signer(path).map(|(_, pem)| pem)).collect::<Result<_, _>>()?;
    // Opened here: what this user may not read is not to be run.
    let image = open(&plan.image, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty());
    let image = image.map_err(|e| {
        let hint = "give the path of an image that you may read";
        Failure::new(Stage::Image, format!("{}: {e}", plan.image.display()), hint)
    })?;
    let status = plan.status_fd.map(countersign_sys::inherited_descriptor).transpose().map_err(|e| {
        let hint = "give an open descriptor, for example --status-fd 3 3>FILE";
        Failure::new(Stage::Usage, format!("--status-fd: {e}"), hint)
    })?;
    let heard: Vec<i32> = all_signals().into_iter().chain([SUSPEND.into()]).collect();
    let signals = countersign_sys::signals(&heard).map_err(other)?;
    let terminal = terminal::is_there();
    let value = |name: &str| std::env::var(name).ok().filter(|value| value.len() <= VALUE);
    let environment = ENVIRONMENT.iter().filter_map(|name| Some(((*name).to_owned(), value(name)?))).collect();
    let channel = connect(socket)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut fds = vec![image.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    fds.extend(binds.iter().chain(&status).map(OwnedFd::as_fd));
    let start = Start { task: plan.task.clone(), settings, terminal, signers, environment };
    channel.send(&Request::Run(Box::new(start)), &fds).map_err(|e| {
        let hint = "a shorter command line, or fewer signers";
        Failure::new(Stage::Usage, format!("the request was not sent: {e}"), hint)
    })?;
    drop((image, status, binds));
    wait(&channel, &signals).map(Ended::code)
}

/// Passes signals on, and relays a terminal, until the run has ended.
fn wait(channel: &Channel, signals: &OwnedFd) -> Result<Ended, Failure> {
    let mut sent = None;
    let mut relay: Option<Relay> = None;
    loop {
        let (answer, signal, keys, ready) = ready(channel, signals, relay.as_ref())?;
        if let Some(relay) = &mut relay {
            relay.relay(keys, ready);
            relay.take();
        }
        let mut number = [0];
        if signal && rustix::io::read(signals, &mut number).is_ok_and(|n| n > 0) {
            let [number] = number;
            if let Some(relay) = relay.as_ref().filter(|_| i32::from(number) == RESIZED) {
                relay.resize();
            } else if number == SUSPEND {
                suspend(channel, relay.as_mut(), false);
            } else {
                sent = Some(number).filter(|number| ends(*number)).or(sent);
                // A daemon that is gone is heard below.
                let _ = channel.send(&Word::Signal(number), &[]);
            }
        }
        if !answer {
            continue;
        }
        let heard = hear(channel)?;
        match heard {
            Some((Answer::Terminal, mut fds)) => {
                relay = fds.pop().map(Relay::begin).transpose().map_err(other)?;
                continue;
            }
            Some((Answer::Suspend, _)) => {
                suspend(channel, relay.as_mut(), true);
                continue;
            }
            _ => {}
        }
        if let Some(relay) = relay {
            relay.finish();
        }
        return match (heard.map(|(answer, _)| answer), sent) {
            (Some(Answer::Ended(ended)), _) => Ok(ended),
            (Some(Answer::Failed(failure)), _) => Err(failure),
            // It came before anything was there that could have ended in order.
            (None, Some(number)) => Ok(Ended::by_signal(number)),
            (Some(Answer::Ready | Answer::Terminal | Answer::Suspend | Answer::Runs(..)) | None, _) => {
                Err(daemon_gone())
            }
        };
    }
}

/// Stops this process with its run, and continues both; `others` in its group did not hear the key.
fn suspend(channel: &Channel, mut relay: Option<&mut Relay>, others: bool) {
    // A daemon that is gone is heard elsewhere.
    let _ = channel.send(&Word::Signal(SUSPEND), &[]);
    relay.iter_mut().for_each(|relay| relay.rest());
    let _ = countersign_sys::suspend(SUSPEND.into(), others);
    relay.iter_mut().for_each(|relay| relay.take());
    let _ = channel.send(&Word::Signal(CONTINUE), &[]);
}

/// Waits; then whether there is an answer, a signal, something typed, and what the shell's terminal is ready for.
fn ready(
    channel: &Channel,
    signals: &OwnedFd,
    relay: Option<&Relay>,
) -> Result<(bool, bool, bool, PollFlags), Failure> {
    let stdin = std::io::stdin();
    let mut fds = vec![PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    if let Some((terminal, keys)) = relay.map(Relay::interest) {
        fds.push(terminal);
        if keys {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
    }
    let patience = relay.and_then(Relay::patience);
    match poll(&mut fds, patience.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok((false, false, false, PollFlags::empty())),
        polled => polled.map_err(other)?,
    };
    let mut ready = fds.iter().map(PollFd::revents);
    let mut next = || ready.next().unwrap_or(PollFlags::empty());
    let (answer, signal, terminal, keys) = (next(), next(), next(), next());
    Ok((!answer.is_empty(), !signal.is_empty(), !keys.is_empty(), terminal))
}

/// What runs under the daemon, as JSON: the caller's own, everybody's for root.
///
/// # Errors
/// [`Stage::Unreachable`], [`Stage::Refused`].
pub(crate) fn list(socket: Option<&Path>) -> Result<Value, Failure> {
    let socket = place(socket.unwrap_or_else(|| Path::new("")))?;
    let channel = connect(&socket)?;
    channel.send(&Request::List, &[]).map_err(other)?;
    match hear(&channel)?.map(|(answer, _)| answer) {
        Some(Answer::Runs(runs, more)) => Ok(json!({ "runs": runs, "more": more })),
        Some(Answer::Failed(failure)) => Err(failure),
        Some(Answer::Ready | Answer::Terminal | Answer::Suspend | Answer::Ended(_)) | None => Err(daemon_gone()),
    }
}

/// A list as a table.
pub(crate) fn table(list: &Value) -> String {
    let runs: Vec<Listed> =
        list.get("runs").and_then(|runs| serde_json::from_value(runs.clone()).ok()).unwrap_or_default();
    let mut lines = vec![format!("{:32} {:>8} {:>8} {:9} {:12} WORKLOAD", "RUN", "USER", "CLIENT", "STATE", "RULE")];
    for run in runs {
        let dash = || "-".to_owned();
        let id = run.run.map_or_else(dash, |id| id.to_string());
        let state = serde_json::to_value(run.state).ok();
        let state = state.as_ref().and_then(Value::as_str).unwrap_or_default();
        let workload = run.workload.map_or_else(dash, |id| id.to_string());
        lines.push(format!("{id:32} {:>8} {:>8} {state:9} {:12} {workload}", run.user, run.client, run.rule));
    }
    if let Some(more) = list.get("more").and_then(Value::as_u64).filter(|more| *more > 0) {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}
