//! A verifier, a TPM vendor, and machines with TPMs of that vendor.

use std::path::Path;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_policy::shipped_workload_policy;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::kdf::hmac;
use countersign_verifier::admin::{self, Request};
use countersign_verifier::error::Error;
use countersign_verifier::service::Service;
use countersign_verifier::store::Store;
use countersign_verifier::{config, keys};
use countersign_wire::answer::Answer;
use countersign_wire::cbor;
use countersign_wire::challenge::{Challenge, ChallengeRequest};
use countersign_wire::enrol::{
    EkCertificate, EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostCard, transcript,
};
use countersign_wire::id::{PayloadRoot, PolicyDigest, RunId, WorkloadId};
use countersign_wire::problem::Problem;
use countersign_wire::runlog::Event;
use countersign_wire::statement::{Purpose, ReleaseRequest};
use countersign_wire::trust::{JoinToken, TrustBundle};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::boot;
use crate::support::case::Case;
use crate::support::tpm::SoftTpm;

/// A vendor of TPMs: a root of its own.
pub(crate) struct Vendor {
    pub(crate) root: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Vendor {
    pub(crate) fn new(name: &str) -> Self {
        let params = || {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            params
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params().self_signed(&key).unwrap().der().to_vec();
        Self { root, issuer: rcgen::Issuer::new(params(), key) }
    }

    pub(crate) fn certify(&self, key: &rcgen::KeyPair) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    pub(crate) fn machine(&self) -> Machine {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = self.certify(&key);
        Machine {
            case: Case::of(SoftTpm::with_ek(&key)),
            ek: key,
            certificate,
            tls: rcgen::KeyPair::generate().unwrap(),
        }
    }
}

/// A host: what its TPM holds, its logs, and how it enrols and attests.
pub(crate) struct Machine {
    pub(crate) case: Case,
    pub(crate) certificate: Vec<u8>,
    ek: rcgen::KeyPair,
    tls: rcgen::KeyPair,
}

impl Machine {
    pub(crate) fn card(&self) -> HostCard {
        HostCard {
            version: 1,
            host: self.case.tpm.host(),
            ek_public: self.case.tpm.ek.to_bytes(),
            ek_certificates: vec![EkCertificate { nv_index: 0x01c0_000a, der: self.certificate.clone() }],
            chain: Vec::new(),
            ak_public: self.case.tpm.ak().to_bytes(),
            run_pcr: self.case.context.host.run_pcr,
        }
    }

    pub(crate) fn request(&self, token: Option<&JoinToken>) -> EnrolRequest {
        EnrolRequest {
            version: 1,
            token: token.map(|token| [token.id.as_slice(), &token.secret].concat()),
            card: self.card(),
            tls_key: self.tls_public(),
            name: "node".into(),
        }
    }

    fn tls_public(&self) -> Vec<u8> {
        use rcgen::PublicKeyData as _;
        self.tls.subject_public_key_info()
    }

    /// The proof that the credential was opened by this TPM.
    pub(crate) fn prove(&self, lab: &Lab, request: &EnrolRequest, challenge: &EnrolChallenge) -> EnrolProof {
        let secret = self.case.tpm.activate(&challenge.credential, &challenge.secret).unwrap();
        let token = request.token.clone().unwrap_or_default();
        let trust = TrustBundle::digest(&lab.service.keys.trust);
        let id = token.get(..16).unwrap_or_default();
        let transcript = transcript(&[&request.card.ek_public], &request.card.ak_public, &request.tls_key, id, &trust);
        let proof = hmac(HashAlg::Sha256, &secret, &[&transcript]).unwrap();
        EnrolProof { version: 1, id: challenge.id, proof: proof.as_bytes().to_vec() }
    }

    pub(crate) fn enrol(&self, lab: &Lab, token: Option<&JoinToken>) -> Result<Enrolled, Error> {
        let request = self.request(token);
        let challenge = lab.run(lab.service.enrol(&request))?;
        lab.run(lab.service.enrol_proof(&self.prove(lab, &request, &challenge)))
    }

    /// TPM2_Clear: another AK, counters and clock from zero; the boot as before.
    pub(crate) fn clear(&mut self) {
        let mut tpm = SoftTpm::with_ek(&self.ek);
        (tpm.clock.clock, tpm.clock.reset_count, tpm.clock.restart_count) = (1, 0, 0);
        self.case = Case::of(tpm);
    }

    /// A TPM Reset into the same system.
    pub(crate) fn reboot(&mut self) {
        let named = self.case.statement.receipt.take();
        let clock = self.case.clock;
        let fresh = boot::bank(HashAlg::Sha256);
        self.case.pcrs = vec![fresh];
        self.case.run_log.clear();
        self.case.clock = clock;
        self.case.clock.reset_count += 1;
        self.case.statement.receipt = named;
    }

    /// A copy of this machine, its disk and its TPM.
    pub(crate) fn copy(&self) -> Self {
        let der = self.tls.serialize_der();
        let key = |der: Vec<u8>| rcgen::KeyPair::try_from(der).unwrap();
        Self {
            case: self.case.clone(),
            certificate: self.certificate.clone(),
            ek: key(self.ek.serialize_der()),
            tls: key(der),
        }
    }

    /// Evidence for a challenge, encoded.
    pub(crate) fn evidence(&mut self, challenge: &Challenge, workload: Option<WorkloadId>) -> Vec<u8> {
        self.case.context.challenge.nonce = challenge.nonce;
        self.case.statement.purpose = challenge.purpose;
        self.case.statement.release = workload.map(|workload| ReleaseRequest {
            workload,
            run: RunId([6; 16]),
            object_name: [&[0x00, 0x0B][..], &[5; 32]].concat(),
            nonce_tpm: vec![7; 32],
        });
        self.case.clock.clock += 1000;
        cbor::encode(&self.case.evidence())
    }

    /// Writes and extends the receipt of an answer.
    pub(crate) fn accept(&mut self, answer: &Answer) {
        let receipt = answer.receipt.clone().unwrap();
        let host = self.case.host();
        self.case.log(&[Event::receipt(host, &receipt)]);
        self.case.statement.receipt = Some(receipt);
    }

    /// One attestation whose answer arrives.
    pub(crate) fn attest(&mut self, lab: &Lab) -> Answer {
        let answer = self.attest_and_lose(lab);
        if answer.allow {
            self.accept(&answer);
        }
        answer
    }

    /// One attestation whose answer does not arrive.
    pub(crate) fn attest_and_lose(&mut self, lab: &Lab) -> Answer {
        let challenge = lab.challenge(self, None).unwrap();
        let evidence = self.evidence(&challenge, None);
        lab.answer(evidence, Purpose::Attest).unwrap()
    }

    pub(crate) fn release(&mut self, lab: &Lab, workload: WorkloadId) -> Answer {
        let challenge = lab.challenge(self, Some(workload)).unwrap();
        let evidence = self.evidence(&challenge, Some(workload));
        lab.answer(evidence, Purpose::Release).unwrap()
    }
}

/// A verifier's state folder, opened.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) service: Service,
    pub(crate) vendor: Vendor,
    runtime: Rc<tokio::runtime::Runtime>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        keys::create(dir.path()).unwrap();
        let text = config::EXAMPLE.replace("https://127.0.0.1:7448", "https://127.0.0.1:0");
        std::fs::write(dir.path().join("verifier.toml"), text).unwrap();
        keys::write_secret(&dir.path().join("operator.token"), b"operator\n").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(Store::open(dir.path(), true)).unwrap();
        let service = runtime.block_on(Service::open(dir.path())).unwrap();
        let lab = Self { dir, service, vendor: Vendor::new("Vendor"), runtime: Rc::new(runtime) };
        lab.trust(&lab.vendor, false).unwrap();
        let eventlog = STANDARD.encode(boot::LOG);
        lab.ask(Request::ReferenceAdd { name: "recorded".into(), eventlog, pcrs: Vec::new() }).unwrap();
        lab
    }

    /// A verifier and an enrolled machine.
    pub(crate) fn enrolled() -> (Self, Machine) {
        let lab = Self::new();
        let machine = lab.vendor.machine();
        let enrolled = machine.enrol(&lab, Some(&lab.token(None))).unwrap();
        assert_eq!(lab.state(), "active");
        assert!(enrolled.certificate.is_some());
        (lab, machine)
    }

    /// Opens the folder again, as a restarted process does.
    pub(crate) fn reopen(&mut self) {
        self.service = self.run(Service::open(self.dir.path())).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// What an operator asks.
    pub(crate) fn ask(&self, request: Request) -> Result<Value, Error> {
        self.run(admin::perform(&self.service, request, "test"))
    }

    pub(crate) fn trust(&self, vendor: &Vendor, development: bool) -> Result<Value, Error> {
        self.ask(Request::EkRootAdd { certificates: vec![STANDARD.encode(&vendor.root)], development })
    }

    pub(crate) fn token(&self, host: Option<&Machine>) -> JoinToken {
        self.token_for(host, 600)
    }

    pub(crate) fn token_for(&self, host: Option<&Machine>, ttl_s: u32) -> JoinToken {
        let host = host.map(|machine| machine.case.host().to_string());
        let answer = self.ask(Request::TokenNew { uses: 1, ttl_s, host }).unwrap();
        let text = answer["token"].as_str().unwrap().strip_prefix(JoinToken::PREFIX).unwrap();
        cbor::decode(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    }

    pub(crate) fn set(&self, machine: &Machine, state: &str) {
        let host = machine.case.host().to_string();
        let request = json!({"op": "host-state", "host": host, "state": state, "reason": "test"});
        self.ask(serde_json::from_value(request).unwrap()).unwrap();
    }

    /// State of the only host.
    pub(crate) fn state(&self) -> String {
        let hosts = self.ask(Request::HostList {}).unwrap();
        assert_eq!(hosts["hosts"].as_array().unwrap().len(), 1);
        hosts["hosts"][0]["state"].as_str().unwrap().to_owned()
    }

    /// Everything that the verifier holds on its hosts, their receipts included.
    pub(crate) fn everything(&self) -> String {
        self.run(async { format!("{:?}", self.service.store.hosts().await.unwrap()) })
    }

    pub(crate) fn verdicts(&self) -> Vec<Value> {
        let answer = self.ask(Request::VerdictList { host: None, limit: 1000 }).unwrap();
        answer["verdicts"].as_array().unwrap().clone()
    }

    pub(crate) fn challenge(&self, machine: &Machine, workload: Option<WorkloadId>) -> Result<Challenge, Error> {
        let purpose = if workload.is_some() { Purpose::Release } else { Purpose::Attest };
        let request = ChallengeRequest { version: 1, host: machine.case.host(), purpose, workload };
        self.run(self.service.challenge(&request))
    }

    pub(crate) fn answer(&self, evidence: Vec<u8>, purpose: Purpose) -> Result<Answer, Error> {
        Ok(cbor::decode(&self.run(self.service.answer(evidence, purpose))?).unwrap())
    }

    /// Registers a workload under the shipped policy.
    pub(crate) fn register(&self, least_selection: Vec<u8>) -> Result<WorkloadId, Error> {
        let policy = shipped_workload_policy();
        let payload_root = PayloadRoot([7; 32]);
        let workload = WorkloadId::of(&payload_root, &PolicyDigest::of(policy), &[9; 16]);
        self.ask(Request::WorkloadRegister {
            name: "app".into(),
            workload,
            payload_root,
            sif_uuid: hex::encode([9; 16]),
            policy: STANDARD.encode(policy),
            volume_key: STANDARD.encode([0x5a; 64]).into(),
            least_selection,
        })?;
        Ok(workload)
    }
}

/// The id of a refused request.
#[track_caller]
pub(crate) fn problem<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Request(Problem { id, .. })) => id,
        other => panic!("{other:?}"),
    }
}

/// The ids of a denial's reasons.
#[track_caller]
pub(crate) fn denied(answer: &Answer) -> Vec<String> {
    assert!(!answer.allow && answer.receipt.is_none() && answer.release.is_none() && answer.certificate.is_none());
    let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
    let reasons = verdict["reasons"].as_array().unwrap();
    reasons.iter().map(|reason| reason["id"].as_str().unwrap().to_owned()).collect()
}
