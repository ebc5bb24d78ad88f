//! The `attest` command line.

mod learn;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand};
use countersign_tpm::ak::Kind;
use countersign_wire::artefact;
use countersign_wire::runlog::RunLog;
use countersign_wire::trust::JoinToken;
use serde::Serialize;

use crate::config::{Config, EXAMPLE, Overrides};
use crate::error::HostError;
use crate::exit::Exit;
use crate::host::Host;
use crate::inspect;
use crate::out::{self, Failure};
use crate::runs;
use crate::token;
use crate::tpm::TpmAddress;

const EXAMPLES: &str = "\
Examples:
  attest enroll --token join.token             join the verifier that the token names
  attest enroll --url URL --trust SHA256       without a token: wait there for an operator
  attest now                                   attest once; exit code 0 when the verdict allows
  attest serve                                 keep attesting, as a service
  attest show -o host.card                     this host's card, for owners and operators
  attest inspect /sys/kernel/security/tpm0/binary_bios_measurements
  attest diff before.log after.log             what changed from one boot to the next
  attest diff before.json after.json           what one reference set accepts and the other does not
  attest learn host -o golden.json             reference values from what this host measured
  attest reference sign golden.json --key owner.pem -o golden.dsse

Exit codes:";

fn after_help() -> String {
    format!("{EXAMPLES}{}", Exit::table())
}

/// Host side of attestation: join a verifier, prove what booted.
#[derive(Debug, Parser)]
#[command(name = "attest", version, after_help = after_help(), max_term_width = 120)]
struct Cli {
    /// Configuration file (default: /etc/countersign/attest.toml for root, else in $XDG_CONFIG_HOME)
    #[arg(long, global = true, value_name = "FILE", env = "COUNTERSIGN_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Where the TPM is: device:PATH, swtpm:unix=PATH or swtpm:host=HOST,port=PORT
    #[arg(long, global = true, value_name = "ADDRESS", env = "COUNTERSIGN_TPM", hide_env_values = true)]
    tpm: Option<TpmAddress>,
    /// State folder
    #[arg(long, global = true, value_name = "DIR", env = "COUNTERSIGN_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the verifier that a token names, or without one wait there for an operator
    Enroll {
        /// File with the join token; - reads standard input
        #[arg(long, value_name = "FILE", required_unless_present = "trust")]
        token: Option<PathBuf>,
        /// Without a token: SHA-256 of the verifier's trust bundle, which `verifier init` prints
        #[arg(long, value_name = "SHA256", requires = "url", conflicts_with = "token", value_parser = digest)]
        trust: Option<[u8; 32]>,
        /// Without a token: the verifier's address, https://HOST:PORT
        #[arg(long, value_name = "URL", requires = "trust")]
        url: Option<String>,
        /// A name for people (default: the host's name)
        #[arg(long)]
        name: Option<String>,
        /// Kind of attestation key (default: the one that is there, else p256). Another kind is a new key: a known host needs a token for itself
        #[arg(long, value_name = "KIND", value_parser = ["p256", "p384", "rsa2048"])]
        ak: Option<String>,
    },
    /// Attest once
    Now,
    /// Attest at the interval that policy asks for and follow the verifier's events, until SIGTERM
    Serve,
    /// What ran in this boot, from the run log
    Runs {
        /// Print the whole run log as TCG canonical event log (JSON)
        #[arg(long)]
        cel: bool,
    },
    /// This host's card: id, EK, certificates, AK
    Show {
        /// Write the card to a file instead of describing it
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// This TPM's endorsement key (TPMT_PUBLIC), for the allow-list of a verifier where it has no certificate
    Ek {
        /// Write it to a file instead of describing it
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Explain a file: logs, quotes, keys, certificates, cards, bundles, tokens
    Inspect {
        /// The file
        file: PathBuf,
        /// Write a boot log as TCG canonical event log (JSON)
        #[arg(long)]
        cel: bool,
    },
    /// What changed from one boot to a later one, or from one reference set to another
    Diff {
        /// Boot log of the earlier boot, or a reference set
        was: PathBuf,
        /// Boot log of the later boot, or a reference set
        now: PathBuf,
    },
    /// Learn reference values: which files hosts may run
    Learn(learn::Learn),
    /// Merge, compare, sign and check reference sets
    #[command(subcommand)]
    Reference(learn::Reference),
    /// Print the configuration's keys with their defaults
    Config,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Serialize)]
struct Shown {
    host: String,
    ek_template: String,
    certificates: Vec<String>,
    ak_name: String,
    run_pcr: u8,
}

/// Runs the command line; returns the exit code.
#[must_use]
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return out::usage(&e),
    };
    let json = cli.json;
    out::finish(run(cli), json)
}

fn host(cli: &Cli) -> Result<Host, Failure> {
    let overrides = Overrides { tpm: cli.tpm.clone(), state_dir: cli.state_dir.clone() };
    Ok(Host::open(Config::load(cli.config.as_deref(), overrides)?)?)
}

fn run(cli: Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Enroll { token, trust, url, name, ak } => {
            let token = token.as_deref().map(read_token).transpose()?;
            let name =
                name.clone().unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
            let mut host = host(&cli)?;
            if let Some(kind) = ak.as_deref().and_then(Kind::from_name) {
                host.want_ak(kind);
            }
            let enrolled = match (&token, url, trust) {
                (Some(token), ..) => host.enroll(token, &name)?,
                (None, Some(url), Some(trust)) => host.enroll_without_token(url, trust, &name)?,
                // The command line's rules leave no such case.
                (None, ..) => return Err(HostError::Token("there is none".into()).into()),
            };
            let state = format!("{:?}", enrolled.state).to_lowercase();
            let host = enrolled.host.to_string();
            out::print(cli.json, &serde_json::json!({"host": host, "state": state}), || match state.as_str() {
                "pending" => format!("host {host} is pending: `verifier host admit {host}` admits it"),
                _ => format!("host {host} is {state}"),
            })
        }
        Command::Now => {
            let attested = host(&cli)?.attest()?;
            let document: serde_json::Value = serde_json::from_slice(&attested.verdict).unwrap_or_default();
            out::print(cli.json, &document, || {
                let simulated =
                    if document.get("simulated").is_some_and(|value| value == true) { " (simulated TPM)" } else { "" };
                format!("allow{simulated}: verdict {}", attested.verdict_id)
            })
        }
        Command::Serve => Ok(crate::serve::serve(host(&cli)?, cli.json)?),
        Command::Runs { cel } => {
            let host = host(&cli)?;
            // Nothing is written where nobody enrolled: an empty list would look like an idle host.
            host.card()?;
            let log = host.run_log()?;
            let parsed = RunLog::parse(&log).map_err(|e| HostError::Corrupt(e.to_string()))?;
            if *cel {
                return out::raw(format!("{}\n", runs::canonical(&log)).as_bytes());
            }
            let runs = runs::of(&parsed);
            out::print(cli.json, &runs, || {
                let line = |run: &runs::Run| {
                    let how = run.status.as_deref().map_or("running".into(), out::printable);
                    format!("{} workload {} started {} ms {how}", run.run, run.workload, run.started_ms)
                };
                if runs.is_empty() {
                    "nothing ran".to_owned()
                } else {
                    runs.iter().map(line).collect::<Vec<_>>().join("\n")
                }
            })
        }
        Command::Show { output } => {
            let card = host(&cli)?.card()?;
            if let Some(path) = output {
                return write(path, &artefact::to_file(&card));
            }
            let shown = Shown {
                host: card.host.to_string(),
                ek_template: inspect::template_of(&card.ek_public),
                certificates: card.ek_certificates.iter().map(|found| format!("{:#010x}", found.nv_index)).collect(),
                ak_name: inspect::name_of(&card.ak_public),
                run_pcr: card.run_pcr,
            };
            out::print(cli.json, &shown, || {
                format!(
                    "host         {}\nEK           {}\ncertificates {}\nAK name      {}\nrun PCR      {}",
                    shown.host,
                    shown.ek_template,
                    shown.certificates.join(" "),
                    shown.ak_name,
                    shown.run_pcr
                )
            })
        }
        Command::Ek { output } => {
            let ek = host(&cli)?.endorsement_key()?.to_bytes();
            if let Some(path) = output {
                return write(path, &ek);
            }
            let shown = serde_json::json!({"template": inspect::template_of(&ek), "name": inspect::name_of(&ek)});
            let words = || format!("{}, Name {}", inspect::template_of(&ek), inspect::name_of(&ek));
            out::print(cli.json, &shown, words)
        }
        Command::Inspect { file, cel } => {
            let bytes = read_artefact(file)?;
            if *cel {
                let text = inspect::canonical_of(&bytes).map_err(|reason| unknown(file, &reason))?;
                return out::raw(format!("{text}\n").as_bytes());
            }
            let described = inspect::describe(&bytes).map_err(|reason| unknown(file, &reason))?;
            out::print(cli.json, &described, || described.words())
        }
        Command::Diff { was, now } => {
            let (first, second) = (read_artefact(was)?, read_artefact(now)?);
            match (learn::is_set(&first), learn::is_set(&second)) {
                (false, false) => {}
                (true, true) => {
                    return learn::Reference::Diff { before: was.clone(), after: now.clone() }.run(cli.json);
                }
                (true, false) => return Err(unknown(now, "the other file is a reference set, and this is none")),
                (false, true) => return Err(unknown(was, "the other file is a reference set, and this is none")),
            }
            let changes = inspect::compare(&first, &second)
                .map_err(|(which, reason)| unknown(if which == inspect::Which::First { was } else { now }, &reason))?;
            out::print(cli.json, &changes, || {
                let facts = changes.facts.iter().map(|change| change.words());
                let lines: Vec<String> = facts.chain(changes.events.iter().map(|event| event.words())).collect();
                let lines: Vec<String> = lines.iter().map(|line| out::printable(line)).collect();
                if lines.is_empty() { "nothing changed".to_owned() } else { lines.join("\n") }
            })
        }
        Command::Learn(learn) => learn.run(cli.json, || {
            let overrides = Overrides { tpm: cli.tpm.clone(), state_dir: cli.state_dir.clone() };
            Ok(Config::load(cli.config.as_deref(), overrides)?.ima_log)
        }),
        Command::Reference(reference) => reference.run(cli.json),
        Command::Config => out::print(cli.json, &EXAMPLE, || EXAMPLE.trim_end().to_owned()),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "attest", &mut text);
            out::raw(&text)
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|source| HostError::State { path: dir.clone(), source }.into()),
    }
}

fn read_artefact(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::File::open(file)
        .and_then(|opened| crate::state::read_bounded(opened, countersign_wire::limits::RECORD))
        .map_err(|e| unknown(file, &e.to_string()))
}

fn digest(text: &str) -> Result<[u8; 32], String> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).map_err(|_| "not 64 hex digits".to_owned())?;
    Ok(digest)
}

/// A file given to `inspect` that is damaged, or nothing that it knows.
fn unknown(file: &Path, reason: &str) -> Failure {
    Failure {
        code: Exit::Unknown.code(),
        error: format!("{}: {reason}", file.display()),
        words: String::new(),
        hint: "it knows logs, quotes, keys, signatures, certificates, cards, bundles and tokens".into(),
        denial: None,
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).map_err(|source| HostError::State { path: path.to_owned(), source }.into())
}

fn read_token(path: &Path) -> Result<JoinToken, Failure> {
    let bad = |e: String| Failure::from(HostError::Token(e));
    let mut text = zeroize::Zeroizing::new(String::with_capacity(8192));
    if path.as_os_str() == "-" {
        std::io::stdin().take(8192).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
    } else {
        let file = std::fs::File::open(path).map_err(|e| bad(format!("{}: {e}", path.display())))?;
        file.take(8192).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
    }
    token::parse(&text).map_err(bad)
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let (code, text, hint) = (error.exit().code(), error.to_string(), error.hint());
        let denial = if let HostError::Denied(denial) = error { Some(denial) } else { None };
        let words = denial.as_ref().map_or_else(String::new, |denial| denial.words());
        Self { code, error: text, words, hint, denial }
    }
}
