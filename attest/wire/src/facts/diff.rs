//! What changed between two boots, fact by fact and event by event.

use std::collections::BTreeMap;

use countersign_tpm::alg::HashAlg;
use serde::{Deserialize, Serialize};

use super::{Authority, Fact, Facts, Image, KeyDatabase, Measured, Tagged, databases};
use crate::eventlog::{EventType, Examined, Variable};

/// A fact that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which fact: `secure-boot`, `dbx`, `kernel /vmlinuz` and so on.
    pub fact: String,
    /// What it was; absent for what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// What it is; absent for what is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// An event that only one of the two logs has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventChange {
    /// PCR.
    pub pcr: u8,
    /// Type name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digest, `alg:hex`.
    pub digest: String,
    /// Its authenticated data in words, where it has words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Index in its log.
    pub index: u32,
    /// True if only the later log has it, false if only the earlier one.
    pub new: bool,
}

/// The differences between two boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Facts that changed.
    pub facts: Vec<Change>,
    /// Events that only one of them has, in the order of their logs, the earlier log's first.
    pub events: Vec<EventChange>,
}

impl Change {
    /// For people: `dbx: 371 -> 420 entries`.
    #[must_use]
    pub fn words(&self) -> String {
        match (&self.was, &self.now) {
            (Some(was), Some(now)) => format!("{}: {was} -> {now}", self.fact),
            (None, Some(now)) => format!("{}: new, {now}", self.fact),
            (Some(was), None) => format!("{}: gone, it was {was}", self.fact),
            (None, None) => self.fact.clone(),
        }
    }
}

impl EventChange {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        let sign = if self.new { '+' } else { '-' };
        let text = self.text.as_ref().map_or_else(String::new, |text| format!(": {}", text.escape_debug()));
        format!("{sign} event {} (PCR {}, {}) {}{text}", self.index, self.pcr, self.kind, self.digest)
    }
}

/// Compares an earlier boot with a later one.
#[must_use]
pub fn diff(was: (&Examined<'_, '_>, &Facts), now: (&Examined<'_, '_>, &Facts)) -> Changes {
    let mut facts = Compare::default();
    for (side, (examined, found)) in [(Side::Was, was), (Side::Now, now)] {
        facts.collect(side, found);
        facts.entries(side, examined);
    }
    Changes { facts: facts.done(), events: events(was.0, now.0) }
}

#[derive(Clone, Copy)]
enum Side {
    Was,
    Now,
}

/// What the earlier boot has, and the later one.
type Both<T> = (T, T);

/// Values by fact: of a single fact one value at most, of a list's element its own key.
#[derive(Default)]
struct Compare {
    values: BTreeMap<(u8, String), Both<Option<String>>>,
    /// Entries of signature databases, so that a difference can count them.
    entries: BTreeMap<String, Both<Vec<Vec<u8>>>>,
}

impl Compare {
    fn put(&mut self, side: Side, rank: u8, fact: impl Into<String>, value: String) {
        let slot = self.values.entry((rank, fact.into())).or_default();
        let slot = match side {
            Side::Was => &mut slot.0,
            Side::Now => &mut slot.1,
        };
        // What stands in a list more than once is shown once, with all its values.
        match slot {
            Some(before) if *before != value => {
                before.push_str(", ");
                before.push_str(&value);
            }
            Some(_) => {}
            None => *slot = Some(value),
        }
    }

    fn collect(&mut self, side: Side, facts: &Facts) {
        let on = |value: &Fact<bool>| if value.value { "on".to_owned() } else { "off".to_owned() };
        let singles = [
            ("secure-boot", facts.secure_boot.as_ref().map(on)),
            ("firmware-version", facts.firmware_version.as_ref().map(|fact| fact.value.clone())),
            ("debug-mode", facts.debug_mode.as_ref().map(on)),
            ("dma-protection-disabled", facts.dma_protection_disabled.as_ref().map(on)),
            ("exit-boot-services", facts.exit_boot_services.as_ref().map(on)),
            ("machine-id", facts.machine_id.as_ref().map(|fact| fact.value.clone())),
            (
                "sbat-level",
                facts.shim.as_ref().and_then(|shim| shim.sbat_level.as_ref()).map(|fact| fact.value.clone()),
            ),
        ];
        for (name, value) in singles {
            if let Some(value) = value {
                self.put(side, 0, name, value);
            }
        }
        let loaders: Vec<String> = facts.loaders.iter().map(|fact| format!("{:?}", fact.value)).collect();
        if !loaders.is_empty() {
            self.put(side, 1, "boot loaders", loaders.join(", "));
        }
        for fact in &facts.databases {
            self.put(side, 2, fact.value.name.clone(), summary(&fact.value));
        }
        for fact in &facts.authorities {
            self.put(side, 3, format!("authority {}", source(&fact.value)), authority(&fact.value));
        }
        for fact in &facts.command_lines {
            self.put(side, 4, format!("command line ({:?})", fact.value.by), fact.value.text.clone());
        }
        self.measured(side, 5, "kernel", &facts.kernels);
        self.measured(side, 6, "initrd", &facts.initrds);
        self.images(side, 7, "EFI application", &facts.applications);
        self.images(side, 8, "option ROM", &facts.option_roms);
        self.measured(side, 9, "section", &facts.sections);
        self.measured(side, 10, "addon", &facts.addons);
        self.measured(side, 11, "shim list", facts.shim.as_ref().map_or(&[], |shim| shim.lists.as_slice()));
        self.measured(side, 12, "file", &facts.files);
        self.measured(side, 13, "firmware", &facts.firmware);
        for fact in &facts.boot_options {
            self.put(side, 14, format!("boot option {}", fact.value.name), fact.value.description.clone());
        }
        for (rank, name, list) in [(15, "phase", &facts.phases), (16, "file system", &facts.file_systems)] {
            for fact in list {
                self.put(side, rank, format!("{name} {}", fact.value), "reached".into());
            }
        }
    }

    /// Files whose name holds a version (`/vmlinuz-6.1.0-50-amd64`) are compared by what stands before it.
    fn measured(&mut self, side: Side, rank: u8, what: &str, list: &[Fact<Measured>]) {
        for fact in list {
            let (stem, version) = versioned(&fact.value.name);
            let digest = short(fact.value.digest);
            let value = if version.is_empty() { digest } else { format!("{version} ({digest})") };
            self.put(side, rank, format!("{what} {stem}"), value);
        }
    }

    /// Executables are compared by their digests: a new one is new, wherever it lies.
    fn images(&mut self, side: Side, rank: u8, what: &str, list: &[Fact<Image>]) {
        for fact in list {
            let path = fact.value.path.clone().unwrap_or_else(|| "without a path".into());
            self.put(side, rank, format!("{what} {}", short(fact.value.digest)), path);
        }
    }

    fn entries(&mut self, side: Side, examined: &Examined<'_, '_>) {
        let register = examined.registers.secure_boot();
        for (event, pcr, part) in examined.events() {
            if pcr != register || event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
                continue;
            }
            let Some(variable) = part.and_then(|part| Variable::parse(part).ok()) else { continue };
            let Some(name) = variable.name() else { continue };
            let found =
                databases::entries(variable.data).into_iter().map(|(kind, entry)| [&kind.0[..], entry].concat());
            let slot = self.entries.entry(name).or_default();
            let slot = match side {
                Side::Was => &mut slot.0,
                Side::Now => &mut slot.1,
            };
            slot.extend(found);
            slot.sort();
        }
    }

    fn done(self) -> Vec<Change> {
        let entries = self.entries;
        let counted = |fact: &str, was: &str, now: &str| {
            let (before, after) = entries.get(fact)?;
            let new = after.iter().filter(|entry| before.binary_search(entry).is_err()).count();
            let gone = before.iter().filter(|entry| after.binary_search(entry).is_err()).count();
            let text = format!("{now} ({new} new, {gone} gone)");
            Some(Change { fact: fact.to_owned(), was: Some(was.to_owned()), now: Some(text) })
        };
        let changed = self.values.into_iter().filter(|(_, (was, now))| was != now);
        changed
            .map(|((rank, fact), (was, now))| match (&was, &now) {
                (Some(before), Some(after)) if rank == 2 => {
                    counted(&fact, before, after).unwrap_or_else(|| Change { fact, was: was.clone(), now: now.clone() })
                }
                _ => Change { fact, was, now },
            })
            .collect()
    }
}

/// `371 entries (0 certificates) 0a1b...`: the digest shows a change that leaves the number as it was.
fn summary(database: &KeyDatabase) -> String {
    let certificates = u32::try_from(database.certificates.len()).unwrap_or(u32::MAX);
    let all = certificates.saturating_add(database.hashes).saturating_add(database.other);
    let entries = if all == 1 { "entry" } else { "entries" };
    format!("{all} {entries}, {certificates} of them certificates, {}", short(database.digest))
}

fn source(authority: &Authority) -> String {
    let what = authority.certificate.as_ref().map(super::Certificate::sha256);
    let what = what.or_else(|| authority.hash.clone()).unwrap_or_default();
    format!("{} {}", authority.source, what.get(..12).unwrap_or(&what))
}

fn authority(authority: &Authority) -> String {
    match (&authority.certificate, &authority.hash) {
        (Some(certificate), _) => certificate.subject(),
        (None, Some(hash)) => format!("hash {hash}"),
        (None, None) => "neither certificate nor hash".into(),
    }
}

/// Splits a name at its version: the first digit that follows a `-`.
pub(super) fn versioned(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash.saturating_add(1));
    let tail = name.get(file..).unwrap_or_default();
    let at = tail.match_indices('-').find(|(at, _)| {
        tail.get(at.saturating_add(1)..).and_then(|rest| rest.chars().next()).is_some_and(|c| c.is_ascii_digit())
    });
    at.and_then(|(at, _)| name.split_at_checked(file.saturating_add(at)))
        .map_or((name, ""), |(stem, version)| (stem, version.strip_prefix('-').unwrap_or(version)))
}

fn short(digest: Tagged) -> String {
    let text = digest.to_string();
    text.get(..23).map_or_else(|| text.clone(), |start| format!("{start}..."))
}

/// Events that one log has more often than the other, by PCR, type and digest.
fn events(was: &Examined<'_, '_>, now: &Examined<'_, '_>) -> Vec<EventChange> {
    let algs = |examined: &Examined<'_, '_>| examined.banks.iter().map(|bank| bank.alg()).collect::<Vec<HashAlg>>();
    let (before, after) = (algs(was), algs(now));
    let common = before.iter().copied().filter(|alg| after.contains(alg));
    let Some(alg) = common.max_by_key(|alg| (*alg == HashAlg::Sha256, *alg)) else { return Vec::new() };
    let mut balance: BTreeMap<(u8, u32, &[u8]), i64> = BTreeMap::new();
    for (examined, step) in [(was, -1i64), (now, 1)] {
        for (event, pcr, _) in examined.events() {
            if let Some(digest) = event.digest(alg) {
                let count = balance.entry((pcr, event.kind.0, digest)).or_default();
                *count = count.saturating_add(step);
            }
        }
    }
    let mut changes = Vec::new();
    for (examined, new) in [(was, false), (now, true)] {
        for (event, pcr, part) in examined.events() {
            let Some(digest) = event.digest(alg) else { continue };
            let Some(count) = balance.get_mut(&(pcr, event.kind.0, digest)) else { continue };
            let (surplus, step) = if new { (*count > 0, -1i64) } else { (*count < 0, 1) };
            if !surplus {
                continue;
            }
            *count = count.saturating_add(step);
            changes.push(EventChange {
                pcr,
                kind: event.kind.to_string(),
                digest: format!("{}:{}", alg.name(), hex::encode(digest)),
                text: part.and_then(|part| event.part_text(part)),
                index: event.index,
                new,
            });
        }
    }
    changes
}
