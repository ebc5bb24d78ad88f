//! Boot logs in words: events, facts, differences between two boots.

use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, Examined, NO_PCR, PcrSet, Refusal, Registers, ccel};
use countersign_wire::facts::{Changes, Fact, Facts, Log, Measured, Strength, diff};
use countersign_wire::systemd_log::Record;
use countersign_wire::{cel, systemd_log};

use super::Described;

/// A firmware log, if the bytes are one; what is wrong with it, if they only begin as one.
pub(super) fn firmware(bytes: &[u8]) -> Option<Result<Described, String>> {
    let begins = bytes.get(32..).is_some_and(|data| data.starts_with(b"Spec ID Event03\0"));
    match EventLog::parse(bytes) {
        // The format of TPM 1.2 has no signature: other bytes could pass for it.
        Ok(log) if begins || log.events.iter().all(|event| event.pcr < 24 || event.pcr == NO_PCR) => {
            Some(Ok(event_log(&log, &[])))
        }
        Err(e) if begins => Some(Err(e.to_string())),
        Ok(_) | Err(_) => None,
    }
}

/// A canonical event log: the firmware's events and the others.
pub(super) fn canonical(bytes: &[u8]) -> Result<Described, String> {
    let logs = cel::parse(bytes).map_err(|e| e.to_string())?;
    if logs.firmware.is_empty() {
        return Ok(records(&logs.userspace));
    }
    let log = EventLog::parse(&logs.firmware).map_err(|e| e.to_string())?;
    let mut described = event_log(&log, &logs.userspace);
    described.kind = "canonical event log".into();
    Ok(described)
}

/// systemd's userspace log.
pub(super) fn systemd(bytes: &[u8]) -> Result<Described, String> {
    Ok(records(&systemd_log::parse(bytes).map_err(|e| e.to_string())?))
}

fn records(records: &[Record]) -> Described {
    let mut described = Described::new("systemd log", &[("records", records.len().to_string())]);
    described.entries = records.iter().map(|record| format!("PCR {}: {}", record.pcr, record.text)).collect();
    described
}

/// A firmware log as a canonical event log (CEL-JSON).
///
/// # Errors
/// What is wrong with the log.
pub fn canonical_of(bytes: &[u8]) -> Result<String, String> {
    EventLog::parse(bytes).map(|log| cel::write(&log, &[])).map_err(|e| e.to_string())
}

/// The bank that a log is shown in: SHA-256 where it has one.
fn shown_bank(log: &EventLog<'_>) -> Option<HashAlg> {
    log.known_banks().find(|alg| *alg == HashAlg::Sha256).or_else(|| log.known_banks().next())
}

/// The log judged in the bank that it is shown in, as if all PCRs were vouched for: `inspect` says that nothing was checked.
fn examine<'l, 'a>(log: &'l EventLog<'a>) -> Result<Examined<'l, 'a>, Refusal> {
    let registers = if ccel::looks_like(log) { Registers::Cc } else { Registers::Tpm };
    let wanted: Vec<(HashAlg, PcrSet)> = shown_bank(log).into_iter().map(|alg| (alg, PcrSet::ALL)).collect();
    log.examine(&wanted, registers)
}

fn event_log(log: &EventLog<'_>, userspace: &[Record]) -> Described {
    let banks: Vec<String> = log
        .banks
        .iter()
        .map(|(id, _)| HashAlg::from_id(*id).map_or_else(|| format!("{id:#06x}"), |alg| alg.name().to_owned()))
        .collect();
    let examined = examine(log);
    let secure_boot = examined.as_ref().ok().and_then(Examined::secure_boot);
    let mut described = Described::new(
        "firmware event log",
        &[
            ("banks", banks.join(" ")),
            ("events", log.events.len().to_string()),
            ("Secure Boot", secure_boot.map_or("unknown", |on| if on { "on" } else { "off" }).into()),
        ],
    );
    match &examined {
        Ok(examined) => described.facts = Some(Box::new(Facts::of(examined, userspace))),
        // No fact of a log that lies is shown.
        Err(refusal) => described.fields.push(("refused".into(), refusal.to_string())),
    }
    let alg = shown_bank(log);
    for event in &log.events {
        let text =
            alg.and_then(|alg| event.text(alg)).map_or_else(String::new, |text| format!(": {}", text.escape_debug()));
        described.entries.push(format!("{}{text}", event.describe()));
    }
    described.entries.extend(userspace.iter().map(|record| format!("systemd, PCR {}: {}", record.pcr, record.text)));
    described
}

/// One of two logs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The earlier one.
    First,
    /// The later one.
    Second,
}

/// What changed from one boot to a later one.
///
/// # Errors
/// Which of the logs cannot be read, or lies, and why.
pub fn compare(was: &[u8], now: &[u8]) -> Result<Changes, (Which, String)> {
    let read = |which: Which, bytes: &[u8]| -> Result<cel::Logs, (Which, String)> {
        if cel::looks_like(bytes) {
            return cel::parse(bytes).map_err(|e| (which, e.to_string()));
        }
        Ok(cel::Logs { firmware: bytes.to_vec(), userspace: Vec::new() })
    };
    let (was, now) = (read(Which::First, was)?, read(Which::Second, now)?);
    let first = EventLog::parse(&was.firmware).map_err(|e| (Which::First, e.to_string()))?;
    let second = EventLog::parse(&now.firmware).map_err(|e| (Which::Second, e.to_string()))?;
    let first = examine(&first).map_err(|e| (Which::First, e.to_string()))?;
    let second = examine(&second).map_err(|e| (Which::Second, e.to_string()))?;
    let (before, after) = (Facts::of(&first, &was.userspace), Facts::of(&second, &now.userspace));
    Ok(diff((&first, &before), (&second, &after)))
}

/// Facts in words, one a line; a `?` marks what is only named.
pub(super) fn words(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |name: &str, strength: Strength, events: String, value: String| {
        let mark = if strength == Strength::Named { "?" } else { "" };
        lines.push(format!("{name}{mark}: {value} [{events}]"));
    };
    if let Some(fact) = &facts.firmware_version {
        add("firmware version", fact.strength, source(fact), fact.value.clone());
    }
    for (name, fact) in [
        ("debug mode", &facts.debug_mode),
        ("DMA protection disabled", &facts.dma_protection_disabled),
        ("ExitBootServices", &facts.exit_boot_services),
    ] {
        if let Some(fact) = fact {
            add(name, fact.strength, source(fact), if fact.value { "yes".into() } else { "no".into() });
        }
    }
    for fact in &facts.databases {
        let certificates: Vec<String> =
            fact.value.certificates.iter().map(|certificate| certificate.subject()).collect();
        let value = format!("{} hashes, certificates: {}", fact.value.hashes, certificates.join("; "));
        add(&fact.value.name, fact.strength, source(fact), value);
    }
    for fact in &facts.authorities {
        let certificate = fact.value.certificate.as_ref().map(|certificate| certificate.subject());
        let value = certificate.or_else(|| fact.value.hash.clone()).unwrap_or_default();
        add(&format!("authority ({})", fact.value.source), fact.strength, source(fact), value);
    }
    if let Some(level) = facts.shim.as_ref().and_then(|shim| shim.sbat_level.as_ref()) {
        add("SbatLevel", level.strength, source(level), level.value.clone());
    }
    for fact in &facts.loaders {
        add("boot loader", fact.strength, source(fact), format!("{:?}", fact.value));
    }
    for (name, list) in [("application", &facts.applications), ("option ROM", &facts.option_roms)] {
        for fact in list {
            let path = fact.value.path.as_deref().unwrap_or("no path");
            add(name, fact.strength, source(fact), format!("{} ({path})", fact.value.digest));
        }
    }
    for fact in &facts.command_lines {
        add("command line", fact.strength, source(fact), fact.value.text.clone());
    }
    let lists: [(&str, &[Fact<Measured>]); 4] = [
        ("kernel", &facts.kernels),
        ("initrd", &facts.initrds),
        ("section", &facts.sections),
        ("addon", &facts.addons),
    ];
    for (name, list) in lists {
        for fact in list {
            add(name, fact.strength, source(fact), format!("{} {}", fact.value.name, fact.value.digest));
        }
    }
    for fact in &facts.boot_options {
        add("boot option", fact.strength, source(fact), format!("{} {}", fact.value.name, fact.value.description));
    }
    if let Some(fact) = &facts.machine_id {
        add("machine id", fact.strength, source(fact), fact.value.clone());
    }
    for (name, list) in [("phase", &facts.phases), ("file system", &facts.file_systems)] {
        for fact in list {
            add(name, fact.strength, source(fact), fact.value.clone());
        }
    }
    lines
}

/// The events behind a fact.
fn source<T>(fact: &Fact<T>) -> String {
    let events: Vec<String> = fact.events.as_slice().iter().map(u32::to_string).collect();
    match fact.log {
        Log::Firmware => format!("event {}", events.join(", ")),
        Log::Systemd => format!("systemd record {}", events.join(", ")),
        Log::Pcr => "the PCR's value".into(),
    }
}
