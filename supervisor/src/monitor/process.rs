//! One process as /proc shows it (proc(5)). Nothing here touches the container's file systems: they may be slow, or frozen.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;

use rustix::fs::{Mode, OFlags, open};

use super::mounts::Mount;

/// Most bytes read of one file of /proc. A mount table or a list of sockets may be long; a workload must not make it endless.
pub(super) const FILE: u64 = 4 << 20;
/// Namespaces that are watched.
pub(super) const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A process: its id, and when it started, which tells it from another with that id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start: u64,
}

/// What /proc/PID/status says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// CapEff and CapPrm together.
    pub(super) capabilities: u64,
    /// Who traces it; 0 for nobody.
    pub(super) tracer: u32,
}

/// Where an executable is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Executable {
    /// As the kernel names it.
    pub(super) path: String,
    /// The mount that it was opened through, by its number in the process's own table.
    pub(super) mount: u64,
}

/// Reads a file of /proc, at most [`FILE`] bytes.
pub(super) fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Process {
    /// The process of this id; `None` when it has ended, or is a zombie.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = read(&format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: state first, start time 20th (field 22).
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start })
    }

    /// The process that waits for it.
    pub(super) fn parent(self) -> Option<u32> {
        let stat = read(&self.file("stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    }

    /// Whether it is still there.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is on its way out: without memory it has no executable any more, and runs nothing of its own.
    pub(super) fn is_ending(self) -> bool {
        fs::read_link(self.file("exe")).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    }

    pub(super) fn file(self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    /// # Errors
    /// It has ended, or what it runs may not be looked at.
    pub(super) fn executable(self) -> io::Result<Executable> {
        let link = self.file("exe");
        let path = fs::read_link(&link)?.to_string_lossy().into_owned();
        // O_PATH asks the file system nothing; fdinfo says through which mount.
        let file = open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let info = read(&format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        let mount = mount.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo names no mount"))?;
        Ok(Executable { path, mount })
    }

    pub(super) fn status(self) -> io::Result<Status> {
        Ok(status(&read(&self.file("status"))?))
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
        for entry in fs::read_dir(self.file("fd"))?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let number: Option<u64> =
                target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            found.extend(number);
        }
        Ok(found)
    }
}

fn status(text: &str) -> Status {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask = |name: &str| field(name).and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(0);
    Status {
        capabilities: mask("CapEff:") | mask("CapPrm:"),
        tracer: field("TracerPid:").and_then(|value| value.parse().ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_test() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.lives() && !Process { start: own.start + 1, ..own }.lives());
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
        let text = "Name:\tx\nTracerPid:\t12\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000001\n";
        assert_eq!(status(text), Status { capabilities: 0x401, tracer: 12 });
        assert_eq!(status(""), Status::default());
    }
}
