//! The trial of a new policy: in a process of its own, under limits.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use countersign_policy::{Compiled, PolicyBundle, ReferenceData, Role};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::json;

/// Address space of the process that tries a new policy, bytes.
const SANDBOX_MEMORY: u64 = 2 << 30;
/// Its processor time, seconds.
const SANDBOX_CPU: u64 = 10;
/// And its time by the clock.
const SANDBOX_TIME: Duration = Duration::from_secs(30);

/// Where a new policy is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// In a process of this program, the verifier's own, under limits of memory and time: what every command does.
    Process(PathBuf),
    /// In this process: for programs that have the verifier as a library. A policy that breaks the engine breaks them.
    Here,
}

/// Why a trial gave no pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The policy is bad: with file and line where there is one. Another trial says the same.
    #[error("{0}")]
    Refused(String),
    /// The trial was not held, or not to its end: nothing is known of the policy.
    #[error("{0}")]
    Untried(String),
}

impl Trial {
    /// A process of the program that runs, also when its file was replaced meanwhile.
    #[must_use]
    pub fn own() -> Self {
        Self::Process(PathBuf::from("/proc/self/exe"))
    }

    /// Tries a policy: it must compile, decide, and not allow what nothing is known of.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, bundle: &[u8], role: Role) -> Result<(), Failure> {
        match self {
            Self::Process(program) => sandbox(program, bundle, role),
            Self::Here => try_policy(bundle, role).map_err(Failure::Refused),
        }
    }
}

/// Tries a policy in a process of its own, under limits of memory, processor and time: it must compile, and decide on an empty input.
///
/// # Errors
/// Why it is refused: the child's own words, or that it did not survive. Or that the trial could not be held.
pub fn sandbox(program: &Path, bundle: &[u8], role: Role) -> Result<(), Failure> {
    let untried = Failure::Untried;
    let mut command = Command::new(program);
    command.args(["policy", "sandbox"]).env_clear();
    if role == Role::Workload {
        command.arg("--workload");
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(|e| untried(format!("the trial cannot be started: {e}")))?;
    let (mut stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    let bytes = bundle.to_vec();
    let feeder = std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(&bytes)));
    let reader = std::thread::spawn(move || {
        let mut words = String::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.take(65_536).read_to_string(&mut words);
        }
        words
    });
    let (sender, ended) = std::sync::mpsc::channel();
    let id = rustix::process::Pid::from_child(&child);
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        let _ = sender.send(());
        status
    });
    let late = ended.recv_timeout(SANDBOX_TIME).is_err();
    if late {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
    let ended = waiter.join().map_err(|_| untried("the trial's end was not seen".to_owned()))?;
    let status = ended.map_err(|e| untried(e.to_string()))?;
    let (_, words) = (feeder.join(), reader.join().unwrap_or_default());
    if late {
        // Its processor time is bounded by less: the machine was busy.
        return Err(untried(format!("the policy did not come to an end within {} s", SANDBOX_TIME.as_secs())));
    }
    if status.success() {
        return Ok(());
    }
    let words = words.trim().trim_start_matches("error: ").to_owned();
    if status.code().is_some() && !words.is_empty() {
        return Err(Failure::Refused(words));
    }
    let limits = format!("it needs more than {SANDBOX_MEMORY} bytes or {SANDBOX_CPU} s");
    Err(Failure::Refused(format!("the policy broke its trial ({status}): {limits}")))
}

/// The other side of [`sandbox`]: reads a bundle from standard input.
///
/// # Errors
/// Why the policy is refused.
pub fn sandbox_child(role: Role) -> Result<(), String> {
    let limit = |resource, value| setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    limit(Resource::As, SANDBOX_MEMORY).map_err(|e| e.to_string())?;
    limit(Resource::Cpu, SANDBOX_CPU).map_err(|e| e.to_string())?;
    limit(Resource::Core, 0).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let most = u64::try_from(countersign_policy::limits::BUNDLE_BYTES).unwrap_or(u64::MAX);
    std::io::stdin().take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    try_policy(&bytes, role)
}

fn try_policy(bytes: &[u8], role: Role) -> Result<(), String> {
    let parsed = PolicyBundle::parse(bytes).map_err(|e| e.to_string())?;
    let compiled = Compiled::new(&parsed, role).map_err(|e| e.to_string())?;
    let reference = countersign_policy::reference_document(&countersign_policy::input::Reference::default());
    let ready = compiled.ready(&ReferenceData::new(&reference));
    let shipped = super::mutate::shipped_input().map_err(|e| e.clone())?;
    for (empty, input) in [(true, json!({"time_ms": 0})), (false, json!(shipped))] {
        let decision = ready.decide_json(input);
        let broken = [
            countersign_policy::reason::TIMEOUT,
            countersign_policy::reason::TYPE,
            countersign_policy::reason::OBLIGATION,
        ];
        if let Some(reason) = decision.reasons.iter().find(|reason| broken.contains(&reason.id.as_str())) {
            return Err(format!("{}: {}", reason.id, reason.message));
        }
        if empty && decision.allow && role == Role::Host {
            return Err("the policy allows a host of which nothing is known".into());
        }
    }
    Ok(())
}
