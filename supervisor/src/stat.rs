//! /proc/PID/stat (proc(5)): what is known of any process.

use std::fmt::Display;
use std::fs;
use std::io;

use rustix::io::Errno;

/// A process as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// As ps shows it: R, S, T and others.
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) group: i32,
    /// Processor time that it has used, in clock ticks.
    pub(crate) ticks: u64,
    /// When it was started, in clock ticks since the machine was.
    pub(crate) start: u64,
    /// Of one that is stopped: the signal that did it, until its parent has been told. Otherwise, and where the kernel does not say, 0.
    pub(crate) stopped_by: i32,
}

impl Stat {
    /// The process of this id; `None` when it has ended.
    ///
    /// # Errors
    /// It may be there and cannot be looked at.
    pub(crate) fn of(process: impl Display) -> io::Result<Option<Self>> {
        let Some(stat) = if_there(fs::read(format!("/proc/{process}/stat")))? else { return Ok(None) };
        // The name need not be UTF-8.
        let stat = Self::parse(&String::from_utf8_lossy(&stat));
        stat.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as in proc(5)"))
    }

    /// What stands behind the name, which may hold anything, begins with field 3.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number.checked_sub(3)?).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            ticks: number(14)?.checked_add(number(15)?)?,
            start: number(22)?,
            stopped_by: field(52).and_then(|field| field.parse().ok()).unwrap_or(0),
        })
    }
}

/// Whether this is what /proc says of a process that has ended. Anything else hides one that may be there.
pub(crate) fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// What is read of something that may be gone: `None` when it is.
pub(crate) fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(e) if has_ended(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        for (name, state) in [("a", 'T'), ("a) R (b", 'S'), (") ", 'Z')] {
            let line = format!("7 ({name}) {state} {}", numbers.join(" "));
            let stat = Stat { state, parent: 4, group: 5, ticks: 29, start: 22, stopped_by: 52 };
            assert_eq!(Stat::parse(&line), Some(stat), "{line}");
        }
        // Older kernels have fewer.
        let line = format!("7 (a) T {}", numbers[..19].join(" "));
        assert_eq!(Stat::parse(&line).map(|stat| stat.stopped_by), Some(0));
        for bad in ["", "7 (a)", "7 (a) ", "7 (a) T 4 5", "7 (a) T x 5 6"] {
            assert_eq!(Stat::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn of_this_process_and_of_none() {
        let own = Stat::of(std::process::id()).unwrap().unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert_eq!(Stat::of(u32::MAX).unwrap(), None);
    }
}
