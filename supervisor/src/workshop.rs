//! A folder beside the output that takes everything half-made: gone when the work is done, when it failed, and when a signal ended it. What a
//! killed process or a power cut leaves, the next one beside it removes.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::process::{Pid, Signal, geteuid, getpid, kill_process};
use tempfile::TempDir;

use crate::exit::{Failure, Stage};

/// SIGHUP, SIGINT, SIGTERM.
const ENDING: [i32; 3] = [1, 2, 15];
/// A signal is ending this process: nobody else does.
static ENDING_NOW: AtomicBool = AtomicBool::new(false);

/// What the folders' names begin with.
const PREFIX: &str = ".countersign-half-";
/// A folder that is younger may be about to be locked.
const YOUNG: Duration = Duration::from_secs(60);

pub(crate) struct Workshop {
    folder: TempDir,
    /// Says that it is in use.
    _lock: File,
}

fn failed(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(Stage::Protect, format!("{}: {e}", path.display()), "check the folder and its free space")
}

/// The refusal to replace a file.
pub(crate) fn exists(path: &Path) -> Failure {
    Failure::new(Stage::Protect, format!("{} exists already", path.display()), "--force replaces it")
}

fn folder_of(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

impl Workshop {
    /// Makes the folder. From here on SIGHUP, SIGINT and SIGTERM remove it and end the process.
    pub(crate) fn beside(output: &Path) -> Result<Self, Failure> {
        sweep(folder_of(output));
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(folder_of(output));
        let dir = dir.map_err(|e| failed(output, &e))?;
        let lock = File::open(dir.path()).and_then(|lock| {
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(lock)
        });
        let lock = lock.map_err(|e| failed(output, &e))?;
        let signals = countersign_sys::signals(&ENDING).map_err(|e| failed(output, &e))?;
        let path = dir.path().to_owned();
        std::thread::spawn(move || tidy(&signals, &path));
        Ok(Self { folder: dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Moves the finished `image` to its place, as a whole.
    pub(crate) fn deliver(self, output: &Path, replace: bool) -> Result<(), Failure> {
        let made = self.path().join("image");
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &made, CWD, output, flags) {
            Err(rustix::io::Errno::EXIST) => return Err(exists(output)),
            // A file system that knows no NOREPLACE.
            Err(rustix::io::Errno::INVAL) if output.symlink_metadata().is_err() => {
                std::fs::rename(&made, output).map_err(|e| failed(output, &e))?;
            }
            other => other.map_err(|e| failed(output, &e.into()))?,
        }
        File::open(folder_of(output)).and_then(|folder| folder.sync_all()).map_err(|e| failed(output, &e))
    }
}

/// Removes what nobody works in any more, of this user's.
fn sweep(folder: &Path) {
    let user = geteuid().as_raw();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = |found: &Metadata| found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG));
        let ours = |found: &Metadata| found.is_dir() && found.uid() == user && old(found);
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if named
            && entry.metadata().is_ok_and(|found| ours(&found))
            && let Ok(lock) = File::open(entry.path())
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            for file in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let name = file.file_name();
                if name == "image" || name.to_string_lossy().starts_with(".countersign-") {
                    let _ = std::fs::remove_file(file.path());
                }
            }
            // Only where that was all.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        while ENDING_NOW.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// Waits for a signal; then ends what this process has started (mksquashfs, cryptsetup), removes the folder, and exits with 128 + the signal.
fn tidy(signals: &OwnedFd, folder: &Path) {
    let mut number = [0];
    while !rustix::io::read(signals, &mut number).is_ok_and(|n| n > 0) {
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], None);
    }
    ENDING_NOW.store(true, Ordering::Release);
    for child in children() {
        let _ = kill_process(child, Signal::KILL);
    }
    let _ = std::fs::remove_dir_all(folder);
    std::process::exit(i32::from(number.first().copied().unwrap_or_default()).saturating_add(128));
}

fn children() -> Vec<Pid> {
    let own = getpid().as_raw_nonzero().to_string();
    let is_child = |folder: &PathBuf| {
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        status.lines().filter_map(|line| line.strip_prefix("PPid:")).any(|parent| parent.trim() == own)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path()).filter(is_child);
    folders.filter_map(|folder| folder.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_a_killed_one_left_is_swept_and_what_is_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, age: u64| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("image"), "half").unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            let open = File::open(&path).unwrap();
            open.set_times(FileTimes::new().set_modified(then)).unwrap();
            (path, open)
        };
        let (left, _) = make(".countersign-half-left", 61);
        let (used, lock) = make(".countersign-half-used", 3600);
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let (young, _) = make(".countersign-half-young", 0);
        let (other, _) = make(".countersign-keys", 3600);
        let workshop = Workshop::beside(&folder.path().join("out.sif")).unwrap();
        assert!(!left.exists());
        assert!(used.exists() && young.exists() && other.exists());
        let (mixed, open) = make(".countersign-half-mixed", 0);
        std::fs::write(mixed.join("owner.pem"), "a key").unwrap();
        open.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        sweep(folder.path());
        assert!(mixed.join("owner.pem").exists(), "nobody's but ours are removed");
        // As long as it works, another one leaves it alone, however long that takes.
        let own = workshop.path().to_owned();
        File::open(&own).unwrap().set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        sweep(folder.path());
        assert!(own.exists());
        drop(workshop);
        assert!(!own.exists());
    }
}
