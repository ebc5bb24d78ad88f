//! Checks for auditors: offline, from files, with the functions that the appraisal uses.

mod bundle;
mod eventlog;
mod quote;

pub use bundle::{CheckedBundle, check_bundle};
pub(crate) use bundle::{load_sets, open, trust_digest};
pub use eventlog::{CheckedLog, LogFiles, check_eventlog};
pub use quote::{CheckedQuote, check_quote};

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use countersign_tpm::alg::{Digest, HashAlg};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Why a check failed. JSON: {"code", "check", "event", "got", "want"}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckError {
    /// Exit code.
    pub code: u8,
    /// Stable id of the check.
    pub check: String,
    /// The event, field or file behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// What was found.
    pub got: String,
    /// What was expected.
    pub want: String,
}

impl CheckError {
    pub(crate) fn new(code: u8, check: &str, got: impl Into<String>, want: impl Into<String>) -> Self {
        Self { code, check: check.to_owned(), event: None, got: got.into(), want: want.into() }
    }

    pub(crate) fn about(mut self, event: impl Into<String>) -> Self {
        self.event = Some(event.into());
        self
    }
}

/// Exit codes of `verifier check`; the table stands in `--help`.
pub(crate) mod code {
    /// An input file is not what it should be.
    pub(crate) const INPUT: u8 = 40;
    /// The log breaks its format.
    pub(crate) const FORMAT: u8 = 41;
    /// The log does not replay.
    pub(crate) const REPLAY: u8 = 42;
    /// The log replays and lies.
    pub(crate) const LIE: u8 = 43;
    /// Signature or algorithm.
    pub(crate) const SIGNATURE: u8 = 44;
    /// Nonce.
    pub(crate) const NONCE: u8 = 45;
    /// PCR selection or digest.
    pub(crate) const PCRS: u8 = 46;
    /// Trust anchor.
    pub(crate) const TRUST: u8 = 47;
    /// The recomputed verdict is another.
    pub(crate) const VERDICT: u8 = 48;
}

/// Reads a file, no further than `max` bytes: what a file says of its size is not what it gives (devices, pipes, securityfs).
pub(crate) fn read_bounded(path: &std::path::Path, max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read as _};
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("more than {max} bytes")));
    }
    Ok(bytes)
}

/// PCRS.json: {"sha256": {"0": "hex", ...}, ...}. In a SHA-384 bank "rtmr0" to "rtmr3" name a TDX guest's registers; its event log calls
/// them 1 to 4, and others 0 to 3. No event extends "mrtd", so no log says anything about it.
pub(crate) struct Pcrs {
    banks: BTreeMap<HashAlg, BTreeMap<u8, Digest>>,
    /// Whether a register is named as a TDX guest's.
    rtmrs: bool,
    /// Whether the registers are numbered as RTMRs, one below their indices in the log.
    shifted: bool,
}

impl Pcrs {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CheckError> {
        let bad = |got: String| CheckError::new(code::INPUT, "pcrs", got, "{\"sha256\": {\"0\": \"hex\", ...}, ...}");
        let raw: Unique<Unique<String>> = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let mut banks = BTreeMap::new();
        let mut rtmrs = false;
        for (name, values) in raw.0 {
            let alg = HashAlg::from_name(&name).ok_or_else(|| bad(format!("unknown bank {name:?}")))?;
            let mut pcrs = BTreeMap::new();
            for (index, value) in values.0 {
                if alg == HashAlg::Sha384 && index.eq_ignore_ascii_case("mrtd") {
                    rtmrs = true;
                    continue;
                }
                let rtmr = rtmr(&index).filter(|_| alg == HashAlg::Sha384);
                rtmrs |= rtmr.is_some();
                let pcr = rtmr.or_else(|| index.parse().ok().filter(|pcr| *pcr < 24));
                let pcr = pcr.ok_or_else(|| bad(format!("{name}: PCR {index:?}")))?;
                let digest = hex::decode(&value).ok().and_then(|bytes| Digest::new(alg, &bytes));
                let digest = digest.ok_or_else(|| bad(format!("{name}:{pcr}: {value:?}")))?;
                if pcrs.insert(pcr, digest).is_some() {
                    return Err(bad(format!("{name}:{pcr} twice")));
                }
            }
            if banks.insert(alg, pcrs).is_some() {
                return Err(bad(format!("bank {name:?} twice")));
            }
        }
        if banks.is_empty() {
            return Err(bad("no bank".into()));
        }
        Ok(Self { banks, rtmrs, shifted: false })
    }

    /// Whether the numbers can only be those of RTMRs: 0 to 3, and 0 holds something, as the log's index 0 never does.
    fn are_rtmrs(&self) -> bool {
        let zero = Digest::filled(HashAlg::Sha384, 0);
        let fits = |values: &BTreeMap<u8, Digest>| {
            values.keys().all(|index| *index < 4) && values.get(&0).is_some_and(|value| *value != zero)
        };
        !self.rtmrs && self.banks.iter().all(|(alg, values)| *alg == HashAlg::Sha384 && fits(values))
    }

    /// Numbers the registers of a TDX guest as its log does.
    fn numbered_as_logged(self) -> Self {
        if !self.are_rtmrs() {
            return self;
        }
        let shift = |values: BTreeMap<u8, Digest>| values.into_iter().map(|(at, value)| (at.saturating_add(1), value));
        let banks = self.banks.into_iter().map(|(alg, values)| (alg, shift(values).collect())).collect();
        Self { banks, rtmrs: true, shifted: true }
    }

    /// The number that a register was given by.
    const fn given(&self, index: u8) -> u8 {
        index.saturating_sub(if self.shifted { 1 } else { 0 })
    }

    fn get(&self, alg: HashAlg, pcr: u8) -> Option<Digest> {
        self.banks.get(&alg)?.get(&pcr).copied()
    }
}

/// A JSON object in which no key stands twice: serde's maps take the last one without a word.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unique<T>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, T>()? {
                    if all.contains_key(&key) {
                        return Err(de::Error::custom(format!("{key:?} stands twice")));
                    }
                    all.insert(key, value);
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// The index that a TDX guest's event log has for `rtmr0` to `rtmr3` (UEFI 2.10, 38.4.1).
fn rtmr(name: &str) -> Option<u8> {
    let number: u8 = name.strip_prefix("rtmr")?.parse().ok()?;
    (number < 4).then(|| number.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        let (zero, one) = ("00".repeat(32), "11".repeat(32));
        let parse = |text: String| Pcrs::parse(text.as_bytes()).map(|pcrs| pcrs.banks.len()).map_err(|e| e.got);
        assert_eq!(parse(format!(r#"{{"sha256": {{"0": "{zero}", "1": "{one}"}}}}"#)), Ok(1));
        for (twice, says) in [
            (format!(r#"{{"sha256": {{"0": "{zero}"}}, "sha256": {{"0": "{one}"}}}}"#), "\"sha256\" stands twice"),
            (format!(r#"{{"sha256": {{"0": "{zero}", "0": "{one}"}}}}"#), "\"0\" stands twice"),
            (format!(r#"{{"sha256": {{"0": "{zero}", "00": "{one}"}}}}"#), "sha256:0 twice"),
        ] {
            let got = parse(twice).unwrap_err();
            assert!(got.contains(says), "{got}");
        }
    }
}
