//! From a golden host's IMA list.

use std::path::Path;

use countersign_wire::ima::{self, BOOT_AGGREGATE, KernelHash};
use countersign_wire::limits;
use countersign_wire::refset::{FileDigest, Origin};

use super::{LearnError, about, name_of};
use crate::state::read_bounded;

/// What a list measured. Violations are left out: nobody vouches for their digests; so is boot_aggregate, which is another after each change
/// of the boot.
///
/// # Errors
/// The list cannot be read.
pub fn ima_list(path: &Path, digest_only: bool) -> Result<Origin, LearnError> {
    let bad = about(path);
    // The ASCII form is a little over twice as long.
    let read = std::fs::File::open(path).and_then(|file| read_bounded(file, limits::IMA_LIST.saturating_mul(3)));
    let mut bytes = read.map_err(|e| bad(e.to_string()))?;
    if ima::looks_ascii(&bytes) {
        bytes = ima::to_binary(&bytes).map_err(|e| bad(e.to_string()))?;
    }
    let mut origin = Origin::new("ima-list", name_of(path));
    for entry in ima::entries(&bytes).map_err(|e| bad(e.to_string()))? {
        let entry = entry.map_err(|e| bad(e.to_string()))?;
        if entry.is_violation() || entry.path == BOOT_AGGREGATE {
            continue;
        }
        if !entry.frame().is_consistent() {
            return Err(bad(format!("IMA entry {}: its template hash is not that of its fields", entry.index)));
        }
        let Some(alg) = KernelHash::from_name(entry.digest_alg) else { continue };
        let path = Some(entry.path.to_vec()).filter(|path| !digest_only && !path.is_empty());
        origin.files.push(FileDigest { alg, digest: entry.digest.to_vec(), path }.to_string());
    }
    Ok(origin)
}
