//! fanotify (fanotify(7)): each execution of a file on the container's mounts that are not the image, however short it is. For root only.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use countersign_wire::finding::{Finding, Kind};
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{Access, access};
use rustix::process::geteuid;

use super::mounts::{Mount, unescape};
use super::process::Executable;
use super::scan::Baseline;
use super::stranger::stranger;

/// The kernel's announcements.
#[derive(Debug)]
pub(crate) struct Executions(Fanotify);

/// What is marked: mounts of a container.
#[derive(Debug)]
pub(super) struct Marked {
    /// The container's root, as seen from here.
    root: PathBuf,
    /// User and group of its processes.
    ids: io::Result<(u32, u32)>,
    mounts: Vec<Mount>,
}

/// A mount of the container on which the kernel announces no execution.
#[derive(Debug)]
pub(super) struct Unwatched {
    place: String,
    error: io::Error,
    /// The container's own processes find no way to it either: another mount hides it, its file system lets nobody in, or they have ended.
    pub(super) is_out_of_reach: bool,
}

impl Unwatched {
    /// Every mount.
    fn all(error: &io::Error) -> Self {
        let is_out_of_reach = is_out_of_reach(error);
        let error = io::Error::other(error.to_string());
        Self { place: "all of the container's mounts".into(), error, is_out_of_reach }
    }
}

/// Whether it may be that nobody finds a way.
fn is_out_of_reach(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ESRCH))
}

impl fmt::Display for Unwatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.error)
    }
}

impl Marked {
    /// Those of a container's mounts that are not the image.
    pub(super) fn of(baseline: &Baseline) -> Self {
        let first = baseline.first;
        let ids = first.status().map(|status| status.ids);
        Self { root: first.file("root").into(), ids, mounts: baseline.other_mounts() }
    }
}

impl Executions {
    /// `None` where this process may not ask for them.
    pub(crate) fn open() -> Option<Self> {
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let files = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC;
        // A try: a mark takes CAP_SYS_ADMIN, which the first call does not. Not with the group that is used: what others execute on this file
        // system meanwhile would be announced there, and look like the container's.
        let tried = Fanotify::init(flags, files).ok()?;
        let own = std::fs::File::open("/proc/self/exe").ok()?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
        tried.mark::<_, str>(mark, MaskFlags::FAN_OPEN_EXEC, &own, None).ok()?;
        // The kernel lets a user have 128 of them.
        drop(tried);
        Fanotify::init(flags, files).ok().map(Self)
    }

    /// Watches these mounts; those that cannot be watched. They are marked with the ids of the container's processes: the kernel lets nobody else,
    /// not even root, walk through a FUSE root. A file system that does not answer keeps the caller waiting.
    pub(super) fn watch(&self, marked: &Marked) -> Vec<Unwatched> {
        let all = || marked.mounts.iter().filter_map(|mount| self.mark(&marked.root, mount).err()).collect();
        match &marked.ids {
            Err(e) => vec![Unwatched::all(e)],
            Ok((user, _)) if *user == geteuid().as_raw() => all(),
            Ok((user, group)) => {
                countersign_sys::with_ids(*user, *group, all).unwrap_or_else(|e| vec![Unwatched::all(&e)])
            }
        }
    }

    fn mark(&self, root: &Path, mount: &Mount) -> Result<(), Unwatched> {
        let path = OsString::from_vec([root.as_os_str().as_bytes(), &unescape(&mount.place)].concat());
        let mark = || -> io::Result<()> {
            let here = std::fs::File::open("/")?;
            let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
            Ok(self.0.mark(flags, MaskFlags::FAN_OPEN_EXEC, &here, Some(path.as_os_str()))?)
        };
        mark().map_err(|error| {
            // What cannot be read, which a mark takes, may be walked through. A place that is not UTF-8 was not looked for by its own name.
            let is_out_of_reach = is_out_of_reach(&error)
                && !mount.place.contains(char::REPLACEMENT_CHARACTER)
                && access(&path, Access::EXEC_OK).is_err();
            Unwatched { place: mount.place.clone(), error, is_out_of_reach }
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What was executed since, as much as one call of the kernel says: whoever executes without end delays no judgement of what he did first.
    /// `None` when there is no more. The marks are on the container's own mounts: only its processes, and who entered it, are seen. An
    /// announcement that is lost is said to be, not passed over. The kernel opens each file for this process: a file system that does not answer
    /// keeps the caller waiting.
    pub(super) fn take(&self, marked: &Marked, time_ms: i64) -> Option<Vec<Finding>> {
        let events = match self.0.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN) => return None,
            Err(Errno::EINTR) => return Some(Vec::new()),
            // The kernel has dropped the announcement of a file that it could not open for this process (fanotify(7), read(2)).
            Err(e) => {
                return Some(vec![lost(&format!("an execution was announced and cannot be looked at: {e}"), time_ms)]);
            }
        };
        let finding = |event: &FanotifyEvent| match event.fd().map(Executable::of) {
            None => lost("more executions than could be watched", time_ms),
            Some(Ok(executable)) => {
                stranger(u32::try_from(event.pid()).unwrap_or(0), &executable, &marked.mounts, time_ms)
            }
            Some(Err(e)) => lost(&format!("an execution was announced and cannot be told: {e}"), time_ms),
        };
        Some(events.iter().map(finding).collect())
    }
}

/// Something was executed, and what is not known.
pub(super) fn lost(what: &str, time_ms: i64) -> Finding {
    Finding::new(Kind::MonitorBlind, what, "executions", time_ms)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Most announcements of one read: nix reads 4096 bytes, and one has 24.
    const BATCH: usize = 4096 / 24;

    #[test]
    fn what_others_execute_while_it_begins_is_not_announced() {
        if Executions::open().is_none() {
            return println!("skipped: executions are seen by root only");
        }
        let (over, others) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::Ordering::Relaxed);
        // The test's own program: it is on the file system that is tried.
        let program = std::env::current_exe().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(others) {
                        let mut command = Command::new(&program);
                        command.args(["--list", "no such test"]).stdout(std::process::Stdio::null());
                        assert!(command.status().unwrap().success());
                    }
                });
            }
            let marked = Marked { root: "/".into(), ids: Ok((0, 0)), mounts: Vec::new() };
            let announced = |_| Executions::open().map(|begun| begun.take(&marked, 7).unwrap_or_default());
            let announced: Vec<_> = (0..300).map(announced).collect();
            over.store(true, others);
            assert_eq!(announced, vec![Some(Vec::new()); 300]);
        });
    }

    #[test]
    fn a_flood_is_taken_in_parts_and_nothing_of_it_is_lost() {
        let Some(executions) = Executions::open() else { return println!("skipped: executions are seen by root only") };
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().canonicalize().unwrap().join("program");
        // Not by this process: another thread's child would have it open for writing, and nobody could run it.
        assert!(Command::new("cp").arg("/bin/true").arg(&program).status().unwrap().success());
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
        let here = std::fs::File::open("/").unwrap();
        executions.0.mark(flags, MaskFlags::FAN_OPEN_EXEC, &here, Some(&program)).unwrap();
        let marked = Marked { root: "/".into(), ids: Ok((0, 0)), mounts: Vec::new() };
        let own = |found: &[Finding]| {
            let is_own = |finding: &&Finding| {
                let path = finding.executable.as_ref().map(|path| path.as_str());
                path.is_some_and(|path| Path::new(path) == program)
            };
            found.iter().filter(is_own).count()
        };
        let flood = BATCH * 2 + 1;
        for _ in 0..flood {
            assert!(Command::new(&program).status().unwrap().success());
        }
        let mut taken = 0;
        while let Some(found) = executions.take(&marked, 7) {
            assert!(found.len() <= BATCH, "{} at once", found.len());
            taken += own(&found);
        }
        assert_eq!(taken, flood);
    }
}
