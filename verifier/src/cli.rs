//! The `verifier` command line.

mod check;
mod explain;
mod keys;
mod operator;
mod perform;
mod policy;
mod reference;
mod words;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::{Value, json};

use crate::admin::Request;
use crate::check::{CheckError, code, read_bounded};
use crate::error::Error;
use crate::out::{self, Failure};
use crate::policy::sandbox::Trial;
use crate::service::Service;
use operator::{Ek, EkRoot, Grant, Host, Reference, Release, Run, Token, Verdict, Workload};
use perform::perform;

const AFTER: &str = "\
Examples:
  verifier init --url https://verifier.example:7448       make a verifier in the state folder
  verifier ek-root add vendor-root.pem                    trust a TPM vendor
  verifier reference add golden --eventlog LOG            accept what this host booted
  verifier serve                                          serve hosts until SIGTERM
  verifier token new > join.token                         admit one host
  verifier explain VERDICT                                why a host was refused, and what would accept it
  verifier check eventlog LOG --pcrs PCRS.json --json     replay a log offline

Operators' commands act on the state folder, or with --remote over HTTPS with the operator's token.

Exit codes:
  0 done   1 other   2 usage   4 state folder   5 database   20 refused   21 verifier unreachable
  40 input file   41 log or quote format   42 does not replay   43 replays and lies   44 signature or algorithm
  45 nonce   46 PCRs   47 trust anchor   48 recomputed verdict differs";

/// Appraises evidence, decides with policy, releases keys.
#[derive(Debug, Parser)]
#[command(name = "verifier", version, after_help = AFTER, max_term_width = 120)]
struct Cli {
    /// State folder (root: /var/lib/countersign/verifier; others: $XDG_STATE_HOME/countersign/verifier)
    #[arg(long, global = true, value_name = "DIR", env = "COUNTERSIGN_VERIFIER_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Act on a running verifier over HTTPS instead of on the state folder
    #[arg(long, global = true, value_name = "URL")]
    remote: Option<String>,
    /// The operator's token, for --remote (default: operator.token in the state folder)
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The verifier's CA, for --remote (default: ca.pem in the state folder)
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a verifier: keys, CA, database, operator's token
    Init {
        /// For development: simulated TPMs may get keys
        #[arg(long)]
        dev: bool,
        /// Address that hosts use
        #[arg(long, default_value = "https://127.0.0.1:7448")]
        url: String,
    },
    /// Serve hosts and operators over HTTPS until SIGTERM; SIGHUP has configuration and keys read anew
    Serve,
    /// Join tokens
    #[command(subcommand)]
    Token(Token),
    /// TPM vendors' CAs
    #[command(subcommand)]
    EkRoot(EkRoot),
    /// EKs of TPMs without a certificate
    #[command(subcommand)]
    Ek(Ek),
    /// Hosts
    #[command(subcommand)]
    Host(Host),
    /// Reference values
    #[command(subcommand)]
    Reference(Reference),
    /// Verdicts
    #[command(subcommand)]
    Verdict(Verdict),
    /// Why a verdict was a no: what was measured, the nearest accepted value, what changed, what to do
    Explain {
        /// A verdict's id (in the state folder, or with --remote), or a bundle's file (offline)
        #[arg(value_name = "VERDICT|BUNDLE")]
        what: PathBuf,
    },
    /// Write, test, attack, sign and load policies
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Releases of keys, which the obligation cap counts
    #[command(subcommand)]
    Release(Release),
    /// Registered workloads (supervisor register adds them)
    #[command(subcommand)]
    Workload(Workload),
    /// Keys that owners hold themselves and grant to hosts
    #[command(subcommand)]
    Grant(Grant),
    /// The keys that sign releases
    #[command(subcommand)]
    Keys(keys::Command),
    /// What ran on the hosts
    #[command(subcommand)]
    Run(Run),
    /// Tell the verifier that its database was restored from a backup
    Restored,
    /// Check logs, quotes and bundles offline
    #[command(subcommand)]
    Check(check::Command),
    /// Print the configuration's keys with their meaning
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

/// Runs the command line; returns the exit code.
#[must_use]
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return out::usage(&e),
    };
    let json = cli.json;
    out::finish(run(&cli), json)
}

fn runtime(threads: bool) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = if threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build().map_err(|e| Error::Internal(e.to_string()).into())
}

fn state_dir(cli: &Cli) -> Result<PathBuf, Failure> {
    if let Some(dir) = &cli.state_dir {
        return Ok(dir.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/countersign/verifier".into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let base = base.ok_or_else(|| Error::State {
        path: "--state-dir".into(),
        reason: "neither XDG_STATE_HOME nor HOME is set".into(),
    })?;
    Ok(base.join("countersign/verifier"))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_at_most(path, countersign_wire::limits::RECORD)
}

fn read_at_most(path: &Path, max: usize) -> Result<Vec<u8>, Failure> {
    let bad = |e: std::io::Error| {
        CheckError::new(code::INPUT, "file", e.to_string(), "a readable file").about(path.display().to_string())
    };
    Ok(read_bounded(path, max).map_err(bad)?)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Init { dev, url } => init(cli, *dev, url),
        Command::Serve => serve(cli),
        Command::Check(check) => check::run(cli, check),
        Command::Explain { what } => explain::run(cli, what),
        Command::Policy(command) => policy::run(cli, command),
        Command::Keys(command) => {
            let answer = keys::run(&state_dir(cli)?, command)?;
            out::print(cli.json, &answer, || words::fields(&answer))
        }
        Command::Config => {
            out::print(cli.json, &json!(crate::config::EXAMPLE), || crate::config::EXAMPLE.trim_end().to_owned())
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "verifier", &mut text);
            out::raw(&text)
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|e| Error::State { path: dir.display().to_string(), reason: e.to_string() }.into()),
        Command::Verdict(Verdict::Bundle { id, output }) => {
            let answer = perform(cli, Request::VerdictBundle { id: *id })?;
            let bundle = answer.get("bundle").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            let bundle = bundle.ok_or_else(|| Error::Internal("the answer holds no bundle".into()))?;
            std::fs::write(output, &bundle)
                .map_err(|e| Error::State { path: output.display().to_string(), reason: e.to_string() })?;
            out::print(cli.json, &json!({"file": output, "bytes": bundle.len()}), || {
                format!("{} ({} bytes)", output.display(), bundle.len())
            })
        }
        command @ (Command::Token(_)
        | Command::EkRoot(_)
        | Command::Ek(_)
        | Command::Host(_)
        | Command::Reference(_)
        | Command::Verdict(_)
        | Command::Release(_)
        | Command::Workload(_)
        | Command::Grant(_)
        | Command::Run(_)
        | Command::Restored) => {
            let Some(request) = request(command)? else { return Ok(()) };
            let answer = perform(cli, request.clone())?;
            out::print(cli.json, &answer, || words::answer(&request, &answer))
        }
    }
}

/// The operator's request behind a command.
fn request(command: &Command) -> Result<Option<Request>, Failure> {
    Ok(Some(match command {
        Command::Token(given) => given.request(),
        Command::EkRoot(given) => given.request()?,
        Command::Ek(given) => given.request()?,
        Command::Host(given) => given.request(),
        Command::Reference(given) => return given.request(),
        Command::Verdict(given) => given.request(),
        Command::Release(given) => given.request(),
        Command::Workload(given) => given.request(),
        Command::Grant(given) => given.request()?,
        Command::Run(given) => given.request(),
        Command::Restored => Request::Restored {},
        Command::Init { .. }
        | Command::Serve
        | Command::Check(_)
        | Command::Explain { .. }
        | Command::Policy(_)
        | Command::Keys(_)
        | Command::Config
        | Command::Completions { .. }
        | Command::Man { .. } => return Ok(None),
    }))
}

fn init(cli: &Cli, dev: bool, url: &str) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let dir = state_dir(cli)?;
    let state = |e: std::io::Error| Error::State { path: dir.display().to_string(), reason: e.to_string() };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(state)?;
    crate::keys::create(&dir)?;
    let config = crate::config::EXAMPLE
        .replace("url = \"https://127.0.0.1:7448\"", &format!("url = {url:?}"))
        .replace("dangerous_allow_simulated_hosts = false", &format!("dangerous_allow_simulated_hosts = {dev}"));
    std::fs::write(dir.join("verifier.toml"), config).map_err(state)?;
    let token = hex::encode(crate::keys::random::<32>());
    crate::keys::write_secret(&dir.join("operator.token"), format!("{token}\n").as_bytes())?;
    runtime(false)?.block_on(crate::store::Store::open(&dir, true))?;
    let keys = crate::keys::Keys::load(&dir)?;
    let digest = hex::encode(countersign_wire::trust::TrustBundle::digest(&keys.trust));
    let value = json!({"state_dir": dir, "trust_bundle": digest, "operator_token_file": dir.join("operator.token"), "dev": dev});
    out::print(cli.json, &value, || {
        let warning = if dev {
            "\nsimulated TPMs may get keys here (dangerous_allow_simulated_hosts): for development only"
        } else {
            ""
        };
        format!(
            "verifier made in {}\ntrust bundle SHA-256 {digest}\noperator's token in {}{warning}",
            dir.display(),
            dir.join("operator.token").display()
        )
    })
}

fn serve(cli: &Cli) -> Result<(), Failure> {
    let dir = state_dir(cli)?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("COUNTERSIGN_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let json = cli.json;
    runtime(true)?.block_on(async {
        let mut next = Some(Service::open(&dir).await?.tried_in(Trial::own()));
        let announce = |url: &str| {
            let _ = out::print(json, &json!({"ready": url}), || format!("ready {url}"));
        };
        while let Some(service) = next {
            next = crate::server::serve(service, announce).await?;
        }
        Ok(())
    })
}
