//! A runtime's version, as it says itself. It is asked once a day and when its file has changed: asking takes some 20 ms of both cores.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use countersign_attest::state::StateDir;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::Make;
use crate::exit::{Failure, Stage};
use crate::monitor::now_ms;

/// The file in the state folder that keeps what was answered.
const FILE: &str = "runtime";
/// Longest answer to `--version` that is read, and longest file, bytes.
const LENGTH: u64 = 4096;
/// How long an answer is kept, ms: a file may be a script that starts another one.
const KEPT: i64 = 86_400_000;

/// A program that was asked, or need not be.
#[derive(Debug)]
pub(crate) struct Asked {
    path: PathBuf,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Kept(String),
    /// What it says on standard error lies in a file: nobody needs to read it for the program to go on.
    Coming {
        child: Child,
        words: File,
        file: Option<Identity>,
        state: Option<StateDir>,
    },
}

/// What tells a file from another, and from what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// A good answer.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    path: PathBuf,
    file: Identity,
    asked_ms: i64,
    answer: String,
}

impl Note {
    fn read(state: &StateDir) -> Option<Self> {
        serde_json::from_slice(&state.read(FILE, usize::try_from(LENGTH).ok()?).ok()??).ok()
    }

    fn holds(&self, path: &Path, file: &Identity, now_ms: i64) -> bool {
        let age = now_ms.saturating_sub(self.asked_ms);
        self.path == path && self.file == *file && (0..KEPT).contains(&age)
    }
}

impl Asked {
    /// Asks a program, unless the state folder has its answer.
    ///
    /// # Errors
    /// [`Stage::Missing`].
    pub(super) fn new(path: PathBuf, state: Option<&StateDir>) -> Result<Self, Failure> {
        // Before it is asked: the answer is that of this file, if of any.
        let file = path.metadata().ok().map(|file| Identity::of(&file));
        let note = state.and_then(Note::read);
        if let Some(note) =
            note.zip(file.as_ref()).and_then(|(note, file)| Some(note).filter(|n| n.holds(&path, file, now_ms())))
        {
            return Ok(Self { path, answer: Answer::Kept(note.answer) });
        }
        let mut command = Command::new(&path);
        countersign_sys::end_with_parent(&mut command);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut started = || {
            let words = File::from(memfd_create("words", MemfdFlags::CLOEXEC)?);
            std::io::Result::Ok((command.stderr(words.try_clone()?).spawn()?, words))
        };
        let (child, words) = started().map_err(|e| {
            Failure::new(Stage::Missing, format!("{} cannot be started: {e}", path.display()), "check --runtime")
        })?;
        Ok(Self { path, answer: Answer::Coming { child, words, file, state: state.cloned() } })
    }

    /// What can be read from once [`Self::take`] need not wait.
    pub(super) fn coming(&self) -> Option<BorrowedFd<'_>> {
        match &self.answer {
            Answer::Kept(_) => None,
            Answer::Coming { child, .. } => child.stdout.as_ref().map(|out| out.as_fd()),
        }
    }

    /// Its path, make and version, if it is new enough. A good answer is kept.
    ///
    /// # Errors
    /// [`Stage::Missing`] for one that is too old or of another make.
    pub(super) fn take(self) -> Result<(PathBuf, Make, String), Failure> {
        let Self { path, answer } = self;
        let (text, keep, why) = match answer {
            Answer::Kept(text) => (text, None, String::new()),
            Answer::Coming { mut child, words, file, state } => {
                let mut text = String::new();
                let read = child.stdout.take().map(|out| out.take(LENGTH).read_to_string(&mut text));
                if !child.wait().is_ok_and(|status| status.success()) || !matches!(read, Some(Ok(_))) {
                    text.clear();
                }
                (text, file.zip(state), last_words(&words))
            }
        };
        let text = text.trim();
        let (make, numbers) = parse(text).ok_or_else(|| {
            Failure::new(
                Stage::Missing,
                format!("{} is neither Apptainer nor SingularityCE by its --version{why}", path.display()),
                "give one with --runtime, or --runtime builtin",
            )
        })?;
        let (major, minor) = make.least();
        if numbers < make.least() {
            let (is, name) = (format!("{}.{}", numbers.0, numbers.1), make.name());
            let what = format!("{} is {name} {is}: too old", path.display());
            let hint = format!("install {name} {major}.{minor} or newer, or take --runtime builtin");
            return Err(Failure::new(Stage::Missing, what, hint));
        }
        if let Some((file, state)) = keep {
            let note = Note { path: path.clone(), file, asked_ms: now_ms(), answer: text.to_owned() };
            // Without it the next start asks again.
            let _ = serde_json::to_vec(&note).map(|note| state.write_for_this_boot(FILE, &note));
        }
        let version = text.rsplit(' ').next().unwrap_or_default().to_owned();
        Ok((path, make, version))
    }
}

/// The last line that was written to a file, to be added to a sentence; nothing if there is none.
fn last_words(file: &File) -> String {
    let mut bytes = [0; 4096];
    let from = file.metadata().map_or(0, |file| file.len().saturating_sub(LENGTH));
    let length = file.read_at(&mut bytes, from).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    let text = anstream::adapter::strip_str(&text).to_string();
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

/// Make and version from an answer to `--version`: `apptainer version 1.4.5-2`, `singularity-ce version 4.2.1`.
fn parse(text: &str) -> Option<(Make, (u32, u32))> {
    let (name, version) = text.split_once(" version ")?;
    let make = match name {
        "apptainer" => Make::Apptainer,
        "singularity" | "singularity-ce" | "singularity-pro" => Make::Singularity,
        _ => return None,
    };
    let mut numbers = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((make, (number()?, number()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_they_are_printed() {
        for (text, make, numbers) in [
            ("apptainer version 1.4.5", Make::Apptainer, (1, 4)),
            ("apptainer version 1.3.0-rc.1", Make::Apptainer, (1, 3)),
            ("singularity-ce version 4.2.1-jammy", Make::Singularity, (4, 2)),
            ("singularity version 3.8.7", Make::Singularity, (3, 8)),
            ("singularity-pro version v4.1.2", Make::Singularity, (4, 1)),
        ] {
            assert_eq!(parse(text), Some((make, numbers)), "{text}");
        }
        for text in ["", "apptainer", "bash version 5", "apptainer version x", "apptainer version 1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    /// A program, written by another process: a child of another thread would have this one's open for writing, and nobody could run it.
    fn program(path: &Path, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\" && chmod 755 \"$2\"", "sh", script]).arg(path);
        assert!(command.status().unwrap().success());
    }

    #[test]
    fn one_that_does_not_work_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runtime");
        let says = |script: &str| {
            program(&path, script);
            Asked::new(path.clone(), None).unwrap().take().unwrap_err().error
        };
        let error = says("printf '\\033[31mFATAL: \\033[0m no such \\007user\\n\\n' >&2; exit 1");
        assert!(error.ends_with("by its --version: FATAL:  no such user"), "{error}");
        // More than is read, and more than fits into a pipe.
        let error = says("head -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the end >&2");
        assert!(error.ends_with(": the end"), "{error}");
        assert!(says("true").ends_with("by its --version"));
    }

    #[test]
    fn a_good_answer_is_kept_until_the_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let (path, count) = (folder.path().join("runtime"), folder.path().join("count"));
        let answers = |answer: &str| {
            program(&path, &format!("echo >>'{}'\necho '{answer}'", count.display()));
        };
        let ask = || Asked::new(path.clone(), Some(&state)).and_then(Asked::take).map(|(_, _, version)| version);
        let asked = || std::fs::read(&count).map_or(0, |lines| lines.len());
        answers("apptainer version 1.4.5");
        for _ in 0..3 {
            assert_eq!(ask().unwrap(), "1.4.5");
        }
        assert_eq!(asked(), 1);
        answers("apptainer version 1.2.0");
        for n in 2..4 {
            assert_eq!(ask().unwrap_err().stage, Stage::Missing);
            assert_eq!(asked(), n, "a bad answer is not kept");
        }
        answers("apptainer version 1.5.0");
        assert_eq!(ask().unwrap(), "1.5.0");
        // Kept for a day, and not beyond a clock that was set back.
        let note = Note::read(&state).unwrap();
        for (age, holds) in [(0, true), (KEPT - 1, true), (KEPT, false), (-1, false)] {
            assert_eq!(note.holds(&path, &note.file, note.asked_ms + age), holds, "{age}");
        }
        assert!(!note.holds(Path::new("/other"), &note.file, note.asked_ms));
        // What is no note is passed over.
        std::fs::write(state.path(FILE), "{}").unwrap();
        assert_eq!(ask().unwrap(), "1.5.0");
        assert_eq!(asked(), 5);
    }
}
