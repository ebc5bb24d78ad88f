//! Logs that replay and yet lie: claims that no firmware makes (PFP 3.3.4, 10.4).
//!
//! Types and much data are not measured, so a log can be relabelled without changing a PCR. What is found here would let a reader believe
//! something that the TPM does not vouch for. Each rule was held against recorded logs of real machines, whose firmware breaks the
//! specification in known ways: a rule that a real machine breaks is no rule.

use countersign_tpm::alg::HashAlg;

use super::examine::Registers;
use super::known::{Known, NORMAL, Nature, ONES, known};
use super::measured::{grub_prefix, utf16};
use super::{Event, EventLog, EventType, Format, Guid, PCRS, PcrBank, Variable};
use crate::limits;

/// One false claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lie {
    /// Stable id of the rule.
    pub check: &'static str,
    /// The event.
    pub event: String,
    /// Its index.
    pub index: u32,
    /// What it claims.
    pub got: String,
    /// What a true log has.
    pub want: String,
}

/// Types that firmware and boot loaders measure into PCR 7 (PFP 3.3.4.8; EV_IPL: old versions of shim).
const PCR7: [EventType; 9] = [
    EventType::SEPARATOR,
    EventType::EVENT_TAG,
    EventType::IPL,
    EventType::EFI_ACTION,
    EventType::EFI_VARIABLE_DRIVER_CONFIG,
    EventType::EFI_VARIABLE_AUTHORITY,
    EventType::EFI_VARIABLE_BOOT,
    EventType::EFI_SPDM_DEVICE_POLICY,
    EventType::EFI_SPDM_DEVICE_AUTHORITY,
];

/// The rules, as they stand after the events judged so far.
pub(super) struct Rules<'a> {
    known: &'static Known,
    registers: Registers,
    format: Format,
    /// No event of UEFI's: a conventional BIOS wrote it.
    bios: bool,
    separated: [u8; PCRS],
    /// Whether separators of PCR 0 and of the Secure Boot register are still to come.
    ahead: [usize; 2],
    variables: Vec<(Guid, &'a [u8])>,
    locality: Option<u8>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(log: &EventLog<'_>, alg: HashAlg, registers: Registers) -> Self {
        let (mut ahead, mut bios) = ([0usize; 2], true);
        let places = [0, registers.secure_boot()].map(u32::from);
        for event in &log.events {
            bios &= event.kind.0 < EventType::EFI_EVENT_BASE;
            if event.kind == EventType::SEPARATOR {
                for (count, place) in ahead.iter_mut().zip(places) {
                    *count = count.saturating_add(usize::from(event.pcr == place));
                }
            }
        }
        Self {
            known: known(alg),
            registers,
            format: log.format,
            bios,
            separated: [0; PCRS],
            ahead,
            variables: Vec::with_capacity(16),
            locality: None,
        }
    }

    /// Where PCR 0 began is said before its first extend, and once. A later event that says the same changes nothing and passes.
    pub(super) fn locality(&mut self, event: &Event<'_>, pcr: u8, bank: &PcrBank) -> Result<(), Lie> {
        if pcr != 0 {
            return Ok(());
        }
        if event.kind == EventType::EFI_HCRTM_EVENT && !bank.extended(0) {
            self.locality = Some(4);
        }
        let Some(locality) = event.startup_locality() else { return Ok(()) };
        match self.locality {
            None if !bank.extended(0) => self.locality = Some(locality),
            // A hardware root of trust decides before TPM2_Startup: what comes later is without effect.
            Some(4) => {}
            before if before.unwrap_or(0) == locality => {}
            before => {
                let got = format!("locality {locality} after PCR 0 was begun at {}", before.unwrap_or(0));
                return Err(lie(event, "startup-locality", got, "one locality, before PCR 0 is extended"));
            }
        }
        Ok(())
    }

    /// Judges an event that extends a PCR. `part` is what its digest vouches for.
    pub(super) fn judge(
        &mut self,
        event: &Event<'a>,
        pcr: u8,
        digest: &[u8],
        part: Option<&'a [u8]>,
    ) -> Result<(), Lie> {
        let nature = self.known.find(digest);
        self.separator(event, pcr, (digest, nature), part)?;
        self.relabelled(event, pcr, nature, part)?;
        if pcr == self.registers.secure_boot() {
            self.secure_boot(event, pcr, part)?;
        }
        self.data(event, pcr, part)
    }

    /// Data that is *defined* as what was measured, and that facts are read from, hashes to the digest (PFP 10.4.1). Never asked of executables,
    /// firmware blobs, hand-off tables, tags and other opaque data, whose digests are of something else.
    fn data(&self, event: &Event<'_>, pcr: u8, part: Option<&[u8]>) -> Result<(), Lie> {
        let defined = match event.kind {
            EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY
            | EventType::EFI_ACTION
            | EventType::EFI_GPT_EVENT
            | EventType::NONHOST_INFO => true,
            // Firmware for TPM 1.2 measures what it likes here.
            EventType::S_CRTM_VERSION => pcr == 0 && self.format == Format::CryptoAgile,
            EventType::IPL => grub_prefix(event.data).is_some() || (matches!(pcr, 8 | 12) && parameters(event.data)),
            _ => false,
        };
        if defined && part.is_none() { Err(unmeasured(event)) } else { Ok(()) }
    }

    /// A separator of PCRs 0 to 7 has data 00000000, once per PCR, and its digest stands under no other type.
    fn separator(
        &mut self,
        event: &Event<'_>,
        pcr: u8,
        (digest, nature): (&[u8], Nature),
        part: Option<&[u8]>,
    ) -> Result<(), Lie> {
        let (is_normal, failed) = (nature == Nature::Separator, nature == Nature::Failed);
        let most = self.registers.separators(pcr);
        if event.kind != EventType::SEPARATOR {
            // One real laptop measures an empty S-CRTM as four zero bytes, and separates PCR 0 later.
            let empty_crtm = event.kind == EventType::S_CRTM_CONTENTS && pcr == 0 && self.ahead.first() > Some(&0);
            // PCRs 8 and up hold what operating systems like, four zero bytes too.
            if most > 0 && ((is_normal && !empty_crtm) || failed) {
                return Err(lie(event, "separator", "a separator's digest under another type".into(), "EV_SEPARATOR"));
            }
            return Ok(());
        }
        self.pass(pcr);
        // Those of PCRs 8 and up belong to operating systems, which use other data (Windows: "WBCL").
        if most == 0 {
            return if part.is_some() { Ok(()) } else { Err(unmeasured(event)) };
        }
        // The firmware profiles of TPM 1.2 and of conventional BIOSes have FFFFFFFF beside 00000000 (PC Client Implementation for Conventional
        // BIOS 1.21, 11.3.1). SeaBIOS logs no data with it, and before 1.15 put SHA-1 with zeros behind it into every bank.
        let legacy_ones = (self.format == Format::Sha1 && event.data == ONES && part.is_some())
            || (self.bios && (event.data.is_empty() || event.data == ONES) && self.known.is_ones(digest));
        if (failed || event.data == ONES) && !legacy_ones {
            return Err(lie(event, "separator", "the firmware reports an error".into(), "00000000"));
        }
        if (event.data != NORMAL || !is_normal) && !legacy_ones {
            let got = format!("data {}, digest {}", short(event.data), hex::encode(digest));
            return Err(lie(event, "separator", got, "00000000 and its digest"));
        }
        if let Some(count) = self.separated.get_mut(usize::from(pcr)) {
            *count = count.saturating_add(1);
            if *count > most {
                return Err(lie(event, "separator", "a further separator in this register".into(), "one for each PCR"));
            }
        }
        Ok(())
    }

    /// Counts the separators that are still to come.
    fn pass(&mut self, pcr: u8) {
        let [zero, secure_boot] = &mut self.ahead;
        if pcr == 0 {
            *zero = zero.saturating_sub(1);
        }
        if pcr == self.registers.secure_boot() {
            *secure_boot = secure_boot.saturating_sub(1);
        }
    }

    fn separated(&self, pcr: u8) -> bool {
        self.separated.get(usize::from(pcr)).is_some_and(|count| *count > 0)
    }

    /// What an event is, in spite of what its type says.
    fn relabelled(&self, event: &Event<'_>, pcr: u8, nature: Nature, part: Option<&[u8]>) -> Result<(), Lie> {
        let other = |what: &str, want: &str| Err(lie(event, "relabelled", format!("{what} under another type"), want));
        if self.registers.separators(pcr) == 0 {
            return Ok(());
        }
        if nature == Nature::Action && !matches!(event.kind, EventType::EFI_ACTION | EventType::ACTION) {
            return other("an action", "EV_EFI_ACTION");
        }
        if !event.is_image() && matches!(pcr, 2 | 4) && part.is_none() && looks_like_image(event.data) {
            return other("an executable", "EV_EFI_BOOT_SERVICES_APPLICATION or _DRIVER");
        }
        let gpt =
            matches!(event.kind, EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 | EventType::IPL_PARTITION_DATA);
        if !gpt && event.data.starts_with(b"EFI PART") {
            return other("a partition table", "EV_EFI_GPT_EVENT");
        }
        Ok(())
    }

    /// The Secure Boot register has known types only; a variable of the policy stands once, before the separator, and ends where it says.
    fn secure_boot(&mut self, event: &Event<'a>, pcr: u8, part: Option<&[u8]>) -> Result<(), Lie> {
        let allowed = match self.registers {
            Registers::Tpm => PCR7.contains(&event.kind),
            // RTMR[0] also holds what PCR 1 would.
            Registers::Cc => event.kind.name().is_some(),
        };
        if !allowed {
            return Err(lie(event, "pcr7-type", event.kind.to_string(), "a type that is measured into PCR 7"));
        }
        let [_, ahead] = self.ahead;
        let early = !self.separated(pcr) && ahead > 0;
        if self.registers == Registers::Tpm && early && matches!(event.kind, EventType::IPL | EventType::EVENT_TAG) {
            let got = format!("{} before the separator", event.kind);
            return Err(lie(event, "pcr7-type", got, "the firmware's own types: boot loaders come after it"));
        }
        if event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
            return policy_variable(event, part);
        }
        let variable = Variable::parse(event.data)
            .map_err(|e| lie(event, "secure-boot-variable", e.to_string(), "a complete UEFI_VARIABLE_DATA"))?;
        let name = || variable.name().unwrap_or_else(|| hex::encode(variable.raw_name()));
        let policy = is_policy(variable.raw_name());
        if self.separated(pcr) && (policy || self.registers == Registers::Tpm) {
            return Err(lie(event, "secure-boot-variable", format!("{} after the separator", name()), "before it"));
        }
        let same = |(guid, other): &(Guid, &[u8])| *other == variable.raw_name() && (*guid == variable.guid || policy);
        if self.variables.iter().any(same) {
            return Err(lie(event, "secure-boot-variable", format!("{} a second time", name()), "once"));
        }
        if self.variables.len() >= limits::POLICY_VARIABLES {
            let got = format!("more than {} variables", limits::POLICY_VARIABLES);
            return Err(lie(event, "secure-boot-variable", got, "the few of a Secure Boot policy"));
        }
        self.variables.push((variable.guid, variable.raw_name()));
        if part != Some(event.data) {
            return Err(unmeasured(event));
        }
        Ok(())
    }
}

/// Names of the Secure Boot policy's variables: whoever owns them, a reader could take them for it.
fn is_policy(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 10] = [
        b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0",
        b"S\0e\0t\0u\0p\0M\0o\0d\0e\0",
        b"A\0u\0d\0i\0t\0M\0o\0d\0e\0",
        b"D\0e\0p\0l\0o\0y\0e\0d\0M\0o\0d\0e\0",
        b"P\0K\0",
        b"K\0E\0K\0",
        b"d\0b\0",
        b"d\0b\0x\0",
        b"d\0b\0t\0",
        b"d\0b\0r\0",
    ];
    NAMES.contains(&name)
}

/// A variable of the policy under another type than EV_EFI_VARIABLE_DRIVER_CONFIG. An authority names the database that it was found in, and
/// holds one entry of it: an owner and a certificate or hash, never a list.
fn policy_variable(event: &Event<'_>, part: Option<&[u8]>) -> Result<(), Lie> {
    const LISTS: [Guid; 4] = [Guid::X509_LIST, Guid::SHA256_LIST, Guid::SHA1_LIST, Guid::RSA2048_LIST];
    let authority = matches!(event.kind, EventType::EFI_VARIABLE_AUTHORITY | EventType::EFI_SPDM_DEVICE_AUTHORITY);
    let Ok((variable, tail)) = Variable::parse_with_tail(event.data) else { return Ok(()) };
    let databases: [&[u8]; 3] = [b"d\0b\0", b"d\0b\0x\0", b"d\0b\0t\0"];
    let database = databases.contains(&variable.raw_name());
    let list = LISTS.iter().any(|list| variable.data.starts_with(&list.0)) || variable.data.is_empty();
    let hidden = if authority {
        is_policy(variable.raw_name()) && (!database || list)
    } else {
        is_policy(variable.raw_name()) || (tail == 0 && matches!(event.kind, EventType::IPL | EventType::EVENT_TAG))
    };
    if hidden {
        let name = variable.name().unwrap_or_default();
        return Err(lie(
            event,
            "relabelled",
            format!("variable {name} under another type"),
            "EV_EFI_VARIABLE_DRIVER_CONFIG",
        ));
    }
    if event.kind == EventType::EFI_VARIABLE_AUTHORITY && part.is_none() {
        return Err(unmeasured(event));
    }
    Ok(())
}

/// Kernel parameters in UTF-16, as systemd-boot and systemd-stub log them. What they call the initial RAM disks that they measure beside them
/// has no `=`.
fn parameters(data: &[u8]) -> bool {
    data.chunks_exact(2).any(|pair| pair == [b'=', 0]) && utf16(data).is_some()
}

/// UEFI_IMAGE_LOAD_EVENT with a device path: 32 bytes and exactly as many as it says.
fn looks_like_image(data: &[u8]) -> bool {
    let Some((header, path)) = data.split_at_checked(32) else { return false };
    let length = header.last_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let ends = path.ends_with(&[0x7f, 0xff, 4, 0]);
    ends && length == u64::try_from(path.len()).ok()
}

fn short(data: &[u8]) -> String {
    let shown = data.get(..16).unwrap_or(data);
    format!("{}{}", hex::encode(shown), if shown.len() < data.len() { "..." } else { "" })
}

fn unmeasured(event: &Event<'_>) -> Lie {
    let got = format!("data {} ({} bytes), whose hash is another", short(event.data), event.data.len());
    lie(event, "data", got, "data that hashes to the event's digest")
}

fn lie(event: &Event<'_>, check: &'static str, got: String, want: &str) -> Lie {
    Lie { check, event: event.describe(), index: event.index, got, want: want.to_owned() }
}
