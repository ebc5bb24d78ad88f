//! The state folder of one TPM: mode 0700, its files 0600, one lock for the whole machine (DESIGN.md section 3).
//!
//! | file | what |
//! |---|---|
//! | `lock` | held from before a challenge is asked for until its receipt is extended or given up |
//! | `host.card` | host id, EK, AK public |
//! | `ak.private` | the AK's private blob: useless without this TPM |
//! | `trust.bundle`, `verifier.url` | the pinned verifier |
//! | `tls.key`, `tls.crt` | this host's TLS key (PKCS#8) and its newest certificate |
//! | `run.log` | the run log of this boot; `run.log.old` that of the one before |
//! | `receipt` | the newest receipt that was extended, in this or an earlier boot |
//! | `queue/` | a file for each program that waits for the lock, locked by it |
//! | `leases` | the last attestation's outcome and the terms of each run, of this boot |
//! | `runs/` | a file for each run under way, locked by its supervisor |
//! | `imports/` | private blobs that TPM2_Import returned |
//! | `runtime` | the container runtime's version, as it last said it |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::HostError;
use crate::queue::{self, Place, Waited};
use crate::rest::Turn;

/// An existing state folder.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// The machine-wide lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    // In this order: it is free before this process may be stopped.
    _file: File,
    _turn: Turn,
}

impl StateDir {
    /// Opens the folder, making it (0700) when it does not exist.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| HostError::State { path: path.to_owned(), source })?;
        // Whoever may write here may put another verifier in the place of the pinned one.
        let mode = fs::metadata(path).map_err(|source| HostError::State { path: path.to_owned(), source })?.mode();
        if mode & 0o002 != 0 {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "everybody may write it; chmod 700");
            return Err(HostError::State { path: path.to_owned(), source });
        }
        Ok(Self(path.to_owned()))
    }

    /// Path of a file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn error(&self, name: &str) -> impl FnOnce(io::Error) -> HostError {
        let path = self.path(name);
        |source| HostError::State { path, source }
    }

    /// Takes the lock, waiting up to `patience` for each program of this host that asked before, and not so long for one that is stopped.
    ///
    /// # Errors
    /// [`HostError::State`], with kind TimedOut when another program keeps it: its process id and name, and that it is stopped.
    pub fn lock(&self, patience: Duration) -> Result<Lock, HostError> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(self.path("lock"));
        let file = open.map_err(self.error("lock"))?;
        loop {
            let turn = Turn::begin();
            match self.wait_for(&file, patience).map_err(self.error("lock"))? {
                Waited::Free => return Ok(Lock { _file: file, _turn: turn }),
                // From the end of the queue, once this process goes on.
                Waited::Resting => {}
                Waited::Kept(by) => {
                    return Err(self.error("lock")(io::Error::new(io::ErrorKind::TimedOut, format!("{by} keeps it"))));
                }
            }
        }
    }

    /// Programs get the lock in the order in which they asked; `patience` is for one of them.
    fn wait_for(&self, lock: &File, patience: Duration) -> io::Result<Waited> {
        let place = Place::last(&self.path("queue"))?;
        match place.wait(patience, &Turn::is_to_end)? {
            Waited::Free => queue::wait(lock, Instant::now(), patience, &Turn::is_to_end),
            waited @ (Waited::Resting | Waited::Kept(_)) => Ok(waited),
        }
    }

    /// Contents of a file, at most `max` bytes; `None` when it does not exist.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn read(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, HostError> {
        match File::open(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(name)(e)),
            Ok(file) => read_bounded(file, max).map(Some).map_err(self.error(name)),
        }
    }

    /// Replaces a file: written beside it, synced, renamed.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), HostError> {
        self.write_all(&[(name, contents)])
    }

    /// Replaces files that lie in one folder, each as [`Self::write`] does; the disk is waited for once.
    ///
    /// # Errors
    /// [`HostError::State`]; any of them may be replaced then, whole.
    pub fn write_all(&self, files: &[(&str, &[u8])]) -> Result<(), HostError> {
        let Some((first, _)) = files.first() else { return Ok(()) };
        let beside: Result<Vec<_>, _> =
            files.iter().map(|(name, contents)| self.beside(name, contents).map_err(self.error(name))).collect();
        let beside = beside?;
        sync(&beside).map_err(self.error(first))?;
        for ((name, _), (_, path)) in files.iter().zip(&beside) {
            fs::rename(path, self.path(name)).map_err(self.error(name))?;
        }
        let folder = self.path(first).parent().unwrap_or(&self.0).to_owned();
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(self.error(first))
    }

    /// Replaces a file that says nothing after a crash of the machine: the disk is not waited for.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn write_for_this_boot(&self, name: &str, contents: &[u8]) -> Result<(), HostError> {
        let written = self.beside(name, contents).and_then(|(_, beside)| fs::rename(beside, self.path(name)));
        written.map_err(self.error(name))
    }

    /// A new file beside the one of this name, with these contents.
    fn beside(&self, name: &str, contents: &[u8]) -> io::Result<(File, PathBuf)> {
        let path = self.path(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(&self.0))?;
        let beside = path.with_extension(format!("new{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(contents)?;
        Ok((file, beside))
    }

    /// Appends to a file and syncs it.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn append(&self, name: &str, contents: &[u8]) -> Result<(), HostError> {
        let open = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(name));
        let written = open.and_then(|mut file| {
            file.write_all(contents)?;
            file.sync_all()
        });
        written.map_err(self.error(name))
    }

    /// Cuts a file to a length and syncs it.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn truncate(&self, name: &str, length: usize) -> Result<(), HostError> {
        let open = OpenOptions::new().write(true).open(self.path(name));
        let cut = open.and_then(|file| {
            file.set_len(u64::try_from(length).unwrap_or(u64::MAX))?;
            file.sync_all()
        });
        cut.map_err(self.error(name))
    }

    /// Renames a file within the folder; one that does not exist is no error.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), HostError> {
        match fs::rename(self.path(from), self.path(to)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error(from)(e)),
            _ => Ok(()),
        }
    }

    /// Removes a file; one that does not exist is no error.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn remove(&self, name: &str) -> Result<(), HostError> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error(name)(e)),
            _ => Ok(()),
        }
    }
}

/// Waits for the disk for all files at once: a journaling file system then writes them in one go. Where no thread is to be had, one by one.
fn sync(files: &[(File, PathBuf)]) -> io::Result<()> {
    let Some(((first, _), others)) = files.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let begun: Vec<_> = others
            .iter()
            .map(|(file, _)| (file, std::thread::Builder::new().spawn_scoped(scope, || file.sync_all())))
            .collect();
        first.sync_all()?;
        begun.into_iter().try_for_each(|(file, thread)| match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => file.sync_all(),
        })
    })
}

/// Reads all of a file, refusing one that is longer than `max` bytes.
///
/// # Errors
/// Those of reading, and FileTooLarge.
pub fn read_bounded(file: impl io::Read, max: usize) -> io::Result<Vec<u8>> {
    // Room at once: a secret that fits leaves no copies behind where the vector grew.
    let mut contents = Vec::with_capacity(max.min(4096).saturating_add(1));
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut contents)?;
    if contents.len() > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {max} bytes")));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_that_everybody_may_write_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(StateDir::open(dir.path()).unwrap_err().to_string().contains("chmod 700"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn private_files_replaced_as_a_whole() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().join("a/b");
        let state = StateDir::open(&root).unwrap();
        assert_eq!(state.read("x", 10).unwrap(), None);
        state.write("imports/x", b"one").unwrap();
        state.write("imports/x", b"two").unwrap();
        assert_eq!(state.read("imports/x", 3).unwrap().unwrap(), b"two");
        assert!(state.read("imports/x", 2).unwrap_err().to_string().contains("longer than 2 bytes"));
        state.append("log", b"a\n").unwrap();
        state.append("log", b"b\n").unwrap();
        state.truncate("log", 2).unwrap();
        assert_eq!(state.read("log", 10).unwrap().unwrap(), b"a\n");
        state.rename("log", "old").unwrap();
        state.rename("log", "old").unwrap();
        state.remove("old").unwrap();
        state.remove("old").unwrap();
        assert_eq!((mode(&root), mode(&root.join("imports")), mode(&root.join("imports/x"))), (0o700, 0o700, 0o600));
        assert_eq!(fs::read_dir(root.join("imports")).unwrap().count(), 1, "nothing half-written stays");
        state.write_all(&[("x", b"three"), ("y", b"four")]).unwrap();
        state.write_all(&[]).unwrap();
        state.write_for_this_boot("y", b"five").unwrap();
        let read = |name| state.read(name, 10).unwrap().unwrap();
        assert_eq!((read("x"), read("y")), (b"three".to_vec(), b"five".to_vec()));
        assert!(state.write_all(&[("x", b"six"), ("imports", b"a folder is there")]).is_err());
    }

    fn queued(state: &StateDir) -> usize {
        fs::read_dir(state.path("queue")).map_or(0, Iterator::count)
    }

    #[test]
    fn who_is_stopped_with_the_lock_is_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        drop(state.lock(Duration::ZERO).unwrap());
        let mut holder = std::process::Command::new("flock")
            .arg("--no-fork")
            .arg(state.path("lock"))
            .args(["sleep", "1000"])
            .spawn()
            .unwrap();
        let pid = i32::try_from(holder.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        while state.lock(Duration::from_millis(5)).is_ok() {}
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let asked = Instant::now();
        let error = state.lock(Duration::from_secs(600)).unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(300), "it is not waited for");
        // Its name is another one once it has executed what it was to.
        let words = error.to_string();
        assert!(words.contains(&format!("lock: process {} (", holder.id())), "{words}");
        assert!(words.ends_with("), which is stopped, keeps it"), "{words}");
        assert!(error.hint().contains("kill -CONT"), "{}", error.hint());
        holder.kill().unwrap();
        holder.wait().unwrap();
    }

    #[test]
    fn one_holder_of_the_lock() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let held = state.lock(Duration::ZERO).unwrap();
        let error = state.lock(Duration::from_millis(20)).unwrap_err().to_string();
        let own = format!("lock: process {} (", std::process::id());
        assert!(error.contains(&own) && error.ends_with(") keeps it"), "{error}");
        // Who waits for it lets this process be stopped, and then waits again; who has it does not.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| state.lock(Duration::from_secs(120)).unwrap());
            while queued(&state) == 0 {}
            assert_eq!(crate::rest::without_lock(Duration::from_millis(20), || ()), None);
            drop(held);
            drop(waiting.join().unwrap());
        });
        let other = File::open(state.path("lock")).unwrap();
        rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| state.lock(Duration::from_secs(120)).unwrap());
            while queued(&state) == 0 {}
            let without = crate::rest::without_lock(Duration::from_secs(120), || queued(&state));
            assert_eq!(without, Some(0), "nobody waits behind it either");
            rustix::fs::flock(&other, rustix::fs::FlockOperation::Unlock).unwrap();
            drop(waiting.join().unwrap());
        });
        state.lock(Duration::ZERO).unwrap();
    }
}
