//! One appraisal: a context and evidence that is accepted, until a test changes a part of either.

use std::rc::Rc;

use countersign_policy::verdict::Outcome;
use countersign_policy::{shipped_host_policy, shipped_workload_policy};
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::{ClockInfo, Quote};
use countersign_tpm::pcr::{BankSelection, PcrSelection, pcr_digest};
use countersign_verifier::appraise::{
    Baseline, ChallengeRecord, Context, HostSnapshot, Judged, ReceiptStatus, StoredReceipt, WorkloadRecord, appraise,
};
use countersign_wire::cbor;
use countersign_wire::challenge::Bank;
use countersign_wire::enrol::HostState;
use countersign_wire::evidence::{BankValues, Evidence, ImaPart};
use countersign_wire::id::{HostId, Nonce, PayloadRoot, PolicyDigest, RunId, VerdictId, WorkloadId};
use countersign_wire::receipt::Receipt;
use countersign_wire::runlog::{Event, RunLog};
use countersign_wire::statement::{Purpose, ReleaseRequest, Statement, qualifying_data};

use super::boot;
use super::tpm::SoftTpm;

pub(crate) const RUN_PCR: u8 = 13;
const ISSUED_MS: i64 = 1_795_600_000_000;

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) tpm: Rc<SoftTpm>,
    pub(crate) context: Context,
    pub(crate) statement: Statement,
    pub(crate) clock: ClockInfo,
    /// qualifiedSigner.
    pub(crate) signer: Vec<u8>,
    pub(crate) selection: PcrSelection,
    /// What the TPM holds: quoted, and sent along.
    pub(crate) pcrs: Vec<BankValues>,
    pub(crate) event_log: Option<Vec<u8>>,
    pub(crate) ima: Option<Vec<u8>>,
    pub(crate) run_log: Vec<u8>,
}

impl Case {
    /// An attestation that is accepted: the first of a new host.
    pub(crate) fn attest() -> Self {
        Self::of(SoftTpm::new())
    }

    /// The same for the host of this TPM.
    pub(crate) fn of(tpm: SoftTpm) -> Self {
        let host = tpm.host();
        let selection = vec![Bank { alg: HashAlg::Sha256.id(), pcrs: boot::ASKED.collect() }];
        let context = Context {
            version: 1,
            verdict_id: VerdictId([1; 16]),
            now_ms: ISSUED_MS + 1000,
            challenge: ChallengeRecord {
                nonce: Nonce([2; 32]),
                host,
                purpose: Purpose::Attest,
                selection: selection.clone(),
                ima_from: 0,
                workload: None,
                issued_ms: ISSUED_MS,
                expires_ms: ISSUED_MS + 60_000,
            },
            host: HostSnapshot {
                host,
                name: "node-1".into(),
                state: HostState::Active,
                simulated: false,
                ek_root: "CN=Vendor".into(),
                tpm: Vec::new(),
                ak_public: tpm.ak().to_bytes(),
                ek_name: tpm.ek.name().as_bytes().to_vec(),
                run_pcr: RUN_PCR,
                baseline: None,
                receipts: Vec::new(),
                lost_epoch: None,
                version: 1,
            },
            workload: None,
            reference: boot::reference(),
            host_policy: shipped_host_policy().to_vec(),
            workload_policy: None,
            allow_simulated: false,
            epoch: 1,
            vouched: Vec::new(),
            ima: None,
            released: Some(Vec::new()),
            evidence_days: None,
            remote: None,
            stale: None,
        };
        let statement = Statement {
            version: 1,
            purpose: Purpose::Attest,
            labels: Vec::new(),
            receipt: None,
            tls_key: None,
            release: None,
            old_checkpoint: None,
            new_checkpoint: None,
        };
        Self {
            context,
            statement,
            clock: tpm.clock,
            signer: tpm.signer(),
            selection: PcrSelection::single(HashAlg::Sha256, &boot::ASKED.collect::<Vec<_>>()),
            pcrs: vec![boot::bank(HashAlg::Sha256)],
            event_log: Some(boot::LOG.to_vec()),
            ima: Some(boot::IMA.to_vec()),
            run_log: Vec::new(),
            tpm: Rc::new(tpm),
        }
    }

    /// A release that is accepted.
    pub(crate) fn release() -> Self {
        let mut case = Self::attest();
        let policy = shipped_workload_policy();
        let (payload_root, policy_digest) = (PayloadRoot([3; 32]), PolicyDigest::of(policy));
        let id = WorkloadId::of(&payload_root, &policy_digest, &[4; 16]);
        case.context.challenge.purpose = Purpose::Release;
        case.context.challenge.workload = Some(id);
        case.context.workload = Some(WorkloadRecord {
            id,
            payload_root,
            policy_digest,
            name: "app".into(),
            least_selection: vec![0, 2, 4, 7],
        });
        case.context.workload_policy = Some(policy.to_vec());
        case.statement.purpose = Purpose::Release;
        let object_name = [&[0x00, 0x0B][..], &[5; 32]].concat();
        case.statement.release =
            Some(ReleaseRequest { workload: id, run: RunId([6; 16]), object_name, nonce_tpm: vec![7; 32] });
        case
    }

    /// Also asks for, quotes and sends this bank of the recorded TPM.
    pub(crate) fn with_bank(mut self, alg: HashAlg) -> Self {
        self.context.challenge.selection.push(Bank { alg: alg.id(), pcrs: boot::ASKED.collect() });
        self.selection.0.push(BankSelection::new(alg, &boot::ASKED.collect::<Vec<_>>()));
        self.pcrs.push(boot::bank(alg));
        self
    }

    /// A later attestation of a host whose last accepted quote was this one, with receipts as given (life 1).
    pub(crate) fn later(mut self, receipts: &[(u64, ReceiptStatus)]) -> Self {
        let ClockInfo { clock, reset_count, restart_count, safe } = self.clock;
        self.context.host.baseline =
            Some(Baseline { reset_count, restart_count, clock_ms: clock, safe, life: 1, run: None });
        self.context.host.receipts = receipts
            .iter()
            .map(|&(number, status)| StoredReceipt { receipt: receipt(number), status, life: 1 })
            .collect();
        self.clock.clock += 1000;
        self
    }

    /// The TPM was reset and the same system booted.
    pub(crate) fn reset(mut self) -> Self {
        self.clock.reset_count += 1;
        self.clock.restart_count = 0;
        self
    }

    /// Receipts in the run log, extended into the run PCR.
    pub(crate) fn logged(mut self, receipts: &[u64]) -> Self {
        let host = self.host();
        let events = receipts.iter().map(|&number| Event::receipt(host, &receipt(number))).collect::<Vec<_>>();
        self.log(&events);
        self
    }

    /// The statement names this receipt.
    pub(crate) fn named(mut self, number: u64) -> Self {
        self.statement.receipt = Some(receipt(number));
        self
    }

    pub(crate) fn host(&self) -> HostId {
        self.context.host.host
    }

    /// Entries at the end of the run log, extended into the run PCR of every bank.
    pub(crate) fn log(&mut self, events: &[Event]) {
        let banks: Vec<HashAlg> = self.pcrs.iter().map(|bank| HashAlg::from_id(bank.alg).unwrap()).collect();
        for event in events {
            let log = RunLog::parse(&self.run_log).unwrap();
            let (line, digests) = log.next(RUN_PCR, &banks, event.clone()).unwrap();
            self.run_log.extend(line);
            for digest in digests {
                self.extend(RUN_PCR, &digest);
            }
        }
    }

    /// TPM2_PCR_Extend.
    pub(crate) fn extend(&mut self, pcr: u8, digest: &Digest) {
        let alg = digest.alg();
        let bank = self.pcrs.iter_mut().find(|bank| bank.alg == alg.id()).unwrap();
        let value = &mut bank.pcrs.iter_mut().find(|value| value.index == pcr).unwrap().value;
        *value = Digest::new(alg, value).unwrap().extend(digest.as_bytes()).as_bytes().to_vec();
    }

    /// TPMS_ATTEST over this statement.
    pub(crate) fn quote(&self, statement: &[u8]) -> Vec<u8> {
        let values: Vec<Digest> = self
            .pcrs
            .iter()
            .flat_map(|bank| bank.pcrs.iter().map(move |pcr| (bank.alg, &pcr.value)))
            .map(|(alg, value)| Digest::new(HashAlg::from_id(alg).unwrap(), value).unwrap())
            .collect();
        Quote {
            qualified_signer: &self.signer,
            extra_data: &qualifying_data(&self.context.challenge.nonce, statement),
            clock: self.clock,
            firmware_version: 1,
            selection: self.selection.clone(),
            pcr_digest: pcr_digest(HashAlg::Sha256, &values).as_bytes(),
        }
        .to_bytes()
    }

    pub(crate) fn evidence(&self) -> Evidence {
        let statement = cbor::encode(&self.statement);
        let quote = self.quote(&statement);
        Evidence {
            version: 1,
            host: self.host(),
            nonce: self.context.challenge.nonce,
            signature: self.tpm.sign(&quote),
            quote,
            pcrs: self.pcrs.clone(),
            statement,
            event_log: self.event_log.clone(),
            ima: self.ima.clone().map(|bytes| ImaPart { from: 0, bytes }),
            systemd_log: None,
            run_log: Some(self.run_log.clone()),
            run_from: None,
        }
    }

    /// Appraises evidence that was changed after the TPM signed.
    pub(crate) fn appraise(&self, evidence: &Evidence) -> Judged {
        appraise(&cbor::encode(evidence), &self.context)
    }

    /// Appraises what the TPM signed.
    pub(crate) fn judge(&self) -> Judged {
        self.appraise(&self.evidence())
    }

    /// Appraises evidence of which a part was changed after the TPM signed.
    pub(crate) fn tampered(&self, change: impl FnOnce(&mut Evidence)) -> Judged {
        let mut evidence = self.evidence();
        change(&mut evidence);
        self.appraise(&evidence)
    }

    /// Appraises a quote whose bytes were changed before the AK signed them.
    pub(crate) fn resigned(&self, change: impl FnOnce(&mut Vec<u8>)) -> Judged {
        self.tampered(|evidence| {
            change(&mut evidence.quote);
            evidence.signature = self.tpm.sign(&evidence.quote);
        })
    }
}

pub(crate) fn receipt(number: u64) -> Receipt {
    Receipt { number, random: [u8::try_from(number).unwrap(); 16], mac: [8; 32] }
}

/// Why not, for an appraisal that ends at a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct No {
    pub(crate) check: String,
    pub(crate) subject: String,
    pub(crate) got: String,
    pub(crate) want: String,
}

fn no(judged: &Judged) -> No {
    let verdict = &judged.verdict;
    assert!(!verdict.allow, "accepted");
    assert_eq!((judged.update.is_some(), judged.release.is_some()), (false, false), "nothing follows from a no");
    let [reason] = verdict.reasons.as_slice() else { panic!("{:#?}", verdict.reasons) };
    let at = verdict.checks.iter().position(|check| check.id == reason.id).unwrap();
    let Outcome::Fail { got, want, subject, .. } = &verdict.checks[at].outcome else { panic!("{verdict:#?}") };
    assert_eq!((reason.got.as_ref(), reason.want.as_ref()), (Some(got), Some(want)));
    for later in &verdict.checks[at + 1..] {
        let Outcome::NotAppraised { why } = &later.outcome else { panic!("{}: {:?}", later.id, later.outcome) };
        assert_eq!(*why, format!("stopped at {}", reason.id));
    }
    assert_eq!(verdict.checks.len(), countersign_verifier::appraise::ORDER.len());
    let subject = subject.clone().unwrap_or_default();
    No { check: reason.id.clone(), subject, got: got.clone(), want: want.clone() }
}

/// The check that refuses the evidence. The host is not suspended for it.
#[track_caller]
pub(crate) fn refused(judged: &Judged, check: &str, subject: &str) -> No {
    let no = no(judged);
    assert_eq!((no.check.as_str(), no.subject.as_str()), (check, subject), "{no:#?}");
    assert_eq!(judged.suspend, None, "{no:#?}");
    no
}

/// The check by which the host contradicts itself. It is suspended for it.
#[track_caller]
pub(crate) fn suspended(judged: &Judged, check: &str, subject: &str) -> No {
    let no = no(judged);
    assert_eq!((no.check.as_str(), no.subject.as_str()), (check, subject), "{no:#?}");
    assert!(judged.suspend.as_ref().unwrap().starts_with(check), "{no:#?}");
    no
}

/// Accepted, and the host not suspended.
#[track_caller]
pub(crate) fn accepted(judged: &Judged) {
    assert!(judged.verdict.allow, "{:#?}", judged.verdict.reasons);
    assert_eq!(judged.verdict.reasons, []);
    assert_eq!(judged.suspend, None);
    assert!(judged.update.is_some());
}

/// Ids of the reasons of a denial that comes from policy or from a rule of the verifier.
#[track_caller]
pub(crate) fn reasons(judged: &Judged) -> Vec<&str> {
    assert!(!judged.verdict.allow);
    assert_eq!((judged.update.is_some(), judged.release.is_some()), (false, false));
    assert_eq!(judged.suspend, None);
    judged.verdict.reasons.iter().map(|reason| reason.id.as_str()).collect()
}
