//! Checks for auditors: offline, from files, with the functions that the appraisal uses.

mod bundle;
mod eventlog;
mod quote;

pub(crate) use bundle::trust_digest;
pub use bundle::{CheckedBundle, check_bundle};
pub use eventlog::{CheckedLog, check_eventlog};
pub use quote::{CheckedQuote, check_quote};

use std::collections::BTreeMap;

use countersign_tpm::alg::{Digest, HashAlg};
use serde::Serialize;

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

/// Reads a file, no further than a record may be long: what a file says of its size is not what it gives (devices, pipes, securityfs).
pub(crate) fn read_bounded(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read as _};
    let max = countersign_wire::limits::RECORD;
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("more than {max} bytes")));
    }
    Ok(bytes)
}

/// The members of a JSON object in their order, equal names kept.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Pairs<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> serde::de::Visitor<'de> for Members<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

/// PCRS.json: {"sha256": {"0": "hex", ...}, ...}.
pub(crate) struct Pcrs(BTreeMap<HashAlg, BTreeMap<u8, Digest>>);

impl Pcrs {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CheckError> {
        let bad = |got: String| CheckError::new(code::INPUT, "pcrs", got, "{\"sha256\": {\"0\": \"hex\", ...}, ...}");
        // Not a map: of two equal names it would keep the last, and what the first one lists would go unchecked.
        let raw: Pairs<Pairs<String>> = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let mut banks = BTreeMap::new();
        for (name, values) in raw.0 {
            let alg = HashAlg::from_name(&name).ok_or_else(|| bad(format!("unknown bank {name:?}")))?;
            let mut pcrs = BTreeMap::new();
            for (index, value) in values.0 {
                let pcr: u8 =
                    index.parse().ok().filter(|pcr| *pcr < 24).ok_or_else(|| bad(format!("{name}: PCR {index:?}")))?;
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
        Ok(Self(banks))
    }

    fn get(&self, alg: HashAlg, pcr: u8) -> Option<Digest> {
        self.0.get(&alg)?.get(&pcr).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        let (zero, one) = ("00".repeat(32), "11".repeat(32));
        let parse = |text: String| Pcrs::parse(text.as_bytes()).map(|pcrs| pcrs.0.len()).map_err(|e| e.got);
        assert_eq!(parse(format!(r#"{{"sha256": {{"0": "{zero}", "1": "{one}"}}}}"#)), Ok(1));
        for (twice, says) in [
            (format!(r#"{{"sha256": {{"0": "{zero}"}}, "sha256": {{"0": "{one}"}}}}"#), "bank \"sha256\" twice"),
            (format!(r#"{{"sha256": {{"0": "{zero}", "0": "{one}"}}}}"#), "sha256:0 twice"),
            (format!(r#"{{"sha256": {{"0": "{zero}", "00": "{one}"}}}}"#), "sha256:0 twice"),
        ] {
            assert_eq!(parse(twice), Err(says.to_owned()));
        }
    }
}
