//! The thread that looks: at intervals, and whenever the kernel announces an execution.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind, Text};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::executions::Executions;
use super::inbox::Outbox;
use super::judge::Judge;
use super::process::Process;
use super::scan::Baseline;
use super::{Notice, Seen, now_ms};
use crate::group::Group;

/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_secs(1);
/// A look is followed by at least this many times what it took: a quarter of a percent of one core.
const SHARE: u32 = 400;
/// How often to look for the workload's first process.
const BIRTH: Duration = Duration::from_millis(2);
/// That look is for the run's cgroup, but for one in so many: a runtime may have moved the process elsewhere.
const EVERYWHERE: u32 = 16;
/// A look for it is followed by at least this many times what it took: the runtime needs the cores to start it.
const BIRTH_SHARE: u32 = 4;
/// How long it may take until there is something to look at: with the built-in runtime the run is ended then, whatever hides its first process; a
/// runtime may keep a container in which nothing runs, so with another one it is said.
const SET_UP: Duration = Duration::from_secs(30);
/// Findings that are remembered, so that each is told once; then they are forgotten, and told again.
const REMEMBERED: usize = 4096;

/// The thread's handle; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Scanner {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    /// Starts it. `longest` is the longest time between two looks.
    ///
    /// # Errors
    /// The system call fails.
    pub(crate) fn start(
        group: Arc<Group>,
        nested: bool,
        judge: Arc<Judge>,
        executions: Option<Executions>,
        longest: Duration,
        outbox: Outbox<Notice>,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let told = HashSet::new();
        let mut work = Work { stop: Arc::clone(&stop), group, nested, executions, longest, outbox, told };
        let thread = std::thread::spawn(move || {
            // While the workload's own first steps are waited for anyway.
            let _ = judge.prepare();
            if let Err(e) = work.go_on() {
                let what = format!("the run cannot be watched: {e}");
                work.outbox.send(Notice::Unrecorded(what));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Scanner {
    /// Has it tell what was announced until now, and end; it may have to be listened to until it has.
    pub(crate) fn stop(&self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is one finding, told again.
type Told = (Kind, Text, Option<Text>);

struct Work {
    stop: Arc<OwnedFd>,
    group: Arc<Group>,
    /// The runtime makes the container in namespaces of its own.
    nested: bool,
    executions: Option<Executions>,
    longest: Duration,
    outbox: Outbox<Notice>,
    told: HashSet<Told>,
}

impl Work {
    fn go_on(&mut self) -> io::Result<()> {
        let begun = boot_time();
        let mut said = false;
        let mut looks = 0_u32;
        let mut baseline = loop {
            let started = Instant::now();
            let everywhere = looks.is_multiple_of(EVERYWHERE);
            match Baseline::take(&self.group, self.nested, everywhere) {
                Ok(Some(baseline)) => break baseline,
                Ok(None) => looks = looks.wrapping_add(1),
                // It has ended before it was looked at.
                Err(_) if self.gone() => return Ok(()),
                Err(e) => return Err(e),
            }
            if !said && boot_time().saturating_sub(begun) > SET_UP {
                if !self.nested && !self.gone() {
                    return Err(io::Error::other("its first process shows itself to nobody"));
                }
                said = true;
                self.outbox.send(Notice::Warning("nothing in the container can be watched yet".into()));
            }
            if self.wait(started.elapsed().saturating_mul(BIRTH_SHARE).max(BIRTH))? {
                return Ok(());
            }
        };
        if let Some(Err(e)) = self.executions.as_ref().map(|executions| executions.watch(&baseline)) {
            let what = format!("executions cannot all be watched, looking at intervals only: {e}");
            self.outbox.send(Notice::Warning(what));
            self.executions = None;
        }
        loop {
            let (started, at) = (Instant::now(), boot_time());
            match baseline.look(&self.group, now_ms()) {
                Ok(found) => self.tell(found, at),
                Err(_) if self.gone() => return Ok(()),
                Err(e) => return Err(e),
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
        self.group.init().is_some_and(|init| Process::of(init).is_none_or(Process::is_ending))
    }

    /// Waits, and tells what the kernel announces meanwhile; true when it is over.
    fn wait(&mut self, time: Duration) -> io::Result<bool> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        if let Some(executions) = &self.executions {
            fds.push(PollFd::from_borrowed_fd(executions.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let at = boot_time();
        if ready.get(1) == Some(&true)
            && let Some(found) = self.executions.as_ref().map(|executions| executions.take(now_ms()))
        {
            self.tell(found, at);
        }
        Ok(ready.first() == Some(&true))
    }

    fn tell(&mut self, found: Vec<Finding>, at: Duration) {
        if self.told.len() > REMEMBERED {
            self.told.clear();
        }
        for finding in found {
            // Events of the machine happen again; what a process is, is so until it ends.
            // An execution is announced with the file's place, and seen later with its mount's: one finding.
            let place = if finding.kind == Kind::ProcessNotInImage { Text::default() } else { finding.place.clone() };
            let again = finding.pid.is_some() && !self.told.insert((finding.kind, place, finding.executable.clone()));
            if !again {
                self.outbox.send(Notice::Saw(Seen { finding, at }));
            }
        }
    }
}
