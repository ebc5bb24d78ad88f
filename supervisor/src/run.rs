//! `supervisor run`: checks the image, has the key released into the decryptor, mounts, runs, and ends everything together.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_attest::{Config, Host, Overrides};
use countersign_sif::Image;
use countersign_sif::dsse::SignerKey;
use countersign_wire::id::{RunId, VerdictId};
use countersign_wire::runlog::Event;

use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::{decryptor, stage};

/// What to run, and where the host's things are.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image.
    pub image: PathBuf,
    /// Public keys (PEM files) of trusted signers.
    pub signers: Vec<PathBuf>,
    /// The workload's command line.
    pub command: Vec<String>,
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
}

/// A child that is ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder of this run, removed when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        for name in ["image", "root", ""] {
            let _ = std::fs::remove_dir(self.0.join(name));
        }
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Other, e.to_string(), "")
}

/// Says on `--status-fd` which stage was reached.
struct Status(Option<File>);

impl Status {
    fn open(fd: Option<u32>) -> Result<Self, Failure> {
        let open = |fd: u32| std::fs::OpenOptions::new().append(true).open(format!("/proc/self/fd/{fd}"));
        let bad = |e: std::io::Error| {
            Failure::new(
                Stage::Usage,
                format!("--status-fd: {e}"),
                "give an open descriptor, for example --status-fd 3 3>FILE",
            )
        };
        Ok(Self(fd.map(open).transpose().map_err(bad)?))
    }

    fn say(&mut self, stage: &str, more: serde_json::Value) {
        if let Some(file) = &mut self.0 {
            let line = serde_json::json!({"stage": stage, "detail": more});
            let _ = writeln!(file, "{line}");
        }
    }
}

/// Runs a workload; the exit code of `supervisor run`.
///
/// # Errors
/// [`Failure`] names the stage.
pub fn run(plan: &Plan) -> Result<u8, Failure> {
    let mut status = Status::open(plan.status_fd)?;
    let outcome = try_run(plan, &mut status);
    match &outcome {
        Ok(code) => status.say("ended", serde_json::json!({"code": code})),
        Err(failure) => status.say("failed", serde_json::json!(failure)),
    }
    outcome
}

fn try_run(plan: &Plan, status: &mut Status) -> Result<u8, Failure> {
    let mut signers = Vec::new();
    for path in &plan.signers {
        let bad = |e: &dyn std::fmt::Display| {
            Failure::new(
                Stage::Configuration,
                format!("{}: {e}", path.display()),
                "--signer takes the owner's public key (PEM)",
            )
        };
        signers.push(std::fs::read_to_string(path).map_err(|e| bad(&e))?);
    }
    let trusted: Result<Vec<SignerKey>, _> = signers.iter().map(|pem| SignerKey::from_pem(pem.as_bytes())).collect();
    // Before anybody is asked for anything: one descriptor, opened here, is checked and used throughout.
    let image = Image::open(&plan.image, &trusted?)?;
    let workload = image.binding().workload;
    status.say("verified", serde_json::json!({"workload": workload, "signer": image.signer}));

    let run = RunId(countersign_attest::random::random());
    let (channel, decryptor) = start_decryptor(plan, signers, run, &image)?;
    let verdict = released(&channel, status)?;
    let mut host = host(plan)?;
    host.log(Event::Start { run, workload, time_ms: now_ms() })?;
    let outcome = on_stage(plan, &channel, status);
    drop(decryptor);
    let ended = match &outcome {
        Ok(code) => format!("exit {code}"),
        Err(failure) => format!("failed: {}", failure.error.chars().take(200).collect::<String>()),
    };
    host.log(Event::End { run, status: ended })?;
    if let Some(path) = &plan.bundle {
        let bundle = host.bundle(verdict)?;
        std::fs::write(path, bundle).map_err(|e| other(format!("{}: {e}", path.display())))?;
    }
    outcome
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn host(plan: &Plan) -> Result<Host, Failure> {
    let tpm = plan.tpm.as_deref().map(str::parse).transpose();
    let tpm = tpm.map_err(|e: countersign_attest::tpm::BadAddress| Failure::new(Stage::Usage, e.to_string(), ""))?;
    let overrides = Overrides { tpm, state_dir: plan.state_dir.clone() };
    Ok(Host::open(Config::load(plan.config.as_deref(), overrides)?)?)
}

/// This very program again, as one of its own helpers.
fn helper(role: &str, channel: Channel) -> Result<Ended, Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role).stdin(Stdio::from(channel.into_fd()));
    Ok(Ended(command.spawn().map_err(other)?))
}

fn start_decryptor(plan: &Plan, signers: Vec<String>, run: RunId, image: &Image) -> Result<(Channel, Ended), Failure> {
    let (ours, theirs) = Channel::pair().map_err(other)?;
    let child = helper("decryptor-process", theirs)?;
    let order = decryptor::Order {
        config: plan.config.clone(),
        tpm: plan.tpm.clone(),
        state_dir: plan.state_dir.clone(),
        signers,
        run,
    };
    ours.send(&order, &[image.file().as_fd()]).map_err(other)?;
    Ok((ours, child))
}

fn died() -> Failure {
    Failure::new(Stage::Decryptor, "the decryptor ended early", "run the command again; the system's log may say why")
}

fn released(channel: &Channel, status: &mut Status) -> Result<VerdictId, Failure> {
    match channel.receive::<decryptor::Report>().map_err(other)? {
        Some((decryptor::Report::Released { verdict, lease_s, commands, milliseconds }, _)) => {
            let detail = serde_json::json!({"verdict": verdict, "lease_s": lease_s, "tpm_commands": commands, "ms": milliseconds});
            status.say("released", detail);
            Ok(verdict)
        }
        Some((decryptor::Report::Failed(failure), _)) => Err(failure),
        Some((decryptor::Report::Integrity { .. }, _)) | None => Err(died()),
    }
}

fn on_stage(plan: &Plan, decryptor: &Channel, status: &mut Status) -> Result<u8, Failure> {
    let folder = folder()?;
    let (ours, theirs) = Channel::pair().map_err(other)?;
    let stage = helper("stage-process", theirs)?;
    let order = stage::Order { folder: folder.0.clone(), command: plan.command.clone() };
    ours.send(&order, &[std::io::stdin().as_fd()]).map_err(other)?;
    let outcome = play(&ours, decryptor, status);
    drop(stage);
    // What the decryptor saw explains why the workload failed.
    if let Some(failure) = integrity(decryptor, &outcome)? {
        return Err(failure);
    }
    outcome
}

fn play(stage: &Channel, decryptor: &Channel, status: &mut Status) -> Result<u8, Failure> {
    let ended = || Failure::new(Stage::Start, "the stage ended early", "run the command again");
    loop {
        match stage.receive::<stage::Report>().map_err(other)? {
            Some((stage::Report::Fuse, mut fds)) => {
                let fuse: OwnedFd = fds.pop().ok_or_else(ended)?;
                decryptor.send(&(), &[fuse.as_fd()]).map_err(|_| died())?;
                stage.send(&(), &[]).map_err(other)?;
                status.say("mounting", serde_json::Value::Null);
            }
            Some((stage::Report::Ended(code), _)) => return Ok(code),
            Some((stage::Report::Failed(failure), _)) => return Err(failure),
            None => return Err(ended()),
        }
    }
}

/// An integrity error that the decryptor reported meanwhile.
fn integrity(decryptor: &Channel, outcome: &Result<u8, Failure>) -> Result<Option<Failure>, Failure> {
    if matches!(outcome, Ok(0)) {
        return Ok(None);
    }
    let fd = decryptor.as_fd();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut fds, Some(&now)).map_err(other)? == 0 {
        return Ok(None);
    }
    match decryptor.receive::<decryptor::Report>().map_err(other)? {
        Some((decryptor::Report::Integrity { block, level }, _)) => {
            Ok(Some(countersign_sif::SifError::Integrity { block, level }.into()))
        }
        Some((decryptor::Report::Failed(failure), _)) => Ok(Some(failure)),
        Some((decryptor::Report::Released { .. }, _)) | None => Ok(None),
    }
}

/// A folder of this run for mount points: nothing is ever written into it.
fn folder() -> Result<Folder, Failure> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let base = base.unwrap_or_else(std::env::temp_dir);
    let name = format!("countersign-{}", hex::encode(countersign_attest::random::random::<8>()));
    let path = base.join(name);
    DirBuilder::new().mode(0o700).create(&path).map_err(|e| other(format!("{}: {e}", path.display())))?;
    Ok(Folder(path))
}
