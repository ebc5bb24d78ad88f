//! `supervisor run`: checks the image, has the key released into the decryptor, mounts, runs, and ends everything together.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_attest::hook::Hook;
use countersign_attest::lease::boot_time;
use countersign_attest::state::StateDir;
use countersign_attest::{Config, Host, HostError, Overrides};
use countersign_sif::dsse::SignerKey;
use countersign_sif::{Image, SifError};
use countersign_wire::id::RunId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::channel::Channel;
use crate::daemon::Caller;
use crate::ending::Ending;
use crate::exit::{Failure, Stage};
use crate::group::Group;
use crate::monitor::{self, Executions, Judge, Reactor, Recorder, Webhook, now_ms};
use crate::owner::{of_image, signer};
use crate::permit::Prolonging;
use crate::play::Play;
use crate::runtime::{self, Share};
pub use crate::runtime::{Given, Task};
use crate::stage::Program;
use crate::status::Status;
use crate::watch::{Heard, Watch};
use crate::{decryptor, out, stage};

/// Roles of this program's helpers.
const DECRYPTOR: &str = "decryptor-process";
const STAGE: &str = "stage-process";
/// Exit code of what SIGINT has ended.
const INTERRUPTED: u8 = 130;
/// How long the stage may take to unmount.
const LEAVE: Duration = Duration::from_secs(2);

/// What to run, and where the host's things are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The image.
    pub image: PathBuf,
    /// Public keys (PEM files) of trusted signers.
    pub signers: Vec<PathBuf>,
    /// What to run in it.
    pub task: Task,
    /// By which runtime: `auto`, `builtin`, `apptainer`, `singularity` or a path.
    pub runtime: PathBuf,
    /// The runtime's own flags.
    pub flags: Vec<Given>,
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
    #[serde(skip)]
    pub(crate) caller: Option<Arc<Caller>>,
}

/// Why a run ended without the workload's own exit code.
pub(crate) enum Stop {
    Failed(Failure),
    /// What the monitor found.
    Violation(Failure),
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
struct Helper(Child);

impl Helper {
    /// Lets it end by itself for a while.
    fn leave(&mut self, patience: Duration) {
        let asked = Instant::now();
        while asked.elapsed() < patience && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

/// Why an order that holds the user's command line was not taken.
pub(crate) fn too_long(e: std::io::Error) -> Failure {
    if e.kind() == std::io::ErrorKind::ArgumentListTooLong {
        let what = format!("the command line with its flags and variables is too long: {e}");
        return Failure::new(
            Stage::Usage,
            what,
            "put it into a script: in the image, or on the workload's standard input",
        );
    }
    other(e)
}

pub(crate) fn died() -> Failure {
    Failure::new(Stage::Decryptor, "the decryptor ended early", "run the command again; the system's log may say why")
}

/// Runs a workload; the exit code of `supervisor run`.
///
/// # Errors
/// [`Failure`] names the stage.
pub fn run(plan: &Plan) -> Result<u8, Failure> {
    let ended = run_with(plan, Status::open(plan.status_fd)?)?;
    Ok(ended.code())
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    /// By Ctrl-C, as far as can be told.
    by_key: bool,
}

impl Ended {
    /// By a signal, before there was a workload.
    pub(crate) const fn by_signal(number: u8) -> Self {
        Self { code: number.saturating_add(128), by_key: false }
    }

    /// The exit code, for whoever has started it. A key was for all in this process's group (a script, for example), which had no terminal to hear
    /// it from.
    pub(crate) fn code(self) -> u8 {
        if self.by_key && Share::now() == Share::Foreground {
            countersign_sys::interrupt_others();
        }
        self.code
    }
}

/// As [`run`], with another listener than the plan's descriptor.
pub(crate) fn run_with(plan: &Plan, mut status: Status) -> Result<Ended, Failure> {
    countersign_sys::keep_descriptors().map_err(other)?;
    countersign_sys::write_in_background();
    let ended = match try_run(plan, &mut status) {
        Ok(ended) => ended,
        Err(Stop::Signal(number)) => Ended::by_signal(number),
        Err(Stop::Failed(failure) | Stop::Violation(failure)) => {
            status.failed(&failure);
            return Err(failure);
        }
    };
    status.say("ended", json!({"code": ended.code}));
    Ok(ended)
}

fn try_run(plan: &Plan, status: &mut Status) -> Result<Ended, Stop> {
    for program in [Program::Squashfuse, Program::Bubblewrap] {
        program.find()?;
    }
    let config = config(plan.config.as_deref(), plan.tpm.as_deref(), plan.state_dir.clone())?;
    // It may have to be asked for its version, which takes a while: everything else begins meanwhile.
    let runtime = runtime::find(&plan.runtime, StateDir::open(&config.state_dir).ok().as_ref())?;
    if let Some(path) = &plan.bundle {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            let what = format!("{}: a bundle cannot be written there", path.display());
            return Err(Failure::new(Stage::Usage, what, "--bundle takes a file in a folder that exists").into());
        }
    }
    let caller = plan.caller.as_deref();
    let signals = Watch::signals()?;
    let (to_decryptor, theirs) = Channel::pair().map_err(other)?;
    let mut decryptor = helper(DECRYPTOR, theirs, None)?;
    let (to_stage, theirs) = Channel::pair().map_err(other)?;
    let read = || -> Result<(Image, Vec<String>), Failure> {
        let keys: Vec<(SignerKey, String)> = match caller {
            Some(caller) => caller.signers()?,
            None => plan.signers.iter().map(|path| signer(path)).collect::<Result<_, _>>()?,
        };
        let (trusted, signers): (Vec<SignerKey>, Vec<String>) = keys.into_iter().unzip();
        let image = match caller {
            Some(caller) => caller.image(&trusted)?,
            None => Image::open(&plan.image, &trusted).map_err(|e| of_image(&plan.image, e))?,
        };
        Ok((image, signers))
    };
    // Before anybody is asked for anything, or told: one descriptor, opened here or by the caller, is checked and used throughout. Under the
    // daemon the stage has no user before the image is admitted.
    let (mut on_stage, (image, signers)) = if caller.is_some() {
        let read = read()?;
        (helper(STAGE, theirs, caller)?, read)
    } else {
        (helper(STAGE, theirs, caller)?, read()?)
    };
    let workload = image.binding().workload;
    status.say("verified", json!({"workload": workload, "signer": image.signer}));
    let run = RunId(countersign_attest::random::random());
    let (outbox, inbox) = monitor::channel().map_err(other)?;
    let mut watch = Watch::new(signals, to_decryptor, to_stage, inbox);
    let order = decryptor::Order {
        config: plan.config.clone(),
        tpm: plan.tpm.clone(),
        state_dir: plan.state_dir.clone(),
        signers,
        run,
        workload,
        user: caller.and_then(Caller::decryptor),
    };
    tell(&watch, &order, &[image.file().as_fd()], status)?;
    // The release gets ready meanwhile; its key is not asked for before everything else is. It keeps others from the TPM: not where it has to wait
    // for a turn, or for the runtime's answer.
    let early = caller.is_none() && runtime.answer().is_none();
    if early {
        tell(&watch, &decryptor::Word::Prepare, &[], status)?;
    }
    let binds = caller.map(Caller::binds).transpose()?.unwrap_or_default();
    let folder = std::path::absolute(&config.state_dir).map_err(other)?;
    let mut host = Host::open(config)?;
    let config = host.config().clone();
    let hook = config.webhook.as_deref().map(|url| Hook::new(url, config.webhook_ca.as_ref())).transpose()?;

    let group = Arc::new(Group::make(&run.to_string()));
    let order = stage::Order {
        task: plan.task.clone(),
        ids: caller.map(Caller::ids),
        folder: if caller.is_some() { Caller::FOLDER.into() } else { folder },
        binds: binds.len(),
        name: plan.image.file_name().unwrap_or_default().to_owned(),
        terminal: Share::now(),
    };
    // Mount tables have no links.
    let place = order.folder.canonicalize().unwrap_or_else(|_| order.folder.clone());
    let place = stage::shown(&place, &order.name);
    let lends = order.terminal.is_any();
    let lent = lends.then_some(runtime::Lent);
    let own = std::io::stdin();
    let stdin = caller.map_or_else(|| own.as_fd(), Caller::stdin);
    let entrance = group.entrance().into_iter().flatten().map(|file| file.as_fd());
    let given: Vec<_> = std::iter::once(stdin).chain(binds.iter().map(OwnedFd::as_fd)).chain(entrance).collect();
    watch.stage.send(&order, &given).map_err(too_long)?;
    drop(binds);
    // Where namespaces or FUSE are missing nothing is released.
    let (reader, fuse) = mounted(&watch)?;
    let turn = match caller.map(|caller| caller.turn(run, &watch)).transpose()? {
        // A signal, or a helper that has ended, came first.
        Some(None) => return Err(first(&watch, status)),
        turn => turn.flatten(),
    };
    if !early {
        tell(&watch, &decryptor::Word::Prepare, &[], status)?;
    }
    if let Some(answer) = runtime.answer()
        && !watch.until(answer)?
    {
        return Err(first(&watch, status));
    }
    let runtime = match caller {
        Some(caller) => caller.runtime(),
        None => runtime.with(&plan.flags)?,
    };
    watch.stage.send(&stage::Word::Runtime(runtime.clone()), &[]).map_err(too_long)?;
    tell(&watch, &decryptor::Word::Release, &[], status)?;
    // There is time now; when the run is logged there is none.
    host.read_run_log();
    let decryptor::Released { verdict, runtime_flags, .. } = released(&watch, status)?;
    drop(turn);
    runtime.check(&runtime_flags, &plan.flags)?;
    if let Some(path) = &plan.bundle {
        let bundle = host.bundle(verdict)?;
        std::fs::write(path, bundle).map_err(|e| other(format!("{}: {e}", path.display())))?;
    }
    // The file system is mounted, and what is around a runtime made, while the run is logged; nothing runs in it before.
    tell(&watch, &decryptor::Word::Serve(reader), &[fuse.as_fd()], status)?;
    // A stage that has ended says why when it is listened to.
    let _ = watch.stage.send(&stage::Word::Make(runtime_flags), &[]);
    let begun = || -> Result<_, Stop> {
        let running = host.start_run(run, workload, now_ms())?;
        let recorder = Recorder::start(config.clone(), run, outbox.clone())?;
        let webhook = match hook {
            Some(hook) => Some(Webhook::start(hook, host.card()?.host, workload, run, outbox.clone())),
            None => None,
        };
        Ok((running, recorder, webhook))
    };
    let (running, recorder, webhook) = match begun() {
        Ok(begun) => begun,
        Err(stop) => {
            let _ = group.kill();
            watch.forget(LEAVE);
            // The stage ends what waits there, and then itself, when it hears no more.
            drop(watch);
            on_stage.leave(LEAVE);
            return Err(stop);
        }
    };
    let judge = Arc::new(Judge::new(image.policy(), workload, run));
    let mut play = Play {
        watch: &watch,
        run,
        status,
        // What has a session of its own gets no key's signal by itself.
        has_keys: !lends && (stdin.is_terminal() || caller.is_none() && std::fs::File::open("/dev/tty").is_ok()),
        lends,
        lending: None,
        caller,
        suspended: false,
        reactor: Reactor::new(Arc::clone(&group), Arc::clone(&judge), recorder, webhook),
        scanner: None,
        executions: Executions::open(),
        group: Arc::clone(&group),
        nested: runtime.is_nested().then_some(place),
        judge,
        config,
        outbox,
        waits: None,
        announced: false,
        started: false,
        prolonging: Prolonging::default(),
        ending: Ending::default(),
    };
    let outcome = play.play();
    let Play { reactor, scanner, outbox, lending, .. } = play;
    // The container first; then what the kernel keeps of its files; then the mount, and with it the decryptor and the key.
    if let Err(e) = group.kill() {
        out::warn(&format!("the container's processes: {e}"));
    }
    if outcome.is_ok() {
        on_stage.leave(LEAVE);
    } else {
        watch.forget(LEAVE);
    }
    drop((on_stage, fuse, lent));
    // Nobody is heard any more: the threads end, and with them what they record.
    watch.monitor = None;
    drop((scanner, outbox, reactor));
    drop(watch);
    decryptor.leave(LEAVE);
    drop(decryptor);
    let ended = match &outcome {
        Ok(code) => format!("exit {code}"),
        Err(Stop::Signal(number)) => format!("signal {number}"),
        Err(Stop::Violation(failure)) => format!("violation: {}", short(&failure.error)),
        Err(Stop::Failed(failure)) => format!("failed: {}", short(&failure.error)),
    };
    // The workload has ended either way: what it returned is worth more than that its end could not be logged.
    if let Err(e) = host.end_run(running, ended) {
        out::warn(&format!("the run's end is not in the run log: {e}"));
    }
    // An interactive shell returns what its last command did, however long ago.
    let by_key = !plan.task.is_shell() && lending.is_some_and(|lending| lending.is_plain());
    // The verifier learns at once of a run that was ended, with the TPM's authority.
    if matches!(outcome, Err(Stop::Violation(_)))
        && let Err(e) = host.renew_since(boot_time())
    {
        out::warn(&format!("the verifier is not told yet, the next attestation tells it: {e}"));
    }
    outcome.map(|code| Ended { code, by_key: by_key && code == INTERRUPTED })
}

fn short(error: &str) -> String {
    error.chars().take(200).collect()
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
fn helper(role: &str, channel: Channel, caller: Option<&Caller>) -> Result<Helper, Failure> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(caller) = caller {
        caller.dress(&mut command)?;
    }
    countersign_sys::end_with_parent(&mut command);
    command.arg(role).process_group(0).stdin(Stdio::from(channel.into_fd()));
    Ok(Helper(command.spawn().map_err(other)?))
}

/// The FUSE descriptor of the mount that the stage has made, and who is to read there.
fn mounted(watch: &Watch) -> Result<(u32, OwnedFd), Stop> {
    match watch.next(None)? {
        Heard::Stage(Some((stage::Report::Fuse(reader), mut fds))) => Ok((reader, fds.pop().ok_or_else(ended_early)?)),
        Heard::Stage(Some((stage::Report::Failed(failure), _))) => Err(failure.into()),
        Heard::Stage(_) | Heard::Monitor(_) | Heard::Event(_) | Heard::Nothing => Err(ended_early().into()),
        Heard::Decryptor(Some(decryptor::Report::Failed(failure))) => Err(failure.into()),
        Heard::Decryptor(_) => Err(died().into()),
        Heard::Signal(number) => Err(Stop::Signal(number)),
    }
}

pub(crate) fn ended_early() -> Failure {
    Failure::new(Stage::Start, "the container ended early", "run the command again")
}

/// Tells the decryptor something; one that has ended has said why.
fn tell(watch: &Watch, what: &impl Serialize, fds: &[BorrowedFd<'_>], status: &mut Status) -> Result<(), Stop> {
    watch.decryptor.send(what, fds).map_err(|e| {
        let gone = matches!(e.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset);
        if gone { first(watch, status) } else { other(e).into() }
    })
}

/// What came instead of what was waited for.
fn first(watch: &Watch, status: &mut Status) -> Stop {
    released(watch, status).err().unwrap_or_else(|| died().into())
}

fn released(watch: &Watch, status: &mut Status) -> Result<decryptor::Released, Stop> {
    match watch.next(None)? {
        Heard::Decryptor(Some(decryptor::Report::Released(released))) => {
            status.say("released", json!(released));
            Ok(released)
        }
        Heard::Decryptor(Some(decryptor::Report::Failed(failure))) => Err(failure.into()),
        Heard::Decryptor(_) | Heard::Monitor(_) | Heard::Event(_) | Heard::Nothing => Err(died().into()),
        Heard::Stage(Some((stage::Report::Failed(failure), _))) => Err(failure.into()),
        Heard::Stage(_) => Err(ended_early().into()),
        Heard::Signal(number) => Err(Stop::Signal(number)),
    }
}
