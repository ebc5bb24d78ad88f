//! `supervisor.toml`: where the daemon listens, as whom containers run, and who may run what.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use countersign_wire::id::WorkloadId;
use serde::Deserialize;

use super::uids::Range;
use crate::exit::{Failure, Stage};

/// Every key with its meaning and default, as `supervisor daemon --example` prints it.
pub(crate) const EXAMPLE: &str = include_str!("../../supervisor.toml.example");
/// Where it is.
pub(super) const FILE: &str = "/etc/countersign/supervisor.toml";
/// Where the daemon listens.
pub(crate) const SOCKET: &str = "/run/countersign/supervisor.sock";
/// Longest file, bytes.
const MAX: u64 = 1 << 20;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) daemon: Daemon,
    pub(super) client: Client,
}

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Daemon {
    pub(super) socket: PathBuf,
    pub(super) socket_group: String,
    pub(super) runs: usize,
    pub(super) uids: Range,
    #[serde(rename = "rule")]
    pub(super) rules: Vec<Written>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            socket: SOCKET.into(),
            socket_group: String::new(),
            runs: 256,
            uids: Range::default(),
            rules: Vec::new(),
        }
    }
}

/// `[[daemon.rule]]`, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) users: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) signers: Vec<PathBuf>,
    pub(super) own_signers: bool,
    pub(super) workloads: Vec<WorkloadId>,
    pub(super) binds: bool,
    pub(super) runs: Option<usize>,
}

/// `[client]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Client {
    pub(super) daemon: When,
}

/// When the daemon is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum When {
    /// Where the TPM device is out of reach and the socket is there.
    #[default]
    Auto,
    Always,
    Never,
}

fn bad(path: &Path, e: impl std::fmt::Display) -> Failure {
    let hint = "supervisor daemon --example shows every key";
    Failure::new(Stage::Configuration, format!("{}: {e}", path.display()), hint)
}

impl Settings {
    /// Reads a file; the defaults where there is none at the default place.
    ///
    /// # Errors
    /// [`Stage::Configuration`].
    pub(super) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let path = file.unwrap_or_else(|| Path::new(FILE));
        let opened = match std::fs::File::open(path) {
            Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened.map_err(|e| bad(path, e))?,
        };
        let mut text = String::new();
        opened.take(MAX).read_to_string(&mut text).map_err(|e| bad(path, e))?;
        toml::from_str(&text).map_err(|e| bad(path, e.to_string().trim_end()))
    }

    /// As [`Settings::read`], for the daemon: refuses a file that others may change.
    ///
    /// # Errors
    /// [`Stage::Configuration`].
    pub(super) fn read_trusted(file: Option<&Path>) -> Result<Self, Failure> {
        let path = file.unwrap_or_else(|| Path::new(FILE));
        if file.is_none() && !path.exists() {
            return Ok(Self::default());
        }
        toml::from_str(&read_trusted(path)?).map_err(|e| bad(path, e.to_string().trim_end()))
    }
}

/// Contents of a file that says who is trusted: refused when others than root, or whoever runs this, may change it.
///
/// # Errors
/// [`Stage::Configuration`].
pub(super) fn read_trusted(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|e| bad(path, e))?;
    let found = file.metadata().map_err(|e| bad(path, e))?;
    if !is_trusted(found.uid(), found.mode()) {
        let what = format!("{}: others than root may change it", path.display());
        let hint = format!("chown root {0}; chmod go-w {0}", path.display());
        return Err(Failure::new(Stage::Configuration, what, hint));
    }
    let mut text = String::new();
    file.take(MAX).read_to_string(&mut text).map_err(|e| bad(path, e))?;
    Ok(text)
}

/// Owned by root or by whoever runs this, and writable by nobody else.
fn is_trusted(owner: u32, mode: u32) -> bool {
    (owner == 0 || owner == rustix::process::geteuid().as_raw()) && mode & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_is_the_defaults_and_its_rule_is_one() {
        assert_eq!(parse(EXAMPLE).unwrap(), Settings::default());
        let rule = EXAMPLE.replace("\n#[[", "\n[[");
        let rule: String = rule.lines().map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line))).collect();
        // What is left of the comments' first letter is no TOML: only the keys.
        let keys: String = rule.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
        let rules = parse(&keys).unwrap().daemon.rules;
        assert_eq!((rules.len(), rules[0].name.as_str(), rules[0].runs), (1, "physics", Some(8)));
        assert_eq!(rules[0].users, ["alice", "1001"]);
    }

    #[test]
    fn wrong_keys_are_named() {
        assert!(parse("[deamon]\n").unwrap_err().contains("deamon"));
        assert!(parse("[[daemon.rule]]\nuser = [\"a\"]\n").unwrap_err().contains("unknown field `user`"));
        assert!(parse("[daemon]\nuids = \"5-1\"\n").unwrap_err().contains("5-1"));
        assert!(parse("[client]\ndaemon = \"sometimes\"\n").unwrap_err().contains("sometimes"));
        assert!(Settings::read(Some(Path::new("/nowhere"))).unwrap_err().error.contains("/nowhere"));
    }

    #[test]
    fn a_file_that_others_may_change_is_not_trusted() {
        for (owner, mode, trusted) in
            [(0, 0o644, true), (0, 0o600, true), (0, 0o664, false), (0, 0o646, false), (u32::MAX, 0o644, false)]
        {
            assert_eq!(is_trusted(owner, mode), trusted, "{owner} {mode:o}");
        }
    }
}
