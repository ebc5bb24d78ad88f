//! Configuration: a TOML file, overridden by the environment, overridden by options.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::HostError;
use crate::tpm::TpmAddress;

/// Every key with its meaning and default, as `attest config` prints it.
pub const EXAMPLE: &str = include_str!("../attest.toml.example");

/// How this host attests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the TPM is.
    pub tpm: TpmAddress,
    /// State folder.
    pub state_dir: PathBuf,
    /// Firmware's event log; none to send none.
    pub event_log: Option<PathBuf>,
    /// The kernel's IMA list; none to send none.
    pub ima_log: Option<PathBuf>,
    /// systemd's userspace log; none to send none.
    pub systemd_log: Option<PathBuf>,
    /// PCR of the run log. Fixed at enrolment.
    pub run_pcr: u8,
    /// Longest wait for the verifier, per operation.
    pub deadline: Duration,
}

/// What was given outside of the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--tpm` or COUNTERSIGN_TPM.
    pub tpm: Option<TpmAddress>,
    /// `--state-dir` or COUNTERSIGN_STATE_DIR.
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    tpm: Option<String>,
    state_dir: Option<PathBuf>,
    event_log: Option<PathBuf>,
    ima_log: Option<PathBuf>,
    systemd_log: Option<PathBuf>,
    run_pcr: Option<u8>,
    deadline_s: Option<u64>,
}

impl Config {
    /// Reads `file`, or the default place when there is one, and applies the overrides.
    ///
    /// # Errors
    /// [`HostError::Config`] names the file or key.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, HostError> {
        let read = match file {
            Some(path) => Some(path.to_owned()),
            None => default_file().filter(|path| path.exists()),
        };
        let parsed = match &read {
            None => File::default(),
            Some(path) => {
                let bad = |reason: String| HostError::Config { path: path.display().to_string(), reason };
                let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
                toml::from_str(&text).map_err(|e| bad(e.to_string()))?
            }
        };
        let bad = |key: &str, reason: String| HostError::Config { path: key.to_owned(), reason };
        let tpm = match (overrides.tpm, parsed.tpm) {
            (Some(tpm), _) => tpm,
            (None, Some(text)) => text.parse().map_err(|e: crate::tpm::BadAddress| bad("tpm", e.to_string()))?,
            (None, None) => TpmAddress::Device("/dev/tpmrm0".into()),
        };
        let state_dir = match overrides.state_dir.or(parsed.state_dir) {
            Some(path) => path,
            None => {
                default_state_dir().ok_or_else(|| bad("state_dir", "neither XDG_STATE_HOME nor HOME is set".into()))?
            }
        };
        let run_pcr = parsed.run_pcr.unwrap_or(13);
        if run_pcr >= 16 {
            return Err(bad("run_pcr", format!("{run_pcr} is refused: PCRs from 16 on can be reset by software")));
        }
        let log = |given: Option<PathBuf>, default: &str| {
            let path = given.unwrap_or_else(|| PathBuf::from(default));
            // The empty text switches a log off; a default that does not exist on this host is no evidence either.
            if path.as_os_str().is_empty() { None } else { Some(path) }
        };
        Ok(Self {
            tpm,
            state_dir,
            event_log: log(parsed.event_log, "/sys/kernel/security/tpm0/binary_bios_measurements"),
            ima_log: log(parsed.ima_log, "/sys/kernel/security/ima/binary_runtime_measurements"),
            systemd_log: log(parsed.systemd_log, "/run/log/systemd/tpm2-measure.log"),
            run_pcr,
            deadline: Duration::from_secs(parsed.deadline_s.unwrap_or(10).clamp(1, 300)),
        })
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn from_env(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home =
        || std::env::var_os("HOME").filter(|value| !value.is_empty()).map(|home| Path::new(&home).join(below_home));
    set.or_else(home).map(|base| base.join("countersign"))
}

fn default_file() -> Option<PathBuf> {
    if is_root() {
        return Some("/etc/countersign/attest.toml".into());
    }
    from_env("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("attest.toml"))
}

fn default_state_dir() -> Option<PathBuf> {
    if is_root() { Some("/var/lib/countersign".into()) } else { from_env("XDG_STATE_HOME", ".local/state") }
}
