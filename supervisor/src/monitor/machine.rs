//! What happens to the machine: modules that its kernel loads, and its clock being set.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind};

use super::process::read;
use crate::stat::if_there;

/// A clock that moves by less is being corrected, not set (NTP slews by at most 0.5 ms a second).
const JUMP: Duration = Duration::from_secs(1);

/// Names of the loaded modules; empty where the kernel has none to load.
fn modules() -> io::Result<BTreeSet<String>> {
    let table = if_there(read("/proc/modules"))?.unwrap_or_default();
    Ok(table.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// CLOCK_REALTIME minus CLOCK_BOOTTIME, milliseconds: constant until somebody sets the clock.
fn offset() -> i128 {
    let millis = |time: Duration| i128::try_from(time.as_millis()).unwrap_or(i128::MAX);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(since).saturating_sub(millis(boot_time()))
}

/// What was so at the last look.
#[derive(Debug)]
pub(super) struct Machine {
    modules: BTreeSet<String>,
    offset: i128,
}

impl Machine {
    pub(super) fn now() -> io::Result<Self> {
        Ok(Self { modules: modules()?, offset: offset() })
    }

    /// What has changed since the last look.
    pub(super) fn look(&mut self, time_ms: i64) -> io::Result<Vec<Finding>> {
        let now = Self::now()?;
        let found = self.compare(&now, time_ms);
        *self = now;
        Ok(found)
    }

    fn compare(&self, now: &Self, time_ms: i64) -> Vec<Finding> {
        let loaded = now.modules.difference(&self.modules);
        let loaded =
            loaded.map(|name| Finding::new(Kind::KernelModuleLoaded, "the kernel loaded a module", name, time_ms));
        let moved = now.offset.saturating_sub(self.offset);
        let jump = i128::try_from(JUMP.as_millis()).unwrap_or(i128::MAX);
        let jumped = (moved.abs() >= jump)
            .then(|| Finding::new(Kind::TimeJump, &format!("the clock was set by {} s", moved / 1000), "", time_ms));
        loaded.chain(jumped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_jumps() {
        let before = Machine { modules: ["ext4".to_owned()].into(), offset: 5_000 };
        let after = Machine { modules: ["ext4".to_owned(), "evil".to_owned()].into(), offset: -60_000 };
        let found = before.compare(&after, 7);
        assert_eq!(found[0], Finding::new(Kind::KernelModuleLoaded, "the kernel loaded a module", "evil", 7));
        assert_eq!(found[1].what.as_str(), "the clock was set by -65 s");
        assert_eq!(after.compare(&Machine { modules: BTreeSet::new(), offset: -60_400 }, 8), []);
        let mut now = Machine::now().unwrap();
        assert_eq!(now.look(1).unwrap(), [], "nobody loads a module or sets the clock while this test runs");
    }
}
