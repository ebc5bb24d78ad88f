//! Settings of the policy library: `data.countersign.settings` in a policy bundle's `data.json`.
//!
//! Every part is optional, and a check whose part is missing is never proved: settings that are missing can only deny.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::input::{ImaFile, Input};
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
    /// Programs of ours: path to accepted digests (`alg:hex`). Check own-binaries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub binaries: BTreeMap<String, Vec<String>>,
    /// Times and resets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock: Option<Clock>,
    /// The list of revoked boot loaders.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dbx: Option<Dbx>,
    /// The platform's firmware.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub firmware: Option<Firmware>,
    /// Host ids that are meant. Check host-known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hosts: Vec<String>,
    /// What IMA may measure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ima: Option<ImaSettings>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel: Option<Kernel>,
    /// What may run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub runtime: Option<Runtime>,
    /// The TPM itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tpm: Option<Tpm>,
    /// Workloads by id. Check workload-known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub workloads: BTreeMap<String, KnownWorkload>,
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

/// What IMA may measure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImaSettings {
    /// Check ima-files: `alg:hex` to names of what has this digest.
    pub digests: BTreeMap<String, Vec<String>>,
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

/// What may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Check runtime-paths: accepted beginnings of paths.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub path_prefixes: Vec<String>,
    /// Check runtime-modules: accepted digests (`alg:hex`) of kernel modules; an empty list accepts none.
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
    let mut command_lines: Vec<String> =
        texts(8, "EV_IPL").filter_map(|(_, text)| text.strip_prefix("linux ")).map(str::to_owned).collect();
    command_lines.sort();
    command_lines.dedup();
    if !command_lines.is_empty() {
        settings.kernel = Some(Kernel { command_lines, ..Kernel::default() });
        required.push("kernel-command-line");
    }
    let versions: Vec<String> = texts(0, "EV_S_CRTM_VERSION").map(|(_, text)| text.to_owned()).collect();
    if !versions.is_empty() {
        settings.firmware = Some(Firmware { versions });
        required.push("firmware-version");
    }
    let digests: Vec<String> = texts(7, "EV_EFI_VARIABLE_DRIVER_CONFIG")
        .filter(|(_, text)| text.starts_with("dbx = "))
        .filter_map(|(event, _)| event.digests.get("sha256").cloned())
        .collect();
    if digests.len() == 1 {
        settings.dbx = Some(Dbx { digests, ..Dbx::default() });
        required.push("dbx-current");
    }
    if let Some(ima) = input.ima.as_ref().filter(|ima| !ima.files.is_empty()) {
        required.extend(["ima-files", "ima-list", "ima-strong-hash", "runtime-modules", "runtime-paths"]);
        let whole = u64::try_from(ima.files.len()).is_ok_and(|files| files == ima.entries);
        required.extend(whole.then_some("ima-whole"));
        required.extend((ima.violations == 0).then_some("ima-violations"));
        required.extend((ima.boot_aggregate == Some(true)).then_some("ima-aggregate"));
        learn_files(&mut settings, &ima.files);
        required.extend((!settings.binaries.is_empty()).then_some("own-binaries"));
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

fn learn_files(settings: &mut Settings, files: &[ImaFile]) {
    let mut digests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut modules = Vec::new();
    let mut prefixes = Vec::new();
    for file in files {
        let names = digests.entry(file.digest.clone()).or_default();
        if !names.contains(&file.path) {
            names.push(file.path.clone());
        }
        let name = file.path.rsplit('/').next().unwrap_or_default();
        if [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().any(|end| name.ends_with(end)) {
            modules.push(file.digest.clone());
        }
        if ["attest", "supervisor"].contains(&name) {
            let known = settings.binaries.entry(file.path.clone()).or_default();
            if !known.contains(&file.digest) {
                known.push(file.digest.clone());
            }
        }
        // The first folder of the path: /usr/, /etc/, ...
        let top = file.path.strip_prefix('/').and_then(|rest| rest.split_once('/')).map(|(top, _)| format!("/{top}/"));
        prefixes.extend(top);
    }
    for list in [&mut modules, &mut prefixes] {
        list.sort();
        list.dedup();
    }
    settings.ima = Some(ImaSettings { digests });
    settings.runtime = Some(Runtime { path_prefixes: prefixes, modules: Some(modules) });
}
