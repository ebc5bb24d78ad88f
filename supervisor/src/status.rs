//! `--status-fd`: JSON lines about the stages of a run, `{"stage": NAME, "detail": {...}}`.
//!
//! | stage | detail |
//! |---|---|
//! | `verified` | `workload`, `signer` |
//! | `released` | `verdict`, `lease_s`, `runtime_flags` (that policy demands), `tpm_commands`, `ms`, `locked` (which memory is kept out of swap) |
//! | `mounted` | - |
//! | `started` | `run`, `init` (the container's first process), `group` (its cgroup, or why there is none), `watched` (what is seen of it) |
//! | `events` | `connected`: the verifier's own word is heard, or not (`reason`) |
//! | `finding` | `finding`, `severity`, `accepted` (by the image's policy), `reaction`, `reasons`, `ms` from the look to the reaction, by CLOCK_BOOTTIME |
//! | `reaction` | `reaction` that no finding brought about, `reasons` |
//! | `warning` | `text` |
//! | `left-out` | `lines`: how many were not read in time, here |
//! | `signal` | `signal`: passed on to the workload |
//! | `ended` | `code`: the workload's own, or 128 + the signal that ended the run |
//! | `failed` | `code` (200 to 219), `stage`, `error`, `words`, `hint` |

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::exit::{Failure, Stage};

/// Lines that wait for somebody to read them; those that came first are left out when there are more.
const LINES: usize = 256;
/// How long the last lines of a run may wait.
const FLUSH: Duration = Duration::from_secs(2);

/// Where the lines go; nowhere without the option.
pub(crate) struct Status {
    lines: Option<Lines>,
    listener: Option<Listener>,
}

/// Somebody in this program who wants to know.
pub(crate) type Listener = Box<dyn FnMut(&str, &Value)>;

impl Status {
    /// Takes over an inherited descriptor: helpers and the workload do not get it.
    pub(crate) fn open(number: Option<u32>) -> Result<Self, Failure> {
        let bad = |e: std::io::Error| {
            Failure::new(
                Stage::Usage,
                format!("--status-fd: {e}"),
                "give an open descriptor, for example --status-fd 3 3>FILE",
            )
        };
        let file = number.map(|number| countersign_sys::inherited_descriptor(number).map(File::from));
        Ok(Self { lines: file.transpose().map_err(bad)?.map(Lines::to), listener: None })
    }

    /// To a listener only.
    pub(crate) fn to(listener: Listener) -> Self {
        Self { lines: None, listener: Some(listener) }
    }

    /// One line. Nobody reading it is no reason to end a run, nor to wait: who watches the run must not.
    pub(crate) fn say(&mut self, stage: &str, detail: Value) {
        if let Some(listener) = &mut self.listener {
            listener(stage, &detail);
        }
        if let Some(lines) = &self.lines {
            lines.put(line(stage, &detail));
        }
    }

    /// The last line of a run that failed.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        let mut detail = json!(failure);
        if let Some(fields) = detail.as_object_mut() {
            fields.insert("code".into(), failure.stage.code().into());
        }
        self.say("failed", detail);
    }
}

fn line(stage: &str, detail: &Value) -> String {
    format!("{}\n", json!({"stage": stage, "detail": detail}))
}

/// Lines on their way, and the thread that writes them. Dropped, it gives the last ones a moment.
struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    left_out: u64,
    /// No more lines come.
    last: bool,
    /// All were written, or nobody can read them any more.
    written: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to write next; `None` at the end.
    fn next(&self) -> Option<String> {
        let ready = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.last;
        let mut waiting = self.changed.wait_while(self.lock(), ready).unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut waiting.left_out) {
            0 => waiting.lines.pop_front(),
            n => Some(line("left-out", &json!({"lines": n}))),
        }
    }
}

impl Lines {
    fn to(mut file: File) -> Self {
        let shared = Arc::<Shared>::default();
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Some(line) = writer.next() {
                if file.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
            writer.lock().written = true;
            writer.changed.notify_all();
        });
        Self(shared)
    }

    fn put(&self, line: String) {
        let mut waiting = self.0.lock();
        if waiting.written {
            return;
        }
        if waiting.lines.len() >= LINES {
            waiting.lines.pop_front();
            waiting.left_out = waiting.left_out.saturating_add(1);
        }
        waiting.lines.push_back(line);
        self.0.changed.notify_all();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.last = true;
        self.0.changed.notify_all();
        // A thread that hangs in its writing ends with the program.
        drop(self.0.changed.wait_timeout_while(waiting, FLUSH, |waiting| !waiting.written));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use super::*;

    fn status() -> (std::io::PipeReader, Status) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader, Status { lines: Some(Lines::to(File::from(OwnedFd::from(writer)))), listener: None })
    }

    #[test]
    fn all_lines_for_who_reads() {
        let (mut reader, mut status) = status();
        for n in 0..3 {
            status.say("signal", json!({"signal": n}));
        }
        drop(status);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("{\"detail\":{\"signal\":0},\"stage\":\"signal\"}\n"), "{text}");
    }

    #[test]
    fn a_reader_who_does_not_read_holds_nobody_up_and_learns_what_is_missing() {
        const SAID: u64 = 1500;
        let (mut reader, mut status) = status();
        // Much more than a pipe and the queue hold.
        for _ in 0..SAID {
            status.say("warning", json!({"text": "x".repeat(1000)}));
        }
        status.say("ended", json!({"code": 0}));
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        drop(status);
        let text = reading.join().unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |stage: &str| u64::try_from(lines.iter().filter(|line| line["stage"] == stage).count()).unwrap();
        let left_out: u64 = lines.iter().filter_map(|line| line["detail"]["lines"].as_u64()).sum();
        assert!(left_out > 0 && of("warning") + left_out == SAID, "{left_out} + {}", of("warning"));
        assert_eq!(lines.last().unwrap()["stage"], "ended");
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let (reader, mut status) = status();
        for _ in 0..200 {
            status.say("warning", json!({"text": "x".repeat(1000)}));
        }
        // Returns though nobody ever reads.
        drop(status);
        drop(reader);
        let (reader, mut status) = tests::status();
        drop(reader);
        status.say("ended", json!({"code": 0}));
    }
}
