//! Logs that replay and yet lie: claims that no firmware makes (PFP 3.3.4, 10.4).
//!
//! Types and much data are not measured, so a log can be relabelled without changing a PCR. What is found here would let a reader believe
//! something that the TPM does not vouch for.

use countersign_tpm::alg::HashAlg;

use super::facts::Variable;
use super::{Event, EventLog, EventType, NO_PCR};

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

/// Types that firmware and boot loaders measure into PCR 7 (PFP 3.3.4.8).
const PCR7: [EventType; 8] = [
    EventType::NO_ACTION,
    EventType::SEPARATOR,
    EventType::EVENT_TAG,
    EventType::IPL,
    EventType::EFI_ACTION,
    EventType::EFI_VARIABLE_DRIVER_CONFIG,
    EventType::EFI_VARIABLE_AUTHORITY,
    EventType::EFI_VARIABLE_BOOT,
];

const NORMAL: [u8; 4] = [0; 4];
const ERROR: [u8; 4] = [0xff; 4];

impl EventLog<'_> {
    /// The first false claim, judged by the digests of one bank.
    #[must_use]
    pub fn lies(&self, alg: HashAlg) -> Option<Lie> {
        let mut separated = [false; super::PCRS];
        let mut pcr0_extended = false;
        let mut variables = Vec::new();
        for event in &self.events {
            if event.pcr == NO_PCR {
                continue;
            }
            if let Some(locality) = event.startup_locality()
                && pcr0_extended
            {
                return Some(lie(
                    event,
                    "startup-locality",
                    format!("locality {locality} after PCR 0 was extended"),
                    "before",
                ));
            }
            if !event.extends() {
                continue;
            }
            pcr0_extended |= event.pcr == 0;
            if let Some(found) = separator(event, alg, &mut separated) {
                return Some(found);
            }
            if event.pcr == 7
                && let Some(found) = secure_boot(event, &separated, &mut variables)
            {
                return Some(found);
            }
        }
        None
    }
}

fn lie(event: &Event<'_>, check: &'static str, got: String, want: &str) -> Lie {
    Lie { check, event: event.describe(), index: event.index, got, want: want.to_owned() }
}

/// A separator has data 00000000, once per PCR, and its digest stands under no other type.
fn separator(event: &Event<'_>, alg: HashAlg, separated: &mut [bool]) -> Option<Lie> {
    let digest = event.digest(alg)?;
    let is_normal = alg.digest(&[&NORMAL]).as_bytes() == digest;
    let is_error = alg.digest(&[&ERROR]).as_bytes() == digest;
    if event.kind != EventType::SEPARATOR {
        // One real laptop measures an empty S-CRTM as four zero bytes.
        if (is_normal || is_error) && event.kind != EventType::S_CRTM_CONTENTS {
            return Some(lie(event, "separator", "a separator's digest under another type".into(), "EV_SEPARATOR"));
        }
        return None;
    }
    if is_error || event.data == ERROR {
        return Some(lie(event, "separator", "FFFFFFFF: the firmware reports an error".into(), "00000000"));
    }
    // Separators of PCRs 8 and up belong to operating systems, which use other data.
    if event.pcr >= 8 {
        return None;
    }
    if event.data != NORMAL || !is_normal {
        return Some(lie(
            event,
            "separator",
            format!("data {}, digest {}", hex::encode(event.data), hex::encode(digest)),
            "00000000 and its digest",
        ));
    }
    let slot = usize::try_from(event.pcr).ok().and_then(|pcr| separated.get_mut(pcr))?;
    if *slot {
        return Some(lie(event, "separator", "a second separator in this PCR".into(), "one"));
    }
    *slot = true;
    None
}

/// PCR 7 has known types only; a Secure Boot variable stands once, before the separator, and ends where it says.
fn secure_boot(event: &Event<'_>, separated: &[bool], variables: &mut Vec<([u8; 16], String)>) -> Option<Lie> {
    if !PCR7.contains(&event.kind) {
        return Some(lie(event, "pcr7-type", event.kind.to_string(), "a type that is measured into PCR 7"));
    }
    if event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
        return None;
    }
    let variable = match Variable::parse(event.data) {
        Ok(variable) => variable,
        Err(e) => return Some(lie(event, "secure-boot-variable", e.to_string(), "a complete UEFI_VARIABLE_DATA")),
    };
    let name = variable.name().unwrap_or_default();
    if separated.get(7) == Some(&true) {
        return Some(lie(event, "secure-boot-variable", format!("{name} after the separator"), "before it"));
    }
    let key = (variable.guid, name);
    if variables.contains(&key) {
        return Some(lie(event, "secure-boot-variable", format!("{} a second time", key.1), "once"));
    }
    variables.push(key);
    None
}
