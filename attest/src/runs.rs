//! `attest runs`: what the run log says of this boot's workloads.

use countersign_wire::id::{RunId, WorkloadId};
use countersign_wire::runlog::{Event, RunLog};
use serde::Serialize;

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its id.
    pub run: RunId,
    /// What ran.
    pub workload: WorkloadId,
    /// When it started, milliseconds since 1970 by this host's clock.
    pub started_ms: i64,
    /// How it ended; none while it runs.
    pub status: Option<String>,
    /// Other entries of the log that name it: findings, for example.
    pub entries: u64,
}

/// The runs of a log, oldest first.
#[must_use]
pub fn of(log: &RunLog) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for entry in &log.entries {
        match &entry.event {
            Event::Start { run, workload, time_ms } => {
                runs.push(Run { run: *run, workload: *workload, started_ms: *time_ms, status: None, entries: 0 });
            }
            Event::End { run, status } => {
                if let Some(found) = runs.iter_mut().rev().find(|found| found.run == *run) {
                    found.status = Some(status.clone());
                }
            }
            Event::Receipt { .. } | Event::Resume {} => {}
            other @ (Event::Finding { .. } | Event::Reaction { .. } | Event::Other { .. }) => {
                if let Some(found) = other.run().and_then(|run| runs.iter_mut().rev().find(|found| found.run == run)) {
                    found.entries = found.entries.saturating_add(1);
                }
            }
        }
    }
    runs
}

/// The log as one canonical event log in JSON: its lines as they are, in an array.
#[must_use]
pub fn canonical(log: &[u8]) -> String {
    let lines: Vec<String> = log
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    format!("[\n{}\n]", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use countersign_tpm::alg::HashAlg;

    use super::*;

    #[test]
    fn runs_and_their_ends() {
        let mut bytes = Vec::new();
        let (one, two) = (RunId([1; 16]), RunId([2; 16]));
        let workload = WorkloadId([3; 32]);
        for event in [
            Event::Start { run: one, workload, time_ms: 5 },
            Event::Start { run: two, workload, time_ms: 6 },
            Event::Resume {},
            Event::End { run: one, status: "exit 0".into() },
        ] {
            let (line, _) = RunLog::parse(&bytes).unwrap().next(13, &[HashAlg::Sha256], event).unwrap();
            bytes.extend(line);
        }
        let runs = of(&RunLog::parse(&bytes).unwrap());
        let seen: Vec<_> = runs.iter().map(|run| (run.run, run.started_ms, run.status.as_deref())).collect();
        assert_eq!(seen, [(one, 5, Some("exit 0")), (two, 6, None)]);
        let records: Vec<serde_json::Value> = serde_json::from_str(&canonical(&bytes)).unwrap();
        assert_eq!((records.len(), records[3]["recnum"].as_u64()), (4, Some(3)));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&canonical(b"")).unwrap(), serde_json::json!([]));
    }
}
