//! From the firmware's log to facts.

use countersign_tpm::alg::{Digest, HashAlg};

use super::{
    Authority, BootOption, CommandLine, Events, Fact, Facts, Image, ImageKind, Loader, Log, Measured, Shim, Strength,
    Tagged, databases, image,
};
use crate::eventlog::{Event, EventType, Examined, Guid, Registers, Variable, grub_prefix, plain_text, utf16};

/// Tags of the Linux EFI stub's and systemd's EV_EVENT_TAG events.
const TAG_INITRD: u32 = 0x8F3B_22EC;
const TAG_LOAD_OPTIONS: u32 = 0x8F3B_22ED;
const TAG_LOADER_CONF: u32 = 0xF5BC_582A;
const TAG_DEVICETREE_ADDON: u32 = 0x6C46_F751;

/// What is remembered from event to event.
#[derive(Default)]
struct Walk {
    /// The name of the section whose contents come next (PCR 11), and the index of the event that measured it.
    section: Option<(String, u32)>,
    /// Whether a separator of the Secure Boot register was seen, and where.
    separator: Option<u32>,
    /// Whether PCR 0 was separated.
    separated: bool,
    /// Whether the Secure Boot register holds a policy: else it is the manufacturer's, and silence means nothing.
    policy: bool,
    /// Words about a debugger, and about DMA protection, that nobody defined.
    vague: [bool; 2],
}

pub(super) fn firmware(examined: &Examined<'_, '_>, facts: &mut Facts) {
    let Some(alg) = examined.banks.first().map(|bank| bank.alg()) else { return };
    // A digest is shown in SHA-256 where a bank for it was examined.
    let alg = if examined.banks.iter().any(|bank| bank.alg() == HashAlg::Sha256) { HashAlg::Sha256 } else { alg };
    let uefi = examined.log.is_uefi();
    let mut walk = Walk::default();
    facts.secure_boot = examined.secure_boot_event().map(|(event, on)| Fact::authenticated(on, event));
    for (event, pcr, part) in examined.events() {
        let Some(digest) = event.digest(alg).and_then(|digest| Digest::new(alg, digest)).map(Tagged) else { continue };
        let measured = |name: String| Measured { name, digest };
        // What a type says counts only where firmware measures it: an operating system extends other PCRs as it likes.
        let at = |of| examined.registers.holds(pcr, of);
        if event.is_image() {
            executable(event, at, digest, facts);
            continue;
        }
        match event.kind {
            EventType::EFI_VARIABLE_DRIVER_CONFIG if at(7) => {
                if let Some(variable) = part.and_then(|part| Variable::parse(part).ok()) {
                    walk.policy = true;
                    policy(&variable, digest, event.index, facts);
                }
            }
            EventType::EFI_VARIABLE_AUTHORITY if at(7) => authority(event, part, facts),
            EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2 if at(1) || at(5) => {
                boot_option(event, part, facts);
            }
            EventType::SEPARATOR => {
                walk.separated |= pcr == 0;
                if pcr == examined.registers.secure_boot() {
                    walk.separator = Some(event.index);
                }
            }
            EventType::EFI_ACTION | EventType::ACTION if at(7) => {
                if let Some(part) = part {
                    action(part, event.index, &mut walk, facts);
                }
            }
            // In a TDX guest PCR 0 is MRTD, which no event extends.
            EventType::S_CRTM_VERSION if part.is_some() && (pcr == 0 || at(1)) => {
                let version = part.and_then(version).filter(|version| !version.is_empty());
                if facts.firmware_version.is_none() && !walk.separated {
                    facts.firmware_version = version.map(|version| Fact::authenticated(version, event.index));
                }
            }
            EventType::IPL => ipl(event, examined.registers, (pcr, part), &measured, &mut walk, facts),
            EventType::EVENT_TAG => tag(event, at, &measured, facts),
            EventType::EFI_ACTION => {}
            kind if pcr == 0 => facts.firmware.push(Fact::named(measured(name_of(kind)), event.index)),
            _ => {}
        }
        if uefi && pcr == 4 && part.is_none() && examined.registers == Registers::Tpm {
            // It may be an executable under another type: the list of them must not lack its digest.
            let image = Image { kind: ImageKind::Application, digest, path: None };
            facts.applications.push(Fact::named(image, event.index));
        }
    }
    absent(&walk, examined, facts);
}

fn name_of(kind: EventType) -> String {
    kind.name().map_or_else(|| kind.to_string(), str::to_owned)
}

/// An executable: its digest is what was extended; where it came from is only named.
fn executable(event: &Event<'_>, at: impl Fn(u8) -> bool, digest: Tagged, facts: &mut Facts) {
    let application = event.kind == EventType::EFI_BOOT_SERVICES_APPLICATION;
    let kind = if application { ImageKind::Application } else { ImageKind::Driver };
    let found = || Fact::authenticated(Image { kind, digest, path: image::path(event.data) }, event.index);
    // In a TDX guest one register holds both PCRs, and only the type tells them apart.
    if at(2) && !(application && at(4)) {
        facts.option_roms.push(found());
    } else if at(2) || at(4) {
        facts.applications.push(found());
    } else if event.pcr == 0 {
        facts.firmware.push(Fact::named(Measured { name: name_of(event.kind), digest }, event.index));
    }
}

/// A variable of the Secure Boot policy.
fn policy(variable: &Variable<'_>, digest: Tagged, event: u32, facts: &mut Facts) {
    let known = (variable.guid == Guid::GLOBAL && (variable.is_named("PK") || variable.is_named("KEK")))
        || variable.guid == Guid::SECURITY_DATABASE;
    if !known {
        return;
    }
    let name = variable.name().unwrap_or_default();
    if let Some(database) = databases::database(name, variable.data, digest) {
        facts.databases.push(Fact::authenticated(database, event));
    }
}

/// What let an executable start; shim reports its own state in the same way.
fn authority(event: &Event<'_>, part: Option<&[u8]>, facts: &mut Facts) {
    // shim's surplus bytes stand behind the variable.
    let Some((variable, _)) = part.and_then(|part| Variable::parse_with_tail(part).ok()) else { return };
    let name = variable.name().unwrap_or_default();
    if variable.guid == Guid::SHIM {
        let shim = facts.shim.get_or_insert_default();
        if variable.is_named("SbatLevel") {
            let text = plain_text(variable.data).unwrap_or_default();
            let first = text.lines().next().unwrap_or_default().to_owned();
            shim.sbat_level = Some(Fact::authenticated(first, event.index));
            return;
        }
        if variable.is_named("MokListTrusted") {
            return;
        }
    }
    let found: Authority = databases::authority(&variable, name);
    facts.authorities.push(Fact::authenticated(found, event.index));
}

/// EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): attributes, length of the path list, description. BootOrder and the like are left out.
///
/// Where only the contents were measured, the option's number is not: then it is named.
fn boot_option(event: &Event<'_>, part: Option<&[u8]>, facts: &mut Facts) {
    let (Some(part), Ok(variable)) = (part, Variable::parse(event.data)) else { return };
    let name = variable.name().unwrap_or_default();
    let digits =
        name.strip_prefix("Boot").filter(|rest| rest.len() == 4 && rest.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(description) = digits.and(variable.data.get(6..)) else { return };
    let length = description.chunks_exact(2).take_while(|pair| *pair != [0, 0]).count().saturating_mul(2);
    let Some(mut text) = description.get(..length).and_then(utf16) else { return };
    text.retain(|c| !c.is_control());
    let strength = if part.len() == event.data.len() { Strength::Authenticated } else { Strength::Named };
    let value = BootOption { name, description: text };
    facts.boot_options.push(Fact { value, strength, log: Log::Firmware, events: Events::one(event.index) });
}

/// A debugger and switched-off DMA protection are reported in PCR 7 (PFP 3.3.4.8), by some firmware in words of its own: those are understood
/// where they contain the defined ones. Others about the same thing only show that silence is no answer.
fn action(part: &[u8], event: u32, walk: &mut Walk, facts: &mut Facts) {
    let words = plain_text(part).unwrap_or_default().to_ascii_lowercase();
    let [debug, dma] = &mut walk.vague;
    if words.contains("uefi debug mode") {
        facts.debug_mode = Some(Fact::authenticated(true, event));
    }
    if words.contains("dma protection disabled") {
        facts.dma_protection_disabled = Some(Fact::authenticated(true, event));
    }
    *debug |= words.contains("debug");
    *dma |= words.contains("dma");
}

/// What a version is: text, or a GUID.
pub(super) fn version(part: &[u8]) -> Option<String> {
    let text = utf16(part).filter(|text| text.is_ascii() && !text.chars().any(char::is_control));
    let ascii = || {
        let text = std::str::from_utf8(part.strip_suffix(&[0]).unwrap_or(part)).ok()?;
        (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
    };
    let guid = || Some(Guid(part.try_into().ok()?).to_string());
    text.map(|text| text.trim_end().to_owned()).or_else(ascii).or_else(guid).or_else(|| Some(hex::encode(part)))
}

/// What boot loaders measure.
fn ipl(
    event: &Event<'_>,
    registers: Registers,
    (pcr, part): (u8, Option<&[u8]>),
    measured: &impl Fn(String) -> Measured,
    walk: &mut Walk,
    facts: &mut Facts,
) {
    let index = event.index;
    // GRUB's words stand in PCR 8; in older versions of distributions also in PCR 9.
    if let Some(prefix) = grub_prefix(event.data) {
        if registers.holds(pcr, 8) || registers.holds(pcr, 9) {
            grub(event, part, prefix, facts);
        }
        return;
    }
    match pcr {
        3 if registers == Registers::Cc && event.data.starts_with(b".\0") => {
            section(event, part, measured, walk, facts)
        }
        // The other names of a TDX guest's register 3 do not tell which PCR they would be for.
        _ if registers == Registers::Cc => {}
        11 => section(event, part, measured, walk, facts),
        12 => {
            // A command line, or an addon's: systemd-boot and systemd-stub hash the text as it stands in the log.
            let text = utf16(event.data).unwrap_or_default();
            if part.is_some() && !text.is_empty() {
                let line = CommandLine { by: Loader::SystemdStub, text: text.trim().to_owned() };
                facts.command_lines.push(Fact::authenticated(line, index));
                facts.addons.push(Fact::authenticated(measured(text), index));
            } else {
                facts.addons.push(Fact::named(measured(text), index));
            }
        }
        14 => {
            let name = plain_text(event.data).unwrap_or_default();
            facts.shim.get_or_insert_with(Shim::default).lists.push(Fact::named(measured(name), index));
        }
        8 if part.is_some() => {
            // systemd-boot before version 251 measures the command line into PCR 8.
            if let Some(text) = utf16(event.data).filter(|text| text.contains('=')) {
                let line = CommandLine { by: Loader::SystemdBoot, text: text.trim().to_owned() };
                facts.command_lines.push(Fact::authenticated(line, index));
            }
        }
        9 => facts.files.push(Fact::named(measured(plain_text(event.data).unwrap_or_default()), index)),
        _ => {}
    }
}

/// A command or command line of GRUB's. The text is authenticated, the prefix that says what it is is not.
fn grub(event: &Event<'_>, part: Option<&[u8]>, prefix: usize, facts: &mut Facts) {
    if !facts.loaders.iter().any(|loader| loader.value == Loader::Grub) {
        facts.loaders.push(Fact::named(Loader::Grub, event.index));
    }
    let is_line =
        event.data.get(..prefix).is_some_and(|prefix| prefix.windows(14).any(|word| word == b"kernel_cmdline"));
    if is_line && let Some(text) = part.and_then(plain_text) {
        facts.command_lines.push(Fact::named(CommandLine { by: Loader::Grub, text }, event.index));
    }
}

/// systemd-stub measures each section twice: its name, then its contents (PCR 11).
fn section(
    event: &Event<'_>,
    part: Option<&[u8]>,
    measured: &impl Fn(String) -> Measured,
    walk: &mut Walk,
    facts: &mut Facts,
) {
    let name = utf16(event.data).unwrap_or_default();
    if part.is_some() {
        walk.section = Some((name, event.index));
        return;
    }
    match walk.section.take() {
        Some((before, at)) if before == name => {
            let fact = Fact {
                value: measured(name),
                strength: Strength::Authenticated,
                log: Log::Firmware,
                events: Events::two(at, event.index),
            };
            facts.sections.push(fact);
        }
        _ => facts.sections.push(Fact::named(measured(name), event.index)),
    }
}

/// The Linux EFI stub's and systemd's tags. The digest is of what the tag names, never of the tag.
fn tag(event: &Event<'_>, at: impl Fn(u8) -> bool, measured: &impl Fn(String) -> Measured, facts: &mut Facts) {
    let Some(tag) = event.data.first_chunk::<4>().map(|tag| u32::from_le_bytes(*tag)) else { return };
    let index = event.index;
    match tag {
        TAG_INITRD if at(9) => facts.initrds.push(Fact::named(measured("Linux initrd".into()), index)),
        TAG_LOAD_OPTIONS if at(9) => facts.files.push(Fact::named(measured("LOADED_IMAGE::LoadOptions".into()), index)),
        TAG_LOADER_CONF if at(5) => facts.loaders.push(Fact::named(Loader::SystemdBoot, index)),
        TAG_DEVICETREE_ADDON if at(12) => facts.addons.push(Fact::named(measured("devicetree addon".into()), index)),
        _ => {}
    }
}

/// What was not measured is not so, once the separator shows that the firmware measured what it had to.
fn absent(walk: &Walk, examined: &Examined<'_, '_>, facts: &mut Facts) {
    if let Some(separator) = walk.separator.filter(|_| walk.policy) {
        let [debug, dma] = walk.vague;
        if !debug {
            facts.debug_mode.get_or_insert_with(|| Fact::authenticated(false, separator));
        }
        if !dma {
            facts.dma_protection_disabled.get_or_insert_with(|| Fact::authenticated(false, separator));
        }
    }
    facts.exit_boot_services = match examined.exit_boot_services_event() {
        Some(event) => Some(Fact::authenticated(true, event)),
        None if examined.exit_boot_services() => {
            Some(Fact { value: true, strength: Strength::Authenticated, log: Log::Pcr, events: Events::NONE })
        }
        None => None,
    };
}
