//! The users that runs have to themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use super::message::Uids;

/// Fewest users in a range: those of one run.
const FEWEST: u32 = 2;

/// Users from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Range {
    first: u32,
    last: u32,
}

impl Default for Range {
    fn default() -> Self {
        Self { first: 2_100_000_000, last: 2_100_004_095 }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let range = Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
            // Root, and the two numbers that mean "none", are nobody's.
            let sound = range.first > 0 && range.last < u32::MAX && range.last.checked_sub(range.first)? >= FEWEST - 1;
            sound.then_some(range)
        };
        parse()
            .ok_or_else(|| format!("{text:?} is no range of at least {FEWEST} users, as 2100000000-2100004095 is one"))
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Range {
    const fn contains(&self, id: u32) -> bool {
        self.first <= id && id <= self.last
    }

    /// Who else has a part of it, by a table of /etc: `passwd` and `group` (number in the third field), `subuid` and `subgid` (first and count).
    pub(super) fn taken(&self, table: &str, text: &str) -> Option<String> {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (second, third) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
            let is_taken = if table.starts_with("sub") {
                let first: u32 = second.parse().ok()?;
                third > 0 && first <= self.last && first.saturating_add(third.saturating_sub(1)) >= self.first
            } else {
                self.contains(third)
            };
            is_taken.then(|| format!("{name} in /etc/{table}"))
        })
    }

    /// [`Range::taken`] by any of the system's tables.
    ///
    /// # Errors
    /// A table that is there cannot be read.
    pub(super) fn taken_here(&self) -> std::io::Result<Option<String>> {
        for table in ["passwd", "group", "subuid", "subgid"] {
            match std::fs::read(format!("/etc/{table}")) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                text => {
                    if let Some(who) = self.taken(table, &String::from_utf8_lossy(&text?)) {
                        return Ok(Some(who));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Kills every process that has a user of the range: nobody's but those of runs that have lost their daemon. How many.
    pub(super) fn evict(&self) -> usize {
        let left: Vec<u32> =
            processes().filter(|(_, uids)| uids.iter().any(|uid| self.contains(*uid))).map(|p| p.0).collect();
        left.iter().filter(|pid| kill(**pid, |uids| uids.iter().any(|uid| self.contains(*uid)))).count()
    }

    /// Pairs in it.
    fn pairs(&self) -> u32 {
        self.last.saturating_sub(self.first).saturating_add(1) / FEWEST
    }

    fn pair(&self, number: u32) -> Uids {
        let container = self.first.saturating_add(number.saturating_mul(FEWEST));
        Uids { container, decryptor: container.saturating_add(1) }
    }
}

/// Every process here with its real, effective, saved and file system user.
fn processes() -> impl Iterator<Item = (u32, Vec<u32>)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, users(pid)?))
    })
}

fn users(pid: u32) -> Option<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    Some(line.split_whitespace().filter_map(|uid| uid.parse().ok()).collect())
}

/// Kills a process, if it is (still) one of those meant.
fn kill(pid: u32, is_meant: impl Fn(&[u32]) -> bool) -> bool {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(handle) = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return false };
    // The handle first: the number may have become another process's meanwhile, and then this says so.
    users(pid).is_some_and(|uids| is_meant(&uids)) && pidfd_send_signal(handle, Signal::KILL).is_ok()
}

/// Pairs of users, given away in turn, so that the same ones come again late.
#[derive(Debug)]
pub(super) struct Pool {
    range: Range,
    next: u32,
    given: BTreeSet<u32>,
}

impl Pool {
    pub(super) const fn new(range: Range) -> Self {
        Self { range, next: 0, given: BTreeSet::new() }
    }

    /// Users that no run and no process has; none when all have.
    pub(super) fn take(&mut self) -> Option<Uids> {
        let busy: BTreeSet<u32> =
            processes().flat_map(|(_, uids)| uids).filter(|uid| self.range.contains(*uid)).collect();
        self.take_but(&busy)
    }

    fn take_but(&mut self, busy: &BTreeSet<u32>) -> Option<Uids> {
        let pairs = self.range.pairs();
        for _ in 0..pairs {
            let pair = self.range.pair(self.next);
            self.next = self.next.saturating_add(1).checked_rem(pairs).unwrap_or(0);
            let is_free = |uid: u32| !self.given.contains(&uid) && !busy.contains(&uid);
            if is_free(pair.container) && is_free(pair.decryptor) {
                self.given.extend([pair.container, pair.decryptor]);
                return Some(pair);
            }
        }
        None
    }

    /// Whether it is one of them.
    pub(super) const fn has(&self, id: u32) -> bool {
        self.range.contains(id)
    }

    /// Takes them back, and ends what still runs as them.
    pub(super) fn give_back(&mut self, pair: Uids) {
        Range { first: pair.container, last: pair.decryptor }.evict();
        self.given.remove(&pair.container);
        self.given.remove(&pair.decryptor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: Range = "10-13".parse().unwrap();
        assert_eq!((range.pairs(), range.to_string().as_str()), (2, "10-13"));
        assert_eq!(range.pair(1), Uids { container: 12, decryptor: 13 });
        for text in ["", "1", "0-9", "9-9", "9-1", "1-4294967295", "-1-4", "a-b"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn whose_else_it_is() {
        let range: Range = "1000-1999".parse().unwrap();
        let taken = |table, text| range.taken(table, text);
        assert_eq!(
            taken("passwd", "root:x:0:0::/:/bin/sh\nalice:x:1000:5::/:/x\n").as_deref(),
            Some("alice in /etc/passwd")
        );
        assert_eq!(taken("group", "root:x:0:\nusers:x:2000:\n"), None);
        for (line, is_taken) in [
            ("a:500:500", false),
            ("a:500:501", true),
            ("a:1500:10", true),
            ("a:1999:65536", true),
            ("a:2000:65536", false),
            ("a:4294967295:4294967295", false),
            ("nonsense", false),
        ] {
            assert_eq!(taken("subuid", line).is_some(), is_taken, "{line}");
        }
    }

    #[test]
    fn pairs_in_turn_and_never_twice() {
        let mut pool = Pool::new("100-105".parse().unwrap());
        let busy = BTreeSet::from([103]);
        let take = |pool: &mut Pool| pool.take_but(&busy).map(|pair| pair.container);
        assert_eq!((take(&mut pool), take(&mut pool), take(&mut pool)), (Some(100), Some(104), None));
        pool.give_back(Uids { container: 100, decryptor: 101 });
        assert_eq!((take(&mut pool), take(&mut pool)), (Some(100), None));
    }

    #[test]
    fn a_process_of_the_range_is_ended_and_no_other() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
        // Of this test's own, by its process id.
        let first = 1_950_000_000 + 4 * std::process::id();
        let run = |uid| std::process::Command::new("sleep").arg("1000").uid(uid).gid(uid).spawn().unwrap();
        let (mut inside, mut outside) = (run(first + 1), run(first + 2));
        let range = Range { first, last: first + 1 };
        let mut pool = Pool::new(range);
        assert_eq!(pool.take(), None, "somebody has it");
        assert_eq!(range.evict(), 1);
        assert_eq!(inside.wait().unwrap().signal(), Some(9));
        assert_eq!(pool.take(), Some(Uids { container: first, decryptor: first + 1 }));
        assert!(outside.try_wait().unwrap().is_none());
        outside.kill().unwrap();
        outside.wait().unwrap();
    }
}
