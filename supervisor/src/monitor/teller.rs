//! What the monitor's threads have found, told to the main thread: each finding once, whoever found it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind, Text};

use super::inbox::Outbox;
use super::{Notice, Seen, now_ms};

/// Findings that are remembered, so that each is told once; then they are forgotten, and told again.
const REMEMBERED: usize = 4096;

/// What is one finding, told again.
type Told = (Kind, Text, Option<Text>);

/// Shared by the threads.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    outbox: Outbox<Notice>,
    told: Arc<Mutex<HashSet<Told>>>,
}

impl Teller {
    pub(super) fn new(outbox: Outbox<Notice>) -> Self {
        Self { outbox, told: Arc::default() }
    }

    /// Tells what is new among these, which were looked for at that time.
    pub(super) fn tell(&self, found: Vec<Finding>, at: Duration) {
        for finding in found {
            if self.is_new(&finding) {
                self.outbox.send(Notice::Saw(Seen { finding, at }));
            }
        }
    }

    fn is_new(&self, finding: &Finding) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() > REMEMBERED {
            told.clear();
        }
        // Events of the machine happen again; what a process is, is so until it ends.
        let blind = finding.kind == Kind::MonitorBlind;
        let place = if blind { &finding.what } else { &finding.place };
        let once = finding.pid.is_some() || blind;
        !once || told.insert((finding.kind, place.clone(), finding.executable.clone()))
    }

    /// Says that what happens is not seen. The policy judges that too.
    pub(super) fn blind(&self, what: &str) {
        self.tell(vec![Finding::new(Kind::MonitorBlind, what, "", now_ms())], boot_time());
    }

    /// Whoever cannot look later has to say it again.
    pub(super) fn sees(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|(kind, ..)| *kind != Kind::MonitorBlind);
    }

    pub(super) fn watched(&self) {
        self.outbox.send(Notice::Watched);
    }

    pub(super) fn warn(&self, text: String) {
        self.outbox.send(Notice::Warning(text));
    }
}
