//! The fields of an entry.

use countersign_tpm::alg::{Digest, HashAlg};

use super::hash::KernelHash;
use super::list::{BadIma, Frame, Frames, frames, sized};
use super::template::{Field, Layout, OLD};
use crate::codec::{Malformed, Reader, Reason};

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DigestKind {
    /// The template does not say (`d`, `d-ng`).
    Unsaid,
    /// The file's contents (`d-ngv2`, `ima`).
    File,
    /// The file's fs-verity descriptor (`d-ngv2`, `verity`).
    Verity,
}

/// One entry. What its template has no field for is empty.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Index in this part of the list.
    pub index: u64,
    /// PCR that the list says it extended.
    pub pcr: u32,
    /// What the digest is of.
    pub digest_kind: DigestKind,
    /// Name of the algorithm of the file's digest.
    pub digest_alg: &'a [u8],
    /// The file's digest. Of a known algorithm it has that algorithm's length.
    pub digest: &'a [u8],
    /// Path as the kernel logged it, or the name of a buffer. The kernel writes `_` for a space.
    pub path: &'a [u8],
    /// File signature: type, header and signature ([`super::FileSignature`]).
    pub signature: &'a [u8],
    /// The measured buffer (`buf`), when the template has one.
    pub buffer: Option<&'a [u8]>,
    frame: Frame<'a>,
}

impl<'a> Entry<'a> {
    /// A violation: the kernel could not vouch for the file and extends ones. Everything else in the entry is then only named.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        self.frame.is_violation()
    }

    /// As [`Frame::extends`].
    #[must_use]
    pub fn extends(&self, alg: HashAlg) -> Digest {
        self.frame.extends(alg)
    }

    /// As [`Frame::extends_padded`].
    #[must_use]
    pub fn extends_padded(&self, alg: HashAlg) -> Digest {
        self.frame.extends_padded(alg)
    }

    /// The entry as it stands in the list.
    #[must_use]
    pub const fn frame(&self) -> &Frame<'a> {
        &self.frame
    }

    /// The contents of any field that the template has.
    #[must_use]
    pub fn field(&self, wanted: Field) -> Option<&'a [u8]> {
        let layout = Layout::of(self.frame.template).ok()?;
        if self.frame.template == OLD {
            let fields = [(Field::D, self.digest), (Field::N, self.path)];
            return fields.into_iter().find(|(field, _)| *field == wanted).map(|(_, value)| value);
        }
        let mut reader = self.frame.data.clone();
        for field in layout.fields() {
            let value = sized(&mut reader, field.id(), u32::MAX).ok()?;
            if *field == wanted {
                return Some(value);
            }
        }
        None
    }

    /// Algorithm and digest of the file without its appended signature (`d-modsig`), where the template has them and they are not empty.
    #[must_use]
    pub fn modsig_digest(&self) -> Option<(&'a [u8], &'a [u8])> {
        digest(self.field(Field::DModsig)?, &Reader::new(&[]), "d-modsig").ok()
    }

    /// Whether a buffer entry's digest is the digest of its buffer; `None` without a buffer or for an algorithm that is not computed here.
    #[must_use]
    pub fn buffer_is_digested(&self) -> Option<bool> {
        let alg = std::str::from_utf8(self.digest_alg).ok().and_then(HashAlg::from_name)?;
        Some(alg.digest(&[self.buffer?]).as_bytes() == self.digest)
    }
}

/// Iterates over the entries of a list; stops after the first error.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    frames: Frames<'a>,
    /// The last template, which nearly always is the next one too.
    layout: Option<(&'a [u8], Layout)>,
    failed: bool,
}

/// The entries of a list.
///
/// # Errors
/// More bytes than one piece of evidence may carry.
pub fn entries(bytes: &[u8]) -> Result<Entries<'_>, BadIma> {
    Ok(Entries { frames: frames(bytes)?, layout: None, failed: false })
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BadIma>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let entry = match self.frames.next()? {
            Ok(frame) => {
                let index = frame.index;
                self.entry(frame).map_err(|malformed| BadIma { index, malformed })
            }
            Err(e) => Err(e),
        };
        self.failed = entry.is_err();
        Some(entry)
    }
}

impl<'a> Entries<'a> {
    fn entry(&mut self, frame: Frame<'a>) -> Result<Entry<'a>, Malformed> {
        let layout = match self.layout {
            Some((name, layout)) if name == frame.template => layout,
            _ => {
                let layout = Layout::of(frame.template).map_err(|reason| frame.data.bad("template name", reason))?;
                self.layout = Some((frame.template, layout));
                layout
            }
        };
        let mut entry = Entry {
            index: frame.index,
            pcr: frame.pcr,
            digest_kind: DigestKind::Unsaid,
            digest_alg: &[],
            digest: &[],
            path: &[],
            signature: &[],
            buffer: None,
            frame,
        };
        let mut reader = entry.frame.data.clone();
        if entry.frame.template == OLD {
            entry.digest_alg = KernelHash::SHA1.name().as_bytes();
            entry.digest = reader.take(20, "d")?;
            let at = reader.clone();
            entry.path = name(sized(&mut reader, "n", 255)?, &at, "n")?;
        } else {
            for field in layout.fields() {
                let at = reader.clone();
                let value = sized(&mut reader, field.id(), u32::MAX)?;
                entry.take(*field, value, &at)?;
            }
        }
        reader.end("template data")?;
        Ok(entry)
    }
}

impl<'a> Entry<'a> {
    fn take(&mut self, field: Field, value: &'a [u8], at: &Reader<'a>) -> Result<(), Malformed> {
        match field {
            Field::DNg => (self.digest_alg, self.digest) = digest(value, at, "d-ng")?,
            Field::DNgV2 => {
                let (prefix, digest) = digest(value, at, "d-ngv2")?;
                let (kind, alg) = match (prefix.strip_prefix(b"ima:"), prefix.strip_prefix(b"verity:")) {
                    (Some(alg), _) => (DigestKind::File, alg),
                    (None, Some(alg)) => (DigestKind::Verity, alg),
                    (None, None) => return Err(at.bad("d-ngv2", Reason::Other("neither \"ima:\" nor \"verity:\""))),
                };
                check_length(alg, digest, at, "d-ngv2")?;
                (self.digest_kind, self.digest_alg, self.digest) = (kind, alg, digest);
            }
            // Only where there is no better one.
            Field::D if self.digest.is_empty() => {
                let alg: &[u8] = match value.len() {
                    20 => b"sha1",
                    16 => b"md5",
                    _ => return Err(at.bad("d", Reason::Other("a digest of neither 16 nor 20 bytes"))),
                };
                (self.digest_alg, self.digest) = (alg, value);
            }
            Field::NNg => self.path = terminated(value, at, "n-ng")?,
            Field::N if self.path.is_empty() => self.path = terminated(value, at, "n")?,
            Field::Sig => self.signature = value,
            Field::Buf => self.buffer = Some(value),
            Field::DModsig if !value.is_empty() => drop(digest(value, at, "d-modsig")?),
            Field::D
            | Field::N
            | Field::DModsig
            | Field::Modsig
            | Field::Iuid
            | Field::Igid
            | Field::Imode
            | Field::XattrNames
            | Field::XattrLengths
            | Field::XattrValues
            | Field::EvmSig => {}
        }
        Ok(())
    }
}

/// `algorithm:` NUL digest; for `d-ngv2` the kind stands in front.
fn digest<'a>(value: &'a [u8], at: &Reader<'a>, field: &'static str) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let nul = value.iter().position(|byte| *byte == 0);
    let parts = nul.and_then(|nul| Some((value.get(..nul)?.strip_suffix(b":")?, value.get(nul.checked_add(1)?..)?)));
    let (prefix, digest) =
        parts.ok_or_else(|| at.bad(field, Reason::Other("no \"algorithm:\" in front of the digest")))?;
    if field != "d-ngv2" {
        check_length(prefix, digest, at, field)?;
    }
    Ok((prefix, digest))
}

/// A digest of a known algorithm has that algorithm's length; unknown ones are kept as they are.
fn check_length(alg: &[u8], digest: &[u8], at: &Reader<'_>, field: &'static str) -> Result<(), Malformed> {
    match KernelHash::from_name(alg) {
        Some(known) if known.size() != digest.len() => {
            Err(at.bad(field, Reason::Other("a digest of another length than its algorithm's")))
        }
        _ => Ok(()),
    }
}

fn terminated<'a>(value: &'a [u8], at: &Reader<'_>, field: &'static str) -> Result<&'a [u8], Malformed> {
    let path = value.strip_suffix(&[0]).ok_or_else(|| at.bad(field, Reason::Other("no terminating NUL")))?;
    name(path, at, field)
}

fn name<'a>(path: &'a [u8], at: &Reader<'_>, field: &'static str) -> Result<&'a [u8], Malformed> {
    if path.contains(&0) {
        return Err(at.bad(field, Reason::Other("a NUL within the name")));
    }
    Ok(path)
}
