//! What the verifier does for hosts: enrol, challenge, attest, release.
//!
//! The appraisal runs outside of the transaction, on the snapshot that was stored with the challenge. The transaction then requires the
//! challenge to be open still and the host to be of the snapshot's version, records the verdict, and stores the answer with its signatures
//! before anything leaves.

mod commit;
mod context;
mod custody;
mod eks;
mod enrolment;
pub(crate) mod events;
mod explain;
mod judge;
pub(crate) mod records;
mod releases;
pub(crate) mod retention;
mod runs;

pub use releases::Release;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_policy::Role;
use countersign_wire::artefact;
use countersign_wire::cbor;
use countersign_wire::challenge::{Bank, Challenge, ChallengeRequest};
use countersign_wire::enrol::HostState;
use countersign_wire::evidence::Evidence;
use countersign_wire::id::{HostId, Nonce, VerdictId, WorkloadId};
use countersign_wire::record::{Bundle, Record, signed_message};
use countersign_wire::statement::Purpose;
use minicbor::bytes::ByteVec;
use sha2::{Digest as _, Sha256};

use crate::appraise::runlog::Logged;
use crate::appraise::{ChallengeRecord, Context};
use crate::config::Config;
use crate::error::Error;
use crate::keys::{Keys, random};
use crate::policy;
use crate::policy::sandbox::Trial;
use crate::store::{Store, from_cbor, now_ms, read_host, state_number, to_cbor};
use commit::Committed;
use context::{ima_from, run_read};
use judge::{Bench, Beside, Decided};

/// Bank that challenges ask for, TPM_ALG_SHA256.
const SHA256: u16 = 0x000B;
/// How often a decision is made again because the host policy was replaced meanwhile.
const POLICY_CHANGES: u32 = 8;

/// A running verifier.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its database.
    pub store: Store,
    /// Its keys.
    pub keys: Arc<Keys>,
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its state folder.
    pub dir: PathBuf,
    /// Where new policies are tried.
    pub trial: Trial,
    /// Told of every verdict.
    pub(crate) decided: Arc<tokio::sync::Notify>,
    /// An Open Policy Agent that decides the host policy too.
    beside: Option<Beside>,
}

impl Service {
    /// Opens a state folder that `verifier init` made.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::MetadataExt as _;
        let bad = |reason: String| Error::State { path: dir.display().to_string(), reason };
        // Whoever may write here may put other keys and another policy in place.
        if std::fs::metadata(dir).is_ok_and(|folder| folder.mode() & 0o002 != 0) {
            return Err(bad("everybody may write it; chmod 700".into()));
        }
        let config = Config::load(dir)?;
        let keys = Keys::load(dir)?;
        let store = Store::open(dir, false).await?;
        let beside = match &config.opa {
            Some(opa) => Some(Beside::open(opa).await?),
            None => None,
        };
        Ok(Self {
            store,
            keys: Arc::new(keys),
            config: Arc::new(config),
            dir: dir.to_owned(),
            trial: Trial::Here,
            decided: Arc::default(),
            beside,
        })
    }

    /// The same, where new policies are tried in a process of their own.
    #[must_use]
    pub fn tried_in(self, trial: Trial) -> Self {
        Self { trial, ..self }
    }

    /// Tries the host policy of verifier.toml, if it is one of the operator's own, before it decides anything.
    ///
    /// # Errors
    /// [`Error::State`] with file, line and reason.
    pub(crate) async fn try_own_policy(&self) -> Result<(), Error> {
        if !self.config.own_host_policy {
            return Ok(());
        }
        let (trial, policy) = (self.trial.clone(), self.config.host_policy.clone());
        let tried = tokio::task::spawn_blocking(move || trial.run(&policy, Role::Host)).await;
        let path = "verifier.toml: host_policy".to_owned();
        tried
            .map_err(|e| Error::Internal(e.to_string()))?
            .map_err(|failure| Error::State { path, reason: failure.to_string() })
    }

    /// `POST /v1/challenge`.
    ///
    /// # Errors
    /// [`Error::Request`] for an unknown, pending or revoked host, or an unknown workload.
    pub async fn challenge(&self, request: &ChallengeRequest) -> Result<Challenge, Error> {
        if request.workload.is_some() != (request.purpose == Purpose::Release) {
            return Err(Error::request("malformed", "a release, and nothing else, names a workload", None));
        }
        let host = self.store.host(&request.host).await?.ok_or_else(|| unknown_host(&request.host))?;
        let hint = format!("verifier host admit {}", request.host);
        match host.snapshot.state {
            HostState::Active | HostState::Suspended => {}
            HostState::Pending => {
                return Err(Error::request("host-pending", "this host was not admitted yet", Some(&hint)));
            }
            HostState::Revoked => return Err(Error::request("host-revoked", "this host was revoked", None)),
        }
        let import = match request.workload {
            Some(workload) => Some(self.import(&host, &workload).await?),
            None => None,
        };
        let nonce = Nonce(random());
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        let run_pcr = host.snapshot.run_pcr;
        let selection = vec![Bank { alg: SHA256, pcrs: (0..15).chain((run_pcr == 15).then_some(15)).collect() }];
        // A fresh look within the transaction: the snapshot is what the challenge is issued on.
        let host = read_host(&mut transaction, &request.host).await?.ok_or_else(|| unknown_host(&request.host))?;
        let (ima_from, ima_boot) = ima_from(&mut transaction, &host.snapshot).await?;
        let run = run_read(&host.snapshot, &selection);
        let record = ChallengeRecord {
            nonce,
            host: request.host,
            purpose: request.purpose,
            selection: selection.clone(),
            ima_from,
            workload: request.workload,
            issued_ms: now,
            expires_ms: now.saturating_add(i64::from(self.config.challenge_ttl_s).saturating_mul(1000)),
        };
        // A closed challenge is kept for its answer, or for its reason; a host's snapshot may be megabytes, and anybody may ask for challenges.
        sqlx::query("UPDATE challenges SET open = 0, snapshot_cbor = x'' WHERE host = ? AND open = 1")
            .bind(request.host.0.as_slice())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM challenges WHERE expires_ms < ?")
            .bind(now.saturating_sub(3_600_000))
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO challenges (nonce, host, record_cbor, snapshot_cbor, open, expires_ms) VALUES (?, ?, ?, ?, 1, ?)",
        )
        .bind(nonce.0.as_slice())
        .bind(request.host.0.as_slice())
        .bind(to_cbor(&record))
        .bind(to_cbor(&host.snapshot))
        .bind(record.expires_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Challenge {
            version: 1,
            nonce,
            purpose: request.purpose,
            ttl_s: self.config.challenge_ttl_s,
            selection,
            ima_from,
            import,
            ima_boot,
            run,
        })
    }

    /// `POST /v1/attest` and `POST /v1/release`: evidence in, answer out (encoded).
    ///
    /// # Errors
    /// [`Error::Request`] for evidence that answers no open challenge: it changes nothing.
    pub async fn answer(&self, bytes: Vec<u8>, purpose: Purpose) -> Result<Vec<u8>, Error> {
        // Only to find the challenge; the appraisal reads the bytes again.
        let evidence: Evidence = cbor::decode(&bytes).map_err(|e| Error::request("malformed", e.to_string(), None))?;
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let row: Option<ChallengeRow> = sqlx::query_as(
            "SELECT record_cbor, snapshot_cbor, open, evidence_hash, answer FROM challenges WHERE nonce = ?",
        )
        .bind(evidence.nonce.0.as_slice())
        .fetch_optional(self.store.pool())
        .await?;
        let Some((record, snapshot, open, answered, answer)) = row else {
            return Err(Error::request(
                "challenge-unknown",
                "this nonce was never issued, or long ago",
                Some("attest again"),
            ));
        };
        let challenge: ChallengeRecord = from_cbor(&record)?;
        if challenge.purpose != purpose {
            return Err(Error::request(
                "challenge-purpose",
                "this nonce was issued for another purpose",
                Some("attest again"),
            ));
        }
        if let (Some(answered), Some(answer)) = (&answered, answer)
            && *answered == hash
        {
            // The same evidence for the same challenge: the stored answer again, nothing is signed twice.
            return Ok(answer);
        }
        if !open || answered.is_some() {
            return Err(challenge_closed());
        }
        let mut context = self.context(challenge, from_cbor(&snapshot)?, &evidence).await?;
        let (mut bytes, mut evidence) = (bytes, evidence);
        for _ in 0..POLICY_CHANGES {
            let bench = Bench { beside: self.beside.clone(), candidate: policy::store::candidate(&self.dir) };
            let appraising = tokio::task::spawn_blocking(move || {
                let decided = bench.decide(&bytes, &mut context);
                // That it replays is a part of what accepts it.
                let logged = decided.judged.update.as_ref().and_then(|_| Logged::read(&evidence, &context.host).ok());
                (decided, logged.map(|logged| logged.log), bytes, context, evidence)
            });
            let (decided, log);
            (decided, log, bytes, context, evidence) = appraising.await.map_err(|e| Error::Internal(e.to_string()))?;
            let judged = &decided.judged;
            tracing::debug!(verdict = %context.verdict_id, allow = judged.verdict.allow, "decided");
            let mut explanation = None;
            if !judged.verdict.allow && judged.signed {
                (explanation, bytes, context) = self.explain_to_host(bytes, context, &judged.verdict).await?;
            }
            let verdict = context.verdict_id;
            match self.commit(bytes, hash, context, decided, log, explanation).await? {
                Committed::Answer(answer) => {
                    tracing::debug!(%verdict, "recorded");
                    return Ok(answer);
                }
                Committed::Overtaken(again) => (bytes, context) = *again,
            }
            tracing::debug!(%verdict, "not recorded: the host policy was replaced");
            (context.host_policy, context.stale) = self.policy_in_force(context.now_ms)?;
        }
        Err(Error::request(
            "conflict",
            "the host policy was replaced again and again while this was appraised",
            Some("attest again"),
        ))
    }

    /// Why a workload is not there: it was withdrawn, or it never was.
    pub(crate) async fn no_workload(&self, workload: &WorkloadId) -> Result<Error, Error> {
        Ok(match self.store.withdrawn(workload).await? {
            Some(_) => withdrawn_workload(workload),
            None => unknown_workload(workload),
        })
    }

    /// The evidence bundle of a verdict, as a file, signed by the log key.
    ///
    /// # Errors
    /// [`Error::Request`] for an unknown verdict, or one of another host than `only`.
    pub async fn bundle(&self, verdict: &VerdictId, only: Option<&HostId>) -> Result<Vec<u8>, Error> {
        let row: Option<(Vec<u8>, Vec<u8>, Option<i64>)> =
            sqlx::query_as("SELECT host, record, evidence_deleted_ms FROM verdicts WHERE id = ?")
                .bind(verdict.0.as_slice())
                .fetch_optional(self.store.pool())
                .await?;
        let found = row.filter(|(host, ..)| only.is_none_or(|only| only.0.as_slice() == host));
        let (_, record, deleted) =
            found.ok_or_else(|| Error::request("not-found", format!("there is no verdict {verdict}"), None))?;
        if record.is_empty() {
            let why = if deleted.is_some() {
                "its evidence was deleted (evidence_days in verifier.toml, or too much of denials)"
            } else {
                "its evidence was not signed by the host's TPM"
            };
            let title = format!("verdict {verdict} has no bundle: {why}");
            return Err(Error::request("not-found", title, None));
        }
        let record = records::unpack(record)?;
        let signature = self.keys.sign_record(&signed_message(&record))?;
        let context: Record = cbor::decode(&record).map_err(|e| Error::Corrupt(e.to_string()))?;
        let context: Context = from_cbor(&context.context)?;
        let sets = match context.ima.filter(|ima| !ima.sets.is_empty()) {
            Some(ima) => Some(self.store.ima_documents(&ima.sets).await?.into_iter().map(ByteVec::from).collect()),
            None => None,
        };
        Ok(artefact::to_file(&Bundle { version: 1, trust: self.keys.trust.clone(), record, signature, sets }))
    }

    /// Sets a host's state, with an audit entry.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_state(&self, host: &HostId, state: HostState, reason: &str, actor: &str) -> Result<(), Error> {
        let mut transaction = self.store.write().await?;
        // Admission starts a new baseline: what the next accepted quote says is taken as it is.
        let fresh = state == HostState::Active;
        let changed = sqlx::query(
            "UPDATE hosts SET state = ?, state_reason = ?, version = version + 1, \
             baseline_cbor = CASE WHEN ? THEN NULL ELSE baseline_cbor END WHERE host = ? AND state <> 3",
        )
        .bind(state_number(state))
        .bind(reason)
        .bind(fresh)
        .bind(host.0.as_slice())
        .execute(&mut *transaction)
        .await?;
        if changed.rows_affected() != 1 {
            return Err(Error::request(
                "host-unknown",
                format!("there is no host {host} that was not revoked"),
                Some("verifier host list"),
            ));
        }
        sqlx::query("UPDATE challenges SET open = 0, snapshot_cbor = x'' WHERE host = ?")
            .bind(host.0.as_slice())
            .execute(&mut *transaction)
            .await?;
        if matches!(state, HostState::Suspended | HostState::Revoked) {
            void_tokens(&mut transaction, host).await?;
        }
        if let Some(event) = events::of_state(state, reason) {
            events::emit(&mut transaction, Some(host), &event).await?;
        }
        audit(&mut transaction, actor, "host-state", &format!("{host} {state:?} {reason}")).await?;
        transaction.commit().await?;
        Ok(())
    }
}

type ChallengeRow = (Vec<u8>, Vec<u8>, bool, Option<Vec<u8>>, Option<Vec<u8>>);

/// Writes an audit entry within a transaction.
pub(crate) async fn audit(
    connection: &mut sqlx::SqliteConnection,
    actor: &str,
    action: &str,
    detail: &str,
) -> Result<(), Error> {
    let now = now_ms(connection).await?;
    sqlx::query("INSERT INTO audit (time_ms, actor, action, detail) VALUES (?, ?, ?, ?)")
        .bind(now)
        .bind(actor)
        .bind(action)
        .bind(detail)
        .execute(connection)
        .await?;
    Ok(())
}

/// A token for a host that was handed out before the host was stopped admits it no longer: one that is to come back gets a new one.
pub(crate) async fn void_tokens(connection: &mut sqlx::SqliteConnection, host: &HostId) -> Result<(), Error> {
    sqlx::query("DELETE FROM tokens WHERE host = ?").bind(host.0.as_slice()).execute(connection).await?;
    Ok(())
}

fn challenge_closed() -> Error {
    Error::request("challenge-closed", "this challenge was answered, or a newer one was issued", Some("attest again"))
}

fn unknown_host(host: &HostId) -> Error {
    Error::request("host-unknown", format!("host {host} is not enrolled here"), Some("attest enroll --token FILE"))
}

fn unknown_workload(workload: &WorkloadId) -> Error {
    Error::request("workload-unknown", format!("workload {workload} is not registered here"), Some(REGISTER))
}

fn withdrawn_workload(workload: &WorkloadId) -> Error {
    Error::request("workload-withdrawn", format!("workload {workload} was withdrawn"), Some(REGISTER))
}

/// The command that registers a workload, with all that it needs.
pub(crate) const REGISTER: &str = "supervisor register APP.sif --signer OWNER.pub.pem --escrow-key ESCROW.pem --url URL --token-file FILE --ca CA.pem";

impl Service {
    /// Writes an audit entry of its own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn audit(&self, actor: &str, action: &str, detail: &str) -> Result<(), Error> {
        let mut transaction = self.store.write().await?;
        audit(&mut transaction, actor, action, detail).await?;
        Ok(transaction.commit().await?)
    }

    /// The address that tokens name: the one that `serve` wrote last, or the configured one.
    #[must_use]
    pub fn url(&self) -> String {
        let written = std::fs::read_to_string(self.dir.join("url")).ok();
        written
            .map(|url| url.trim().to_owned())
            .filter(|url| !url.is_empty())
            .unwrap_or_else(|| self.config.url.clone())
    }
}
