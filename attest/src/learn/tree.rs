//! From a folder.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use countersign_wire::refset::Origin;

use super::hashing::{digest, line};
use super::{LearnError, about, name_of};

/// Deepest folder that is entered.
const DEPTH: usize = 128;

/// Every regular file below a folder, with its path from there. Links are not followed; other file systems below it are read too.
///
/// # Errors
/// A file or folder cannot be read.
pub fn directory(root: &Path) -> Result<Origin, LearnError> {
    let mut origin = Origin::new("directory", name_of(root));
    walk(root, root, &mut origin, 0)?;
    Ok(origin)
}

fn walk(root: &Path, dir: &Path, origin: &mut Origin, depth: usize) -> Result<(), LearnError> {
    if depth > DEPTH {
        return Err(about(dir)(format!("more than {DEPTH} folders deep")));
    }
    for entry in fs::read_dir(dir).map_err(about(dir))? {
        let path = entry.map_err(about(dir))?.path();
        let kind = fs::symlink_metadata(&path).map_err(about(&path))?.file_type();
        if kind.is_dir() {
            walk(root, &path, origin, depth.saturating_add(1))?;
        } else if kind.is_file() {
            let (sha256, _) = File::open(&path).and_then(digest).map_err(about(&path))?;
            let below = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes();
            origin.files.push(line(sha256, &[b"/", below].concat()));
        }
    }
    Ok(())
}
