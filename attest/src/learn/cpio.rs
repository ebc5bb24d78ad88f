//! From an initrd: cpio archives one after the other, each plain or compressed (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use countersign_wire::refset::Origin;

use super::hashing::{digest, line, rooted};
use super::unpack::{self, Format};
use super::{LearnError, about, name_of};

/// Longest path (Linux: PATH_MAX).
const PATH: u64 = 4096;
/// Bytes of a header in the format `newc`.
const HEADER: usize = 110;

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cpio: {}", what.into()))
}

/// Every regular file of an initrd.
///
/// # Errors
/// It is none, is compressed with something else than gzip, zstd and xz, or `xz` is missing.
pub fn initrd(path: &Path) -> Result<Origin, LearnError> {
    let mut origin = Origin::new("initrd", name_of(path));
    let mut read = || {
        let mut source = BufReader::new(File::open(path)?);
        archives(&mut source, &mut origin, true)
    };
    read().map_err(about(path))?;
    Ok(origin)
}

/// All archives of a stream.
fn archives(mut source: &mut dyn BufRead, origin: &mut Origin, outer: bool) -> io::Result<()> {
    let mut any = false;
    loop {
        skip_zeros(&mut source)?;
        let head = source.fill_buf()?;
        if head.is_empty() {
            return if any { Ok(()) } else { Err(invalid("no archive")) };
        }
        any = true;
        let format = Format::of(head);
        match format {
            Format::Plain => archive(&mut source, origin)?,
            _ if !outer => return Err(invalid("a compressed archive within a compressed one")),
            // A gzip member has an end, so other archives may follow it.
            Format::Gzip => {
                let mut decoder = BufReader::new(flate2::bufread::GzDecoder::new(&mut *source));
                archives(&mut decoder, origin, false)?;
            }
            Format::Zstd | Format::Xz | Format::Other(_) => {
                let mut decoder = BufReader::new(unpack::reader(format, source)?);
                return archives(&mut decoder, origin, false);
            }
        }
    }
}

fn skip_zeros(source: &mut impl BufRead) -> io::Result<()> {
    loop {
        let head = source.fill_buf()?;
        let zeros = head.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            return Ok(());
        }
        source.consume(zeros);
    }
}

/// One archive, up to its trailer.
fn archive(source: &mut impl Read, origin: &mut Origin) -> io::Result<()> {
    // Names of a file with several, until its contents come with the last.
    let mut waiting: HashMap<[u64; 3], Vec<Vec<u8>>> = HashMap::new();
    loop {
        let mut header = [0; HEADER];
        source.read_exact(&mut header)?;
        if !matches!(header.get(..6), Some(b"070701" | b"070702")) {
            return Err(invalid("an entry without the magic of the format newc"));
        }
        let mut fields = [0u64; 13];
        for (field, digits) in fields.iter_mut().zip(header.get(6..).unwrap_or_default().chunks(8)) {
            let text = std::str::from_utf8(digits).map_err(|_| invalid("a header that is not hex"))?;
            *field = u64::from_str_radix(text, 16).map_err(|_| invalid("a header that is not hex"))?;
        }
        let [ino, mode, _, _, links, _, size, major, minor, _, _, name_size, _] = fields;
        if name_size == 0 || name_size > PATH {
            return Err(invalid(format!("a name of {name_size} bytes")));
        }
        let mut name = Vec::new();
        source.take(name_size).read_to_end(&mut name)?;
        skip(source, u64::try_from(HEADER).unwrap_or(0).saturating_add(name_size).wrapping_neg() % 4)?;
        let name = name.strip_suffix(&[0]).ok_or_else(|| invalid("a name without its NUL"))?;
        if name == b"TRAILER!!!" {
            return Ok(());
        }
        let (sha256, read) = digest(source.take(size))?;
        if read < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        skip(source, size.wrapping_neg() % 4)?;
        // S_IFREG.
        let Some(path) = rooted(name).filter(|_| mode & 0o170_000 == 0o100_000) else { continue };
        if links > 1 {
            let names = waiting.entry([ino, major, minor]).or_default();
            names.push(path);
            if size > 0 {
                origin.files.extend(names.drain(..).map(|path| line(sha256.clone(), &path)));
            }
        } else {
            origin.files.push(line(sha256, &path));
        }
    }
}

fn skip(source: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut source.take(bytes), &mut io::sink())?;
    if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
