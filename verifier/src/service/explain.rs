//! Explanations of stored verdicts.

use countersign_wire::cbor;
use countersign_wire::id::{HostId, VerdictId};
use countersign_wire::record::Record;
use sha2::{Digest as _, Sha256};

use super::Service;
use crate::appraise::Context;
use crate::error::Error;
use crate::explain::{Before, Explanation, Material, explain};
use crate::ima::Reference;
use crate::store::{array, from_cbor};

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
        let record: Option<Record> = if record.is_empty() {
            None
        } else {
            Some(cbor::decode(&record).map_err(|e| Error::Corrupt(e.to_string()))?)
        };
        let state_reason = self.store.host(&HostId(array(host.clone())?)).await?.map(|host| host.state_reason);
        let material = Material {
            sets: self.sets_of(record.as_ref()).await?,
            before: self.before(&host, time_ms).await?,
            document,
            record,
            state_reason,
        };
        let explained = tokio::task::spawn_blocking(move || {
            load(&material);
            explain(&material)
        });
        explained.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(Error::Corrupt)
    }

    /// The IMA reference sets that a record's verdict was made with.
    async fn sets_of(&self, record: Option<&Record>) -> Result<Vec<Vec<u8>>, Error> {
        let Some(record) = record else { return Ok(Vec::new()) };
        let context: Context = from_cbor(&record.context)?;
        match context.ima {
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
        let record = Box::new(cbor::decode(&record).map_err(|e| Error::Corrupt(e.to_string()))?);
        Ok(Before::Verdict { id: VerdictId(array(id)?).to_string(), time_ms, record })
    }
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
