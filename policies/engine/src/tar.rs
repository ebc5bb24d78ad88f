//! The one tar form that bundles use: ustar headers (POSIX.1-1988), regular files only.

use crate::{error::PolicyError, limits};

const BLOCK: usize = 512;

/// A regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative path with forward slashes.
    pub(crate) path: String,
    /// Content.
    pub(crate) content: Vec<u8>,
}

/// Read a whole archive (`rooted`: paths may begin with one slash, which is taken away); links, folders, devices, absolute and climbing paths, and whatever follows the end are refused.
pub(crate) fn read(archive: &[u8], rooted: bool) -> Result<Vec<Entry>, PolicyError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut offset = 0_usize;
    loop {
        let refuse = |why: &str| PolicyError::Tar { offset, why: why.to_owned() };
        let header =
            slice(archive, offset, BLOCK).ok_or_else(|| refuse("the archive ends without its two zero blocks"))?;
        if header.iter().all(|&byte| byte == 0) {
            let rest = archive.get(offset..).unwrap_or_default();
            return if rest.len() < BLOCK.saturating_mul(2) || rest.iter().any(|&byte| byte != 0) {
                Err(refuse("bytes follow the end of the archive, or its second zero block is missing"))
            } else {
                Ok(entries)
            };
        }
        if entries.len() >= limits::FILES {
            return Err(PolicyError::TooLarge {
                what: "the number of files",
                got: size_u64(entries.len().saturating_add(1)),
                limit: size_u64(limits::FILES),
            });
        }
        checksum(header).map_err(|why| refuse(&why))?;
        // Go's archive/tar and GNU tar both write this magic for short plain names; GNU's own format (magic "ustar  ") has meanings that we do not read.
        if slice(header, 257, 8) != Some(b"ustar\x0000") {
            return Err(refuse("not in ustar form (GNU and pax extensions are not accepted)"));
        }
        match header.get(156) {
            Some(b'0' | 0) => {}
            Some(b'1' | b'2') => return Err(refuse("a link")),
            Some(b'5') => return Err(refuse("a folder entry (only files are listed in a bundle)")),
            other => return Err(refuse(&format!("entry type {:#04x}", other.copied().unwrap_or_default()))),
        }
        if slice(header, 157, 100).is_none_or(|name| name.iter().any(|&byte| byte != 0)) {
            return Err(refuse("a regular file with a link target"));
        }
        let path = path(header, rooted).map_err(|why| refuse(&why))?;
        if entries.iter().any(|entry| entry.path == path) {
            return Err(refuse(&format!("{path} is listed twice")));
        }
        let size =
            octal(slice(header, 124, 12).unwrap_or_default()).ok_or_else(|| refuse("size is no octal number"))?;
        let start = offset.checked_add(BLOCK).ok_or_else(|| refuse("size"))?;
        let content = slice(archive, start, size)
            .ok_or_else(|| refuse(&format!("{path} says {size} bytes, which are not there")))?;
        let padded = size.checked_next_multiple_of(BLOCK).ok_or_else(|| refuse("size"))?;
        let next = start.checked_add(padded).ok_or_else(|| refuse("size"))?;
        let padding =
            archive.get(start.saturating_add(size)..next).ok_or_else(|| refuse("the archive ends inside a file"))?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(refuse("padding is not zero"));
        }
        entries.push(Entry { path, content: content.to_vec() });
        offset = next;
    }
}

/// Write an archive: same entries, same bytes. Owner, group and time are zero, mode is 0644.
pub(crate) fn write(entries: &[Entry]) -> Result<Vec<u8>, PolicyError> {
    let mut archive = Vec::new();
    for entry in entries {
        let refuse = |why: &str| PolicyError::File { path: entry.path.clone(), why: why.to_owned() };
        check_path(&entry.path).map_err(|why| refuse(&why))?;
        let (prefix, name) = split(&entry.path).ok_or_else(|| refuse("the path is too long for a tar header"))?;
        let mut header = Vec::with_capacity(BLOCK);
        field(&mut header, name.as_bytes(), 100);
        field(&mut header, b"0000644\0", 8); // mode
        field(&mut header, b"0000000\0", 8); // uid
        field(&mut header, b"0000000\0", 8); // gid
        field(&mut header, format!("{:011o}\0", entry.content.len()).as_bytes(), 12);
        field(&mut header, b"00000000000\0", 12); // mtime
        field(&mut header, b"        ", 8); // checksum, as spaces while it is computed
        field(&mut header, b"0", 1); // regular file
        field(&mut header, b"", 100); // link target
        field(&mut header, b"ustar\x0000", 8);
        field(&mut header, b"", 64); // user and group names
        field(&mut header, b"0000000\0", 8); // device
        field(&mut header, b"0000000\0", 8);
        field(&mut header, prefix.as_bytes(), 155);
        field(&mut header, b"", 12);
        let sum = header.iter().fold(0_u32, |sum, &byte| sum.saturating_add(u32::from(byte)));
        for (place, byte) in header.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
            *place = byte;
        }
        archive.extend_from_slice(&header);
        archive.extend_from_slice(&entry.content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len().saturating_add(BLOCK.saturating_mul(2)), 0);
    Ok(archive)
}

/// Whether a path stays inside the bundle and has one spelling only.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > limits::PATH_BYTES {
        return Err(format!("a path of {} bytes (1 to {} are accepted)", path.len(), limits::PATH_BYTES));
    }
    if path.starts_with('/') {
        return Err(format!("{path} is absolute"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b':') {
        return Err(format!("{} has characters other than visible ASCII", path.escape_default()));
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{path} has an empty, `.` or `..` part"));
    }
    Ok(())
}

fn path(header: &[u8], rooted: bool) -> Result<String, String> {
    let text = |at: usize, len: usize| -> Result<String, String> {
        let bytes = slice(header, at, len).unwrap_or_default();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (name, rest) = bytes.split_at_checked(end).unwrap_or_default();
        if rest.iter().any(|&byte| byte != 0) {
            return Err("a name with bytes behind its end".to_owned());
        }
        String::from_utf8(name.to_vec()).map_err(|_| "a name that is not UTF-8".to_owned())
    };
    let (name, prefix) = (text(0, 100)?, text(345, 155)?);
    let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
    let path = match path.strip_prefix('/') {
        Some(rest) if rooted => rest.to_owned(),
        _ => path,
    };
    check_path(&path)?;
    Ok(path)
}

fn checksum(header: &[u8]) -> Result<(), String> {
    let stored = octal(slice(header, 148, 8).unwrap_or_default()).ok_or("checksum is no octal number")?;
    let sum = header.iter().enumerate().fold(0_usize, |sum, (at, &byte)| {
        sum.saturating_add(usize::from(if (148..156).contains(&at) { b' ' } else { byte }))
    });
    if stored == sum { Ok(()) } else { Err(format!("checksum is {stored}, computed {sum}")) }
}

/// An octal number, ended by a space or zero byte; base-256 sizes are refused.
fn octal(field: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() || !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return None;
    }
    usize::from_str_radix(text, 8).ok()
}

fn field(header: &mut Vec<u8>, value: &[u8], width: usize) {
    header.extend(value.iter().copied().chain(std::iter::repeat(0)).take(width));
}

/// Prefix and name of a path, cut at a slash so that both fit.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/').filter_map(|(at, _)| path.split_at_checked(at)).find_map(|(prefix, rest)| {
        let name = rest.strip_prefix('/')?;
        (prefix.len() <= 155 && name.len() <= 100).then_some((prefix, name))
    })
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

pub(crate) fn size_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
