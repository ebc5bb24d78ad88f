//! Layers: tar archives (ustar, pax, GNU), read as a stream, with limits where an archive names its own sizes.

use std::io::{self, Read, Take};

use flate2::read::MultiGzDecoder;
use ring::digest::Context;
use tar::{Header, PaxExtensions};

use super::store::{Digest, Store};
use super::{EXPANDED, EXTENSION, MEMBERS, NAMES, PATH, bad};
use crate::error::SifError;

/// Bytes of a tar block.
const BLOCK: usize = 512;

#[derive(Debug, Clone, Copy)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the layer's media type: the OCI's (also of layers that are not to be distributed) and Docker's.
    pub(super) fn of(media_type: &str) -> Option<Self> {
        let oci = media_type.strip_prefix("application/vnd.oci.image.layer.");
        let oci = oci.map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
        match oci {
            Some("v1.tar") => Some(Self::None),
            Some("v1.tar+gzip") => Some(Self::Gzip),
            Some("v1.tar+zstd") => Some(Self::Zstd),
            Some(_) => None,
            None => match media_type.strip_prefix("application/vnd.docker.image.rootfs.")? {
                "diff.tar" => Some(Self::None),
                "diff.tar.gzip" | "foreign.diff.tar.gzip" => Some(Self::Gzip),
                "diff.tar.zstd" => Some(Self::Zstd),
                _ => None,
            },
        }
    }
}

/// A layer as the manifest and the configuration name it.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) compression: Compression,
    /// Of the uncompressed archive.
    pub(super) diff_id: Digest,
}

/// What is left for all layers together.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    members: u64,
    names: u64,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { bytes: EXPANDED, members: MEMBERS, names: NAMES }
    }

    fn spend(&mut self, member: &Member) -> Result<(), SifError> {
        let names = member.path.len().saturating_add(member.kind.target().len());
        self.members = self.members.checked_sub(1).ok_or_else(|| bad(format!("more than {MEMBERS} files")))?;
        self.names = self
            .names
            .checked_sub(u64::try_from(names).unwrap_or(u64::MAX))
            .ok_or_else(|| bad(format!("more than {NAMES} bytes of names")))?;
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    /// A device node or a FIFO.
    Special,
}

impl Kind {
    fn target(&self) -> &[u8] {
        match self {
            Self::Symlink(target) | Self::Hardlink(target) => target,
            Self::File | Self::Folder | Self::Special => &[],
        }
    }
}

/// One member as its header has it; nothing of it is checked but its length.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) mtime: u64,
    pub(super) size: u64,
}

/// An uncompressed archive, hashed and counted while it is read.
pub(super) struct Expanded<'a> {
    inner: Box<dyn Read + 'a>,
    hash: Context,
    left: &'a mut u64,
}

impl Read for Expanded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.checked_sub(u64::try_from(n).unwrap_or(u64::MAX));
        *self.left =
            left.ok_or_else(|| io::Error::other(format!("the layers expand to more than {EXPANDED} bytes")))?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl Expanded<'_> {
    fn hashed(self) -> Context {
        self.hash
    }
}

impl Layer {
    /// Calls `each` with every member, its number, and its contents. Afterwards both digests were checked.
    pub(super) fn each(
        &self,
        store: &Store,
        budget: &mut Budget,
        mut each: impl FnMut(u64, Member, &mut dyn Read) -> Result<(), SifError>,
    ) -> Result<(), SifError> {
        let mut blob = store.blob(&self.digest, self.size)?;
        let mut bytes = budget.bytes;
        let inner: Box<dyn Read + '_> = match self.compression {
            Compression::None => Box::new(&mut blob),
            Compression::Gzip => Box::new(MultiGzDecoder::new(&mut blob)),
            Compression::Zstd => Box::new(zstd::Decoder::new(&mut blob)?),
        };
        let mut source = Expanded { inner, hash: Context::new(self.diff_id.algorithm()), left: &mut bytes };
        let mut number: u64 = 0;
        let outcome = members(&mut source, skip, |member, body| {
            budget.spend(&member)?;
            each(number, member, body)?;
            number = number.saturating_add(1);
            Ok(())
        });
        // What the archive says of itself wrongly, and bytes behind its end, are found below; a decompressor's failure is not.
        outcome.map_err(|e| if let SifError::Io(e) = e { bad(format!("layer {}: {e}", self.digest)) } else { e })?;
        io::copy(&mut source, &mut io::sink())?;
        let hash = source.hashed();
        budget.bytes = bytes;
        blob.check()?;
        if self.diff_id.is(hash) {
            Ok(())
        } else {
            Err(bad(format!("layer {} does not expand to its diff_id", self.digest)))
        }
    }
}

fn skip(source: &mut Expanded<'_>, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut source.take(bytes), &mut io::sink())?;
    if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Calls `each` for every member of an archive; what it leaves of the contents is skipped.
pub(super) fn members<R: Read>(
    source: &mut R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    mut each: impl FnMut(Member, &mut Take<&mut R>) -> Result<(), SifError>,
) -> Result<(), SifError> {
    let (mut path, mut link, mut length): (Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>) = (None, None, None);
    let mut block = [0; BLOCK];
    // A missing end mark is accepted, as tar does.
    while filled(source, &mut block)? {
        if block == [0; BLOCK] {
            return Ok(());
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = block.get(148..156).unwrap_or_default().iter().map(|byte| u32::from(*byte)).sum();
        // The checksum counts its own field as spaces.
        if header.cksum()? != sum.saturating_sub(own).saturating_add(8 * 32) {
            return Err(bad("a header's checksum is wrong"));
        }
        // POSIX.1-2017 (pax), section "ustar Interchange Format", and GNU's L, K.
        let flag = header.entry_type().as_byte();
        let own_size = header.entry_size()?;
        if matches!(flag, b'L' | b'K' | b'x') {
            if own_size > EXTENSION {
                return Err(bad(format!("an extended header of {own_size} bytes, at most {EXTENSION}")));
            }
            let mut value = Vec::new();
            source.take(own_size).read_to_end(&mut value)?;
            skip(source, own_size.wrapping_neg() % 512)?;
            match flag {
                b'L' => path = Some(text(&value)),
                b'K' => link = Some(text(&value)),
                _ => {
                    for field in PaxExtensions::new(&value) {
                        let field = field?;
                        match field.key_bytes() {
                            b"path" => path = Some(field.value_bytes().to_vec()),
                            b"linkpath" => link = Some(field.value_bytes().to_vec()),
                            b"size" => {
                                let digits = field.value().ok().and_then(|digits| digits.parse().ok());
                                length = Some(digits.ok_or_else(|| bad("a size that is no number"))?);
                            }
                            _ => {}
                        }
                    }
                }
            }
            continue;
        }
        let target = link.take().or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default();
        let name = path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let size = length.take().unwrap_or(own_size);
        let kind = match flag {
            b'0' | b'7' if name.last() == Some(&b'/') => Some(Kind::Folder),
            b'0' | b'7' => Some(Kind::File),
            b'1' => Some(Kind::Hardlink(target)),
            b'2' => Some(Kind::Symlink(target)),
            b'3' | b'4' | b'6' => Some(Kind::Special),
            b'5' => Some(Kind::Folder),
            // About all that follow, and nothing in it that is used.
            b'g' => None,
            other => return Err(bad(format!("a member of kind {:?} (sparse files are not read)", char::from(other)))),
        };
        // Only files have contents; a size that other members carry is that of their target.
        let size = match &kind {
            Some(Kind::File) | None => size,
            Some(Kind::Folder | Kind::Symlink(_) | Kind::Hardlink(_) | Kind::Special) => 0,
        };
        let mut body = source.take(size);
        if let Some(kind) = kind {
            if name.len() > PATH || kind.target().len() > PATH {
                return Err(bad(format!("a name longer than {PATH} bytes")));
            }
            let (mode, mtime) = (header.mode()? & 0o7777, header.mtime().unwrap_or(0));
            each(Member { path: name, kind, mode, mtime, size }, &mut body)?;
        }
        let left = body.limit().saturating_add(size.wrapping_neg() % 512);
        skip(source, left)?;
    }
    Ok(())
}

/// Up to the first NUL.
fn text(value: &[u8]) -> Vec<u8> {
    value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Fills a block; false at the end of the source.
fn filled(source: &mut impl Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    let (first, rest) = block.split_at_mut(1);
    if source.read(first)? == 0 {
        return Ok(false);
    }
    source.read_exact(rest)?;
    Ok(true)
}
