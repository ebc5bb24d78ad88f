//! tar archives (POSIX ustar and pax, GNU long names): regular files only.

use std::collections::HashMap;
use std::io::{self, Read};

use super::hashing::{digest, rooted};

/// Longest name in an extension, in bytes.
const NAME: u64 = 64 * 1024;

/// One regular file: its path, and its contents or the path that it is a hard link to.
pub(super) enum Member<'a> {
    /// Contents.
    File(&'a mut dyn Read),
    /// Hard link.
    Link(Vec<u8>),
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tar: {}", what.into()))
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal with NULs and spaces around it, or base 256 (GNU).
fn number(field: &[u8]) -> io::Result<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let digits = rest.get(rest.len().saturating_sub(8)..).unwrap_or_default();
        return Ok(digits.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    }
    let digits = String::from_utf8_lossy(text(field)).trim().to_owned();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(&digits, 8).map_err(|_| invalid(format!("{digits:?} is no octal number")))
}

/// Calls `each` for every regular file and hard link.
pub(super) fn members(
    mut source: impl Read,
    mut each: impl FnMut(&[u8], Member<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let (mut long_name, mut long_link): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
    loop {
        let mut header = [0; 512];
        // A missing end mark is accepted, as tar does.
        if source.read(header.get_mut(..1).unwrap_or_default())? == 0 {
            return Ok(());
        }
        source.read_exact(header.get_mut(1..).unwrap_or_default())?;
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        if header.iter().all(|byte| *byte == 0) {
            // What is behind the end mark is nothing, but a decompressor finds only at its end whether its input was whole.
            return io::copy(&mut source, &mut io::sink()).map(drop);
        }
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = field(148, 156).iter().map(|byte| u64::from(*byte)).sum();
        // The checksum counts its own field as spaces.
        if number(field(148, 156))? != sum.saturating_sub(own).saturating_add(8 * 32) {
            return Err(invalid("a header's checksum is wrong"));
        }
        let size = number(field(124, 136))?;
        let mut name = text(field(0, 100)).to_vec();
        if field(257, 262) == b"ustar" && !text(field(345, 500)).is_empty() && field(257, 265) != b"ustar  \0" {
            name = [text(field(345, 500)), b"/", &name].concat();
        }
        let link = text(field(157, 257)).to_vec();
        let kind = field(156, 157).first().copied().unwrap_or(0);
        let mut body = (&mut source).take(size);
        match kind {
            b'L' | b'K' | b'x' => {
                if size > NAME {
                    return Err(invalid("a name that is too long"));
                }
                let mut value = Vec::new();
                body.read_to_end(&mut value)?;
                match kind {
                    b'L' => long_name = Some(text(&value).to_vec()),
                    b'K' => long_link = Some(text(&value).to_vec()),
                    _ => {
                        long_name = pax(&value, b"path").or(long_name);
                        long_link = pax(&value, b"linkpath").or(long_link);
                    }
                }
            }
            b'0' | 0 | b'7' => {
                each(&long_name.take().unwrap_or(name), Member::File(&mut body))?;
                long_link = None;
            }
            b'1' => {
                each(&long_name.take().unwrap_or(name), Member::Link(long_link.take().unwrap_or(link)))?;
            }
            // `g` is about all that follow; the rest are folders, links and devices.
            b'g' => {}
            _ => (long_name, long_link) = (None, None),
        }
        io::copy(&mut body, &mut io::sink())?;
        if body.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let padding = size.wrapping_neg() % 512;
        let skipped = io::copy(&mut (&mut source).take(padding), &mut io::sink())?;
        if skipped < padding {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A value of a pax header: `LENGTH KEY=VALUE\n`.
fn pax(records: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let mut rest = records;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
        let record = rest.get(space.checked_add(1)?..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(key).and_then(|record| record.strip_prefix(b"=")) {
            return Some(value.to_vec());
        }
        rest = rest.get(length..)?;
    }
    None
}

/// Every regular file with its SHA-256; hard links have their file's.
pub(super) fn digests(source: impl Read) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut known: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    members(source, |path, member| {
        let Some(path) = rooted(path) else { return Ok(()) };
        let sha256 = match member {
            Member::File(body) => digest(body)?.0,
            Member::Link(target) => {
                let target = rooted(&target).and_then(|target| known.get(&target).cloned());
                target.ok_or_else(|| invalid("a hard link to a file that is not in front of it"))?
            }
        };
        known.insert(path.clone(), sha256.clone());
        all.push((path, sha256));
        Ok(())
    })?;
    Ok(all)
}
