//! How long evidence is stored: `evidence_days`, and longer where a verdict's policy was promised so.

use std::time::Duration;

use super::{Service, audit};
use crate::appraise::DAY_MS;
use crate::error::Error;
use crate::store::now_ms;

/// Verdicts whose evidence is deleted in one transaction: hosts wait no longer than for that.
const BATCH: u32 = 200;
/// Batches in one pass.
const BATCHES: u32 = 100;
/// Time between two passes, and between the parts of a long one.
const PASS: Duration = Duration::from_secs(3600);
const PART: Duration = Duration::from_secs(10);

impl Service {
    /// Deletes evidence that is older than `evidence_days` and that no policy wants kept; verdicts stay. Answers how many it was, and whether there
    /// may be more.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn delete_old_evidence(&self) -> Result<(u64, bool), Error> {
        let Some(days) = self.config.evidence_days else { return Ok((0, false)) };
        let mut deleted: u64 = 0;
        for _ in 0..BATCHES {
            let mut transaction = self.store.write().await?;
            let now = now_ms(&mut transaction).await?;
            let done = sqlx::query(
                "UPDATE verdicts SET record = x'', evidence_deleted_ms = ?1 WHERE rowid IN (SELECT rowid FROM verdicts \
                 WHERE evidence_deleted_ms IS NULL AND time_ms < ?2 AND length(record) > 0 \
                 AND (retain_until_ms IS NULL OR retain_until_ms <= ?1) ORDER BY time_ms LIMIT ?3)",
            )
            .bind(now)
            .bind(now.saturating_sub(i64::from(days).saturating_mul(DAY_MS)))
            .bind(BATCH)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if done > 0 {
                audit(&mut transaction, "retention", "evidence-delete", &format!("of {done} verdicts")).await?;
            }
            transaction.commit().await?;
            deleted = deleted.saturating_add(done);
            if done < u64::from(BATCH) {
                return Ok((deleted, false));
            }
        }
        Ok((deleted, true))
    }
}

/// Deletes old evidence for as long as the service runs.
pub(crate) async fn keep_house(service: Service) {
    loop {
        let more = match service.delete_old_evidence().await {
            Ok((deleted, more)) => {
                if deleted > 0 {
                    tracing::info!(deleted, "old evidence");
                }
                more
            }
            Err(e) => {
                tracing::error!(error = %e, "old evidence was not deleted");
                false
            }
        };
        tokio::time::sleep(if more { PART } else { PASS }).await;
    }
}
