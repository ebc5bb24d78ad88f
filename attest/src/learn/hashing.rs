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

/// Folders that are links into /usr on hosts of today: the kernel logs where a file really lies.
const MERGED: [&[u8]; 6] = [b"/bin/", b"/sbin/", b"/lib/", b"/lib32/", b"/lib64/", b"/libx32/"];

/// Where a package's file can lie: at its path, and on a host whose /bin, /sbin and /lib are links into /usr.
pub(super) fn places(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let merged = MERGED.iter().any(|dir| path.starts_with(dir)).then(|| [b"/usr", path].concat());
    merged.into_iter().chain([path.to_vec()])
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
    fn a_folder_that_may_be_a_link_is_two_places() {
        let all = |path: &[u8]| places(path).collect::<Vec<_>>();
        assert_eq!(all(b"/lib/modules/1/a.ko"), [b"/usr/lib/modules/1/a.ko".to_vec(), b"/lib/modules/1/a.ko".to_vec()]);
        assert_eq!(all(b"/library/x"), [b"/library/x"]);
        assert_eq!(all(b"/usr/lib/x"), [b"/usr/lib/x"]);
    }

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
