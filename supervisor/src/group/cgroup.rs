//! A cgroup v2 (kernel documentation: admin-guide/cgroup-v2.rst): `cgroup.procs`, `cgroup.freeze`, `cgroup.events`, `cgroup.kill`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};

use super::PREFIX;

/// How long freezing or ending may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Cgroups below that a workload may have made: more are not looked at one by one (freezing and ending reach all).
const BELOW: usize = 1024;
/// Most bytes read of a cgroup's file.
const FILE: usize = 1 << 20;

/// One that this process made; removed when dropped. Its folder is locked for as long as this lives, so that others see it is in use.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// As /proc/PID/cgroup has it.
    name: PathBuf,
    entrance: File,
    folder: File,
    _lock: File,
}

impl Cgroup {
    /// Makes one below the cgroup of this process; why not, in words.
    pub(crate) fn make(name: &str) -> Result<Self, String> {
        let (parent, above) = own()?;
        sweep(&parent);
        // Another supervisor that tidies up may take it before it is locked, or somebody has the name: once more, under another one.
        for again in 0..3 {
            let last = if again == 0 { name.to_owned() } else { format!("{name}-{}", fresh()) };
            let (path, name) = (parent.join(&last), above.join(&last));
            let at = |e: io::Error| format!("{}: {e}", path.display());
            match fs::create_dir(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(at)?,
            }
            let locked = lock(&path).map_err(at)?;
            if let Some(lock) = locked.filter(|_| path.exists()) {
                let open = OpenOptions::new().write(true).open(path.join("cgroup.procs"));
                let open = open.and_then(|entrance| Ok((entrance, File::open(&path)?)));
                let missing = ["cgroup.freeze", "cgroup.kill"].into_iter().find(|file| !path.join(file).exists());
                return match (open, missing) {
                    (Ok((entrance, folder)), None) => Ok(Self { path, name, entrance, folder, _lock: lock }),
                    (Err(e), _) => {
                        let _ = fs::remove_dir(&path);
                        Err(at(e))
                    }
                    (_, Some(file)) => {
                        let _ = fs::remove_dir(&path);
                        Err(format!("{}: no {file}: Linux 5.14 is needed", path.display()))
                    }
                };
            }
        }
        Err(format!("{}: others keep removing what is made there", parent.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn entrance(&self) -> &File {
        &self.entrance
    }

    /// Its folder, to be handed on without the lock.
    pub(crate) const fn folder(&self) -> &File {
        &self.folder
    }

    /// The cgroup that a process is in, unless it is this one or below it. A process that is just being forked is shown at the top of all
    /// cgroups, until the kernel has put it where its parent is.
    pub(crate) fn elsewhere(&self, process: u32) -> io::Result<Option<PathBuf>> {
        // Names need not be UTF-8.
        let text = fs::read(format!("/proc/{process}/cgroup"))?;
        let of = PathBuf::from(of(&String::from_utf8_lossy(&text)).map_err(io::Error::other)?);
        Ok((!of.starts_with(&self.name)).then_some(of))
    }

    /// Of this cgroup and those that the workload made below it.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut folders = vec![self.path.clone()];
        let mut at = 0;
        while let Some(folder) = folders.get(at).cloned() {
            at = at.saturating_add(1);
            let text = match read(&folder.join("cgroup.procs")) {
                Ok(text) => text,
                // Removed since, or one of threads only.
                Err(_) if at > 1 => continue,
                Err(e) => return Err(e),
            };
            // 0 is a process of a namespace that is not seen from here.
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
            if folders.len() < BELOW {
                folders.extend(below(&folder));
            }
        }
        Ok(found)
    }

    /// Writes `cgroup.freeze` and waits until it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        self.reaches("frozen", frozen)
    }

    /// Writes `cgroup.kill` and waits until nobody is left.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")?;
        self.reaches("populated", false)
    }

    /// Waits for a value in `cgroup.events`, which the kernel announces.
    fn reaches(&self, name: &str, value: bool) -> io::Result<()> {
        let started = Instant::now();
        let path = self.path.join("cgroup.events");
        let want = format!("{name} {}", u8::from(value));
        let events = File::open(&path)?;
        loop {
            let mut bytes = [0; 256];
            let n = std::os::unix::fs::FileExt::read_at(&events, &mut bytes, 0)?;
            let text = String::from_utf8_lossy(bytes.get(..n).unwrap_or_default());
            if text.lines().any(|line| line == want) {
                return Ok(());
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{}: {want} did not come", path.display()),
                ));
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.kill();
        remove(&self.path);
    }
}

/// A name that nobody has thought of.
fn fresh() -> String {
    hex::encode(countersign_attest::random::random::<8>())
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = countersign_attest::state::read_bounded(File::open(path)?, FILE)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .take(BELOW)
        .collect()
}

/// Removes an empty cgroup and those below it, deepest first.
fn remove(path: &Path) {
    let mut folders = vec![path.to_owned()];
    let mut at = 0;
    while let Some(folder) = folders.get(at).cloned().filter(|_| folders.len() < BELOW) {
        at = at.saturating_add(1);
        folders.extend(below(&folder));
    }
    for folder in folders.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// The lock of a cgroup's folder; `None` when a supervisor that lives has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let folder = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(folder)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Ends and removes the cgroups of runs whose supervisors were killed.
fn sweep(parent: &Path) {
    for path in below(parent) {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if ours && let Ok(Some(_lock)) = lock(&path) {
            let _ = fs::write(path.join("cgroup.kill"), "1");
            // What was just killed may take a moment to go.
            let started = Instant::now();
            while read(&path.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
                && started.elapsed() < Duration::from_secs(1)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            remove(&path);
        }
    }
}

/// The cgroup that this process is in: its folder, and as /proc/PID/cgroup has it.
fn own() -> Result<(PathBuf, PathBuf), String> {
    let text = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let cgroup = text("/proc/self/cgroup")?;
    Ok((folder(&text("/proc/self/mountinfo")?, &cgroup)?, of(&cgroup)?.into()))
}

/// What /proc/PID/cgroup says of cgroup v2 (cgroups(7)).
fn of(text: &str) -> Result<&str, &'static str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).ok_or("this system has no cgroup v2")
}

/// Where cgroup v2 is mounted and to be reached, for this process.
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    /// CGROUP2_SUPER_MAGIC.
    const MAGIC: rustix::fs::FsWord = 0x6367_7270;
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts(&text).map(|(_, place)| PathBuf::from(unescaped(place)));
    // Another mount may lie over it.
    Ok(places.filter(|place| rustix::fs::statfs(place).is_ok_and(|at| at.f_type == MAGIC)).collect())
}

/// White space and backslashes are three octal digits in mountinfo.
fn unescaped(place: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(place.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Mounts of cgroup v2: which part of it, and where.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        after.starts_with("cgroup2 ").then_some((root, place))
    })
}

/// From /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7)).
fn folder(mountinfo: &str, cgroup: &str) -> Result<PathBuf, String> {
    let own = of(cgroup)?;
    let mut inside = mounts(mountinfo).filter_map(|(root, place)| {
        let rest = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(place).join(rest))
    });
    inside.next().ok_or_else(|| "cgroup v2 is not mounted".into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn found_wherever_it_is_mounted() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found = |mounts: &str, cgroup: &str| folder(mounts, cgroup);
        assert_eq!(found(mounts, "5:cpu:/x\n0::/\n"), Ok("/sys/fs/cgroup/unified/".into()));
        assert_eq!(found(mounts, "0::/user.slice/a.scope\n"), Ok("/sys/fs/cgroup/unified/user.slice/a.scope".into()));
        // In a container: the mount shows a part of the tree only.
        let part = "41 31 0:38 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(found(part, "0::/docker/7/app\n"), Ok("/sys/fs/cgroup/app".into()));
        assert!(found(part, "0::/elsewhere\n").is_err());
        assert!(found(mounts, "5:cpu:/\n").is_err());
    }

    #[test]
    fn frozen_thawed_and_ended() {
        let name = format!("{PREFIX}test-{}", std::process::id());
        let cgroup = match Cgroup::make(&name) {
            Ok(cgroup) => cgroup,
            Err(why) => return println!("skipped: {why}"),
        };
        let path = cgroup.path().to_owned();
        // Where the name is taken there is a cgroup all the same, and it is another one.
        let beside = Cgroup::make(&name).unwrap();
        assert!(beside.path() != path && beside.path().parent() == path.parent(), "{}", beside.path().display());
        drop(beside);
        let mut command = Command::new("sleep");
        countersign_sys::join_cgroup(&mut command, cgroup.entrance().try_clone().unwrap().into());
        let mut child = command.arg("1000").spawn().unwrap();
        assert_eq!(cgroup.processes().unwrap(), [child.id()]);
        assert_eq!(cgroup.elsewhere(child.id()).unwrap(), None);
        assert_eq!(cgroup.elsewhere(std::process::id()).unwrap(), Some(own().unwrap().1));
        // A workload that makes cgroups of its own stays in ours.
        fs::create_dir(path.join("inner")).unwrap();
        fs::write(path.join("inner/cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(cgroup.processes().unwrap(), [child.id()]);
        assert_eq!(cgroup.elsewhere(child.id()).unwrap(), None);
        // A name that begins as ours does is not below it.
        let beside = Cgroup::make(&format!("{name}-beside")).unwrap();
        fs::write(beside.path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(cgroup.elsewhere(child.id()).unwrap(), Some(beside.name.clone()));
        fs::write(path.join("inner/cgroup.procs"), child.id().to_string()).unwrap();
        drop(beside);
        cgroup.freeze(true).unwrap();
        assert!(read(&path.join("inner/cgroup.events")).unwrap().contains("frozen 1"));
        cgroup.freeze(false).unwrap();
        cgroup.freeze(true).unwrap();
        cgroup.kill().unwrap();
        child.wait().unwrap();
        // A test's process has several threads: it is said, and nothing is started.
        let refused = countersign_sys::spawn_first(
            Command::new("sleep").arg("1000"),
            Some(std::os::fd::AsFd::as_fd(cgroup.folder())),
        );
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert!(cgroup.processes().unwrap().is_empty());
        // In use: nobody tidies it away. Then nobody uses it any more.
        let parent = path.parent().unwrap().to_owned();
        sweep(&parent);
        assert!(path.exists());
        drop(cgroup);
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        sweep(&parent);
        assert!(!path.exists(), "left by a supervisor that is gone");
    }
}
