//! Container runtimes: bubblewrap, built in, and Apptainer or SingularityCE as they are installed.
//!
//! All of them get the root file system as a folder, mounted by squashfuse in namespaces that only this run has (decision 0018): the image is
//! read by nobody else, and its mount is detached before there is a key. None of them ever gets the key.

mod ahead;
mod arguments;
mod barrier;
mod builtin;
mod flags;
mod obliged;
mod outer;
mod terminal;
mod version;
mod workload;

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use countersign_attest::state::StateDir;
use countersign_wire::obligations::RuntimeFlag;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::out;
use crate::stage::start;

pub(crate) use arguments::split;
pub(crate) use builtin::Settings;
pub use flags::Given;
pub(crate) use outer::{drop_privileges, main as agent};
pub(crate) use terminal::{Lending, Lent, Share, filter as terminal_filter};
use version::Asked;
pub(crate) use workload::Waiting;

/// What to run in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// The image's runscript with these arguments; without one, the arguments are the command line.
    Run(Vec<OsString>),
    /// This command line.
    Exec(Vec<OsString>),
    /// A shell.
    Shell(Vec<OsString>),
    /// The image's startscript with these arguments, in an instance.
    Start {
        /// The instance's name.
        name: OsString,
        /// Where the runtime may keep notes about it; not there yet.
        folder: PathBuf,
        /// The startscript's arguments.
        arguments: Vec<OsString>,
    },
}

impl Task {
    /// Whether it is a shell that reads commands from the terminal.
    pub(crate) fn is_shell(&self) -> bool {
        match self {
            Self::Shell(_) => true,
            Self::Run(_) | Self::Start { .. } => false,
            Self::Exec(words) => {
                let name = words.first().map(|word| Path::new(word).file_name().unwrap_or_default());
                let options = words.iter().skip(1).all(|word| word.as_encoded_bytes().starts_with(b"-"));
                options && name.is_some_and(|name| name.as_encoded_bytes().ends_with(b"sh"))
            }
        }
    }
}

/// A runtime's make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Make {
    /// bubblewrap.
    Builtin,
    /// Apptainer.
    Apptainer,
    /// SingularityCE.
    Singularity,
}

impl Make {
    const fn name(self) -> &'static str {
        match self {
            Self::Builtin => "the built-in runtime",
            Self::Apptainer => "Apptainer",
            Self::Singularity => "SingularityCE",
        }
    }

    /// Oldest version that will do: major, minor.
    const fn least(self) -> (u32, u32) {
        match self {
            Self::Builtin => (0, 0),
            Self::Apptainer => (1, 3),
            Self::Singularity => (4, 0),
        }
    }
}

/// A runtime that was found; of a program, its version may still be asked for.
#[derive(Debug)]
pub(crate) enum Found {
    Builtin,
    Program(Asked),
}

/// Finds the runtime that was chosen: `auto` (what is installed, else the built-in one), `builtin`, `apptainer`, `singularity`, or a path. The
/// state folder may know its version.
///
/// # Errors
/// [`Stage::Missing`].
pub(crate) fn find(choice: &Path, state: Option<&StateDir>) -> Result<Found, Failure> {
    let missing = |name: &str| {
        Failure::new(
            Stage::Missing,
            format!("{name} is not installed"),
            "install it, or take the built-in runtime: --runtime builtin",
        )
    };
    let path = match choice.to_str() {
        Some("builtin") => return Ok(Found::Builtin),
        Some("auto") => match ["apptainer", "singularity"].into_iter().find_map(on_path) {
            Some(path) => path,
            None => return Ok(Found::Builtin),
        },
        Some(name @ ("apptainer" | "singularity")) => on_path(name).ok_or_else(|| missing(name))?,
        _ if choice.components().count() > 1 => {
            std::path::absolute(choice).ok().filter(|path| path.is_file()).ok_or_else(|| {
                Failure::new(Stage::Missing, format!("{}: no such program", choice.display()), "check --runtime")
            })?
        }
        _ => {
            let what = format!("{} is no runtime", choice.display());
            return Err(Failure::new(Stage::Usage, what, "--runtime auto|builtin|apptainer|singularity|PATH"));
        }
    };
    Ok(Found::Program(Asked::new(path, state)?))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

impl Found {
    /// What can be read from once [`Self::with`] need not wait.
    pub(crate) fn answer(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Builtin => None,
            Self::Program(asked) => asked.coming(),
        }
    }

    /// The runtime, once it is known that it is new enough and takes these flags.
    ///
    /// # Errors
    /// [`Stage::Missing`] for one that is too old or of another make, [`Stage::Usage`] for a flag that it does not have.
    pub(crate) fn with(self, flags: &[Given]) -> Result<Chosen, Failure> {
        match self {
            Self::Builtin => Ok(Chosen::Builtin(Settings::of(flags)?)),
            Self::Program(asked) => {
                let (path, make, version) = asked.take()?;
                flags::check_environment(|name| std::env::var_os(name))?;
                let flags = flags.iter().map(Given::argument).collect();
                Ok(Chosen::Program(outer::Program {
                    make,
                    version,
                    path,
                    flags,
                    silent: out::is_quiet(),
                    demanded: Vec::new(),
                }))
            }
        }
    }
}

/// A runtime and how it is to run, for the stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Chosen {
    Builtin(Settings),
    Program(outer::Program),
}

/// What a runtime starts from.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The container's root file system.
    pub(crate) root: &'a Path,
    /// Where another runtime than the built-in one gets it.
    pub(crate) shown: &'a Path,
    pub(crate) ids: Ids,
    /// What the workload gets of the user's terminal.
    pub(crate) terminal: Share,
}

impl Chosen {
    /// Whether it makes the container in further namespaces than those that it is given.
    pub(crate) const fn is_nested(&self) -> bool {
        matches!(self, Self::Program(_))
    }

    /// Its name for people.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Builtin(_) => Make::Builtin.name(),
            Self::Program(program) => program.make.name(),
        }
    }

    /// Its name, version and place for people.
    pub(crate) fn described(&self) -> String {
        match self {
            Self::Builtin(_) => self.name().to_owned(),
            Self::Program(program) => format!("{} {} at {}", self.name(), program.version, program.path.display()),
        }
    }

    /// Whether the user's flags leave room for those that policy demands.
    ///
    /// # Errors
    /// [`Stage::Usage`] names the one that does not.
    pub(crate) fn check(&self, demanded: &[RuntimeFlag], given: &[Given]) -> Result<(), Failure> {
        // The built-in runtime takes nothing from variables.
        obliged::check(demanded, given, |name| if self.is_nested() { std::env::var_os(name) } else { None })
    }

    /// Takes what policy demands; [`Self::check`] comes before.
    pub(crate) fn oblige(&mut self, demanded: &[RuntimeFlag]) {
        match self {
            Self::Builtin(settings) => settings.oblige(demanded),
            Self::Program(program) => program.demanded = demanded.to_vec(),
        }
    }

    /// A command line for another process in an instance that this runtime has started; `root` leads to its file system, `folder` was the one of
    /// [`Task::Start`].
    ///
    /// # Errors
    /// [`Stage::Usage`] for a flag that it does not have.
    pub(crate) fn join(
        &self,
        instance: &str,
        root: &Path,
        folder: &Path,
        task: &Task,
        flags: &[Given],
    ) -> Result<Command, Failure> {
        match self {
            Self::Builtin(settings) => settings.join(root, task, flags),
            Self::Program(program) => {
                self.check(&program.demanded, flags)?;
                Ok(program.join(instance, folder, task, flags))
            }
        }
    }

    /// Starts the runtime before there is a file system, which it waits for. `None` where it cannot, or not without notes that would be in the
    /// way when it has to be done anew. For a policy that demands nothing of it.
    ///
    /// # Errors
    /// [`Failure`]: it cannot be started.
    pub(crate) fn prepare(
        &self,
        place: &Place<'_>,
        task: &Task,
        stdin: &OwnedFd,
        cgroup: Option<&(OwnedFd, OwnedFd)>,
    ) -> Result<Option<Waiting>, Failure> {
        match self {
            Self::Program(program) if !matches!(task, Task::Start { .. }) => {
                let stdin = stdin.try_clone().map_err(start)?;
                program.start(place, task, stdin, workload::borrowed(cgroup)).map(Some)
            }
            Self::Builtin(_) | Self::Program(_) => Ok(None),
        }
    }

    /// Runs the workload in what was prepared; its exit code, or `None` when the supervisor is gone.
    ///
    /// # Errors
    /// [`Failure`]: it was not started, or lost its files.
    pub(crate) fn go_on(
        &self,
        channel: &Channel,
        waiting: Waiting,
        place: &Place<'_>,
        task: &Task,
        squashfuse: &Child,
    ) -> Result<Option<u8>, Failure> {
        self.read_ahead(place, task);
        waiting.hand_over(place.root)?;
        waiting.run(channel, squashfuse)
    }

    /// Runs the workload; its exit code, or `None` when the supervisor is gone.
    ///
    /// # Errors
    /// [`Failure`]: it was not started, or lost its files.
    pub(crate) fn run(
        &self,
        channel: &Channel,
        place: &Place<'_>,
        task: &Task,
        (stdin, cgroup): workload::Given,
        squashfuse: &Child,
    ) -> Result<Option<u8>, Failure> {
        match self {
            Self::Builtin(settings) => {
                self.read_ahead(place, task);
                let (bubble, what) = settings.command(place, task)?;
                workload::run(channel, bubble, what, (stdin, cgroup), squashfuse)
            }
            Self::Program(program) => {
                let waiting = program.start(place, task, stdin, workload::borrowed(cgroup.as_ref()))?;
                drop(cgroup);
                self.go_on(channel, waiting, place, task, squashfuse)
            }
        }
    }

    /// The workload's program is read while its container is made.
    fn read_ahead(&self, place: &Place<'_>, task: &Task) {
        let plain = Settings::default();
        let settings = if let Self::Builtin(settings) = self { settings } else { &plain };
        if let Some(program) = settings.command_line(task, place.root).first() {
            ahead::read(place.root, program);
        }
    }
}

/// The user's ids, which the workload keeps.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ids {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

impl Ids {
    /// Those of this process; to be asked before it enters a user namespace.
    pub(crate) fn own() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }
}

/// A name for error messages.
fn said(name: Option<&OsStr>) -> String {
    name.map(|name| format!("{:?}", name.to_string_lossy())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_none_is_missing_or_too_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runtime");
        let answers = |answer: &str| {
            let script = format!("#!/bin/sh\necho '{answer}'\n");
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            find(&path, None).unwrap().with(&[]).map_err(|failure| (failure.stage, failure.error + &failure.hint))
        };
        for (answer, word) in [
            ("apptainer version 1.2.5", "1.3 or newer"),
            ("singularity version 3.8.7", "4.0 or newer"),
            ("something else", "neither"),
        ] {
            let (stage, words) = answers(answer).unwrap_err();
            assert!(stage == Stage::Missing && words.contains(word), "{words}");
        }
        assert!(matches!(answers("apptainer version 1.3.0"), Ok(Chosen::Program(_))));
        let failure = find(&folder.path().join("none"), None).unwrap_err();
        assert_eq!(failure.stage, Stage::Missing);
        assert_eq!(find(Path::new("docker"), None).unwrap_err().stage, Stage::Usage);
        assert!(matches!(find(Path::new("builtin"), None), Ok(Found::Builtin)));
    }
}
