//! The run log on disk and in its PCR, which must agree (DESIGN.md section 10).
//!
//! Under the lock: fsync(entry), then extend. Whoever takes the lock first makes both agree again.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_wire::eventlog::EventLog;
use countersign_wire::id::RunId;
use countersign_wire::runlog::{BadRunLog, Event, RunLog};
use countersign_wire::{limits, systemd_log};

use crate::error::HostError;
use crate::state::StateDir;
use crate::tpm::Tpm;

const FILE: &str = "run.log";
const OLD: &str = "run.log.old";
/// The newest receipt that was extended.
pub(crate) const RECEIPT: &str = "receipt";
/// resetCount and restartCount at the last look, to notice a TPM Resume.
const BOOT: &str = "boot";

/// What an attestation leaves free in the run log, bytes: running workloads must still be able to end in it.
const RESERVE: usize = 256 * 1024;
/// What starts of runs and findings may fill of the run log, bytes: leases of what runs must be renewable behind them.
const ADDED: usize = limits::RUN_LOG / 4 * 3;

/// The logs of what extended PCRs before us, as far as they are configured and exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootLogs {
    /// The firmware's.
    pub firmware: Option<Vec<u8>>,
    /// systemd's.
    pub systemd: Option<Vec<u8>>,
}

/// A run log that was read before, for whoever reads it again when it has grown.
#[derive(Debug, Default)]
pub struct Read {
    bytes: Vec<u8>,
    log: Option<RunLog>,
}

impl Read {
    /// Reads the log as it is now. What is wrong with it is for [`Journal::recover`] to say.
    pub fn now(state: &StateDir) -> Self {
        let bytes = Journal::bytes(state).unwrap_or_default();
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at.saturating_add(1));
        let bytes = bytes.get(..whole).unwrap_or_default().to_vec();
        let log = RunLog::parse(&bytes).ok();
        Self { bytes, log }
    }

    /// The log of these bytes.
    fn again(self, bytes: &[u8]) -> Result<RunLog, BadRunLog> {
        match (self.log, bytes.strip_prefix(self.bytes.as_slice())) {
            (Some(log), Some(new)) => log.read(new),
            _ => RunLog::parse(bytes),
        }
    }
}

/// The run log of this boot, in agreement with its PCR as far as that is possible.
#[derive(Debug)]
pub struct Journal {
    log: RunLog,
    pcr: u8,
    banks: Vec<HashAlg>,
}

impl Journal {
    /// Reads log and PCR and makes them agree:
    /// a PCR that was reset gets a new log; a trailing entry that was never extended is extended now, or cut off if it is a receipt (its
    /// attestation is over, so it was given up); after a TPM Resume the log goes on with an entry `resume`.
    /// A log that disagrees in any other way stays as it is: the verifier says what to do.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn recover(state: &StateDir, tpm: &mut Tpm, pcr: u8, logs: &BootLogs, read: Read) -> Result<Self, HostError> {
        let banks = tpm.banks()?;
        let mut bytes = state.read(FILE, limits::RUN_LOG)?.unwrap_or_default();
        // A line without its newline was being written when the program died: never synced, never extended.
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at.saturating_add(1));
        if whole < bytes.len() {
            state.truncate(FILE, whole)?;
            bytes.truncate(whole);
        }
        let Some(alg) = banks.iter().copied().find(|alg| *alg == HashAlg::Sha256).or_else(|| banks.first().copied())
        else {
            return Err(HostError::Corrupt("the TPM has no PCR bank".into()));
        };
        let initial = initial(alg, pcr, logs);
        let current = read_pcr(tpm, alg, pcr)?;
        let boot = boot_of(tpm)?;
        let before = state.read(BOOT, 64)?.unwrap_or_default();
        let same_boot = before == boot;
        let mut log = match read.again(&bytes) {
            Ok(log) => log,
            // Damaged, and of an earlier boot: kept aside, a new one begins.
            Err(_) if current == initial => {
                state.rename(FILE, OLD)?;
                RunLog::empty()
            }
            Err(e) => return Err(HostError::Corrupt(format!("{e}; reboot to begin a new one"))),
        };
        let values = log.replay(initial).unwrap_or_else(|| vec![initial]);
        if values.last() != Some(&current) {
            let entries = log.entries.len();
            let trailing = values.iter().rev().nth(1) == Some(&current);
            // A log of one entry that is not in the PCR: just begun, unless the TPM was reset since.
            if trailing && (entries > 1 || same_boot) {
                let start = entries.checked_sub(2).and_then(|at| log.entries.get(at)).map_or(0, |entry| entry.end);
                match log.entries.last() {
                    Some(entry) if entry.event.as_receipt().is_none() => tpm.extend(pcr, &entry.digests)?,
                    _ => {
                        state.truncate(FILE, start)?;
                        bytes.truncate(start);
                        log = RunLog::parse(&bytes).map_err(|e| HostError::Corrupt(e.to_string()))?;
                    }
                }
            } else if current == initial {
                state.rename(FILE, OLD)?;
                log = RunLog::empty();
            }
        }
        let agrees = log.replay(initial).and_then(|values| values.last().copied()) == Some(read_pcr(tpm, alg, pcr)?);
        // What was certainly extended: a program may have died before it noted the receipt.
        if let Some(newest) = log.receipts().last().filter(|_| agrees)
            && state.read(RECEIPT, 64)?.as_deref() != Some(newest.to_bytes().as_slice())
        {
            state.write(RECEIPT, &newest.to_bytes())?;
        }
        let mut journal = Self { log, pcr, banks };
        if !same_boot {
            // The PCRs outlived a change of the counters: TPM2_Startup(STATE).
            let same_reset = before.get(..4) == boot.get(..4);
            if same_reset && agrees && !journal.log.entries.is_empty() {
                journal.append(state, tpm, Event::Resume {})?;
            }
            state.write(BOOT, &boot)?;
        }
        Ok(journal)
    }

    /// Writes an entry, syncs it, then extends it.
    ///
    /// # Errors
    /// [`HostError`]; when the entry was not synced, nothing is extended.
    pub fn append(&mut self, state: &StateDir, tpm: &mut Tpm, event: Event) -> Result<(), HostError> {
        let digests = self.write(state, event)?;
        tpm.extend(self.pcr, &digests)?;
        Ok(())
    }

    /// The first half of [`Journal::append`]; what it returns is to be extended.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn write(&mut self, state: &StateDir, event: Event) -> Result<Vec<Digest>, HostError> {
        let corrupt = |e: BadRunLog| HostError::Corrupt(e.to_string());
        let adds = matches!(event, Event::Start { .. } | Event::Finding { .. });
        let (line, digests) = self.log.next(self.pcr, &self.banks, event).map_err(corrupt)?;
        // A file that is too long to be read again would stop this host for good: not even a reboot would help.
        let most = if adds { ADDED } else { limits::RUN_LOG };
        if self.length().saturating_add(line.len()) > most {
            return Err(HostError::RunLogFull(most));
        }
        state.append(FILE, &line)?;
        self.log.push(&line).map_err(corrupt)?;
        Ok(digests)
    }

    fn length(&self) -> usize {
        self.log.entries.last().map_or(0, |entry| entry.end)
    }

    /// Whether another receipt fits. To be asked before a challenge is: one that could not be extended would only be void.
    ///
    /// # Errors
    /// [`HostError::RunLogFull`].
    pub fn has_room(&self) -> Result<(), HostError> {
        if self.length() > limits::RUN_LOG.saturating_sub(RESERVE) {
            return Err(HostError::RunLogFull(limits::RUN_LOG.saturating_sub(RESERVE)));
        }
        Ok(())
    }

    /// How full the log is for attestations, percent.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn filled(state: &StateDir) -> Result<u64, HostError> {
        let path = state.path(FILE);
        let length = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(source) => return Err(HostError::State { path, source }),
        };
        let room = u64::try_from(limits::RUN_LOG.saturating_sub(RESERVE)).unwrap_or(u64::MAX);
        Ok(length.saturating_mul(100).checked_div(room).unwrap_or(100))
    }

    /// Runs that have started and not ended in this log, oldest first.
    #[must_use]
    pub fn unfinished(&self) -> Vec<RunId> {
        let mut runs = Vec::new();
        for entry in &self.log.entries {
            match &entry.event {
                Event::Start { run, .. } => runs.push(*run),
                Event::End { run: ended, .. } => runs.retain(|run| run != ended),
                Event::Receipt { .. }
                | Event::Finding { .. }
                | Event::Reaction { .. }
                | Event::Resume {}
                | Event::Other { .. } => {}
            }
        }
        runs
    }

    /// The log's bytes, for evidence.
    ///
    /// # Errors
    /// [`HostError::State`].
    pub fn bytes(state: &StateDir) -> Result<Vec<u8>, HostError> {
        Ok(state.read(FILE, limits::RUN_LOG)?.unwrap_or_default())
    }
}

/// What the boot logs leave in the run PCR: normally nothing. Logs that do not replay leave it to the verifier to say so.
fn initial(alg: HashAlg, pcr: u8, logs: &BootLogs) -> Digest {
    let zero = Digest::filled(alg, 0);
    let replayed = logs.firmware.as_deref().and_then(|bytes| EventLog::parse(bytes).ok()?.replay(alg).ok());
    let Some(mut bank) = replayed else { return zero };
    if let Some(records) = logs.systemd.as_deref().and_then(|bytes| systemd_log::parse(bytes).ok()) {
        let _ = systemd_log::replay(&records, &mut bank);
    }
    bank.value(pcr).unwrap_or(zero)
}

/// resetCount and restartCount.
fn boot_of(tpm: &mut Tpm) -> Result<Vec<u8>, HostError> {
    let clock = tpm.read_clock()?;
    Ok([clock.reset_count.to_be_bytes(), clock.restart_count.to_be_bytes()].concat())
}

fn read_pcr(tpm: &mut Tpm, alg: HashAlg, pcr: u8) -> Result<Digest, HostError> {
    let selection = PcrSelection(vec![BankSelection::new(alg, &[pcr])]);
    let values = tpm.read_pcrs(&selection)?;
    values.first().map(|(_, _, value)| *value).ok_or_else(|| HostError::Corrupt(format!("the TPM has no PCR {pcr}")))
}

#[cfg(test)]
mod tests {
    use countersign_wire::finding::{Finding, Kind, Reaction};
    use countersign_wire::id::WorkloadId;

    use super::*;

    #[test]
    fn a_full_log_stays_readable() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut journal = Journal { log: RunLog::empty(), pcr: 13, banks: vec![HashAlg::Sha256] };
        let entry = || Event::End { run: RunId([1; 16]), status: "x".repeat(limits::RUN_LOG / 4) };
        for _ in 0..3 {
            journal.write(&state, entry()).unwrap();
        }
        let before = Journal::bytes(&state).unwrap();
        let error = journal.write(&state, entry()).unwrap_err();
        assert!(matches!(error, HostError::RunLogFull(_)) && error.hint().contains("reboot"), "{error}");
        assert_eq!(Journal::bytes(&state).unwrap(), before);
        journal.write(&state, Event::Resume {}).unwrap();
    }

    #[test]
    fn attestations_end_before_the_log_is_full_and_runs_can_still_end() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(Journal::filled(&state).unwrap(), 0);
        let mut journal = Journal { log: RunLog::empty(), pcr: 13, banks: vec![HashAlg::Sha256] };
        let end = |length: usize| Event::End { run: RunId([1; 16]), status: "x".repeat(length) };
        journal.write(&state, end((limits::RUN_LOG - RESERVE) / 2)).unwrap();
        assert_eq!(Journal::filled(&state).unwrap(), 50);
        journal.has_room().unwrap();
        journal.write(&state, end((limits::RUN_LOG - RESERVE) / 2)).unwrap();
        assert_eq!(Journal::filled(&state).unwrap(), 100);
        assert!(matches!(journal.has_room(), Err(HostError::RunLogFull(_))));
        for _ in 0..100 {
            journal.write(&state, end(16)).unwrap();
        }
        assert!(RunLog::parse(&Journal::bytes(&state).unwrap()).is_ok());
    }

    #[test]
    fn runs_and_findings_leave_room_for_attestations_and_ends() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut journal = Journal { log: RunLog::empty(), pcr: 13, banks: vec![HashAlg::Sha256] };
        let run = RunId([1; 16]);
        let start = || Event::Start { run, workload: WorkloadId([2; 32]), time_ms: 1 };
        let finding = || Event::Finding { run, finding: Finding::new(Kind::Ptrace, "a", "b", 1) };
        let end = |length: usize| Event::End { run, status: "x".repeat(length) };
        journal.write(&state, end(ADDED - 4096)).unwrap();
        journal.write(&state, start()).unwrap();
        journal.write(&state, finding()).unwrap();
        journal.write(&state, end(4096)).unwrap();
        for more in [start(), finding()] {
            assert!(matches!(journal.write(&state, more), Err(HostError::RunLogFull(ADDED))));
        }
        journal.has_room().unwrap();
        journal.write(&state, Event::Reaction { run, reaction: Reaction::Kill, time_ms: 1 }).unwrap();
        journal.write(&state, end(16)).unwrap();
    }
}
