//! The threads that look: one at intervals, and one whenever the kernel announces an execution.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_attest::lease::boot_time;
use countersign_wire::finding::Kind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::executions::{Executions, Marked};
use super::inbox::{Outbox, channel};
use super::judge::Judge;
use super::listener::Listener;
use super::mounts::escape;
use super::process::Process;
use super::pulse::{LONGEST, Patience, Pulse};
use super::scan::{Awaited, Baseline};
use super::teller::Teller;
use super::{Notice, Seen, now_ms};
use crate::group::Group;

/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_secs(1);
/// A look is followed by at least this many times what it took: a quarter of a percent of one core.
const SHARE: u32 = 400;
/// How often to look for the workload's first process, with a runtime of its own and without.
const BIRTH: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(2)];
/// That look is for what stirs in the run's cgroup, but for one in so many: a runtime may have moved the process elsewhere.
const EVERYWHERE: u32 = 12;
/// How long it may take until there is something to look at: then the monitor is blind, whatever hides the container's first process.
const SET_UP: Duration = Duration::from_secs(30);
/// How long the end of a run waits for a thread that is in the middle of something.
const LEAVE: Duration = Duration::from_secs(1);

/// The threads' handle; dropped, they end.
#[derive(Debug)]
pub(crate) struct Scanner {
    stop: Arc<OwnedFd>,
    threads: Vec<Thread>,
}

/// One of them.
#[derive(Debug)]
struct Thread {
    /// What it looks at, for people.
    at: &'static str,
    thread: Option<JoinHandle<()>>,
    patience: Patience,
}

impl Thread {
    /// `work` does by its pulse what may not come back.
    fn start(at: &'static str, pulse: &Arc<Pulse>, work: impl FnOnce() + Send + 'static) -> Self {
        let patience = Patience::with(Arc::clone(pulse), Instant::now());
        Self { at, thread: Some(std::thread::spawn(work)), patience }
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What it does not see, because it does not come back.
    fn overdue(&mut self) -> Option<Seen> {
        if self.has_ended() {
            let fault = self.thread.take().is_some_and(|thread| thread.join().is_err());
            return fault
                .then(|| Seen::now(Kind::MonitorBlind, "nobody looks any more: a fault of the monitor's", self.at));
        }
        let what = format!("it takes more than {} s to look: a file system may not answer", LONGEST.as_secs());
        self.patience.ends(Instant::now()).then(|| Seen::now(Kind::MonitorBlind, &what, self.at))
    }
}

impl Scanner {
    /// Starts them. `longest` is the longest time between two looks.
    ///
    /// # Errors
    /// The system call fails.
    pub(crate) fn start(
        group: Arc<Group>,
        nested: Option<&Path>,
        judge: Arc<Judge>,
        executions: Option<Executions>,
        longest: Duration,
        outbox: Outbox<Notice>,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let nested = nested.map(|place| escape(&place.to_string_lossy()));
        let (teller, pulse) = (Teller::new(outbox), Arc::new(Pulse::default()));
        let (mut threads, mut marks) = (Vec::new(), None);
        if let Some(executions) = executions {
            let (outbox, marked) = channel()?;
            marks = Some(outbox);
            let (stop, teller, pulse) = (Arc::clone(&stop), teller.clone(), Arc::new(Pulse::default()));
            let listener = Listener { stop, executions, marked, teller, pulse: Arc::clone(&pulse) };
            threads.push(Thread::start("executions", &pulse, || listener.run()));
        }
        let work = Work { stop: Arc::clone(&stop), group, nested, marks, longest, teller, pulse: Arc::clone(&pulse) };
        threads.push(Thread::start("looks", &pulse, move || {
            if let Err(e) = work.go_on(&judge) {
                work.teller.blind(&format!("nobody looks any more: {e}"));
            }
        }));
        Ok(Self { stop, threads })
    }

    /// Has them tell what was announced until now, and end; they may have to be listened to until they have.
    pub(crate) fn stop(&self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }

    /// Those of them that do not come back, each told once.
    pub(crate) fn overdue(&mut self) -> Vec<Seen> {
        self.threads.iter_mut().filter_map(Thread::overdue).collect()
    }

    /// Whether all have ended that ever will.
    pub(crate) fn has_ended(&mut self) -> bool {
        let now = Instant::now();
        self.threads.iter_mut().all(|thread| thread.has_ended() || thread.patience.is_over(now))
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.stop();
        let asked = Instant::now();
        while !self.threads.iter().all(Thread::has_ended) && asked.elapsed() < LEAVE {
            std::thread::sleep(Duration::from_millis(1));
        }
        // One that waits for a file system is left behind: it holds nothing that anybody waits for.
        for thread in self.threads.iter_mut().filter(|thread| thread.has_ended()) {
            if let Some(thread) = thread.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

struct Work {
    stop: Arc<OwnedFd>,
    group: Arc<Group>,
    /// The runtime makes the container in namespaces of its own, of what is mounted here.
    nested: Option<String>,
    /// Who listens for executions, if anybody does, is told where.
    marks: Option<Outbox<Marked>>,
    longest: Duration,
    teller: Teller,
    pulse: Arc<Pulse>,
}

impl Work {
    fn go_on(&self, judge: &Judge) -> io::Result<()> {
        let begun = boot_time();
        // While a container is made that has to be waited for anyway; a workload that waits for this thread does not wait for that too.
        if self.nested.is_some() {
            let _ = judge.prepare();
        }
        let (mut said, mut why) = (false, "its first process shows itself to nobody".to_owned());
        let (mut looks, mut awaited) = (0_u32, Awaited::default());
        let [nested, builtin] = BIRTH;
        let birth = if self.nested.is_some() { nested } else { builtin };
        let mut baseline = loop {
            let everywhere = looks.is_multiple_of(EVERYWHERE);
            looks = looks.wrapping_add(1);
            let taken = || Baseline::take(&self.group, self.nested.as_deref(), &mut awaited, everywhere);
            match self.pulse.step(taken) {
                Ok(Some(baseline)) => break baseline,
                // It has ended before it was looked at.
                Ok(None) | Err(_) if self.gone() => return Ok(()),
                Ok(None) => {}
                // What fails while the container is made may do better a moment later.
                Err(e) => {
                    why = e.to_string();
                    awaited.look_again();
                }
            }
            if !said && boot_time().saturating_sub(begun) > SET_UP {
                said = true;
                self.teller.blind(&format!(
                    "nothing in the container can be watched {} s after its start: {why}",
                    SET_UP.as_secs()
                ));
            }
            if self.wait(birth)? {
                return Ok(());
            }
        };
        // Who listens says so when he does; where nobody does, looks are all there is.
        if !self.marks.as_ref().is_some_and(|marks| marks.send(Marked::of(&baseline))) {
            self.teller.watched();
        }
        let _ = judge.prepare();
        loop {
            let (started, at) = (Instant::now(), boot_time());
            let mut found = Vec::new();
            let looked = self.pulse.step(|| baseline.look(&self.group, now_ms(), &mut found));
            self.teller.tell(found, at);
            match looked {
                Ok(()) => self.teller.sees(),
                Err(_) if self.gone() => return Ok(()),
                Err(e) => self.teller.blind(&format!("the run cannot be looked at: {e}")),
            }
            let pause = started.elapsed().saturating_mul(SHARE).clamp(SHORTEST.min(self.longest), self.longest);
            let next = Instant::now().checked_add(pause).unwrap_or_else(Instant::now);
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                if self.wait(left)? {
                    return Ok(());
                }
            }
        }
    }

    /// Whether the run's first process has ended, or is about to: then it has no namespaces to show any more, and is still there for a moment.
    fn gone(&self) -> bool {
        let ended = |init| matches!(Process::of(init), Ok(process) if process.is_none_or(Process::is_ending));
        self.group.init().is_some_and(ended)
    }

    /// Waits; true when it is over.
    fn wait(&self, time: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
        match poll(&mut fds, Some(&time)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
