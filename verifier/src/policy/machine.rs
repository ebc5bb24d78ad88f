//! A machine in software for `verifier policy mutate`: it measures what it is told, quotes it with a key of its own, and is appraised for real.
//!
//! Recorded evidence answers one nonce and cannot be changed. So its logs and facts are taken over, a software AK stands in for the TPM's,
//! and the whole appraisal runs on the result: a mutation changes what the machine does, or what it says.

use std::collections::BTreeMap;

use countersign_policy::input::{Reference, ReferenceValue};
use countersign_policy::verdict::Verdict;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::{ClockInfo, Quote};
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_tpm::public::{Key, Name, Public};
use countersign_tpm::signature::Signature;
use countersign_tpm::{ak, pcr};
use countersign_wire::cbor;
use countersign_wire::challenge::Bank;
use countersign_wire::enrol::HostState;
use countersign_wire::eventlog::{EventLog, PcrBank};
use countersign_wire::evidence::{BankValues, Evidence, ImaPart, PcrValue};
use countersign_wire::id::{HostId, Nonce, PayloadRoot, PolicyDigest, RunId, VerdictId, WorkloadId};
use countersign_wire::refset::{Denied, Origin, ReferenceSet};
use countersign_wire::runlog::RunLog;
use countersign_wire::statement::{Label, Purpose, ReleaseRequest, Statement, qualifying_data};
use countersign_wire::{ima, systemd_log};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use sha2::{Digest as _, Sha256};

use super::log::{OwnLog, ima_entry};
use crate::appraise::{
    Baseline, ChallengeRecord, Context, HostSnapshot, ImaContext, NamedSet, WorkloadRecord, appraise, policy_input,
};
use crate::ima::SavedBank;

const SHIPPED_LOG: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const SHIPPED_IMA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ima_binary");
/// A real boot of the same disk with Secure Boot off.
pub(super) const SHIPPED_OFF: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/binary_bios_measurements");

/// Files that the shipped host measured. Their contents are made up: each holds its own path.
const SHIPPED_FILES: [&str; 4] =
    ["/usr/bin/attest", "/usr/bin/supervisor", "/usr/lib/modules/6.1.0/kernel/drivers/nvme.ko", "/usr/bin/bash"];
/// The contents of a program that the shipped set denies.
pub(super) const DENIED: &[u8] = b"a program with a known fault";

/// The shipped host's reference set: its files at their paths, and a deny-list.
fn shipped_set() -> Vec<u8> {
    let digest = |contents: &[u8]| format!("sha256:{}", HashAlg::Sha256.digest(&[contents]));
    let mut origin = Origin::new("manual", "shipped evidence");
    origin.files = SHIPPED_FILES.iter().map(|path| format!("{} {path}", digest(path.as_bytes()))).collect();
    let deny = vec![Denied { digest: digest(DENIED), reason: "a known fault".into() }];
    let set = ReferenceSet { origins: vec![origin], deny, ..ReferenceSet::default() };
    serde_json::to_vec(&set).unwrap_or_default()
}

/// It compiled and at hand for the appraisal.
fn shipped_sets() -> Result<ImaContext, String> {
    let json = shipped_set();
    let set = NamedSet { name: "shipped".into(), digest: Sha256::digest(&json).into() };
    let context = ImaContext { sets: vec![set], state: None };
    if crate::ima::loaded(&context.reference()).is_none() {
        crate::ima::remember(crate::ima::Reference::compile([json.as_slice()]).map_err(|e| e.to_string())?);
    }
    Ok(context)
}

/// What the machine does, what it says, and what the verifier knows of it. Mutations change it.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// What firmware and boot loaders measured.
    pub(super) log: Option<OwnLog>,
    /// What is sent instead of that log.
    pub(super) told_log: Option<Vec<u8>>,
    /// Send no log at all.
    pub(super) hide_log: bool,
    /// What the kernel measured.
    pub(super) ima: Option<Vec<Vec<u8>>>,
    /// What is sent instead.
    pub(super) told_ima: Option<Vec<u8>>,
    /// Entries before those of `ima`: they came with earlier evidence, and `context.ima` holds what they led to.
    pub(super) ima_from: u64,
    pub(super) systemd_log: Option<Vec<u8>>,
    pub(super) run_log: Option<Vec<u8>>,
    /// PCR values that are sent instead of the quoted ones.
    pub(super) told_pcrs: BTreeMap<u8, u8>,
    pub(super) selection: Vec<(HashAlg, Vec<u8>)>,
    pub(super) clock: ClockInfo,
    pub(super) firmware: u64,
    pub(super) statement: Statement,
    /// Nonce that is quoted instead of the challenge's.
    pub(super) quoted_nonce: Option<Nonce>,
    /// Changes the quote's bytes after everything else; it is signed as it is then.
    pub(super) odd_quote: Option<fn(&mut Vec<u8>)>,
    /// Sign with another key than the enrolled one.
    pub(super) other_key: bool,
    /// What the verifier knows.
    pub(super) context: Context,
}

fn key(number: u8) -> SigningKey {
    // Public by being here: it signs evidence of a machine that does not exist, for verdicts that are thrown away.
    let mut scalar = [0x11; 32];
    scalar[31] = number;
    SigningKey::from_slice(&scalar).unwrap_or_else(|_| key(number.wrapping_add(1)))
}

fn public() -> Public {
    let mut public = ak::template();
    let point = key(1).verifying_key().to_sec1_point(false);
    if let Key::Ecc { x, y, .. } = &mut public.key {
        *x = point.x().map(|c| c.to_vec()).unwrap_or_default();
        *y = point.y().map(|c| c.to_vec()).unwrap_or_default();
    }
    public
}

impl Machine {
    /// The shipped evidence: a recorded boot with Secure Boot, and the IMA list of a host that runs our programs. (The recorded list ends
    /// after its first entry: the entries behind it were made for this.)
    pub(super) fn shipped() -> Result<Self, String> {
        let log = OwnLog::parse(SHIPPED_LOG)?;
        let mut ima = split(SHIPPED_IMA)?;
        let file = |path: &str| ima_entry("sha256", HashAlg::Sha256.digest(&[path.as_bytes()]).as_bytes(), path);
        ima.extend(SHIPPED_FILES.map(file));
        let host = HostId([0x42; 32]);
        let policy = countersign_policy::shipped_workload_policy().to_vec();
        let (payload_root, digest) = (PayloadRoot([0x22; 32]), PolicyDigest::of(&policy));
        let workload = WorkloadId::of(&payload_root, &digest, &[0x33; 16]);
        let name = |what: &str| Label { name: what.to_owned(), value: String::new() };
        let tpm = vec![
            Label { value: "id:4E544300".into(), ..name("manufacturer") },
            Label { value: "NPCT75x".into(), ..name("model") },
        ];
        let values = crate::admin::reference_values("golden", SHIPPED_LOG, &[])?;
        let mut machine = Self::over(
            Context {
                version: 1,
                verdict_id: VerdictId([0; 16]),
                now_ms: 1_764_000_005_000,
                challenge: ChallengeRecord {
                    nonce: Nonce([0x17; 32]),
                    host,
                    purpose: Purpose::Release,
                    selection: vec![Bank { alg: HashAlg::Sha256.id(), pcrs: (0..15).collect() }],
                    ima_from: 0,
                    workload: Some(workload),
                    issued_ms: 1_764_000_000_000,
                    expires_ms: 1_764_000_060_000,
                },
                host: HostSnapshot {
                    host,
                    name: "node".into(),
                    state: HostState::Active,
                    simulated: false,
                    ek_root: "CN=Vendor TPM Root".into(),
                    tpm,
                    ak_public: Vec::new(),
                    ek_name: Vec::new(),
                    run_pcr: 13,
                    baseline: Some(Baseline {
                        reset_count: 3,
                        restart_count: 1,
                        clock_ms: 9_000_000,
                        safe: true,
                        life: 1,
                        run: None,
                    }),
                    receipts: Vec::new(),
                    lost_epoch: None,
                    version: 1,
                },
                workload: Some(WorkloadRecord {
                    id: workload,
                    payload_root,
                    policy_digest: digest,
                    name: "app".into(),
                    least_selection: vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14],
                }),
                reference: reference(values),
                host_policy: countersign_policy::shipped_host_policy().to_vec(),
                workload_policy: Some(policy),
                allow_simulated: false,
                epoch: 1,
                vouched: Vec::new(),
                ima: Some(shipped_sets()?),
                released: Some(Vec::new()),
                evidence_days: None,
                remote: None,
                stale: None,
            },
            ClockInfo { clock: 10_000_000, reset_count: 3, restart_count: 1, safe: true },
            0x0007_0002_0001_0000,
        );
        machine.statement = Statement {
            version: 1,
            purpose: Purpose::Release,
            labels: Vec::new(),
            receipt: None,
            tls_key: None,
            release: Some(ReleaseRequest {
                workload,
                run: RunId([0x55; 16]),
                object_name: [&[0x00, 0x0B][..], &[0x66; 32]].concat(),
                nonce_tpm: vec![0x77; 32],
            }),
            old_checkpoint: None,
            new_checkpoint: None,
        };
        machine.log = Some(log);
        machine.ima = Some(ima);
        Ok(machine)
    }

    /// A recorded verdict's evidence, under a software AK.
    pub(super) fn recorded(context: Context, evidence: &[u8]) -> Result<Self, String> {
        let evidence: Evidence = cbor::decode(evidence).map_err(|e| e.to_string())?;
        let quote = Quote::parse(&evidence.quote).map_err(|e| e.to_string())?;
        let mut machine = Self::over(context, quote.clock, quote.firmware_version);
        machine.selection = quote
            .selection
            .0
            .iter()
            .filter_map(|bank| Some((HashAlg::from_id(bank.alg)?, bank.pcrs().collect())))
            .collect();
        machine.statement = cbor::decode(&evidence.statement).map_err(|e| e.to_string())?;
        machine.log = evidence.event_log.as_deref().map(OwnLog::parse).transpose()?;
        machine.ima = evidence.ima.as_ref().map(|part| split(&part.bytes)).transpose()?;
        machine.ima_from = evidence.ima.as_ref().map_or(0, |part| part.from);
        machine.systemd_log = evidence.systemd_log;
        if evidence.run_from.is_none() {
            machine.run_log = evidence.run_log;
        } else {
            // Only a part is here: this machine has logged nothing yet.
            let host = &mut machine.context.host;
            host.receipts.clear();
            machine.statement.receipt = None;
        }
        if let Some(baseline) = &mut machine.context.host.baseline {
            baseline.run = None;
        }
        Ok(machine)
    }

    fn over(mut context: Context, clock: ClockInfo, firmware: u64) -> Self {
        // The EK's Name goes into the qualified signer only.
        let ek = Name::of(HashAlg::Sha256, &[b"a machine in software"]);
        context.host.ek_name = ek.as_bytes().to_vec();
        context.host.ak_public = public().to_bytes();
        // The embedded engine decides alone: another one said what it said about a host that was not attacked.
        (context.remote, context.stale) = (None, None);
        let purpose = context.challenge.purpose;
        Self {
            log: None,
            told_log: None,
            hide_log: false,
            ima: None,
            told_ima: None,
            ima_from: 0,
            systemd_log: None,
            run_log: None,
            told_pcrs: BTreeMap::new(),
            selection: vec![(HashAlg::Sha256, (0..15).collect())],
            clock,
            firmware,
            statement: Statement {
                version: 1,
                purpose,
                labels: Vec::new(),
                receipt: None,
                tls_key: None,
                release: None,
                old_checkpoint: None,
                new_checkpoint: None,
            },
            quoted_nonce: None,
            odd_quote: None,
            other_key: false,
            context,
        }
    }

    /// What the TPM's bank holds after everything that the machine measured.
    fn bank(&self, alg: HashAlg) -> PcrBank {
        let bytes = self.log.as_ref().map(OwnLog::to_bytes).unwrap_or_default();
        let mut bank = match EventLog::parse(&bytes).ok().map(|log| log.replay(alg)) {
            Some(Ok(bank)) => bank,
            _ => PcrBank::initial(alg),
        };
        let records = self.systemd_log.as_deref().and_then(|bytes| systemd_log::parse(bytes).ok());
        let _ = systemd_log::replay(&records.unwrap_or_default(), &mut bank);
        if self.ima_from > 0 {
            let banks = self.context.ima.iter().filter_map(|ima| ima.state.as_ref()).flat_map(|state| &state.banks);
            let saved = banks.filter(|bank| bank.alg == alg.id()).find_map(SavedBank::digest);
            if let Some(value) = saved {
                bank.set(ima::PCR, value);
            }
        }
        let list = self.ima.as_deref().unwrap_or_default().concat();
        for entry in ima::entries(&list).into_iter().flatten().flatten() {
            bank.extend(ima::PCR, entry.extends(alg).as_bytes());
        }
        let log = self.run_log.as_deref().and_then(|bytes| RunLog::parse(bytes).ok());
        let run_pcr = self.context.host.run_pcr;
        let values = log.zip(bank.value(run_pcr)).and_then(|(log, initial)| log.replay(initial));
        if let Some(value) = values.and_then(|values| values.last().copied()) {
            bank.set(run_pcr, value);
        }
        bank
    }

    /// The evidence, quoted and signed.
    pub(super) fn evidence(&self) -> Vec<u8> {
        let statement = cbor::encode(&self.statement);
        let selection = PcrSelection(self.selection.iter().map(|(alg, pcrs)| BankSelection::new(*alg, pcrs)).collect());
        let mut banks = Vec::new();
        let mut quoted: Vec<Digest> = Vec::new();
        for (alg, pcrs) in &self.selection {
            let bank = self.bank(*alg);
            let mut values = Vec::new();
            for index in pcrs {
                let Some(value) = bank.value(*index) else { continue };
                quoted.push(value);
                let told = self.told_pcrs.get(index).map_or(value, |fill| Digest::filled(*alg, *fill));
                values.push(PcrValue { index: *index, value: told.as_bytes().to_vec() });
            }
            banks.push(BankValues { alg: alg.id(), pcrs: values });
        }
        let digest = pcr::pcr_digest(HashAlg::Sha256, &quoted);
        let nonce = self.quoted_nonce.unwrap_or(self.context.challenge.nonce);
        let extra = qualifying_data(&nonce, &statement);
        let ek = Name::parse(&self.context.host.ek_name).ok();
        let signer = ek.and_then(|ek| ak::qualified_name(&ek, &public().name()));
        let mut quote = Quote {
            qualified_signer: signer.as_ref().map(Name::as_bytes).unwrap_or_default(),
            extra_data: &extra,
            clock: self.clock,
            firmware_version: self.firmware,
            selection,
            pcr_digest: digest.as_bytes(),
        }
        .to_bytes();
        if let Some(odd) = self.odd_quote {
            odd(&mut quote);
        }
        let signed: p256::ecdsa::Signature = key(if self.other_key { 2 } else { 1 }).sign(&quote);
        let (r, s) = signed.split_bytes();
        let signature = Signature::Ecdsa { hash: HashAlg::Sha256, r: &r, s: &s }.to_bytes();
        let ima = self.ima.as_ref().map(|list| list.concat());
        cbor::encode(&Evidence {
            version: 1,
            host: self.context.challenge.host,
            nonce: self.context.challenge.nonce,
            quote,
            signature,
            pcrs: banks,
            statement,
            event_log: if self.hide_log {
                None
            } else {
                self.told_log.clone().or_else(|| self.log.as_ref().map(OwnLog::to_bytes))
            },
            ima: self.told_ima.clone().or(ima).map(|bytes| ImaPart { from: self.ima_from, bytes }),
            systemd_log: self.systemd_log.clone(),
            run_log: self.run_log.clone(),
            run_from: None,
        })
    }

    /// Appraised for real.
    pub(super) fn verdict(&self) -> Verdict {
        appraise(&self.evidence(), &self.context).verdict
    }

    /// The input that policies get.
    pub(super) fn input(&self) -> Result<countersign_policy::input::Input, String> {
        policy_input(&self.evidence(), &self.context).map_err(|reasons| {
            let first = reasons.first();
            first.map_or_else(
                || "the evidence is refused".to_owned(),
                |reason| format!("{}: {}", reason.id, reason.message),
            )
        })
    }
}

/// The reference data's JSON, as the database gives it.
pub(super) fn reference(mut values: Vec<ReferenceValue>) -> Vec<u8> {
    values.sort();
    serde_json::to_vec(&Reference { revision: 1, values }).unwrap_or_default()
}

/// A binary IMA list as one piece per entry.
fn split(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = |at: usize| -> Option<usize> {
            let raw = rest.get(at..at.checked_add(4)?)?;
            usize::try_from(u32::from_le_bytes(raw.try_into().ok()?)).ok()
        };
        // pcr, template hash, length and name of the template, length and template data
        let data_at = length(24).and_then(|name| name.checked_add(28));
        let end = data_at.and_then(|at| length(at)?.checked_add(at)?.checked_add(4));
        let piece = end.and_then(|end| rest.get(..end)).ok_or("the IMA list ends within an entry")?;
        pieces.push(piece.to_vec());
        rest = rest.get(piece.len()..).unwrap_or_default();
    }
    Ok(pieces)
}
