//! The file system to protect: from a folder, a plain SIF, or a squashfs file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_wire::codec::Reader;

use crate::error::SifError;
use crate::format::{Arch, Sif, fs_type};

/// Bytes of a squashfs superblock.
const SUPERBLOCK: usize = 96;
const MAGIC: &[u8; 4] = b"hsqs";

/// An open squashfs: a span of a file. One made from a folder has no name any more, so nothing of it stays behind.
#[derive(Debug)]
pub struct Squashfs {
    file: File,
    offset: u64,
    length: u64,
    arch: Arch,
}

impl Squashfs {
    /// Length, bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The architecture it is for: that of a SIF's partition, else this machine's.
    #[must_use]
    pub const fn arch(&self) -> Arch {
        self.arch
    }

    /// Fills the buffer from a place in the file system.
    ///
    /// # Errors
    /// [`SifError::Io`], also when the file became shorter meanwhile.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), SifError> {
        Ok(self.file.read_exact_at(buffer, self.offset.saturating_add(offset))?)
    }

    fn new(file: File, offset: u64, length: u64, arch: Arch) -> Result<Self, SifError> {
        let squashfs = Self { file, offset, length, arch };
        let bad = |why: String| SifError::Structure(format!("squashfs: {why}"));
        if length < u64::try_from(SUPERBLOCK).unwrap_or(u64::MAX) {
            return Err(bad("shorter than a superblock".into()));
        }
        let mut block = [0; SUPERBLOCK];
        squashfs.read_exact_at(&mut block, 0)?;
        let mut reader = Reader::new(&block);
        if reader.take(4, "magic")? != MAGIC {
            return Err(bad("the magic number is missing".into()));
        }
        reader.take(24, "superblock")?;
        if reader.take(4, "version")? != [4, 0, 0, 0] {
            return Err(bad("another version than 4.0".into()));
        }
        reader.take(8, "root inode")?;
        let used = reader.u64_le("bytes used")?;
        if used > length {
            return Err(bad(format!("truncated: {length} bytes, its superblock says {used}")));
        }
        Ok(squashfs)
    }
}

/// The squashfs of what is given: a folder (made by mksquashfs, every file root's, the same bytes for the same folder), a SIF whose primary
/// partition is a plain squashfs, or a squashfs file. `folder` has room for a temporary file.
///
/// # Errors
/// [`SifError`].
pub fn squashfs_of(input: &Path, folder: &Path) -> Result<Squashfs, SifError> {
    if input.is_dir() {
        return of_folder(input, folder);
    }
    let file = File::open(input)?;
    let length = file.metadata()?.len();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0)
        .map_err(|_| SifError::Structure("neither a SIF nor a squashfs: too short".into()))?;
    if &magic == MAGIC {
        return Squashfs::new(file, 0, length, Arch::native());
    }
    let sif = Sif::read(&file)?;
    let partition = sif.primary()?;
    match partition.partition() {
        Some((fs_type::SQUASHFS, _)) => {
            Squashfs::new(file, partition.offset, partition.size, partition.arch().unwrap_or_else(Arch::native))
        }
        Some((fs_type::ENCRYPTED_SQUASHFS, _)) => Err(SifError::Structure("the SIF is encrypted already".into())),
        _ => Err(SifError::Structure("the SIF's primary partition is no plain squashfs".into())),
    }
}

fn of_folder(input: &Path, folder: &Path) -> Result<Squashfs, SifError> {
    let failed = |reason: String| SifError::Program { program: "mksquashfs", reason };
    let target = tempfile::Builder::new().prefix(".countersign-").suffix(".sqfs").tempfile_in(folder)?;
    let mut command = Command::new("mksquashfs");
    // An absolute path is never taken for an option. A file that cannot be read must not become an empty one: -exit-on-error.
    command.arg(input.canonicalize()?).arg(std::path::absolute(target.path())?);
    command.args([
        "-noappend",
        "-all-root",
        "-no-progress",
        "-quiet",
        "-exit-on-error",
        "-comp",
        "zstd",
        "-mkfs-time",
        "0",
    ]);
    command.env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "C");
    let output = command.stdin(Stdio::null()).output();
    let missing = |source| SifError::Missing { program: "mksquashfs", package: "squashfs-tools", source };
    let output = output.map_err(missing)?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    // Opened anew: mksquashfs might have replaced the file. The name goes away with `target`.
    let file = File::open(target.path())?;
    let length = file.metadata()?.len();
    Squashfs::new(file, 0, length, Arch::native())
}
