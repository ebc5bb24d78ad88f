//! `attest serve`: attests at the interval that policy asks for, follows the verifier's events, and so keeps every lease of the host and its
//! certificate fresh.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use countersign_wire::event::HostEvent;
use countersign_wire::explanation::Explanation;
use countersign_wire::id::VerdictId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::error::HostError;
use crate::events::{Notice, Subscription};
use crate::host::Host;
use crate::lease::{Renewal, boot_time};
use crate::notify::Notify;
use crate::out;
use crate::random::part_of;
use crate::verdict::{Denial, Reason};

/// SIGINT, SIGTERM.
const ENDING: [i32; 2] = [2, 15];
/// First wait after an attestation that failed, and the longest one.
const WAIT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Within which time a host attests that was asked to: all hosts are asked at once when a policy changes.
const SPREAD: Duration = Duration::from_secs(5);
/// How full the run log is when people are told, percent; again at each further one.
const FILLING: u64 = 50;

/// What happened, as one line of text or JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
enum Line<'a> {
    Started {
        host: String,
    },
    Accepted {
        verdict: VerdictId,
        next_s: u64,
    },
    Denied {
        #[serde(flatten)]
        denial: &'a Shown<'a>,
        next_s: u64,
    },
    Failed {
        error: String,
        hint: String,
        next_s: u64,
    },
    Filling {
        percent: u64,
    },
    Connected,
    Lost {
        reason: &'a str,
        next_s: u64,
    },
    Told {
        #[serde(flatten)]
        event: &'a HostEvent,
    },
    Stopped,
}

/// A denial as it is said: with its explanation, which people read below the line.
#[derive(Debug, Clone, Serialize)]
struct Shown<'a> {
    verdict: &'a str,
    reasons: &'a [Reason],
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<&'a Explanation>,
}

impl Line<'_> {
    /// What stands below the line of a log.
    fn more(&self) -> String {
        let explanation = if let Self::Denied { denial, .. } = self { denial.explanation } else { None };
        explanation.map(Explanation::words).unwrap_or_default().lines().map(|line| format!("  {line}\n")).collect()
    }

    fn words(&self) -> String {
        match self {
            Self::Started { host } => format!("host {host} attests from now on"),
            Self::Accepted { verdict, next_s } => format!("accepted: verdict {verdict}; next in {next_s} s"),
            Self::Denied { denial: Shown { verdict, reasons, .. }, next_s } => {
                let ids: Vec<&str> = reasons.iter().map(|reason| reason.id.as_str()).collect();
                format!("denied: verdict {verdict}: {}; next in {next_s} s", ids.join(", "))
            }
            Self::Failed { error, hint, next_s } => format!("failed: {error} (hint: {hint}); again in {next_s} s"),
            Self::Filling { percent } => {
                format!(
                    "this boot's run log is {percent} % full: reboot this host; above 75 % no run starts, at 100 % nothing is attested"
                )
            }
            Self::Connected => "the verifier's events are heard".into(),
            Self::Lost { reason, next_s } => {
                format!("the verifier's events are not heard: {reason}; again in {next_s} s")
            }
            Self::Told { event } => match event {
                HostEvent::Revoked { reason } => format!("the verifier revoked this host: {reason}"),
                HostEvent::Suspended { reason } => format!("the verifier suspended this host: {reason}"),
                HostEvent::Admitted { reason } => format!("the verifier admitted this host: {reason}"),
                HostEvent::WorkloadWithdrawn { workload } => format!("workload {workload} is withdrawn"),
                HostEvent::Stop { run, reason } => format!("run {run} is to be stopped: {reason}"),
                HostEvent::Freeze { run, reason } => format!("run {run} is to be frozen: {reason}"),
                HostEvent::Thaw { run, reason } => format!("run {run} may go on: {reason}"),
                HostEvent::Attest { reason } => format!("the verifier asks for an attestation: {reason}"),
            },
            Self::Stopped => "stopped".into(),
        }
    }
}

/// The service between two waits.
struct Service {
    host: Host,
    json: bool,
    notify: Notify,
    /// When the next attestation is due, CLOCK_BOOTTIME.
    due: Duration,
    /// An outcome from before this does not count.
    since: Duration,
    wait: Duration,
    /// How full the run log was when people were told last, percent.
    filled: u64,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`HostError`]: this host is not enrolled, the TPM is another one, or nothing can be printed. A verifier that is away is none.
pub fn serve(host: Host, json: bool) -> Result<(), HostError> {
    let io = |path: &str, source: std::io::Error| HostError::State { path: path.into(), source };
    let signals = countersign_sys::signals(&ENDING).map_err(|e| io("signals", e))?;
    let id = host.card()?.host.to_string();
    host.trust()?;
    let events = Subscription::start(&host)?;
    let notify = Notify::from_env();
    let now = boot_time();
    let mut service = Service { host, json, notify, due: now, since: Duration::ZERO, wait: WAIT.0, filled: 0 };
    service.say(&Line::Started { host: id });
    service.notify.say("READY=1");
    loop {
        service.notify.say("WATCHDOG=1");
        if boot_time() >= service.due {
            service.attest()?;
        }
        let patience = service.due.saturating_sub(boot_time());
        let patience = service.notify.watchdog().map_or(patience, |sign| patience.min(sign));
        if service.wait_for(&signals, &events, patience).map_err(|e| io("poll", e))? {
            service.notify.say("STOPPING=1");
            service.say(&Line::Stopped);
            return Ok(());
        }
        while let Some(notice) = events.next() {
            service.hear(&notice);
        }
    }
}

/// From when on an outcome is new enough for a host that attests at least once in `most`: a shared one that is as old is due itself.
fn oldest(now: Duration, most: Duration) -> Duration {
    now.checked_sub(most).map_or(Duration::ZERO, |before| before.saturating_add(Duration::from_millis(1)))
}

impl Service {
    /// True when a signal says that this is the end.
    fn wait_for(&self, signals: &OwnedFd, events: &Subscription, patience: Duration) -> std::io::Result<bool> {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(patience).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut number = [0];
        Ok(rustix::io::read(signals, &mut number).is_ok_and(|n| n > 0))
    }

    fn attest(&mut self) -> Result<(), HostError> {
        let since = self.since.max(oldest(boot_time(), self.host.config().reattest_max));
        let outcome = self.host.renew_since(since);
        let now = boot_time();
        match outcome {
            Ok(Renewal::Accepted(accepted)) => {
                self.wait = WAIT.0;
                // The host's own bound keeps its certificate fresh whatever policy asks for.
                let bound = accepted.at.saturating_add(self.host.config().reattest_max);
                self.due = accepted.next(&accepted.terms).min(bound).max(now);
                self.say(&Line::Accepted { verdict: accepted.verdict, next_s: self.next_s() });
                let percent = self.host.run_log_filled()?;
                if percent >= FILLING && percent > self.filled {
                    self.say(&Line::Filling { percent });
                }
                self.filled = percent;
            }
            Ok(Renewal::Denied(denied)) => {
                self.again_later(now);
                let Denial { id: verdict, reasons, explanation, .. } = denied.denial.as_ref();
                let shown = Shown { verdict, reasons, explanation: explanation.as_deref() };
                self.say(&Line::Denied { denial: &shown, next_s: self.next_s() });
                // The next one is to be made, not shared.
                self.since = now;
            }
            Err(e @ (HostError::NotEnrolled | HostError::Config { .. })) => return Err(e),
            Err(e @ HostError::Tpm(crate::tpm::TpmError::OtherTpm { .. })) => return Err(e),
            Err(e) => {
                self.again_later(now);
                self.say(&Line::Failed { error: e.to_string(), hint: e.hint(), next_s: self.next_s() });
            }
        }
        Ok(())
    }

    /// After a growing wait, shorter by up to a half at random.
    fn again_later(&mut self, now: Duration) {
        self.due = now.saturating_add(self.wait.saturating_sub(part_of(self.wait.mul_f64(0.5))));
        self.wait = self.wait.saturating_mul(2).min(WAIT.1);
    }

    fn next_s(&self) -> u64 {
        self.due.saturating_sub(boot_time()).as_secs()
    }

    fn hear(&mut self, notice: &Notice) {
        match notice {
            Notice::Connected => self.say(&Line::Connected),
            Notice::Lost { reason, wait } => self.say(&Line::Lost { reason, next_s: wait.as_secs() }),
            Notice::Event(event) => {
                self.say(&Line::Told { event });
                if matches!(event, HostEvent::Attest { .. } | HostEvent::Admitted { .. }) {
                    let now = boot_time();
                    self.since = now;
                    self.wait = WAIT.0;
                    self.due = self.due.min(now.saturating_add(part_of(SPREAD.min(self.host.config().reattest_max))));
                }
            }
        }
    }

    fn say(&self, line: &Line<'_>) {
        let text = if self.json {
            serde_json::to_string(line).unwrap_or_default()
        } else {
            let text = format!("{}\n{}", out::printable(&line.words()), line.more());
            text.trim_end().to_owned()
        };
        self.notify.say(&format!("STATUS={}", out::printable(&line.words())));
        // A log that nobody reads any more is no reason to stop attesting.
        let _ = out::raw(format!("{text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_comes_with_its_explanation() {
        let explanation = serde_json::json!({
            "verdict": "v", "host": "h", "purpose": "attest", "time_ms": 1, "allow": false, "failed": [], "findings": [], "also": [], "more": 0,
            "since": {"state": "no-earlier-boot"}, "commands": ["verifier what"], "notes": []
        });
        let explanation: Explanation = serde_json::from_value(explanation).unwrap();
        let mut shown = Shown { verdict: "v", reasons: &[], explanation: Some(&explanation) };
        let line = Line::Denied { denial: &shown, next_s: 5 };
        assert!(line.more().contains("  ") && line.more().contains("verifier what"), "{}", line.more());
        assert_eq!(serde_json::to_value(&line).unwrap()["explanation"]["commands"][0], "verifier what");
        assert!(!line.words().contains('\n'), "one line for the service manager");
        shown.explanation = None;
        let line = Line::Denied { denial: &shown, next_s: 5 };
        assert_eq!(line.more(), "");
        assert_eq!(
            serde_json::to_value(&line).unwrap(),
            serde_json::json!({"what": "denied", "verdict": "v", "reasons": [], "next_s": 5})
        );
    }

    #[test]
    fn an_outcome_that_is_due_by_the_hosts_own_bound_is_not_shared_again() {
        // As Service::attest makes it: the bound behind the last one, however long policy lets it be shared.
        let (at, most) = (Duration::from_secs(1000), Duration::from_secs(60));
        let due = at.saturating_add(most);
        assert!(oldest(due, most) > at);
        assert!(oldest(due - Duration::from_millis(2), most) < at, "others' is shared until then");
        assert_eq!(oldest(Duration::from_secs(5), most), Duration::ZERO, "just booted");
    }
}
