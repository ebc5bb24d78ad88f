//! The IMA list: replayed to PCR 10, tied to the boot's PCRs, and its files appraised against the reference sets.

use std::sync::Arc;

use countersign_policy::input::{self, ImaAppraisal, ImaFile};
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::eventlog::{EventLog, PcrBank};
use countersign_wire::evidence::ImaPart;
use countersign_wire::ima::{self, BOOT_AGGREGATE, Prefix, boot_aggregates};
use countersign_wire::systemd_log;
use minicbor::{Decode, Encode};

use super::authentic::Authentic;
use super::checks::Failure;
use super::clock::{Continuity, Reading};
use super::replayed::REBOOT;
use super::snapshot::Context;
use crate::ima::{Finding, FindingKind, ImaState, Reference, SavedBank, appraise, identity, loaded};

/// What an IMA list is appraised with: the reference sets by digest, and the state after the host's earlier entries. The sets themselves are
/// loaded once ([`crate::ima::remember`]) and travel beside the record in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ImaContext {
    /// The reference sets, by name.
    #[n(0)]
    pub sets: Vec<NamedSet>,
    /// What the last accepted attestation left; none for a new baseline.
    #[n(1)]
    pub state: Option<ImaState>,
}

/// A reference set.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct NamedSet {
    /// Its name at this verifier.
    #[n(0)]
    pub name: String,
    /// SHA-256 of its JSON document.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub digest: [u8; 32],
}

impl ImaContext {
    /// Identity of the sets; zeros for none.
    #[must_use]
    pub fn reference(&self) -> [u8; 32] {
        if self.sets.is_empty() {
            return [0; 32];
        }
        let digests: Vec<[u8; 32]> = self.sets.iter().map(|set| set.digest).collect();
        identity(&digests)
    }

    /// The state, if an increment may go on from it: its entries were appraised against the same sets.
    #[must_use]
    pub fn resumable(&self) -> Option<&ImaState> {
        self.state.as_ref().filter(|state| state.reference == self.reference())
    }
}

/// A list that replays, with its files appraised.
#[derive(Debug)]
pub(super) struct Measured {
    from: u64,
    state: ImaState,
}

/// The one prefix of the IMA list that leads to PCR 10 in every quoted bank; what lies beyond is not read. Either the whole list, from what the
/// boot log leaves, or the part behind the entries that the last accepted attestation saw, in the same life of the PCRs.
pub(super) fn list(
    authentic: &Authentic,
    context: &Context,
    banks: &mut [PcrBank],
) -> Result<Option<Measured>, Failure> {
    let Some(part) = &authentic.evidence.ima else { return Ok(None) };
    let quoted: Vec<Digest> = banks.iter().filter_map(|bank| authentic.pcr(bank.alg(), ima::PCR)).collect();
    if quoted.is_empty() {
        return Ok(None);
    }
    let reference = reference(context)?;
    let saved = if part.from == 0 { None } else { Some(resume(part, authentic, context)?) };
    let start = match saved {
        Some(state) => quoted.iter().filter_map(|value| saved_value(state, value.alg())).collect(),
        None => banks.iter().filter_map(|bank| bank.value(ima::PCR)).collect::<Vec<Digest>>(),
    };
    if start.len() != quoted.len() {
        return Err(Failure::new("a bank that was not quoted before", "the whole list").about("ima"));
    }
    let mut state = saved.cloned().unwrap_or_default();
    let prefix = appraise(&part.bytes, &start, &quoted, reference.as_deref(), &mut state).map_err(|e| {
        Failure::new(e.to_string(), "a list that leads to the quoted PCR 10").about("ima_log").hint(REBOOT)
    })?;
    if prefix.elsewhere > 0 {
        return Err(Failure::new(
            format!("{} entries that extend another PCR", prefix.elsewhere),
            "entries of PCR 10, which the quote covers",
        )
        .about("ima_log"));
    }
    if part.from == 0 {
        state.boot_aggregate = boot_aggregate(authentic, part, &prefix);
    }
    for bank in banks.iter_mut() {
        if let Some(value) = authentic.pcr(bank.alg(), ima::PCR) {
            bank.set(ima::PCR, value);
        }
    }
    state.reference = context.ima.as_ref().map_or([0; 32], ImaContext::reference);
    state.banks = saved_banks(&state, &quoted, &prefix);
    Ok(Some(Measured { from: part.from, state }))
}

/// The compiled sets; none when there are none. A context whose sets were not loaded fails: nothing is appraised against less.
fn reference(context: &Context) -> Result<Option<Arc<Reference>>, Failure> {
    let Some(ima) = context.ima.as_ref().filter(|ima| !ima.sets.is_empty()) else { return Ok(None) };
    let identity = ima.reference();
    loaded(&identity).map(Some).ok_or_else(|| {
        Failure::new("not at hand", format!("reference sets {}", hex::encode(identity))).about("IMA reference sets")
    })
}

/// The state that a part of a list goes on from.
fn resume<'c>(part: &ImaPart, authentic: &Authentic, context: &'c Context) -> Result<&'c ImaState, Failure> {
    let refuse = |got: String, want: String| Failure::new(got, want).about("ima").hint("attest again");
    let from = format!("entries from {}", part.from);
    if part.from != context.challenge.ima_from {
        return Err(refuse(from, format!("from 0, or from {} as the challenge asks", context.challenge.ima_from)));
    }
    let Some(ima) = &context.ima else { return Err(refuse(from, "from 0: nothing is known of this host".into())) };
    let state = ima.resumable();
    let state = state.ok_or_else(|| refuse(from.clone(), "from 0: the reference sets were changed".into()))?;
    if state.entries != part.from {
        return Err(refuse(from, format!("from 0 or {}", state.entries)));
    }
    let life = context.host.baseline.as_ref().map(|baseline| baseline.life);
    if authentic.continuity != Continuity::Same || life != Some(state.life) {
        return Err(refuse(from, "from 0: the host was restarted since the last accepted attestation".into()));
    }
    Ok(state)
}

fn saved_value(state: &ImaState, alg: HashAlg) -> Option<Digest> {
    state.banks.iter().find(|bank| bank.alg == alg.id()).and_then(SavedBank::digest)
}

fn saved_banks(state: &ImaState, quoted: &[Digest], prefix: &Prefix) -> Vec<SavedBank> {
    let bank = |value: &Digest| {
        let alg = value.alg();
        let before = state.banks.iter().any(|bank| bank.alg == alg.id() && bank.padded);
        let padded = before || prefix.padded.contains(&alg);
        SavedBank { alg: alg.id(), value: value.as_bytes().to_vec(), padded }
    };
    quoted.iter().map(bank).collect()
}

/// Whether entry 0 is the boot_aggregate of PCRs that are authentic: the quoted ones, or those that the firmware's log led to before systemd's
/// userspace log went on (the kernel reads them when it starts). None when its bank, or one of the PCRs, was not quoted.
fn boot_aggregate(authentic: &Authentic, part: &ImaPart, prefix: &Prefix) -> Option<bool> {
    if prefix.entries == 0 {
        return None;
    }
    let first = ima::entries(&part.bytes).ok()?.next()?.ok()?;
    if first.path != BOOT_AGGREGATE || first.is_violation() {
        return Some(false);
    }
    let alg = HashAlg::from_name(std::str::from_utf8(first.digest_alg).ok()?)?;
    let quoted = boot_aggregates(alg, |pcr| authentic.pcr(alg, pcr));
    if quoted.is_empty() {
        return None;
    }
    let firmware = || {
        let records = systemd_log::parse(authentic.evidence.systemd_log.as_deref()?).ok()?;
        records.iter().find(|record| record.pcr < 10)?;
        let bank = EventLog::parse(authentic.evidence.event_log.as_deref()?).ok()?.replay(alg).ok()?;
        Some(boot_aggregates(alg, |pcr| bank.value(pcr)))
    };
    let is = |candidates: &[Digest]| candidates.iter().any(|digest| digest.as_bytes() == first.digest);
    Some(is(&quoted) || firmware().is_some_and(|candidates| is(&candidates)))
}

impl Measured {
    /// What policies see.
    pub(super) fn facts(&self, context: Option<&ImaContext>) -> input::Ima {
        let state = &self.state;
        let files = |kind| state.of(kind).map(file).collect::<Vec<ImaFile>>();
        let tally = &state.tally;
        let sets = context.map_or(&[][..], |context| &context.sets);
        let appraisal = (!sets.is_empty()).then(|| ImaAppraisal {
            reference: hex::encode(state.reference),
            sets: sets.iter().map(|set| set.name.clone()).collect(),
            accepted: tally.accepted,
            excluded: tally.excluded,
            signed: tally.signed,
            keys: tally.keys,
            unknown: tally.unknown,
            denied: tally.denied,
            unknown_files: files(FindingKind::Unknown),
            denied_files: files(FindingKind::Denied),
        });
        input::Ima {
            entries: state.entries,
            from: self.from,
            violations: tally.violations,
            violating_files: files(FindingKind::Violation),
            boot_aggregate: state.boot_aggregate,
            kexecs: tally.kexecs,
            strong: state.banks.iter().any(|bank| bank.alg != HashAlg::Sha1.id() && !bank.padded),
            appraisal,
        }
    }

    /// The state, with its findings.
    pub(super) fn into_state(self) -> ImaState {
        self.state
    }

    /// What the transaction that accepts keeps.
    pub(super) fn state(&self, life: u64, reading: Reading) -> ImaState {
        ImaState { life, boot: (reading.reset_count, reading.restart_count), ..self.state.clone() }
    }
}

fn file(finding: &Finding) -> ImaFile {
    ImaFile {
        entry: finding.entry,
        path: finding.path.clone(),
        digest: finding.digest.clone(),
        reason: finding.reason.clone(),
    }
}
