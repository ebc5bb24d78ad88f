//! Who asks for the machine-wide lock first gets it first: flock(2) alone promises no order.
//!
//! Each process that waits holds a file of its own, locked, under the next number, in the folder `queue`. It waits for the one before it only:
//! that one's lock is free when it had its turn or is dead.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock that another process holds is looked at.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

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
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
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

    /// Waits until nobody is before this one; false when the one before did not move for as long as `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut moved = Instant::now();
        while let Some(before) = numbers(&self.folder)?.filter(|number| *number < self.number).max() {
            let path = path(&self.folder, before);
            let file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            while !try_lock(&file)? {
                if moved.elapsed() >= patience {
                    return Ok(false);
                }
                std::thread::sleep(PAUSE);
            }
            let _ = fs::remove_file(&path);
            moved = Instant::now();
        }
        Ok(true)
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
        assert!(first.wait(Duration::ZERO).unwrap());
        let (said, order) = mpsc::channel();
        let places: Vec<Place> = (0..10).map(|_| Place::last(folder.path()).unwrap()).collect();
        assert!(!places[0].wait(Duration::from_millis(5)).unwrap(), "the first does not move");
        let threads: Vec<_> = places
            .into_iter()
            .enumerate()
            .rev()
            .map(|(n, place)| {
                let said = said.clone();
                std::thread::spawn(move || {
                    assert!(place.wait(LONG).unwrap());
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
    fn dead_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        // Their locks went with them, their files stayed.
        for number in [3, 7] {
            fs::write(path(folder.path(), number), "").unwrap();
        }
        let place = Place::last(folder.path()).unwrap();
        assert_eq!(place.number, 8);
        assert!(place.wait(Duration::ZERO).unwrap());
        assert_eq!(numbers(folder.path()).unwrap().collect::<Vec<_>>(), [8]);
    }
}
