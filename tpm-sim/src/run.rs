//! What each command does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use countersign_tpm::alg::HashAlg;
use countersign_tpm_sim::{Clock, Error, ImaBanks, Lifetime, Options, Recording, Sim};
use serde::Serialize;

use crate::cli::{Ca, Cli, Command, Create, Replay};
use crate::out::{Failure, Out};

/// Bytes of a log file that are read: more than any parser takes.
const LOG: u64 = 1 << 30;

/// What is said about a TPM.
#[derive(Debug, Serialize)]
struct Status {
    name: String,
    running: bool,
    /// For `attest --tpm`.
    address: String,
    home: PathBuf,
    /// Certificates of the CA; none for a TPM without EK certificates.
    ca_pem: Option<PathBuf>,
    banks: Vec<String>,
    /// Only of a running one that no other program holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<Clock>,
}

impl Status {
    fn of(sim: &Sim) -> Self {
        Self {
            name: sim.name().to_owned(),
            running: sim.is_running(),
            address: sim.tpm_arg(),
            home: sim.home().to_owned(),
            ca_pem: sim.ca_pem(),
            banks: sim.banks().to_vec(),
            clock: None,
        }
    }

    fn with_clock(sim: &Sim) -> Self {
        Self { clock: sim.clock().ok(), ..Self::of(sim) }
    }

    fn state(&self) -> &'static str {
        if self.running { "running" } else { "stopped" }
    }

    /// `node-1: resetCount 2, restartCount 0, clock 1234 ms, safe`.
    fn counters(&self) -> String {
        let Some(clock) = self.clock else { return format!("{}: {}", self.name, self.state()) };
        let safe = if clock.safe { "safe" } else { "not safe" };
        let Clock { clock, reset_count, restart_count, .. } = clock;
        format!("{}: resetCount {reset_count}, restartCount {restart_count}, clock {clock} ms, {safe}", self.name)
    }

    fn details(&self) -> String {
        let ca = self.ca_pem.as_deref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
        format!(
            "{}\n  state    {}\n  address  {}\n  folder   {}\n  CA       {ca}\n  banks    {}\n",
            self.counters(),
            self.state(),
            self.address,
            self.home.display(),
            self.banks.join(", ")
        )
    }
}

/// The folder of all TPMs.
struct State(PathBuf);

impl State {
    fn new(given: Option<&Path>) -> Result<Self, Failure> {
        let dir = match given {
            Some(dir) => dir.to_owned(),
            None => default_state_dir().ok_or_else(|| {
                Failure::new("neither XDG_STATE_HOME nor HOME is set", "name a folder: tpm-sim --state-dir DIR ...")
            })?,
        };
        let absolute = std::path::absolute(&dir).map_err(|error| unusable(&dir, &error))?;
        Ok(Self(absolute))
    }

    fn home(&self, name: &str) -> PathBuf {
        self.0.join("tpm").join(name)
    }

    /// Makes sure that no other `tpm-sim` works on this TPM. The lock goes with the file.
    fn lock(&self, name: &str) -> Result<File, Failure> {
        Options::named(name).check().map_err(Failure::of(name))?;
        let dir = self.0.join("lock");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.and_then(|()| File::create(dir.join(name)))
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| unusable(&dir, &error))
    }

    /// Works on a TPM under its lock.
    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Sim) -> Result<T, Error>) -> Result<T, Failure> {
        let _lock = self.lock(name)?;
        Sim::open(self.home(name)).and_then(|mut sim| work(&mut sim)).map_err(Failure::of(name))
    }

    /// Works on each TPM and prints what became of it.
    fn each(
        &self,
        names: &[String],
        out: &Out,
        mut work: impl FnMut(&mut Sim) -> Result<(), Error>,
        text: fn(&Status) -> String,
    ) -> Result<(), Failure> {
        let mut done = Vec::new();
        for name in names {
            done.push(self.with(name, |sim| work(sim).map(|()| Status::with_clock(sim)))?);
        }
        out.value(&done, |done| lines(done, text))
    }

    fn all(&self) -> Result<Vec<Status>, Failure> {
        let dir = self.0.join("tpm");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unusable(&dir, &error)),
        };
        let homes = entries.filter_map(Result::ok).map(|entry| entry.path());
        // A folder without a finished TPM is one that is being made.
        let mut all: Vec<Status> = homes.filter_map(|home| Sim::open(home).ok()).map(|sim| Status::of(&sim)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

fn unusable(dir: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        format!("{}: {error}", dir.display()),
        "choose a folder that you can write: tpm-sim --state-dir DIR ...",
    )
}

fn default_state_dir() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let base = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("countersign/tpm-sim"))
}

fn lines(all: &[Status], text: fn(&Status) -> String) -> String {
    all.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Does what the command line says.
pub(crate) fn run(cli: &Cli, out: &Out) -> Result<(), Failure> {
    let state = State::new(cli.state_dir.as_deref())?;
    match &cli.command {
        Command::Create(args) => create(&state, args, out),
        Command::Start(args) => {
            let start = |sim: &mut Sim| match sim.start_as(Lifetime::Detached) {
                Err(Error::Running) => Ok(()),
                other => other,
            };
            state.each(&args.names, out, start, |status| status.address.clone())
        }
        Command::Stop(args) => state.each(&args.names, out, Sim::stop, Status::counters),
        Command::Kill(args) => {
            let kill = |sim: &mut Sim| {
                sim.kill();
                Ok(())
            };
            state.each(&args.names, out, kill, Status::counters)
        }
        Command::Reset(args) => state.each(&args.names, out, Sim::reset, Status::counters),
        Command::Restart(args) => state.each(&args.names, out, Sim::restart, Status::counters),
        Command::Suspend(args) => state.each(&args.names, out, Sim::suspend_resume, Status::counters),
        Command::Clear(args) => state.each(&args.names, out, Sim::clear, Status::counters),
        Command::Replay(args) => replay(&state, args, out),
        Command::Extend(args) => {
            let name = std::slice::from_ref(&args.name);
            state.each(name, out, |sim| sim.extend(args.pcr, args.text.as_bytes()), Status::counters)
        }
        Command::Pcrs(args) => pcrs(&state, &args.name, args.bank.into(), out),
        Command::Clone(args) => {
            if args.copy == args.name {
                return Err(Failure::new(
                    format!("{}: a TPM cannot be copied to itself", args.name),
                    "take another name",
                ));
            }
            // In the order of the names, so that two copies the other way round do not wait for each other.
            let (first, second) = (args.name.as_str().min(&args.copy), args.name.as_str().max(&args.copy));
            let _locks = (state.lock(first)?, state.lock(second)?);
            let copied = Sim::open(state.home(&args.name))
                .and_then(|sim| sim.clone_as(state.home(&args.copy), &args.copy))
                .map_err(Failure::of(&args.name))?;
            out.value(&Status::of(&copied), Status::details)
        }
        Command::Show(args) => {
            let status = state.with(&args.name, |sim| Ok(Status::with_clock(sim)))?;
            out.value(&status, Status::details)
        }
        Command::Ca(args) => ca(&state, &args.name, out),
        Command::List => out.value(&state.all()?, |all| {
            let width = all.iter().map(|status| status.name.len()).max().unwrap_or(0);
            let line = |s: &Status| format!("{:width$}  {}  {}", s.name, s.state(), s.address);
            all.iter().map(line).collect::<Vec<_>>().join("\n")
        }),
        Command::Destroy(args) => {
            for name in &args.names {
                let _lock = state.lock(name)?;
                Sim::open(state.home(name)).and_then(Sim::destroy).map_err(Failure::of(name))?;
            }
            out.value(&args.names, |names| names.iter().map(|name| format!("{name}: destroyed\n")).collect())
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tpm-sim", &mut text);
            out.raw(&text)
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir).map_err(|error| unusable(dir, &error)),
    }
}

fn create(state: &State, args: &Create, out: &Out) -> Result<(), Failure> {
    let mut made = Vec::new();
    for name in &args.names.names {
        let banks: Vec<HashAlg> = args.banks.iter().copied().map(HashAlg::from).collect();
        let options = Options::named(name).banks(&banks);
        let options = match args.ca {
            Ca::Shared => options.shared_ca(state.0.join("ca")),
            Ca::Own => options,
            Ca::None => options.without_certificates(),
        };
        let _lock = state.lock(name)?;
        let sim = Sim::create(state.home(name), &options).map_err(Failure::of(name))?;
        made.push(Status::of(&sim));
    }
    out.value(&made, |made| lines(made, |status| format!("{}: created in {}", status.name, status.home.display())))
}

fn replay(state: &State, args: &Replay, out: &Out) -> Result<(), Failure> {
    let read = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), read_log);
    let (boot, ima, systemd) = (read(&args.eventlog)?, read(&args.ima)?, read(&args.systemd)?);
    let ima_banks = if args.ima_padded { ImaBanks::PaddedSha1 } else { ImaBanks::Own };
    let recording = Recording { boot: &boot, ima: &ima, systemd: &systemd, ima_banks };
    let done = state.with(&args.name, |sim| sim.replay_recording(&recording))?;
    out.value(&done, |done| {
        format!(
            "{}: {} boot events, {} IMA entries, {} systemd records",
            args.name, done.events, done.ima, done.systemd
        )
    })
}

fn read_log(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LOG).read_to_end(&mut bytes));
    let hint = "logs under /sys/kernel/security are readable by root only";
    read.map(|_| bytes).map_err(|error| Failure::new(format!("{}: {error}", path.display()), hint))
}

fn pcrs(state: &State, name: &str, bank: HashAlg, out: &Out) -> Result<(), Failure> {
    let mut values = BTreeMap::new();
    state.with(name, |sim| {
        for pcr in 0..24u8 {
            if let Some(value) = sim.pcr(bank, pcr)? {
                values.insert(pcr, value.to_string());
            }
        }
        Ok(())
    })?;
    if values.is_empty() {
        let hint = format!("make one that has it: tpm-sim create OTHER --banks {bank}");
        return Err(Failure::new(format!("{name}: the {bank} bank is not active"), hint));
    }
    out.value(&BTreeMap::from([(bank.name(), values)]), |banks| {
        let mut text = String::new();
        for (pcr, value) in banks.values().flatten() {
            // Writing to a String does not fail.
            let _written = writeln!(text, "{bank}:{pcr:<2} {value}");
        }
        text
    })
}

fn ca(state: &State, name: &str, out: &Out) -> Result<(), Failure> {
    let path = state.with(name, |sim| Ok(sim.ca_pem()))?.ok_or_else(|| {
        let hint = "make one that has them: tpm-sim create OTHER --ca shared";
        Failure::new(format!("{name}: no CA signed for this TPM, it has no EK certificates"), hint)
    })?;
    out.value(&path, |path| path.display().to_string())
}
