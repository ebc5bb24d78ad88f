//! Who asks for the machine-wide lock first gets it first: flock(2) alone promises no order.
//!
//! Each process that waits holds a file of its own, locked, under the next number, in the folder `queue`. It waits for the one before it only:
//! that one's lock is free when it had its turn or is dead.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock that another process holds is looked at.
const PAUSE: Duration = Duration::from_millis(2);
/// How often it is looked at who that is, and how often in turn he may be stopped.
const LOOK: Duration = Duration::from_secs(1);
const STOPPED: u32 = 5;

/// What came of waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Nobody is in the way any more.
    Free,
    /// This process is to be stopped, and must not be in anybody's way then.
    Resting,
    /// Somebody is, in words.
    Kept(String),
}

/// Waits for a lock, up to `patience` from a time on, unless this process is `resting`.
pub(crate) fn wait(lock: &File, since: Instant, patience: Duration, resting: &dyn Fn() -> bool) -> io::Result<Waited> {
    let (mut looked, mut stopped) = (Instant::now(), 0_u32);
    while !try_lock(lock)? {
        if resting() {
            return Ok(Waited::Resting);
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            // Looks are counted, not time: this process may have been stopped too.
            stopped = if holder(lock).is_some_and(|(_, stopped)| stopped) { stopped.saturating_add(1) } else { 0 };
        }
        if since.elapsed() >= patience || stopped >= STOPPED {
            let unknown = || "another program of this host".to_owned();
            let words = |(words, stopped)| if stopped { format!("{words}, which is stopped,") } else { words };
            return Ok(Waited::Kept(holder(lock).map_or_else(unknown, words)));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Waited::Free)
}

/// Who holds a file's lock, in words, and whether he is stopped.
fn holder(lock: &File) -> Option<(String, bool)> {
    let file = format!("{}:{}", device(lock)?, lock.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let process = first_with(&locks, &file)?;
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
    Some((format!("process {process} ({})", name.escape_debug()), rest.starts_with(['T', 't'])))
}

/// The process that locks a file (`device:inode`) with flock(2), in /proc/locks (proc(5)).
fn first_with<'a>(locks: &'a str, file: &str) -> Option<&'a str> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == "FLOCK").then_some(())?;
        let process = fields.nth(2)?;
        (fields.next()? == file).then_some(process)
    })
}

/// The number of a file's file system, as /proc/locks has it: everybody can make a file of the same inode on another one. It is not always what
/// stat(2) says (btrfs, overlay), but what mount tables say.
fn device(file: &File) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let fields =
        table.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&mount))?;
    let (major, minor) = fields.get(2)?.split_once(':')?;
    Some(format!("{:02x}:{:02x}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
}

/// A place in the queue, left when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    number: u64,
    _file: File,
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}"))
}

fn numbers(folder: &Path) -> io::Result<impl Iterator<Item = u64>> {
    Ok(fs::read_dir(folder)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Whether nobody else holds this file's lock; if so, this process does now.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

impl Place {
    /// Takes the last place.
    pub(crate) fn last(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        loop {
            let number = numbers(folder)?.max().unwrap_or(0).saturating_add(1);
            let path = path(folder, number);
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            // Whoever looked before it was locked took it for a dead one's, and has removed it.
            if try_lock(&file)?
                && fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|ours| now.ino() == ours.ino()))
            {
                return Ok(Self { folder: folder.to_owned(), number, _file: file });
            }
        }
    }

    /// Waits until nobody is before this one, or the one before did not move for as long as `patience`, unless this process is `resting`.
    pub(crate) fn wait(&self, patience: Duration, resting: &dyn Fn() -> bool) -> io::Result<Waited> {
        let mut moved = Instant::now();
        while let Some(before) = numbers(&self.folder)?.filter(|number| *number < self.number).max() {
            let path = path(&self.folder, before);
            let file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            match wait(&file, moved, patience, resting)? {
                Waited::Free => {}
                waited @ (Waited::Resting | Waited::Kept(_)) => return Ok(waited),
            }
            let _ = fs::remove_file(&path);
            moved = Instant::now();
        }
        Ok(Waited::Free)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(path(&self.folder, self.number));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn in_the_order_of_asking() {
        let folder = tempfile::tempdir().unwrap();
        let first = Place::last(folder.path()).unwrap();
        assert_eq!(first.wait(Duration::ZERO, &|| false).unwrap(), Waited::Free);
        let (said, order) = mpsc::channel();
        let places: Vec<Place> = (0..10).map(|_| Place::last(folder.path()).unwrap()).collect();
        let kept = places[0].wait(Duration::from_millis(5), &|| false).unwrap();
        assert!(matches!(kept, Waited::Kept(by) if by.starts_with(&format!("process {} (", std::process::id()))));
        let threads: Vec<_> = places
            .into_iter()
            .enumerate()
            .rev()
            .map(|(n, place)| {
                let said = said.clone();
                std::thread::spawn(move || {
                    assert_eq!(place.wait(LONG, &|| false).unwrap(), Waited::Free);
                    said.send(n).unwrap();
                })
            })
            .collect();
        drop(first);
        drop(said);
        assert_eq!(order.iter().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_holder_of_this_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 11 00:29:77 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
            2: POSIX  ADVISORY  WRITE 13 fe:00:77 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF\n";
        assert_eq!(
            first_with(locks, "fe:00:77"),
            Some("14"),
            "neither a file of the same number elsewhere nor who waits"
        );
        assert_eq!(first_with(locks, "fe:00:78"), None);
    }

    #[test]
    fn dead_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        // Their locks went with them, their files stayed.
        for number in [3, 7] {
            fs::write(path(folder.path(), number), "").unwrap();
        }
        let place = Place::last(folder.path()).unwrap();
        assert_eq!(place.number, 8);
        assert_eq!(place.wait(Duration::ZERO, &|| false).unwrap(), Waited::Free);
        assert_eq!(numbers(folder.path()).unwrap().collect::<Vec<_>>(), [8]);
    }
}
