//! Monitor mode (DESIGN.md section 10): what may happen to a run while it goes on, and what is done about it.
//!
//! Threads of the supervisor's main process look and listen; all that they have to say goes to the main thread, which asks the workload's
//! policy and acts. None of them ever sees the key.

mod executions;
mod inbox;
mod judge;
mod listener;
mod machine;
mod mounts;
mod process;
mod pulse;
mod reactor;
mod recorder;
mod scan;
mod scanner;
mod sockets;
mod stranger;
mod teller;
mod webhook;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind};
use countersign_wire::obligations::Obligations;

pub(crate) use executions::Executions;
pub(crate) use inbox::{Inbox, Outbox, channel};
pub(crate) use judge::Judge;
pub(crate) use reactor::{Act, Reactor};
pub(crate) use recorder::Recorder;
pub(crate) use scanner::Scanner;
pub(crate) use webhook::Webhook;

/// What the threads say.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Something that the policy has to judge.
    Saw(Seen),
    /// The lease as it is now.
    Lease {
        /// Its end, CLOCK_BOOTTIME.
        until: Duration,
        /// What policy asks for.
        terms: Obligations,
    },
    /// Something that policy asks for cannot be recorded.
    Unrecorded(String),
    /// What happens in the container from here on is seen.
    Watched,
    /// Worth knowing, nothing more.
    Warning(String),
}

/// A finding, and when it was looked for.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) finding: Finding,
    /// CLOCK_BOOTTIME: the finding may be that the other clock was set.
    pub(crate) at: Duration,
}

impl Seen {
    /// One that is about no process, just now.
    pub(crate) fn now(kind: Kind, what: &str, place: &str) -> Self {
        Self { finding: Finding::new(kind, what, place, now_ms()), at: boot_time() }
    }
}

/// The host's clock, milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
