//! What a policy would change on the stored evidence, before it is loaded.

use countersign_policy::{Compiled, PolicyBundle, Role};
use serde::Serialize;

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
        let word = |allow: bool| if allow { "ALLOW" } else { "DENY" };
        for change in &self.changes {
            writeln!(
                f,
                "{} -> {}  host {}  {}",
                word(change.was),
                word(change.would_be),
                change.host,
                change.reasons.join(", ")
            )?;
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
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT record FROM verdicts WHERE length(record) > 0 ORDER BY time_ms DESC LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(service.store.pool())
            .await?;
    let mut preview = Preview::default();
    for bytes in rows {
        let corrupt = |e: &dyn std::fmt::Display| Error::Corrupt(e.to_string());
        let record: countersign_wire::record::Record =
            countersign_wire::cbor::decode(&bytes).map_err(|e| corrupt(&e))?;
        let mut context: crate::appraise::Context = crate::store::from_cbor(&record.context)?;
        let was = crate::appraise::appraise(&record.evidence, &context).verdict;
        context.host_policy = policy.to_vec();
        let new = crate::appraise::appraise(&record.evidence, &context).verdict;
        preview.looked_at = preview.looked_at.saturating_add(1);
        if was.allow != new.allow {
            let why = if new.allow { &was.reasons } else { &new.reasons };
            preview.changes.push(Change {
                verdict: was.id,
                host: was.host,
                workload: was.workload,
                was: was.allow,
                would_be: new.allow,
                reasons: why.iter().map(|reason| format!("{}: {}", reason.id, reason.message)).collect(),
            });
        }
    }
    Ok(preview)
}
