//! What an appraisal is given beside the evidence, and what a challenge asks for because of it.

use std::collections::HashSet;

use countersign_wire::cbor;
use countersign_wire::challenge::{Bank, RunRead};
use countersign_wire::evidence::Evidence;
use countersign_wire::id::{HostId, VerdictId};
use countersign_wire::receipt::Receipt;
use countersign_wire::statement::Statement;

use super::Service;
use crate::appraise::runlog::Logged;
use crate::appraise::{ChallengeRecord, Context, HostSnapshot, ImaContext};
use crate::error::Error;
use crate::ima::Reference;
use crate::keys::random;
use crate::policy;
use crate::store::read_ima;

impl Service {
    /// All inputs of the appraisal.
    pub(super) async fn context(
        &self,
        challenge: ChallengeRecord,
        host: HostSnapshot,
        evidence: &Evidence,
    ) -> Result<Context, Error> {
        let host_id = host.host;
        let (workload, workload_policy) = match &challenge.workload {
            Some(id) => match self.store.workload(id).await? {
                Some((record, policy, _)) => (Some(record), Some(policy)),
                // One without a policy was withdrawn since the challenge.
                None => (self.store.withdrawn(id).await?, None),
            },
            None => (None, None),
        };
        let now_ms = self.store.now_ms().await?;
        let (host_policy, stale) = self.policy_in_force(now_ms)?;
        let released = match &workload {
            Some(workload) => Some(self.released(&host_id, &workload.id).await?),
            None => None,
        };
        Ok(Context {
            version: 1,
            verdict_id: VerdictId(random()),
            now_ms,
            vouched: self.vouched(&host, evidence),
            challenge,
            host,
            workload,
            workload_policy,
            reference: self.store.reference().await?,
            host_policy,
            allow_simulated: self.config.dangerous_allow_simulated_hosts,
            epoch: self.store.setting("epoch").await?,
            ima: self.ima(&host_id).await?,
            released,
            evidence_days: self.config.evidence_days,
            remote: None,
            stale,
        })
    }

    /// The host policy in force; and why no policy may accept anybody, if so.
    pub(super) fn policy_in_force(&self, now_ms: i64) -> Result<(Vec<u8>, Option<String>), Error> {
        let max_age = self.config.bundle.as_ref().and_then(|bundle| bundle.max_age);
        let in_force = policy::store::active(&self.dir)?;
        let missing = match &in_force {
            Some(_) => None,
            None => policy::store::missing(&self.dir, self.config.bundle.is_some())?,
        };
        let stale = missing.or_else(|| max_age.and_then(|most| policy::poll::stale(&self.dir, most, now_ms)));
        Ok((in_force.unwrap_or_else(|| self.config.host_policy.clone()), stale))
    }

    /// What the IMA list is appraised with. The reference sets are compiled when they are not at hand: once after a start or a change.
    async fn ima(&self, host: &HostId) -> Result<Option<ImaContext>, Error> {
        let mut connection = self.store.pool().acquire().await?;
        let context = read_ima(&mut connection, host).await?;
        drop(connection);
        self.load_sets(context.as_ref()).await?;
        Ok(context)
    }

    /// Compiles the reference sets that a list is appraised with, if they are not at hand.
    pub(crate) async fn load_sets(&self, ima: Option<&ImaContext>) -> Result<(), Error> {
        let Some(ima) = ima.filter(|ima| !ima.sets.is_empty()) else { return Ok(()) };
        if crate::ima::loaded(&ima.reference()).is_none() {
            let documents = self.store.ima_documents(&ima.sets).await?;
            let compiled = tokio::task::spawn_blocking(move || Reference::compile(documents.iter().map(Vec::as_slice)));
            let compiled = compiled.await.map_err(|e| Error::Internal(e.to_string()))?;
            crate::ima::remember(compiled.map_err(|e| Error::Corrupt(e.to_string()))?);
        }
        Ok(())
    }

    /// Receipts that the host shows, the database does not know, and whose MAC is ours.
    fn vouched(&self, host: &HostSnapshot, evidence: &Evidence) -> Vec<Receipt> {
        let mut shown = Logged::read(evidence, host).map(|logged| logged.receipts).unwrap_or_default();
        shown.extend(cbor::decode::<Statement>(&evidence.statement).ok().and_then(|statement| statement.receipt));
        let known: HashSet<[u8; 32]> = host.receipts.iter().map(|known| known.receipt.mac).collect();
        shown.retain(|receipt| {
            let input = Receipt::mac_input(&host.host, receipt.number, &receipt.random);
            !known.contains(&receipt.mac) && self.keys.receipt_is_genuine(&input, &receipt.mac)
        });
        shown.dedup();
        shown
    }
}

/// How far the run log was read, for a host that can go on from there: the same banks are quoted.
pub(super) fn run_read(host: &HostSnapshot, selection: &[Bank]) -> Option<RunRead> {
    let baseline = host.baseline.as_ref()?;
    let run = baseline.run.as_ref()?;
    let all = selection.iter().all(|asked| run.banks.iter().any(|bank| bank.alg == asked.alg));
    let (reset_count, restart_count) = (baseline.reset_count, baseline.restart_count);
    all.then_some(RunRead { entries: run.entries, last: run.last, reset_count, restart_count })
}

/// From which entry on the host's IMA list is wanted, and which boot the entries before it are of.
pub(super) async fn ima_from(
    connection: &mut sqlx::SqliteConnection,
    host: &HostSnapshot,
) -> Result<(u64, Option<(u32, u32)>), Error> {
    let ima = read_ima(connection, &host.host).await?;
    // A new baseline knows nothing of earlier lists.
    let life = host.baseline.as_ref().map(|baseline| baseline.life);
    let state = ima.as_ref().and_then(ImaContext::resumable).filter(|state| Some(state.life) == life);
    Ok(state.map_or((0, None), |state| (state.entries, Some(state.boot))))
}
