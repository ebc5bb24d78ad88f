//! Collecting evidence: statement, quote, PCR values, logs (DESIGN.md section 5).

use std::fs::File;
use std::path::Path;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_wire::cbor;
use countersign_wire::challenge::Challenge;
use countersign_wire::evidence::{BankValues, Evidence, ImaPart, PcrValue};
use countersign_wire::limits;
use countersign_wire::receipt::Receipt;
use countersign_wire::runlog::{Position, RunLog};
use countersign_wire::statement::{Label, ReleaseRequest, Statement, qualifying_data};

use super::enrol::tls_key;
use super::ima;
use super::{Host, Keys, Operation};
use crate::endorsement::Ak;
use crate::error::HostError;
use crate::journal::{BootLogs, Journal, RECEIPT};
use crate::state::{StateDir, read_bounded};

/// Quotes made before giving up, when PCRs or logs change between quote and read.
const QUOTES: u32 = 8;

/// A log file; `None` when none is configured or the file does not exist.
fn read_log(path: Option<&Path>, max: usize) -> Result<Option<Vec<u8>>, HostError> {
    let Some(path) = path else { return Ok(None) };
    let bad = |e: std::io::Error| HostError::Log { path: path.to_owned(), reason: e.to_string() };
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(e)),
        Ok(file) => read_bounded(file, max).map(Some).map_err(bad),
    }
}

impl Host {
    /// The firmware's and systemd's logs, as far as they are configured and exist.
    pub(super) fn boot_logs(&self) -> Result<BootLogs, HostError> {
        let firmware = read_log(self.config.event_log.as_deref(), limits::EVENT_LOG)?;
        Ok(BootLogs { firmware, systemd: self.systemd_log()? })
    }

    fn systemd_log(&self) -> Result<Option<Vec<u8>>, HostError> {
        read_log(self.config.systemd_log.as_deref(), limits::SYSTEMD_LOG)
    }

    /// The IMA list from an entry on, or all of it when it is shorter. Read after the quote: what it has beyond the quote, the verifier discards.
    fn ima_list(&self, from: u64) -> Result<Option<ImaPart>, HostError> {
        let Some(path) = self.config.ima_log.as_deref() else { return Ok(None) };
        ima::read(path, from).map_err(|e| HostError::Log { path: path.to_owned(), reason: e.to_string() })
    }
}

impl Operation<'_> {
    /// Quote and everything beside it, encoded. PCRs that change between quote and read are quoted again.
    pub(super) fn evidence(
        &mut self,
        keys: &Keys,
        ak: &Ak,
        challenge: &Challenge,
        release: Option<ReleaseRequest>,
    ) -> Result<Vec<u8>, HostError> {
        let state = self.host.state.clone();
        let statement = statement(&state, challenge, release)?;
        let extra = qualifying_data(&challenge.nonce, &statement);
        let selection = selection(challenge)?;
        let BootLogs { firmware, systemd: mut systemd_log } = self.host.boot_logs()?;
        for _ in 0..QUOTES {
            let (quote, signature) = self.tpm.quote(&ak.key.object, &extra, &selection)?;
            let values = self.tpm.read_pcrs(&selection)?;
            let digests: Vec<Digest> = values.iter().map(|(_, _, value)| *value).collect();
            let quoted = Quote::parse(&quote).map_err(|e| HostError::Corrupt(format!("the TPM's quote: {e}")))?;
            // systemd may measure at any moment; its log as it was before the quote belongs to it only if it has not grown since.
            let grown = self.host.systemd_log()?;
            let log_moved = grown != systemd_log;
            systemd_log = grown;
            if log_moved || !is_digest_of(quoted.pcr_digest, &digests) {
                continue;
            }
            let from = ima_from(challenge, &quoted);
            let (run_from, run_log) = run_part(challenge, &quoted, Journal::bytes(&state)?);
            let evidence = Evidence {
                version: 1,
                host: keys.card.host,
                nonce: challenge.nonce,
                quote,
                signature,
                pcrs: bank_values(challenge, &values),
                statement,
                event_log: firmware,
                ima: self.host.ima_list(from)?,
                systemd_log,
                run_log: Some(run_log),
                run_from,
            };
            return Ok(cbor::encode(&evidence));
        }
        Err(HostError::Moving(QUOTES))
    }
}

/// What the host says beside the quote, as it is hashed into it.
fn statement(state: &StateDir, challenge: &Challenge, release: Option<ReleaseRequest>) -> Result<Vec<u8>, HostError> {
    let (_, tls_public) = tls_key(state)?;
    let newest = state.read(RECEIPT, 64)?.and_then(|bytes| Receipt::from_bytes(&bytes));
    let label = |name: &str, value: String| Label { name: name.into(), value };
    let system = rustix::system::uname();
    let statement = Statement {
        version: 1,
        purpose: challenge.purpose,
        labels: vec![
            label("hostname", system.nodename().to_string_lossy().into_owned()),
            label("kernel", system.release().to_string_lossy().into_owned()),
            label("attest", env!("CARGO_PKG_VERSION").into()),
        ],
        receipt: newest,
        tls_key: Some(tls_public),
        release,
        old_checkpoint: None,
        new_checkpoint: None,
    };
    Ok(cbor::encode(&statement))
}

/// The PCRs that the challenge asks for.
fn selection(challenge: &Challenge) -> Result<PcrSelection, HostError> {
    let mut banks = Vec::new();
    for bank in &challenge.selection {
        let alg = HashAlg::from_id(bank.alg).ok_or_else(|| {
            HostError::unexpected(format!("it asks for PCR bank {:#06x}, which is unknown", bank.alg))
        })?;
        banks.push(BankSelection::new(alg, &bank.pcrs));
    }
    Ok(PcrSelection(banks))
}

/// Whether a quote's pcrDigest is that of the values; its algorithm is that of the AK's scheme, so its length tells it.
fn is_digest_of(pcr_digest: &[u8], values: &[Digest]) -> bool {
    let alg = HashAlg::ALL.into_iter().find(|alg| alg.size() == pcr_digest.len());
    alg.is_some_and(|alg| countersign_tpm::pcr::pcr_digest(alg, values).as_bytes() == pcr_digest)
}

fn bank_values(challenge: &Challenge, values: &[(HashAlg, u8, Digest)]) -> Vec<BankValues> {
    let banks = challenge.selection.iter().map(|bank| {
        let of_bank = values.iter().filter(|(alg, ..)| alg.id() == bank.alg);
        let pcrs = of_bank.map(|(_, index, value)| PcrValue { index: *index, value: value.as_bytes().to_vec() });
        BankValues { alg: bank.alg, pcrs: pcrs.collect() }
    });
    banks.collect()
}

/// The first IMA entry to send: the one asked for if the entries before it are of this boot, as the TPM's own counters tell.
fn ima_from(challenge: &Challenge, quoted: &Quote<'_>) -> u64 {
    let boot = (quoted.clock.reset_count, quoted.clock.restart_count);
    if challenge.ima_boot == Some(boot) { challenge.ima_from } else { 0 }
}

/// The part of the run log behind the entries that the verifier has read, if they are of this boot and this log; else the whole log.
fn run_part(challenge: &Challenge, quoted: &Quote<'_>, bytes: Vec<u8>) -> (Option<u64>, Vec<u8>) {
    let boot = (quoted.clock.reset_count, quoted.clock.restart_count);
    let Some(read) = challenge.run.as_ref().filter(|read| (read.reset_count, read.restart_count) == boot) else {
        return (None, bytes);
    };
    let position = Position { entries: read.entries, last: read.last };
    let end = RunLog::offset_of(&bytes, &position);
    match end.and_then(|end| bytes.get(end..)) {
        Some(part) => (Some(read.entries), part.to_vec()),
        None => (None, bytes),
    }
}
