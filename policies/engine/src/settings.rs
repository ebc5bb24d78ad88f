//! Settings of the policy library: `data.countersign.settings` in a policy bundle's `data.json`.
//!
//! Every part is optional, and a check whose part is missing is never proved: settings that are missing can only deny.

use std::collections::BTreeMap;

use countersign_wire::facts::{Fact, KeyDatabase, Strength};
use serde::{Deserialize, Serialize};

use crate::input::{FindingKind, Ima, Input};
use crate::verdict::Obligations;

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Checks that are required beside the policy's own.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub required: Vec<String>,
    /// Obligations instead of the policy's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub obligations: Option<Obligations>,
    /// Names of the IMA reference sets that hold our own programs. Check own-binaries.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub binaries: Vec<String>,
    /// Times and resets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock: Option<Clock>,
    /// The list of revoked boot loaders.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dbx: Option<Dbx>,
    /// The platform's firmware.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub firmware: Option<Firmware>,
    /// What is to be done about findings of a run, by kind. Check run-findings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub findings: BTreeMap<String, Reaction>,
    /// Host ids that are meant. Check host-known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hosts: Vec<String>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel: Option<Kernel>,
    /// What may run beside the files of the IMA reference sets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runtime: Option<Runtime>,
    /// The TPM itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tpm: Option<Tpm>,
    /// Workloads by id. Check workload-known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub workloads: BTreeMap<String, KnownWorkload>,
}

/// What is to be done about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reaction {
    /// Nothing.
    Ignore,
    /// It is recorded and reported; the workload goes on.
    Alert,
    /// The container is frozen.
    Freeze,
    /// The container is ended with grace.
    Stop,
    /// The container is ended at once.
    Kill,
}

impl Settings {
    /// Whether each value lies in its range and each name is known.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), String> {
        if let Some(given) = &self.obligations {
            given.check().map_err(|e| e.to_string())?;
        }
        for kind in self.findings.keys() {
            serde_json::from_value::<FindingKind>(kind.as_str().into()).map_err(|e| format!("findings: {e}"))?;
        }
        Ok(())
    }
}

/// Times and resets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Check resets-seen: TPM Resets that may go by unattested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_skipped_resets: Option<u32>,
    /// Check time-window: first millisecond since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_before_ms: Option<i64>,
    /// Check time-window: first millisecond that no longer counts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_after_ms: Option<i64>,
}

/// The list of revoked boot loaders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dbx {
    /// Check dbx-current: accepted SHA-256 digests (hex) of the measured variable.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub digests: Vec<String>,
    /// Check dbx-entries: the least number of entries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_entries: Option<u32>,
}

/// The platform's firmware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// Check firmware-version: accepted texts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub versions: Vec<String>,
}

/// The kernel's command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Check kernel-command-line: whole lines.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub command_lines: Vec<String>,
    /// Check kernel-command-line: patterns of words; a line of such words is accepted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub words: Vec<String>,
    /// Check kernel-words: words that every line must have.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub required_words: Vec<String>,
}

/// What may run beside the files of the IMA reference sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Check runtime-paths: beginnings of paths below which files may be unknown to the sets; an empty list has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_prefixes: Option<Vec<String>>,
    /// Check runtime-modules: digests (`alg:hex`) of kernel modules that may be unknown to the sets; an empty list has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub modules: Option<Vec<String>>,
}

/// The TPM itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm {
    /// Check tpm-firmware: manufacturer to least firmware version, 16 hex digits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub firmware: BTreeMap<String, String>,
    /// Check ek-root: accepted roots of EK certificates.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ek_roots: Vec<String>,
}

/// A workload that the policy knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownWorkload {
    /// Payload root, hex.
    pub payload_root: String,
    /// Policy digest, hex.
    pub policy: String,
}

/// Settings that accept exactly this host: every check that its evidence can prove becomes required. To be read by a person before they are
/// signed: a host that is already bad teaches bad settings.
#[must_use]
pub fn learn(input: &Input) -> Settings {
    let mut required: Vec<&str> = vec!["boot-complete", "ek-root", "host-known", "resets-seen"];
    let mut settings = Settings { hosts: vec![input.host.id.clone()], ..Settings::default() };
    settings.clock = Some(Clock { max_skipped_resets: Some(input.quote.skipped_resets), ..Clock::default() });
    let mut tpm = Tpm { ek_roots: vec![input.host.ek_root.clone()], ..Tpm::default() };
    if let Some(manufacturer) = input.host.tpm.get("manufacturer") {
        tpm.firmware.insert(manufacturer.clone(), input.quote.firmware_version.clone());
        required.push("tpm-firmware");
    }
    settings.tpm = Some(tpm);
    if !input.host.simulated {
        required.push("hardware-tpm");
    }
    let events = input.boot.as_ref().map(|boot| boot.events.as_slice()).unwrap_or_default();
    let texts = |pcr: u8, kind: &'static str| {
        let found = events.iter().filter(move |event| event.pcr == pcr && event.kind == kind && event.authentic);
        found.filter_map(|event| Some((event, event.text.as_deref()?)))
    };
    let facts = input.boot.as_ref().map(|boot| &boot.facts);
    // All lines are taken, as the check looks at all; GRUB's own command is what proves one.
    let mut command_lines: Vec<String> = texts(8, "EV_IPL")
        .filter_map(|(_, text)| text.strip_prefix("linux ").or_else(|| text.strip_prefix("linuxefi ")))
        .map(str::to_owned)
        .collect();
    let lines = facts.map(|facts| facts.command_lines.as_slice()).unwrap_or_default();
    let proved = !command_lines.is_empty() || lines.iter().any(authenticated);
    command_lines.extend(lines.iter().map(|line| line.value.text.clone()));
    command_lines.sort();
    command_lines.dedup();
    if proved {
        settings.kernel = Some(Kernel { command_lines, ..Kernel::default() });
        required.push("kernel-command-line");
    }
    let mut versions: Vec<String> = texts(0, "EV_S_CRTM_VERSION").map(|(_, text)| text.to_owned()).collect();
    let version = facts.and_then(|facts| facts.firmware_version.as_ref()).filter(|fact| authenticated(fact));
    versions.extend(version.map(|fact| fact.value.clone()));
    versions.sort();
    versions.dedup();
    if !versions.is_empty() {
        settings.firmware = Some(Firmware { versions });
        required.push("firmware-version");
    }
    let digests: Vec<String> = texts(7, "EV_EFI_VARIABLE_DRIVER_CONFIG")
        .filter(|(_, text)| text.starts_with("dbx = "))
        .filter_map(|(event, _)| event.digests.get("sha256").cloned())
        .collect();
    if digests.len() == 1 {
        let lists = facts.map(|facts| facts.databases.as_slice()).unwrap_or_default();
        let mut lists = lists.iter().filter(|list| list.value.name == "dbx");
        let min_entries = match (lists.next(), lists.next()) {
            (Some(list), None) if authenticated(list) => entries(&list.value),
            _ => None,
        };
        settings.dbx = Some(Dbx { digests, min_entries });
        required.push("dbx-current");
        required.extend(min_entries.map(|_| "dbx-entries"));
    }
    if let Some(ima) = input.ima.as_ref().filter(|ima| ima.entries > 0) {
        learn_ima(&mut settings, &mut required, ima);
    }
    if let Some(workload) = &input.workload {
        let known = KnownWorkload { payload_root: workload.payload_root.clone(), policy: workload.policy.clone() };
        settings.workloads.insert(workload.id.clone(), known);
        required.push("workload-known");
    }
    settings.required = required.into_iter().map(str::to_owned).collect();
    settings.required.sort();
    settings
}

fn authenticated<T>(fact: &Fact<T>) -> bool {
    fact.strength == Strength::Authenticated
}

/// Certificates, hashes and other entries of a signature database.
fn entries(list: &KeyDatabase) -> Option<u32> {
    u32::try_from(list.certificates.len()).ok()?.checked_add(list.hashes)?.checked_add(list.other)
}

fn learn_ima(settings: &mut Settings, required: &mut Vec<&str>, ima: &Ima) {
    required.push("ima-list");
    required.extend(ima.strong.then_some("ima-strong-hash"));
    required.extend((ima.violations == 0).then_some("ima-violations"));
    required.extend((ima.kexecs == 0).then_some("ima-kexec"));
    required.extend((ima.boot_aggregate == Some(true)).then_some("ima-aggregate"));
    let Some(appraisal) = ima.appraisal.as_ref().filter(|appraisal| appraisal.unknown == 0 && appraisal.denied == 0)
    else {
        return;
    };
    required.push("ima-files");
    if ima.violations == 0 {
        required.extend(["runtime-modules", "runtime-paths"]);
        settings.runtime = Some(Runtime { path_prefixes: Some(Vec::new()), modules: Some(Vec::new()) });
    }
    if appraisal.accepted > 0 || appraisal.signed > 0 {
        required.push("own-binaries");
        settings.binaries.clone_from(&appraisal.sets);
    }
}
