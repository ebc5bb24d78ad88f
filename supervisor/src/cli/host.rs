//! What concerns the host: `supervisor doctor`, `daemon` and `ps`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::daemon::{self, EXAMPLE, HostPlace};
use crate::doctor::{self, Finding, Outcome};
use crate::exit::{Failure, Stage};
use crate::out;
use crate::run::config;

#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// The host's configuration (as for attest)
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Where the TPM is
    #[arg(long, value_name = "ADDRESS", env = "COUNTERSIGN_TPM")]
    pub(super) tpm: Option<String>,
    /// The host's state folder
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_STATE_DIR")]
    pub(super) state_dir: Option<PathBuf>,
}

impl HostArgs {
    /// Every finding; exit code 219 when one of them is a problem.
    pub(super) fn examine(self, json: bool) -> Result<u8, Failure> {
        let config = config(self.config.as_deref(), self.tpm.as_deref(), self.state_dir)?;
        let chosen = std::env::var_os("COUNTERSIGN_RUNTIME").unwrap_or_else(|| "auto".into());
        let findings = doctor::examine(&config, Path::new(&chosen));
        let words = || {
            let line = |finding: &Finding| {
                let mark = match finding.outcome {
                    Outcome::Good => "good   ",
                    Outcome::Warning => "warning",
                    Outcome::Problem => "problem",
                };
                let fix = if finding.fix.is_empty() {
                    String::new()
                } else {
                    format!("\n                           fix: {}", finding.fix)
                };
                format!("{mark} {:18} {}{fix}", finding.check, finding.found)
            };
            findings.iter().map(line).collect::<Vec<_>>().join("\n")
        };
        out::print(json, &json!({"findings": findings}), words)?;
        let problems = findings.iter().any(|finding| finding.outcome == Outcome::Problem);
        Ok(if problems { Stage::Other.code() } else { 0 })
    }
}

#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    #[command(flatten)]
    host: HostArgs,
    /// Who may run what (default: /etc/countersign/supervisor.toml)
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Where to listen (default: as the rules' file says, or systemd)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print every key of the rules' file with its default, and end
    #[arg(long)]
    example: bool,
}

impl DaemonArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        if self.example {
            return out::raw(EXAMPLE.as_bytes()).map(|()| 0);
        }
        let HostArgs { config, tpm, state_dir } = self.host;
        let host = HostPlace { config, tpm, state_dir };
        daemon::serve(daemon::Options { settings: self.rules, socket: self.socket, host })
    }
}

/// What runs under this host's daemon.
pub(super) fn ps(socket: Option<&Path>, json: bool) -> Result<(), Failure> {
    let list = daemon::list(socket)?;
    out::print(json, &list, || daemon::table(&list))
}
