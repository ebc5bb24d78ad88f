//! Finding and calling swtpm's programs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

/// Where programs are that a user's PATH may lack.
const SYSTEM: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

fn folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(SYSTEM.iter().map(PathBuf::from)).filter(|dir| dir.is_absolute()).collect()
}

/// The absolute path of a program.
pub(crate) fn find(name: &'static str) -> Result<PathBuf, Error> {
    folders().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or(Error::MissingTool(name))
}

/// A command for a program, with a PATH on which it finds its helpers, no input, and no settings from the environment.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let path = std::env::join_paths(folders()).unwrap_or_else(|_| OsString::from(SYSTEM.join(":")));
    command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null());
    for name in ["SWTPM_ROOTCA_PASSWORD", "TPM_PATH", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    command
}

/// Refuses a path that swtpm's `key=value,key=value` arguments or its configuration files would take apart.
pub(crate) fn plain_path(path: &Path) -> Result<&str, Error> {
    let bad = |why| Error::Path { path: path.to_owned(), why };
    let text = path.to_str().ok_or_else(|| bad("is not UTF-8"))?;
    if text.contains([',', '$', '"', '\\', '#']) || text.contains(char::is_control) {
        return Err(bad("swtpm's tools cannot take a path with a comma, $, \", \\, # or a control character"));
    }
    if text.trim() != text {
        return Err(bad("swtpm's tools cannot take a path that begins or ends with a space"));
    }
    Ok(text)
}
