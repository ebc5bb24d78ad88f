//! The transaction that accepts or denies: verdict, host, receipts and answer are recorded together, before anything leaves.

use std::collections::BTreeMap;

use countersign_wire::answer::Answer;
use countersign_wire::cbor;
use countersign_wire::event::HostEvent;
use countersign_wire::id::HostId;
use countersign_wire::receipt::Receipt;
use countersign_wire::record::Record;
use countersign_wire::runlog::RunLog;

use countersign_policy::verdict::Verdict;

use super::{
    Decided, Service, audit, challenge_closed, events, records, releases, runs, unknown_host, void_tokens,
    withdrawn_workload,
};
use crate::appraise::{Baseline, Context, Judged, ReceiptStatus, StoredReceipt, verdict_bytes};
use crate::error::Error;
use crate::keys::random;
use crate::release;
use crate::store::{now_ms, read_host, to_cbor, to_db};

/// Verdicts on evidence that nobody's TPM signed, kept of each host: anybody can cause them.
const UNSIGNED_KEPT: i64 = 100;
/// Stored bytes of evidence that was denied, of each host: hundreds of denials of an honest one.
const DENIED_BYTES: i64 = 256 << 20;

/// How a commit went.
pub(super) enum Committed {
    /// Recorded: the answer.
    Answer(Vec<u8>),
    /// Nothing is recorded: the host policy that accepted this is not in force any more. Evidence and context come back.
    Overtaken(Box<(Vec<u8>, Context)>),
}

impl Service {
    /// Compare-and-swap: records the verdict and, when it allows, the host's new state; stores the answer before it is sent.
    pub(super) async fn commit(
        &self,
        evidence: Vec<u8>,
        hash: [u8; 32],
        context: Context,
        decided: Decided,
        log: Option<RunLog>,
        explanation: Option<Vec<u8>>,
    ) -> Result<Committed, Error> {
        let Decided { judged, candidate } = decided;
        let id = context.host.host;
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        let closed = sqlx::query(
            "UPDATE challenges SET open = 0, snapshot_cbor = x'', evidence_hash = ? WHERE nonce = ? AND open = 1 AND evidence_hash IS NULL",
        )
        .bind(hash.as_slice())
        .bind(context.challenge.nonce.0.as_slice())
        .execute(&mut *transaction)
        .await?;
        if closed.rows_affected() != 1 {
            return Err(challenge_closed());
        }
        let host = read_host(&mut transaction, &id).await?.ok_or_else(|| unknown_host(&id))?;
        if host.snapshot.version != context.host.version {
            return Err(challenge_closed());
        }
        if judged.verdict.allow {
            // What is signed was decided by the policy that is in force when it is recorded.
            let (policy, stale) = self.policy_in_force(context.now_ms)?;
            if policy != context.host_policy || stale != context.stale {
                return Ok(Committed::Overtaken(Box::new((evidence, context))));
            }
            still_decided_so(&mut transaction, &context, &judged).await?;
        }
        let document = verdict_bytes(&judged.verdict);
        let mut answer = Answer {
            version: 1,
            verdict_id: context.verdict_id,
            verdict: document.clone(),
            allow: judged.verdict.allow,
            receipt: None,
            certificate: None,
            release: None,
            explanation,
        };
        if let Some(update) = &judged.update {
            let mut receipts = update.receipts.receipts.clone();
            // Above those that the host showed and the database had lost, too.
            let highest = receipts.iter().map(|stored| stored.receipt.number).max().unwrap_or(0);
            let number = host.next_receipt.max(highest.saturating_add(1));
            let receipt = self.new_receipt(&id, number);
            receipts.push(StoredReceipt {
                receipt: receipt.clone(),
                status: ReceiptStatus::Issued,
                life: update.baseline.life,
            });
            forget_old(&mut receipts, &update.baseline);
            write_receipts(&mut transaction, &id, &context.host.receipts, &receipts).await?;
            let lost = if update.receipts.state_lost { Some(context.epoch) } else { context.host.lost_epoch };
            let swapped = sqlx::query(
                "UPDATE hosts SET baseline_cbor = ?, next_receipt = ?, lost_epoch = ?, attested_ms = ?, version = version + 1 \
                 WHERE host = ? AND version = ?",
            )
            .bind(to_cbor(&update.baseline))
            .bind(to_db(number.saturating_add(1)))
            .bind(lost.map(to_db))
            .bind(now)
            .bind(id.0.as_slice())
            .bind(to_db(context.host.version))
            .execute(&mut *transaction)
            .await?;
            if swapped.rows_affected() != 1 {
                return Err(challenge_closed());
            }
            let ima = match &update.ima {
                Some(state) => sqlx::query("INSERT OR REPLACE INTO ima_states (host, state_cbor) VALUES (?, ?)")
                    .bind(id.0.as_slice())
                    .bind(to_cbor(state)),
                None => sqlx::query("DELETE FROM ima_states WHERE host = ?").bind(id.0.as_slice()),
            };
            ima.execute(&mut *transaction).await?;
            let life = update.baseline.life;
            runs::replay(&mut transaction, &id, life, &log.unwrap_or_else(RunLog::empty)).await?;
            if let Some(basis) = &judged.release {
                let policies = &judged.verdict.basis;
                let policies = (policies.host_policy.as_str(), policies.workload_policy.as_deref());
                runs::released(&mut transaction, &context, basis.run, basis.workload, life, policies).await?;
            }
            if update.receipts.state_lost {
                let detail = format!("{id} epoch {}", context.epoch);
                audit(&mut transaction, "appraisal", "verifier-state-lost", &detail).await?;
            }
            answer.receipt = Some(receipt);
            if let Some(tls_key) = &update.tls_key {
                answer.certificate = Some(crate::tls::host_certificate(&self.keys, &id, tls_key, now)?);
            }
        }
        if let Some(reason) = &judged.suspend {
            let suspended = sqlx::query(
                "UPDATE hosts SET state = 2, state_reason = ?, version = version + 1 WHERE host = ? AND state = 1",
            )
            .bind(reason)
            .bind(id.0.as_slice())
            .execute(&mut *transaction)
            .await?;
            if suspended.rows_affected() > 0 {
                let event = HostEvent::Suspended { reason: reason.clone() };
                events::emit(&mut transaction, Some(&id), &event).await?;
            }
            void_tokens(&mut transaction, &id).await?;
        }
        if let (Some(basis), Some(workload)) = (&judged.release, &context.workload) {
            let least = &workload.least_selection;
            if let Some(update) = &judged.update {
                releases::note(&mut transaction, &judged.verdict, basis, update, &id).await?;
            }
            answer.release = Some(release::sign(&self.keys, &id, basis, least, context.host.run_pcr)?);
        }
        let record = if judged.signed {
            let (context, verdict) = (to_cbor(&context), document.clone());
            records::pack(&cbor::encode(&Record { version: 1, context, evidence, verdict, enrolment: host.enrolment }))?
        } else {
            Vec::new()
        };
        let signed = !record.is_empty();
        let retain = judged.verdict.obligations.retain_evidence_s;
        sqlx::query(
            "INSERT INTO verdicts (id, host, time_ms, purpose, allow, workload, document, record, retain_until_ms) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(context.verdict_id.0.as_slice())
        .bind(id.0.as_slice())
        .bind(context.now_ms)
        .bind(&judged.verdict.purpose)
        .bind(judged.verdict.allow)
        .bind(context.challenge.workload.map(|workload| workload.0.to_vec()))
        .bind(document)
        .bind(record)
        .bind(retain.map(|s| context.now_ms.saturating_add(i64::from(s).saturating_mul(1000))))
        .execute(&mut *transaction)
        .await?;
        if let Some(candidate) = candidate
            && let Err(e) = record_candidate(&mut transaction, &context, &candidate).await
        {
            // A candidate changes no answer, whatever happens to it.
            tracing::error!(error = %e, "the candidate policy's verdict is not recorded");
        }
        if !signed {
            sqlx::query(
                "DELETE FROM verdicts WHERE host = ?1 AND length(record) = 0 AND evidence_deleted_ms IS NULL AND id NOT IN \
                 (SELECT id FROM verdicts WHERE host = ?1 AND length(record) = 0 AND evidence_deleted_ms IS NULL ORDER BY time_ms DESC, id LIMIT ?2)",
            )
            .bind(id.0.as_slice())
            .bind(UNSIGNED_KEPT)
            .execute(&mut *transaction)
            .await?;
        }
        if signed && !judged.verdict.allow {
            records::bound_denied(&mut transaction, &id, now, DENIED_BYTES).await?;
        }
        let answer = cbor::encode(&answer);
        sqlx::query("UPDATE challenges SET answer = ? WHERE nonce = ?")
            .bind(&answer)
            .bind(context.challenge.nonce.0.as_slice())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.decided.notify_one();
        Ok(Committed::Answer(answer))
    }

    fn new_receipt(&self, host: &HostId, number: u64) -> Receipt {
        let random = random();
        let mac = self.keys.receipt_mac(&Receipt::mac_input(host, number, &random));
        Receipt { number, random, mac }
    }
}

/// What the candidate policy would have decided, beside what was.
async fn record_candidate(
    connection: &mut sqlx::SqliteConnection,
    context: &Context,
    candidate: &Verdict,
) -> Result<(), Error> {
    let digest = hex::decode(&candidate.basis.host_policy).map_err(|e| Error::Internal(e.to_string()))?;
    sqlx::query("INSERT INTO candidate_verdicts VALUES (?, ?, ?, ?)")
        .bind(context.verdict_id.0.as_slice())
        .bind(digest)
        .bind(candidate.allow)
        .bind(verdict_bytes(candidate))
        .execute(connection)
        .await?;
    Ok(())
}

/// An operator may have revoked reference values or withdrawn the workload while this was appraised: what leaves after that is as if it was asked
/// after that. The challenge stays open, so the host attests again.
async fn still_decided_so(
    connection: &mut sqlx::SqliteConnection,
    context: &Context,
    judged: &Judged,
) -> Result<(), Error> {
    if let Some(workload) = &context.challenge.workload {
        let kept: Option<i64> = sqlx::query_scalar("SELECT 1 FROM workloads WHERE id = ? AND withdrawn = 0")
            .bind(workload.0.as_slice())
            .fetch_optional(&mut *connection)
            .await?;
        if kept.is_none() {
            return Err(withdrawn_workload(workload));
        }
    }
    let revision: i64 =
        sqlx::query_scalar("SELECT value FROM settings WHERE key = 'reference_revision'").fetch_one(connection).await?;
    if revision != to_db(judged.verdict.basis.reference_revision) {
        return Err(Error::request(
            "conflict",
            "the reference values changed while this was appraised",
            Some("attest again"),
        ));
    }
    Ok(())
}

/// Brings the receipts' rows from what they were to what they are now: of thousands in a long life few change.
async fn write_receipts(
    connection: &mut sqlx::SqliteConnection,
    host: &HostId,
    before: &[StoredReceipt],
    now: &[StoredReceipt],
) -> Result<(), Error> {
    let by_number = |receipts: &[StoredReceipt]| -> BTreeMap<u64, StoredReceipt> {
        receipts.iter().map(|stored| (stored.receipt.number, stored.clone())).collect()
    };
    let (before, now) = (by_number(before), by_number(now));
    for number in before.keys().filter(|number| !now.contains_key(number)) {
        sqlx::query("DELETE FROM receipts WHERE host = ? AND number = ?")
            .bind(host.0.as_slice())
            .bind(to_db(*number))
            .execute(&mut *connection)
            .await?;
    }
    for (number, stored) in now.iter().filter(|(number, stored)| before.get(number) != Some(stored)) {
        sqlx::query("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?)")
            .bind(host.0.as_slice())
            .bind(to_db(*number))
            .bind(to_cbor(stored))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Receipts of earlier lives count only as far as the newest of them goes: a statement after a reset names that one. Of this life the baseline's
/// run log stands for all that it contains.
fn forget_old(receipts: &mut Vec<StoredReceipt>, now: &Baseline) {
    let newest = receipts.iter().filter(|s| s.status == ReceiptStatus::Confirmed).map(|s| s.receipt.number).max();
    receipts.retain(|stored| {
        let in_log = now.run.is_some() && stored.status == ReceiptStatus::Confirmed;
        Some(stored.receipt.number) == newest || (stored.life == now.life && !in_log)
    });
}
