//! What is done about findings: the policy is asked, the hardest answer so far counts, and everything is recorded and reported.

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_attest::events;
use countersign_attest::lease::boot_time;
use countersign_policy::verdict::OnViolation;
use countersign_wire::event::HostEvent;
use countersign_wire::finding::{Kind, Reaction};
use countersign_wire::obligations::Obligations;
use serde_json::json;

use super::recorder::Record;
use super::{Judge, Notice, Recorder, Seen, Webhook};
use crate::exit::{Failure, Stage};
use crate::group::Group;
use crate::out;
use crate::status::Status;

/// Seconds that a frozen container is kept where policy says nothing else.
const HOLD_S: u32 = 600;

/// What the run's loop has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    GoOn,
    /// End the workload with grace.
    Stop,
    /// End everything now.
    Kill,
}

/// Decides for one run.
#[derive(Debug)]
pub(crate) struct Reactor {
    group: Arc<Group>,
    judge: Arc<Judge>,
    recorder: Recorder,
    webhook: Option<Webhook>,
    terms: Obligations,
    /// End of the lease, CLOCK_BOOTTIME.
    lease: Option<Duration>,
    /// Until when a frozen container is kept.
    frozen: Option<Instant>,
    /// What ends the run.
    violation: Option<Failure>,
}

impl Reactor {
    pub(crate) fn new(group: Arc<Group>, judge: Arc<Judge>, recorder: Recorder, webhook: Option<Webhook>) -> Self {
        let (terms, lease, frozen, violation) = (Obligations::default(), None, None, None);
        Self { group, judge, recorder, webhook, terms, lease, frozen, violation }
    }

    /// Why the run is being ended, if it is.
    pub(crate) const fn violation(&self) -> Option<&Failure> {
        self.violation.as_ref()
    }

    /// The container does not run.
    pub(crate) const fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// End of the lease (CLOCK_BOOTTIME), while there is one to lose.
    pub(crate) const fn lease(&self) -> Option<Duration> {
        self.lease
    }

    /// How long nothing happens here by itself.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let lease = self.lease.map(|until| until.saturating_sub(boot_time()));
        let hold = self.frozen.map(|until| until.saturating_duration_since(Instant::now()));
        lease.into_iter().chain(hold).min()
    }

    /// Does what time has made due.
    pub(crate) fn tick(&mut self, status: &mut Status) -> Act {
        if self.frozen.is_some_and(|until| until <= Instant::now()) {
            self.frozen = None;
            // As a stop, without letting it run once more to be asked.
            return self.end("nobody approved the frozen run in time", Act::Kill, status);
        }
        self.lapse(status)
    }

    /// A lease that has ended is a finding, also when another one is about to take its place: nobody has watched the run meanwhile (stopped with
    /// its supervisor, or the machine slept), or the verifier was away.
    fn lapse(&mut self, status: &mut Status) -> Act {
        if self.lease.is_none_or(|until| boot_time() < until) {
            return Act::GoOn;
        }
        self.lease = None;
        let what = "the lease ended before the verifier renewed it";
        self.saw(&Seen::now(Kind::LeaseExpired, what, ""), status)
    }

    /// Takes in what a thread says.
    pub(crate) fn hear(&mut self, notice: Notice, status: &mut Status) -> Act {
        match notice {
            Notice::Saw(seen) => return self.saw(&seen, status),
            Notice::Lease { until, terms } => {
                let act = self.lapse(status);
                self.lease = Some(until);
                self.terms = terms;
                return act;
            }
            Notice::Watched => {}
            Notice::Warning(text) => {
                out::warn(&text);
                status.say("warning", json!({"text": text}));
            }
            // Recording is a part of each obligation: one that cannot be kept is not waived.
            Notice::Unrecorded(e) => return self.end(&format!("a finding cannot be recorded: {e}"), Act::Kill, status),
        }
        Act::GoOn
    }

    /// Takes in what the verifier says.
    pub(crate) fn told(&mut self, notice: events::Notice, status: &mut Status) -> Act {
        let event = match notice {
            events::Notice::Connected => {
                status.say("events", json!({"connected": true}));
                return Act::GoOn;
            }
            events::Notice::Lost { reason, .. } => {
                status.say("events", json!({"connected": false, "reason": reason}));
                return Act::GoOn;
            }
            events::Notice::Event(event) => event,
        };
        if event.run().is_some_and(|run| run != self.judge.run()) {
            return Act::GoOn;
        }
        let revoked = |what: &str, place: &str| Seen::now(Kind::Revoked, what, place);
        match event {
            HostEvent::Revoked { reason } => self.saw(&revoked("the verifier revoked this host", &reason), status),
            HostEvent::Suspended { reason } => self.saw(&revoked("the verifier suspended this host", &reason), status),
            HostEvent::WorkloadWithdrawn { workload } if workload == self.judge.workload() => {
                self.saw(&revoked("the verifier withdrew the workload", &workload.to_string()), status)
            }
            HostEvent::WorkloadWithdrawn { .. } => Act::GoOn,
            HostEvent::Admitted { .. } | HostEvent::Attest { .. } => {
                self.recorder.send(Record::Report);
                Act::GoOn
            }
            // An operator's word is no finding: nobody is asked.
            HostEvent::Freeze { reason, .. } => match self.freeze(self.terms.freeze_hold_s.unwrap_or(HOLD_S)) {
                Ok(()) => {
                    self.done(Reaction::Freeze, &format!("the verifier's operator: {reason}"), status);
                    Act::GoOn
                }
                Err(e) => self.end(&format!("it cannot be frozen: {e}"), Act::Kill, status),
            },
            HostEvent::Thaw { reason, .. } => {
                self.thaw(&reason, status);
                Act::GoOn
            }
            HostEvent::Stop { reason, .. } => {
                let act = if self.is_frozen() { Act::Kill } else { Act::Stop };
                self.end(&format!("the verifier's operator: {reason}"), act, status)
            }
        }
    }

    /// A reaction that no finding brought about.
    fn done(&self, reaction: Reaction, why: &str, status: &mut Status) {
        out::warn(&format!("{reaction}: {why}"));
        status.say("reaction", json!({"reaction": reaction, "reasons": [why]}));
        self.recorder.send(Record::Reaction(reaction));
        self.recorder.send(Record::Report);
    }

    /// Judges a finding and acts on it.
    pub(crate) fn saw(&mut self, seen: &Seen, status: &mut Status) -> Act {
        let finding = &seen.finding;
        let judgement = self.judge.judge(finding);
        let asked = judgement.reaction.or(self.terms.on_violation).unwrap_or(OnViolation::Stop);
        let reaction = match (judgement.accepted, finding.kind) {
            // What was changed is not read on, whatever a policy thinks of it.
            (_, Kind::Integrity) => asked.max(OnViolation::Stop),
            (true, _) => OnViolation::Alert,
            (false, _) => asked,
        };
        let (was_frozen, was_ending) = (self.is_frozen(), self.violation.is_some());
        // First what must not wait.
        let hold = judgement.freeze_hold_s.or(self.terms.freeze_hold_s).unwrap_or(HOLD_S);
        let (done, act) = match reaction {
            OnViolation::Alert => (Reaction::Alert, Act::GoOn),
            OnViolation::Freeze => match self.freeze(hold) {
                Ok(()) => (Reaction::Freeze, Act::GoOn),
                Err(e) => {
                    out::warn(&format!("the run cannot be frozen and is ended: {e}"));
                    (Reaction::Kill, Act::Kill)
                }
            },
            OnViolation::Stop if self.is_frozen() => (Reaction::Kill, Act::Kill),
            OnViolation::Stop => (Reaction::Stop, Act::Stop),
            OnViolation::Kill => (Reaction::Kill, Act::Kill),
        };
        if act == Act::Kill {
            let _ = self.group.kill();
        }
        let changes = match done {
            Reaction::Alert | Reaction::Thaw => false,
            Reaction::Freeze => !was_frozen,
            Reaction::Stop => !was_ending,
            Reaction::Kill => true,
        };
        self.tell(seen, (done, changes), (judgement.accepted, &judgement.reasons), status);
        if act != Act::GoOn {
            let words = judgement.reasons.iter().map(|reason| format!("  {reason}\n")).collect();
            let hint = "the run log and the verifier have the finding; the image's policy says what is done about it";
            let failure = Failure::new(Stage::Violation, format!("the run was ended: {finding}"), hint);
            self.violation.get_or_insert(Failure { words, ..failure });
        }
        act
    }

    fn freeze(&mut self, hold_s: u32) -> std::io::Result<()> {
        let until = Instant::now().checked_add(Duration::from_secs(hold_s.into()));
        let until = until.ok_or_else(|| std::io::Error::other("no such time"))?;
        if self.frozen.is_none() {
            self.group.freeze()?;
        }
        // Another finding does not prolong it.
        self.frozen = Some(self.frozen.map_or(until, |earlier| earlier.min(until)));
        Ok(())
    }

    fn thaw(&mut self, reason: &str, status: &mut Status) {
        if self.frozen.take().is_none() {
            return;
        }
        if let Err(e) = self.group.thaw() {
            out::warn(&format!("the run cannot be thawed: {e}"));
        }
        self.done(Reaction::Thaw, &format!("the verifier's operator: {reason}"), status);
    }

    fn tell(
        &mut self,
        seen: &Seen,
        (done, changes): (Reaction, bool),
        (accepted, reasons): (bool, &[String]),
        status: &mut Status,
    ) {
        let finding = &seen.finding;
        let severity = finding.kind.severity();
        // From when it was looked for to when it was acted on.
        let ms = u64::try_from(boot_time().saturating_sub(seen.at).as_millis()).unwrap_or(u64::MAX);
        let detail = json!({"finding": finding, "ms": ms, "severity": severity, "accepted": accepted, "reaction": done, "reasons": reasons});
        status.say("finding", detail.clone());
        if !accepted {
            out::warn(&format!("{finding}: {done}"));
        }
        let recorded = self.recorder.found(finding, done, changes);
        // What the verifier itself said, or cannot hear, needs no report; the end of a run brings its own.
        let known = matches!(finding.kind, Kind::AttestationDenied | Kind::LeaseExpired | Kind::Revoked);
        if recorded && !known && matches!(done, Reaction::Alert | Reaction::Freeze) {
            self.recorder.send(Record::Report);
        }
        if let Some(webhook) = &self.webhook {
            webhook.send(finding, detail);
        }
    }

    /// Ends the run for a reason that is no finding.
    fn end(&mut self, why: &str, act: Act, status: &mut Status) -> Act {
        let reaction = if act == Act::Kill { Reaction::Kill } else { Reaction::Stop };
        if act == Act::Kill {
            let _ = self.group.kill();
        }
        status.say("reaction", json!({"reaction": reaction, "reasons": [why]}));
        self.recorder.send(Record::Reaction(reaction));
        let hint = "supervisor doctor; the run log has what led to it";
        self.violation.get_or_insert_with(|| Failure::new(Stage::Violation, format!("the run was ended: {why}"), hint));
        act
    }
}
