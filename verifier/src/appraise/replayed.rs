//! [`Authentic`] -> [`Replayed`]: the logs lead to exactly the quoted values, and facts are derived from nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_policy::input::{Boot, Event};
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{EventLog, PcrBank, PcrSet, Refusal, Registers, Vouched};
use countersign_wire::facts::Facts;
use countersign_wire::systemd_log;

use super::authentic::Authentic;
use super::boots::{self, Read};
use super::checks::{Checks, Failure, Stop};
use super::ima::{self, Measured};
use super::receipts::{self, ReceiptFault, ReceiptUpdate};
use super::runlog::{self, Logged};
use super::snapshot::{Context, RunState};

pub(super) const REBOOT: &str =
    "reboot the host: a log that was cut, or a kexec or hibernation, replays to nothing until then";

/// Evidence whose logs replay to the quoted PCRs.
///
/// Only [`replay`] makes one:
/// ```compile_fail
/// let replayed = countersign_verifier::appraise::Replayed { authentic: todo!() };
/// ```
#[derive(Debug)]
pub struct Replayed {
    pub(super) authentic: Authentic,
    boot: Option<Arc<Read>>,
    pub(super) ima: Option<Measured>,
    pub(super) receipts: ReceiptUpdate,
    pub(super) run: Option<RunState>,
}

/// What a boot log was found to say. Its events are put into words only for who asks for them.
#[derive(Debug)]
pub(super) struct Booted {
    secure_boot: Option<bool>,
    exit_boot_services: bool,
    facts: Facts,
    vouched: Vouched,
}

impl Replayed {
    /// The boot, as policies see it.
    pub(super) fn boot(&self) -> Option<Boot> {
        let Booted { secure_boot, exit_boot_services, facts, vouched } = &self.boot.as_ref()?.boot;
        Some(Boot {
            secure_boot: *secure_boot,
            exit_boot_services: *exit_boot_services,
            facts: facts.clone(),
            events: events(&self.authentic, vouched),
        })
    }
}

/// The second half of the appraisal, in DESIGN.md's order.
pub(super) fn replay(authentic: Authentic, context: &Context, checks: &mut Checks) -> Result<Replayed, Stop> {
    let (mut banks, boot) = if authentic.evidence.event_log.is_some() {
        let read = checks.run("boot-log", boot_log(&authentic))?;
        (read.banks.clone(), Some(read))
    } else {
        checks.nothing("boot-log", "the host sent none");
        (authentic.banks().into_iter().map(PcrBank::initial).collect(), None)
    };
    let ima = if authentic.evidence.ima.is_some() {
        checks.run("ima-list", ima::list(&authentic, context, &mut banks))?
    } else {
        checks.nothing("ima-list", "the host sent none");
        None
    };
    let (logged, run) = checks.run("run-log", runlog::replay(&authentic, context, &mut banks))?;
    if authentic.evidence.event_log.is_some() {
        checks.run("pcr-values", pcr_values(&authentic, context, &banks))?;
    } else {
        checks.nothing("pcr-values", "no boot log explains them");
    }
    let receipts = checks.run("receipts", receipts(&authentic, context, &logged))?;
    if receipts.state_lost {
        let numbers: Vec<String> = context.vouched.iter().map(|receipt| receipt.number.to_string()).collect();
        let why = format!("receipts {} are genuine and unknown: this verifier lost state", numbers.join(", "));
        checks.nothing("verifier-state-lost", &why);
    }
    Ok(Replayed { authentic, boot, ima, receipts, run })
}

/// The firmware's log, and systemd's on top of it, in every quoted bank.
fn boot_log(authentic: &Authentic) -> Result<Arc<Read>, Failure> {
    let wanted: Vec<(HashAlg, PcrSet)> =
        authentic.banks().into_iter().map(|alg| (alg, quoted(authentic, alg))).collect();
    if let Some(read) = boots::find(authentic, &wanted) {
        return Ok(read);
    }
    let bytes = authentic.evidence.event_log.as_deref().unwrap_or_default();
    let log = EventLog::parse(bytes)
        .map_err(|e| Failure::new(e.to_string(), "an event log").about("event_log").hint(REBOOT))?;
    let records = match &authentic.evidence.systemd_log {
        Some(bytes) => systemd_log::parse(bytes)
            .map_err(|e| Failure::new(e.to_string(), "systemd's userspace log").about("systemd_log").hint(REBOOT))?,
        None => Vec::new(),
    };
    let mut examined = log.examine(&wanted, Registers::Tpm).map_err(|refusal| match refusal {
        Refusal::Lie(lie) => {
            Failure::new(lie.got, lie.want).about(lie.event).hint("this log claims what no firmware measures")
        }
        Refusal::Replay(e) => {
            Failure::new(e.to_string(), "a digest of every event in every quoted bank").about("event_log")
        }
    })?;
    for bank in &mut examined.banks {
        let alg = bank.alg();
        systemd_log::replay(&records, bank).map_err(|e| {
            Failure::new(e.to_string(), format!("digests of every record in the {alg} bank")).about("systemd_log")
        })?;
    }
    // Some firmware extends PCR 5 at ExitBootServices and does not log it. Whatever else differs is found when all logs were replayed.
    let _ = examined.compare(|alg, pcr| authentic.pcr(alg, pcr));
    let boot = Booted {
        secure_boot: examined.secure_boot(),
        exit_boot_services: examined.exit_boot_services(),
        facts: Facts::of(&examined, &records),
        vouched: examined.vouched(),
    };
    Ok(boots::keep(authentic, Read::new(authentic, &wanted, examined.banks, boot)))
}

/// The PCRs that a quote covers in one bank.
fn quoted(authentic: &Authentic, alg: HashAlg) -> PcrSet {
    authentic.selection.0.iter().filter(|bank| bank.alg == alg.id()).flat_map(|bank| bank.pcrs()).collect()
}

/// Every event that extends a quoted PCR.
fn events(authentic: &Authentic, vouched: &Vouched) -> Vec<Event> {
    let Ok(log) = EventLog::parse(authentic.evidence.event_log.as_deref().unwrap_or_default()) else {
        return Vec::new();
    };
    let banks: Vec<(HashAlg, PcrSet)> =
        authentic.banks().into_iter().map(|alg| (alg, quoted(authentic, alg))).collect();
    let words = |(event, pcr, part): (&countersign_wire::eventlog::Event<'_>, u8, Option<&[u8]>)| {
        let quoted = banks.iter().filter(|(_, covers)| covers.contains(pcr));
        let digests: BTreeMap<String, String> =
            quoted.filter_map(|(alg, _)| Some((alg.name().to_owned(), hex::encode(event.digest(*alg)?)))).collect();
        let text = part.and_then(|part| event.part_text(part));
        Event { index: event.index, pcr, kind: event.kind.to_string(), digests, authentic: part.is_some(), text }
    };
    vouched.events(&log).map(words).collect()
}

/// Every quoted PCR is what the logs lead to; one without events holds its initial value.
fn pcr_values(authentic: &Authentic, context: &Context, banks: &[PcrBank]) -> Result<(), Failure> {
    for bank in banks {
        let Some(selected) = authentic.selection.0.iter().find(|selected| selected.alg == bank.alg().id()) else {
            continue;
        };
        for pcr in selected.pcrs().filter(|pcr| *pcr != context.host.run_pcr) {
            let (got, want) = (authentic.pcr(bank.alg(), pcr), bank.value(pcr));
            if got != want {
                let show =
                    |value: Option<Digest>| value.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
                let what = if bank.extended(pcr) { "the log leads to" } else { "no event extends it, so" };
                return Err(Failure::new(format!("quoted {}", show(got)), format!("{what} {}", show(want)))
                    .about(format!("PCR {pcr}, {}", bank.alg()))
                    .hint(REBOOT));
            }
        }
    }
    Ok(())
}

fn receipts(authentic: &Authentic, context: &Context, logged: &Logged) -> Result<ReceiptUpdate, Failure> {
    let named = authentic.statement.receipt.as_ref();
    receipts::judge(&context.host, authentic.continuity, logged, named, &context.vouched, context.epoch).map_err(
        |fault| match fault {
            ReceiptFault::Contradiction { got, want } => Failure::new(got, want).about("receipts").contradiction(),
            ReceiptFault::Refused { got, want } => Failure::new(got, want).about("receipts").hint(REBOOT),
        },
    )
}

/// What a bank of the evidence holds, as policies see it.
pub(super) fn pcrs_for_policy(authentic: &Authentic) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for bank in &authentic.selection.0 {
        let Some(alg) = HashAlg::from_id(bank.alg) else { continue };
        let values = bank.pcrs().filter_map(|pcr| Some((pcr.to_string(), authentic.pcr(alg, pcr)?.to_string())));
        all.insert(alg.name().to_owned(), values.collect());
    }
    all
}
