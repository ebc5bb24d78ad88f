//! Running the product's programs the way a user does, and ending them for sure.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Where the programs lie, and what they need to find theirs.
#[derive(Debug, Clone)]
pub struct Tools {
    bin_dir: PathBuf,
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The command line, for people.
    pub line: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall-clock time.
    pub took: Duration,
}

impl Tools {
    /// Programs in this folder.
    ///
    /// # Errors
    /// The folder does not exist.
    pub fn new(bin_dir: &Path) -> anyhow::Result<Self> {
        let bin_dir = bin_dir.canonicalize().with_context(|| format!("no such folder: {}", bin_dir.display()))?;
        Ok(Self { bin_dir })
    }

    /// A command of the product (`attest`, `verifier`, `supervisor`, `tpm-sim`), or of the system.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let own = self.bin_dir.join(program);
        let mut command = Command::new(if own.exists() { own } else { PathBuf::from(program) });
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut parts: Vec<PathBuf> = std::env::split_paths(&path).collect();
        parts.extend([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
        if let Ok(path) = std::env::join_paths(parts) {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It could not be started.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> anyhow::Result<Ended> {
        let mut command = self.command(program);
        command.args(args);
        let started = Instant::now();
        let output = command.output().with_context(|| format!("cannot start {program}"))?;
        Ok(Ended {
            line: line(program, args),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: started.elapsed(),
        })
    }

    /// Runs a program that must succeed.
    ///
    /// # Errors
    /// It could not be started, or its exit code was not 0.
    pub fn ok<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> anyhow::Result<Ended> {
        let ended = self.run(program, args)?;
        if ended.code != Some(0) {
            bail!("`{}` ended with {:?}:\n{}{}", ended.line, ended.code, ended.stdout, ended.stderr);
        }
        Ok(ended)
    }

    /// Starts a program that stays, and waits until it prints a line that starts with `ready`.
    ///
    /// # Errors
    /// It could not be started, ended early, or said nothing for 20 seconds.
    pub fn serve<S: AsRef<OsStr>>(&self, program: &str, args: &[S], log: &Path) -> anyhow::Result<(Service, Ended)> {
        let mut command = self.command(program);
        command.args(args).stdout(Stdio::piped()).stderr(std::fs::File::create(log)?);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let service = Service { child };
        let (tell, hear) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(text).is_err() {
                    break;
                }
            }
        });
        loop {
            let left = Duration::from_secs(20).saturating_sub(started.elapsed());
            let Ok(text) = hear.recv_timeout(left) else {
                bail!("`{}` is not ready; it says:\n{}", line(program, args), std::fs::read_to_string(log)?);
            };
            if text.starts_with("ready") {
                let took = started.elapsed();
                let ended = Ended { line: line(program, args), code: None, stdout: text, stderr: String::new(), took };
                return Ok((service, ended));
            }
        }
    }
}

/// A running program; ended when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
}

impl Service {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM), waits up to 5 seconds, then makes it.
    pub fn stop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A command line for people: quoted where a shell would need it.
fn line<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let mut line = program.to_owned();
    for arg in args {
        let arg = arg.as_ref().to_string_lossy();
        line.push(' ');
        if arg.is_empty() || arg.contains(|c: char| c.is_whitespace() || "'\"$;&|<>()".contains(c)) {
            line.push_str(&format!("'{}'", arg.replace('\'', "'\\''")));
        } else {
            line.push_str(&arg);
        }
    }
    line
}

/// How a program of this crate ends: quietly, or with `error:` and everything behind it.
#[must_use]
pub fn finish(program: &str, result: anyhow::Result<()>) -> std::process::ExitCode {
    use std::io::Write as _;
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(anstream::stderr().lock(), "error: {program}: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
