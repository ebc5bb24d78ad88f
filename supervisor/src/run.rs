//! `supervisor run`: checks the image, has the key released into the decryptor, mounts, runs, and ends everything together.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use countersign_attest::{Config, Host, HostError, Overrides};
use countersign_sif::dsse::SignerKey;
use countersign_sif::{Image, SifError};
use countersign_wire::id::{RunId, VerdictId};
use serde_json::json;

pub use crate::bubble::Task;
use crate::channel::Channel;
use crate::daemon::Caller;
use crate::exit::{Failure, Stage};
use crate::owner::{of_image, signer};
use crate::stage::Program;
use crate::status::Status;
use crate::watch::{Heard, Watch};
use crate::{decryptor, out, stage};

/// How long the workload may take to end after a signal; then, or at a second signal, it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Roles of this program's helpers.
const DECRYPTOR: &str = "decryptor-process";
const STAGE: &str = "stage-process";
/// SIGINT.
const INTERRUPT: u8 = 2;
/// How long the stage may take to unmount.
const LEAVE: Duration = Duration::from_secs(2);

/// What to run, and where the host's things are.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image.
    pub image: PathBuf,
    /// Public keys (PEM files) of trusted signers.
    pub signers: Vec<PathBuf>,
    /// What to run in it.
    pub task: Task,
    /// Configuration file of the host.
    pub config: Option<PathBuf>,
    /// TPM, if not from the configuration.
    pub tpm: Option<String>,
    /// State folder, if not from the configuration.
    pub state_dir: Option<PathBuf>,
    /// Where to write the evidence bundle of the release.
    pub bundle: Option<PathBuf>,
    /// Descriptor to write JSON lines about the stages to.
    pub status_fd: Option<u32>,
    /// On whose behalf, under the daemon: image, signers and standard streams are the caller's.
    pub(crate) caller: Option<Arc<Caller>>,
}

/// Why a run ended without the workload's own exit code.
enum Stop {
    Failed(Failure),
    /// The user's signal.
    Signal(u8),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<SifError> for Stop {
    fn from(error: SifError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<HostError> for Stop {
    fn from(error: HostError) -> Self {
        Self::Failed(error.into())
    }
}

/// A child that is ended when dropped.
struct Ended(Child);

impl Ended {
    /// Lets it end by itself for a while.
    fn leave(&mut self, patience: Duration) {
        let asked = Instant::now();
        while asked.elapsed() < patience && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

fn died() -> Failure {
    Failure::new(Stage::Decryptor, "the decryptor ended early", "run the command again; the system's log may say why")
}

/// Runs a workload; the exit code of `supervisor run`.
///
/// # Errors
/// [`Failure`] names the stage.
pub fn run(plan: &Plan) -> Result<u8, Failure> {
    let mut status = Status::open(plan.status_fd)?;
    countersign_sys::keep_descriptors().map_err(other)?;
    let code = match try_run(plan, &mut status) {
        Ok(code) => code,
        Err(Stop::Signal(number)) => number.saturating_add(128),
        Err(Stop::Failed(failure)) => {
            status.failed(&failure);
            return Err(failure);
        }
    };
    status.say("ended", json!({"code": code}));
    Ok(code)
}

fn try_run(plan: &Plan, status: &mut Status) -> Result<u8, Stop> {
    for program in [Program::Squashfuse, Program::Bubblewrap] {
        program.find()?;
    }
    if let Some(path) = &plan.bundle {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            let what = format!("{}: a bundle cannot be written there", path.display());
            return Err(Failure::new(Stage::Usage, what, "--bundle takes a file in a folder that exists").into());
        }
    }
    let caller = plan.caller.as_deref();
    let keys: Result<Vec<(SignerKey, String)>, Failure> = match caller {
        Some(caller) => caller.signers(),
        None => plan.signers.iter().map(|path| signer(path)).collect(),
    };
    let (trusted, signers): (Vec<SignerKey>, Vec<String>) = keys?.into_iter().unzip();
    // Before anybody is asked for anything: one descriptor, opened here or by the caller, is checked and used throughout.
    let image = match caller {
        Some(caller) => caller.image(&trusted)?,
        None => Image::open(&plan.image, &trusted).map_err(|e| of_image(&plan.image, e))?,
    };
    let workload = image.binding().workload;
    status.say("verified", json!({"workload": workload, "signer": image.signer}));
    let mut host = Host::open(config(plan.config.as_deref(), plan.tpm.as_deref(), plan.state_dir.clone())?)?;
    let run = RunId(countersign_attest::random::random());

    // Both helpers first: where namespaces or FUSE are missing nothing is released.
    let signals = Watch::signals()?;
    let (to_decryptor, theirs) = Channel::pair().map_err(other)?;
    let decryptor = helper(DECRYPTOR, theirs, None)?;
    let (to_stage, theirs) = Channel::pair().map_err(other)?;
    let mut on_stage = helper(STAGE, theirs, caller)?;
    let watch = Watch::new(signals, to_decryptor, to_stage);
    let order = stage::Order { task: plan.task.clone(), ids: caller.map(Caller::ids) };
    let own = std::io::stdin();
    let stdin = caller.map_or_else(|| own.as_fd(), Caller::stdin);
    watch.stage.send(&order, &[stdin]).map_err(other)?;
    let fuse = mounted(&watch)?;
    let order = decryptor::Order {
        config: plan.config.clone(),
        tpm: plan.tpm.clone(),
        state_dir: plan.state_dir.clone(),
        signers,
        run,
        user: caller.and_then(Caller::decryptor),
    };
    let turn = match caller.map(|caller| caller.turn(run, &watch)).transpose()? {
        // A signal, or a helper that has ended, came first.
        Some(None) => {
            released(&watch, status)?;
            return Err(died().into());
        }
        turn => turn.flatten(),
    };
    watch.decryptor.send(&order, &[image.file().as_fd()]).map_err(other)?;
    let verdict = released(&watch, status)?;
    drop(turn);
    if let Some(path) = &plan.bundle {
        let bundle = host.bundle(verdict)?;
        std::fs::write(path, bundle).map_err(|e| other(format!("{}: {e}", path.display())))?;
    }

    let running = host.start_run(run, workload, now_ms())?;
    let at_terminal = matches!(plan.task, Task::Shell(_)) && stdin.is_terminal();
    let outcome = play(&watch, &fuse, run, status, at_terminal);
    drop(fuse);
    if outcome.is_ok() {
        on_stage.leave(LEAVE);
    }
    drop((on_stage, decryptor));
    let ended = match &outcome {
        Ok(code) => format!("exit {code}"),
        Err(Stop::Signal(number)) => format!("signal {number}"),
        Err(Stop::Failed(failure)) => format!("failed: {}", failure.error.chars().take(200).collect::<String>()),
    };
    // The workload has ended either way: what it returned is worth more than that its end could not be logged.
    if let Err(e) = host.end_run(running, ended) {
        out::warn(&format!("the run's end is not in the run log: {e}"));
    }
    outcome
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The host's configuration, with what was given on the command line.
///
/// # Errors
/// [`Stage::Usage`] for a TPM's address that is none, [`Stage::Configuration`].
pub fn config(file: Option<&Path>, tpm: Option<&str>, state_dir: Option<PathBuf>) -> Result<Config, Failure> {
    let tpm = tpm.map(str::parse).transpose();
    let tpm = tpm.map_err(|e: countersign_attest::tpm::BadAddress| {
        Failure::new(Stage::Usage, e.to_string(), "--tpm device:/dev/tpmrm0 is the machine's own TPM")
    })?;
    Ok(Config::load(file, Overrides { tpm, state_dir })?)
}

/// This very program again, as one of its own helpers. It is in a process group of its own: a terminal's signals reach the supervisor only,
/// which ends the run in order.
fn helper(role: &str, channel: Channel, caller: Option<&Caller>) -> Result<Ended, Failure> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(caller) = caller {
        caller.dress(&mut command)?;
    }
    countersign_sys::end_with_parent(&mut command);
    command.arg(role).process_group(0).stdin(Stdio::from(channel.into_fd()));
    Ok(Ended(command.spawn().map_err(other)?))
}

/// The FUSE descriptor of the mount that the stage has made.
fn mounted(watch: &Watch) -> Result<OwnedFd, Stop> {
    match watch.next(None)? {
        Heard::Stage(Some((stage::Report::Fuse, mut fds))) => Ok(fds.pop().ok_or_else(ended_early)?),
        Heard::Stage(Some((stage::Report::Failed(failure), _))) => Err(failure.into()),
        Heard::Stage(_) | Heard::Nothing => Err(ended_early().into()),
        Heard::Decryptor(Some(decryptor::Report::Failed(failure))) => Err(failure.into()),
        Heard::Decryptor(_) => Err(died().into()),
        Heard::Signal(number) => Err(Stop::Signal(number)),
    }
}

fn ended_early() -> Failure {
    Failure::new(Stage::Start, "the container ended early", "run the command again")
}

fn released(watch: &Watch, status: &mut Status) -> Result<VerdictId, Stop> {
    match watch.next(None)? {
        Heard::Decryptor(Some(decryptor::Report::Released(released))) => {
            status.say("released", json!(released));
            Ok(released.verdict)
        }
        Heard::Decryptor(Some(decryptor::Report::Failed(failure))) => Err(failure.into()),
        Heard::Decryptor(_) | Heard::Nothing => Err(died().into()),
        Heard::Stage(Some((stage::Report::Failed(failure), _))) => Err(failure.into()),
        Heard::Stage(_) => Err(ended_early().into()),
        Heard::Signal(number) => Err(Stop::Signal(number)),
    }
}

/// From the released key to the end of the workload; its exit code. At a terminal, Ctrl-C is for what the shell runs and ends nothing else.
fn play(watch: &Watch, fuse: &OwnedFd, run: RunId, status: &mut Status, at_terminal: bool) -> Result<u8, Stop> {
    watch.decryptor.send(&decryptor::Word::Serve, &[fuse.as_fd()]).map_err(|_| died())?;
    watch.stage.send(&stage::Word::Serving, &[]).map_err(|_| ended_early())?;
    let mut started = false;
    let mut ending: Option<(u8, Instant)> = None;
    loop {
        let patience = ending.map(|(_, asked)| GRACE.saturating_sub(asked.elapsed()));
        match watch.next(patience)? {
            // Fail closed: an image that was changed is not read on.
            Heard::Decryptor(Some(decryptor::Report::Integrity { block, level })) => {
                return Err(SifError::Integrity { block, level }.into());
            }
            Heard::Decryptor(Some(decryptor::Report::Failed(failure))) => return Err(failure.into()),
            Heard::Decryptor(Some(decryptor::Report::Released(_)) | None) => return Err(died().into()),
            Heard::Stage(report) => match report {
                Some((stage::Report::Reader(pid), _)) => {
                    watch.decryptor.send(&decryptor::Word::Reader(pid), &[]).map_err(|_| died())?;
                }
                Some((stage::Report::Started, _)) => {
                    started = true;
                    status.say("mounted", json!({}));
                    status.say("started", json!({"run": run}));
                }
                // What the decryptor saw explains why the workload failed.
                Some((stage::Report::Ended(code), _)) => {
                    return watch.finding().map_or(Ok(code), |found| Err(found.into()));
                }
                Some((stage::Report::Failed(failure), _)) => return Err(watch.finding().unwrap_or(failure).into()),
                Some((stage::Report::Fuse, _)) | None => {
                    return Err(watch.finding().unwrap_or_else(ended_early).into());
                }
            },
            Heard::Signal(INTERRUPT) if started && at_terminal && ending.is_none() => {
                watch.stage.send(&stage::Word::Interrupt, &[]).map_err(|_| ended_early())?;
            }
            Heard::Signal(number) if started && ending.is_none() => {
                status.say("signal", json!({"signal": number}));
                watch.stage.send(&stage::Word::Signal(number), &[]).map_err(|_| ended_early())?;
                ending = Some((number, Instant::now()));
            }
            Heard::Signal(number) => return Err(Stop::Signal(ending.map_or(number, |(first, _)| first))),
            Heard::Nothing => {
                if let Some((number, _)) = ending.filter(|(_, asked)| asked.elapsed() >= GRACE) {
                    return Err(Stop::Signal(number));
                }
            }
        }
    }
}
