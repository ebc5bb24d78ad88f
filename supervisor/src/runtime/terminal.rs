//! The user's terminal: whoever is its foreground gets its keys' signals, and may read from it.
//!
//! A workload that gets it has a process group of its own there, which the supervisor puts into the foreground as a shell does with its jobs. The
//! supervisor is no parent of what runs in the container, so the kernel does not tell it what a key stopped there: it looks.

use std::io;
use std::io::IsTerminal as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgrp, kill_process_group, setpgid, test_kill_process_group};
use serde::{Deserialize, Serialize};

use crate::stat::Stat;

/// Most processes that are looked at.
const NEAR: usize = 256;
/// And how many of their threads: a look costs the run's main thread some milliseconds at most.
const THREADS: usize = 512;
/// How often it is looked at who is stopped there.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked at where a shell may give the terminal to the supervisor, and how long what is stopped has to be.
const SOON: Duration = Duration::from_millis(200);
/// SIGTSTP (a key), SIGTTIN and SIGTTOU (used in the background).
const STOPPING: [i32; 3] = [20, 21, 22];

/// What a workload gets of the terminal on its user's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Share {
    /// Nothing: a session of its own, whose processes may use the streams that they have.
    Nothing,
    /// Its place in the session; another job has the terminal.
    Background,
    /// All of it.
    Foreground,
}

impl Share {
    /// What there is to be given now. Whoever is in a pipeline (`| less`) would lose the terminal to what it is given to.
    pub(crate) fn now() -> Self {
        let Ok(foreground) = countersign_sys::foreground() else { return Self::Nothing };
        match foreground == getpgrp() {
            _ if !io::stdout().is_terminal() && !is_alone() => Self::Nothing,
            true => Self::Foreground,
            false => Self::Background,
        }
    }

    pub(crate) fn is_any(self) -> bool {
        self != Self::Nothing
    }

    /// As an argument.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Background => "background",
            Self::Foreground => "foreground",
        }
    }
}

/// Whether no other process is in this one's group.
fn is_alone() -> bool {
    let (group, own) = (number(getpgrp()), number(rustix::process::getpid()));
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut processes = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    !processes.any(|process| process != own && known(process).is_some_and(|stat| stat.group == group))
}

fn number(process: Pid) -> i32 {
    process.as_raw_nonzero().get()
}

/// What can be known of a process.
fn known(process: i32) -> Option<Stat> {
    Stat::of(process).ok().flatten()
}

/// Its children, those of its threads, as many of which are looked at as there are `left`.
fn children(process: i32, left: &mut usize) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let threads: Vec<_> = threads.flatten().take(*left).collect();
    *left = left.saturating_sub(threads.len());
    let lists = threads.into_iter().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The terminal of a run's workload, as the run's main thread sees it.
#[derive(Debug)]
pub(crate) struct Lending {
    /// The container's first process.
    init: i32,
    /// The runtime makes the container further in, and is in a group of its own there.
    nested: bool,
    /// The workload's group that had it last.
    group: Option<Pid>,
    /// Whoever had it made no groups of its own, as a shell does.
    plain: bool,
    /// When it was looked at last who is stopped.
    looked: Option<Instant>,
    /// Which group is stopped, by which signal, and since when that is known.
    stopped: Option<(Pid, i32, Instant)>,
}

impl Lending {
    /// Of a workload that has just begun.
    pub(crate) fn new(init: u32, nested: bool) -> Self {
        let init = i32::try_from(init).unwrap_or(0);
        Self { init, nested, group: None, plain: true, looked: None, stopped: None }
    }

    /// When to look again, at the latest.
    pub(crate) fn patience(&self) -> Duration {
        let has_it = countersign_sys::foreground().is_ok_and(|group| Some(group) == self.group);
        if has_it && self.stopped.is_none() { LOOK } else { SOON }
    }

    /// The signal that has stopped who has the terminal, or who wants it and has not, once that is certain. Gives it back to the workload where the
    /// user's shell has given it to the supervisor.
    ///
    /// It counts what the terminal itself stops with: whoever else stops a process (SIGSTOP) means that process. One that its parent knows of is
    /// a job of that parent's.
    pub(crate) fn look(&mut self) -> Option<i32> {
        let foreground = countersign_sys::foreground().ok()?;
        if foreground == getpgrp() {
            self.stopped = None;
            self.give_back();
            return None;
        }
        if self.stopped.is_none() && self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return None;
        }
        let now = Instant::now();
        self.looked = Some(now);
        let all = self.processes();
        let has_it = all.iter().any(|stat| stat.group == number(foreground));
        if has_it {
            self.group = Some(foreground);
            self.plain &= self.group == self.first();
        }
        let group = self.group()?;
        let by = all.iter().filter(|stat| stat.group == number(group) && stat.state == 'T').map(|stat| stat.stopped_by);
        // In the background a key is for somebody else.
        let by = by.filter(|by| STOPPING.iter().skip(usize::from(!has_it)).any(|signal| signal == by)).max();
        let before = self.stopped.take();
        let (by, since) = match (by, before) {
            (Some(by), Some((of, as_now, since))) if (of, as_now) == (group, by) => (by, since),
            (Some(by), _) => (by, now),
            (None, _) => return None,
        };
        self.stopped = Some((group, by, since));
        (since.elapsed() >= SOON).then_some(by)
    }

    /// The container's processes, the first ones first.
    fn processes(&self) -> Vec<Stat> {
        let (mut processes, mut next, mut threads) = (vec![self.init], 0, THREADS);
        while let Some(&process) = processes.get(next).filter(|_| processes.len() < NEAR) {
            next = next.saturating_add(1);
            processes.extend(children(process, &mut threads));
        }
        processes.iter().filter_map(|process| known(*process)).collect()
    }

    /// The workload's first group.
    fn first(&self) -> Option<Pid> {
        let outer = known(self.init)?.group;
        let group = if self.nested {
            // Until it has one.
            known(*children(self.init, &mut { THREADS }).first()?)?.group
        } else {
            outer
        };
        Pid::from_raw(group).filter(|_| !self.nested || group != outer)
    }

    /// Whom the terminal is to be given to.
    fn group(&self) -> Option<Pid> {
        let lives = |group: &Pid| test_kill_process_group(*group).is_ok();
        self.group.filter(lives).or_else(|| self.first().filter(lives))
    }

    /// Whether a program has it that makes no groups of its own, as a shell does: a key is for all that the user has started.
    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    /// Takes it from the workload, so that it is this process's to give back.
    pub(crate) fn take(&mut self) {
        self.stopped = None;
        if countersign_sys::foreground().is_ok_and(|group| self.group() == Some(group)) {
            let _ = countersign_sys::set_foreground(getpgrp());
        }
    }

    /// Continues what was stopped there; where this process has the terminal, the workload gets it back.
    pub(crate) fn give_back(&self) {
        let Some(group) = self.group() else { return };
        if countersign_sys::foreground().is_ok_and(|foreground| foreground == getpgrp()) {
            let _ = countersign_sys::set_foreground(group);
        }
        let _ = kill_process_group(group, Signal::CONT);
    }
}

/// Moves this process into a group of its own, with its share of the terminal.
pub(super) fn take(share: Share) -> io::Result<()> {
    if share.is_any() {
        setpgid(None, None)?;
    }
    if share == Share::Foreground { countersign_sys::set_foreground(getpgrp()) } else { Ok(()) }
}

/// The same for a command that is about to start.
pub(super) fn hand_over(command: &mut Command, share: Share) {
    countersign_sys::start_in_group(command, share == Share::Foreground);
}

/// Takes the terminal back when dropped.
#[derive(Debug)]
pub(crate) struct Lent;

impl Drop for Lent {
    fn drop(&mut self) {
        // What it was lent to has ended. Of a run that goes on in the background the shell has it.
        let ended = |group: Pid| test_kill_process_group(group).is_err();
        if countersign_sys::foreground().is_ok_and(|group| group == getpgrp() || ended(group)) {
            let _ = countersign_sys::set_foreground(getpgrp());
        }
    }
}

/// What a container with the user's terminal may not do: type into it (TIOCSTI), paste into it (TIOCLINUX). A seccomp filter as bubblewrap
/// takes it; `None` on processors whose numbers are not known here.
pub(crate) fn filter() -> Option<Vec<u8>> {
    // AUDIT_ARCH_*, number of ioctl.
    let (architecture, ioctl): (u32, u32) = match std::env::consts::ARCH {
        "x86_64" => (0xc000_003e, 16),
        "aarch64" => (0xc000_00b7, 29),
        _ => return None,
    };
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    // struct seccomp_data: number at 0, architecture at 4, low half of the second argument at 24.
    let program: [(u16, u8, u8, u32); 10] = [
        (LOAD, 0, 0, 4),
        (EQUAL, 0, 7, architecture),
        (LOAD, 0, 0, 0),
        // The x32 numbers.
        (AT_LEAST, 5, 0, 0x4000_0000),
        (EQUAL, 0, 3, ioctl),
        (LOAD, 0, 0, 24),
        (EQUAL, 2, 0, 0x5412),
        (EQUAL, 1, 0, 0x541c),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ];
    let mut bytes = Vec::with_capacity(program.len().saturating_mul(8));
    for (code, yes, no, value) in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[yes, no]);
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_stopped_by_what() {
        use std::os::unix::process::CommandExt as _;
        // In a group that its parent, outside of it, would continue.
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let stopped_by = |signal: Signal| {
            rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
            // Until it is.
            let by = loop {
                if let Some(stat) = known(pid).filter(|stat| stat.state == 'T') {
                    break stat.stopped_by;
                }
            };
            rustix::process::kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
            while known(pid).unwrap().state == 'T' {}
            by
        };
        assert_eq!([Signal::STOP, Signal::TTIN, Signal::TTOU].map(stopped_by), [19, 21, 22]);
        assert!(children(number(rustix::process::getpid()), &mut { THREADS }).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
