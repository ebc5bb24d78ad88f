//! From a SIF image: its primary system partition, when that is a plain squashfs.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_tpm::codec::Reader;
use countersign_wire::refset::Origin;

use super::{LearnError, about, directory, missing, name_of};

/// Bytes of the global header and of a descriptor (SIF, `pkg/sif/sif.go`).
const HEADER: usize = 128;
const DESCRIPTOR: usize = 585;
/// Most descriptors that are looked at.
const DESCRIPTORS: u64 = 1024;

/// Every regular file of the image.
///
/// # Errors
/// It is no SIF, its system partition is encrypted or no squashfs, or `unsquashfs` is missing.
pub fn sif(path: &Path) -> Result<Origin, LearnError> {
    let offset = squashfs_offset(path)?;
    let dir = tempfile::TempDir::new().map_err(about(path))?;
    let root = dir.path().join("root");
    let mut command = Command::new("unsquashfs");
    command.args(["-no-progress", "-no-xattrs", "-ignore-errors", "-offset", &offset.to_string(), "-dest"]);
    command.arg(&root).arg(path).stdin(Stdio::null());
    let output = command.output().map_err(|e| missing(&e, "unsquashfs", "a SIF's file system"))?;
    // Device nodes need root and are no files; with -ignore-errors they alone do not fail. A file that cannot be written does.
    if !output.status.success() || !root.is_dir() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LearnError::Failed { tool: "unsquashfs", reason });
    }
    open_folders(&root).map_err(about(path))?;
    let mut origin = directory(&root)?;
    (origin.kind, origin.name) = ("sif".into(), name_of(path));
    Ok(origin)
}

/// Folders and files of the image that its owner may not read are made readable: they are copies.
fn open_folders(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = std::fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            open_folders(&path)?;
        } else if kind.is_file() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Where the squashfs begins.
fn squashfs_offset(path: &Path) -> Result<u64, LearnError> {
    let bad = about(path);
    let mut file = File::open(path).map_err(|e| bad(e.to_string()))?;
    let mut read_at = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let header = read_at(0, HEADER).map_err(|e| bad(e.to_string()))?;
    if header.get(32..42) != Some(b"SIF_MAGIC\0") {
        return Err(bad("no SIF image".into()));
    }
    let mut numbers = Reader::new(header.get(88..104).unwrap_or_default());
    let mut number = || numbers.u64_le("header").map_err(|e| bad(e.to_string()));
    let (total, table) = (number()?, number()?);
    if total > DESCRIPTORS {
        return Err(bad(format!("{total} descriptors, at most {DESCRIPTORS}")));
    }
    for slot in 0..total {
        let at = slot.saturating_mul(u64::try_from(DESCRIPTOR).unwrap_or(0)).saturating_add(table);
        let descriptor = read_at(at, DESCRIPTOR).map_err(|e| bad(e.to_string()))?;
        let mut fields = Reader::new(&descriptor);
        let mut field = |bytes: usize| fields.take(bytes, "descriptor").unwrap_or_default();
        let (kind, used, _, offset) = (field(4), field(1), field(12), field(8));
        let extra = descriptor.get(201..209).unwrap_or_default();
        // Partition, in use; primary system.
        if kind != [0x04, 0x40, 0, 0] || used != [1] || extra.get(4..) != Some(&[2, 0, 0, 0]) {
            continue;
        }
        return match extra.first() {
            Some(1) => Ok(offset.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))),
            Some(5 | 6) => Err(bad("its system partition is encrypted: learn from the plain image".into())),
            _ => Err(bad("its system partition is no squashfs".into())),
        };
    }
    Err(bad("it has no primary system partition".into()))
}
