//! `verifier policy mutate`: which attacks on a good host would the policies still accept?

use std::collections::BTreeMap;

use countersign_policy::settings::{Settings, learn};
use countersign_policy::{PolicyBundle, bundle_files};
use countersign_wire::artefact;
use countersign_wire::record::{Bundle, Record};
use serde::Serialize;

use super::attacks::ATTACKS;
use super::claims::Claims;
pub use super::claims::NotClaimed;
use super::machine::Machine;
use crate::store::from_cbor;

/// What came of one attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mutation {
    /// Stable name.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub what: &'static str,
    /// `deny`, `allow`, `not-claimed` (accepted, and the policy says that it does not claim to stop it), or `not-applicable`: this evidence has
    /// nothing that the attack could change.
    pub verdict: &'static str,
    /// Ids of the reasons that stopped it.
    pub reasons: Vec<String>,
    /// What the policy says of an attack that it does not claim to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_claimed: Option<NotClaimed>,
}

/// What came of all attacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mutations {
    /// What was attacked.
    pub subject: String,
    /// Every attack.
    pub mutations: Vec<Mutation>,
    /// How many the policies accepted although they claim to stop them.
    pub accepted: usize,
    /// How many they accepted and do not claim to stop.
    pub not_claimed: usize,
    /// How many there was nothing to change for.
    pub not_applicable: usize,
}

/// What is attacked.
#[derive(Debug, Default)]
pub struct Subject {
    /// An evidence bundle of an allowed verdict; none takes the shipped evidence.
    pub evidence: Option<Vec<u8>>,
    /// A host policy's bundle; none takes the shipped one, or the recorded one.
    pub host_policy: Option<Vec<u8>>,
    /// For the shipped policy: leave its settings out, as `verifier init` installs it.
    pub without_settings: bool,
}

/// Applies every attack.
///
/// # Errors
/// The evidence cannot be read, or is not accepted before anything is changed: nothing could be learned from it.
pub fn mutate(subject: &Subject) -> Result<Mutations, String> {
    let mut machine = match &subject.evidence {
        None => Machine::shipped()?,
        Some(file) => {
            let (context, evidence) = record(file)?;
            Machine::recorded(context, &evidence)?
        }
    };
    let mut told = if subject.evidence.is_some() { "recorded evidence" } else { "shipped evidence" }.to_owned();
    match (&subject.host_policy, &subject.evidence) {
        (Some(policy), _) => {
            machine.context.host_policy.clone_from(policy);
            told.push_str(", given policy");
        }
        (None, Some(_)) => told.push_str(", recorded policies"),
        (None, None) if subject.without_settings => told.push_str(", shipped policies without settings"),
        (None, None) => {
            let settings = learn(&machine.input()?);
            machine.context.host_policy = with_settings(&machine.context.host_policy, &settings)?;
            told.push_str(", shipped policies with every check required");
        }
    }
    let good = machine.verdict();
    if !good.allow {
        let reasons: Vec<String> =
            good.reasons.iter().map(|reason| format!("{}: {}", reason.id, reason.message)).collect();
        return Err(format!("the evidence is not accepted as it is ({})", reasons.join("; ")));
    }
    let claims = Claims::of(&machine)?;
    let mutations: Vec<Mutation> = ATTACKS
        .iter()
        .map(|attack| {
            let mut changed = machine.clone();
            let result = |verdict, reasons, not_claimed| Mutation {
                name: attack.name,
                what: attack.what,
                verdict,
                reasons,
                not_claimed,
            };
            if !(attack.apply)(&mut changed) {
                return result("not-applicable", Vec::new(), None);
            }
            let verdict = changed.verdict();
            if verdict.allow {
                let excuse = claims.excuse(attack.name);
                return result(if excuse.is_some() { "not-claimed" } else { "allow" }, Vec::new(), excuse);
            }
            result("deny", verdict.reasons.into_iter().map(|reason| reason.id).collect(), None)
        })
        .collect();
    let count = |verdict| mutations.iter().filter(|mutation| mutation.verdict == verdict).count();
    let not_claimed = count("not-claimed");
    Ok(Mutations {
        accepted: count("allow"),
        not_claimed,
        not_applicable: count("not-applicable"),
        subject: told,
        mutations,
    })
}

/// The settings that the shipped evidence leads to, for `verifier policy settings` without an evidence file.
///
/// # Errors
/// As [`mutate`].
pub fn shipped_settings() -> Result<Settings, String> {
    Ok(learn(&Machine::shipped()?.input()?))
}

/// The input that policies get for the shipped evidence.
///
/// # Errors
/// The evidence is refused.
pub fn shipped_input() -> Result<countersign_policy::input::Input, String> {
    Machine::shipped()?.input()
}

/// Context and evidence of the shipped good host, as a verdict's record holds them.
///
/// # Errors
/// The shipped files cannot be read.
pub fn shipped_evidence() -> Result<(crate::appraise::Context, Vec<u8>), String> {
    let machine = Machine::shipped()?;
    let evidence = machine.evidence();
    Ok((machine.context, evidence))
}

/// The reference values of the shipped evidence, as stored.
///
/// # Errors
/// As [`shipped_input`].
pub fn shipped_reference() -> Result<countersign_policy::input::Reference, String> {
    serde_json::from_slice(&Machine::shipped()?.context.reference).map_err(|e| e.to_string())
}

/// A bundle with these settings in place of its own. Its signature, if it had one, is gone.
///
/// # Errors
/// It is no policy bundle.
pub fn with_settings(bundle: &[u8], settings: &Settings) -> Result<Vec<u8>, String> {
    let mut files: BTreeMap<String, Vec<u8>> = bundle_files(bundle).map_err(|e| e.to_string())?;
    let json = serde_json::to_vec(settings).map_err(|e| e.to_string())?;
    files.insert("countersign/settings/data.json".into(), json);
    files.remove(".signatures.json");
    files.remove(".manifest");
    PolicyBundle::build(files).map_err(|e| e.to_string())
}

fn record(file: &[u8]) -> Result<(crate::appraise::Context, Vec<u8>), String> {
    let bundle: Bundle = artefact::from_file(file).map_err(|e| e.to_string())?;
    let record: Record = countersign_wire::cbor::decode(&bundle.record).map_err(|e| e.to_string())?;
    let context = from_cbor(&record.context).map_err(|e| e.to_string())?;
    crate::check::load_sets(&bundle, &context).map_err(|e| format!("{}: {}, not {}", e.check, e.got, e.want))?;
    Ok((context, record.evidence))
}

/// The input that policies got for a recorded verdict.
///
/// # Errors
/// The evidence is refused.
pub fn recorded_input(file: &[u8]) -> Result<countersign_policy::input::Input, String> {
    let (context, evidence) = record(file)?;
    crate::appraise::policy_input(&evidence, &context).map_err(|reasons| {
        reasons.first().map_or_else(String::new, |reason| format!("{}: {}", reason.id, reason.message))
    })
}

/// The reference values of a recorded verdict.
///
/// # Errors
/// The bundle cannot be read.
pub fn recorded_reference(file: &[u8]) -> Result<countersign_policy::input::Reference, String> {
    serde_json::from_slice(&record(file)?.0.reference).map_err(|e| e.to_string())
}
