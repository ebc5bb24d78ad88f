//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use countersign_tpm::alg::HashAlg;

const EXAMPLES: &str = "\
Examples:
  tpm-sim create node-1              a TPM with EK certificates from the CA of this state folder
  tpm-sim start node-1               starts it and prints its address for `attest --tpm`
  tpm-sim replay node-1 --eventlog /sys/kernel/security/tpm0/binary_bios_measurements
  tpm-sim reset node-1               a reboot: resetCount + 1, PCRs anew
  verifier ek-root add \"$(tpm-sim ca node-1)\"
  tpm-sim destroy node-1

Exit status: 0 done, 1 failed, 2 wrong usage.";

/// Simulated TPMs (swtpm) for tests and development, one folder each.
#[derive(Debug, Parser)]
#[command(name = "tpm-sim", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Where the TPMs are [default: $XDG_STATE_HOME/countersign/tpm-sim].
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_TPM_SIM_STATE_DIR", hide_env_values = true, global = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manufacture TPMs: RSA-2048 and P-384 EKs with certificates.
    #[command(after_help = "Example:\n  tpm-sim create node-1 node-2 --banks sha256,sha384")]
    Create(Create),
    /// Start TPMs in the background and print their addresses; one that runs keeps running.
    Start(Names),
    /// Shut TPMs down in good order.
    Stop(Names),
    /// Cut the power: the clock is not `safe` afterwards.
    Kill(Names),
    /// Reboot (TPM Reset): resetCount + 1, PCRs anew.
    Reset(Names),
    /// Reboot out of hibernation (TPM Restart): restartCount + 1, PCRs anew.
    Restart(Names),
    /// Suspend to RAM and wake (TPM Resume): restartCount + 1, PCRs 0 to 15 kept.
    Suspend(Names),
    /// TPM2_Clear, as in the firmware's menu: AKs and blobs are gone, the EKs stay.
    Clear(Names),
    /// Extend what a recorded boot extended.
    #[command(after_help = "Example:\n  tpm-sim reset node-1 && tpm-sim replay node-1 --eventlog \
                            binary_bios_measurements --ima ima_binary")]
    Replay(Replay),
    /// Extend one PCR in every bank by the hash of a text.
    #[command(after_help = "Example:\n  tpm-sim extend node-1 8 'an unknown kernel command line'")]
    Extend(Extend),
    /// Print PCR values.
    Pcrs(Pcrs),
    /// Copy a TPM: the same one twice, running from where the original is.
    #[command(after_help = "Example:\n  tpm-sim clone node-1 stolen && tpm-sim start stolen")]
    Clone(Clone),
    /// Show a TPM: address, folder, CA, clock and counters.
    Show(Name),
    /// Print the path of the certificates (PEM) of the CA that signed a TPM's EK certificates.
    Ca(Name),
    /// List the TPMs.
    List,
    /// Stop TPMs and delete their folders; the CA stays.
    Destroy(Names),
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder.
    #[command(hide = true)]
    Man {
        /// The folder, which must exist.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The TPM.
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The TPMs.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// A PCR bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bank {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl From<Bank> for HashAlg {
    fn from(bank: Bank) -> Self {
        match bank {
            Bank::Sha1 => Self::Sha1,
            Bank::Sha256 => Self::Sha256,
            Bank::Sha384 => Self::Sha384,
            Bank::Sha512 => Self::Sha512,
        }
    }
}

/// Who signs the EK certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ca {
    /// One CA for all TPMs of the state folder.
    Shared,
    /// A CA of the TPM's own.
    Own,
    /// Nobody: the TPM has no EK certificates.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) names: Names,
    /// Active PCR banks.
    #[arg(long, value_delimiter = ',', default_value = "sha1,sha256,sha384")]
    pub(crate) banks: Vec<Bank>,
    /// Who signs the EK certificates.
    #[arg(long, default_value = "shared")]
    pub(crate) ca: Ca,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("logs").required(true).multiple(true)))]
pub(crate) struct Replay {
    /// The TPM; it must be running, right after a start or reset.
    pub(crate) name: String,
    /// TCG boot log (binary_bios_measurements).
    #[arg(long, alias = "event-log", value_name = "FILE", group = "logs")]
    pub(crate) eventlog: Option<PathBuf>,
    /// Binary IMA list (binary_runtime_measurements).
    #[arg(long, value_name = "FILE", group = "logs")]
    pub(crate) ima: Option<PathBuf>,
    /// systemd's log (tpm2-measure.log).
    #[arg(long, value_name = "FILE", group = "logs")]
    pub(crate) systemd: Option<PathBuf>,
    /// The recorded kernel extended SHA-384 and SHA-512 by padded SHA-1 hashes for IMA.
    #[arg(long, requires = "ima")]
    pub(crate) ima_padded: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Extend {
    /// The TPM; it must be running.
    pub(crate) name: String,
    /// The PCR.
    #[arg(value_parser = clap::value_parser!(u8).range(..24))]
    pub(crate) pcr: u8,
    /// What is hashed.
    pub(crate) text: String,
}

#[derive(Debug, Args)]
pub(crate) struct Pcrs {
    /// The TPM; it must be running.
    pub(crate) name: String,
    /// The bank.
    #[arg(long, default_value = "sha256")]
    pub(crate) bank: Bank,
}

#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// The TPM.
    pub(crate) name: String,
    /// Name of the copy.
    pub(crate) copy: String,
}
