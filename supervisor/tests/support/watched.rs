//! Runs under a policy that judges findings, and what their monitor says.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command};
use std::time::Duration;

use countersign_wire::runlog::{Event, RunLog};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::Scene;
use super::processes::Family;

/// How long a frozen run of such a policy stands still (seconds): time enough to look at it.
pub(crate) const HOLD: u32 = 10;

/// A workload policy: these terms, this reaction to a finding of any kind but those that it accepts.
pub(crate) fn policy(lease_s: u32, reattest_s: u32, reaction: &str, accepted: &[&str]) -> String {
    format!(
        r#"package countersign.workload

reaction := {{"lease_s": {lease_s}, "reattest_s": {reattest_s}, "on_violation": "{reaction}", "freeze_hold_s": {HOLD}}}

accepted := {accepted:?}

default verdict := {{
	"allow": false,
	"reasons": [{{"id": "not-accepted", "message": "this is no business of the workload"}}],
	"obligations": {{"on_violation": "{reaction}", "freeze_hold_s": {HOLD}}},
}}

verdict := {{"allow": true, "reasons": [], "obligations": reaction}} if input.purpose == "release"

verdict := {{"allow": true, "reasons": [], "obligations": {{}}}} if {{
	input.purpose == "run"
	every finding in input.run.findings {{
		finding.kind in accepted
	}}
}}
"#
    )
}

/// A run whose workload has said `ready`, with the lines of its status.
pub(crate) struct Watched {
    pub(crate) child: Child,
    stderr: BufReader<ChildStderr>,
    pub(crate) stdout: BufReader<ChildStdout>,
    words: String,
    pub(crate) started: Value,
}

impl Watched {
    pub(crate) fn new(scene: &Scene, name: &str, policy: &str, script: &str) -> Self {
        let image = scene.with_policy(name, policy);
        Self::of(&mut scene.command("exec", &["--status-fd", "2"], &image, &["sh", "-c", script]))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let mut run = Self::begun(command);
        run.started = run.stage("started");
        let line = run.line();
        if line != "ready\n" {
            panic!("the workload did not start: {line}{:?}", run.end());
        }
        run
    }

    /// One whose workload need not run yet.
    pub(crate) fn begun(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stderr, stdout, words: String::new(), started: Value::Null }
    }

    /// Waits for a status line; its detail.
    #[track_caller]
    pub(crate) fn stage(&mut self, stage: &str) -> Value {
        self.status(|line| line["stage"] == stage)["detail"].clone()
    }

    /// Waits until it hears its verifier, or does not any more: what it said of that last may have been said before now.
    #[track_caller]
    pub(crate) fn connected(&mut self, now: bool) {
        let is = |line: &Value| line["stage"] == "events" && line["detail"]["connected"] == now;
        let said = |line: &str| serde_json::from_str(line).ok().filter(|line: &Value| line["stage"] == "events");
        if !self.words.lines().rev().find_map(said).is_some_and(|last| is(&last)) {
            self.status(is);
        }
    }

    /// Waits for a finding of a kind.
    #[track_caller]
    pub(crate) fn finding(&mut self, kind: &str) -> Value {
        self.status(|line| line["stage"] == "finding" && line["detail"]["finding"]["kind"] == kind)["detail"].clone()
    }

    #[track_caller]
    pub(crate) fn status(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "it does not come:\n{}", self.words);
            self.words.push_str(&line);
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            if wanted(&value) {
                return value;
            }
        }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(i32::try_from(self.child.id()).unwrap())
    }

    /// Where its cgroup is; none for a process tree.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        self.started["group"].as_str().unwrap().strip_prefix("cgroup ").map(PathBuf::from)
    }

    /// Whether all processes of the workload stand still.
    pub(crate) fn is_frozen(&self) -> bool {
        match self.cgroup() {
            Some(path) => std::fs::read_to_string(path.join("cgroup.events")).unwrap().contains("frozen 1"),
            None => {
                let init = i32::try_from(self.started["init"].as_u64().unwrap()).unwrap();
                Family::of(init).0.iter().all(|process| process.state() == 'T')
            }
        }
    }

    /// The run's id.
    pub(crate) fn id(&self) -> String {
        self.started["run"].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// A line for the workload.
    pub(crate) fn say(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The workload's next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Whether the workload says something within a while.
    pub(crate) fn says(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.stdout.get_ref(), PollFlags::IN)];
        !self.stdout.buffer().is_empty() || poll(&mut fds, Some(&Timespec::try_from(patience).unwrap())).unwrap() > 0
    }

    /// Waits for its end: exit code and all that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        self.words.push_str(&rest);
        (self.child.wait().unwrap().code(), std::mem::take(&mut self.words))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The run log of a host, but for a line that is just being written.
pub(crate) fn run_log(scene: &Scene) -> RunLog {
    let bytes = std::fs::read(scene.path("host/run.log")).unwrap();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    RunLog::parse(&bytes[..whole]).unwrap()
}

/// Findings and reactions in the run log of a host.
pub(crate) fn logged(scene: &Scene) -> Vec<String> {
    let log = run_log(scene);
    let say = |event: &Event| match event {
        Event::Finding { finding, .. } => Some(finding.kind.to_string()),
        Event::Reaction { reaction, .. } => Some(reaction.to_string()),
        Event::End { status, .. } => Some(status.split(':').next().unwrap().to_owned()),
        Event::Receipt { .. } | Event::Start { .. } | Event::Resume { .. } | Event::Other { .. } => None,
    };
    log.entries.iter().filter_map(|entry| say(&entry.event)).collect()
}
