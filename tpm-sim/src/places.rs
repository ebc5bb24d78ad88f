//! Where the files and sockets of one TPM are.

use std::fs;
use std::path::{Path, PathBuf};

use countersign_tpm::alg::HashAlg;

use crate::error::Error;
use crate::manufacture::private_folder;
use crate::process::Places;
use crate::tools;

/// Longest path of a Unix socket, in bytes: `sun_path` is 108 with its NUL (unix(7)), less `.ctrl`.
const SOCKET_PATH: usize = 102;

/// `sim.json` of a folder.
pub(crate) fn record_path(home: &Path) -> PathBuf {
    home.join("sim.json")
}

/// Makes the folder of a new TPM.
pub(crate) fn new_home(home: &Path) -> Result<PathBuf, Error> {
    tools::plain_path(home)?;
    private_folder(home)?;
    let home = home.canonicalize().map_err(Error::file("find", home))?;
    tools::plain_path(&home)?;
    if record_path(&home).exists() {
        return Err(Error::Exists(home));
    }
    Ok(home)
}

/// Where everything of the TPM in this folder is.
pub(crate) fn places(home: &Path) -> Places {
    let mut sockets = home.to_owned();
    if sockets.join("tpm.sock").as_os_str().len() > SOCKET_PATH {
        sockets = short_folder(home);
    }
    Places {
        state: home.join("state"),
        data: sockets.join("tpm.sock"),
        // tpm2-tss and tpm2-tools expect this name beside the data socket.
        control: sockets.join("tpm.sock.ctrl"),
        pid: home.join("swtpm.pid"),
        log: home.join("swtpm.log"),
    }
}

/// A folder for the sockets of a TPM whose own folder has too long a path. Its name follows from that path.
fn short_folder(home: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let digest = HashAlg::Sha256.digest(&[home.as_os_str().as_bytes()]);
    let name = hex::encode(digest.as_bytes().get(..8).unwrap_or_default());
    Path::new("/tmp").join(format!("tpm-sim-{name}"))
}

/// Makes the folder of the sockets, where it is not the TPM's own.
pub(crate) fn make_short_folder(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt as _;
    private_folder(folder)?;
    let facts = fs::symlink_metadata(folder).map_err(Error::file("look at", folder))?;
    if !facts.is_dir() || facts.uid() != rustix::process::geteuid().as_raw() || facts.mode() & 0o077 != 0 {
        return Err(Error::Path { path: folder.to_owned(), why: "must be a folder that is ours alone" });
    }
    Ok(())
}

/// Copies a folder's files, not its folders; locks stay behind.
pub(crate) fn copy_files(from: &Path, to: &Path) -> Result<(), Error> {
    private_folder(to)?;
    let entries = fs::read_dir(from).map_err(Error::file("read folder", from))?;
    for entry in entries {
        let entry = entry.map_err(Error::file("read folder", from))?;
        if entry.path().is_file() && entry.file_name() != ".lock" {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(Error::file("copy", entry.path()))?;
        }
    }
    Ok(())
}
