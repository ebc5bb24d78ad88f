//! What has to do with the TPM and the verifier while a run goes on, in a thread of its own: findings go into the run log, leases are renewed.
//!
//! The main thread acts first and has it recorded then: a frozen container must not wait for a TPM.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_attest::lease::{Lease, Renewal, boot_time};
use countersign_attest::{Config, Host, HostError};
use countersign_wire::finding::{Finding, Kind, Reaction};
use countersign_wire::id::RunId;
use countersign_wire::limits;
use countersign_wire::runlog::Event;

use super::inbox::Outbox;
use super::{Notice, Seen, now_ms};

/// First wait after an attempt that failed; it doubles up to [`LONGEST`].
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait after an attempt that failed.
const LONGEST: Duration = Duration::from_secs(60);

/// What to do. A workload can bring about only so many of them ([`Budget`]): what waits here is bounded.
#[derive(Debug)]
pub(crate) enum Record {
    /// Into the run log.
    Finding(Finding),
    /// Into the run log.
    Reaction(Reaction),
    /// Attest now: the verifier shall know what the log says.
    Report,
}

/// The thread's handle. Dropped, it ends when everything is recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    sender: Option<Sender<Record>>,
    thread: Option<JoinHandle<()>>,
    budget: Budget,
}

impl Recorder {
    /// Starts it. The lease is read from the state folder, where the release has left it.
    ///
    /// # Errors
    /// The state folder cannot be opened.
    pub(crate) fn start(config: Config, run: RunId, outbox: Outbox<Notice>) -> Result<Self, HostError> {
        let host = Host::open(config)?;
        let lease = host.lease(run)?;
        let (sender, receiver) = channel();
        let mut work = Work { host, run, outbox, next: None, retry: RETRY, denied: String::new() };
        work.leased(lease);
        let thread = std::thread::spawn(move || work.go_on(&receiver));
        Ok(Self { sender: Some(sender), thread: Some(thread), budget: Budget::default() })
    }

    pub(crate) fn send(&self, record: Record) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(record);
        }
    }

    /// Has a finding recorded, and what was done about it. One too many is not, unless it changed the run's state (`changes`): then what was
    /// done still is. Whether anything is.
    pub(crate) fn found(&mut self, finding: &Finding, done: Reaction, changes: bool) -> bool {
        let logged = self.budget.take(finding);
        let any = logged.is_some() || changes;
        if let Some(finding) = logged {
            self.send(Record::Finding(finding));
        }
        if any {
            self.send(Record::Reaction(done));
        }
        any
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How much of what a workload does goes into the run log, which all runs of the host share.
#[derive(Debug, Default)]
struct Budget {
    /// Findings of each kind so far.
    counts: HashMap<Kind, usize>,
    /// Bytes of those that were let through.
    bytes: usize,
}

impl Budget {
    /// What is to be logged of this finding, if anything.
    fn take(&mut self, finding: &Finding) -> Option<Finding> {
        let count = self.counts.entry(finding.kind).or_default();
        *count = count.saturating_add(1);
        let bytes = self.bytes.saturating_add(serde_json::to_vec(finding).map_or(0, |text| text.len()));
        if *count > 1 && bytes > limits::FINDINGS_OF_A_RUN {
            *count = (*count).max(limits::FINDINGS_OF_A_KIND);
        }
        match (*count).cmp(&limits::FINDINGS_OF_A_KIND) {
            std::cmp::Ordering::Less => {
                self.bytes = bytes;
                Some(finding.clone())
            }
            // The last one says that there may be more.
            std::cmp::Ordering::Equal => Some(Finding::new(finding.kind, "and more of this kind", "", finding.time_ms)),
            std::cmp::Ordering::Greater => None,
        }
    }
}

struct Work {
    host: Host,
    run: RunId,
    outbox: Outbox<Notice>,
    /// When to attest next, CLOCK_BOOTTIME; `None` without a lease.
    next: Option<Duration>,
    retry: Duration,
    /// The verdict of the last refusal: told once.
    denied: String,
}

impl Work {
    fn go_on(&mut self, records: &Receiver<Record>) {
        loop {
            let wait = self.next.map_or(LONGEST, |next| next.saturating_sub(boot_time()));
            match records.recv_timeout(wait) {
                Ok(first) => {
                    // All that waits goes into the log before one attestation tells it.
                    let waiting = std::iter::once(first).chain(std::iter::from_fn(|| records.try_recv().ok()));
                    let reports = waiting.filter(|record| self.record(record)).count();
                    if reports > 0 {
                        self.attest(boot_time());
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.next.is_some_and(|next| next <= boot_time()) => {
                    self.attest(Duration::ZERO);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether it asks for an attestation.
    fn record(&mut self, record: &Record) -> bool {
        match record {
            Record::Finding(finding) => self.log(Event::Finding { run: self.run, finding: finding.clone() }),
            Record::Reaction(reaction) => {
                self.log(Event::Reaction { run: self.run, reaction: *reaction, time_ms: now_ms() });
            }
            Record::Report => return true,
        }
        false
    }

    fn log(&mut self, event: Event) {
        if let Err(e) = self.host.log(event) {
            self.outbox.send(Notice::Unrecorded(e.to_string()));
        }
    }

    fn leased(&mut self, lease: Option<Lease>) {
        match lease {
            Some(lease) => {
                self.next = Some(lease.next);
                self.outbox.send(Notice::Lease { until: lease.until, terms: lease.terms });
            }
            // Lost with the state folder, or changed by somebody.
            None => {
                let what = "the run has no lease in the state folder";
                self.outbox.send(Notice::Saw(Seen::now(Kind::LeaseExpired, what, "")));
                self.again();
            }
        }
    }

    /// Renews the lease, with an outcome of `since` or later.
    fn attest(&mut self, since: Duration) {
        let failed = match self.host.renew_since(since) {
            Ok(Renewal::Accepted(_)) => match self.host.lease(self.run) {
                Ok(lease) => {
                    self.retry = RETRY;
                    return self.leased(lease);
                }
                Err(e) => e.to_string(),
            },
            Ok(Renewal::Denied(denied)) => {
                if std::mem::replace(&mut self.denied, denied.denial.id.clone()) == denied.denial.id {
                    return self.again();
                }
                // Why comes first: the finding may end the run.
                self.warn(&denied.denial.words());
                let place = format!("verdict {}", denied.denial.id);
                let what = "the verifier refused to renew the lease";
                self.outbox.send(Notice::Saw(Seen::now(Kind::AttestationDenied, what, &place)));
                return self.again();
            }
            Err(e) => e.to_string(),
        };
        self.warn(&failed);
        self.again();
    }

    fn warn(&self, failed: &str) {
        self.outbox.send(Notice::Warning(format!("the lease is not renewed: {failed}")));
    }

    /// Another attempt, later.
    fn again(&mut self) {
        self.next = Some(boot_time().saturating_add(self.retry));
        self.retry = self.retry.saturating_mul(2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_cannot_fill_the_log() {
        let mut budget = Budget::default();
        let short = Finding::new(Kind::Ptrace, "a", "b", 1);
        let logged: Vec<Finding> = (0..10_000).filter_map(|_| budget.take(&short)).collect();
        assert_eq!(logged.len(), limits::FINDINGS_OF_A_KIND);
        assert_eq!(logged.last().unwrap().what.as_str(), "and more of this kind");
        // Long ones of every kind: their bytes count, and the first of each kind is there all the same.
        let mut budget = Budget::default();
        let text = "x".repeat(limits::FINDING_TEXT);
        let mut logged = Vec::new();
        for _ in 0..100 {
            for kind in Kind::ALL {
                logged.extend(budget.take(&Finding::new(kind, &text, &text, 1).of(1, &text)));
            }
        }
        for kind in Kind::ALL {
            let of: Vec<&Finding> = logged.iter().filter(|finding| finding.kind == kind).collect();
            assert!(of.len() > 1 && of.len() <= limits::FINDINGS_OF_A_KIND, "{kind}: {}", of.len());
            assert_eq!(of.last().unwrap().what.as_str(), "and more of this kind", "{kind}");
        }
        let bytes: usize = logged.iter().map(|finding| serde_json::to_vec(finding).unwrap().len()).sum();
        assert!(bytes < limits::FINDINGS_OF_A_RUN + Kind::ALL.len() * limits::FINDING, "{bytes}");
    }
}
