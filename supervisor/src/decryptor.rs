//! The decryptor: the one process that ever holds a volume key (DESIGN.md section 10).
//!
//! It cannot be dumped or traced, its memory is locked, and it dies with its supervisor. The TPM unseals into it; what leaves it is a
//! decrypted file system served through FUSE.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_attest::{Config, Host, HostError, Observer, Overrides, Step};
use countersign_sif::dsse::SignerKey;
use countersign_sif::xts::{KEY, VolumeKey};
use countersign_sif::{Image, SifError, View};
use countersign_wire::id::{RunId, VerdictId, WorkloadId};
use countersign_wire::obligations::RuntimeFlag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::confine;
use crate::exit::{Failure, Stage};
use crate::permit::Permit;
use crate::served::{self, Gate, THREADS};
use crate::watch::all_signals;

/// How long a release that is ready is kept waiting, which keeps the host's other programs waiting. It is given up then, and begun anew once
/// everything else is ready.
const HOLD: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// With less than this the kernel would refuse memory later, were all of it locked (bytes).
const ENOUGH: u64 = 1 << 30;

/// What is kept out of swap where the limits allow: present and future memory.
const ALL: &str = "all memory";

/// What the supervisor tells it first; the image's descriptor comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) config: Option<PathBuf>,
    pub(crate) tpm: Option<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) signers: Vec<String>,
    pub(crate) run: RunId,
    /// What was checked and, under the daemon, admitted: no other workload's key is asked for.
    pub(crate) workload: WorkloadId,
    /// Becomes this user once the key is there (under the daemon, which is root).
    pub(crate) user: Option<u32>,
}

/// What the supervisor tells it later.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Do what a release needs, and ask for no key yet.
    Prepare,
    /// Ask for the key.
    Release,
    /// Serve on the FUSE descriptor that comes along; this process, in the supervisor's process namespace, is the reader.
    Serve(u32),
    /// Answer reads until then (CLOCK_BOOTTIME, milliseconds); later ones wait for another such word.
    Until(u64),
    /// The run is over: answer no read any more, have the kernel drop its decrypted pages, and say when.
    Forget,
}

/// What it tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The key is here.
    Released(Released),
    /// It is not.
    Failed(Failure),
    /// A block does not match the signed tree.
    Integrity { block: u64, level: usize },
    /// The kernel keeps no decrypted page of the image any more.
    Forgotten,
}

/// What is worth knowing of a release.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Released {
    pub(crate) verdict: VerdictId,
    /// Seconds that the run may go on without a new verdict.
    pub(crate) lease_s: u32,
    /// Flags that policy demands of the runtime.
    pub(crate) runtime_flags: Vec<RuntimeFlag>,
    /// TPM commands from the sealed object's import or load to its unsealing.
    pub(crate) tpm_commands: u64,
    /// Milliseconds from the first preparations to the key.
    pub(crate) ms: u64,
    /// Which memory is kept out of swap.
    pub(crate) locked: String,
}

/// Runs the decryptor on its standard input.
pub(crate) fn main() -> u8 {
    countersign_sys::write_in_background();
    let Ok(channel) = Channel::from_stdin() else { return Stage::Decryptor.code() };
    // It ends with its supervisor, and by no signal that a batch system sends to all processes of a job.
    let Ok(_unheard) = countersign_sys::signals(&all_signals()) else { return Stage::Decryptor.code() };
    match serve(&channel) {
        Ok(()) => 0,
        Err(failure) => {
            let code = failure.stage.code();
            let _ = channel.send(&Report::Failed(failure), &[]);
            code
        }
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Decryptor, format!("decryptor: {e}"), "")
}

/// Nobody else may look in: not dumpable, not traced, no core. Before any secret.
fn harden() -> Result<(), Failure> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(other)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(other)?;
    // Nobody can attach from here on; one who did before would stay.
    let status = std::fs::read_to_string("/proc/self/status").map_err(other)?;
    if status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0")) {
        let hint = "a debugger or strace -f on the supervisor would see the key: run without it";
        return Err(Failure::new(Stage::Decryptor, "the decryptor is being traced", hint));
    }
    Ok(())
}

/// Keeps memory out of swap: all of it where RLIMIT_MEMLOCK allows, else the heap, where the key and the cipher contexts are. Says what.
fn lock_memory() -> String {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = getrlimit(Resource::Memlock).current;
    if limit.is_none_or(|limit| limit >= ENOUGH) || rustix::process::geteuid().is_root() {
        use rustix::mm::MlockAllFlags;
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        if rustix::mm::mlockall(flags).is_ok() {
            return ALL.into();
        }
    }
    match countersign_sys::lock_heap() {
        Ok(_) => "the heap".into(),
        Err(e) => format!("nothing ({e}): raise the memlock limit (ulimit -l)"),
    }
}

fn serve(channel: &Channel) -> Result<(), Failure> {
    harden()?;
    let Some((order, mut fds)) = channel.receive::<Order>().map_err(other)? else { return Ok(()) };
    if order.user.is_some() {
        confine::begin().map_err(other)?;
    }
    let image = fds.pop().ok_or_else(|| other("no image was handed over"))?;
    let trusted: Result<Vec<SignerKey>, SifError> =
        order.signers.iter().map(|pem| SignerKey::from_pem(pem.as_bytes())).collect();
    // The same descriptor that the supervisor checked, checked again here: this process trusts nobody with its key.
    let image = Image::from_file(File::from(image), &trusted?, false)?;
    // The file may have been written to since: well signed is not enough, it must be the workload that the supervisor said yes to.
    let found = image.binding().workload;
    if found != order.workload {
        let what = format!(
            "the image was changed while it was started: it holds workload {found}, checked was {}",
            order.workload
        );
        return Err(Failure::new(
            Stage::Binding,
            what,
            "run the command again, and write to no image that is being started",
        ));
    }
    let tpm = order.tpm.map(|tpm| tpm.parse()).transpose().map_err(other)?;
    let config = Config::load(order.config.as_deref(), Overrides { tpm, state_dir: order.state_dir })?;
    let host = Host::open(config)?;
    let locked = lock_memory();
    let Some((Word::Prepare, _)) = channel.receive::<Word>().map_err(other)? else { return Ok(()) };
    let Some((view, released)) = release(host, &image, (order.workload, order.run), channel, locked)? else {
        return Ok(());
    };
    if let Some(user) = order.user {
        confine::finish(user).map_err(other)?;
    }
    channel.send(&Report::Released(released), &[]).map_err(other)?;

    let Some((Word::Serve(reader), mut fds)) = channel.receive::<Word>().map_err(other)? else { return Ok(()) };
    let fuse = fds.pop().ok_or_else(|| other("no FUSE descriptor was handed over"))?;
    let words = channel.try_clone().map_err(other)?;
    let (begun, notifier) = std::sync::mpsc::sync_channel(1);
    let permit = Arc::new(Permit::new());
    let given = Arc::clone(&permit);
    let listening = std::thread::spawn(move || {
        let mut kernel = None;
        while let Ok(Some((word, _))) = words.receive::<Word>() {
            match word {
                Word::Until(until) => given.prolong(until),
                Word::Forget => {
                    // A page that is being read would be waited for.
                    given.end();
                    kernel = kernel.or_else(|| notifier.recv().ok());
                    if let Some(kernel) = &kernel {
                        let _ = served::forget(kernel);
                    }
                    let _ = words.send(&Report::Forgotten, &[]);
                }
                Word::Prepare | Word::Release | Word::Serve(_) => {}
            }
        }
        given.end();
    });
    let report = channel.try_clone().map_err(other)?;
    served::serve(view, fuse, Gate::new(reader), permit, report, |kernel| drop(begun.send(kernel))).map_err(other)?;
    // The last mount is gone, and the key with it. Why is for the stage to say: ending now would look like dying.
    let _ = listening.join();
    Ok(())
}

/// Has the key unsealed, once the supervisor says so; of it only the view's cipher contexts remain. `None`: it does not, the run is over.
fn release(
    mut host: Host,
    image: &Image,
    (workload, run): (WorkloadId, RunId),
    channel: &Channel,
    locked: String,
) -> Result<Option<(View, Released)>, Failure> {
    let started = std::time::Instant::now();
    let said = Arc::new(AtomicBool::new(false));
    host.observe(supervisors_word(channel.try_clone().map_err(other)?, Arc::clone(&said)));
    let released = match host.release(workload, run) {
        Err(HostError::Interrupted(_)) => {
            let Some((Word::Release, _)) = channel.receive::<Word>().map_err(other)? else { return Ok(None) };
            said.store(true, Ordering::Relaxed);
            host.release(workload, run)?
        }
        released => released?,
    };
    if released.key.len() != KEY {
        return Err(other(format!("the unsealed key has {} bytes", released.key.len())));
    }
    let mut key = Box::new(VolumeKey::new([0; KEY]));
    key.copy_from_slice(&released.key);
    let view = View::new(image, &key, THREADS)?;
    // The heap may have grown, where it alone is locked.
    let locked = if locked == ALL { locked } else { lock_memory() };
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (verdict, lease_s, tpm_commands) = (released.verdict_id, released.lease_s, released.commands);
    let runtime_flags = released.obligations.runtime_flags;
    Ok(Some((view, Released { verdict, lease_s, runtime_flags, tpm_commands, ms, locked })))
}

/// Ends a release before the key is asked for, unless the supervisor says within a moment that it may be; `said` is that it has.
fn supervisors_word(channel: Channel, said: Arc<AtomicBool>) -> Observer {
    Box::new(move |step| {
        if step != Step::Quoted || said.load(Ordering::Relaxed) {
            return Ok(());
        }
        let heard = poll(&mut [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)], Some(&HOLD));
        if heard.is_ok_and(|n| n > 0) && matches!(channel.receive::<Word>(), Ok(Some((Word::Release, _)))) {
            said.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(HostError::Interrupted(step))
    })
}
