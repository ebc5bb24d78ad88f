//! SHA-256 of what a reader gives, as a line of a reference set.

use std::io::{self, Read};

use countersign_wire::ima::KernelHash;
use countersign_wire::refset::FileDigest;
use sha2::{Digest as _, Sha256};

/// Reads to the end; the digest and the number of bytes.
pub(super) fn digest(mut reader: impl Read) -> io::Result<(Vec<u8>, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total: u64 = 0;
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hash.finalize().to_vec(), total)),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(buffer.get(..n).unwrap_or_default());
        total = total.saturating_add(u64::try_from(n).unwrap_or(0));
    }
}

/// `sha256:HEX PATH`.
pub(super) fn line(digest: Vec<u8>, path: &[u8]) -> String {
    FileDigest { alg: KernelHash::SHA256, digest, path: Some(path.to_vec()) }.to_string()
}

/// An archive member's path from the root: without `.` and empty parts in front. `None` for the root itself and paths with `..`.
pub(super) fn rooted(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len().saturating_add(1));
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return None;
        }
        out.push(b'/');
        out.extend(part);
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_paths() {
        let (sha256, bytes) = digest(&b"abc"[..]).unwrap();
        assert_eq!(bytes, 3);
        let want = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad /a";
        assert_eq!(line(sha256, b"/a"), want);
        assert_eq!(rooted(b"./usr//bin/x").unwrap(), b"/usr/bin/x");
        assert_eq!(rooted(b"etc").unwrap(), b"/etc");
        assert_eq!((rooted(b"./"), rooted(b""), rooted(b"/a/../b")), (None, None, None));
    }
}
