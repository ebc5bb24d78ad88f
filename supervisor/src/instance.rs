//! Instances: runs that stay. Each has its own supervisor, which was started by `supervisor instance start` and belongs to no terminal; it is
//! watched, leased and logged like any run.

mod folder;
mod join;
mod stats;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use countersign_attest::state::StateDir;
use countersign_wire::obligations::RuntimeFlag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::channel::Channel;
use crate::ending::SAME;
use crate::exit::{Failure, Stage};
use crate::run::{Plan, Task, run_with, too_long};
use crate::status::Status;
use folder::{Instance, Instances, Note};

pub use join::join;
pub use stats::stats;

/// How long a supervisor may take to end what it was told to end at once.
const KILL: Duration = Duration::from_secs(15);

/// More than that, since the supervisor heard of the first one later.
const LATER: Duration = Duration::from_millis(100);

/// How often a runtime's note is looked for.
const PAUSE: Duration = Duration::from_millis(5);

/// What the new supervisor is told; the lock on the name comes along.
#[derive(Serialize, Deserialize)]
struct Order {
    plan: Plan,
    instances: PathBuf,
    name: String,
}

/// What it says, once.
#[derive(Serialize, Deserialize)]
enum Said {
    Started(Box<Note>),
    Failed(Failure),
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

/// Starts an instance, and returns when its workload runs.
///
/// # Errors
/// As of a run; [`Stage::Usage`] for a name that is none or taken.
pub fn start(
    instances: Option<&Path>,
    name: &str,
    arguments: Vec<std::ffi::OsString>,
    plan: Plan,
) -> Result<Value, Failure> {
    let instance = Instances::open(instances)?.named(name)?;
    let lock = instance.claim()?;
    let folder = instance.path("runtime");
    let task = Task::Start { name: name.into(), folder, arguments };
    let (ours, theirs) = Channel::pair().map_err(other)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("instance-process").stdin(Stdio::from(theirs.into_fd()));
    command.stdout(instance.file("out", true)?).stderr(instance.file("err", true)?);
    command.spawn().map_err(other)?;
    let instances = instance.folder.parent().unwrap_or(Path::new("/")).to_owned();
    let order = Order { plan: Plan { task, ..plan }, instances, name: name.into() };
    ours.send(&order, &[lock.as_fd()]).map_err(too_long)?;
    match ours.receive::<Said>().map_err(other)? {
        Some((Said::Started(note), _)) => {
            settled(&instance, &note)?;
            Ok(shown(&note))
        }
        Some((Said::Failed(failure), _)) => Err(failure),
        None => {
            let hint = format!("its last words may be in {}", instance.path("err").display());
            Err(Failure::new(Stage::Start, "the instance's supervisor ended early", hint))
        }
    }
}

/// Waits until a runtime that has an own notion of instances says that this one runs: it then writes its process id.
fn settled(instance: &Instance, note: &Note) -> Result<(), Failure> {
    let Some(process) = handle(note.pid).filter(|_| note.runtime.is_nested()) else { return Ok(()) };
    while !instance.path("runtime/pid").exists() {
        if ends_within(&process, PAUSE)? {
            let hint = format!("its last words may be in {}", instance.path("err").display());
            return Err(Failure::new(Stage::Start, "the runtime could not start the instance", hint));
        }
    }
    Ok(())
}

/// The supervisor of an instance, on its standard input.
pub(crate) fn main() -> u8 {
    let Ok(channel) = Channel::from_stdin() else { return Stage::Start.code() };
    match supervise(&channel) {
        Ok(code) => code,
        Err(failure) => {
            let code = failure.stage.code();
            let _ = channel.send(&Said::Failed(failure.clone()), &[]);
            // And into the log, for those who come when it has run for a while.
            crate::out::finish(Err(failure), false).max(code)
        }
    }
}

fn supervise(channel: &Channel) -> Result<u8, Failure> {
    let Some((Order { plan, instances, name }, fds)) = channel.receive::<Order>().map_err(other)? else {
        return Ok(Stage::Start.code());
    };
    // Away from the terminal and its signals; the lock stays with this process.
    rustix::process::setsid().map_err(other)?;
    let nothing = std::fs::File::open("/dev/null").map_err(other)?;
    countersign_sys::set_standard_input(&nothing).map_err(other)?;
    let instance = Instances::open(Some(&instances))?.named(&name)?;
    let (noted, told, image) = (instance.clone(), channel.try_clone().map_err(other)?, plan.image.clone());
    let runtime = plan.runtime.clone();
    let host = crate::run::config(plan.config.as_deref(), plan.tpm.as_deref(), plan.state_dir.clone())?;
    let state = StateDir::open(&host.state_dir).ok();
    let flags = plan.flags.clone();
    let mut demanded: Vec<RuntimeFlag> = Vec::new();
    let status = Status::to(Box::new(move |stage: &str, detail: &Value| {
        if stage == "released" {
            demanded = detail.get("runtime_flags").and_then(|flags| Vec::deserialize(flags).ok()).unwrap_or_default();
        }
        if stage != "started" {
            return;
        }
        let number = |name: &str| detail.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let note =
            crate::runtime::find(&runtime, state.as_ref()).and_then(|found| found.with(&flags)).map(|mut runtime| {
                runtime.oblige(&demanded);
                runtime
            });
        let note = note.map(|runtime| Note {
            name: noted.name.clone(),
            pid: std::process::id(),
            init: number("init").unwrap_or(0),
            image: std::path::absolute(&image).unwrap_or_default(),
            run: detail.get("run").and_then(Value::as_str).unwrap_or_default().to_owned(),
            started_ms: crate::monitor::now_ms(),
            runtime,
        });
        let said = note.and_then(|note| noted.write(&note).map(|()| Said::Started(Box::new(note))));
        let _ = told.send(&said.unwrap_or_else(Said::Failed), &[]);
    }));
    let outcome = run_with(&plan, status);
    instance.forget();
    drop(fds);
    outcome.map(|ended| ended.code)
}

fn shown(note: &Note) -> Value {
    json!({
        "name": note.name, "pid": note.pid, "init": note.init, "image": note.image, "run": note.run,
        "started_ms": note.started_ms, "runtime": note.runtime.name(),
    })
}

/// The user's running instances, all or those of a name: `{"instances": [...]}`.
///
/// # Errors
/// [`Stage::Configuration`].
pub fn list(instances: Option<&Path>, name: Option<&str>) -> Result<Value, Failure> {
    let name = name.unwrap_or("*");
    let asked = |note: &&Note| match name.strip_suffix('*') {
        Some(beginning) => note.name.starts_with(beginning),
        None => note.name == name,
    };
    let notes = Instances::open(instances)?.running()?;
    Ok(json!({"instances": notes.iter().filter(asked).map(shown).collect::<Vec<_>>()}))
}

/// A signal that an instance can be asked to end with, by its name or number.
///
/// # Errors
/// In words: there is none, or it does not reach a workload.
pub fn signal(word: &str) -> Result<Signal, String> {
    let known = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("TERM", Signal::TERM),
    ];
    let name = word.strip_prefix("SIG").unwrap_or(word);
    let found = known.iter().find(|(known, signal)| *known == name || signal.as_raw().to_string() == word);
    found.map(|(_, signal)| *signal).ok_or_else(|| "HUP, INT, QUIT, USR1, USR2 or TERM; --force kills".to_owned())
}

/// Stops instances (all of them without a name): asks with a signal, waits for `grace`, then kills.
///
/// # Errors
/// [`Stage::Usage`] for one that does not run.
pub fn stop(instances: Option<&Path>, name: Option<&str>, how: (Signal, Duration)) -> Result<Value, Failure> {
    let instances = Instances::open(instances)?;
    let notes = match name {
        Some(name) => vec![instances.named(name)?.running()?],
        None => instances.running()?,
    };
    let mut stopped = Vec::new();
    for note in notes {
        let how = stop_one(&instances.named(&note.name)?, &note, how)?;
        stopped.push(json!({"name": note.name, "how": how}));
    }
    Ok(json!({"stopped": stopped}))
}

fn stop_one(instance: &Instance, note: &Note, (signal, grace): (Signal, Duration)) -> Result<&'static str, Failure> {
    let Some(process) = living(instance, note)? else { return Ok("it had ended") };
    let mut grace = grace;
    if signal != Signal::TERM {
        if pidfd_send_signal(&process, signal).is_err() || ends_within(&process, grace)? {
            return Ok("with grace");
        }
        grace = Duration::ZERO;
    }
    let asked = pidfd_send_signal(&process, Signal::TERM);
    if asked.is_err() || ends_within(&process, grace)? {
        return Ok("with grace");
    }
    // The second one has its supervisor kill it and leave in order; too soon it would be taken for the first.
    if ends_within(&process, SAME.saturating_sub(grace).saturating_add(LATER))? {
        return Ok("with grace");
    }
    let _ = pidfd_send_signal(&process, Signal::TERM);
    if ends_within(&process, KILL)? {
        return Ok("killed");
    }
    let _ = pidfd_send_signal(&process, Signal::KILL);
    ends_within(&process, KILL)?;
    Ok("killed with its supervisor")
}

/// A handle on the instance's supervisor; none when it has ended. The lock and the same note, read again, say that the process of this id is
/// still that one: another may have been started under the name.
fn living(instance: &Instance, note: &Note) -> Result<Option<OwnedFd>, Failure> {
    let Some(process) = handle(note.pid) else { return Ok(None) };
    let same = |now: Note| now.pid == note.pid && now.run == note.run;
    Ok(instance.note()?.is_some_and(same).then_some(process))
}

fn handle(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn ends_within(process: &OwnedFd, time: Duration) -> Result<bool, Failure> {
    let until = std::time::Instant::now().checked_add(time).ok_or_else(|| other("too long a grace"))?;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(std::time::Instant::now())).map_err(other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready.map_err(other)? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for word in ["USR1", "SIGUSR1", "10"] {
            assert_eq!(signal(word), Ok(Signal::USR1), "{word}");
        }
        for word in ["KILL", "9", "SIG", "", "usr1", "SIG10", "STOP"] {
            assert!(signal(word).is_err(), "{word}");
        }
    }
}
