//! Logs that replay and yet lie: claims that no firmware makes (PFP 3.3.4, 10.4).
//!
//! Types and much data are not measured, so a log can be relabelled without changing a PCR. What is found here would let a reader believe
//! something that the TPM does not vouch for. Each rule was held against recorded logs of real machines, whose firmware breaks the
//! specification in known ways: a rule that a real machine breaks is no rule.

use countersign_tpm::alg::HashAlg;

use super::examine::Registers;
use super::known::{Known, NORMAL, Nature, ONES, known};
use super::measured::grub_prefix;
use super::policy::{is_policy, misplaced, owned, policy_variable};
use super::shape::{is_line, looks_like_image, parameters};
use super::whole::Whole;
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
    whole: Whole<'a>,
    separated: [u8; PCRS],
    variables: Vec<(Guid, &'a [u8])>,
    /// shim's first statement in the Secure Boot register.
    shim: Option<u32>,
    /// Where PCR 0 began, as StartupLocality says.
    locality: Option<u8>,
    /// A hardware root of trust measured first.
    hardware: bool,
    /// The name of the section whose contents come next (PCR 11).
    section: Option<&'a [u8]>,
    /// Whether any section's name was measured, and the first contents without.
    named: bool,
    nameless: Option<Event<'a>>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(log: &EventLog<'a>, alg: HashAlg, registers: Registers) -> Self {
        Self {
            known: known(alg),
            registers,
            format: log.format,
            whole: Whole::of(log, registers),
            separated: [0; PCRS],
            variables: Vec::with_capacity(16),
            shim: None,
            locality: None,
            hardware: false,
            section: None,
            named: false,
            nameless: None,
        }
    }

    /// Where PCR 0 began is said before its first extend: at locality 0, 3 or 4. A later event that says the same changes nothing and passes.
    pub(super) fn locality(&mut self, event: &Event<'_>, pcr: u8, bank: &PcrBank) -> Result<(), Lie> {
        const WANT: &str = "one locality of 0, 3 and 4, in PCR 0, before it is extended";
        let refuse = |got: String| Err(lie(event, "startup-locality", got, WANT));
        let extended = bank.extended(0);
        if event.kind == EventType::EFI_HCRTM_EVENT {
            if pcr != 0 {
                return refuse(format!("a hardware root of trust in PCR {pcr}"));
            }
            if extended && !self.hardware {
                return refuse("a hardware root of trust after PCR 0 was extended".into());
            }
            self.hardware = true;
        }
        let Some(said) = event.about_locality() else { return Ok(()) };
        let &[locality @ (0 | 3 | 4)] = said else { return refuse(format!("locality {}", short(said))) };
        if pcr != 0 {
            return refuse(format!("a locality in PCR {pcr}"));
        }
        match self.locality {
            // A hardware root of trust decides before TPM2_Startup: what comes later is without effect.
            _ if self.hardware => Ok(()),
            None if !extended => {
                self.locality = Some(locality);
                Ok(())
            }
            before if before.unwrap_or(0) == locality => Ok(()),
            before => refuse(format!("locality {locality} after PCR 0 was begun at {}", before.unwrap_or(0))),
        }
    }

    /// The Secure Boot policy is never said in an event that extends nothing.
    pub(super) fn no_action(&self, event: &Event<'_>, pcr: u8) -> Result<(), Lie> {
        match Variable::parse_with_tail(event.data) {
            Ok((variable, _))
                if self.registers.holds(pcr, 7) && (is_policy(variable.raw_name()) || owned(&variable)) =>
            {
                let name = variable.name().unwrap_or_default();
                let got = format!("variable {name} in an event that extends nothing");
                Err(lie(event, "relabelled", got, "EV_EFI_VARIABLE_DRIVER_CONFIG or _AUTHORITY"))
            }
            _ => Ok(()),
        }
    }

    /// What can be said once all events were judged: firmware that hands over has separated its policy from what comes later, and a stub that
    /// measures names measures all of them.
    pub(super) fn end(&self) -> Result<(), Lie> {
        if let Some(contents) = self.nameless.filter(|_| self.named) {
            return Err(unmeasured(&contents));
        }
        let told = self.registers == Registers::Tpm && self.format == Format::CryptoAgile;
        match &self.whole.loader {
            Some(event) if told && !self.variables.is_empty() && !self.separated(7) => {
                let got = "no separator in PCR 7 before it, and none behind it".into();
                Err(lie(event, "separator", got, "one in PCR 7, before the boot loader runs"))
            }
            _ => Ok(()),
        }
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
        if pcr != self.registers.secure_boot() {
            if self.format == Format::CryptoAgile {
                misplaced(event)?;
            }
        } else if self.governed() {
            self.secure_boot(event, pcr, part)?;
        } else {
            policy_variable(event, part)?;
        }
        if event.kind == EventType::IPL && self.registers.holds(pcr, 11) {
            self.section(event, part);
        }
        self.data(event, pcr, part)
    }

    /// Whether PCR 7 holds the Secure Boot policy. To the profiles of TPM 1.2 it is the manufacturer's.
    fn governed(&self) -> bool {
        self.whole.uefi && (self.format == Format::CryptoAgile || self.whole.policy)
    }

    /// systemd-stub measures a section twice, under its name both times: the name, then the contents (PCR 11). Contents alone are a name that
    /// was changed, where other names are measured: there may be stubs that measure none.
    fn section(&mut self, event: &Event<'a>, part: Option<&[u8]>) {
        if !event.data.starts_with(b".\0") {
            return;
        }
        let before = self.section.take();
        if part.is_some() {
            self.named = true;
            self.section = Some(event.data);
        } else if before != Some(event.data) {
            self.nameless.get_or_insert(*event);
        }
    }

    /// Data that is *defined* as what was measured, and that facts are read from, hashes to the digest (PFP 10.4.1). Never asked of executables,
    /// firmware blobs, hand-off tables, tags and other opaque data, whose digests are of something else.
    fn data(&self, event: &Event<'_>, pcr: u8, part: Option<&[u8]>) -> Result<(), Lie> {
        if part.is_some() {
            return Ok(());
        }
        let defined = match event.kind {
            // Firmware for TPM 1.2 measures what it likes here.
            EventType::EFI_VARIABLE_DRIVER_CONFIG => self.format == Format::CryptoAgile,
            EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_AUTHORITY
            | EventType::EFI_ACTION
            | EventType::EFI_GPT_EVENT
            | EventType::NONHOST_INFO => true,
            EventType::IPL => {
                grub_prefix(event.data).is_some()
                    || (self.whole.grub && pcr == 8 && is_line(event.data))
                    || ([8, 12].into_iter().any(|of| self.registers.holds(pcr, of)) && parameters(event.data))
            }
            _ => false,
        };
        if defined { Err(unmeasured(event)) } else { Ok(()) }
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
            let empty_crtm =
                event.kind == EventType::S_CRTM_CONTENTS && pcr == 0 && self.whole.ahead.first() > Some(&0);
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
            || (!self.whole.uefi && (event.data.is_empty() || event.data == ONES) && self.known.is_ones(digest));
        if (failed || event.data == ONES) && !legacy_ones {
            return Err(lie(event, "separator", "the firmware reports an error".into(), "00000000"));
        }
        if (event.data != NORMAL || !is_normal) && !legacy_ones {
            let got = format!("data {}, digest {}", short(event.data), hex::encode(digest));
            return Err(lie(event, "separator", got, "00000000 and its digest"));
        }
        if self.registers == Registers::Tpm && pcr == 7 {
            self.in_time(event)?;
        }
        if let Some(count) = self.separated.get_mut(usize::from(pcr)) {
            *count = count.saturating_add(1);
            if *count > most {
                return Err(lie(event, "separator", "a further separator in this register".into(), "one for each PCR"));
            }
        }
        Ok(())
    }

    /// Some firmware separates PCR 7 late, but never after it started a boot loader.
    fn in_time(&self, event: &Event<'_>) -> Result<(), Lie> {
        let loader = self.whole.loader.map(|event| event.index);
        match [self.shim, loader].into_iter().flatten().find(|index| *index < event.index && self.governed()) {
            Some(index) => {
                let got = format!("a separator behind event {index}, which is a boot loader's");
                Err(lie(event, "separator", got, "one, before the boot loader runs"))
            }
            None => Ok(()),
        }
    }

    /// Counts the separators that are still to come.
    fn pass(&mut self, pcr: u8) {
        let [zero, secure_boot] = &mut self.whole.ahead;
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
        if nature == Nature::Action {
            if !matches!(event.kind, EventType::EFI_ACTION | EventType::ACTION) {
                return other("an action", "EV_EFI_ACTION");
            }
            // EV_ACTION need not hash in general; what is known to be an action's digest has its words beside it.
            if part.is_none() {
                return Err(unmeasured(event));
            }
        }
        let executables = || [0, 2, 4].into_iter().any(|of| self.registers.holds(pcr, of));
        if !event.is_image() && part.is_none() && looks_like_image(event.data) && executables() {
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
            // RTMR[0] also holds what PCR 1 would, and there vendors have types of their own.
            Registers::Cc => true,
        };
        if !allowed {
            return Err(lie(event, "pcr7-type", event.kind.to_string(), "a type that is measured into PCR 7"));
        }
        let [_, ahead] = self.whole.ahead;
        let early = !self.separated(pcr) && ahead > 0;
        if self.registers == Registers::Tpm && early && matches!(event.kind, EventType::IPL | EventType::EVENT_TAG) {
            let got = format!("{} before the separator", event.kind);
            return Err(lie(event, "pcr7-type", got, "the firmware's own types: boot loaders come after it"));
        }
        if event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
            if self.shim.is_none()
                && event.kind == EventType::EFI_VARIABLE_AUTHORITY
                && event.data.starts_with(&Guid::SHIM.0)
            {
                self.shim = Some(event.index);
            }
            return policy_variable(event, part);
        }
        let variable = Variable::parse(event.data)
            .map_err(|e| lie(event, "secure-boot-variable", e.to_string(), "a complete UEFI_VARIABLE_DATA"))?;
        let name = || variable.name().unwrap_or_else(|| hex::encode(variable.raw_name()));
        let policy = is_policy(variable.raw_name());
        // On a real machine it has no byte at all.
        if variable.is_secure_boot() && !matches!(variable.data, [] | [0 | 1]) {
            let got = format!("SecureBoot = {} ({} bytes)", short(variable.data), variable.data.len());
            return Err(lie(event, "secure-boot-variable", got, "one byte: 00 or 01"));
        }
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

pub(super) fn short(data: &[u8]) -> String {
    let shown = data.get(..16).unwrap_or(data);
    format!("{}{}", hex::encode(shown), if shown.len() < data.len() { "..." } else { "" })
}

pub(super) fn unmeasured(event: &Event<'_>) -> Lie {
    let got = format!("data {} ({} bytes), whose hash is another", short(event.data), event.data.len());
    lie(event, "data", got, "data that hashes to the event's digest")
}

pub(super) fn lie(event: &Event<'_>, check: &'static str, got: String, want: &str) -> Lie {
    Lie { check, event: event.describe(), index: event.index, got, want: want.to_owned() }
}
