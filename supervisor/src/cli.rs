//! The `supervisor` command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use countersign_sif::escrow::{Escrow, EscrowKey};
use serde_json::Value;

use crate::daemon::{self, EXAMPLE, HostPlace};
use crate::doctor::{self, Finding, Outcome};
use crate::exit::{Failure, Stage, TABLE};
use crate::grant::{self, grant};
use crate::inspect;
use crate::out;
use crate::owner::{self, Input, Passphrase, Policy, Protect, Register};
use crate::run::{Given, Plan, Task, config, run};
use crate::unprotect::{self, Protected, Rekey};
use crate::{instance, runtime};

const EXAMPLES: &str = "\
Examples:
  supervisor protect rootfs/ --sign owner.pem --escrow escrow.pub.pem -o app.sif
  supervisor register app.sif --signer owner.pub.pem --escrow-key escrow.pem \\
      --url https://verifier:7448 --token-file operator.token --ca ca.pem
  supervisor inspect app.sif --signer owner.pub.pem --full
  supervisor run --signer owner.pub.pem app.sif cat /secret.txt
  supervisor shell --signer owner.pub.pem app.sif
  supervisor exec --signer owner.pub.pem --nv -B /data --pwd /data app.sif train.py
  supervisor instance start --signer owner.pub.pem app.sif web
  supervisor doctor";

const DAEMON: &str = "\
Users then run images with `supervisor run IMAGE`; docs/operations.md says how to set a host with several users up.
A rule says who may run what, and whether containers may see their users' folders (--bind; not without binds = true).
SIGHUP (systemctl reload) reads the rules again; SIGTERM ends the runs, then the daemon.";

/// Protects container images, and runs them on hosts that TPM and policy accept.
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, after_help = format!("{EXAMPLES}\n\n{TABLE}"), max_term_width = 120)]
struct Cli {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say errors only, and what a command is asked to show
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt and sign an image, with its policy inside
    Protect(ProtectArgs),
    /// Give an image's policy to a verifier, and its key unless its owner keeps it
    Register(RegisterArgs),
    /// Wrap an image's key for one host, offline: the verifier can say yes, and never reads the key
    Grant(GrantArgs),
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
    /// Runs that stay: start, list, stop, use of machine
    #[command(subcommand)]
    Instance(InstanceCommand),
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
}

/// Roles in which the program starts itself. Each start waits for them: they are read without the commands, which take longer.
#[derive(Debug, Parser)]
#[command(name = "supervisor")]
enum Helper {
    #[command(name = "decryptor-process")]
    Decryptor,
    #[command(name = "stage-process")]
    Stage,
    #[command(name = "namespace-process")]
    Namespace,
    #[command(name = "instance-process")]
    Instance,
    #[command(name = "session-process")]
    Session,
    #[command(name = "runtime-process")]
    Runtime {
        #[arg(long)]
        gate: u32,
        #[arg(long)]
        terminal: runtime::Share,
        #[arg(long)]
        instance: Option<PathBuf>,
        #[arg(last = true)]
        program: Vec<OsString>,
    },
}

impl Helper {
    fn main(self) -> u8 {
        match self {
            Self::Decryptor => crate::decryptor::main(),
            Self::Stage => crate::stage::main(),
            Self::Namespace => doctor::namespace_process(),
            Self::Instance => instance::main(),
            Self::Session => daemon::session(),
            Self::Runtime { gate, terminal, instance, program } => {
                runtime::agent(gate, terminal, instance.as_deref(), &program)
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum InstanceCommand {
    /// Start an instance: its startscript runs until it ends or is stopped; `supervisor exec instance://NAME` runs more in it
    #[command(after_help = TABLE)]
    Start {
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        name: String,
        /// Arguments of the startscript
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// List the user's running instances
    List {
        #[command(flatten)]
        place: PlaceArgs,
        /// Those of this name; `*` at the end stands for any more of it
        name: Option<String>,
    },
    /// Stop an instance: ask it, and kill it when it does not end
    Stop {
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// All of the user's instances
        #[arg(short, long, conflicts_with = "name")]
        all: bool,
        /// What it is asked with: HUP, INT, QUIT, USR1, USR2, TERM, or the signal's number
        #[arg(short, long, value_parser = instance::signal, default_value = "TERM")]
        signal: rustix::process::Signal,
        /// Kill it at once, in order
        #[arg(short = 'F', long, conflicts_with_all = ["signal", "timeout"])]
        force: bool,
        /// Seconds that it may take to end by itself
        #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
        timeout: u32,
    },
    /// Show what an instance uses, and what this host cannot say about it
    Stats {
        #[command(flatten)]
        place: PlaceArgs,
        /// The instance's name
        name: String,
    },
    #[command(hide = true)]
    Join {
        #[command(flatten)]
        place: PlaceArgs,
        verb: String,
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Where instances are noted (default: /run/countersign, the user's runtime or state folder)
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_INSTANCE_DIR")]
    instance_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ProtectArgs {
    /// A root folder, a plain SIF, a squashfs, or an OCI layout (folder or tar archive)
    input: PathBuf,
    /// The input is a SIF with DSSE signatures by this key (public, PEM); several may be given
    #[arg(long, value_name = "FILE")]
    input_signer: Vec<PathBuf>,
    /// The input is a SIF with PGP signatures by these keys (exported, public)
    #[arg(long, value_name = "FILE")]
    input_pgp: Option<PathBuf>,
    /// Folder of the workload policy (package countersign.workload; default: the shipped example)
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// The owner's private key (PEM: Ed25519, ECDSA P-256/P-384 or RSA)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE")]
    sign_passphrase_file: Option<PathBuf>,
    /// Escrow: an RSA public key (PEM); its private half opens the image without a verifier
    #[arg(long, value_name = "FILE", required_unless_present_any = ["escrow_passphrase_file", "escrow_passphrase"])]
    escrow: Option<PathBuf>,
    /// Escrow: a file with a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow")]
    escrow_passphrase_file: Option<PathBuf>,
    /// Escrow: ask for a passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow", "escrow_passphrase_file"])]
    escrow_passphrase: bool,
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
    #[command(flatten)]
    escrow: EscrowArgs,
}

#[derive(Debug, Args)]
struct EscrowArgs {
    /// The escrow's private key (PEM)
    #[arg(long, value_name = "FILE")]
    escrow_key: Option<PathBuf>,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE", requires = "escrow_key")]
    key_passphrase_file: Option<PathBuf>,
    /// A file with the escrow's passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow_key")]
    escrow_passphrase_file: Option<PathBuf>,
    /// Ask for the escrow's passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow_key", "escrow_passphrase_file"])]
    escrow_passphrase: bool,
}

impl EscrowArgs {
    fn key(&self) -> Result<EscrowKey, Failure> {
        let passphrase = |from| Ok(EscrowKey::Passphrase(owner::passphrase(from)?));
        match (&self.escrow_key, &self.escrow_passphrase_file, self.escrow_passphrase) {
            (Some(path), _, _) => owner::escrow_key(path, self.key_passphrase_file.as_deref()),
            (None, Some(path), _) => passphrase(Passphrase::File(path)),
            (None, None, true) => passphrase(Passphrase::Asked("Passphrase of the image's escrow")),
            (None, None, false) => Err(Failure::new(
                Stage::Usage,
                "no escrow key",
                "--escrow-key KEY.pem, --escrow-passphrase-file FILE, or --escrow-passphrase",
            )),
        }
    }
}

/// The escrow of an image that is made: a key's, or a passphrase from a file or the terminal. One of them is there.
fn new_escrow(key: Option<&Path>, file: Option<&Path>) -> Result<Escrow, Failure> {
    match (key, file) {
        (Some(path), _) => owner::escrow(path),
        (None, Some(path)) => Ok(Escrow::Passphrase(owner::passphrase(Passphrase::File(path))?)),
        (None, None) => {
            let asked = owner::passphrase(Passphrase::Chosen("Passphrase for the new image's escrow"))?;
            Ok(Escrow::Passphrase(asked))
        }
    }
}

impl FromArgs {
    fn with<T>(&self, then: impl FnOnce(&Protected<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        then(&Protected { image: &self.image, signers: &owner::signers(&self.signer)?, escrow: &self.escrow.key()? })
    }
}

#[derive(Debug, Args)]
struct RekeyArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The owner's private key (PEM)
    #[arg(long, value_name = "FILE")]
    sign: PathBuf,
    /// A file with the passphrase of that key, where it is encrypted
    #[arg(long, value_name = "FILE")]
    sign_passphrase_file: Option<PathBuf>,
    /// The new escrow: an RSA public key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["new_passphrase_file", "new_passphrase"])]
    escrow: Option<PathBuf>,
    /// The new escrow: a file with a passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "escrow")]
    new_passphrase_file: Option<PathBuf>,
    /// The new escrow: ask for a passphrase at the terminal
    #[arg(long, conflicts_with_all = ["escrow", "new_passphrase_file"])]
    new_passphrase: bool,
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
struct VerifierArgs {
    /// The verifier's address
    #[arg(long, value_name = "URL")]
    url: String,
    /// The operator's token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// The verifier's CA (PEM)
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
}

impl VerifierArgs {
    fn verifier(&self) -> owner::Verifier<'_> {
        owner::Verifier { url: &self.url, token: &self.token_file, ca: &self.ca }
    }
}

#[derive(Debug, Args)]
struct RegisterArgs {
    /// The image
    image: PathBuf,
    /// The owner's public key (PEM)
    #[arg(long, required = true, value_name = "FILE")]
    signer: Vec<PathBuf>,
    #[command(flatten)]
    escrow: EscrowArgs,
    /// The owner keeps the key: the verifier gets the policy only, and hosts need a grant
    #[arg(long, conflicts_with_all = ["escrow_key", "escrow_passphrase_file", "escrow_passphrase"])]
    owner_held: bool,
    #[command(flatten)]
    verifier: VerifierArgs,
    /// A label for people (default: the file's name)
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct GrantArgs {
    #[command(flatten)]
    from: FromArgs,
    /// The host's card (attest show -o host.card), as it came from the host
    #[arg(long, value_name = "FILE")]
    host_card: PathBuf,
    /// TPM vendors' roots that you trust: PEM files, or folders of them
    #[arg(long, required = true, value_name = "FILE|DIR")]
    ek_root: Vec<PathBuf>,
    /// The verifier's trust bundle, as it came from its operator
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Grant the key to a simulated TPM, for development
    #[arg(long)]
    dangerous_allow_simulated: bool,
    /// The grant to write; verifier grant add takes it
    #[arg(short, long, value_name = "FILE", required_unless_present = "url")]
    output: Option<PathBuf>,
    /// Hand the grant in to the verifier at this address
    #[arg(long, value_name = "URL", requires_all = ["token_file", "ca"])]
    url: Option<String>,
    /// The operator's token
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// The verifier's CA (PEM)
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

impl GrantArgs {
    fn verifier(&self) -> Option<owner::Verifier<'_>> {
        Some(owner::Verifier { url: self.url.as_ref()?, token: self.token_file.as_ref()?, ca: self.ca.as_ref()? })
    }
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
    let line: Vec<OsString> = std::env::args_os().collect();
    if line.get(1).is_some_and(|word| word.as_encoded_bytes().ends_with(b"-process")) {
        return Helper::try_parse_from(line).map_or_else(|e| out::usage(&e), Helper::main);
    }
    let split = match runtime::split(line, &Cli::command()) {
        Ok(split) => split,
        Err(failure) => return out::finish(Err(failure), out::wants_json()),
    };
    let cli = match Cli::try_parse_from(split.own) {
        Ok(cli) => cli,
        Err(e) => return out::usage(&e),
    };
    if cli.quiet {
        out::be_quiet();
    }
    let flags = split.flags;
    match cli.command {
        Command::Instance(command) => out::finish(on_instances(command, flags, cli.json), cli.json),
        Command::Daemon { example: true, .. } => out::finish(out::raw(EXAMPLE.as_bytes()).map(|()| 0), cli.json),
        Command::Daemon { host, rules, socket, .. } => {
            let host = HostPlace { config: host.config, tpm: host.tpm, state_dir: host.state_dir };
            out::finish(daemon::serve(daemon::Options { settings: rules, socket, host }), cli.json)
        }
        Command::Ps { daemon } => out::finish(ps(daemon.as_deref(), cli.json), cli.json),
        Command::Doctor(given) => out::finish(examine(given, cli.json), cli.json),
        Command::Run { run: given, arguments } => out::finish(start(given, Task::Run(arguments), flags), cli.json),
        Command::Exec { run: given, command } => out::finish(start(given, Task::Exec(command), flags), cli.json),
        Command::Shell { run: given, arguments } => out::finish(start(given, Task::Shell(arguments), flags), cli.json),
        command @ (Command::Protect(_)
        | Command::Register(_)
        | Command::Grant(_)
        | Command::Unprotect { .. }
        | Command::Rekey(_)
        | Command::Inspect { .. }
        | Command::Completions { .. }
        | Command::Man { .. }) => out::finish(owner_command(command, cli.json).map(|()| 0), cli.json),
    }
}

fn on_instances(command: InstanceCommand, flags: Vec<Given>, json: bool) -> Result<u8, Failure> {
    let shows = matches!(command, InstanceCommand::List { .. } | InstanceCommand::Stats { .. });
    let value = match command {
        InstanceCommand::Start { run, place, name, arguments } => {
            if run.status_fd.is_some() {
                let hint = "the command returns when the instance runs; supervisor instance list --json";
                return Err(Failure::new(Stage::Usage, "--status-fd is for runs that do not stay", hint));
            }
            if run.daemon.is_some() {
                let hint = "run it as root, without --daemon: instances belong to who started them";
                return Err(Failure::new(Stage::Usage, "the daemon keeps no instances", hint));
            }
            let plan = plan(run, Task::Run(Vec::new()), flags);
            signed(&plan)?;
            instance::start(place.instance_dir.as_deref(), &name, arguments, plan)?
        }
        InstanceCommand::List { place, name } => instance::list(place.instance_dir.as_deref(), name.as_deref())?,
        InstanceCommand::Stop { place, name, all: _, signal, force, timeout } => {
            let grace = std::time::Duration::from_secs(if force { 0 } else { timeout.into() });
            instance::stop(place.instance_dir.as_deref(), name.as_deref(), (signal, grace))?
        }
        InstanceCommand::Stats { place, name } => instance::stats(place.instance_dir.as_deref(), &name)?,
        InstanceCommand::Join { place, verb, name, arguments } => {
            let task = match verb.as_str() {
                "exec" if arguments.is_empty() => {
                    let hint = format!("supervisor exec instance://{name} COMMAND");
                    return Err(Failure::new(Stage::Usage, "no command was given", hint));
                }
                "exec" => Task::Exec(arguments),
                "shell" => Task::Shell(arguments),
                _ => Task::Run(arguments),
            };
            return instance::join(place.instance_dir.as_deref(), &name, &task, &flags);
        }
    };
    let say = if shows { print } else { done };
    say(json, &value).map(|()| 0)
}

/// Every finding; exit code 219 when one of them is a problem.
fn examine(given: HostArgs, json: bool) -> Result<u8, Failure> {
    let config = config(given.config.as_deref(), given.tpm.as_deref(), given.state_dir)?;
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
    signed(&plan)?;
    run(&plan)
}

/// Without the daemon, whose rules may know signers, somebody has to be trusted.
fn signed(plan: &Plan) -> Result<(), Failure> {
    if plan.signers.is_empty() {
        let hint = "--signer FILE: the owner's public key, which `supervisor inspect IMAGE` names";
        return Err(Failure::new(Stage::Usage, "no signer is trusted", hint));
    }
    Ok(())
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
            let (policy, output) = (given.policy.as_deref(), given.output.as_path());
            let policy = policy.map_or(Policy::Shipped, Policy::Folder);
            let trusted = owner::input_signers(&given.input_signer, given.input_pgp.as_deref())?;
            let made = owner::protect_image(Protect {
                input: Input::Path(&given.input, &trusted),
                policy,
                sign: &owner::owner_key(&given.sign, given.sign_passphrase_file.as_deref())?,
                escrow: new_escrow(given.escrow.as_deref(), given.escrow_passphrase_file.as_deref())?,
                output,
                force: given.force,
            })?;
            done(json, &made)
        }
        Command::Register(given) => {
            let file_name = given.image.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = given.name.or(file_name).unwrap_or_default();
            let registered = owner::register(&Register {
                image: &given.image,
                signers: &owner::signers(&given.signer)?,
                escrow: if given.owner_held { None } else { Some(given.escrow.key()?) },
                verifier: given.verifier.verifier(),
                name: &name,
            })?;
            done(json, &registered)
        }
        Command::Grant(given) => {
            let verifier = given.verifier();
            let made = given.from.with(|from| {
                grant(&grant::Plan {
                    image: from.image,
                    signers: from.signers,
                    escrow: from.escrow,
                    host_card: &given.host_card,
                    ek_roots: &given.ek_root,
                    trust: &given.trust,
                    dangerous_allow_simulated: given.dangerous_allow_simulated,
                    output: given.output.as_deref(),
                    verifier: verifier.as_ref(),
                })
            })?;
            done(json, &made)
        }
        Command::Unprotect { from, output, force } => {
            done(json, &from.with(|protected| unprotect::unprotect(protected, &output, force))?)
        }
        Command::Rekey(given) => {
            let made = given.from.with(|protected| {
                let new = Rekey {
                    sign: &owner::owner_key(&given.sign, given.sign_passphrase_file.as_deref())?,
                    policy: given.policy.as_deref(),
                    escrow: new_escrow(given.escrow.as_deref(), given.new_passphrase_file.as_deref())?,
                    output: &given.output,
                    force: given.force,
                };
                unprotect::rekey(protected, new)
            });
            done(json, &made?)
        }
        Command::Inspect { image, signer, full } => {
            let seen = if signer.is_empty() {
                inspect::look(&image)?
            } else {
                inspect::inspect(&image, &owner::signers(&signer)?, full)?
            };
            out::print(json, &seen, || inspect::words(&seen))
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
        | Command::Daemon { .. }
        | Command::Ps { .. }
        | Command::Instance(_)
        | Command::Doctor(_) => Ok(()),
    }
}

/// What was done: nothing of it when only errors are to be said, unless JSON was asked for.
fn done(json: bool, value: &Value) -> Result<(), Failure> {
    if out::is_quiet() && !json { Ok(()) } else { print(json, value) }
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
