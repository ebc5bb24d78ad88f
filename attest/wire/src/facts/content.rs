//! What one event says, in words short enough to be kept beside a reference value; and how far two of them are apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::derive::version;
use super::diff::versioned;
use super::{Authority, Strength, Tagged, databases, image};
use crate::eventlog::{Event, EventType, Guid, Variable, grub_prefix, plain_text, utf16};

/// Characters of a name that are kept.
const NAME: usize = 160;
/// Characters of a text that are kept.
const TEXT: usize = 480;
/// Words on each side of a difference that are shown.
const WORDS: usize = 8;

/// What an event measured, in words, cut to a bounded length. At most 160 characters of name and 480 of text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The variable, file or path: only contents of the same name are compared. Empty where it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The contents: `off`, `2 entries: CN=...`, a command. Empty where the log does not hold them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Entries of a signature database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u32>,
    /// Whether the PCR vouches for it, or it only stands in the log.
    pub strength: Strength,
}

impl Content {
    /// What an event says. `part` is the part of its data that its digest vouches for; none where it vouches for none of it.
    #[must_use]
    pub fn of(event: &Event<'_>, part: Option<&[u8]>) -> Option<Self> {
        let (name, text, entries) = words(event, part)?;
        if name.is_empty() && text.is_empty() {
            return None;
        }
        let strength = if part.is_some() { Strength::Authenticated } else { Strength::Named };
        Some(Self { name: cut(&name, NAME), text: cut(&text, TEXT), entries, strength })
    }

    /// How much another content is like this one; none when they are not of one thing. More is nearer.
    #[must_use]
    pub fn likeness(&self, other: &Self) -> Option<u64> {
        let names: u64 = match (self.name.is_empty(), other.name.is_empty()) {
            (true, true) => 1,
            (false, false) if self.name == other.name => 3,
            (false, false) if is_versioned(&self.name) && versioned(&self.name).0 == versioned(&other.name).0 => 2,
            _ => return None,
        };
        let (gone, new, shared) = compare(&self.text, &other.text);
        let all = gone.len().saturating_add(new.len()).saturating_add(shared).max(1);
        let alike =
            shared.saturating_mul(1000).checked_div(all).and_then(|alike| u64::try_from(alike).ok()).unwrap_or(0);
        let counts = match (self.entries, other.entries) {
            (Some(one), Some(two)) => 1000u64.saturating_sub(u64::from(one.abs_diff(two))),
            _ => 0,
        };
        Some(names.saturating_mul(10_000).saturating_add(alike).saturating_add(counts))
    }

    /// How `now` differs from this, the accepted one: `dbx 371 -> 420 entries`, `kernel 6.1.0-50 -> 6.1.0-51`.
    #[must_use]
    pub fn difference(&self, now: &Self) -> String {
        let name = &now.name;
        if let (Some(was), Some(is)) = (self.entries, now.entries) {
            let others = if was == is { ", other ones" } else { "" };
            return format!("{name} {was} -> {is} entries{others}");
        }
        let (stem, was) = versioned(&self.name);
        let (_, is) = versioned(name);
        if was != is && !was.is_empty() && !is.is_empty() {
            return format!("{} {was} -> {is}", what(stem));
        }
        let named = if name.is_empty() { String::new() } else { format!("{name} ") };
        if self.text.is_empty() && now.text.is_empty() {
            return format!("{named}has other contents");
        }
        let (gone, new, shared) = compare(&self.text, &now.text);
        if shared == 0 || gone.is_empty() && new.is_empty() {
            return format!("{named}{} -> {}", self.text, now.text);
        }
        let list = |mark: &str, words: &[&str]| {
            let more = if words.len() > WORDS { " ..." } else { "" };
            let words: Vec<&str> = words.iter().copied().take(WORDS).collect();
            if words.is_empty() { String::new() } else { format!("{mark} {}{more}", words.join(" ")) }
        };
        let parts = [list("without", &gone), list("with", &new)];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{named}{}", parts.join(", "))
    }

    /// Name and text in one line; a `?` marks what only stands in the log.
    #[must_use]
    pub fn words(&self) -> String {
        let mark = if self.strength == Strength::Named { "?" } else { "" };
        match (self.name.is_empty(), self.text.is_empty()) {
            (false, false) => format!("{}{mark} = {}", self.name, self.text),
            (true, false) => format!("{}{mark}", self.text),
            (_, true) => format!("{}{mark}", self.name),
        }
    }
}

type Words = (String, String, Option<u32>);

fn words(event: &Event<'_>, part: Option<&[u8]>) -> Option<Words> {
    let text = |text: String| Some((String::new(), text, None));
    let name = |name: String| Some((name, String::new(), None));
    if event.is_image() {
        return name(image::path(event.data)?);
    }
    match (event.kind, event.pcr) {
        (EventType::EFI_VARIABLE_DRIVER_CONFIG, _) => Some(variable(&Variable::parse(part?).ok()?)),
        (EventType::EFI_VARIABLE_AUTHORITY, _) => authority(&Variable::parse_with_tail(part?).ok()?.0),
        (EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2, _) => {
            let variable = Variable::parse(event.data).ok()?;
            Some((variable.name()?, hexed(variable.data), None))
        }
        (EventType::S_CRTM_VERSION, _) => text(version(part?)?),
        (EventType::IPL, _) if grub_prefix(event.data).is_some() => {
            let prefix = event.data.get(..grub_prefix(event.data)?)?;
            Some((String::from_utf8_lossy(prefix).trim_end_matches([':', ' ']).to_owned(), plain_text(part?)?, None))
        }
        // The digest is of a file that GRUB read, or of a list of shim's: the log holds its name.
        (EventType::IPL, 9 | 14) => name(plain_text(event.data)?),
        (EventType::IPL, 11) => name(utf16(event.data)?),
        _ => text(event.part_text(part?)?),
    }
}

fn variable(variable: &Variable<'_>) -> Words {
    let name = variable.name().unwrap_or_default();
    let policy = variable.guid == Guid::SECURITY_DATABASE
        || variable.guid == Guid::GLOBAL && (variable.is_named("PK") || variable.is_named("KEK"));
    let none = Tagged(countersign_tpm::alg::HashAlg::Sha256.digest(&[]));
    if let Some(database) = policy.then(|| databases::database(name.clone(), variable.data, none)).flatten() {
        let certificates = u32::try_from(database.certificates.len()).unwrap_or(u32::MAX);
        let all = certificates.saturating_add(database.hashes).saturating_add(database.other);
        let subjects: Vec<String> = database.certificates.iter().map(super::Certificate::subject).collect();
        let list = if subjects.is_empty() { String::new() } else { format!(": {}", subjects.join("; ")) };
        return (name, format!("{all} {}{list}", if all == 1 { "entry" } else { "entries" }), Some(all));
    }
    let text = match variable.data {
        [0] => "off".to_owned(),
        [1] => "on".to_owned(),
        other => hexed(other),
    };
    (name, text, None)
}

fn authority(variable: &Variable<'_>) -> Option<Words> {
    let name = variable.name()?;
    if variable.guid == Guid::SHIM && variable.is_named("SbatLevel") {
        let text = plain_text(variable.data).unwrap_or_default();
        return Some((name, text.lines().next().unwrap_or_default().to_owned(), None));
    }
    let text = match databases::authority(variable, String::new()) {
        Authority { certificate: Some(certificate), .. } => certificate.subject(),
        Authority { hash: Some(hash), .. } => format!("hash {hash}"),
        Authority { .. } => hexed(variable.data),
    };
    Some((name, text, None))
}

fn hexed(bytes: &[u8]) -> String {
    let shown = bytes.get(..16).map_or_else(|| hex::encode(bytes), |start| format!("{}...", hex::encode(start)));
    format!("{shown} ({} bytes)", bytes.len())
}

fn cut(text: &str, max: usize) -> String {
    let mut kept: String = text.chars().take(max).collect();
    if kept.len() < text.len() {
        kept.push_str("...");
    }
    kept
}

fn is_versioned(name: &str) -> bool {
    !versioned(name).1.is_empty()
}

/// What a file is, by the beginning of its name.
fn what(stem: &str) -> &str {
    let file = stem.rsplit(['/', '\\']).next().unwrap_or(stem);
    match file {
        "vmlinuz" | "vmlinux" | "kernel" => "kernel",
        "initrd" | "initrd.img" | "initramfs" => "initrd",
        other => other,
    }
}

/// Words that only the first text has, words that only the second has, and how many both have.
fn compare<'t>(was: &'t str, now: &'t str) -> (Vec<&'t str>, Vec<&'t str>, usize) {
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for word in was.split_whitespace() {
        let count = balance.entry(word).or_default();
        *count = count.saturating_add(1);
    }
    let (mut new, mut shared) = (Vec::new(), 0usize);
    for word in now.split_whitespace() {
        match balance.get_mut(word) {
            Some(count) if *count > 0 => {
                *count = count.saturating_sub(1);
                shared = shared.saturating_add(1);
            }
            _ => new.push(word),
        }
    }
    let mut gone = Vec::new();
    for word in was.split_whitespace().rev() {
        if let Some(count) = balance.get_mut(word).filter(|count| **count > 0) {
            *count = count.saturating_sub(1);
            gone.push(word);
        }
    }
    gone.reverse();
    (gone, new, shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(name: &str, text: &str) -> Content {
        Content { name: name.into(), text: text.into(), entries: None, strength: Strength::Authenticated }
    }

    #[test]
    fn differences_in_words() {
        let dbx = |entries| Content { entries: Some(entries), ..content("dbx", "") };
        let cases = [
            (dbx(371), dbx(420), "dbx 371 -> 420 entries"),
            (dbx(371), dbx(371), "dbx 371 -> 371 entries, other ones"),
            (content("SecureBoot", "on"), content("SecureBoot", "off"), "SecureBoot on -> off"),
            (content("/vmlinuz-6.1.0-50", ""), content("/vmlinuz-6.1.0-51", ""), "kernel 6.1.0-50 -> 6.1.0-51"),
            (content("/boot/initrd.img-6.1", ""), content("/boot/initrd.img-6.2", ""), "initrd 6.1 -> 6.2"),
            (content("\\EFI\\a.efi", ""), content("\\EFI\\a.efi", ""), "\\EFI\\a.efi has other contents"),
            (
                content("grub_cmd", "linux /k root=a quiet"),
                content("grub_cmd", "linux /k root=a init=/bin/sh"),
                "grub_cmd without quiet, with init=/bin/sh",
            ),
            (content("", "a b"), content("", "a b c"), "with c"),
        ];
        for (was, now, words) in cases {
            assert_eq!(was.difference(&now), words);
        }
    }

    #[test]
    fn likeness_of_one_thing_only() {
        let kernel = content("/vmlinuz-6.1.0-50", "");
        let newer = content("/vmlinuz-6.1.0-51", "");
        assert!(kernel.likeness(&kernel) > kernel.likeness(&newer) && kernel.likeness(&newer).is_some());
        assert_eq!(kernel.likeness(&content("/vmlinuz", "")), kernel.likeness(&newer), "one without a version");
        assert_eq!(kernel.likeness(&content("/initrd-6.1.0-50", "")), None);
        assert_eq!(content("db", "x").likeness(&content("dbx", "x")), None);
        assert_eq!(content("db", "x").likeness(&content("", "x")), None);
        let command = content("grub_cmd", "linux /k root=a quiet");
        let near = command.likeness(&content("grub_cmd", "linux /k root=b quiet"));
        assert!(near > command.likeness(&content("grub_cmd", "set x=1")));
    }

    #[test]
    fn bounded() {
        let event = crate::eventlog::EventLog::parse(include_bytes!(
            "../../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements"
        ));
        let log = event.unwrap();
        let part = vec![b'a'; 1 << 20];
        let action = log.events.iter().find(|event| event.kind == EventType::EFI_ACTION).unwrap();
        let content = Content::of(action, Some(&part)).unwrap();
        assert_eq!(content.text.len(), TEXT + 3);
        assert_eq!(Content::of(action, None), None, "nothing vouches for the text");
    }
}
