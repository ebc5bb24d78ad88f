//! From challenge to verdict: attestation and release, and the receipt that each accepted one leaves.

use std::time::Duration;

use countersign_tpm::import::Import;
use countersign_tpm::public::Public;
use countersign_wire::answer::{Answer, Release};
use countersign_wire::challenge::{Challenge, ChallengeRequest};
use countersign_wire::id::{RunId, WorkloadId};
use countersign_wire::limits;
use countersign_wire::obligations::Obligations;
use countersign_wire::runlog::Event;
use countersign_wire::statement::{Purpose, ReleaseRequest};

use super::{Attested, Keys, Operation, Released, Step};
use crate::client::Client;
use crate::endorsement::{Ak, Ek};
use crate::error::HostError;
use crate::journal::{Journal, RECEIPT};
use crate::lease::{Accepted, Denied, Leases, Renewal, boot_time};
use crate::unseal::Waiting;
use crate::verdict::Denial;

/// A receipt that comes later than this after the lock was taken is given up (DESIGN.md section 3).
const RECEIPT_PATIENCE: Duration = Duration::from_secs(15);

impl Operation<'_> {
    fn challenge(
        &mut self,
        client: &Client,
        keys: &Keys,
        purpose: Purpose,
        workload: Option<WorkloadId>,
    ) -> Result<Challenge, HostError> {
        let request = ChallengeRequest { version: 1, host: keys.card.host, purpose, workload };
        let challenge: Challenge = client.post("/v1/challenge", &request)?;
        if challenge.purpose != purpose {
            return Err(HostError::unexpected("its challenge is for another purpose"));
        }
        self.host.reached(Step::Challenged)?;
        Ok(challenge)
    }

    pub(super) fn attest(&mut self) -> Result<Attested, HostError> {
        let client = self.host.client(false)?;
        let keys = self.host.keys()?;
        let ek = self.ek(&keys)?;
        let mut journal = self.journal(keys.card.run_pcr)?;
        journal.has_room()?;
        let challenge = self.challenge(&client, &keys, Purpose::Attest, None)?;
        let evidence = self.quoted(&keys, ek, &challenge, None)?;
        let asked = boot_time();
        let answer: Answer = client.post_compressed("/v1/attest", &evidence)?;
        self.host.reached(Step::Answered)?;
        let mut leases = Leases::read(&self.host.state)?;
        if !answer.allow {
            let denial = Box::new(Denial::of(&answer));
            leases.deny(Denied { at: asked, denial: denial.clone() });
            leases.write(&self.host.state)?;
            return Err(HostError::Denied(denial));
        }
        let accepted = accepted(&answer, asked)?;
        let obligations = accepted.terms.clone();
        self.accept(&mut journal, &keys, &answer)?;
        leases.accept(accepted);
        leases.write(&self.host.state)?;
        Ok(Attested { verdict_id: answer.verdict_id, verdict: answer.verdict, obligations })
    }

    /// The outcome that another program had while this one waited for the lock; else an attestation.
    pub(super) fn renew(&mut self, since: Duration) -> Result<Renewal, HostError> {
        if let Some(shared) = Leases::read(&self.host.state)?.shared(since) {
            return Ok(shared);
        }
        match self.attest() {
            Ok(_) | Err(HostError::Denied(_)) => {
                let own = Leases::read(&self.host.state)?.last();
                own.ok_or_else(|| HostError::Corrupt("the leases were changed while they were written".into()))
            }
            Err(e) => Err(e),
        }
    }

    /// Evidence for the challenge; EK and AK are out of the TPM's slots afterwards.
    fn quoted(
        &mut self,
        keys: &Keys,
        ek: Ek,
        challenge: &Challenge,
        release: Option<ReleaseRequest>,
    ) -> Result<Vec<u8>, HostError> {
        let ak = Ak::open(&mut self.tpm, &ek, &keys.ak)?;
        ek.close(&mut self.tpm)?;
        let evidence = self.evidence(keys, &ak, challenge, release)?;
        ak.close(&mut self.tpm)?;
        self.host.reached(Step::Quoted)?;
        Ok(evidence)
    }

    pub(super) fn release(&mut self, workload: WorkloadId, run: RunId) -> Result<Released, HostError> {
        let client = self.host.client(false)?;
        let keys = self.host.keys()?;
        let ek = self.ek(&keys)?;
        let mut journal = self.journal(keys.card.run_pcr)?;
        journal.has_room()?;
        let challenge = self.challenge(&client, &keys, Purpose::Release, Some(workload))?;
        self.expect_sealed(&client, &keys, &challenge, &workload)?;
        let (commands, busy) = (self.tpm.commands(), self.tpm.busy());
        let waiting = self.load_sealed(&ek, &challenge, workload)?;
        self.host.reached(Step::Waiting)?;
        let request = ReleaseRequest {
            workload,
            run,
            object_name: waiting.object_name().to_vec(),
            nonce_tpm: waiting.nonce_tpm().to_vec(),
        };
        let evidence = self.quoted(&keys, ek, &challenge, Some(request))?;
        let asked = boot_time();
        let answer: Answer = client.post_compressed("/v1/release", &evidence)?;
        self.host.reached(Step::Answered)?;
        if !answer.allow {
            waiting.close(&mut self.tpm);
            return Err(HostError::Denied(Box::new(Denial::of(&answer))));
        }
        let Some(release) = &answer.release else {
            return Err(HostError::unexpected("it allows the release and holds none"));
        };
        self.check_keys(release)?;
        let accepted = accepted(&answer, asked)?;
        let obligations = accepted.terms.clone();
        let key = waiting.unseal(&mut self.tpm, release)?;
        let commands = self.tpm.commands().saturating_sub(commands);
        let tpm_time = self.tpm.busy().saturating_sub(busy);
        self.host.reached(Step::Unsealed)?;
        let lease_s = release.lease_s;
        self.accept(&mut journal, &keys, &answer)?;
        let mut leases = Leases::read(&self.host.state)?;
        leases.release(run, workload, accepted);
        leases.write(&self.host.state)?;
        let total = boot_time().saturating_sub(self.started);
        let (verdict_id, verdict) = (answer.verdict_id, answer.verdict);
        Ok(Released { key, verdict_id, verdict, lease_s, obligations, commands, tpm_time, total })
    }

    /// Loads the challenge's sealed object, from what an earlier import of it left in the state folder where there is that.
    fn load_sealed(&mut self, ek: &Ek, challenge: &Challenge, workload: WorkloadId) -> Result<Waiting, HostError> {
        let blob =
            challenge.import.as_ref().ok_or_else(|| HostError::unexpected("its challenge has no sealed object"))?;
        let public = Public::parse(&blob.public).map_err(|e| HostError::unexpected(format!("sealed object: {e}")))?;
        let import = Import { public, duplicate: blob.duplicate.clone(), seed: blob.seed.clone() };
        let file = format!("imports/{workload}");
        let name = import.public.name();
        let cached = self.host.state.read(&file, limits::MESSAGE)?;
        let cached = cached.as_deref().and_then(|file| file.strip_prefix(name.as_bytes()));
        let waiting = Waiting::open(&mut self.tpm, ek, &import, cached)?;
        if cached != Some(waiting.private.as_slice()) {
            self.host.state.write(&file, &[name.as_bytes(), &waiting.private].concat())?;
        }
        Ok(waiting)
    }

    /// The keys of a release are those of the pinned trust bundle.
    fn check_keys(&self, release: &Release) -> Result<(), HostError> {
        let (_, trust) = self.host.trust()?;
        if release.approval_key != trust.approval_key || release.verdict_key != trust.verdict_key {
            return Err(HostError::unexpected("the release is signed with keys that this host has not pinned"));
        }
        Ok(())
    }

    /// Takes an accepted answer in: its receipt goes into the run log, if it came in time.
    fn accept(&mut self, journal: &mut Journal, keys: &Keys, answer: &Answer) -> Result<(), HostError> {
        let state = self.host.state.clone();
        let in_time = boot_time().saturating_sub(self.started) < RECEIPT_PATIENCE;
        let certificate = answer.certificate.as_deref().map(|certificate| ("tls.crt", certificate));
        if let Some(receipt) = answer.receipt.as_ref().filter(|_| in_time) {
            let digests = journal.write(&state, Event::receipt(keys.card.host, receipt))?;
            self.host.reached(Step::Logged)?;
            self.tpm.extend(keys.card.run_pcr, &digests)?;
            self.host.reached(Step::Extended)?;
            let newest = receipt.to_bytes();
            let newest = (RECEIPT, newest.as_slice());
            state.write_all(&std::iter::once(newest).chain(certificate).collect::<Vec<_>>())?;
            return self.host.reached(Step::Noted);
        }
        certificate.map_or(Ok(()), |(name, contents)| state.write(name, contents))
    }
}

/// What an accepted answer leaves for the leases. They begin when it was asked for: the verifier decided no earlier.
fn accepted(answer: &Answer, at: Duration) -> Result<Accepted, HostError> {
    let terms = Obligations::of_verdict(&answer.verdict).map_err(HostError::unexpected)?;
    Ok(Accepted { verdict: answer.verdict_id, at, terms })
}
