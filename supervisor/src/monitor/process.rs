//! One process as /proc shows it (proc(5)). Nothing here touches the container's file systems: they may be slow, or frozen.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use countersign_attest::lease::boot_time;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};

use super::mounts::Mount;
use crate::stat::{Stat, has_ended, if_there};

/// Most bytes read of one file of /proc. A mount table may be long; a workload must not make it endless.
const FILE: u64 = 16 << 20;
/// Unit of the start time in /proc/PID/stat: 1/100 s (USER_HZ) on every machine that this runs on.
const TICK_MS: u64 = 10;
/// Namespaces that are watched.
pub(super) const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A process: its id, and when it started, which tells it from another with that id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start: u64,
}

/// What /proc/PID/status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// CapEff and CapPrm together.
    pub(super) capabilities: u64,
    /// Who traces it; 0 for nobody.
    pub(super) tracer: u32,
    /// Real user and group.
    pub(super) ids: (u32, u32),
}

/// Where an executable is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Executable {
    /// As the kernel names it.
    pub(super) path: String,
    /// The mount that it was opened through, by its number in the process's own table.
    pub(super) mount: u64,
}

impl Executable {
    /// That of an open file. Its file system is asked nothing.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        let number = file.as_fd().as_raw_fd();
        let path = fs::read_link(format!("/proc/self/fd/{number}"))?.to_string_lossy().into_owned();
        let info = read(&format!("/proc/self/fdinfo/{number}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        Ok(Self { path, mount: mount.ok_or_else(|| unknown("mount in fdinfo"))? })
    }
}

/// Reads a file of /proc.
///
/// # Errors
/// Also when it has more than [`FILE`] bytes: what stands behind them is not passed over.
pub(super) fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length >= FILE) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is too long")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What tells a file from another: device (major, minor) and inode.
pub(super) type Identity = (u32, u32, u64);

/// That of the file behind a link of /proc. Its file system is not asked, and nothing is asked for but what the kernel knows: it may be the
/// workload's own (FUSE) and never answer.
pub(super) fn identity(link: &str) -> io::Result<Identity> {
    let file = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((file.stx_dev_major, file.stx_dev_minor, file.stx_ino))
}

/// The kernel wrote something else than proc(5) says.
fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc has no {what}"))
}

impl Process {
    /// The process of this id; `None` when it has ended, or is a zombie.
    ///
    /// # Errors
    /// It may be there and cannot be looked at.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        let stat = Stat::of(pid)?.filter(|stat| !matches!(stat.state, 'Z' | 'X'));
        Ok(stat.map(|stat| Self { pid, start: stat.start }))
    }

    /// The process that waits for it; `None` when one of the two has ended.
    pub(super) fn parent(self) -> io::Result<Option<Self>> {
        Stat::of(self.pid)?.map_or(Ok(None), |stat| Self::of(stat.parent))
    }

    /// Whether it is still there, or may be.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid).map_or(true, |now| now == Some(self))
    }

    /// How long it has been there.
    pub(super) fn age(self) -> Duration {
        boot_time().saturating_sub(Duration::from_millis(self.start.saturating_mul(TICK_MS)))
    }

    /// Whether it is on its way out: without memory it has no executable any more, and runs nothing of its own.
    pub(super) fn is_ending(self) -> bool {
        fs::read_link(self.file("exe")).is_err_and(|e| has_ended(&e))
    }

    pub(super) fn file(self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    /// # Errors
    /// It has ended, or what it runs may not be looked at.
    pub(super) fn executable(self) -> io::Result<Executable> {
        // O_PATH: the file is not opened, which its file system would have to answer.
        Executable::of(open(self.file("exe"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    pub(super) fn status(self) -> io::Result<Status> {
        status(&read(&self.file("status"))?)
    }

    /// The namespace of one of [`NAMESPACES`], as the kernel names it: `mnt:[4026532200]`.
    pub(super) fn namespace(self, name: &str) -> io::Result<String> {
        Ok(fs::read_link(self.file(&format!("ns/{name}")))?.to_string_lossy().into_owned())
    }

    pub(super) fn mounts(self) -> io::Result<Vec<Mount>> {
        Ok(super::mounts::parse(&read(&self.file("mountinfo"))?))
    }

    /// Numbers of the sockets that it has open.
    pub(super) fn sockets(self) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.file("fd"))? {
            // Closed since.
            let Some(target) = if_there(fs::read_link(entry?.path()))? else { continue };
            let number: Option<u64> =
                target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            found.extend(number);
        }
        Ok(found)
    }
}

fn status(text: &str) -> io::Result<Status> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask =
        |name: &str| field(name).and_then(|value| u64::from_str_radix(value, 16).ok()).ok_or_else(|| unknown(name));
    let tracer = field("TracerPid:").and_then(|value| value.parse().ok()).ok_or_else(|| unknown("TracerPid"))?;
    let id = |name: &str| {
        let real = field(name).and_then(|ids| ids.split_whitespace().next()?.parse().ok());
        real.ok_or_else(|| unknown(name))
    };
    Ok(Status { capabilities: mask("CapEff:")? | mask("CapPrm:")?, tracer, ids: (id("Uid:")?, id("Gid:")?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_test() {
        let own = Process::of(std::process::id()).unwrap().unwrap();
        assert_eq!(own.parent().unwrap().unwrap().pid, std::os::unix::process::parent_id());
        assert!(own.lives() && !Process { start: own.start + 1, ..own }.lives());
        let file = fs::metadata("/proc/self/exe").unwrap();
        assert_eq!(identity("/proc/self/exe").unwrap().2, std::os::unix::fs::MetadataExt::ino(&file));
        let executable = own.executable().unwrap();
        assert_eq!(executable.path, std::env::current_exe().unwrap().display().to_string());
        assert!(own.mounts().unwrap().iter().any(|mount| mount.id == executable.mount));
        assert_eq!(own.status().unwrap().tracer, 0);
        let before = own.sockets().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(own.sockets().unwrap().iter().any(|number| !before.contains(number)));
        drop(socket);
        assert!(NAMESPACES.iter().all(|name| own.namespace(name).is_ok()));
    }

    #[test]
    fn what_status_says() {
        let text = "Name:\tx\nTracerPid:\t12\nUid:\t7\t8\t8\t8\nGid:\t9\t8\t8\t8\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000001\n";
        assert_eq!(status(text).unwrap(), Status { capabilities: 0x401, tracer: 12, ids: (7, 9) });
        for line in text.lines().skip(1) {
            assert!(status(&text.replace(line, "")).is_err(), "without {line}: nothing is not zero");
        }
    }

    #[test]
    fn one_that_has_ended_and_one_that_cannot_be_read() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id()).unwrap().unwrap();
        assert!(process.age() < Duration::from_secs(60) && process.age() < Process { start: 0, ..process }.age());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Process::of(process.pid).unwrap(), None);
        assert!(!process.lives() && process.is_ending());
        assert!(if_there(process.status()).unwrap().is_none());
        // As with too many open files: it may be there.
        let errors = [rustix::io::Errno::MFILE, rustix::io::Errno::ACCESS, rustix::io::Errno::NOMEM];
        for errno in errors {
            assert!(if_there(Err::<(), _>(errno.into())).is_err(), "{errno}");
        }
        for errno in [rustix::io::Errno::NOENT, rustix::io::Errno::SRCH] {
            assert!(if_there(Err::<(), _>(errno.into())).unwrap().is_none(), "{errno}");
        }
        let folder = tempfile::tempdir().unwrap();
        let endless = folder.path().join("endless");
        File::create(&endless).unwrap().set_len(FILE).unwrap();
        assert!(read(endless.to_str().unwrap()).is_err());
    }
}
