//! What booted: typed facts from authenticated events, each with the events that it came from and how far it can be believed.
//!
//! Facts are made from an [`Examined`] log only, so they rest on PCRs that somebody vouches for. Nothing in them was compared with the
//! TPM's values: that is for the caller, before he believes a fact.

mod content;
mod databases;
mod derive;
mod diff;
mod image;
mod loaders;
mod userspace;
mod values;
mod x509;

pub use content::Content;
pub use values::{Certificate, Events, Tagged};

pub use diff::{Change, Changes, EventChange, diff};

use countersign_tpm::alg::HashAlg;
use serde::{Deserialize, Serialize};

use crate::eventlog::{EventLog, Examined, PcrBank, PcrSet, Registers};
use crate::systemd_log;

/// How far a fact can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    /// The PCR vouches for the value: it is what was hashed, or it is the digest itself.
    Authenticated,
    /// The PCR vouches that something was measured; that it is this rests on a name in the log, which nothing vouches for.
    Named,
}

/// Which log an event index belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// The firmware's event log.
    Firmware,
    /// systemd's userspace log.
    Systemd,
    /// No log: the vouched PCR value alone shows it.
    Pcr,
}

/// A fact. In JSON `events` is a list of indices, and a digest `alg:hex`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact<T> {
    /// What is the case.
    pub value: T,
    /// How far it can be believed.
    pub strength: Strength,
    /// Which log the events are in.
    pub log: Log,
    /// Indices of the events behind it.
    pub events: Events,
}

impl<T> Fact<T> {
    pub(crate) fn authenticated(value: T, event: u32) -> Self {
        Self { value, strength: Strength::Authenticated, log: Log::Firmware, events: Events::one(event) }
    }

    pub(crate) fn named(value: T, event: u32) -> Self {
        Self { value, strength: Strength::Named, log: Log::Firmware, events: Events::one(event) }
    }
}

/// A variable with EFI_SIGNATURE_LISTs: PK, KEK, db, dbx, dbt or dbr (UEFI 2.10, 32.4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDatabase {
    /// The variable's name.
    pub name: String,
    /// Certificates, in the variable's order.
    pub certificates: Vec<Certificate>,
    /// Number of hashes of executables or certificates.
    pub hashes: u32,
    /// Number of entries of other kinds.
    pub other: u32,
    /// What was extended: two databases with the same digest are the same.
    pub digest: Tagged,
}

/// What let an executable start (EV_EFI_VARIABLE_AUTHORITY).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Where it was found: `db`, or shim's `MokListRT`, `Shim`, `vendor_db` and so on.
    pub source: String,
    /// The certificate, where it is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificate: Option<Certificate>,
    /// The hash, hex, where it is a hash.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hash: Option<String>,
}

/// shim's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shim {
    /// SbatLevel, the revocation level: its first line.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sbat_level: Option<Fact<String>>,
    /// The lists that it measures into PCR 14 (MokList, MokListX, MokListTrusted, MokSBState) with the digests of their contents.
    pub lists: Vec<Fact<Measured>>,
}

/// A boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// shim.
    Shim,
    /// GRUB.
    Grub,
    /// systemd-boot.
    SystemdBoot,
    /// systemd-stub: a unified kernel image.
    SystemdStub,
    /// Windows Boot Manager.
    Windows,
    /// The firmware started the kernel itself.
    DirectKernel,
}

/// What kind of executable the log says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// EV_EFI_BOOT_SERVICES_APPLICATION.
    Application,
    /// EV_EFI_BOOT_SERVICES_DRIVER or EV_EFI_RUNTIME_SERVICES_DRIVER.
    Driver,
}

/// An executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Event type: application or driver.
    #[serde(rename = "type")]
    pub kind: ImageKind,
    /// Authenticode digest: what was extended.
    pub digest: Tagged,
    /// Path on its device, where the log names one. Not measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
}

/// Something that was measured under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Its name in the log.
    pub name: String,
    /// What was extended.
    pub digest: Tagged,
}

/// A boot option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootOption {
    /// `Boot0001` and the like.
    pub name: String,
    /// Its description.
    pub description: String,
}

/// A kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandLine {
    /// Who measured it.
    pub by: Loader,
    /// The text.
    pub text: String,
}

/// All facts of one boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// Secure Boot on or off, from a variable of exactly one byte 00 or 01.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<Fact<bool>>,
    /// Contents of PK, KEK, db, dbx, dbt and dbr.
    pub databases: Vec<Fact<KeyDatabase>>,
    /// What let executables start.
    pub authorities: Vec<Fact<Authority>>,
    /// shim, where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shim: Option<Shim>,
    /// The boot loaders, in the order in which they ran.
    pub loaders: Vec<Fact<Loader>>,
    /// Executables measured into PCR 4. Only with `exit_boot_services` is the list known to be the firmware's: without it, later software
    /// could have extended the PCR. What was extended there and is not explained otherwise is among them, named.
    pub applications: Vec<Fact<Image>>,
    /// Option ROMs and drivers, measured into PCR 2.
    pub option_roms: Vec<Fact<Image>>,
    /// Kernel command lines.
    pub command_lines: Vec<Fact<CommandLine>>,
    /// Kernels: files that a boot loader read, or sections of a unified kernel image.
    pub kernels: Vec<Fact<Measured>>,
    /// Initial RAM disks.
    pub initrds: Vec<Fact<Measured>>,
    /// Other files that GRUB read (PCR 9).
    pub files: Vec<Fact<Measured>>,
    /// Sections of a unified kernel image (PCR 11), each with the digest of its contents.
    pub sections: Vec<Fact<Measured>>,
    /// Addons of a unified kernel image: command lines and others that were measured into PCR 12.
    pub addons: Vec<Fact<Measured>>,
    /// Phases that systemd reached (PCR 11).
    pub phases: Vec<Fact<String>>,
    /// machine-id (PCR 15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<Fact<String>>,
    /// File systems that were mounted (PCR 15).
    pub file_systems: Vec<Fact<String>>,
    /// The firmware's version (EV_S_CRTM_VERSION).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware_version: Option<Fact<String>>,
    /// The firmware's code and configuration as it was measured into PCR 0.
    pub firmware: Vec<Fact<Measured>>,
    /// Boot options: name and description.
    pub boot_options: Vec<Fact<BootOption>>,
    /// A firmware debugger was on. False only where a separated Secure Boot PCR with a policy shows that nothing of the kind was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_mode: Option<Fact<bool>>,
    /// DMA protection was switched off. False as for `debug_mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dma_protection_disabled: Option<Fact<bool>>,
    /// The operating system took over from the firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_boot_services: Option<Fact<bool>>,
}

impl Facts {
    /// Derives all facts of a boot.
    #[must_use]
    pub fn of(examined: &Examined<'_, '_>, userspace: &[systemd_log::Record]) -> Self {
        let mut facts = Self::default();
        derive::firmware(examined, &mut facts);
        loaders::name(&mut facts);
        userspace::facts(examined, userspace, &mut facts);
        facts
    }
}

/// Reads a TPM's event log in one call: parsed, replayed in one bank, judged, and its facts. What [`Examined`] and [`Facts::of`] do step by
/// step; benches call this.
///
/// # Errors
/// Why the bytes are no log, or why the log is refused, in words.
pub fn read_boot(bytes: &[u8], alg: HashAlg) -> Result<(PcrBank, Facts), String> {
    let log = EventLog::parse(bytes).map_err(|e| e.to_string())?;
    let examined = log.examine(&[(alg, PcrSet::ALL)], Registers::Tpm).map_err(|e| e.to_string())?;
    let facts = Facts::of(&examined, &[]);
    let bank = examined.banks.into_iter().next().ok_or_else(|| "no bank".to_owned())?;
    Ok((bank, facts))
}

#[cfg(test)]
mod tests;
