//! `--status-fd`: JSON lines about the stages of a run, `{"stage": NAME, "detail": {...}}`.
//!
//! | stage | detail |
//! |---|---|
//! | `verified` | `workload`, `signer` |
//! | `released` | `verdict`, `lease_s`, `tpm_commands`, `ms`, `locked` (which memory is kept out of swap) |
//! | `mounted` | - |
//! | `started` | `run`, `init` (the container's first process), `group` (its cgroup, or why there is none), `watched` (what is seen of it) |
//! | `events` | `connected`: the verifier's own word is heard, or not (`reason`) |
//! | `finding` | `finding`, `severity`, `accepted` (by the image's policy), `reaction`, `reasons`, `ms` from the look to the reaction, by CLOCK_BOOTTIME |
//! | `reaction` | `reaction` that no finding brought about, `reasons` |
//! | `warning` | `text` |
//! | `signal` | `signal`: passed on to the workload |
//! | `ended` | `code`: the workload's own, or 128 + the signal that ended the run |
//! | `failed` | `code` (200 to 219), `stage`, `error`, `words`, `hint` |

use std::fs::File;
use std::io::Write as _;

use serde_json::{Value, json};

use crate::exit::{Failure, Stage};

/// Where the lines go; nowhere without the option.
pub(crate) struct Status {
    file: Option<File>,
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
        Ok(Self { file: file.transpose().map_err(bad)?, listener: None })
    }

    /// To a listener only.
    pub(crate) fn to(listener: Listener) -> Self {
        Self { file: None, listener: Some(listener) }
    }

    /// One line. Nobody reading it is no reason to end a run.
    pub(crate) fn say(&mut self, stage: &str, detail: Value) {
        if let Some(listener) = &mut self.listener {
            listener(stage, &detail);
        }
        if let Some(file) = &mut self.file {
            let line = format!("{}\n", json!({"stage": stage, "detail": detail}));
            let _ = file.write_all(line.as_bytes());
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
