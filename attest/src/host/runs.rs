//! Runs in the run log. A run that has started ends in the log too: when its supervisor was killed, by the next start on this host.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use countersign_wire::id::{RunId, WorkloadId};
use countersign_wire::runlog::Event;
use rustix::fs::{FlockOperation, flock};

use super::{Host, Operation};
use crate::error::HostError;
use crate::lease::Leases;
use crate::state::StateDir;

/// Folder with a file for each run, locked as long as its supervisor lives.
const RUNS: &str = "runs";
/// How a run ended whose supervisor cannot say it.
const LOST: &str = "lost: its supervisor was killed";

/// A run under way. As long as this lives nobody takes the run for lost; dropped without [`Host::end_run`], the next start does.
#[derive(Debug)]
pub struct Running {
    run: RunId,
    _lock: File,
}

impl Host {
    /// Writes a run's start into the run log and extends it; before it, the end of each run that was lost.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start_run(&mut self, run: RunId, workload: WorkloadId, time_ms: i64) -> Result<Running, HostError> {
        self.trust()?;
        let mut operation = self.operation()?;
        let lock = operation.host.state.claim(run)?;
        let mut lost = Vec::new();
        operation.log(|unfinished, state| {
            lost.extend(unfinished.into_iter().filter(|run| state.claim(*run).is_ok()));
            let ends = lost.iter().map(|run| Event::End { run: *run, status: LOST.into() });
            ends.chain([Event::Start { run, workload, time_ms }]).collect()
        })?;
        operation.host.forget_leases(&lost)?;
        operation.host.state.sweep()?;
        Ok(Running { run, _lock: lock })
    }

    /// Writes a run's end into the run log and extends it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn end_run(&mut self, running: Running, status: String) -> Result<(), HostError> {
        self.trust()?;
        let run = running.run;
        let mut operation = self.operation()?;
        operation.log(|_, _| vec![Event::End { run, status }])?;
        operation.host.forget_leases(&[run])?;
        operation.host.state.remove(&format!("{RUNS}/{run}"))
    }
}

impl Host {
    /// Runs that have ended have no lease; to be called under the lock.
    fn forget_leases(&self, runs: &[RunId]) -> Result<(), HostError> {
        let mut leases = Leases::read(&self.state)?;
        let ended = runs.iter().filter(|run| leases.end(**run)).count();
        if ended > 0 { leases.write(&self.state) } else { Ok(()) }
    }
}

impl Operation<'_> {
    /// Appends entries, chosen when the unfinished runs are known.
    pub(super) fn log(&mut self, events: impl FnOnce(Vec<RunId>, &StateDir) -> Vec<Event>) -> Result<(), HostError> {
        let keys = self.host.keys()?;
        self.ek(&keys)?.close(&mut self.tpm)?;
        let mut journal = self.journal(keys.card.run_pcr)?;
        for event in events(journal.unfinished(), &self.host.state) {
            journal.append(&self.host.state, &mut self.tpm, event)?;
        }
        Ok(())
    }
}

impl StateDir {
    fn run_file(&self, run: RunId) -> PathBuf {
        self.path(&format!("{RUNS}/{run}"))
    }

    /// Takes a run's lock.
    ///
    /// # Errors
    /// [`HostError::State`]: its supervisor lives and has it, among others.
    fn claim(&self, run: RunId) -> Result<File, HostError> {
        let path = self.run_file(run);
        let claim = || {
            DirBuilder::new().recursive(true).mode(0o700).create(self.path(RUNS))?;
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        };
        claim().map_err(|source| HostError::State { path: path.clone(), source })
    }

    /// Removes the files that nobody has locked: of lost runs, also those of earlier boots, and of starts that failed.
    fn sweep(&self) -> Result<(), HostError> {
        let path = self.path(RUNS);
        let sweep = || {
            for entry in std::fs::read_dir(&path)? {
                let path = entry?.path();
                let file = OpenOptions::new().write(true).open(&path)?;
                if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    std::fs::remove_file(&path)?;
                }
            }
            Ok(())
        };
        sweep().map_err(|source| HostError::State { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_of_a_run() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let run = RunId([7; 16]);
        let held = state.claim(run).unwrap();
        assert!(state.claim(run).is_err(), "its supervisor lives");
        state.claim(RunId([8; 16])).unwrap();
        state.sweep().unwrap();
        let left = || std::fs::read_dir(dir.path().join(RUNS)).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(left().collect::<Vec<_>>(), [state.run_file(run)], "only that of a living supervisor");
        drop(held);
        state.claim(run).unwrap();
        state.sweep().unwrap();
        assert_eq!(left().count(), 0);
    }
}
