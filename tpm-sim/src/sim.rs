//! One simulated TPM and the machine's part around it: power button, firmware, kernel.

use std::fs;
use std::path::{Path, PathBuf};

use countersign_tpm::alg::{Digest, HashAlg};
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::error::Error;
use crate::manufacture::{ca_folder, ca_pem, manufacture, write};
use crate::options::Options;
use crate::places::{copy_files, make_short_folder, new_home, places, record_path};
pub use crate::process::Lifetime;
use crate::process::{Places, PowerOn, Process};
use crate::raw::{Clock, Raw, Su};
use crate::replay::{self, Extend, Recording, Replayed};

/// The record's version.
const VERSION: u32 = 1;

/// `sim.json`: its presence says that the folder holds a finished TPM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    name: String,
    banks: Vec<String>,
    /// Folder of the CA that signed the EK certificates, if one did.
    ca: Option<PathBuf>,
}

/// One simulated TPM.
///
/// Dropping it ends its process if that is [`Lifetime::Scoped`], like a power cut.
pub struct Sim {
    home: PathBuf,
    record: Record,
    places: Places,
    process: Option<Process>,
}

impl Sim {
    /// Manufactures a TPM in `home`, a folder that is made, and that only its owner can enter. Takes one or two seconds, half a
    /// second where the CA is there already.
    ///
    /// # Errors
    /// A name or path that swtpm cannot take, a tool that is missing, a TPM that is there already, or a failure of swtpm_setup.
    pub fn create(home: impl AsRef<Path>, options: &Options) -> Result<Self, Error> {
        options.check()?;
        let home = new_home(home.as_ref())?;
        let ca = ca_folder(&home, &options.authority)?;
        manufacture(&home, ca.as_deref(), options)?;
        let banks = options.banks.iter().map(|bank| bank.name().to_owned()).collect();
        Self::finish(home, Record { version: VERSION, name: options.name.clone(), banks, ca })
    }

    /// Writes the record, which makes the folder a TPM's.
    fn finish(home: PathBuf, record: Record) -> Result<Self, Error> {
        let path = record_path(&home);
        let text = serde_json::to_vec_pretty(&record);
        let text = text.map_err(|error| Error::Record { path: path.clone(), why: error.to_string() })?;
        write(&path, text)?;
        Self::with_record(home, record)
    }

    fn with_record(home: PathBuf, record: Record) -> Result<Self, Error> {
        let places = places(&home);
        let process = Process::find(&places)?;
        Ok(Self { home, record, places, process })
    }

    /// A TPM that was manufactured before; if it runs, as a [`Lifetime::Detached`] one.
    ///
    /// # Errors
    /// The folder holds none, or its record is of another version.
    pub fn open(home: impl AsRef<Path>) -> Result<Self, Error> {
        let given = home.as_ref();
        let home = given.canonicalize().map_err(|_| Error::NotASim(given.to_owned()))?;
        let path = record_path(&home);
        let text = fs::read(&path).map_err(|_| Error::NotASim(given.to_owned()))?;
        let bad = |why: String| Error::Record { path: path.clone(), why };
        let record: Record = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if record.version != VERSION {
            return Err(bad(format!("version {}, this program knows {VERSION}", record.version)));
        }
        Self::with_record(home, record)
    }

    /// Its folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Names of its PCR banks.
    #[must_use]
    pub fn banks(&self) -> &[String] {
        &self.record.banks
    }

    /// The data socket. swtpm serves one connection at a time: the next waits until the first is closed.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.places.data.clone()
    }

    /// The data socket as `--tpm` takes it: `swtpm:unix=PATH`.
    #[must_use]
    pub fn tpm_arg(&self) -> String {
        format!("swtpm:unix={}", self.places.data.display())
    }

    /// Certificates (PEM) of the CA that signed its EK certificates: the signing one, then its root. swtpm's NV holds no chain, so a
    /// verifier that is to trust this CA takes both. `None` for a TPM without EK certificates.
    #[must_use]
    pub fn ca_pem(&self) -> Option<PathBuf> {
        self.record.ca.as_deref().map(ca_pem)
    }

    /// The CA's folder; `None` for a TPM without certificates.
    #[must_use]
    pub fn ca_dir(&self) -> Option<&Path> {
        self.record.ca.as_deref()
    }

    /// The EK certificates that the manufacturer wrote, DER, as in the TPM's NV.
    #[must_use]
    pub fn ek_certificates(&self) -> Vec<PathBuf> {
        let names = ["ek-rsa2048.crt", "ek-secp256r1.crt", "ek-secp384r1.crt"];
        names.iter().map(|name| self.home.join("certs").join(name)).filter(|path| path.is_file()).collect()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.ends_within(std::time::Duration::ZERO))
    }

    /// Powers it on for as long as this `Sim` lives: TPM2_Startup(CLEAR).
    ///
    /// A clone of a running TPM wakes up where the original was.
    ///
    /// # Errors
    /// It runs already, or swtpm does not start.
    pub fn start(&mut self) -> Result<(), Error> {
        self.start_as(Lifetime::Scoped)
    }

    /// Powers it on.
    ///
    /// # Errors
    /// It runs already, or swtpm does not start.
    pub fn start_as(&mut self, lifetime: Lifetime) -> Result<(), Error> {
        if self.is_running() {
            return Err(Error::Running);
        }
        // A volatile state is what a clone of a running TPM has: CMD_INIT resumes it.
        if self.places.state.join("tpm2-00.volatilestate").exists() {
            self.power_on(PowerOn::Off, lifetime)?;
            return self.control(Control::Init);
        }
        self.power_on(PowerOn::Clear, lifetime)
    }

    fn power_on(&mut self, power: PowerOn, lifetime: Lifetime) -> Result<(), Error> {
        self.process = None;
        if let Some(folder) = self.short_folder() {
            make_short_folder(folder)?;
        }
        self.process = Some(Process::start(&self.places, power, lifetime)?);
        Ok(())
    }

    /// Shuts it down in good order (TPM2_Shutdown(CLEAR)) and ends the process.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection: then it goes on running.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.power_off(Su::Clear).map(drop)
    }

    fn power_off(&mut self, kind: Su) -> Result<Lifetime, Error> {
        self.raw()?.shutdown(kind)?;
        self.control(Control::Shutdown)?;
        let process = self.process.take().ok_or(Error::NotRunning)?;
        let lifetime = process.lifetime();
        process.finish();
        self.remove_short_folder();
        Ok(lifetime)
    }

    /// The folder of the sockets, where it is not the TPM's own.
    fn short_folder(&self) -> Option<&Path> {
        self.places.data.parent().filter(|folder| *folder != self.home)
    }

    /// A folder that stays behind does no harm: the next start takes it.
    fn remove_short_folder(&self) {
        if let Some(folder) = self.short_folder() {
            let _gone = fs::remove_dir_all(folder);
        }
    }

    /// Cuts its power (SIGKILL). The next start counts as a reset, and the clock is not `safe` for a while.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            self.remove_short_folder();
        }
    }

    /// TPM Reset, a reboot: Shutdown(CLEAR), power cycle, Startup(CLEAR). resetCount + 1, PCRs anew.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn reset(&mut self) -> Result<(), Error> {
        let lifetime = self.power_off(Su::Clear)?;
        self.power_on(PowerOn::Clear, lifetime)
    }

    /// TPM Restart, a reboot out of hibernation: Shutdown(STATE), power cycle, Startup(CLEAR). restartCount + 1, PCRs anew.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn restart(&mut self) -> Result<(), Error> {
        let lifetime = self.power_off(Su::State)?;
        self.power_on(PowerOn::Clear, lifetime)
    }

    /// TPM Resume, suspend to RAM and back: Shutdown(STATE), power cycle, Startup(STATE). restartCount + 1, PCRs 0 to 15 kept.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn suspend_resume(&mut self) -> Result<(), Error> {
        let lifetime = self.power_off(Su::State)?;
        self.power_on(PowerOn::State, lifetime)
    }

    /// TPM2_Clear, as the firmware's set-up menu does it: owner and endorsement objects are gone (the EKs come back from their
    /// templates), counters and clock begin at 0. PCRs stay until the reset that follows in a real machine.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.raw()?.clear()
    }

    /// Extends a PCR in every bank by the hash of `data`, as TPM2_PCR_Event does.
    ///
    /// # Errors
    /// It does not run, or the PCR cannot be extended from locality 0.
    pub fn extend(&self, pcr: u8, data: &[u8]) -> Result<(), Error> {
        let digests = HashAlg::ALL.map(|alg| alg.digest(&[data]));
        self.raw()?.extend(pcr.into(), &digests)
    }

    /// The value of a PCR; `None` where the bank is not active.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn pcr(&self, bank: HashAlg, pcr: u8) -> Result<Option<Digest>, Error> {
        self.raw()?.read_pcr(bank, pcr)
    }

    /// Clock and counters.
    ///
    /// # Errors
    /// It does not run, or another program holds its connection.
    pub fn clock(&self) -> Result<Clock, Error> {
        self.raw()?.read_clock()
    }

    /// Extends what a recorded boot extended: a TCG boot log (binary) and an IMA list (binary), either of which may be empty.
    /// See [`replay_recording`](Self::replay_recording).
    ///
    /// # Errors
    /// A log that cannot be read, a start-up locality other than 0 and 3, or a refusal of the TPM.
    pub fn replay(&mut self, boot_log: &[u8], ima_list: &[u8]) -> Result<Replayed, Error> {
        self.replay_recording(&Recording { boot: boot_log, ima: ima_list, ..Recording::default() })
    }

    /// Extends what a recorded boot extended, in every bank that is active here and in the logs.
    ///
    /// To be called right after a start or reset. A boot at locality 3 power-cycles the TPM first, to start it there. All logs are
    /// read before anything is extended.
    ///
    /// # Errors
    /// A log that cannot be read, a start-up locality other than 0 and 3, or a refusal of the TPM.
    pub fn replay_recording(&mut self, recording: &Recording<'_>) -> Result<Replayed, Error> {
        let plan = replay::plan(recording)?;
        match plan.summary.locality {
            0 => {}
            3 => self.start_at_locality(3)?,
            other => return Err(Error::Locality(other)),
        }
        let mut raw = self.raw()?;
        for Extend { pcr, digests } in &plan.extends {
            raw.extend(*pcr, digests)?;
        }
        Ok(plan.summary)
    }

    /// TPM Reset with a TPM2_Startup from another locality, which is then PCR 0's initial value (Part 3, 9.3).
    fn start_at_locality(&mut self, locality: u8) -> Result<(), Error> {
        let lifetime = self.power_off(Su::Clear)?;
        self.power_on(PowerOn::NoStartup, lifetime)?;
        self.control(Control::Locality(locality))?;
        self.raw()?.startup(Su::Clear)?;
        self.control(Control::Locality(0))
    }

    /// Copies it to another folder, under the same CA: the same TPM twice, which is what a snapshot of a virtual machine makes.
    ///
    /// Of a running TPM all is copied, PCRs, sessions and counters too: started, the copy goes on where the original was, and
    /// started later it is the original with its clock turned back.
    ///
    /// # Errors
    /// The folder holds a TPM already, or a file cannot be copied.
    pub fn clone_to(&self, home: impl AsRef<Path>) -> Result<Self, Error> {
        self.clone_as(home, &self.record.name)
    }

    /// [`clone_to`](Self::clone_to) under another name. The certificates keep the old one.
    ///
    /// # Errors
    /// The folder holds a TPM already, or a file cannot be copied.
    pub fn clone_as(&self, home: impl AsRef<Path>, name: &str) -> Result<Self, Error> {
        Options::named(name).check()?;
        let home = new_home(home.as_ref())?;
        let volatile = self.places.state.join("tpm2-00.volatilestate");
        let running = self.is_running();
        if running {
            self.control(Control::StoreVolatile)?;
        }
        for folder in ["state", "certs"] {
            copy_files(&self.home.join(folder), &home.join(folder))?;
        }
        if running {
            fs::remove_file(&volatile).map_err(Error::file("remove", volatile))?;
        }
        Self::finish(home, Record { name: name.to_owned(), ..self.record.clone() })
    }

    /// Ends it and deletes its folder; a CA elsewhere stays.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub fn destroy(mut self) -> Result<(), Error> {
        self.kill();
        fs::remove_dir_all(&self.home).map_err(Error::file("delete", &self.home))
    }

    fn raw(&self) -> Result<Raw, Error> {
        self.running()?;
        Raw::connect(&self.places.data)
    }

    fn control(&self, command: Control) -> Result<(), Error> {
        self.running()?;
        command.send(&self.places.control)
    }

    /// The control socket, where tpm2-tss expects it too.
    #[must_use]
    pub fn control_socket(&self) -> &Path {
        &self.places.control
    }

    pub(crate) fn running(&self) -> Result<(), Error> {
        if self.is_running() { Ok(()) } else { Err(Error::NotRunning) }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if self.process.as_ref().is_some_and(|process| process.lifetime() == Lifetime::Scoped) {
            self.kill();
        }
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("home", &self.home).field("running", &self.is_running()).finish_non_exhaustive()
    }
}
