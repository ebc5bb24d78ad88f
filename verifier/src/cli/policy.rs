//! `verifier policy ...`: write, test, attack, sign and load policies.

mod eval;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use countersign_policy::lint::{Severity, lint};
use countersign_policy::settings::learn;
use countersign_policy::testing::{TestOutcome, run_tests};
use countersign_policy::{PolicyBundle, Role, library, schema};
use serde_json::{Map, Value, json};

use super::{read, state_dir};
use crate::error::Error;
use crate::out::{self, Failure};
use crate::policy::{decision_log, mutate, preview, sandbox, store};

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Write the shipped policies, their library and their tests into a new folder
    New {
        /// The folder; must not exist
        dir: PathBuf,
    },
    /// Run the tests (*_test.rego) of a folder, with coverage
    Test {
        /// The folder; none takes the shipped policies
        dir: Option<PathBuf>,
    },
    /// Look for traps that turn a no into a yes
    Lint {
        /// The folder; none takes the shipped policies
        dir: Option<PathBuf>,
    },
    /// Decide once and say why
    Eval {
        /// Folder or bundle; none takes the shipped host policy
        policy: Option<PathBuf>,
        /// An evidence bundle (verifier verdict bundle)
        #[arg(long, value_name = "FILE", conflicts_with = "input")]
        evidence: Option<PathBuf>,
        /// An input document, JSON
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Reference values, JSON; none takes those of the evidence
        #[arg(long, value_name = "FILE")]
        reference: Option<PathBuf>,
        /// It is a workload policy
        #[arg(long)]
        workload: bool,
        /// Show what each rule of the policy came to
        #[arg(long)]
        trace: bool,
    },
    /// Attack a good host in many ways and list what the policy would still accept
    Mutate {
        /// A host policy: folder or bundle; none takes the shipped one
        policy: Option<PathBuf>,
        /// An evidence bundle of a good host; none takes the shipped evidence
        #[arg(long, value_name = "FILE")]
        evidence: Option<PathBuf>,
        /// The shipped policy without settings, as `verifier init` installs it
        #[arg(long)]
        default_settings: bool,
    },
    /// Print settings that accept exactly the host of this evidence, to be read and edited
    Settings {
        /// An evidence bundle of a good host; none takes the shipped evidence
        #[arg(long, value_name = "FILE")]
        evidence: Option<PathBuf>,
    },
    /// Write the JSON Schemas of input, reference values, settings and verdict into a folder
    Schema {
        /// The folder
        dir: PathBuf,
    },
    /// Build a bundle from a folder; tests stay out
    Build {
        /// The folder
        dir: PathBuf,
        /// The bundle
        #[arg(short, long)]
        output: PathBuf,
        /// Rises with every version; a lower one is refused when it is loaded
        #[arg(long)]
        revision: u64,
        /// Days for which it is valid
        #[arg(long, default_value_t = 90)]
        days: u32,
        /// Sign it with this P-256 key (PEM, PKCS#8)
        #[arg(long, value_name = "FILE", requires = "keyid")]
        key: Option<PathBuf>,
        /// The key's id
        #[arg(long)]
        keyid: Option<String>,
    },
    /// Sign a bundle
    Sign {
        /// The bundle
        bundle: PathBuf,
        /// P-256 private key (PEM, PKCS#8)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Its id
        #[arg(long)]
        keyid: String,
        /// The signed bundle
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Verify a signed bundle
    Verify {
        /// The bundle
        bundle: PathBuf,
        /// Public key (PEM)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Its id
        #[arg(long)]
        keyid: String,
    },
    /// Trust a key for host policies; its id is the file's name without .pem
    Trust {
        /// Public key (PEM): P-256, or RSA
        key: PathBuf,
    },
    /// Make a signed bundle the host policy
    Load {
        /// The bundle
        bundle: PathBuf,
    },
    /// The host policy, its revision and digest, and what came before it
    Status,
    /// Make the host policy that was in force before the current one the host policy again
    Rollback,
    /// What a bundle would change on the stored evidence, before it is loaded
    Preview {
        /// Folder or bundle
        bundle: PathBuf,
        /// Newest verdicts to look at
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Append a decision log in OPA's format to a file: every decision since the last call
    Log {
        /// The file
        #[arg(short, long)]
        output: PathBuf,
        /// Fields to leave out, for example /input/host/name
        #[arg(long, value_name = "POINTER")]
        mask: Vec<String>,
    },
    /// Checks a bundle on standard input under limits; used by load itself
    #[command(hide = true)]
    Sandbox {
        /// It is a workload policy
        #[arg(long)]
        workload: bool,
    },
}

fn failed(why: impl std::fmt::Display, hint: &str) -> Failure {
    let error = why.to_string();
    let json = json!({"error": {"code": 20, "message": error, "hint": hint}});
    Failure { code: 20, error, hint: hint.to_owned(), json }
}

fn written(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let bad = |e: std::io::Error| Error::State { path: path.display().to_string(), reason: e.to_string() };
    Ok(std::fs::write(path, bytes).map_err(bad)?)
}

/// A bundle from a folder or a file.
fn bundle(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.is_dir() {
        return PolicyBundle::from_dir(path).map_err(|e| failed(e, ""));
    }
    let files = countersign_policy::bundle_files(&read(path)?).map_err(|e| failed(e, ""))?;
    PolicyBundle::build(files).map_err(|e| failed(e, ""))
}

type Modules = (BTreeMap<String, String>, Map<String, Value>);

/// Every Rego file of a folder with its tests, and its data.
fn project(dir: Option<&Path>) -> Result<Modules, Failure> {
    let Some(dir) = dir else {
        let own = library().into_iter().map(|(path, text)| (path.to_owned(), text.to_owned()));
        return Ok((own.collect(), Map::new()));
    };
    let made = PolicyBundle::from_dir(dir).and_then(|bytes| PolicyBundle::parse(&bytes));
    let made = made.map_err(|e| {
        failed(e, "give the folder of a policy's .rego files; without one the shipped policies are taken")
    })?;
    let mut modules = made.modules().clone();
    let mut folders = vec![(dir.to_owned(), 0_u8)];
    while let Some((folder, depth)) = folders.pop() {
        let bad = |e: std::io::Error| Error::State { path: folder.display().to_string(), reason: e.to_string() };
        for entry in std::fs::read_dir(&folder).map_err(bad)? {
            let path = entry.map_err(bad)?.path();
            if path.is_dir() && depth < 16 {
                folders.push((path, depth.saturating_add(1)));
            } else if path.to_string_lossy().ends_with("_test.rego") {
                let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
                modules.insert(name, String::from_utf8_lossy(&read(&path)?).into_owned());
            }
        }
    }
    Ok((modules, made.data().clone()))
}

/// Runs a policy command.
pub(super) fn run(cli: &super::Cli, command: &Policy) -> Result<(), Failure> {
    let json = cli.json;
    match command {
        Policy::New { dir } => new(json, dir),
        Policy::Test { dir } => test(json, dir.as_deref()),
        Policy::Lint { dir } => lint_folder(json, dir.as_deref()),
        Policy::Eval { .. } => eval::eval(json, command),
        Policy::Mutate { policy, evidence, default_settings } => {
            let subject = mutate::Subject {
                evidence: evidence.as_deref().map(read).transpose()?,
                host_policy: policy.as_deref().map(bundle).transpose()?,
                without_settings: *default_settings,
            };
            let hint = "take the evidence of a verdict that allowed: verifier verdict bundle ID -o FILE";
            let done = mutate::mutate(&subject).map_err(|e| failed(e, hint))?;
            out::print(json, &json!(done), || {
                let mut rows = vec![["VERDICT", "ATTACK", "STOPPED BY"].map(str::to_owned).to_vec()];
                rows.extend(done.mutations.iter().map(|mutation| {
                    let why = mutation.not_claimed.as_ref().map(|not| format!("{}. To add it: {}", not.why, not.add));
                    let by = why.unwrap_or_else(|| mutation.reasons.join(", "));
                    vec![mutation.verdict.to_owned(), mutation.name.to_owned(), by]
                }));
                let (total, accepted) = (done.mutations.len(), done.accepted);
                let open = match done.not_claimed {
                    0 => String::new(),
                    open => format!(", {open} that the policy does not claim to stop"),
                };
                format!("{}\n{}: {accepted} of {total} attacks accepted{open}", out::table(&rows), done.subject)
            })
        }
        Policy::Settings { evidence } => {
            let settings = match evidence {
                None => mutate::shipped_settings().map_err(|e| failed(e, ""))?,
                Some(file) => learn(&mutate::recorded_input(&read(file)?).map_err(|e| failed(e, ""))?),
            };
            out::print(true, &json!(settings), String::new)
        }
        Policy::Schema { dir } => {
            let all = schema::all().map_err(|e| failed(e, ""))?;
            for (name, schema) in &all {
                let text = serde_json::to_string_pretty(schema).unwrap_or_default();
                written(&dir.join(name), format!("{text}\n").as_bytes())?;
            }
            out::print(json, &json!(all.keys().collect::<Vec<_>>()), || format!("{} schemas", all.len()))
        }
        Policy::Build { dir, output, revision, days, key, keyid } => {
            let now = store::now_ms();
            let mut bytes =
                store::build(dir, *revision, now.saturating_add(i64::from(*days).saturating_mul(86_400_000)))
                    .map_err(|e| failed(e, ""))?;
            if let (Some(key), Some(keyid)) = (key, keyid) {
                bytes = store::sign(&bytes, &read(key)?, keyid).map_err(|e| failed(e, ""))?;
            }
            written(output, &bytes)?;
            let parsed = PolicyBundle::parse(&bytes).map_err(|e| failed(e, ""))?;
            let digest = hex::encode(parsed.digest());
            out::print(json, &json!({"file": output, "digest": digest, "revision": revision}), || {
                format!("{} (revision {revision}, SHA-256 {digest})", output.display())
            })
        }
        Policy::Sign { bundle, key, keyid, output } => {
            let signed = store::sign(&read(bundle)?, &read(key)?, keyid).map_err(|e| failed(e, ""))?;
            written(output, &signed)?;
            out::print(json, &json!({"file": output}), || format!("{} signed by {keyid}", output.display()))
        }
        Policy::Verify { bundle, key, keyid } => {
            let keys = BTreeMap::from([(keyid.clone(), read(key)?)]);
            let verified = store::verify(&read(bundle)?, &keys).map_err(|e| failed(e, ""))?;
            out::print(json, &json!(verified.about), || verified.about.to_string())
        }
        Policy::Trust { key } => {
            let keyid = store::trust(&state_dir(cli)?, key, &read(key)?)?;
            out::print(json, &json!({"keyid": keyid}), || format!("host policies signed by {keyid} are accepted"))
        }
        Policy::Load { bundle } => {
            let program = std::env::current_exe().map_err(|e| failed(e, ""))?;
            let about = store::load(&state_dir(cli)?, &read(bundle)?, &program)?;
            out::print(json, &json!(about), || format!("loaded: {about}"))
        }
        Policy::Status => {
            let status = store::status(&state_dir(cli)?)?;
            out::print(json, &json!(status), || status.to_string())
        }
        Policy::Rollback => {
            let about = store::rollback(&state_dir(cli)?)?;
            out::print(json, &json!(about), || format!("in force again: {about}"))
        }
        Policy::Preview { bundle: path, limit } => {
            let policy = bundle(path)?;
            let dir = state_dir(cli)?;
            let changes = super::runtime(false)?.block_on(async {
                preview::preview(&crate::service::Service::open(&dir).await?, &policy, *limit).await
            })?;
            out::print(json, &json!(changes), || changes.to_string())
        }
        Policy::Log { output, mask } => {
            let dir = state_dir(cli)?;
            let written = super::runtime(false)?.block_on(async {
                decision_log::export(&crate::service::Service::open(&dir).await?, output, mask).await
            })?;
            out::print(json, &json!({"file": output, "entries": written}), || format!("{written} decisions"))
        }
        Policy::Sandbox { workload } => {
            let role = if *workload { Role::Workload } else { Role::Host };
            sandbox::sandbox_child(role).map_err(|e| failed(e, ""))?;
            out::print(true, &json!({"ok": true}), String::new)
        }
    }
}

fn new(json: bool, dir: &Path) -> Result<(), Failure> {
    let bad = |e: std::io::Error| Error::State { path: dir.display().to_string(), reason: e.to_string() };
    std::fs::create_dir(dir).map_err(bad)?;
    for (path, text) in library() {
        let target = dir.join(path);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(bad)?;
        }
        written(&target, text.as_bytes())?;
    }
    let settings = dir.join("countersign/settings");
    std::fs::create_dir_all(&settings).map_err(bad)?;
    written(&settings.join("data.json"), b"{}\n")?;
    out::print(json, &json!({"dir": dir, "files": library().len()}), || {
        format!("{0}: {1} files; next: verifier policy test {0}", dir.display(), library().len())
    })
}

fn test(json: bool, dir: Option<&Path>) -> Result<(), Failure> {
    let (modules, data) = project(dir)?;
    let report = run_tests(&modules, &data).map_err(|e| failed(e, ""))?;
    let bad: Vec<_> = report.tests.iter().filter(|test| test.outcome != TestOutcome::Pass).collect();
    out::print(json, &json!({"report": report, "percent": report.percent()}), || {
        let mut lines = Vec::new();
        for test in &bad {
            match &test.outcome {
                TestOutcome::Pass => {}
                TestOutcome::Error { why } => {
                    lines.push(format!("ERROR {} ({}:{})\n{why}", test.name, test.file, test.line))
                }
                TestOutcome::Fail { line, statement, diff } => {
                    lines.push(format!("FAIL {} ({}:{line})\n  {statement}", test.name, test.file));
                    lines.extend(diff.iter().map(|line| format!("  {line}")));
                }
            }
        }
        lines.extend(report.disagreements.iter().map(|what| format!("ENGINES DISAGREE {what}")));
        for file in report.coverage.iter().filter(|file| !file.missed.is_empty()) {
            lines.push(format!("not covered: {} lines {:?}", file.file, file.missed));
        }
        lines.push(format!(
            "{} of {} tests pass, {} % of the lines covered, {} values compared between both embedded engines",
            report.tests.len().saturating_sub(bad.len()),
            report.tests.len(),
            report.percent(),
            report.compared
        ));
        lines.join("\n")
    })?;
    if report.passed() { Ok(()) } else { Err(failed("the tests do not pass", "")) }
}

fn lint_folder(json: bool, dir: Option<&Path>) -> Result<(), Failure> {
    let (modules, _) = project(dir)?;
    let findings = lint(&modules).map_err(|e| failed(e, ""))?;
    out::print(json, &json!({"findings": findings}), || {
        let each = findings.iter().map(|finding| {
            let severity = if finding.severity == Severity::Error { "error" } else { "warning" };
            format!(
                "{}:{}: {severity} {}: {}\n  {}",
                finding.file, finding.line, finding.id, finding.message, finding.hint
            )
        });
        let mut lines: Vec<String> = each.collect();
        lines.push(format!("{} findings in {} files", findings.len(), modules.len()));
        lines.join("\n")
    })?;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if errors == 0 { Ok(()) } else { Err(failed(format!("{errors} traps"), "")) }
}
