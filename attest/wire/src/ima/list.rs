//! The frame of an entry: where it begins and ends, and what the kernel hashes. The fields inside are for [`super::entries`].

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::sha256;

use super::template::{MAX_NAME, OLD};
use crate::codec::{Malformed, Reader, Reason};
use crate::limits;

/// Bytes in front of the template's name: PCR, SHA-1 template hash, length of the name.
const HEAD: usize = 28;
/// Digest of an entry of the template `ima`, in bytes.
const OLD_DIGEST: usize = 20;
/// Bytes that the template `ima` hashes of a name: what it has, then NULs (Linux: IMA_EVENT_NAME_LEN_MAX + 1).
const OLD_NAME: usize = 256;

/// Why bytes are not an IMA list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("IMA entry {index}: {malformed}")]
pub struct BadIma {
    /// Index of the entry in this part.
    pub index: u64,
    /// The field, its offset and what is wrong.
    pub malformed: Malformed,
}

/// One entry, not yet taken apart.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// Index in this part of the list.
    pub index: u64,
    /// Offset of its first byte in this part of the list.
    pub offset: usize,
    /// PCR that the list says it extended.
    pub pcr: u32,
    /// Name of the template, or its format string.
    pub template: &'a [u8],
    /// SHA-1 template hash as logged; zeros for a violation.
    pub(super) template_hash: [u8; 20],
    /// The fields as they stand in the list. Of the template `ima` digest, length of the name, name.
    pub(super) data: Reader<'a>,
}

impl<'a> Frame<'a> {
    /// A violation: the kernel could not vouch for the file and extends ones.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        self.template_hash == [0; 20]
    }

    /// The fields as they stand in the list.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data.clone().rest()
    }

    /// Digest and path of what nearly all entries are: a file with a SHA-256 digest, template ima-ng or ima-sig, and no violation. `None` for any
    /// other, and for one that is not formed as it should be: [`super::entries`] tells.
    #[must_use]
    pub fn plain(&self) -> Option<(&'a [u8; 32], &'a [u8])> {
        let rest = self.data().strip_prefix(b"\x28\0\0\0sha256:\0")?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let ends = match self.template {
            b"ima-ng" => rest.is_empty(),
            b"ima-sig" => {
                let (length, signature) = rest.split_first_chunk()?;
                usize::try_from(u32::from_le_bytes(*length)) == Ok(signature.len())
            }
            _ => false,
        };
        let path = path.strip_suffix(&[0])?;
        // A name with a NUL in it is malformed: the field reader says so.
        (ends && !path.contains(&0) && !self.is_violation()).then_some((digest, path))
    }

    /// The template's hash, as the kernel computes it.
    fn hash(&self, alg: HashAlg) -> Digest {
        let data = self.data();
        if self.template != OLD {
            return alg.digest(&[data]);
        }
        // Of the old template: the digest, then the name in a field of 256 bytes; no lengths.
        let (digest, rest) = data.split_at_checked(OLD_DIGEST).unwrap_or((data, &[]));
        let name = rest.get(4..).unwrap_or_default();
        let padding = [0; OLD_NAME];
        alg.digest(&[digest, name, padding.get(name.len()..).unwrap_or_default()])
    }

    /// What the kernel extends into a bank: the template's hash in that bank.
    #[must_use]
    pub fn extends(&self, alg: HashAlg) -> Digest {
        if self.is_violation() { Digest::filled(alg, 0xff) } else { self.hash(alg) }
    }

    /// As [`Frame::extends`] for SHA-256.
    pub(super) fn extends_sha256(&self) -> [u8; 32] {
        if self.is_violation() {
            return [0xff; 32];
        }
        if self.template == OLD {
            return self.hash(HashAlg::Sha256).as_bytes().try_into().unwrap_or([0xff; 32]);
        }
        sha256::digest(self.data())
    }

    /// What older kernels extend into a bank whose hash they do not compute: the SHA-1 hash with zeros behind it. The hash is computed, not
    /// taken from the list, which nobody vouches for.
    #[must_use]
    pub fn extends_padded(&self, alg: HashAlg) -> Digest {
        if self.is_violation() {
            return Digest::filled(alg, 0xff);
        }
        let mut padded = [0; countersign_tpm::alg::MAX_DIGEST];
        let hash = self.hash(HashAlg::Sha1);
        for (to, from) in padded.iter_mut().zip(hash.as_bytes()) {
            *to = *from;
        }
        padded.get(..alg.size()).and_then(|bytes| Digest::new(alg, bytes)).unwrap_or(hash)
    }

    /// Whether the logged SHA-1 template hash is that of the fields, or this is a violation.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.is_violation() || self.hash(HashAlg::Sha1).as_bytes() == self.template_hash
    }
}

/// Iterates over the frames of a list; stops after the first error.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    reader: Reader<'a>,
    index: u64,
    failed: bool,
}

/// The frames of a list.
///
/// # Errors
/// More bytes than one piece of evidence may carry.
pub fn frames(bytes: &[u8]) -> Result<Frames<'_>, BadIma> {
    let reader = Reader::new(bytes);
    if bytes.len() > limits::IMA_LIST {
        let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let max = u64::try_from(limits::IMA_LIST).unwrap_or(u64::MAX);
        return Err(BadIma { index: 0, malformed: reader.bad("IMA list", Reason::TooLarge { got, max }) });
    }
    Ok(Frames { reader, index: 0, failed: false })
}

impl Frames<'_> {
    /// Bytes of the list that were read so far.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.reader.offset()
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BadIma>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.left() == 0 {
            return None;
        }
        let index = self.index;
        self.index = index.saturating_add(1);
        let frame = frame(&mut self.reader, index).map_err(|malformed| BadIma { index, malformed });
        self.failed = frame.is_err();
        Some(frame)
    }
}

fn frame<'a>(reader: &mut Reader<'a>, index: u64) -> Result<Frame<'a>, Malformed> {
    let at = reader.clone();
    let pcr = reader.u32_le("pcr")?;
    if pcr >= 24 {
        return Err(at.bad("pcr", Reason::Value(pcr.into())));
    }
    let template_hash = reader.array("template hash")?;
    let template = sized(reader, "template name", MAX_NAME)?;
    let length = if template == OLD {
        let mut ahead = reader.clone();
        ahead.take(OLD_DIGEST, "digest")?;
        let name = sized(&mut ahead, "name", 255)?;
        name.len().saturating_add(OLD_DIGEST).saturating_add(4)
    } else {
        usize::try_from(reader.u32_le("template data length")?).unwrap_or(usize::MAX)
    };
    let data = reader.sub(length, "template data")?;
    let offset = at.offset();
    Ok(Frame { index, offset, pcr, template, template_hash, data })
}

/// A length, at most `max`, and that many bytes.
pub(super) fn sized<'a>(reader: &mut Reader<'a>, field: &'static str, max: u32) -> Result<&'a [u8], Malformed> {
    let at = reader.clone();
    let length = reader.u32_le(field)?;
    if length > max {
        return Err(at.bad(field, Reason::TooLarge { got: length.into(), max: max.into() }));
    }
    reader.take(usize::try_from(length).unwrap_or(usize::MAX), field)
}

/// How long an entry is, as far as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The whole entry has this many bytes.
    Bytes(u64),
    /// This many bytes are needed to tell.
    Needs(usize),
}

/// The extent of the entry that `bytes` begin with: for readers that skip entries without holding a list in memory.
///
/// # Errors
/// [`Malformed`]: the template's name is too long.
pub fn extent(bytes: &[u8]) -> Result<Extent, Malformed> {
    let Some(head) = bytes.get(..HEAD) else { return Ok(Extent::Needs(HEAD)) };
    let mut reader = Reader::new(head);
    reader.take(24, "pcr and template hash")?;
    let at = reader.clone();
    let name = reader.u32_le("template name")?;
    if name > MAX_NAME {
        return Err(at.bad("template name", Reason::TooLarge { got: name.into(), max: MAX_NAME.into() }));
    }
    let behind = HEAD.saturating_add(usize::try_from(name).unwrap_or(usize::MAX));
    let Some(template) = bytes.get(HEAD..behind) else { return Ok(Extent::Needs(behind)) };
    let fixed = if template == OLD { behind.saturating_add(OLD_DIGEST) } else { behind };
    let data = fixed.saturating_add(4);
    let Some(length) = bytes.get(fixed..data) else { return Ok(Extent::Needs(data)) };
    let length = Reader::new(length).u32_le("template data length")?;
    Ok(Extent::Bytes(u64::try_from(data).unwrap_or(u64::MAX).saturating_add(length.into())))
}
