//! What a policy would change on the stored evidence, before it is loaded.

use std::collections::HashSet;

use countersign_policy::verdict::Verdict;
use countersign_policy::{Compiled, PolicyBundle, Role};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::store::refuse;
use crate::error::Error;

/// One verdict that would be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The stored verdict.
    pub verdict: String,
    /// Host id.
    pub host: String,
    /// Workload id, for a release.
    pub workload: Option<String>,
    /// What was decided.
    pub was: bool,
    /// What would be.
    pub would_be: bool,
    /// Why: the reasons of the side that says no.
    pub reasons: Vec<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |allow: bool| if allow { "ALLOW" } else { "DENY" };
        write!(f, "{} -> {}  host {}", word(self.was), word(self.would_be), self.host)?;
        if let Some(workload) = &self.workload {
            write!(f, "  workload {workload}")?;
        }
        write!(f, "  {}", self.reasons.join(", "))
    }
}

/// What a policy would change on stored evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Verdicts that were decided again.
    pub looked_at: usize,
    /// Those that would be another.
    pub changes: Vec<Change>,
}

impl std::fmt::Display for Preview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        write!(f, "{} of {} stored verdicts would change", self.changes.len(), self.looked_at)
    }
}

/// Decides the newest stored evidence again with another host policy. Nothing is written.
///
/// # Errors
/// [`Error`].
pub async fn preview(service: &crate::service::Service, policy: &[u8], limit: u32) -> Result<Preview, Error> {
    let parsed = PolicyBundle::parse(policy).map_err(refuse)?;
    Compiled::new(&parsed, Role::Host).map_err(refuse)?;
    let rows: Vec<i64> =
        sqlx::query_scalar("SELECT rowid FROM verdicts WHERE length(record) > 0 ORDER BY time_ms DESC LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(service.store.pool())
            .await?;
    let mut preview = Preview::default();
    // One at a time: each may have tens of megabytes of logs.
    for row in rows {
        let stored: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT record FROM verdicts WHERE rowid = ? AND length(record) > 0")
                .bind(row)
                .fetch_optional(service.store.pool())
                .await?;
        let Some(stored) = stored else { continue };
        let record = crate::service::records::decode(stored)?;
        let mut context: crate::appraise::Context = crate::store::from_cbor(&record.context)?;
        service.load_sets(context.ima.as_ref()).await?;
        let was = crate::appraise::appraise(&record.evidence, &context).verdict;
        context.host_policy = policy.to_vec();
        // What another engine said was about the policy of then.
        context.remote = None;
        let new = crate::appraise::appraise(&record.evidence, &context).verdict;
        preview.looked_at = preview.looked_at.saturating_add(1);
        preview.changes.extend(change(was, &new));
    }
    Ok(preview)
}

fn change(was: Verdict, new: &Verdict) -> Option<Change> {
    let why = if new.allow { &was.reasons } else { &new.reasons };
    let reasons = why.iter().map(|reason| format!("{}: {}", reason.id, reason.message)).collect();
    (was.allow != new.allow).then_some(Change {
        verdict: was.id,
        host: was.host,
        workload: was.workload,
        was: was.allow,
        would_be: new.allow,
        reasons,
    })
}

/// What the candidate decided beside the policy in force. Of each host and workload the newest decision counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audited {
    /// SHA-256 (hex) of the candidate's bundle.
    pub candidate: String,
    /// Decisions of the candidate that were looked at.
    pub decided: usize,
    /// Hosts, each with each of its workloads, that it decided about.
    pub subjects: usize,
    /// Those whose newest verdict would be another.
    pub changes: Vec<Change>,
}

impl std::fmt::Display for Audited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        let Self { candidate, decided, subjects, changes } = self;
        let (of, few) = (changes.len(), candidate.get(..16).unwrap_or_default());
        write!(f, "candidate {few}: {decided} decisions; {of} of {subjects} hosts and workloads would change")
    }
}

/// What the candidate would have changed so far.
///
/// # Errors
/// [`Error::Request`] when there is none.
pub async fn audited(service: &crate::service::Service, limit: u32) -> Result<Audited, Error> {
    let Some(candidate) = super::store::candidate(&service.dir) else {
        let hint = Some("verifier policy load BUNDLE --audit");
        return Err(Error::request("not-found", "there is no candidate policy", hint));
    };
    let digest = Sha256::digest(&candidate);
    let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "SELECT verdicts.document, candidate_verdicts.document FROM candidate_verdicts \
         JOIN verdicts ON verdicts.id = candidate_verdicts.verdict WHERE digest = ? ORDER BY verdicts.rowid DESC LIMIT ?",
    )
    .bind(digest.as_slice())
    .bind(i64::from(limit))
    .fetch_all(service.store.pool())
    .await?;
    let mut audited = Audited { candidate: hex::encode(digest), decided: rows.len(), ..Audited::default() };
    let mut seen = HashSet::new();
    for (was, new) in rows {
        let read = |bytes: &[u8]| serde_json::from_slice::<Verdict>(bytes).map_err(|e| Error::Corrupt(e.to_string()));
        let (was, new) = (read(&was)?, read(&new)?);
        if seen.insert((was.host.clone(), was.workload.clone())) {
            audited.changes.extend(change(was, &new));
        }
    }
    audited.subjects = seen.len();
    Ok(audited)
}
