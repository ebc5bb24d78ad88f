//! The kernel's IMA list, or the part of it that the verifier has not seen.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use countersign_wire::evidence::ImaPart;
use countersign_wire::ima::{Extent, extent};
use countersign_wire::limits;

use crate::state::read_bounded;

/// Reads a list from an entry on; a list that is shorter, whole. `None` when there is no list.
///
/// # Errors
/// Reading fails, the entries before the wanted one break the format, or what is left is more than one piece of evidence may carry.
pub(super) fn read(path: &Path, from: u64) -> io::Result<Option<ImaPart>> {
    let open = || match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    let Some(file) = open()? else { return Ok(None) };
    if from == 0 {
        return Ok(Some(ImaPart { from, bytes: read_bounded(file, limits::IMA_LIST)? }));
    }
    let mut reader = BufReader::new(file);
    if skip(&mut reader, from)? {
        return Ok(Some(ImaPart { from, bytes: read_bounded(reader, limits::IMA_LIST)? }));
    }
    let Some(file) = open()? else { return Ok(None) };
    Ok(Some(ImaPart { from: 0, bytes: read_bounded(file, limits::IMA_LIST)? }))
}

/// Skips entries without keeping them; false when the list has fewer.
fn skip(reader: &mut BufReader<impl Read>, entries: u64) -> io::Result<bool> {
    let bad = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
    for index in 0..entries {
        let mut head = Vec::new();
        let length = loop {
            match extent(&head).map_err(|e| bad(format!("IMA entry {index}: {e}")))? {
                Extent::Bytes(length) => break length,
                Extent::Needs(bytes) => {
                    let more = u64::try_from(bytes.saturating_sub(head.len())).unwrap_or(u64::MAX);
                    let got = reader.by_ref().take(more).read_to_end(&mut head)?;
                    if u64::try_from(got).unwrap_or(0) < more {
                        return if head.is_empty() {
                            Ok(false)
                        } else {
                            Err(bad(format!("IMA entry {index} is cut off")))
                        };
                    }
                }
            }
        };
        let mut left = length.saturating_sub(u64::try_from(head.len()).unwrap_or(u64::MAX));
        while left > 0 {
            let available = u64::try_from(reader.fill_buf()?.len()).unwrap_or(u64::MAX).min(left);
            if available == 0 {
                return Err(bad(format!("IMA entry {index} is cut off")));
            }
            reader.consume(usize::try_from(available).unwrap_or(0));
            left = left.saturating_sub(available);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use countersign_wire::ima::{self, synthetic};

    use super::*;

    #[test]
    fn a_list_from_an_entry_on() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("list");
        assert_eq!(read(&path, 0).unwrap(), None);
        assert_eq!(read(&path, 3).unwrap(), None);
        let mut list = synthetic::list(3);
        list.push_old(&[1; 20], "/sbin/init");
        // Longer than the reader's buffer.
        list.push("ima-buf", &[&synthetic::d_ng("sha256", &[1; 32]), &synthetic::n_ng("dm"), &vec![7; 100_000]]);
        list.push_file("/last", &[2; 32]);
        std::fs::write(&path, &list.bytes).unwrap();
        let paths: Vec<_> = ima::entries(&list.bytes).unwrap().map(|entry| entry.unwrap().path.to_vec()).collect();
        assert_eq!(paths.len(), 7);
        for from in 0..=7 {
            let part = read(&path, from).unwrap().unwrap();
            assert_eq!(part.from, from);
            let rest: Vec<_> = ima::entries(&part.bytes).unwrap().map(|entry| entry.unwrap().path.to_vec()).collect();
            assert_eq!(rest, paths[usize::try_from(from).unwrap()..]);
        }
        // Shorter than asked for: whole.
        let part = read(&path, 8).unwrap().unwrap();
        assert_eq!((part.from, part.bytes.len()), (0, list.bytes.len()));
        for cut in [1, 40, 100_050] {
            std::fs::write(&path, &list.bytes[..list.bytes.len() - cut]).unwrap();
            assert!(read(&path, 7).unwrap_err().to_string().contains("is cut off"));
        }
    }
}
