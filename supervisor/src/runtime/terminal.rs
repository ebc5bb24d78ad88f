//! The user's terminal: whoever is its foreground gets its keys' signals, and may read from it.

use std::io;
use std::io::IsTerminal as _;
use std::process::Command;

use rustix::process::{Pid, getpgrp, getpid, setpgid};

/// Most processes that are looked at.
const NEAR: usize = 64;

/// Whether standard input is this session's terminal and this process belongs to its foreground.
#[must_use]
pub(crate) fn is_ours() -> bool {
    io::stdin().is_terminal() && countersign_sys::foreground().is_ok_and(|group| group == getpgrp())
}

/// State, parent and process group from /proc/PID/stat: what stands behind the name, which may hold anything.
fn stat(process: i32) -> Option<(char, i32, i32)> {
    let stat = std::fs::read(format!("/proc/{process}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The terminal's foreground, where it is what this process has started and a key (Ctrl-Z) has stopped some of it.
pub(crate) fn stopped() -> Option<Pid> {
    let foreground = countersign_sys::foreground().ok().filter(|group| *group != getpgrp())?;
    let (group, own) = (foreground.as_raw_nonzero().get(), getpid().as_raw_nonzero().get());
    let mut ancestors = std::iter::successors(Some(group), |process| stat(*process).map(|(_, parent, _)| parent));
    if !ancestors.by_ref().take(NEAR).any(|process| process == own) {
        return None;
    }
    let mut members = vec![group];
    let mut next = 0;
    while let Some(&process) = members.get(next).filter(|_| next < NEAR) {
        next = next.saturating_add(1);
        match stat(process) {
            Some(('T', _, of)) if of == group => return Some(foreground),
            None => continue,
            Some(_) => {}
        }
        let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        members.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    None
}

/// Takes the terminal from `group`, which gets it back when it is given back.
pub(crate) fn take_from(group: Pid) -> Taken {
    let _ = countersign_sys::set_foreground(getpgrp());
    Taken(group)
}

/// A terminal that was taken back from what had it.
#[derive(Debug)]
pub(crate) struct Taken(Pid);

impl Taken {
    /// Gives it back, where it is this process's to give, and continues what was stopped.
    pub(crate) fn give_back(&self) {
        if is_ours() {
            let _ = countersign_sys::set_foreground(self.0);
        }
        let _ = rustix::process::kill_process_group(self.0, rustix::process::Signal::CONT);
    }
}

/// Moves this process into a group of its own, and that to the foreground.
pub(super) fn take() -> io::Result<()> {
    setpgid(None, None)?;
    countersign_sys::set_foreground(getpgrp())
}

/// The same for a command that is about to start.
pub(super) fn hand_over(command: &mut Command) {
    countersign_sys::start_in_foreground(command);
}

/// Takes the terminal back when dropped.
#[derive(Debug)]
pub(crate) struct Lent;

impl Drop for Lent {
    fn drop(&mut self) {
        // What it was lent to has ended. Of a run that goes on in the background the shell has it.
        let ended = |group: Pid| rustix::process::test_kill_process_group(group).is_err();
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
