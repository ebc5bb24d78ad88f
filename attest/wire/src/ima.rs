//! The kernel's binary IMA list (`binary_runtime_measurements`), templates ima-ng and ima-sig.
//!
//! Source: Linux `security/integrity/ima` (ima_fs.c, ima_template.c); fields are in the machine's byte order, little endian here.

use countersign_tpm::alg::{Digest, HashAlg};

use crate::codec::{Malformed, Reader, Reason};
use crate::limits;

/// PCR that IMA extends by default.
pub const PCR: u8 = 10;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Index in this part of the list.
    pub index: u64,
    /// PCR that the list says it extended.
    pub pcr: u32,
    /// SHA-1 template hash as logged; zeros for a violation.
    template_hash: [u8; 20],
    /// Template data, as hashed.
    template_data: &'a [u8],
    /// `alg:hex` source: algorithm name of the file's digest.
    pub digest_alg: &'a [u8],
    /// The file's digest.
    pub digest: &'a [u8],
    /// Path as the kernel logged it.
    pub path: &'a [u8],
    /// File signature (ima-sig), empty when there is none.
    pub signature: &'a [u8],
}

/// Why bytes are not an IMA list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("IMA entry {index}: {malformed}")]
pub struct BadIma {
    /// Index of the entry in this part.
    pub index: u64,
    /// The field, its offset and what is wrong.
    pub malformed: Malformed,
}

/// Iterates over the entries of a list; stops after the first error.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    index: u64,
    failed: bool,
}

/// The entries of a list.
///
/// # Errors
/// More bytes than one piece of evidence may carry.
pub fn entries(bytes: &[u8]) -> Result<Entries<'_>, BadIma> {
    let reader = Reader::new(bytes);
    if bytes.len() > limits::IMA_LIST {
        let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let max = u64::try_from(limits::IMA_LIST).unwrap_or(u64::MAX);
        return Err(BadIma { index: 0, malformed: reader.bad("IMA list", Reason::TooLarge { got, max }) });
    }
    Ok(Entries { reader, index: 0, failed: false })
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BadIma>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.left() == 0 {
            return None;
        }
        let index = self.index;
        self.index = index.saturating_add(1);
        let entry = entry(&mut self.reader, index).map_err(|malformed| BadIma { index, malformed });
        self.failed = entry.is_err();
        Some(entry)
    }
}

fn entry<'a>(reader: &mut Reader<'a>, index: u64) -> Result<Entry<'a>, Malformed> {
    let at = reader.clone();
    let pcr = reader.u32_le("pcr")?;
    if pcr >= 24 {
        return Err(at.bad("pcr", Reason::Value(pcr.into())));
    }
    let template_hash = reader.array("template hash")?;
    let at = reader.clone();
    let name = sized(reader, "template name", 64)?;
    let with_signature = match name {
        b"ima-ng" => false,
        b"ima-sig" => true,
        _ => return Err(at.bad("template name", Reason::Other("only ima-ng and ima-sig are supported"))),
    };
    let length = usize::try_from(reader.u32_le("template data length")?).unwrap_or(usize::MAX);
    let template_data = reader.clone().take(length, "template data")?;
    let mut fields = reader.sub(length, "template data")?;
    // d-ng: "alg:" NUL digest
    let mut d_ng = {
        let n = usize::try_from(fields.u32_le("d-ng length")?).unwrap_or(usize::MAX);
        fields.sub(n, "d-ng")?
    };
    let at = d_ng.clone();
    let whole = d_ng.rest();
    let colon = whole.windows(2).position(|pair| pair == b":\0");
    let (digest_alg, digest) = colon
        .and_then(|colon| Some((whole.get(..colon)?, whole.get(colon.checked_add(2)?..)?)))
        .ok_or_else(|| at.bad("d-ng", Reason::Other("no \"algorithm:\" in front of the digest")))?;
    let at = fields.clone();
    let path = sized(&mut fields, "n-ng", 4096)?;
    let path = path.strip_suffix(&[0]).ok_or_else(|| at.bad("n-ng", Reason::Other("no terminating NUL")))?;
    let signature = if with_signature { sized(&mut fields, "sig", 4096)? } else { &[] };
    fields.end("template data")?;
    Ok(Entry { index, pcr, template_hash, template_data, digest_alg, digest, path, signature })
}

fn sized<'a>(reader: &mut Reader<'a>, field: &'static str, max: u32) -> Result<&'a [u8], Malformed> {
    let at = reader.clone();
    let length = reader.u32_le(field)?;
    if length > max {
        return Err(at.bad(field, Reason::TooLarge { got: length.into(), max: max.into() }));
    }
    reader.take(usize::try_from(length).unwrap_or(usize::MAX), field)
}

impl Entry<'_> {
    /// A violation: the kernel could not vouch for the file and extends ones.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        self.template_hash == [0; 20]
    }

    /// What the kernel extends into a bank: the template's hash in that bank.
    #[must_use]
    pub fn extends(&self, alg: HashAlg) -> Digest {
        if self.is_violation() { Digest::filled(alg, 0xff) } else { alg.digest(&[self.template_data]) }
    }

    /// What older kernels extend into a bank whose hash they do not compute: the SHA-1 hash with zeros behind it.
    #[must_use]
    pub fn extends_padded(&self, alg: HashAlg) -> Digest {
        if self.is_violation() {
            return Digest::filled(alg, 0xff);
        }
        let mut padded = self.template_hash.to_vec();
        padded.resize(alg.size(), 0);
        Digest::new(alg, &padded).unwrap_or_else(|| Digest::filled(alg, 0))
    }
}

/// The part of a list that a quote covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Entries covered.
    pub entries: u64,
    /// Bytes of the list that they take.
    pub bytes: usize,
    /// Violations among them.
    pub violations: u64,
}

/// Why a list does not lead to the quoted values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImaReplayError {
    /// An entry within the list breaks the format before the quoted values were reached.
    #[error(transparent)]
    Malformed(#[from] BadIma),
    /// No prefix leads to the values of all banks at once.
    #[error("no prefix of the list's {entries} entries leads to PCR 10 in all of {banks}")]
    NoPrefix {
        /// Entries tried.
        entries: u64,
        /// The banks.
        banks: String,
    },
}

/// Finds the one prefix that leads from `start` to `quoted` in every bank. What lies beyond is not read.
///
/// # Errors
/// [`ImaReplayError`].
pub fn replay_to(bytes: &[u8], start: &[Digest], quoted: &[Digest]) -> Result<Prefix, ImaReplayError> {
    // Each bank has two candidates: its own hash, and the padded SHA-1 of older kernels. Which one holds is the same for all entries.
    let mut banks: Vec<(Digest, Digest, &Digest)> =
        start.iter().zip(quoted).map(|(start, quoted)| (*start, *start, quoted)).collect();
    let arrived = |banks: &[(Digest, Digest, &Digest)]| {
        banks.iter().all(|(own, padded, quoted)| own == *quoted || padded == *quoted)
    };
    let mut reader = entries(bytes)?;
    let mut prefix = Prefix { entries: 0, bytes: 0, violations: 0 };
    if arrived(&banks) {
        return Ok(prefix);
    }
    while let Some(entry) = reader.next() {
        let entry = entry?;
        prefix.entries = prefix.entries.saturating_add(1);
        prefix.violations = prefix.violations.saturating_add(entry.is_violation().into());
        // An entry for another PCR leaves PCR 10 as it is.
        if entry.pcr != u32::from(PCR) {
            continue;
        }
        for (own, padded, _) in &mut banks {
            let alg = own.alg();
            *own = own.extend(entry.extends(alg).as_bytes());
            if !matches!(alg, HashAlg::Sha1 | HashAlg::Sha256) {
                *padded = padded.extend(entry.extends_padded(alg).as_bytes());
            }
        }
        if arrived(&banks) {
            prefix.bytes = reader.reader.offset();
            return Ok(prefix);
        }
    }
    let names: Vec<&str> = start.iter().map(|digest| digest.alg().name()).collect();
    Err(ImaReplayError::NoPrefix { entries: prefix.entries, banks: names.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = include_bytes!("../../../fixtures/nosb-direct-k6.1-sha384-imapad/ima_binary");
    const PCRS: &str = include_str!("../../../fixtures/nosb-direct-k6.1-sha384-imapad/PCRS.json");
    const LONG: &[u8] = include_bytes!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/ima_binary");
    const LONG_PCRS: &str = include_str!("../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/PCRS.json");

    fn quoted(pcrs: &str) -> Vec<Digest> {
        let pcrs: serde_json::Value = serde_json::from_str(pcrs).unwrap();
        let value = |alg: HashAlg| {
            let text = pcrs[alg.name()]["10"].as_str()?;
            Digest::new(alg, &hex::decode(text).unwrap())
        };
        HashAlg::ALL.into_iter().filter_map(value).collect()
    }

    fn start(quoted: &[Digest]) -> Vec<Digest> {
        quoted.iter().map(|digest| Digest::filled(digest.alg(), 0)).collect()
    }

    #[test]
    fn recorded_lists_replay_in_every_bank() {
        for (list, pcrs, violations) in [(LIST, PCRS, 0), (LONG, LONG_PCRS, 1)] {
            let quoted = quoted(pcrs);
            assert_eq!(quoted.len(), 3);
            let prefix = replay_to(list, &start(&quoted), &quoted).unwrap();
            assert_eq!(prefix.bytes, list.len());
            assert_eq!(prefix.violations, violations);
        }
    }

    #[test]
    fn what_lies_beyond_the_prefix_is_not_read() {
        let quoted = quoted(LONG_PCRS);
        let beyond = [LONG, b"no entry at all, and it is never looked at"].concat();
        let prefix = replay_to(&beyond, &start(&quoted), &quoted).unwrap();
        assert_eq!(prefix.bytes, LONG.len());
    }

    #[test]
    fn altered_or_shortened_lists_do_not_replay() {
        let quoted = quoted(LONG_PCRS);
        for entry in entries(LONG).unwrap().map(Result::unwrap).filter(|entry| !entry.is_violation()).step_by(50) {
            let at = entry.path.as_ptr().addr() - LONG.as_ptr().addr();
            let mut changed = LONG.to_vec();
            changed[at] ^= 1;
            assert!(replay_to(&changed, &start(&quoted), &quoted).is_err(), "entry {}", entry.index);
        }
        assert!(replay_to(&LONG[..LONG.len() - 1], &start(&quoted), &quoted).is_err());
        let mut other = quoted.clone();
        other[0] = Digest::filled(other[0].alg(), 1);
        assert!(matches!(replay_to(LONG, &start(&quoted), &other), Err(ImaReplayError::NoPrefix { .. })));
    }

    #[test]
    fn truncations_and_lengths() {
        for end in 0..LIST.len() {
            let all: Result<Vec<_>, _> = entries(&LIST[..end]).unwrap().collect();
            assert_eq!(all.is_ok(), end == 0, "{end}");
        }
        for at in 0..LIST.len() {
            let mut changed = LIST.to_vec();
            changed[at] = 0xff;
            let _: Vec<_> = entries(&changed).unwrap().collect();
        }
        let first = entries(LIST).unwrap().next().unwrap().unwrap();
        assert_eq!((first.path, first.digest_alg), (&b"boot_aggregate"[..], &b"sha256"[..]));
    }
}
