//! Where a user's instances are noted: a folder for each, mode 0700, its files 0600.
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked by the instance's supervisor for as long as it lives |
//! | `instance.json` | what runs there ([`Note`]); only while it runs |
//! | `out`, `err` | what the instance prints; kept until the next start under the name |
//! | `runtime/` | the runtime's own notes and logs |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::exit::{Failure, Stage};
use crate::runtime::Chosen;

/// Longest name, bytes.
const NAME: usize = 64;
/// How often a lock is tried, and the pause between: one that a running instance has is not given up.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);
/// Longest note, bytes.
const NOTE: u64 = 1 << 20;

/// What is known of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) name: String,
    /// Its supervisor.
    pub(crate) pid: u32,
    /// The first process of its namespaces.
    pub(crate) init: u32,
    pub(crate) image: PathBuf,
    pub(crate) run: String,
    /// Milliseconds since 1970.
    pub(crate) started_ms: i64,
    pub(crate) runtime: Chosen,
}

/// A folder of instances.
#[derive(Debug, Clone)]
pub(crate) struct Instances(PathBuf);

/// One of them, running or not.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

fn state(path: &Path, e: &io::Error) -> Failure {
    let what = format!("{}: {e}", path.display());
    Failure::new(
        Stage::Configuration,
        what,
        "--instance-dir takes a folder that you may write, on a disk that is not full",
    )
}

/// Letters, digits, `.`, `_`, `-`, at most 64, beginning with a letter or digit.
fn check(name: &str) -> Result<(), Failure> {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let all = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if first && all && name.len() <= NAME {
        return Ok(());
    }
    let hint = "a name has letters, digits, . _ and -, at most 64, and begins with a letter or digit";
    Err(Failure::new(Stage::Usage, format!("{name:?} is no name of an instance"), hint))
}

impl Instances {
    /// The folder given, or the user's own: in /run/countersign for root, in $XDG_RUNTIME_DIR, else in the user's state folder, by host name.
    ///
    /// # Errors
    /// [`Stage::Configuration`]: it cannot be made, or is not the user's alone.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self, Failure> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = match (given, rustix::process::geteuid().is_root(), set("XDG_RUNTIME_DIR")) {
            (Some(given), _, _) => given.to_owned(),
            (None, true, _) => "/run/countersign/instances".into(),
            (None, false, Some(runtime)) => runtime.join("countersign/instances"),
            (None, false, None) => {
                let home = || set("HOME").map(|home| home.join(".local/state"));
                let state = set("XDG_STATE_HOME").or_else(home).unwrap_or_else(|| "/".into());
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                state.join("countersign/instances").join(host)
            }
        };
        let path = std::path::absolute(&path).map_err(|e| state(&path, &e))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| state(&path, &e))?;
        let metadata = fs::metadata(&path).map_err(|e| state(&path, &e))?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
            let e = io::Error::new(io::ErrorKind::PermissionDenied, "it is not this user's alone (mode 0700)");
            return Err(state(&path, &e));
        }
        Ok(Self(path))
    }

    /// The instance of this name, running or not.
    pub(crate) fn named(&self, name: &str) -> Result<Instance, Failure> {
        check(name)?;
        Ok(Instance { name: name.to_owned(), folder: self.0.join(name) })
    }

    /// All that run, by name. Notes of dead ones are removed.
    pub(crate) fn running(&self) -> Result<Vec<Note>, Failure> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(|e| state(&self.0, &e))?.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if let Ok(instance) = self.named(&name)
                && let Some(note) = instance.note()?
            {
                found.push(note);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

impl Instance {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Takes the name: the lock is to be kept for as long as the instance runs.
    ///
    /// # Errors
    /// [`Stage::Usage`] when an instance of that name runs.
    pub(crate) fn claim(&self) -> Result<File, Failure> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(|e| state(&self.folder, &e))?;
        let lock = self.file("lock", false)?;
        // Whoever looks for what runs holds the lock for a moment too.
        if !free_soon(&lock).map_err(|e| state(&self.folder, &e))? {
            let what = format!("an instance {} runs already", self.name);
            return Err(Failure::new(
                Stage::Usage,
                what,
                format!("supervisor instance stop {}, or another name", self.name),
            ));
        }
        self.forget();
        Ok(lock)
    }

    /// A file of its own, for writing.
    pub(crate) fn file(&self, name: &str, empty: bool) -> Result<File, Failure> {
        let path = self.path(name);
        let open = OpenOptions::new().write(true).create(true).truncate(empty).mode(0o600).open(&path);
        open.map_err(|e| state(&path, &e))
    }

    /// Writes down that it runs.
    pub(crate) fn write(&self, note: &Note) -> Result<(), Failure> {
        let new = self.path("instance.json.new");
        let text = serde_json::to_vec_pretty(note).unwrap_or_default();
        let mut file = self.file("instance.json.new", true)?;
        let written = io::Write::write_all(&mut file, &text);
        written.and_then(|()| fs::rename(&new, self.path("instance.json"))).map_err(|e| state(&new, &e))
    }

    /// Removes what is true only while it runs.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.path("instance.json"));
        let _ = fs::remove_dir_all(self.path("runtime"));
    }

    /// What runs under this name; none when nothing does, and then nothing is noted any more.
    pub(crate) fn note(&self) -> Result<Option<Note>, Failure> {
        let path = self.path("instance.json");
        let mut text = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.and_then(|file| file.take(NOTE).read_to_end(&mut text)).map_err(|e| state(&path, &e))?,
        };
        let lock = self.file("lock", false)?;
        if free(&lock).map_err(|e| state(&path, &e))? {
            self.forget();
            return Ok(None);
        }
        let bad = |e: serde_json::Error| state(&path, &io::Error::new(io::ErrorKind::InvalidData, e));
        serde_json::from_slice(&text).map(Some).map_err(bad)
    }

    /// As [`Instance::note`], of one that must run.
    ///
    /// # Errors
    /// [`Stage::Usage`].
    pub(crate) fn running(&self) -> Result<Note, Failure> {
        self.note()?.ok_or_else(|| {
            Failure::new(Stage::Usage, format!("no instance {} runs", self.name), "supervisor instance list")
        })
    }
}

fn free_soon(lock: &File) -> io::Result<bool> {
    for _ in 0..LOOKS {
        if free(lock)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    free(lock)
}

fn free(lock: &File) -> io::Result<bool> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn note(name: &str) -> Note {
        let runtime = crate::runtime::find(Path::new("builtin"), None).unwrap().with(&[]).unwrap();
        let image = "app.sif".into();
        Note { name: name.into(), pid: 1, init: 2, image, run: "r".into(), started_ms: 0, runtime }
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "A.b_c", &"x".repeat(64)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(check(bad).unwrap_err().stage, Stage::Usage, "{bad}");
        }
    }

    #[test]
    fn one_of_a_name_and_nothing_of_dead_ones() {
        let folder = tempfile::tempdir().unwrap();
        let instances = Instances::open(Some(&folder.path().join("new/instances"))).unwrap();
        let web = instances.named("web").unwrap();
        assert!(web.note().unwrap().is_none() && web.running().is_err());
        let held = web.claim().unwrap();
        web.write(&note("web")).unwrap();
        let failure = web.claim().unwrap_err();
        assert!(failure.stage == Stage::Usage && failure.error.contains("runs already"), "{}", failure.error);
        assert_eq!(instances.running().unwrap().len(), 1);
        assert_eq!(web.running().unwrap().init, 2);
        let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(web.folder.clone()), mode(web.path("instance.json"))), (0o700, 0o600));
        // It died: the lock went with it, the note stayed.
        drop(held);
        // Another test's child has all descriptors until it executes its program.
        while !instances.running().unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert!(!web.path("instance.json").exists());
        web.claim().unwrap();
    }

    #[test]
    fn a_folder_of_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let failure = Instances::open(Some(folder.path())).unwrap_err();
        assert!(failure.stage == Stage::Configuration && failure.error.contains("0700"), "{}", failure.error);
    }
}
