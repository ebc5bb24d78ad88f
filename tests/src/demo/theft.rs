//! A thief: root on a host that was accepted once. He listens between the host and its TPM during one honest run, keeps what passes by, and
//! plays it back later.

use std::path::Path;

use anyhow::{Context as _, bail};
use countersign_attest::endorsement::{Ek, EndorsementAuth};
use countersign_attest::tpm::{Tpm, TpmError};
use countersign_attest::unseal::{UnsealError, Waiting};
use countersign_attest::{Config, Host, Overrides};
use countersign_tpm::codec::{Malformed, Reader};
use countersign_tpm::ek::Template;
use countersign_tpm::import::Import;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::policy::OFFSET_CLOCK;
use countersign_tpm::public::Public;
use countersign_wire::answer::Release;
use countersign_wire::challenge::Bank;

use crate::tap::MAX;

pub(super) fn load(config: &Path) -> anyhow::Result<Config> {
    Ok(Config::load(Some(config), Overrides::default())?)
}

/// A stolen import blob, and an old approval and verdict.
#[derive(Debug)]
pub(super) struct Loot {
    import: Import,
    release: Release,
}

impl Loot {
    /// What an honest run leaves with a thief who saw its commands.
    pub(super) fn of(seen: &[Vec<u8>]) -> anyhow::Result<Self> {
        let commands: Vec<(u32, &[u8])> = seen.iter().filter_map(|command| parameters(command).ok()).collect();
        let all = |code: u32| commands.iter().filter(move |(seen, _)| *seen == code).map(|(_, bytes)| *bytes);
        let last = |code: u32, name: &str| all(code).next_back().with_context(|| format!("no {name} passed by"));

        let import = Reader::all(last(0x156, "TPM2_Import")?, "TPM2_Import", |r| {
            r.tpm2b(MAX, "encryptionKey")?;
            let (public, duplicate) = (r.tpm2b(MAX, "objectPublic")?, r.tpm2b(MAX, "duplicate")?.to_vec());
            let seed = r.tpm2b(MAX, "inSymSeed")?.to_vec();
            r.u16_be("symmetricAlg")?;
            Ok(Import { public: Public::parse(public)?, duplicate, seed })
        })?;
        // The supervisor loads the approval key first, then the verdict key.
        let keys: Result<Vec<Vec<u8>>, Malformed> = all(0x167)
            .map(|bytes| {
                Reader::all(bytes, "TPM2_LoadExternal", |r| {
                    r.tpm2b(MAX, "inPrivate")?;
                    let public = r.tpm2b(MAX, "inPublic")?.to_vec();
                    r.u32_be("hierarchy")?;
                    Ok(public)
                })
            })
            .collect();
        let keys = keys?;
        let [.., approval_key, verdict_key] = keys.as_slice() else { bail!("no two authority keys passed by") };
        let approval = Reader::all(last(0x177, "TPM2_VerifySignature")?, "TPM2_VerifySignature", |r| {
            r.tpm2b(MAX, "digest")?;
            Ok(r.rest().to_vec())
        })?;
        let (mut counters, mut clock_limit) = (0, 0);
        for bytes in all(0x16D) {
            let (value, offset) = Reader::all(bytes, "TPM2_PolicyCounterTimer", |r| {
                let mut operand = Reader::new(r.tpm2b(8, "operandB")?);
                let value = operand.u64_be("operandB")?;
                let offset = r.u16_be("offset")?;
                r.u16_be("operation")?;
                Ok((value, offset))
            })?;
            let slot = if offset == OFFSET_CLOCK { &mut clock_limit } else { &mut counters };
            *slot = value;
        }
        let (pcr_digest, selection) = Reader::all(last(0x17F, "TPM2_PolicyPCR")?, "TPM2_PolicyPCR", |r| {
            r.u16_be("pcrDigest.size")?;
            Ok((r.array("pcrDigest")?, PcrSelection::read(r)?))
        })?;
        let bank = selection.0.first().context("an empty selection")?;
        let verdict = last(0x160, "TPM2_PolicySigned")?;
        let (policy_ref, expiration, verdict) = Reader::all(verdict, "TPM2_PolicySigned", |r| {
            r.tpm2b(MAX, "nonceTPM")?;
            r.tpm2b(MAX, "cpHashA")?;
            r.u16_be("policyRef.size")?;
            Ok((r.array("policyRef")?, r.u32_be("expiration")?, r.rest().to_vec()))
        })?;
        let (reset_count, restart_count) = (counters >> 32, counters & u64::from(u32::MAX));
        let release = Release {
            approval_key: approval_key.clone(),
            verdict_key: verdict_key.clone(),
            policy_ref,
            selection: Bank { alg: bank.alg, pcrs: bank.pcrs().collect() },
            pcr_digest,
            reset_count: u32::try_from(reset_count)?,
            restart_count: u32::try_from(restart_count)?,
            clock_limit,
            approval,
            expiration,
            verdict,
            lease_s: 0,
        };
        Ok(Self { import, release })
    }

    /// Plays everything back on the host's TPM with a client of the thief's own; the TPM's refusal in words.
    ///
    /// # Errors
    /// The TPM unsealed the key, or refused with another code than `expected`.
    pub(super) fn replay(&self, config: &Path, expected: u32) -> anyhow::Result<String> {
        let config = load(config)?;
        let mut tpm = Tpm::connect(&config.tpm)?;
        tpm.flush_leftovers()?;
        let public = Public::parse(&Host::open(config)?.card()?.ek_public)?;
        let template = Template::of(&public).context("the EK's template")?;
        let ek = Ek::open(&mut tpm, template, Some(&public), &EndorsementAuth::default())?;
        // The blob imports and loads: it was made for this TPM.
        let waiting = Waiting::open(&mut tpm, &ek, &self.import, None)?;
        let outcome = waiting.unseal(&mut tpm, &self.release);
        ek.close(&mut tpm)?;
        match outcome {
            Err(UnsealError::Tpm(e @ TpmError::Refused { code, .. })) if code.0 == expected => Ok(e.to_string()),
            Err(other) => bail!("the TPM refused, with another code than {expected:#x}: {other}"),
            Ok(_) => bail!("the TPM unsealed a key for a thief"),
        }
    }
}

/// Code and parameters of a command, its handles and authorisations left out.
fn parameters(command: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut reader = Reader::new(command);
    let tag = reader.u16_be("tag")?;
    reader.u32_be("size")?;
    let code = reader.u32_be("code")?;
    let handles = match code {
        0x167 => 0,     // LoadExternal
        0x160 => 2 * 4, // PolicySigned
        _ => 4,
    };
    reader.take(handles, "handles")?;
    if tag == 0x8002 {
        let size = reader.u32_be("authorizationSize")?;
        reader.take(usize::try_from(size).unwrap_or(usize::MAX), "authorizations")?;
    }
    Ok((code, reader.rest()))
}
