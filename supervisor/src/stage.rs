//! The stage: a process in a user and mount namespace of its own, in which the decrypted file system is mounted and the workload runs.
//!
//! It never sees the key. Once squashfuse has the file open, the decryptor's mount is detached: no path leads to the decrypted image.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::decryptor::FILE;
use crate::exit::{Failure, Stage};

/// How long squashfuse may take to mount.
const MOUNT: Duration = Duration::from_secs(20);

/// What the supervisor tells it; the user's standard input comes along.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// An empty folder of this run.
    pub(crate) folder: PathBuf,
    /// The workload's command line.
    pub(crate) command: Vec<String>,
}

/// What it tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Mounted: the FUSE descriptor comes along, for the decryptor.
    Fuse,
    /// The workload ended with this exit code.
    Ended(u8),
    /// It was not started.
    Failed(Failure),
}

/// Runs the stage on its standard input.
pub(crate) fn main() -> u8 {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let Ok(channel) = Channel::from_stdin() else { return Stage::Start.code() };
    let report = match play(&channel) {
        Ok(code) => Report::Ended(code),
        Err(failure) => Report::Failed(failure),
    };
    let _ = channel.send(&report, &[]);
    0
}

fn namespaces(e: impl std::fmt::Display) -> Failure {
    let hint =
        "user namespaces and /dev/fuse are needed: check kernel.unprivileged_userns_clone and the mode of /dev/fuse";
    Failure::new(Stage::Namespaces, format!("a private mount cannot be made: {e}"), hint)
}

fn start(e: impl std::fmt::Display) -> Failure {
    Failure::new(
        Stage::Start,
        format!("the workload cannot be started: {e}"),
        "supervisor inspect --full IMAGE checks the image",
    )
}

fn play(channel: &Channel) -> Result<u8, Failure> {
    let Some((order, mut fds)) = channel.receive::<Order>().map_err(start)? else { return Ok(Stage::Start.code()) };
    let stdin = fds.pop().ok_or_else(|| start("no standard input was handed over"))?;
    countersign_sys::enter_private_namespaces().map_err(namespaces)?;
    let (image, root) = (order.folder.join("image"), order.folder.join("root"));
    for folder in [&image, &root] {
        fs::create_dir(folder).map_err(namespaces)?;
    }
    // Nothing that is mounted here is seen elsewhere.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .map_err(namespaces)?;
    // /dev/fuse must be opened in the namespace in which it is mounted.
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(namespaces)?;
    let options = std::ffi::CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd()))
        .map_err(namespaces)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("countersign", &image, "fuse", flags, Some(options.as_c_str())).map_err(namespaces)?;
    channel.send(&Report::Fuse, &[fuse.as_fd()]).map_err(start)?;
    drop(fuse);
    // The supervisor says when the decryptor serves; without that word the run is over.
    if channel.receive::<()>().map_err(start)?.is_none() {
        return Ok(Stage::Decryptor.code());
    }
    let mut squashfuse = squashfuse(&image.join(FILE), &root)?;
    unmount(&image, UnmountFlags::DETACH).map_err(namespaces)?;
    let outcome = workload(&root, &order.command, stdin);
    let _ = unmount(&root, UnmountFlags::DETACH);
    finish(&mut squashfuse);
    outcome
}

/// A child of ours that dies with us: squashfuse would outlive its starter.
fn dies_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

fn missing(program: &str, e: &io::Error) -> Failure {
    Failure::new(
        Stage::Missing,
        format!("{program} cannot be started: {e}"),
        "apt-get install squashfuse fuse3 bubblewrap util-linux",
    )
}

fn squashfuse(image: &Path, root: &Path) -> Result<Child, Failure> {
    let program = ["/usr/bin/squashfuse_ll", "/usr/bin/squashfuse"].into_iter().find(|path| Path::new(path).exists());
    let mut command = dies_with_us(program.unwrap_or("squashfuse"));
    command.arg("-f").args(["-o", "ro,nosuid,nodev"]).arg(image).arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| missing("squashfuse", &e))?;
    let started = Instant::now();
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let before = device(root).map_err(start)?;
    loop {
        if device(root).is_ok_and(|now| now != before) {
            return Ok(child);
        }
        if let Some(status) = child.try_wait().map_err(start)? {
            let mut words = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = io::Read::read_to_string(&mut stderr, &mut words);
            }
            return Err(start(format!("squashfuse ended ({status}): {}", words.trim())));
        }
        if started.elapsed() > MOUNT {
            finish(&mut child);
            return Err(start("squashfuse did not mount the file system in time"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// squashfuse ends by itself after its last unmount; after a second it is ended.
fn finish(child: &mut Child) {
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(1) {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn workload(root: &Path, command_line: &[String], stdin: std::os::fd::OwnedFd) -> Result<u8, Failure> {
    let mut command = dies_with_us("bwrap");
    command.arg("--ro-bind").arg(root).arg("/");
    let has = |name: &str| root.join(name).is_dir();
    if has("proc") {
        command.args(["--proc", "/proc"]);
    }
    if has("dev") {
        command.args(["--dev", "/dev"]);
    }
    if has("tmp") {
        command.args(["--tmpfs", "/tmp"]);
    }
    command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    command.args(["--new-session", "--die-with-parent", "--cap-drop", "ALL", "--chdir", "/"]);
    command.args(["--clearenv", "--setenv", "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    for name in ["TERM", "LANG", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.arg("--setenv").arg(name).arg(value);
        }
    }
    command.arg("--").args(command_line.iter().map(OsString::from));
    command.stdin(Stdio::from(stdin));
    let status = command.status().map_err(|e| missing("bwrap", &e))?;
    let by_signal =
        || status.signal().and_then(|signal| u8::try_from(signal).ok()).map(|signal| signal.saturating_add(128));
    let code = status.code().and_then(|code| u8::try_from(code).ok()).or_else(by_signal);
    Ok(code.unwrap_or_else(|| Stage::Start.code()))
}
