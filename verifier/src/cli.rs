//! The `verifier` command line.

mod explain;
mod keys;
mod policy;
mod reference;
mod words;

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use countersign_wire::artefact;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{RunId, VerdictId, WorkloadId};
use countersign_wire::record::Bundle;
use serde_json::{Value, json};

use crate::admin::{self, Request, RunOrder};
use crate::check::{self, CheckError, LogFiles, check_bundle, check_eventlog, check_quote, code};
use crate::error::Error;
use crate::out::{self, Failure};
use crate::policy::sandbox::Trial;
use crate::service::Service;

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
    Check(Check),
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

#[derive(Debug, Subcommand)]
enum Token {
    /// A token that admits hosts never seen before, or with --host a new AK on a known host
    New {
        /// How many hosts it admits
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// Seconds until it expires
        #[arg(long, default_value_t = 86_400)]
        ttl: u32,
        /// A known host: id, its beginning, or name
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum EkRoot {
    /// Trust every certificate in a PEM file
    Add {
        /// PEM file
        file: PathBuf,
        /// Hosts under it are simulated
        #[arg(long)]
        development: bool,
    },
    /// Trusted CAs with their fingerprints
    List,
    /// No longer trust a CA
    Remove {
        /// Beginning of its fingerprint
        fingerprint: String,
    },
}

#[derive(Debug, Subcommand)]
enum Ek {
    /// Trust one EK: only when you know that it is that host's, for it can be any key
    Allow {
        /// What `attest ek -o` or `attest show -o` wrote on the host; or the public key, PEM or as TPM tools write it
        file: PathBuf,
        /// A name for people (default: the file's)
        #[arg(long)]
        name: Option<String>,
        /// The host with it is simulated
        #[arg(long)]
        development: bool,
    },
    /// EKs that are trusted so
    List,
    /// No longer trust an EK; a host that is enrolled with it stays enrolled
    Remove {
        /// Beginning of its id
        ek: String,
    },
}

#[derive(Debug, Subcommand)]
enum Host {
    /// All hosts
    List,
    /// One host
    Show {
        /// Id, its beginning, or name
        host: String,
    },
    /// Admit a pending or suspended host; it starts a new baseline
    Admit(Change),
    /// Suspend a host: it is appraised and gets nothing
    Suspend(Change),
    /// Revoke a host for ever
    Revoke(Change),
}

#[derive(Debug, Args)]
struct Change {
    /// Id, its beginning, or name
    host: String,
    /// Why; kept with the host and in the audit
    #[arg(long, default_value = "by the operator")]
    reason: String,
}

#[derive(Debug, Subcommand)]
enum Reference {
    /// Accept what a boot log measured, or the files of a reference set
    #[command(group(clap::ArgGroup::new("source").required(true).args(["eventlog", "verdict", "file"])))]
    Add {
        /// Name of the set
        name: String,
        /// The firmware's event log
        #[arg(long, value_name = "FILE")]
        eventlog: Option<PathBuf>,
        /// The boot log in the evidence of this verdict, which its quoted PCRs must vouch for
        #[arg(long, value_name = "ID")]
        verdict: Option<VerdictId>,
        /// PCRs to take (default: 0, 2, 3, 4, 7, 8, 9, 14)
        #[arg(long, conflicts_with = "file")]
        pcr: Vec<u8>,
        /// A reference set, as `attest learn` writes it or `attest reference sign` signs it
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Key (PEM) that must have signed the set
        #[arg(long, value_name = "FILE", requires = "file")]
        key: Vec<PathBuf>,
    },
    /// No longer accept a set
    Revoke {
        /// Its name
        name: String,
    },
    /// All sets
    List,
}

#[derive(Debug, Subcommand)]
enum Verdict {
    /// Newest verdicts
    List {
        /// Of one host
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One verdict with every check
    Show {
        /// Verdict id
        id: VerdictId,
    },
    /// Write a verdict's evidence bundle into a file
    Bundle {
        /// Verdict id
        id: VerdictId,
        /// The file
        #[arg(short, long)]
        output: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Release {
    /// Newest releases, with their runs
    List {
        /// To one host
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Give a release whose answer was lost back: it counts against the cap no longer (audited)
    Refund {
        /// Run id
        run: RunId,
        /// Host, when several have a release for such a run: id, a beginning of it, or name
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Workload {
    /// All workloads
    List,
    /// One workload
    Show {
        /// Workload id
        workload: WorkloadId,
    },
    /// No longer release a workload's key
    Withdraw {
        /// Workload id
        workload: WorkloadId,
    },
}

#[derive(Debug, Subcommand)]
enum Grant {
    /// Take a grant that an owner made (supervisor grant)
    Add {
        /// The file
        file: PathBuf,
    },
    /// All grants
    List,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Newest runs, as the hosts' attested run logs tell
    List {
        /// Of one host: id, its beginning, or name
        #[arg(long)]
        host: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// One run, with findings
    Show {
        /// Run id, or its beginning
        run: String,
    },
    /// Tell the host to end a run
    Stop(Order),
    /// Tell the host to freeze a run
    Freeze(Order),
    /// Tell the host to let a frozen run go on
    Thaw(Order),
}

#[derive(Debug, Args)]
struct Order {
    /// Run id, or its beginning
    run: String,
    /// Why; the host and the audit are told
    #[arg(long, default_value = "by the operator")]
    reason: String,
}

#[derive(Debug, Subcommand)]
enum Check {
    /// Does a log lead to these PCRs, in every listed bank, without lying?
    Eventlog {
        /// The firmware's event log: binary, or a canonical event log in JSON
        file: PathBuf,
        /// {"sha256": {"0": "hex", ...}, ...}; of a TDX guest {"sha384": {"rtmr0": "hex", ...}}
        #[arg(long, value_name = "FILE")]
        pcrs: PathBuf,
        /// The kernel's IMA list, binary
        #[arg(long, value_name = "FILE")]
        ima: Option<PathBuf>,
        /// systemd's userspace log
        #[arg(long, value_name = "FILE")]
        userspace: Option<PathBuf>,
        /// A TDX guest's ACPI table CCEL
        #[arg(long, value_name = "FILE")]
        ccel: Option<PathBuf>,
    },
    /// Is a quote by this AK, for this nonce, over these PCRs?
    Quote {
        /// TPMT_PUBLIC
        #[arg(long, value_name = "FILE")]
        ak: PathBuf,
        /// TPMS_ATTEST
        #[arg(long, value_name = "FILE")]
        quote: PathBuf,
        /// TPMT_SIGNATURE
        #[arg(long, value_name = "FILE")]
        signature: PathBuf,
        /// Raw extraData, hex
        #[arg(long, value_name = "HEX")]
        nonce: String,
        /// PCR values; may list more than the quote selects
        #[arg(long, value_name = "FILE")]
        pcrs: PathBuf,
    },
    /// Recompute a verdict from its bundle
    Bundle {
        /// The bundle
        file: PathBuf,
        /// The verifier's trust bundle, or its SHA-256
        #[arg(long, value_name = "FILE|SHA256", required_unless_present = "unanchored")]
        trust: Option<String>,
        /// Check consistency only: anybody can make such a bundle
        #[arg(long, conflicts_with = "trust")]
        unanchored: bool,
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
    Ok(check::read_bounded(path, max).map_err(bad)?)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Init { dev, url } => init(cli, *dev, url),
        Command::Serve => serve(cli),
        Command::Check(check) => run_check(cli, check),
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
    let change =
        |change: &Change, state| Request::HostState { host: change.host.clone(), state, reason: change.reason.clone() };
    Ok(Some(match command {
        Command::Token(Token::New { uses, ttl, host }) => {
            Request::TokenNew { uses: *uses, ttl_s: *ttl, host: host.clone() }
        }
        Command::EkRoot(EkRoot::Add { file, development }) => {
            let certificates =
                crate::tls::pem_certificates(&read(file)?).into_iter().map(|der| STANDARD.encode(der)).collect();
            Request::EkRootAdd { certificates, development: *development }
        }
        Command::EkRoot(EkRoot::List) => Request::EkRootList {},
        Command::EkRoot(EkRoot::Remove { fingerprint }) => Request::EkRootRemove { fingerprint: fingerprint.clone() },
        Command::Ek(Ek::Allow { file, name, development }) => {
            let bytes = read(file)?;
            let card = artefact::from_file::<countersign_wire::enrol::HostCard>(&bytes);
            let ek = card.map_or_else(|_| crate::tls::public_key(bytes), |card| card.ek_public);
            let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = name.clone().unwrap_or_else(stem);
            Request::EkAllow { ek: STANDARD.encode(ek), name, development: *development }
        }
        Command::Ek(Ek::List) => Request::EkList {},
        Command::Ek(Ek::Remove { ek }) => Request::EkRemove { ek: ek.clone() },
        Command::Host(Host::List) => Request::HostList {},
        Command::Host(Host::Show { host }) => Request::HostShow { host: host.clone() },
        Command::Host(Host::Admit(host)) => change(host, HostState::Active),
        Command::Host(Host::Suspend(host)) => change(host, HostState::Suspended),
        Command::Host(Host::Revoke(host)) => change(host, HostState::Revoked),
        Command::Reference(Reference::Add { name, verdict: Some(id), pcr, .. }) => {
            Request::ReferenceAddVerdict { name: name.clone(), id: *id, pcrs: pcr.clone() }
        }
        Command::Reference(Reference::Add { name, eventlog, pcr, file, key, verdict: None }) => {
            match (eventlog, file) {
                (Some(log), _) => Request::ReferenceAdd {
                    name: name.clone(),
                    eventlog: STANDARD.encode(read(log)?),
                    pcrs: pcr.clone(),
                },
                (None, Some(file)) => reference::add(name, file, key)?,
                (None, None) => return Ok(None),
            }
        }
        Command::Reference(Reference::Revoke { name }) => Request::ReferenceRevoke { name: name.clone() },
        Command::Reference(Reference::List) => Request::ReferenceList {},
        Command::Verdict(Verdict::List { host, limit }) => Request::VerdictList { host: host.clone(), limit: *limit },
        Command::Run(run) => {
            let order = |given: &Order, order| Request::RunOrder {
                run: given.run.clone(),
                order,
                reason: given.reason.clone(),
            };
            match run {
                Run::List { host, limit } => Request::RunList { host: host.clone(), limit: *limit },
                Run::Show { run } => Request::RunShow { run: run.clone() },
                Run::Stop(given) => order(given, RunOrder::Stop),
                Run::Freeze(given) => order(given, RunOrder::Freeze),
                Run::Thaw(given) => order(given, RunOrder::Thaw),
            }
        }
        Command::Verdict(Verdict::Show { id }) => Request::VerdictShow { id: *id },
        Command::Verdict(Verdict::Bundle { id, .. }) => Request::VerdictBundle { id: *id },
        Command::Release(Release::List { host, limit }) => Request::ReleaseList { host: host.clone(), limit: *limit },
        Command::Release(Release::Refund { run, host }) => Request::ReleaseRefund { run: *run, host: host.clone() },
        Command::Workload(Workload::List) => Request::WorkloadList {},
        Command::Workload(Workload::Show { workload }) => Request::WorkloadShow { workload: *workload },
        Command::Workload(Workload::Withdraw { workload }) => Request::WorkloadWithdraw { workload: *workload },
        Command::Grant(Grant::Add { file }) => Request::GrantAdd { grant: STANDARD.encode(read(file)?) },
        Command::Grant(Grant::List) => Request::GrantList {},
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

/// On the state folder, whose permissions are the authority; with --remote over HTTPS.
fn perform(cli: &Cli, request: Request) -> Result<Value, Failure> {
    let dir = state_dir(cli)?;
    let Some(url) = &cli.remote else {
        return runtime(false)?.block_on(async {
            let service = Service::open(&dir).await?.tried_in(Trial::own());
            Ok(admin::perform(&service, request, "command line").await?)
        });
    };
    let token = crate::keys::read_secret(&cli.token_file.clone().unwrap_or_else(|| dir.join("operator.token")))?;
    let ca = read(&cli.ca.clone().unwrap_or_else(|| dir.join("ca.pem")))?;
    remote(url, &String::from_utf8_lossy(&token), &ca, &request)
}

fn remote(url: &str, token: &str, ca: &[u8], request: &Request) -> Result<Value, Failure> {
    let unreachable = |e: &dyn std::fmt::Display| Failure {
        code: 21,
        error: format!("verifier at {url}: {e}"),
        hint: "check the address and that `verifier serve` runs there".into(),
        json: json!({"error": {"code": 21, "message": e.to_string()}}),
    };
    let ca = reqwest::Certificate::from_pem(ca).map_err(|e| unreachable(&e))?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder()
        .tls_certs_only([ca])
        .https_only(true)
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .map_err(|e| unreachable(&e))?;
    let response = client
        .post(format!("{}/v1/admin", url.trim_end_matches('/')))
        .bearer_auth(token.trim())
        .json(request)
        .send()
        .map_err(|e| unreachable(&e))?;
    let good = response.status().is_success();
    let body: Value = response.json().map_err(|e| unreachable(&e))?;
    if good {
        return Ok(body);
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Err(Failure { code: 20, error: text("title"), hint: text("hint"), json: json!({"error": body}) })
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

fn run_check(cli: &Cli, check: &Check) -> Result<(), Failure> {
    let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    match check {
        Check::Eventlog { file, pcrs, ima, userspace, ccel } => {
            let (log, pcrs) = (read(file)?, read(pcrs)?);
            let (ima, userspace, ccel) = (optional(ima)?, optional(userspace)?, optional(ccel)?);
            let (ima, userspace, ccel) = (ima.as_deref(), userspace.as_deref(), ccel.as_deref());
            let checked = check_eventlog(LogFiles { log: &log, pcrs: &pcrs, ima, userspace, ccel })?;
            out::print(cli.json, &json!(checked), || words::eventlog(&checked))
        }
        Check::Quote { ak, quote, signature, nonce, pcrs } => {
            let nonce = hex::decode(nonce)
                .map_err(|e| CheckError::new(code::INPUT, "nonce", e.to_string(), "hex digits").about("--nonce"))?;
            let checked = check_quote(&read(ak)?, &read(quote)?, &read(signature)?, &nonce, &read(pcrs)?)?;
            out::print(cli.json, &json!(checked), || words::quote(&checked))
        }
        Check::Bundle { file, trust, .. } => {
            let trust = trust.as_deref().map(check::trust_digest).transpose()?;
            let checked = check_bundle(&read_at_most(file, artefact::longest::<Bundle>())?, trust)?;
            out::print(cli.json, &json!(checked), || words::bundle(&checked))
        }
    }
}
