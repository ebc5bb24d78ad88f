//! systemd's userspace log (`/run/log/systemd/tpm2-measure.log`): JSON records, each after a record separator (RFC 7464), in the
//! shape of TCG's canonical event log.

mod content;

use countersign_tpm::alg::HashAlg;
use serde::Deserialize;
use serde::de::IgnoredAny;

pub(crate) use content::{Content, Scalar};

use crate::eventlog::{PcrBank, ReplayError};
use crate::limits;

/// Byte in front of each record (RFC 7464).
pub const RECORD_SEPARATOR: u8 = 0x1e;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Index in the log.
    pub index: u32,
    /// PCR that it extends.
    pub pcr: u8,
    /// Digests by bank; unknown banks are left out.
    pub digests: Vec<(HashAlg, Vec<u8>)>,
    /// `content.string`: what systemd measured, in words. Hashes to the digests unless the content is a key or the like.
    pub text: String,
    /// `content.eventType`: what kind it says it is, for example `phase`. Not measured.
    pub event_type: String,
}

/// Why bytes are not such a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("systemd log, record {index} at byte {offset}: {reason}")]
pub struct BadRecord {
    /// Index of the record.
    pub index: u32,
    /// Offset of the record in the log, in bytes.
    pub offset: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
struct Raw {
    pcr: Option<u32>,
    /// An NV index used as a PCR (systemd 259 and later); such a record extends no PCR.
    #[serde(default, rename = "nvIndexName")]
    nv_index: Option<IgnoredAny>,
    digests: Vec<RawDigest>,
    #[serde(default)]
    content: Content,
}

#[derive(Deserialize)]
struct RawDigest {
    #[serde(rename = "hashAlg")]
    alg: String,
    digest: String,
}

/// Parses the log.
///
/// # Errors
/// [`BadRecord`] names record and offset.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, BadRecord> {
    let bad = |index, offset, reason: &str| BadRecord { index, offset, reason: reason.to_owned() };
    if bytes.len() > limits::SYSTEMD_LOG {
        return Err(bad(0, 0, "the log is over its limit"));
    }
    let mut records = Vec::new();
    let mut offset: usize = 0;
    for (index, line) in (0u32..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        let at = offset;
        offset = offset.saturating_add(line.len());
        let text = line.strip_prefix(&[RECORD_SEPARATOR]).unwrap_or(line);
        let text = text.strip_suffix(b"\n").ok_or_else(|| bad(index, at, "the last record is cut off"))?;
        let raw: Raw = serde_json::from_slice(text).map_err(|e| bad(index, at, &e.to_string()))?;
        if raw.pcr.is_none() && raw.nv_index.is_some() {
            continue;
        }
        let pcr = raw.pcr.and_then(|pcr| u8::try_from(pcr).ok()).filter(|pcr| *pcr < 24);
        let pcr = pcr.ok_or_else(|| bad(index, at, "no PCR index below 24"))?;
        let mut digests: Vec<(HashAlg, Vec<u8>)> = Vec::new();
        for digest in raw.digests {
            let Some(alg) = HashAlg::from_name(&digest.alg) else { continue };
            let value = hex::decode(&digest.digest).map_err(|_| bad(index, at, "digest is not hex"))?;
            if value.len() != alg.size() {
                return Err(bad(index, at, "digest has another length than its algorithm"));
            }
            if digests.iter().any(|(other, _)| *other == alg) {
                return Err(bad(index, at, "two digests of one algorithm"));
            }
            digests.push((alg, value));
        }
        let Content { string: text, event_type, .. } = raw.content;
        records.push(Record { index, pcr, digests, text, event_type });
    }
    Ok(records)
}

/// Extends the records on top of what the firmware's log left; those of PCRs that the bank does not cover are passed over.
///
/// # Errors
/// A record has no digest for the bank.
pub fn replay(records: &[Record], bank: &mut PcrBank) -> Result<(), ReplayError> {
    let alg = bank.alg();
    let covers = bank.covers();
    for record in records.iter().filter(|record| covers.contains(record.pcr)) {
        let (_, digest) = record.digests.iter().find(|(other, _)| *other == alg).ok_or_else(|| {
            ReplayError::NoDigest { event: format!("systemd record {} (PCR {})", record.index, record.pcr), alg }
        })?;
        bank.extend(record.pcr, digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventlog::EventLog;

    const LOG: &[u8] = include_bytes!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/tpm2-measure.log");
    const BOOT: &[u8] =
        include_bytes!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/binary_bios_measurements");
    const PCRS: &str = include_str!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/PCRS.json");

    #[test]
    fn firmware_and_systemd_together() {
        let pcrs: serde_json::Value = serde_json::from_str(PCRS).unwrap();
        let boot = EventLog::parse(BOOT).unwrap();
        let records = parse(LOG).unwrap();
        assert_eq!(records.len(), 4);
        for alg in boot.known_banks() {
            let mut bank = boot.replay(alg).unwrap();
            replay(&records, &mut bank).unwrap();
            for pcr in (0..24u8).filter(|pcr| *pcr != 10) {
                assert_eq!(bank.value(pcr).unwrap().to_string(), pcrs[alg.name()][pcr.to_string()].as_str().unwrap());
            }
        }
    }

    #[test]
    fn truncations() {
        let mut whole = 0;
        for end in 0..LOG.len() {
            whole += usize::from(parse(&LOG[..end]).is_ok());
        }
        assert_eq!(whole, 4, "only whole records parse");
        // What nobody reads is passed over, whatever its size and shape.
        let digest = "11".repeat(32);
        let large = "[0,".repeat(100) + &"0,".repeat(1_000_000) + "0" + &"]".repeat(100);
        let record = format!(
            "{{\"pcr\":1,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\"content\":{{\"x\":{large},\"string\":\"a\"}}}}\n"
        );
        assert_eq!(parse(record.as_bytes()).unwrap()[0].text, "a");
        assert!(parse(&vec![b' '; limits::SYSTEMD_LOG + 1]).is_err());
        assert!(parse(b"{\"pcr\":24,\"digests\":[]}\n").is_err());
        assert!(parse(b"{\"pcr\":1,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"00\"}]}\n").is_err());
    }
}
