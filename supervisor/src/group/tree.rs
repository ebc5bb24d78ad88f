//! A container's processes without a cgroup: what descends from its first process, and what is in its process namespace.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::stat::{Stat, if_there};

/// How long stopping all of them, or their end, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The processes under one.
#[derive(Debug)]
pub(super) struct Tree {
    init: u32,
    handle: OwnedFd,
    namespace: PathBuf,
}

fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// What can be known of a process.
fn known(process: u32) -> Option<Stat> {
    Stat::of(process).ok().flatten()
}

fn namespace(process: u32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/pid"))
}

/// Whether a process is in a namespace of this kind and name. One that has ended is not, and other users' processes may not be asked.
fn is_in(process: u32, kind: &str, name: &Path) -> io::Result<bool> {
    match fs::read_link(format!("/proc/{process}/ns/{kind}")) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        other => Ok(if_there(other)?.is_some_and(|of| of == name)),
    }
}

impl Tree {
    pub(super) fn of(init: u32) -> io::Result<Self> {
        let id = pid(init).ok_or(io::ErrorKind::InvalidInput)?;
        let handle = pidfd_open(id, PidfdFlags::empty())?;
        Ok(Self { init, handle, namespace: namespace(init)? })
    }

    pub(super) const fn init(&self) -> u32 {
        self.init
    }

    /// A namespace that the container shares with its supervisor says nothing about who belongs to it.
    fn has_own_namespace(&self) -> io::Result<bool> {
        Ok(namespace(std::process::id())? != self.namespace)
    }

    /// # Errors
    /// One that may belong to it cannot be looked at: a list without it would be false.
    pub(super) fn processes(&self) -> io::Result<Vec<u32>> {
        self.in_sight(&[])
    }

    /// As [`Tree::processes`], and whoever else is in one of these namespaces, by their kinds and names.
    pub(super) fn in_sight(&self, namespaces: &[(&str, &Path)]) -> io::Result<Vec<u32>> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut found = vec![self.init];
        let by_namespace = self.has_own_namespace()?;
        let own = std::process::id();
        let mut theirs = Vec::new();
        for (kind, name) in namespaces {
            let known = by_namespace && *kind == "pid" && *name == self.namespace;
            if !known && !is_in(own, kind, name)? {
                theirs.push((kind, name));
            }
        }
        for entry in fs::read_dir("/proc")? {
            let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Some(Stat { parent, .. }) = Stat::of(process)? else { continue };
            children.entry(parent).or_default().push(process);
            // Whoever was put into a namespace from outside has a parent elsewhere.
            let mut joined = by_namespace && is_in(process, "pid", &self.namespace)?;
            for (kind, name) in &theirs {
                joined = joined || is_in(process, kind, name)?;
            }
            if joined {
                found.push(process);
            }
        }
        let (mut seen, mut at) = (HashSet::new(), 0);
        while let Some(process) = found.get(at).copied() {
            at = at.saturating_add(1);
            if seen.insert(process) {
                found.extend(children.remove(&process).unwrap_or_default());
            }
        }
        let mut processes: Vec<u32> = seen.into_iter().collect();
        processes.sort_unstable();
        Ok(processes)
    }

    /// Those that are not among others that are seen to elsewhere. Others first: whoever leaves them is found here.
    fn but(&self, others: &dyn Fn() -> io::Result<Vec<u32>>) -> io::Result<Vec<u32>> {
        let others: HashSet<u32> = others()?.into_iter().collect();
        Ok(self.processes()?.into_iter().filter(|process| !others.contains(process)).collect())
    }

    /// Stops each of them but `others`, again and again until a second look finds none that runs: one may fork while it is looked for.
    pub(super) fn stop(&self, others: &dyn Fn() -> io::Result<Vec<u32>>) -> io::Result<()> {
        let started = Instant::now();
        let mut again = false;
        while started.elapsed() < PATIENCE {
            let running =
                |process: &u32| known(*process).is_some_and(|stat| !matches!(stat.state, 'T' | 't' | 'Z' | 'X'));
            let running: Vec<u32> = self.but(others)?.into_iter().filter(running).collect();
            if running.is_empty() && again {
                return Ok(());
            }
            again = true;
            for process in running {
                if let Some(pid) = pid(process) {
                    let _ = kill_process(pid, Signal::STOP);
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the processes do not stop"))
    }

    pub(super) fn go_on(&self, others: &dyn Fn() -> io::Result<Vec<u32>>) -> io::Result<()> {
        for process in self.but(others)? {
            if let Some(pid) = pid(process) {
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        Ok(())
    }

    /// The end of a namespace's first process is the end of all in it. What has no namespace of its own is ended one by one.
    pub(super) fn kill(&self) -> io::Result<()> {
        // Whatever cannot be listed: the first process is ended.
        let own = self.has_own_namespace().unwrap_or(false);
        let others = if own { Vec::new() } else { self.processes().unwrap_or_default() };
        for process in others {
            if let Some(pid) = pid(process) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&patience)) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the container's first process does not end")),
            Ok(_) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_tree_is_stopped_and_ended_whole() {
        let script = "(setsid sleep 1001 &); sleep 1002 & echo ready; while :; do :; done";
        let mut command = Command::new("unshare");
        command.args(["-Urpf", "--kill-child", "sh", "-c", script]).stdout(Stdio::piped());
        let Ok(mut child) = command.spawn() else { return println!("skipped: no unshare") };
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            child.wait().unwrap();
            return println!("skipped: no user namespaces");
        }
        // unshare's child is the namespace's first process.
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let init = pids.find(|pid| known(*pid).is_some_and(|stat| stat.parent == child.id()));
        let tree = Tree::of(init.unwrap()).unwrap();
        assert!(tree.has_own_namespace().unwrap());
        let members = tree.processes().unwrap();
        assert_eq!(members.len(), 3, "{members:?}");
        tree.stop(&|| Ok(Vec::new())).unwrap();
        for member in &members {
            assert_eq!(known(*member).unwrap().state, 'T');
        }
        tree.go_on(&|| Ok(Vec::new())).unwrap();
        assert!(members.iter().all(|member| known(*member).unwrap().state != 'T'));
        tree.stop(&|| Ok(Vec::new())).unwrap();
        tree.kill().unwrap();
        child.wait().unwrap();
        for member in members {
            assert!(known(member).is_none_or(|stat| stat.state == 'Z'), "{member}");
        }
    }
}
