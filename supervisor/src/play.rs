//! From the released key to the end of the workload.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_attest::events::Subscription;
use countersign_attest::lease::boot_time;
use countersign_attest::rest::without_lock;
use countersign_attest::{Config, Host};
use countersign_sif::SifError;
use countersign_wire::finding::Kind;
use countersign_wire::id::RunId;
use serde_json::json;

use crate::daemon::Caller;
use crate::ending::{Ending, Fate, TERM};
use crate::exit::{Failure, Stage};
use crate::group::Group;
use crate::monitor::{Act, Executions, Inbox, Judge, Notice, Outbox, Reactor, Scanner, Seen};
use crate::permit::{Prolonging, millis};
use crate::run::{Stop, died, ended_early};
use crate::runtime::Lending;
use crate::stat::if_there;
use crate::status::Status;
use crate::watch::{CONTINUE, Heard, KEYS, SUSPEND, Watch, ends};
use crate::{decryptor, out, stage};

/// How long a suspension waits for an attestation under way: a receipt is extended or given up within fifteen seconds.
const RECEIPT: Duration = Duration::from_secs(20);

/// A run's main thread, and what it needs.
pub(crate) struct Play<'a> {
    pub(crate) watch: &'a Watch,
    pub(crate) run: RunId,
    pub(crate) status: &'a mut Status,
    /// A terminal's keys are heard here, and are for all that the workload runs.
    pub(crate) has_keys: bool,
    /// The workload has a share of the user's terminal.
    pub(crate) lends: bool,
    /// That terminal, once the workload runs.
    pub(crate) lending: Option<Lending>,
    pub(crate) reactor: Reactor,
    pub(crate) scanner: Option<Scanner>,
    pub(crate) executions: Option<Executions>,
    pub(crate) group: Arc<Group>,
    /// The runtime makes the container in namespaces of its own, of what is mounted here.
    pub(crate) nested: Option<PathBuf>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) config: Config,
    pub(crate) outbox: Outbox<Notice>,
    /// On whose behalf, under the daemon.
    pub(crate) caller: Option<&'a Caller>,
    /// It stands still until its caller continues it.
    pub(crate) suspended: bool,
    /// The container's first process, while the workload waits for the word to run.
    pub(crate) waits: Option<u32>,
    /// Executions are announced.
    pub(crate) announced: bool,
    pub(crate) started: bool,
    pub(crate) prolonging: Prolonging,
    /// How the workload was asked to end.
    pub(crate) ending: Ending,
}

impl Play<'_> {
    /// Plays it; the workload's exit code.
    pub(crate) fn play(&mut self) -> Result<u8, Stop> {
        self.prolong();
        // One that has ended has said why, and the decryptor before it.
        let _ = self.watch.stage.send(&stage::Word::Start, &[]);
        loop {
            // As what was heard wants it.
            self.prolong();
            let grace = self.ending.left(Instant::now());
            let beat = self.prolonging.patience(boot_time());
            let look = self.lending.as_ref().map(Lending::patience);
            let patience = grace.into_iter().chain(self.reactor.patience()).chain(look).chain([beat]).min();
            let heard = self.watch.next(patience)?;
            // Before anything is done: whoever waits for a read can be neither frozen nor ended.
            self.prolong();
            if let Some(code) = self.hear(heard)? {
                return Ok(code);
            }
            let due = self.reactor.tick(self.status);
            self.act(due)?;
            self.look_at_lookers()?;
            self.look_at_terminal()?;
            // Whatever was heard: a workload that keeps us busy has no longer grace.
            if self.ending.left(Instant::now()) == Some(Duration::ZERO) {
                return Err(self.because(ended_early()));
            }
        }
    }

    /// Lets the decryptor answer reads for a while. One that is stopped reads no word, and answers nothing.
    fn prolong(&mut self) {
        if let Some(until) = self.prolonging.next(boot_time(), self.reactor.lease()) {
            let _ = self.watch.decryptor.offer(&decryptor::Word::Until(millis(until)));
        }
    }

    /// What ended the run, if it is not what seems to have.
    fn because(&mut self, failure: Failure) -> Stop {
        self.reactor.violation().map_or(Stop::Failed(failure), |violation| Stop::Violation(violation.clone()))
    }

    fn hear(&mut self, heard: Heard) -> Result<Option<u8>, Stop> {
        match heard {
            Heard::Decryptor(report) => self.decryptor(report)?,
            Heard::Stage(report) => return self.stage(report.map(|(report, _)| report)),
            Heard::Monitor(notice) => {
                let watched = matches!(notice, Notice::Watched);
                let blind = matches!(&notice, Notice::Saw(seen) if seen.finding.kind == Kind::MonitorBlind);
                let act = self.reactor.hear(notice, self.status);
                self.act(act)?;
                if watched || blind {
                    self.settle(watched)?;
                }
            }
            Heard::Event(said) => {
                let act = self.reactor.told(said, self.status);
                self.act(act)?;
            }
            Heard::Signal(number) => self.signal(number)?,
            Heard::Nothing => {}
        }
        Ok(None)
    }

    /// The workload decides what it makes of its user's signals.
    fn signal(&mut self, number: u8) -> Result<(), Stop> {
        if number == CONTINUE {
            if std::mem::take(&mut self.suspended) {
                return self.go_on();
            }
            // The user's shell may have given it the terminal.
            self.lending.as_mut().map(Lending::look);
        }
        // Also one that is frozen.
        let deaf = !self.started || self.suspended || self.reactor.is_frozen();
        if deaf && !ends(number) {
            return Ok(());
        }
        if number == SUSPEND {
            return self.suspend(SUSPEND.into(), false);
        }
        if KEYS.contains(&number) && self.has_keys && !deaf {
            return self.watch.stage.send(&stage::Word::Key(number), &[]).map_err(|_| ended_early().into());
        }
        if deaf || self.ending.signal(number, Instant::now()) == Fate::Kills {
            let violation = self.reactor.violation();
            return Err(violation.map_or(Stop::Signal(number), |violation| Stop::Violation(violation.clone())));
        }
        self.status.say("signal", json!({"signal": number}));
        self.send(number)
    }

    /// The workload need not wait any longer: it is `watched`, or policy lets it run without that.
    fn settle(&mut self, watched: bool) -> Result<(), Stop> {
        if self.reactor.violation().is_some() {
            return Ok(());
        }
        let Some(init) = self.waits.take() else { return Ok(()) };
        // A stage that has ended says why when it is listened to.
        let _ = self.watch.stage.send(&stage::Word::Watched, &[]);
        self.started = true;
        self.lending = self.lends.then(|| Lending::new(init, self.nested.is_some()));
        let suspended = self.watch.pass();
        self.status.say("mounted", json!({}));
        let group = self.group.words();
        let watched = match (watched, self.announced) {
            (true, true) => "every execution, and the rest at intervals",
            (true, false) => "at intervals",
            (false, _) => "not all: the findings say what is not",
        };
        self.status.say("started", json!({"run": self.run, "group": group, "watched": watched, "init": init}));
        // The client has stopped already.
        if suspended && self.caller.is_some() { self.suspend(SUSPEND.into(), false) } else { Ok(()) }
    }

    /// A thread of the monitor that does not come back is a finding; nothing here waits for it.
    fn look_at_lookers(&mut self) -> Result<(), Stop> {
        for seen in self.scanner.as_mut().map(Scanner::overdue).unwrap_or_default() {
            let act = self.reactor.saw(&seen, self.status);
            self.act(act)?;
            self.settle(false)?;
        }
        Ok(())
    }

    /// A key that stops what has the terminal is not heard here, and nobody else waits for what it stops.
    fn look_at_terminal(&mut self) -> Result<(), Stop> {
        if self.suspended || self.reactor.is_frozen() {
            return Ok(());
        }
        // Whoever shares the terminal with this process would be stopped by it too.
        self.lending.as_mut().and_then(Lending::look).map_or(Ok(()), |signal| self.suspend(signal, true))
    }

    /// Stands still with its workload, which would go on unwatched otherwise, until its user continues it; the terminal is then the workload's again.
    fn suspend(&mut self, signal: i32, others: bool) -> Result<(), Stop> {
        if let Err(e) = self.group.freeze() {
            out::warn(&format!("the run cannot be suspended: {e}"));
            let _ = self.group.thaw();
            return Ok(());
        }
        self.status.say("signal", json!({"signal": signal}));
        if let Some(caller) = self.caller {
            // It is the client that stops; this process goes on to watch.
            self.suspended = true;
            if others {
                caller.suspend();
            }
            return Ok(());
        }
        self.lending.iter_mut().for_each(Lending::take);
        // Not while the host's other programs would wait for it.
        match without_lock(RECEIPT, || countersign_sys::suspend(signal, others)) {
            Some(Ok(())) => {}
            Some(Err(e)) => out::warn(&format!("the run cannot be suspended: {e}")),
            None => out::warn("the run is not suspended: its attestation takes too long; try again"),
        }
        // What is due by now comes first.
        self.prolong();
        let due = self.reactor.tick(self.status);
        self.act(due)?;
        self.go_on()
    }

    /// Goes on after a suspension.
    fn go_on(&mut self) -> Result<(), Stop> {
        if self.reactor.is_frozen() {
            return Ok(());
        }
        self.group.thaw().map_err(|e| Failure::new(Stage::Other, format!("the run cannot be continued: {e}"), ""))?;
        self.lending.iter().for_each(Lending::give_back);
        Ok(())
    }

    fn send(&self, number: u8) -> Result<(), Stop> {
        self.watch.stage.send(&stage::Word::Signal(number), &[]).map_err(|_| ended_early().into())
    }

    fn act(&mut self, act: Act) -> Result<(), Stop> {
        match act {
            Act::GoOn => Ok(()),
            Act::Stop if self.started => {
                if self.ending.stop(Instant::now()) {
                    self.send(TERM)?;
                }
                Ok(())
            }
            Act::Stop | Act::Kill => Err(self.because(ended_early())),
        }
    }

    fn decryptor(&mut self, report: Option<decryptor::Report>) -> Result<(), Stop> {
        match report {
            Some(decryptor::Report::Integrity { block, level }) => Err(self.changed(block, level)),
            Some(decryptor::Report::Failed(failure)) => Err(self.because(failure)),
            Some(decryptor::Report::Released(_) | decryptor::Report::Forgotten) | None => Err(self.because(died())),
        }
    }

    /// Fail closed: an image that was changed is not read on. The finding is recorded and reported as any other.
    fn changed(&mut self, block: u64, level: usize) -> Stop {
        let (what, place) =
            ("a block of the image is not what its owner signed", format!("block {block}, level {level}"));
        let _ = self.reactor.saw(&Seen::now(Kind::Integrity, what, &place), self.status);
        Stop::Failed(SifError::Integrity { block, level }.into())
    }

    /// What the decryptor has found wrong with the image, if it has: it explains why a workload failed.
    fn found(&mut self) -> Option<Stop> {
        match self.watch.explanation()? {
            decryptor::Report::Integrity { block, level } => Some(self.changed(block, level)),
            decryptor::Report::Failed(failure) => Some(failure.into()),
            decryptor::Report::Released(_) | decryptor::Report::Forgotten => None,
        }
    }

    fn stage(&mut self, report: Option<stage::Report>) -> Result<Option<u8>, Stop> {
        match report {
            Some(stage::Report::Started(init)) => self.started(init)?,
            Some(stage::Report::Ended(code)) => {
                self.last_findings();
                return match (self.found(), self.reactor.violation()) {
                    (Some(found), _) => Err(found),
                    (None, Some(violation)) => Err(Stop::Violation(violation.clone())),
                    (None, None) => Ok(Some(code)),
                };
            }
            Some(stage::Report::Failed(failure)) => return Err(self.found().unwrap_or_else(|| self.because(failure))),
            Some(stage::Report::Fuse(_)) | None => {
                return Err(self.found().unwrap_or_else(|| self.because(ended_early())));
            }
        }
        Ok(None)
    }

    /// What the workload did last is judged and recorded too, though there is nobody left to be stopped.
    fn last_findings(&mut self) {
        let Some(mut scanner) = self.scanner.take() else { return };
        scanner.stop();
        let mut over = false;
        while !over {
            over = scanner.has_ended();
            for seen in scanner.overdue() {
                let _ = self.reactor.saw(&seen, self.status);
            }
            while let Some(notice) = self.watch.monitor.as_ref().and_then(Inbox::take) {
                let _ = self.reactor.hear(notice, self.status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// There is a container. Of the built-in runtime its workload waits until it is watched; others have theirs run at once.
    fn started(&mut self, init: u32) -> Result<(), Stop> {
        let other = |e: std::io::Error| Failure::new(Stage::Other, e.to_string(), "");
        self.announced = self.executions.is_some();
        self.waits = Some(init);
        // A container that has ended already has nothing to be watched; the stage says how it ended.
        if if_there(self.group.begins_with(init)).map_err(other)?.is_some() {
            let (group, judge) = (Arc::clone(&self.group), Arc::clone(&self.judge));
            let scanner = Scanner::start(
                group,
                self.nested.as_deref(),
                judge,
                self.executions.take(),
                self.config.monitor_interval,
                self.outbox.clone(),
            );
            self.scanner = Some(scanner.map_err(other)?);
        }
        if self.nested.is_some() {
            self.settle(true)?;
        }
        let subscription = Subscription::start(&Host::open(self.config.clone())?)?;
        let _ = self.watch.events.set(subscription);
        Ok(())
    }
}
