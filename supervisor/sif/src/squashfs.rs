//! The file system to protect: from a folder, a plain SIF, a squashfs file, or an OCI image.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_wire::codec::Reader;

use crate::error::SifError;
use crate::format::{Arch, Sif, fs_type};
use crate::input::{self, Trusted, Verified};
use crate::oci;
use crate::view::View;

/// Bytes of a squashfs superblock.
const SUPERBLOCK: usize = 96;
const MAGIC: &[u8; 4] = b"hsqs";

/// An open squashfs. One made from a folder has no name any more, so nothing of it stays behind.
#[derive(Debug)]
pub struct Squashfs {
    bytes: Bytes,
    length: u64,
    arch: Arch,
    source: Option<String>,
    verified: Option<Verified>,
}

#[derive(Debug)]
enum Bytes {
    /// From an offset on.
    File(File, u64),
    /// Decrypted as it is read.
    View(Box<View>),
}

impl Squashfs {
    /// That of a protected image, decrypted and checked block by block as it is read.
    ///
    /// # Errors
    /// [`SifError`].
    pub fn of_view(view: View, arch: Arch) -> Result<Self, SifError> {
        let length = view.length();
        Self::checked(Bytes::View(Box::new(view)), length, arch)
    }

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

    /// Digest of the OCI manifest that it was made from.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whose signatures it came with, if they were verified. What is read must then still have the digest that was signed.
    #[must_use]
    pub const fn verified(&self) -> Option<&Verified> {
        self.verified.as_ref()
    }

    /// Fills the buffer from a place in the file system.
    ///
    /// # Errors
    /// [`SifError::Io`], also when the file became shorter meanwhile.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), SifError> {
        match &self.bytes {
            Bytes::File(file, start) => file.read_exact_at(buffer, start.saturating_add(offset))?,
            Bytes::View(view) => {
                let all = view.read_with(offset, buffer.len(), |plain| {
                    let all = plain.len() == buffer.len();
                    if all {
                        buffer.copy_from_slice(plain);
                    }
                    all
                })?;
                if !all {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        Ok(())
    }

    fn new(file: File, offset: u64, length: u64, arch: Arch) -> Result<Self, SifError> {
        Self::checked(Bytes::File(file, offset), length, arch)
    }

    fn checked(bytes: Bytes, length: u64, arch: Arch) -> Result<Self, SifError> {
        let squashfs = Self { bytes, length, arch, source: None, verified: None };
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
/// partition is a plain squashfs, a squashfs file, or an OCI layout (folder or tar archive). `folder` has room for a temporary file.
///
/// # Errors
/// [`SifError`].
pub fn squashfs_of(input: &Path, folder: &Path) -> Result<Squashfs, SifError> {
    squashfs_of_signed(input, folder, &Trusted::default())
}

/// As [`squashfs_of`]; where keys are trusted, the input is a SIF whose signatures hold.
///
/// # Errors
/// [`SifError::Signature`] among others.
pub fn squashfs_of_signed(input: &Path, folder: &Path, trusted: &Trusted) -> Result<Squashfs, SifError> {
    let unsigned = || SifError::Signature("the input is no SIF, so it has no signature to verify".into());
    if trusted.any() && input.is_dir() {
        return Err(unsigned());
    }
    if oci::is_oci(input) {
        if trusted.any() {
            return Err(unsigned());
        }
        return oci::squashfs(input, folder);
    }
    if input.is_dir() {
        return of_folder(input, folder);
    }
    let file = File::open(input)?;
    let length = file.metadata()?.len();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0)
        .map_err(|_| SifError::Structure("neither a SIF nor a squashfs: too short".into()))?;
    if &magic == MAGIC {
        if trusted.any() {
            return Err(unsigned());
        }
        return Squashfs::new(file, 0, length, Arch::native());
    }
    let sif = Sif::read(&file)?;
    let partition = sif.primary()?;
    match partition.partition() {
        Some((fs_type::SQUASHFS, _)) => {
            let verified = if trusted.any() { Some(input::verify(&file, &sif, trusted)?) } else { None };
            let (offset, size) = (partition.offset, partition.size);
            let squashfs = Squashfs::new(file, offset, size, partition.arch().unwrap_or_else(Arch::native))?;
            Ok(Squashfs { verified, ..squashfs })
        }
        Some((fs_type::ENCRYPTED_SQUASHFS, _)) => Err(SifError::Structure("the SIF is encrypted already".into())),
        _ => Err(SifError::Structure("the SIF's primary partition is no plain squashfs".into())),
    }
}

/// mksquashfs, from `source` into a file: every file root's, the same bytes for the same source.
fn mksquashfs(source: &Path, target: &Path) -> Result<Command, SifError> {
    let mut command = Command::new("mksquashfs");
    // An absolute path is never taken for an option. A file that cannot be read must not become an empty one: -exit-on-error.
    command.arg(source).arg(std::path::absolute(target)?);
    command.args(["-noappend", "-all-root", "-no-progress", "-quiet", "-exit-on-error", "-comp", "zstd"]);
    command.args(["-mkfs-time", "0"]).env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "C");
    Ok(command)
}

fn missing(source: std::io::Error) -> SifError {
    SifError::Missing { program: "mksquashfs", package: "squashfs-tools", source }
}

fn failed(words: &[u8]) -> SifError {
    SifError::Program { program: "mksquashfs", reason: String::from_utf8_lossy(words).trim().to_owned() }
}

fn of_folder(input: &Path, folder: &Path) -> Result<Squashfs, SifError> {
    let target = temporary(folder)?;
    let output = mksquashfs(&input.canonicalize()?, target.path())?.stdin(Stdio::null()).output().map_err(missing)?;
    if !output.status.success() {
        return Err(failed(&output.stderr));
    }
    made(&target, Arch::native())
}

fn temporary(folder: &Path) -> Result<tempfile::NamedTempFile, SifError> {
    Ok(tempfile::Builder::new().prefix(".countersign-").suffix(".sqfs").tempfile_in(folder)?)
}

/// What mksquashfs made. The name goes away with `target`.
fn made(target: &tempfile::NamedTempFile, arch: Arch) -> Result<Squashfs, SifError> {
    // Opened anew: mksquashfs might have replaced the file.
    let file = File::open(target.path())?;
    let length = file.metadata()?.len();
    Squashfs::new(file, 0, length, arch)
}

/// The squashfs of a tar archive that `write` writes.
pub(crate) fn from_tar(
    folder: &Path,
    arch: Arch,
    source: Option<String>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), SifError>,
) -> Result<Squashfs, SifError> {
    let target = temporary(folder)?;
    let mut command = mksquashfs(Path::new("-"), target.path())?;
    command.arg("-tar").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    let stderr = child.stderr.take();
    let words = std::thread::spawn(move || {
        let mut words = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(64 * 1024).read_to_end(&mut words);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        words
    });
    let written = child.stdin.take().map_or(Ok(()), |stdin| {
        let mut out = BufWriter::with_capacity(1 << 20, stdin);
        write(&mut out)?;
        Ok(out.flush()?)
    });
    let broken = matches!(&written, Err(SifError::Io(e)) if e.kind() == std::io::ErrorKind::BrokenPipe);
    if written.is_err() && !broken {
        // It must not finish a file system of half the files.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let words = words.join().unwrap_or_default();
    if written.is_ok() || broken {
        // If it ended before it read everything, its own words say more than the broken pipe.
        if !status.success() {
            return Err(failed(&words));
        }
    }
    written?;
    let squashfs = made(&target, arch)?;
    Ok(Squashfs { source, ..squashfs })
}
