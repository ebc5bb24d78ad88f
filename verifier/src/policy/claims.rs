//! What a host policy says that it does not claim: `not_claimed` in its package, an object from a check's name to `{why, add}`.

use std::collections::BTreeMap;

use countersign_policy::{PolicyBundle, Role, reference_document};
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// Why a policy does not claim a check, and what adds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotClaimed {
    /// Why.
    pub why: String,
    /// The command or setting that adds it.
    pub add: String,
}

/// Attacks that only an optional check stops, with that check. Every other attack is claimed by every policy.
const OPTIONAL: &[(&str, &str)] = &[
    ("another-host", "host-known"),
    ("another-payload", "workload-known"),
    ("another-vendor", "ek-root"),
    ("attest-replaced", "own-binaries"),
    ("denied-program", "ima-files"),
    ("ima-list-missing", "ima-list"),
    ("ima-of-another-boot", "ima-aggregate"),
    ("ima-reference-of-others", "own-binaries"),
    ("ima-violation", "ima-violations"),
    ("kexec", "ima-kexec"),
    ("many-unknown-programs", "ima-files"),
    ("no-ima-reference", "ima-files"),
    ("old-tpm-firmware", "tpm-firmware"),
    ("program-in-tmp", "ima-files"),
    ("script-in-home", "ima-files"),
    ("simulated-tpm", "hardware-tpm"),
    ("supervisor-replaced", "own-binaries"),
    ("unknown-program", "ima-files"),
    ("unseen-resets", "resets-seen"),
    ("unsigned-module", "ima-files"),
    ("weak-hash", "ima-files"),
];

/// What one policy does not claim.
pub(super) struct Claims(BTreeMap<String, NotClaimed>);

impl Claims {
    /// Asks the machine's host policy. One that has no such rule claims everything.
    pub(super) fn of(machine: &Machine) -> Result<Self, String> {
        let bundle = PolicyBundle::parse(&machine.context.host_policy).map_err(|e| e.to_string())?;
        let reference = serde_json::from_slice(&machine.context.reference).map_err(|e| e.to_string())?;
        let input = serde_json::to_value(machine.input()?).map_err(|e| e.to_string())?;
        let path = format!("data.{}.not_claimed", Role::Host.package());
        let value = countersign_policy::testing::rule(&bundle, &reference_document(&reference), &input, &path)
            .map_err(|e| e.to_string())?;
        let told = value.map_or(Ok(BTreeMap::new()), serde_json::from_value);
        told.map(Self).map_err(|e| format!("{path}: {e}"))
    }

    /// Why the policy need not stop this attack; none when it claims to.
    pub(super) fn excuse(&self, attack: &str) -> Option<NotClaimed> {
        let (_, check) = OPTIONAL.iter().find(|(name, _)| *name == attack)?;
        self.0.get(*check).cloned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_optional_attack_exists() {
        for (name, _) in super::OPTIONAL {
            assert!(super::super::attacks::ATTACKS.iter().any(|attack| attack.name == *name), "{name}");
        }
    }
}
