//! `attest learn`: reference sets from what is known to be good.
//!
//! | from | how |
//! |---|---|
//! | a golden host's IMA list | what it measured: binary or ASCII, violations and boot_aggregate left out |
//! | a folder, a SIF image | every regular file; a SIF's file system by `unsquashfs` |
//! | Debian packages | installed ones by dpkg's lists, each file hashed here; `.deb` files read directly (`.xz` ones by `xz`) |
//! | RPM packages | installed ones by `rpm`, `.rpm` files by their header: the digests that the packager put there |
//! | an initrd | concatenated cpio archives, plain or compressed with gzip, zstd or xz |
//!
//! Everything is read as a stream: memory does not grow with the files.

mod cpio;
mod deb;
mod hashing;
mod list;
mod rpm;
mod sif;
mod sign;
mod tar;
mod tree;
mod unpack;

pub use cpio::initrd;
pub use deb::{deb_file, deb_installed};
pub use list::ima_list;
pub use rpm::{rpm_file, rpm_installed};
pub use sif::sif;
pub use sign::{open, sign};
pub use tree::directory;

use std::path::{Path, PathBuf};

/// Why nothing was learned.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// A file cannot be read, or breaks its format.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A program that is needed is not installed.
    #[error("{tool} is not installed: it is needed to read {what}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// For what.
        what: &'static str,
    },
    /// A program failed.
    #[error("{tool} failed: {reason}")]
    Failed {
        /// The program.
        tool: &'static str,
        /// What it says.
        reason: String,
    },
    /// A key or signature.
    #[error("{0}")]
    Key(String),
}

/// For `map_err` about a file.
fn about<E: ToString>(path: &Path) -> impl Fn(E) -> LearnError + '_ {
    move |error| LearnError::File { path: path.to_owned(), reason: error.to_string() }
}

/// A file's name, for an origin.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A program that could not be started: nearly always it is not installed.
fn missing(error: &std::io::Error, tool: &'static str, what: &'static str) -> LearnError {
    if error.kind() == std::io::ErrorKind::NotFound {
        return LearnError::Tool { tool, what };
    }
    LearnError::Failed { tool, reason: error.to_string() }
}
