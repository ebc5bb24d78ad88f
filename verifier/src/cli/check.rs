//! `verifier check`: logs, quotes and bundles, offline.

use std::path::PathBuf;

use clap::Subcommand;
use countersign_wire::artefact;
use countersign_wire::record::Bundle;
use serde_json::json;

use super::{Cli, read, read_at_most, words};
use crate::check::{CheckError, LogFiles, check_bundle, check_eventlog, check_quote, code, trust_digest};
use crate::out::{self, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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

pub(super) fn run(cli: &Cli, command: &Command) -> Result<(), Failure> {
    let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    match command {
        Command::Eventlog { file, pcrs, ima, userspace, ccel } => {
            let (log, pcrs) = (read(file)?, read(pcrs)?);
            let (ima, userspace, ccel) = (optional(ima)?, optional(userspace)?, optional(ccel)?);
            let (ima, userspace, ccel) = (ima.as_deref(), userspace.as_deref(), ccel.as_deref());
            let checked = check_eventlog(LogFiles { log: &log, pcrs: &pcrs, ima, userspace, ccel })?;
            out::print(cli.json, &json!(checked), || words::eventlog(&checked))
        }
        Command::Quote { ak, quote, signature, nonce, pcrs } => {
            let nonce = hex::decode(nonce)
                .map_err(|e| CheckError::new(code::INPUT, "nonce", e.to_string(), "hex digits").about("--nonce"))?;
            let checked = check_quote(&read(ak)?, &read(quote)?, &read(signature)?, &nonce, &read(pcrs)?)?;
            out::print(cli.json, &json!(checked), || words::quote(&checked))
        }
        Command::Bundle { file, trust, .. } => {
            let trust = trust.as_deref().map(trust_digest).transpose()?;
            let checked = check_bundle(&read_at_most(file, artefact::longest::<Bundle>())?, trust)?;
            out::print(cli.json, &json!(checked), || words::bundle(&checked))
        }
    }
}
