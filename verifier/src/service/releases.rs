//! The record of releases, which the obligation `cap` counts.

use countersign_policy::verdict::Verdict;
use countersign_wire::id::{HostId, RunId, WorkloadId};
use serde::Serialize;
use sqlx::{Row as _, SqliteConnection};

use super::{Service, audit};
use crate::appraise::{HostUpdate, ReleaseBasis, ReleasesOfBoot};
use crate::error::Error;
use crate::store::{array, from_db, now_ms, to_db};

/// Boots that are looked at, newest first: those of long ago have other counters.
const BOOTS: i64 = 256;

/// One release, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Release {
    /// The run that asked for it. Its host chose the id.
    pub run: RunId,
    /// Host id.
    pub host: HostId,
    /// Workload id.
    pub workload: WorkloadId,
    /// Verdict id, hex.
    pub verdict: String,
    /// When, milliseconds since 1970.
    pub time_ms: i64,
    /// resetCount and restartCount of its boot.
    pub boot: (u32, u32),
    /// The cap that it was released under.
    pub cap: Option<u32>,
    /// When it was given back: it counts no longer.
    pub refunded_ms: Option<i64>,
}

/// Adds a release to the record, in the transaction that signs it: an answer that is lost counts too.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    verdict: &Verdict,
    basis: &ReleaseBasis,
    update: &HostUpdate,
    host: &HostId,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO releases (time_ms, host, workload, run, verdict, life, reset_count, restart_count, cap) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(verdict.time_ms)
    .bind(host.0.as_slice())
    .bind(basis.workload.0.as_slice())
    .bind(basis.run.0.as_slice())
    .bind(hex::decode(&verdict.id).unwrap_or_default())
    .bind(to_db(update.baseline.life))
    .bind(basis.reset_count)
    .bind(basis.restart_count)
    .bind(verdict.obligations.cap)
    .execute(connection)
    .await?;
    Ok(())
}

impl Service {
    /// How often a workload was released on a host, by boot.
    pub(super) async fn released(&self, host: &HostId, workload: &WorkloadId) -> Result<Vec<ReleasesOfBoot>, Error> {
        let rows: Vec<(i64, u32, u32, u32)> = sqlx::query_as(
            "SELECT life, reset_count, restart_count, COUNT(*) FROM releases \
             WHERE host = ? AND workload = ? AND refunded_ms IS NULL \
             GROUP BY life, reset_count, restart_count ORDER BY MAX(number) DESC LIMIT ?",
        )
        .bind(host.0.as_slice())
        .bind(workload.0.as_slice())
        .bind(BOOTS)
        .fetch_all(self.store.pool())
        .await?;
        let boot = |(life, reset_count, restart_count, count)| ReleasesOfBoot {
            life: from_db(life),
            reset_count,
            restart_count,
            count,
        };
        Ok(rows.into_iter().map(boot).collect())
    }

    /// The newest releases.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn releases(&self, host: Option<HostId>, limit: u32) -> Result<Vec<Release>, Error> {
        let rows = sqlx::query("SELECT * FROM releases WHERE ?1 IS NULL OR host = ?1 ORDER BY number DESC LIMIT ?2")
            .bind(host.map(|host| host.0.to_vec()))
            .bind(limit)
            .fetch_all(self.store.pool())
            .await?;
        let release = |row: &sqlx::sqlite::SqliteRow| {
            Ok(Release {
                run: RunId(array(row.try_get("run")?)?),
                host: HostId(array(row.try_get("host")?)?),
                workload: WorkloadId(array(row.try_get("workload")?)?),
                verdict: hex::encode(row.try_get::<&[u8], _>("verdict")?),
                time_ms: row.try_get("time_ms")?,
                boot: (row.try_get("reset_count")?, row.try_get("restart_count")?),
                cap: row.try_get("cap")?,
                refunded_ms: row.try_get("refunded_ms")?,
            })
        };
        rows.iter().map(release).collect()
    }

    /// Gives a run's newest release back: it counts against the cap no longer. The key itself cannot be taken back, so this is for answers that
    /// never arrived. Hosts choose the ids of their runs, so several may have the same: then the host must be named.
    ///
    /// # Errors
    /// [`Error::Request`] when the run has no release that counts, or on several hosts.
    pub async fn refund(&self, run: &RunId, host: Option<HostId>, actor: &str) -> Result<(), Error> {
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        let host = host.map(|host| host.0.to_vec());
        let hosts: i64 = sqlx::query_scalar(
            "SELECT COUNT(DISTINCT host) FROM releases WHERE run = ?1 AND refunded_ms IS NULL AND (?2 IS NULL OR host = ?2)",
        )
        .bind(run.0.as_slice())
        .bind(&host)
        .fetch_one(&mut *transaction)
        .await?;
        if hosts > 1 {
            let title = format!("{hosts} hosts have a release for a run {run}");
            return Err(Error::request("malformed", title, Some("verifier release refund RUN --host HOST")));
        }
        let refunded = sqlx::query(
            "UPDATE releases SET refunded_ms = ?3 WHERE number = (SELECT MAX(number) FROM releases \
             WHERE run = ?1 AND refunded_ms IS NULL AND (?2 IS NULL OR host = ?2))",
        )
        .bind(run.0.as_slice())
        .bind(host)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
        if refunded.rows_affected() != 1 {
            return Err(Error::request(
                "not-found",
                format!("run {run} has no release that counts"),
                Some("verifier release list"),
            ));
        }
        audit(&mut transaction, actor, "release-refund", &run.to_string()).await?;
        transaction.commit().await.map_err(Error::from)
    }
}
