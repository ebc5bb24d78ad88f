//! Replaying a recorded boot: what firmware and kernel extended then is extended again.
//!
//! The PCRs are then those of the recorded machine. Only trust in the EK tells such a TPM from that machine's.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::codec::{Malformed, Reader, Reason};

use crate::error::Error;

/// What was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Replayed {
    /// Events of the boot log that were extended.
    pub events: usize,
    /// Entries of the IMA list that were extended.
    pub ima: usize,
    /// Locality of TPM2_Startup.
    pub locality: u8,
}

/// One TPM2_PCR_Extend.
pub(crate) struct Extend {
    pub(crate) pcr: u32,
    pub(crate) digests: Vec<Digest>,
}

/// A boot log as extensions.
pub(crate) struct Boot {
    pub(crate) locality: u8,
    pub(crate) extends: Vec<Extend>,
}

/// Most extensions that one log may ask for: a million IMA entries are a week of a busy machine.
const EXTENDS: usize = 1_000_000;
const EV_NO_ACTION: u32 = 3;
const IMA_PCR: u32 = 10;

/// Reads a crypto-agile boot log (TCG PC Client Platform Firmware Profile, 10.4).
pub(crate) fn boot(log: &[u8]) -> Result<Boot, Error> {
    read_boot(log).map_err(|error| Error::Log { log: "boot log", why: error.to_string() })
}

fn read_boot(log: &[u8]) -> Result<Boot, Malformed> {
    let mut reader = Reader::new(log);
    reader.take(28, "TCG_PCClientPCREvent header")?;
    let length = usize::try_from(reader.u32_le("eventDataSize")?).unwrap_or(usize::MAX);
    let mut spec = reader.sub(length, "TCG_EfiSpecIDEvent")?;
    if spec.take(16, "signature")? != b"Spec ID Event03\0" {
        return Err(spec.bad("signature", Reason::Other("no crypto-agile log")));
    }
    spec.take(8, "platformClass, version, uintnSize")?;
    let count = spec.u32_le("numberOfAlgorithms")?;
    let mut sizes = Vec::new();
    for _ in 0..count.min(16) {
        sizes.push((spec.u16_le("algorithmId")?, usize::from(spec.u16_le("digestSize")?)));
    }
    let mut boot = Boot { locality: 0, extends: Vec::new() };
    while reader.left() > 0 {
        let at = reader.clone();
        let (pcr, kind, count) =
            (reader.u32_le("pcrIndex")?, reader.u32_le("eventType")?, reader.u32_le("digests.count")?);
        let mut digests = Vec::new();
        for _ in 0..count {
            let id = reader.u16_le("digests.hashAlg")?;
            let Some((_, size)) = sizes.iter().find(|(known, _)| *known == id) else {
                return Err(reader.bad("digests.hashAlg", Reason::Value(id.into())));
            };
            let value = reader.take(*size, "digests.digest")?;
            digests.extend(HashAlg::from_id(id).and_then(|alg| Digest::new(alg, value)));
        }
        let length = usize::try_from(reader.u32_le("eventSize")?).unwrap_or(usize::MAX);
        let data = reader.take(length, "event")?;
        if kind == EV_NO_ACTION {
            if let Some((&locality, [])) = data.strip_prefix(b"StartupLocality\0").and_then(<[u8]>::split_first)
                && !boot.extends.iter().any(|extend| extend.pcr == 0)
            {
                boot.locality = locality;
            }
        } else if pcr != u32::MAX {
            if pcr > 23 || boot.extends.len() >= EXTENDS {
                return Err(at.bad("pcrIndex", Reason::Value(pcr.into())));
            }
            boot.extends.push(Extend { pcr, digests });
        }
    }
    Ok(boot)
}

/// Reads a binary IMA list (ima-ng and its kin) as the kernel extends it: per bank the hash of the template data, and
/// ones for a violation.
pub(crate) fn ima(list: &[u8]) -> Result<Vec<Extend>, Error> {
    read_ima(list).map_err(|error| Error::Log { log: "IMA list", why: error.to_string() })
}

fn read_ima(list: &[u8]) -> Result<Vec<Extend>, Malformed> {
    let mut reader = Reader::new(list);
    let mut extends = Vec::new();
    while reader.left() > 0 {
        let at = reader.clone();
        let pcr = reader.u32_le("pcr")?;
        if pcr != IMA_PCR || extends.len() >= EXTENDS {
            return Err(at.bad("pcr", Reason::Value(pcr.into())));
        }
        let digest = reader.take(20, "template hash")?;
        for (field, max) in [("template name", 64u32), ("template data", 1 << 20)] {
            let at = reader.clone();
            let length = reader.u32_le(field)?;
            if length > max {
                return Err(at.bad(field, Reason::TooLarge { got: length.into(), max: max.into() }));
            }
            let bytes = reader.take(usize::try_from(length).unwrap_or(usize::MAX), field)?;
            if field == "template data" {
                let violation = digest.iter().all(|&byte| byte == 0);
                let hash = |alg: HashAlg| if violation { Digest::filled(alg, 0xFF) } else { alg.digest(&[bytes]) };
                extends.push(Extend { pcr, digests: HashAlg::ALL.map(hash).to_vec() });
            }
        }
    }
    Ok(extends)
}
