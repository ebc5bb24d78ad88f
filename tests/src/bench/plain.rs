//! The peer of a start: the same file system, in clear text, under squashfuse and bubblewrap alone.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use countersign_sif::protect::squashfs_of;

use crate::process::Tools;

/// How long squashfuse may take to mount.
const MOUNT: Duration = Duration::from_secs(20);

/// A plain squashfs and a folder to mount it on.
pub(super) struct Plain {
    tools: Tools,
    squashfs: PathBuf,
    root: PathBuf,
}

impl Plain {
    /// The squashfs that `supervisor protect` encrypts, as it is before.
    pub(super) fn new(tools: Tools, rootfs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let made = squashfs_of(rootfs, folder)?;
        let mut bytes = vec![0; usize::try_from(made.length())?];
        made.read_exact_at(&mut bytes, 0)?;
        let squashfs = folder.join("plain.sqfs");
        fs::write(&squashfs, bytes)?;
        Self::of(tools, squashfs, folder)
    }

    /// A squashfs that is there, and a place for its mount in a folder.
    pub(super) fn of(tools: Tools, squashfs: PathBuf, folder: &Path) -> anyhow::Result<Self> {
        let root = folder.join("root");
        fs::create_dir(&root)?;
        Ok(Self { tools, squashfs, root })
    }

    /// The file system.
    pub(super) fn squashfs(&self) -> &Path {
        &self.squashfs
    }

    /// Does something with a fresh mount of it.
    pub(super) fn mounted<T>(&self, work: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mounted = self.mount()?;
        let done = work(&self.root)?;
        mounted.end()?;
        Ok(done)
    }

    /// Mounts, runs the command and unmounts; milliseconds from the start to the first byte of its output.
    pub(super) fn start(&self, command: &[&str], want: &str) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mounted = self.mount()?;
        let mut bwrap = self.tools.command("bwrap");
        // As the built-in runtime of `supervisor run` calls it.
        bwrap.arg("--ro-bind").arg(&self.root).arg("/").args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        bwrap.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--new-session"]);
        bwrap.args([
            "--die-with-parent",
            "--cap-drop",
            "ALL",
            "--chdir",
            "/",
            "--clearenv",
            "--setenv",
            "PATH",
            "/bin",
        ]);
        bwrap.arg("--").args(command);
        let took = first_byte(bwrap, started, want);
        mounted.end()?;
        took
    }

    fn mount(&self) -> anyhow::Result<Mounted<'_>> {
        let device = || anyhow::Ok(fs::metadata(&self.root)?.dev());
        let before = device()?;
        let program = if Path::new("/usr/bin/squashfuse_ll").exists() { "squashfuse_ll" } else { "squashfuse" };
        let mut command = self.tools.command(program);
        command.arg("-f").args(["-o", "ro,nosuid,nodev"]).arg(&self.squashfs).arg(&self.root);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut mounted = Mounted { squashfuse: command.spawn().context("squashfuse")?, plain: self, ended: false };
        while device()? == before {
            if let Some(status) = mounted.squashfuse.try_wait()? {
                bail!("squashfuse ended: {status}");
            }
            ensure!(started.elapsed() < MOUNT, "squashfuse does not mount");
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(mounted)
    }
}

/// A running squashfuse; unmounted and ended when dropped.
struct Mounted<'a> {
    squashfuse: Child,
    plain: &'a Plain,
    ended: bool,
}

impl Mounted<'_> {
    fn unmount(&self, how: &str) -> anyhow::Result<()> {
        self.plain.tools.ok("fusermount3", &[how.as_ref(), self.plain.root.as_os_str()])?;
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.unmount("-u")?;
        self.squashfuse.wait()?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.unmount("-uz");
            let _ = self.squashfuse.kill();
            let _ = self.squashfuse.wait();
        }
    }
}

/// Runs a command to its end; milliseconds from `started` to the first byte of its output, which must be `want`.
pub(super) fn first_byte(mut command: Command, started: Instant, want: &str) -> anyhow::Result<f64> {
    let errors = tempfile::tempfile()?;
    let mut child = command.stdout(Stdio::piped()).stderr(errors.try_clone()?).spawn()?;
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut output = [0; 1].to_vec();
    let read = stdout.read(&mut output);
    let took = started.elapsed();
    output.truncate(read?);
    stdout.read_to_end(&mut output)?;
    let status = child.wait()?;
    if !status.success() || output != want.as_bytes() {
        bail!("{status}:\n{}{}", String::from_utf8_lossy(&output), said(errors)?);
    }
    Ok(super::measure::ms(took))
}

fn said(mut errors: File) -> anyhow::Result<String> {
    use std::io::Seek as _;
    let mut text = String::new();
    errors.rewind()?;
    errors.read_to_string(&mut text)?;
    Ok(text)
}
