//! Configuration: a TOML file, overridden by the environment, overridden by options.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::endorsement::EndorsementAuth;
use crate::error::HostError;
use crate::state::read_bounded;
use crate::tpm::{BadAddress, TpmAddress};

/// Every key with its meaning and default, as `attest config` prints it.
pub const EXAMPLE: &str = include_str!("../attest.toml.example");

/// First PCR that software can reset: none from here on can hold the run log.
const RESETTABLE: u8 = 16;

/// Half of the life of a host's certificate, seconds.
const REATTEST_MAX_S: u64 = 43_200;

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
    /// The verifier's address, in place of the one in the join token.
    pub verifier: Option<String>,
    /// Longest wait for the verifier, per operation.
    pub deadline: Duration,
    /// File with the authValue of the endorsement hierarchy, where the machine's owner has set one.
    pub endorsement_auth_file: Option<PathBuf>,
    /// Where findings of runs are sent (CloudEvents); none to send none.
    pub webhook: Option<String>,
    /// CA (PEM file) of an https webhook.
    pub webhook_ca: Option<PathBuf>,
    /// Longest time between two looks at a run.
    pub monitor_interval: Duration,
    /// Longest time between two attestations of `attest serve`, whatever policy asks for.
    pub reattest_max: Duration,
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
    verifier: Option<String>,
    deadline_s: Option<u64>,
    endorsement_auth_file: Option<PathBuf>,
    webhook: Option<String>,
    webhook_ca: Option<PathBuf>,
    monitor_interval_s: Option<u64>,
    reattest_max_s: Option<u64>,
}

fn bad(key: impl Into<String>, reason: impl Into<String>) -> HostError {
    HostError::Config { path: key.into(), reason: reason.into() }
}

impl Config {
    /// Reads `file`, or the default place when there is one, and applies the environment and the overrides.
    ///
    /// # Errors
    /// [`HostError::Config`] names the file or key.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, HostError> {
        Self::resolve(file, overrides, &|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// As [`Config::load`], with the environment passed in.
    ///
    /// # Errors
    /// [`HostError::Config`] names the file, variable or key.
    pub fn resolve(
        file: Option<&Path>,
        overrides: Overrides,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HostError> {
        let read = match file {
            Some(path) => Some(path.to_owned()),
            None => default_file(env).filter(|path| path.exists()),
        };
        let mut given = match &read {
            None => File::default(),
            Some(path) => {
                let at = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|e| bad(&at, e.to_string()))?;
                toml::from_str(&text).map_err(|e| bad(&at, e.to_string().trim_end()))?
            }
        };
        given.apply(env)?;
        let tpm = match (overrides.tpm, given.tpm) {
            (Some(tpm), _) => tpm,
            (None, Some(text)) => text.parse().map_err(|e: BadAddress| bad("tpm", e.to_string()))?,
            (None, None) => TpmAddress::Device("/dev/tpmrm0".into()),
        };
        let state_dir = match overrides.state_dir.or(given.state_dir) {
            Some(path) => path,
            None => default_state_dir(env)
                .ok_or_else(|| bad("state_dir", "it is not set, and neither XDG_STATE_HOME nor HOME is"))?,
        };
        let run_pcr = given.run_pcr.unwrap_or(13);
        if run_pcr >= RESETTABLE {
            return Err(bad("run_pcr", format!("{run_pcr} is refused: software can reset PCRs from {RESETTABLE} on")));
        }
        let deadline = given.deadline_s.unwrap_or(10);
        if !(1..=300).contains(&deadline) {
            return Err(bad("deadline_s", format!("{deadline} is not from 1 to 300")));
        }
        let interval = given.monitor_interval_s.unwrap_or(10);
        if !(1..=300).contains(&interval) {
            return Err(bad("monitor_interval_s", format!("{interval} is not from 1 to 300")));
        }
        let reattest_max = given.reattest_max_s.unwrap_or(REATTEST_MAX_S);
        if !(1..=REATTEST_MAX_S).contains(&reattest_max) {
            return Err(bad("reattest_max_s", format!("{reattest_max} is not from 1 to {REATTEST_MAX_S}")));
        }
        let log = |given: Option<PathBuf>, default: &str| {
            let path = given.unwrap_or_else(|| PathBuf::from(default));
            // The empty text switches a log off.
            Some(path).filter(|path| !path.as_os_str().is_empty())
        };
        Ok(Self {
            tpm,
            state_dir,
            event_log: log(given.event_log, "/sys/kernel/security/tpm0/binary_bios_measurements"),
            ima_log: log(given.ima_log, "/sys/kernel/security/ima/binary_runtime_measurements"),
            systemd_log: log(given.systemd_log, "/run/log/systemd/tpm2-measure.log"),
            run_pcr,
            verifier: given.verifier.filter(|url| !url.is_empty()),
            deadline: Duration::from_secs(deadline),
            endorsement_auth_file: given.endorsement_auth_file.filter(|path| !path.as_os_str().is_empty()),
            webhook: given.webhook.filter(|url| !url.is_empty()),
            webhook_ca: given.webhook_ca.filter(|path| !path.as_os_str().is_empty()),
            monitor_interval: Duration::from_secs(interval),
            reattest_max: Duration::from_secs(reattest_max),
        })
    }

    /// The authValue of the endorsement hierarchy: the file's contents without a last newline; empty when no file is configured.
    ///
    /// # Errors
    /// [`HostError::Config`] when the file cannot be read, or others than its owner can read it.
    pub fn endorsement_auth(&self) -> Result<EndorsementAuth, HostError> {
        let Some(path) = &self.endorsement_auth_file else { return Ok(EndorsementAuth::default()) };
        let at = format!("endorsement_auth_file {}", path.display());
        let file = std::fs::File::open(path).map_err(|e| bad(&at, e.to_string()))?;
        let mode = file.metadata().map_err(|e| bad(&at, e.to_string()))?.mode();
        if mode & 0o077 != 0 {
            return Err(bad(&at, format!("mode {:03o} lets others read it; chmod 600", mode & 0o777)));
        }
        let contents = Zeroizing::new(read_bounded(file, 64).map_err(|e| bad(&at, e.to_string()))?);
        Ok(EndorsementAuth::new(contents.strip_suffix(b"\n").unwrap_or(&contents)))
    }
}

impl File {
    /// COUNTERSIGN_ and the key in capitals override each key.
    fn apply(&mut self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<(), HostError> {
        let text = |key: &str| {
            let name = format!("COUNTERSIGN_{key}");
            let value = env(&name).map(|value| value.into_string());
            value.transpose().map_err(|_| bad(name, "is not UTF-8"))
        };
        let number = |key: &str| {
            let parse = |value: String| {
                value
                    .parse::<u64>()
                    .map_err(|_| bad(format!("COUNTERSIGN_{key}"), format!("{value:?} is not a number")))
            };
            text(key)?.map(parse).transpose()
        };
        // Unlike the others, an empty log path means something; a variable that is set to nothing counts as not set.
        let path = |key: &str| env(&format!("COUNTERSIGN_{key}")).map(PathBuf::from);
        self.tpm = text("TPM")?.or(self.tpm.take());
        self.verifier = text("VERIFIER")?.or(self.verifier.take());
        self.state_dir = path("STATE_DIR").or(self.state_dir.take());
        self.event_log = path("EVENT_LOG").or(self.event_log.take());
        self.ima_log = path("IMA_LOG").or(self.ima_log.take());
        self.systemd_log = path("SYSTEMD_LOG").or(self.systemd_log.take());
        self.endorsement_auth_file = path("ENDORSEMENT_AUTH_FILE").or(self.endorsement_auth_file.take());
        self.webhook = text("WEBHOOK")?.or(self.webhook.take());
        self.webhook_ca = path("WEBHOOK_CA").or(self.webhook_ca.take());
        self.monitor_interval_s = number("MONITOR_INTERVAL_S")?.or(self.monitor_interval_s);
        self.deadline_s = number("DEADLINE_S")?.or(self.deadline_s);
        self.reattest_max_s = number("REATTEST_MAX_S")?.or(self.reattest_max_s);
        if let Some(pcr) = number("RUN_PCR")? {
            let pcr = u8::try_from(pcr).map_err(|_| bad("COUNTERSIGN_RUN_PCR", format!("{pcr} is no PCR")))?;
            self.run_pcr = Some(pcr);
        }
        Ok(())
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn below(env: &dyn Fn(&str) -> Option<OsString>, variable: &str, below_home: &str) -> Option<PathBuf> {
    let home = || env("HOME").map(|home| Path::new(&home).join(below_home));
    env(variable).map(PathBuf::from).or_else(home).map(|base| base.join("countersign"))
}

fn default_file(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if is_root() {
        return Some("/etc/countersign/attest.toml".into());
    }
    below(env, "XDG_CONFIG_HOME", ".config").map(|dir| dir.join("attest.toml"))
}

fn default_state_dir(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if is_root() { Some("/var/lib/countersign".into()) } else { below(env, "XDG_STATE_HOME", ".local/state") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn with(text: &str, env: &[(&str, &str)]) -> Result<Config, HostError> {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("attest.toml");
        std::fs::write(&file, text).unwrap();
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Config::resolve(Some(&file), Overrides::default(), &env)
    }

    fn refused(text: &str, env: &[(&str, &str)]) -> String {
        with(text, env).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_the_defaults() {
        let example = with(EXAMPLE, &[]).unwrap();
        assert_eq!(example, with("state_dir = \"/var/lib/countersign\"", &[]).unwrap());
        assert!(EXAMPLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count() >= 9);
    }

    #[test]
    fn environment_over_file() {
        let text = "state_dir = \"/a\"\nrun_pcr = 12\nima_log = \"\"\n";
        let config = with(text, &[]).unwrap();
        assert_eq!((config.run_pcr, config.ima_log), (12, None));
        let env = [("COUNTERSIGN_RUN_PCR", "15"), ("COUNTERSIGN_STATE_DIR", "/b"), ("COUNTERSIGN_DEADLINE_S", "3")];
        let config = with(text, &env).unwrap();
        assert_eq!((config.run_pcr, config.state_dir, config.deadline.as_secs()), (15, "/b".into(), 3));
    }

    #[test]
    fn wrong_values_are_named() {
        assert!(refused("run_pcr = 16", &[]).starts_with("run_pcr: 16 is refused"));
        assert!(refused("run-pcr = 1", &[]).contains("unknown field `run-pcr`"));
        assert!(refused("tpm = \"/dev/tpm0\"", &[]).contains("none of device:PATH"));
        assert!(refused("deadline_s = 0", &[]).contains("not from 1 to 300"));
        assert!(refused("", &[("COUNTERSIGN_RUN_PCR", "x")]).contains("COUNTERSIGN_RUN_PCR"));
        assert!(refused("", &[("COUNTERSIGN_RUN_PCR", "300")]).contains("no PCR"));
        assert!(Config::resolve(Some(Path::new("/nowhere")), Overrides::default(), &|_| None).is_err());
    }

    #[test]
    fn endorsement_auth_from_a_private_file_only() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("auth");
        std::fs::write(&file, "secret\n").unwrap();
        let mut config = with("", &[("HOME", "/h")]).unwrap();
        assert_eq!(config.endorsement_auth().unwrap(), EndorsementAuth::default());
        config.endorsement_auth_file = Some(file.clone());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(config.endorsement_auth().unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(config.endorsement_auth().unwrap(), EndorsementAuth::new(b"secret\0\0"));
        assert!(!format!("{:?}", config.endorsement_auth().unwrap()).contains("secret"));
    }
}
