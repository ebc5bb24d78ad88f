//! The processes of a run, as /proc shows them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A process.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: String,
    handle: OwnedFd,
    /// Its process namespace. Held open: the kernel gives its number to no other one meanwhile.
    namespace: Option<File>,
}

fn process_namespace(pid: i32) -> Option<File> {
    File::open(format!("/proc/{pid}/ns/pid")).ok()
}

fn number(namespace: &File) -> u64 {
    namespace.metadata().unwrap().ino()
}

impl Process {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// As ps shows it: R, S, T and others.
    pub(crate) fn state(&self) -> char {
        let stat = std::fs::read_to_string(self.file("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    /// Neither ended nor waited for.
    pub(crate) fn lives(&self) -> bool {
        std::fs::read_to_string(self.file("stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    pub(crate) fn kill(&self) {
        signal(self.pid, Signal::KILL);
    }

    pub(crate) fn kill_if_there(&self) {
        self.signal_if_there(Signal::KILL);
    }

    pub(crate) fn signal_if_there(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.handle, signal);
    }

    /// Waits until it has ended.
    #[track_caller]
    pub(crate) fn gone(&self) {
        let long = Timespec { tv_sec: 120, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&long)).unwrap(), 1, "{} ({}) is still there", self.pid, self.command);
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn all() -> Vec<(i32, i32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        found.push((pid, parent.trim().parse().unwrap()));
    }
    found
}

/// A process and all that descend from it.
pub(crate) struct Family(pub(crate) Vec<Process>);

impl Family {
    pub(crate) fn of(pid: i32) -> Self {
        let all = all();
        let mut members = vec![pid];
        let mut next = 0;
        while let Some(&parent) = members.get(next) {
            members.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        let process = |pid: i32| {
            let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            Some(Process { pid, command, handle, namespace: process_namespace(pid) })
        };
        Self(members.into_iter().filter_map(process).collect())
    }

    /// As [`Family::of`], once a process of it runs this program: whoever is just executing something has no command line for a moment.
    #[track_caller]
    pub(crate) fn with(pid: i32, program: &str) -> Self {
        let began = std::time::Instant::now();
        loop {
            let family = Self::of(pid);
            if family.running(program).is_some() {
                return family;
            }
            assert!(began.elapsed().as_secs() < 60, "{program} does not run");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// The process whose command line begins with this program's name.
    pub(crate) fn running(&self, program: &str) -> Option<&Process> {
        self.0.iter().find(|process| process.command.starts_with(program))
    }

    /// The one whose command line has this word.
    #[track_caller]
    pub(crate) fn find(&self, word: &str) -> &Process {
        let found = self.0.iter().find(|process| process.command.contains(word));
        let all: Vec<&str> = self.0.iter().map(|process| process.command.as_str()).collect();
        found.unwrap_or_else(|| panic!("no {word} among {all:?}"))
    }

    /// Waits until all of them but the first, whose parent is the test, have ended.
    #[track_caller]
    pub(crate) fn ended(&self) {
        for process in self.0.iter().skip(1) {
            process.gone();
        }
    }

    /// Waits until all have ended but the one whose command line has this word.
    #[track_caller]
    pub(crate) fn ended_but(&self, word: &str) {
        for process in self.0.iter().filter(|process| !process.command.contains(word)) {
            process.gone();
        }
    }

    /// Waits until they have ended; then no process may be in the container's process namespace, and nothing of the run is mounted here.
    #[track_caller]
    pub(crate) fn all_gone(&self) {
        self.ended();
        let own = number(&process_namespace(std::process::id().try_into().unwrap()).unwrap());
        let theirs = self.0.iter().filter_map(|process| process.namespace.as_ref()).map(number);
        let theirs: Vec<u64> = theirs.filter(|number| *number != own).collect();
        for (pid, _) in all() {
            let of = process_namespace(pid).map(|namespace| number(&namespace));
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // A zombie has ended; whoever inherited it has not looked yet.
            let over = status.is_empty() || status.contains("State:\tZ");
            assert!(over || of.is_none_or(|of| !theirs.contains(&of)), "process {pid}: {status}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(" countersign ") && !mounts.contains("squashfuse"), "{mounts}");
    }
}
