//! Explanations of stored verdicts.

use countersign_policy::verdict::Verdict;
use countersign_wire::eventlog::PcrSet;
use countersign_wire::id::{HostId, VerdictId};
use sha2::{Digest as _, Sha256};

use super::{Service, records};
use crate::appraise::{Context, verdict_bytes};
use crate::error::Error;
use crate::explain::{Basis, Before, Explanation, Material, explain, vouched_log};
use crate::ima::Reference;
use crate::store::array;

/// host, time, document, record.
type Row = (Vec<u8>, i64, Vec<u8>, Vec<u8>);

impl Service {
    /// Explains a verdict of the database.
    ///
    /// # Errors
    /// [`Error::Request`] for an unknown verdict.
    pub async fn explain(&self, verdict: &VerdictId) -> Result<Explanation, Error> {
        let row: Option<Row> = sqlx::query_as("SELECT host, time_ms, document, record FROM verdicts WHERE id = ?")
            .bind(verdict.0.as_slice())
            .fetch_optional(self.store.pool())
            .await?;
        let unknown =
            || Error::request("not-found", format!("there is no verdict {verdict}"), Some("verifier verdict list"));
        let (host, time_ms, document, record) = row.ok_or_else(unknown)?;
        let basis = if record.is_empty() { None } else { Some(basis(record)?) };
        let state_reason = self.store.host(&HostId(array(host.clone())?)).await?.map(|host| host.state_reason);
        let material = Material {
            sets: self.sets_of(basis.as_ref().map(|basis| &basis.context)).await?,
            before: self.before(&host, time_ms).await?,
            document,
            basis,
            state_reason,
        };
        let explained = tokio::task::spawn_blocking(move || {
            load(&material);
            explain(&material)
        });
        explained.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(Error::Corrupt)
    }

    /// The boot log in a verdict's evidence, to make reference values of, and the PCRs that vouch for it.
    ///
    /// # Errors
    /// [`Error::Request`] when there is no such verdict, or its quoted PCRs do not vouch for a log.
    pub(crate) async fn boot_log(&self, verdict: &VerdictId) -> Result<(Vec<u8>, PcrSet), Error> {
        let row: Option<(Vec<u8>, Vec<u8>)> = sqlx::query_as("SELECT document, record FROM verdicts WHERE id = ?")
            .bind(verdict.0.as_slice())
            .fetch_optional(self.store.pool())
            .await?;
        let unknown =
            || Error::request("not-found", format!("there is no verdict {verdict}"), Some("verifier verdict list"));
        let (document, record) = row.ok_or_else(unknown)?;
        let log =
            if record.is_empty() { None } else { vouched_log(&document, &basis(record)?).map_err(Error::Corrupt)? };
        log.ok_or_else(|| {
            let what = "the verdict's evidence holds no boot log that the quoted PCRs vouch for";
            Error::request("eventlog", what, Some("verifier explain VERDICT"))
        })
    }

    /// The explanation that goes to the host with a denial of evidence that its AK signed, and the evidence and context back. It says what the host
    /// sent, what its own reasons want and how its own last good boot differed; why an operator stopped it stays with the operators.
    pub(super) async fn explain_to_host(
        &self,
        evidence: Vec<u8>,
        context: Context,
        verdict: &Verdict,
    ) -> Result<(Option<Vec<u8>>, Vec<u8>, Context), Error> {
        let before = self.before(&context.host.host.0, context.now_ms).await?;
        let sets = self.sets_of(Some(&context)).await?;
        let document = verdict_bytes(verdict);
        let explained = tokio::task::spawn_blocking(move || {
            let basis = Basis { evidence, context };
            let mut material = Material { document, basis: Some(basis), sets, before, state_reason: None };
            let explanation = explain(&material);
            (explanation, material.basis.take())
        });
        let (explanation, basis) = explained.await.map_err(|e| Error::Internal(e.to_string()))?;
        let Some(Basis { evidence, context }) = basis else { return Err(Error::Internal("no basis".into())) };
        let explanation = explanation.inspect_err(|e| tracing::warn!("a denial could not be explained: {e}")).ok();
        Ok((explanation.and_then(Explanation::to_json), evidence, context))
    }

    /// The IMA reference sets that a verdict was made with.
    async fn sets_of(&self, context: Option<&Context>) -> Result<Vec<Vec<u8>>, Error> {
        match context.and_then(|context| context.ima.as_ref()) {
            Some(ima) => self.store.ima_documents(&ima.sets).await,
            None => Ok(Vec::new()),
        }
    }

    /// The newest earlier verdict that accepted this host.
    async fn before(&self, host: &[u8], time_ms: i64) -> Result<Before, Error> {
        let row: Option<(Vec<u8>, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT id, time_ms, record FROM verdicts WHERE host = ? AND time_ms < ? AND allow = 1 AND length(record) > 0 \
             ORDER BY time_ms DESC, id LIMIT 1",
        )
        .bind(host)
        .bind(time_ms)
        .fetch_optional(self.store.pool())
        .await?;
        let Some((id, time_ms, record)) = row else { return Ok(Before::Nothing) };
        Ok(Before::Verdict { id: VerdictId(array(id)?).to_string(), time_ms, basis: Box::new(basis(record)?) })
    }
}

/// What a stored record's verdict was made from.
fn basis(stored: Vec<u8>) -> Result<Basis, Error> {
    Basis::of(records::decode(stored)?)
}

/// Compiles the sets if they are not at hand: the list is appraised again to find its files.
fn load(material: &Material) {
    let digests: Vec<[u8; 32]> = material.sets.iter().map(|set| Sha256::digest(set).into()).collect();
    if digests.is_empty() || crate::ima::loaded(&crate::ima::identity(&digests)).is_some() {
        return;
    }
    if let Ok(reference) = Reference::compile(material.sets.iter().map(Vec::as_slice)) {
        crate::ima::remember(reference);
    }
}
