//! Re-attestation of a host on which nothing happened since: the whole appraisal but the policies, against the bare signature check.

use std::hint::black_box;

use anyhow::{Context as _, anyhow, bail, ensure};
use countersign_policy::input::Reference as Accepted;
use countersign_policy::shipped_host_policy;
use countersign_tpm::ak;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::{ClockInfo, Quote};
use countersign_tpm::pcr::{PcrSelection, pcr_digest};
use countersign_tpm::public::{Key, Public};
use countersign_tpm::signature::Signature;
use countersign_verifier::appraise::{
    ChallengeRecord, Context, HostSnapshot, ImaContext, NamedSet, appraise, appraise_without_policies,
};
use countersign_verifier::ima::{Reference, remember};
use countersign_wire::cbor;
use countersign_wire::challenge::Bank;
use countersign_wire::enrol::HostState;
use countersign_wire::evidence::{BankValues, Evidence, ImaPart};
use countersign_wire::id::{HostId, Nonce, VerdictId};
use countersign_wire::ima::synthetic;
use countersign_wire::ima::{PCR, frames};
use countersign_wire::statement::{Purpose, Statement, qualifying_data};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use sha2::{Digest as _, Sha256};

use super::ima::set;
use super::measure::in_turn;
use super::quote::Recorded;
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::{GOOD_IMA, GOOD_LOG};

pub(super) const TOPIC: Topic = Topic { rows: &["idle-reattest"], measure };

const ROUNDS: usize = 501;
/// Files of the set, and of the host's list.
const FILES: u32 = 100_000;
const EK: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ek.pub");
const ISSUED_MS: i64 = 1_795_600_000_000;

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let mut host = Host::new()?;
    // The first attestation, of the whole list, leaves the state that later ones go on from.
    let first = appraise(&host.evidence(host.list.clone())?, &host.context);
    let update = first.update.with_context(|| format!("refused: {:?}", first.verdict.reasons))?;
    let state = update.ima.context("no IMA state")?;
    ensure!(state.tally.accepted == u64::from(FILES), "{:?}: not every file is accepted", state.tally);
    host.context.challenge.ima_from = state.entries;
    host.context.host.baseline = Some(update.baseline);
    host.context.ima.as_mut().context("no sets")?.state = Some(state);
    host.clock.clock = host.clock.clock.saturating_add(60_000);
    let evidence = host.evidence(Vec::new())?;
    let later = appraise(&evidence, &host.context);
    ensure!(later.verdict.allow, "refused: {:?}", later.verdict.reasons);
    // What the appraisal's signature check gets.
    let Evidence { quote, signature, .. } = cbor::decode(&evidence)?;
    let fixed = Signature::parse(&signature)?.to_fixed(32).context("no ECDSA signature")?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, host.key.public_key().as_ref().to_vec());
    let medians = in_turn(
        ROUNDS,
        &mut [
            &mut || {
                let made = appraise_without_policies(black_box(&evidence), black_box(&host.context));
                black_box(made.map_err(|check| anyhow!("refused by {check}"))?);
                Ok(())
            },
            &mut || key.verify(black_box(&quote), black_box(&fixed)).map_err(|_| anyhow!("the floor refuses")),
        ],
    )?;
    let [value, floor] = medians.as_slice() else { bail!("two medians") };
    Ok(vec![Row {
        name: "idle-reattest".to_owned(),
        value: value * 1e6,
        unit: "us",
        against: "ring's bare verification of its quote".to_owned(),
        against_value: floor * 1e6,
        goal: Goal::AtMost(1.5),
        samples: ROUNDS,
        note: format!(
            "evidence of {} bytes with the boot log, {FILES} entries seen before, {FILES} digests in the set",
            evidence.len()
        ),
    }])
}

/// A host that booted as recorded, with an AK that is at hand and a longer IMA list.
struct Host {
    key: EcdsaKeyPair,
    context: Context,
    clock: ClockInfo,
    signer: Vec<u8>,
    selection: PcrSelection,
    pcrs: Vec<BankValues>,
    list: Vec<u8>,
}

impl Host {
    fn new() -> anyhow::Result<Self> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(|e| anyhow!(e))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
            .map_err(|e| anyhow!(e))?;
        let ak = public(&key)?;
        let ek = Public::parse_file(EK)?;
        let recorded = Recorded::p256()?;
        let mut pcrs = recorded.values;
        let [bank] = pcrs.as_mut_slice() else { bail!("one bank") };
        let indices: Vec<u8> = bank.pcrs.iter().map(|pcr| pcr.index).collect();
        let list = list()?;
        let ten = bank.pcrs.iter_mut().find(|pcr| pcr.index == PCR);
        ten.context("no PCR 10")?.value = list.pcr(super::ima::zero()).as_bytes().to_vec();
        Ok(Self {
            context: context(&ak, &ek, &indices)?,
            clock: ClockInfo { clock: 100_000, reset_count: 5, restart_count: 0, safe: true },
            signer: ak::qualified_name(&ek.name(), &ak.name()).context("no Name")?.as_bytes().to_vec(),
            selection: PcrSelection::single(HashAlg::Sha256, &indices),
            key,
            pcrs,
            list: list.bytes,
        })
    }

    /// Evidence with a part of the list: from where the challenge asks.
    fn evidence(&self, list: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let statement = cbor::encode(&Statement {
            version: 1,
            purpose: Purpose::Attest,
            labels: Vec::new(),
            receipt: None,
            tls_key: None,
            release: None,
            old_checkpoint: None,
            new_checkpoint: None,
        });
        let digest = |value: &[u8]| Digest::new(HashAlg::Sha256, value).context("no SHA-256 value");
        let values = self.pcrs.iter().flat_map(|bank| &bank.pcrs).map(|pcr| digest(&pcr.value));
        let values: Vec<Digest> = values.collect::<anyhow::Result<_>>()?;
        let challenge = &self.context.challenge;
        let quote = Quote {
            qualified_signer: &self.signer,
            extra_data: &qualifying_data(&challenge.nonce, &statement),
            clock: self.clock,
            firmware_version: 1,
            selection: self.selection.clone(),
            pcr_digest: pcr_digest(HashAlg::Sha256, &values).as_bytes(),
        }
        .to_bytes();
        let signed = self.key.sign(&SystemRandom::new(), &quote).map_err(|e| anyhow!(e))?;
        let (r, s) = signed.as_ref().split_at_checked(32).context("no signature")?;
        Ok(cbor::encode(&Evidence {
            version: 1,
            host: challenge.host,
            nonce: challenge.nonce,
            signature: Signature::Ecdsa { hash: HashAlg::Sha256, r, s }.to_bytes(),
            quote,
            pcrs: self.pcrs.clone(),
            statement,
            event_log: Some(GOOD_LOG.to_vec()),
            ima: Some(ImaPart { from: challenge.ima_from, bytes: list }),
            systemd_log: None,
            run_log: Some(Vec::new()),
            run_from: None,
        }))
    }
}

/// The AK's public area.
fn public(key: &EcdsaKeyPair) -> anyhow::Result<Public> {
    let mut public = ak::template();
    let Key::Ecc { x, y, .. } = &mut public.key else { bail!("the AK is no ECC key") };
    let (left, right) =
        key.public_key().as_ref().get(1..).context("no point")?.split_at_checked(32).context("short")?;
    (*x, *y) = (left.to_vec(), right.to_vec());
    Ok(public)
}

/// The recorded boot_aggregate, then synthetic files.
fn list() -> anyhow::Result<synthetic::Synthetic> {
    let mut entries = frames(GOOD_IMA)?;
    entries.next().context("an empty list")??;
    let mut list = synthetic::Synthetic { bytes: GOOD_IMA.get(..entries.offset()).unwrap_or_default().to_vec() };
    for n in 0..FILES {
        list.push_file(&synthetic::path(n), synthetic::digest(n).as_bytes());
    }
    Ok(list)
}

fn context(ak: &Public, ek: &Public, pcrs: &[u8]) -> anyhow::Result<Context> {
    let host = HostId::of_ek_spki(&ek.spki().context("no EK")?);
    let set = set(FILES)?;
    let named = NamedSet { name: "bench".into(), digest: Sha256::digest(&set).into() };
    remember(Reference::compile([set.as_slice()])?);
    Ok(Context {
        version: 1,
        verdict_id: VerdictId([1; 16]),
        now_ms: ISSUED_MS.saturating_add(1000),
        challenge: ChallengeRecord {
            nonce: Nonce([2; 32]),
            host,
            purpose: Purpose::Attest,
            selection: vec![Bank { alg: HashAlg::Sha256.id(), pcrs: pcrs.to_vec() }],
            ima_from: 0,
            workload: None,
            issued_ms: ISSUED_MS,
            expires_ms: ISSUED_MS.saturating_add(60_000),
        },
        host: HostSnapshot {
            host,
            name: "bench".into(),
            state: HostState::Active,
            simulated: false,
            ek_root: "CN=bench".into(),
            tpm: Vec::new(),
            ak_public: ak.to_bytes(),
            ek_name: ek.name().as_bytes().to_vec(),
            run_pcr: 13,
            baseline: None,
            receipts: Vec::new(),
            lost_epoch: None,
            version: 1,
        },
        workload: None,
        reference: serde_json::to_vec(&accepted()?)?,
        host_policy: shipped_host_policy().to_vec(),
        workload_policy: None,
        allow_simulated: false,
        epoch: 1,
        vouched: Vec::new(),
        ima: Some(ImaContext { sets: vec![named], state: None }),
        released: None,
        evidence_days: None,
        remote: None,
        stale: None,
    })
}

/// Reference values made from the recorded boot.
fn accepted() -> anyhow::Result<Accepted> {
    let values = countersign_verifier::admin::reference_values("bench", GOOD_LOG, &[]).map_err(anyhow::Error::msg)?;
    Ok(Accepted { revision: 1, values })
}
