//! The thread that looks: at intervals, and whenever the kernel announces an execution.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind, Text};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::executions::Executions;
use super::inbox::Outbox;
use super::judge::Judge;
use super::mounts::escape;
use super::process::Process;
use super::scan::{Awaited, Baseline};
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
        nested: Option<&Path>,
        judge: Arc<Judge>,
        executions: Option<Executions>,
        longest: Duration,
        outbox: Outbox<Notice>,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let told = HashSet::new();
        let nested = nested.map(|place| escape(&place.to_string_lossy()));
        let mut work = Work { stop: Arc::clone(&stop), group, nested, executions, longest, outbox, told };
        let thread = std::thread::spawn(move || {
            // While the workload's own first steps are waited for anyway.
            let _ = judge.prepare();
            if let Err(e) = work.go_on() {
                work.blind(&format!("nobody looks any more: {e}"));
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
    /// The runtime makes the container in namespaces of its own, of what is mounted here.
    nested: Option<String>,
    executions: Option<Executions>,
    longest: Duration,
    outbox: Outbox<Notice>,
    told: HashSet<Told>,
}

impl Work {
    fn go_on(&mut self) -> io::Result<()> {
        let begun = boot_time();
        let (mut said, mut why) = (false, "its first process shows itself to nobody".to_owned());
        let (mut looks, mut awaited) = (0_u32, Awaited::default());
        let [nested, builtin] = BIRTH;
        let birth = if self.nested.is_some() { nested } else { builtin };
        let mut baseline = loop {
            let everywhere = looks.is_multiple_of(EVERYWHERE);
            looks = looks.wrapping_add(1);
            match Baseline::take(&self.group, self.nested.as_deref(), &mut awaited, everywhere) {
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
                self.blind(&format!(
                    "nothing in the container can be watched {} s after its start: {why}",
                    SET_UP.as_secs()
                ));
            }
            if self.wait(birth)? {
                return Ok(());
            }
        };
        let unwatched = self.executions.as_ref().map(|executions| executions.watch(&baseline)).unwrap_or_default();
        if !unwatched.is_empty() {
            let what = format!("executions are seen at intervals only in {}", unwatched.join(", "));
            self.outbox.send(Notice::Warning(what));
        }
        loop {
            let (started, at) = (Instant::now(), boot_time());
            match baseline.look(&self.group, now_ms()) {
                Ok(found) => {
                    self.tell(found, at);
                    // Whoever cannot look later has to say it again.
                    self.told.retain(|(kind, ..)| *kind != Kind::MonitorBlind);
                }
                Err(_) if self.gone() => return Ok(()),
                Err(e) => self.blind(&format!("the run cannot be looked at: {e}")),
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

    /// Says that what happens is not seen. The policy judges that too.
    fn blind(&mut self, what: &str) {
        self.tell(vec![Finding::new(Kind::MonitorBlind, what, "", now_ms())], boot_time());
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
            let blind = finding.kind == Kind::MonitorBlind;
            let place = if blind { &finding.what } else { &finding.place };
            let place = if finding.kind == Kind::ProcessNotInImage { Text::default() } else { place.clone() };
            let once = finding.pid.is_some() || blind;
            let again = once && !self.told.insert((finding.kind, place, finding.executable.clone()));
            if !again {
                self.outbox.send(Notice::Saw(Seen { finding, at }));
            }
        }
    }
}
