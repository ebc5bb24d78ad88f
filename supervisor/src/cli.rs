//! The `supervisor` command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use countersign_sif::escrow::{Escrow, EscrowKey};
use serde_json::Value;

use crate::daemon::{self, EXAMPLE, HostPlace};
use crate::doctor::{self, Finding, Outcome};
use crate::exit::{Failure, Stage, TABLE};
use crate::out;
use crate::owner::{self, Policy, Protect, Register};
use crate::run::{Given, Plan, Task, config, run};
use crate::runtime;
use crate::unprotect::{self, Protected, Rekey};

const EXAMPLES: &str = "\
Examples:
  supervisor protect rootfs/ --sign owner.pem --escrow escrow.pub.pem -o app.sif
  supervisor register app.sif --signer owner.pub.pem --escrow-key escrow.pem \\
      --url https://verifier:7448 --token-file operator.token --ca ca.pem
  supervisor inspect app.sif --signer owner.pub.pem --full
  supervisor run --signer owner.pub.pem app.sif cat /secret.txt
  supervisor shell --signer owner.pub.pem app.sif
  supervisor doctor";

const DAEMON: &str = "\
Users then run images with `supervisor run IMAGE`; docs/operations.md says how to set a host with several users up.
SIGHUP (systemctl reload) reads the rules again; SIGTERM ends the runs, then the daemon.";

/// Protects container images, and runs them on hosts that TPM and policy accept.
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, after_help = format!("{EXAMPLES}\n\n{TABLE}"), max_term_width = 120)]
struct Cli {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt and sign an image, with its policy inside
    Protect(ProtectArgs),
    /// Give an image's key and policy to a verifier
    Register(RegisterArgs),
    /// Write a protected image as a plain one, with the escrow key
    Unprotect {
        #[command(flatten)]
        from: FromArgs,
        /// The plain SIF to make
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace a file of that name
        #[arg(short, long)]
        force: bool,
    },
    /// Encrypt an image anew, with another key, escrow or policy: another workload, to be registered again
    Rekey(RekeyArgs),
    /// Check an image and show what is in it
    Inspect {
        /// The image
        image: PathBuf,
        /// The owner's public key (PEM); several may be given. Without one nothing is checked, and the output says so
        #[arg(long, value_name = "FILE")]
        signer: Vec<PathBuf>,
        /// Check every object, the whole payload too
        #[arg(long, requires = "signer")]
        full: bool,
    },
    /// Run an image when the TPM and the policies agree: its runscript with arguments, or, where it has none, a command line
    #[command(after_help = TABLE)]
    Run {
        #[command(flatten)]
        run: RunArgs,
        /// Arguments of the runscript, or the command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a command line in an image, past its runscript
    #[command(after_help = TABLE)]
    Exec {
        #[command(flatten)]
        run: RunArgs,
        /// The command line
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a shell in an image
    #[command(after_help = TABLE)]
    Shell {
        #[command(flatten)]
        run: RunArgs,
        /// The shell's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Serve the users of this host, who get no access to its TPM: started by systemd, as root
    #[command(after_help = DAEMON)]
    Daemon {
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
    },
    /// Show what runs under this host's daemon: your own runs, or everybody's to root
    Ps {
        /// The daemon's socket (default: as /etc/countersign/supervisor.toml says)
        #[arg(long, value_name = "SOCKET", env = "COUNTERSIGN_DAEMON")]
        daemon: Option<PathBuf>,
    },
    /// Check whether this host can run protected images, and say what to do where it cannot
    Doctor(HostArgs),
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
    #[command(hide = true)]
    DecryptorProcess,
    #[command(hide = true)]
    StageProcess,
    #[command(hide = true)]
    NamespaceProcess,
    #[command(hide = true)]
    SessionProcess,
    #[command(hide = true)]
    RuntimeProcess {
        #[arg(long)]
        terminal: bool,
        #[arg(last = true)]
        program: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct ProtectArgs {
    /// A root folder, a plain SIF, or a squashfs
    input: PathBuf,
    /// Folder of the workload policy (package countersign.workload; default: the shipped example)
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The owner's private key (PEM: Ed25519, ECDSA P-256/P-384 or RSA)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// Escrow: an RSA public key (PEM); its private half opens the image without a verifier
    #[arg(long, value_name = "FILE", required_unless_present = "escrow_passphrase_file")]
    escrow: Option<PathBuf>,
    /// Escrow: a file with a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow")]
    escrow_passphrase_file: Option<PathBuf>,
    /// The image to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an image of that name
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct FromArgs {
    /// The image
    image: PathBuf,
    /// The owner's public key (PEM)
    #[arg(long, required = true, value_name = "FILE")]
    signer: Vec<PathBuf>,
    /// The escrow's private key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "escrow_passphrase_file")]
    escrow_key: Option<PathBuf>,
    /// A file with the escrow's passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow_key")]
    escrow_passphrase_file: Option<PathBuf>,
}

impl FromArgs {
    fn escrow(&self) -> Result<EscrowKey, Failure> {
        match (&self.escrow_key, &self.escrow_passphrase_file) {
            (Some(path), _) => owner::escrow_key(path),
            (None, Some(path)) => Ok(EscrowKey::Passphrase(owner::passphrase(path)?)),
            (None, None) => Err(Failure::new(Stage::Usage, "no escrow key", "--escrow-key KEY.pem")),
        }
    }

    fn with<T>(&self, then: impl FnOnce(&Protected<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        then(&Protected { image: &self.image, signers: &owner::signers(&self.signer)?, escrow: &self.escrow()? })
    }
}

#[derive(Debug, Args)]
struct RekeyArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The owner's private key (PEM)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// The new escrow: an RSA public key (PEM)
    #[arg(long, value_name = "FILE")]
    escrow: PathBuf,
    /// Folder of another workload policy (default: the image's own)
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The image to make
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an image of that name
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct RegisterArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The verifier's address
    #[arg(long, value_name = "URL")]
    url: String,
    /// The operator's token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The verifier's CA (PEM)
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// A label for people (default: the file's name)
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct HostArgs {
    /// The host's configuration (as for attest)
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CONFIG")]
    config: Option<PathBuf>,
    /// Where the TPM is
    #[arg(long, value_name = "ADDRESS", env = "COUNTERSIGN_TPM")]
    tpm: Option<String>,
    /// The host's state folder
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The owner's public key (PEM); several may be given. The daemon's rules may know it already
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_SIGNER")]
    signer: Vec<PathBuf>,
    /// Have this host's daemon run it (default: where the TPM is out of your reach and the daemon is there)
    #[arg(
        long,
        value_name = "SOCKET",
        env = "COUNTERSIGN_DAEMON",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    daemon: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
    /// The container runtime: auto (what is installed, else the built-in one), builtin, apptainer, singularity, or a path
    #[arg(long, value_name = "RUNTIME", default_value = "auto", env = "COUNTERSIGN_RUNTIME")]
    runtime: PathBuf,
    /// Write the evidence bundle of the release into a file
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Write JSON lines about the stages to this descriptor
    #[arg(long, value_name = "N")]
    status_fd: Option<u32>,
    /// The image
    image: PathBuf,
}

/// Runs the command line; returns the exit code.
#[must_use]
pub fn main() -> u8 {
    let split = match runtime::split(std::env::args_os().collect(), &Cli::command()) {
        Ok(split) => split,
        Err(failure) => return out::finish(Err(failure), out::wants_json()),
    };
    let cli = match Cli::try_parse_from(split.own) {
        Ok(cli) => cli,
        Err(e) => return out::usage(&e),
    };
    let begin = |given, task| out::finish(start(given, task, split.flags), cli.json);
    match cli.command {
        Command::DecryptorProcess => crate::decryptor::main(),
        Command::StageProcess => crate::stage::main(),
        Command::NamespaceProcess => doctor::namespace_process(),
        Command::SessionProcess => daemon::session(),
        Command::RuntimeProcess { terminal, program } => runtime::agent(terminal, &program),
        Command::Daemon { example: true, .. } => out::finish(out::raw(EXAMPLE.as_bytes()).map(|()| 0), cli.json),
        Command::Daemon { host, rules, socket, .. } => {
            let host = HostPlace { config: host.config, tpm: host.tpm, state_dir: host.state_dir };
            out::finish(daemon::serve(daemon::Options { settings: rules, socket, host }), cli.json)
        }
        Command::Ps { daemon } => out::finish(ps(daemon.as_deref(), cli.json), cli.json),
        Command::Doctor(given) => out::finish(examine(given, cli.json), cli.json),
        Command::Run { run: given, arguments } => begin(given, Task::Run(arguments)),
        Command::Exec { run: given, command } => begin(given, Task::Exec(command)),
        Command::Shell { run: given, arguments } => begin(given, Task::Shell(arguments)),
        command @ (Command::Protect(_)
        | Command::Register(_)
        | Command::Unprotect { .. }
        | Command::Rekey(_)
        | Command::Inspect { .. }
        | Command::Completions { .. }
        | Command::Man { .. }) => out::finish(owner_command(command, cli.json).map(|()| 0), cli.json),
    }
}

/// Every finding; exit code 219 when one of them is a problem.
fn examine(given: HostArgs, json: bool) -> Result<u8, Failure> {
    let config = config(given.config.as_deref(), given.tpm.as_deref(), given.state_dir)?;
    let findings = doctor::examine(&config);
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
    out::print(json, &serde_json::json!({"findings": findings}), words)?;
    let problems = findings.iter().any(|finding| finding.outcome == Outcome::Problem);
    Ok(if problems { Stage::Other.code() } else { 0 })
}

fn ps(socket: Option<&Path>, json: bool) -> Result<u8, Failure> {
    let list = daemon::list(socket)?;
    out::print(json, &list, || daemon::table(&list))?;
    Ok(0)
}

/// Runs it, or has the daemon do so.
fn start(given: RunArgs, task: Task, flags: Vec<Given>) -> Result<u8, Failure> {
    let socket = given.daemon.clone();
    let plan = plan(given, task, flags);
    if let Some(socket) = daemon::wanted(socket.as_deref(), &plan)? {
        return daemon::run(&socket, &plan);
    }
    if plan.signers.is_empty() {
        let hint = "--signer FILE: the owner's public key, which `supervisor inspect IMAGE` names";
        return Err(Failure::new(Stage::Usage, "no signer is trusted", hint));
    }
    run(&plan)
}

fn plan(given: RunArgs, task: Task, flags: Vec<Given>) -> Plan {
    Plan {
        image: given.image,
        signers: given.signer,
        task,
        runtime: given.runtime,
        flags,
        config: given.host.config,
        tpm: given.host.tpm,
        state_dir: given.host.state_dir,
        bundle: given.bundle,
        status_fd: given.status_fd,
        caller: None,
    }
}

fn owner_command(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Protect(given) => {
            let escrow = match (&given.escrow, &given.escrow_passphrase_file) {
                (Some(path), _) => owner::escrow(path)?,
                (None, Some(path)) => Escrow::Passphrase(owner::passphrase(path)?),
                (None, None) => return Err(Failure::new(Stage::Usage, "no escrow", "--escrow KEY.pem")),
            };
            let (policy, output) = (given.policy.as_deref(), given.output.as_path());
            let policy = policy.map_or(Policy::Shipped, Policy::Folder);
            let made = owner::protect_image(&Protect {
                input: &given.input,
                policy,
                sign: &given.sign,
                escrow,
                output,
                force: given.force,
            })?;
            print(json, &made)
        }
        Command::Register(given) => {
            let file_name = given.from.image.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = given.name.or(file_name).unwrap_or_default();
            let registered = owner::register(&Register {
                image: &given.from.image,
                signers: &owner::signers(&given.from.signer)?,
                escrow: given.from.escrow()?,
                url: &given.url,
                token: &given.token_file,
                ca: &given.ca,
                name: &name,
            })?;
            print(json, &registered)
        }
        Command::Unprotect { from, output, force } => {
            print(json, &from.with(|protected| unprotect::unprotect(protected, &output, force))?)
        }
        Command::Rekey(given) => {
            let new = Rekey {
                sign: &given.sign,
                policy: given.policy.as_deref(),
                escrow: owner::escrow(&given.escrow)?,
                output: &given.output,
                force: given.force,
            };
            print(json, &given.from.with(|protected| unprotect::rekey(protected, new))?)
        }
        Command::Inspect { image, signer, full } => {
            if signer.is_empty() {
                return print(json, &owner::look(&image)?);
            }
            print(json, &owner::inspect(&image, &owner::signers(&signer)?, full)?)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "supervisor", &mut text);
            out::raw(&text)
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir).map_err(|e| {
            Failure::new(Stage::Other, format!("{}: {e}", dir.display()), "make the folder first: mkdir -p DIR")
        }),
        Command::Run { .. }
        | Command::Exec { .. }
        | Command::Shell { .. }
        | Command::DecryptorProcess
        | Command::StageProcess
        | Command::NamespaceProcess
        | Command::SessionProcess
        | Command::Daemon { .. }
        | Command::Ps { .. }
        | Command::RuntimeProcess { .. }
        | Command::Doctor(_) => Ok(()),
    }
}

/// JSON, or a line a field and a line an object.
fn print(json: bool, value: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let words = || {
        let mut lines = Vec::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            match value.as_array() {
                Some(list) => lines.extend(list.iter().map(|entry| {
                    let fields =
                        entry.as_object().into_iter().flatten().filter(|(_, value)| value.as_str() != Some(""));
                    let fields = fields.map(|(name, value)| format!("{name} {}", text(value)));
                    format!("  {}", fields.collect::<Vec<_>>().join("  "))
                })),
                None => lines.push(format!("{name:12} {}", text(value))),
            }
        }
        lines.join("\n")
    };
    out::print(json, value, words)
}
