//! What ran on which host, when, under which policy, and how it ended: from releases and from the run logs of accepted evidence.

use countersign_wire::id::{HostId, RunId, WorkloadId};
use countersign_wire::runlog::{Event, RunLog};
use serde_json::{Value, json};
use sqlx::{Row as _, SqliteConnection};

use super::{Service, audit, events};
use crate::appraise::Context;
use crate::error::Error;
use crate::store::{array, from_db, now_ms, to_db};

/// Runs that have ended, and entries of other kinds, kept of each host.
const KEPT: i64 = 10_000;
/// Longest entry of another kind that is kept whole, bytes.
const TEXT: usize = 4096;
/// Status of a run that nothing is known of any more.
const LOST: &str = "lost: the host was reset before the log had its end";

/// A release was allowed.
pub(super) async fn released(
    connection: &mut SqliteConnection,
    context: &Context,
    run: RunId,
    workload: WorkloadId,
    life: u64,
    policies: (&str, Option<&str>),
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO runs (host, run, workload, verdict, host_policy, workload_policy, life, released_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (host, run) DO UPDATE SET verdict = excluded.verdict, \
         host_policy = excluded.host_policy, workload_policy = excluded.workload_policy",
    )
    .bind(context.host.host.0.as_slice())
    .bind(run.0.as_slice())
    .bind(workload.0.as_slice())
    .bind(context.verdict_id.0.as_slice())
    .bind(policies.0)
    .bind(policies.1)
    .bind(to_db(life))
    .bind(context.now_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes in what a run log that replays says beyond what was read before.
pub(super) async fn replay(
    connection: &mut SqliteConnection,
    host: &HostId,
    life: u64,
    log: &RunLog,
) -> Result<(), Error> {
    let now = now_ms(connection).await?;
    let id = host.0.as_slice();
    let read: Option<(i64, i64)> = sqlx::query_as("SELECT life, entries FROM run_logs WHERE host = ?")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    let same = read.filter(|(of, _)| *of == to_db(life));
    let from = same.map_or(0, |(_, entries)| from_db(entries));
    if log.count() <= from && same.is_some() {
        return Ok(());
    }
    for (recnum, entry) in (log.first..).zip(&log.entries).filter(|(recnum, _)| *recnum >= from) {
        match &entry.event {
            Event::Receipt { .. } | Event::Resume {} => {}
            Event::Start { run, workload, time_ms } => {
                // Read again in a new life, its findings follow and are counted again.
                sqlx::query(
                    "INSERT INTO runs (host, run, workload, life, started_ms, seen_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                     ON CONFLICT (host, run) DO UPDATE SET started_ms = excluded.started_ms, seen_ms = excluded.seen_ms, \
                     life = excluded.life, findings = 0, \
                     ended_ms = CASE WHEN status = ?7 THEN NULL ELSE ended_ms END, \
                     status = CASE WHEN status = ?7 THEN NULL ELSE status END \
                     WHERE runs.started_ms IS NULL OR runs.life < excluded.life",
                )
                .bind(id)
                .bind(run.0.as_slice())
                .bind(workload.0.as_slice())
                .bind(to_db(life))
                .bind(*time_ms)
                .bind(now)
                .bind(LOST)
                .execute(&mut *connection)
                .await?;
                // The same entries, not further ones.
                sqlx::query("UPDATE OR IGNORE run_entries SET life = ? WHERE host = ? AND run = ? AND life < ?")
                    .bind(to_db(life))
                    .bind(id)
                    .bind(run.0.as_slice())
                    .bind(to_db(life))
                    .execute(&mut *connection)
                    .await?;
            }
            Event::End { run, status } => {
                sqlx::query("UPDATE runs SET status = ?, ended_ms = ? WHERE host = ? AND run = ? AND status IS NULL")
                    .bind(short(status))
                    .bind(now)
                    .bind(id)
                    .bind(run.0.as_slice())
                    .execute(&mut *connection)
                    .await?;
            }
            event @ (Event::Finding { .. } | Event::Reaction { .. } | Event::Other { .. }) => {
                let (run, (kind, text)) = (event.run(), event.described());
                sqlx::query("INSERT OR IGNORE INTO run_entries VALUES (?, ?, ?, ?, ?, ?, ?)")
                    .bind(id)
                    .bind(to_db(life))
                    .bind(to_db(recnum))
                    .bind(run.map(|run| run.0.to_vec()))
                    .bind(now)
                    .bind(short(kind))
                    .bind(short(&text))
                    .execute(&mut *connection)
                    .await?;
                if let Some(run) = run.filter(|_| matches!(event, Event::Finding { .. })) {
                    sqlx::query("UPDATE runs SET findings = findings + 1 WHERE host = ? AND run = ?")
                        .bind(id)
                        .bind(run.0.as_slice())
                        .execute(&mut *connection)
                        .await?;
                }
            }
        }
    }
    if same.is_none() {
        // The PCRs were reset, or the host was admitted anew: of before only that runs whose start is in this log too.
        sqlx::query("UPDATE runs SET status = ?, ended_ms = ? WHERE host = ? AND life < ? AND status IS NULL")
            .bind(LOST)
            .bind(now)
            .bind(id)
            .bind(to_db(life))
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("INSERT OR REPLACE INTO run_logs VALUES (?, ?, ?)")
        .bind(id)
        .bind(to_db(life))
        .bind(to_db(log.count()))
        .execute(&mut *connection)
        .await?;
    // Bounded for each host: a host writes what it likes.
    for statement in [
        "DELETE FROM runs WHERE host = ?1 AND status IS NOT NULL AND rowid IN \
         (SELECT rowid FROM runs WHERE host = ?1 AND status IS NOT NULL ORDER BY ended_ms DESC, rowid DESC LIMIT -1 OFFSET ?2)",
        "DELETE FROM run_entries WHERE host = ?1 AND rowid IN \
         (SELECT rowid FROM run_entries WHERE host = ?1 ORDER BY rowid DESC LIMIT -1 OFFSET ?2)",
    ] {
        sqlx::query(statement).bind(id).bind(KEPT).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Text as the host wrote it, cut at a length.
fn short(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT)).unwrap_or_default()
}

/// With what its own policy, or an operator, last did with a run that goes on.
const COLUMNS: &str = "SELECT runs.*, hosts.name AS host_name, workloads.name AS workload_name, \
    CASE WHEN runs.status IS NULL THEN (SELECT json_extract(text, '$.reaction') FROM run_entries \
    WHERE run_entries.host = runs.host AND run_entries.run = runs.run AND kind = 'reaction' \
    AND json_extract(text, '$.reaction') <> 'alert' \
    ORDER BY run_entries.rowid DESC LIMIT 1) END AS reaction FROM runs \
    LEFT JOIN hosts ON hosts.host = runs.host LEFT JOIN workloads ON workloads.id = runs.workload";

fn shown(row: &sqlx::sqlite::SqliteRow) -> Result<Value, Error> {
    let hex = |name: &str| Ok::<_, Error>(row.try_get::<Option<Vec<u8>>, _>(name)?.map(hex::encode));
    let text = |name: &str| Ok::<_, Error>(row.try_get::<Option<String>, _>(name)?);
    let number = |name: &str| Ok::<_, Error>(row.try_get::<Option<i64>, _>(name)?);
    let (started, status) = (number("started_ms")?, text("status")?);
    let state = match (&status, started, text("ordered")?.as_deref()) {
        (Some(_), ..) => "ended",
        (None, None, _) => "released",
        (None, Some(_), Some("freeze")) => "frozen by order",
        (None, Some(_), Some("stop")) => "stopping by order",
        (None, Some(_), _) if text("reaction")?.as_deref() == Some("freeze") => "frozen",
        (None, Some(_), _) => "running",
    };
    Ok(json!({
        "run": hex("run")?,
        "host": hex("host")?,
        "host_name": text("host_name")?,
        "workload": hex("workload")?,
        "workload_name": text("workload_name")?,
        "state": state,
        "verdict": hex("verdict")?,
        "host_policy": text("host_policy")?,
        "workload_policy": text("workload_policy")?,
        "released_ms": number("released_ms")?,
        "started_ms": started,
        "seen_ms": number("seen_ms")?,
        "ended_ms": number("ended_ms")?,
        "status": status,
        "ordered": text("ordered")?,
        "reason": text("reason")?,
        "findings": number("findings")?,
    }))
}

impl Service {
    /// The newest runs, of one host or of all.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub(crate) async fn runs(&self, host: Option<&HostId>, limit: u32) -> Result<Vec<Value>, Error> {
        let query = format!(
            "{COLUMNS} WHERE ?1 IS NULL OR runs.host = ?1 \
             ORDER BY COALESCE(released_ms, seen_ms) DESC, runs.rowid DESC LIMIT ?2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(host.map(|host| host.0.to_vec()))
            .bind(i64::from(limit))
            .fetch_all(self.store.pool())
            .await?;
        rows.iter().map(shown).collect()
    }

    /// One run with the other entries of its log.
    ///
    /// # Errors
    /// [`Error::Request`] when not exactly one run begins so.
    pub(crate) async fn run(&self, run: &str) -> Result<Value, Error> {
        let (host, run) = self.find_run(run).await?;
        let query = format!("{COLUMNS} WHERE runs.host = ? AND runs.run = ?");
        let row = sqlx::query(sqlx::AssertSqlSafe(query))
            .bind(host.0.as_slice())
            .bind(run.0.as_slice())
            .fetch_one(self.store.pool())
            .await?;
        let entries: Vec<(i64, i64, String)> = sqlx::query_as(
            "SELECT recnum, time_ms, text FROM run_entries WHERE host = ? AND run = ? ORDER BY rowid LIMIT 1000",
        )
        .bind(host.0.as_slice())
        .bind(run.0.as_slice())
        .fetch_all(self.store.pool())
        .await?;
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|(recnum, time_ms, text)| {
                let event = serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text));
                json!({"recnum": recnum, "seen_ms": time_ms, "event": event})
            })
            .collect();
        let mut run = shown(&row)?;
        if let Some(fields) = run.as_object_mut() {
            fields.insert("entries".into(), entries.into());
        }
        Ok(run)
    }

    /// The only run whose id begins so.
    async fn find_run(&self, text: &str) -> Result<(HostId, RunId), Error> {
        let hint = Some("verifier run list");
        let prefix = text.to_ascii_lowercase();
        if prefix.len() < 4 || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::request(
                "malformed",
                format!("{text:?} is no run: 4 to 32 hex digits are needed"),
                hint,
            ));
        }
        let rows: Vec<(Vec<u8>, Vec<u8>)> =
            sqlx::query_as("SELECT host, run FROM runs WHERE lower(hex(run)) LIKE ? || '%' LIMIT 2")
                .bind(&prefix)
                .fetch_all(self.store.pool())
                .await?;
        let mut rows = rows.into_iter();
        match (rows.next(), rows.next()) {
            (Some((host, run)), None) => Ok((HostId(array(host)?), RunId(array(run)?))),
            (None, _) => Err(Error::request("not-found", format!("there is no run {text}"), hint)),
            (Some(_), Some(_)) => Err(Error::request("not-found", format!("{text} means several runs"), hint)),
        }
    }

    /// An operator's order for a run: stored, audited, and told to its host.
    ///
    /// # Errors
    /// [`Error::Request`] for a run that is not known or has ended.
    pub(crate) async fn order_run(&self, run: &str, order: &str, reason: &str, actor: &str) -> Result<Value, Error> {
        let (host, run) = self.find_run(run).await?;
        let event = events::of_order(order, run, reason);
        let event = event.ok_or_else(|| Error::request("malformed", format!("{order:?} is no order"), None))?;
        let mut transaction = self.store.write().await?;
        let changed =
            sqlx::query("UPDATE runs SET ordered = ?, reason = ? WHERE host = ? AND run = ? AND status IS NULL")
                .bind(order)
                .bind(reason)
                .bind(host.0.as_slice())
                .bind(run.0.as_slice())
                .execute(&mut *transaction)
                .await?;
        if changed.rows_affected() != 1 {
            return Err(Error::request("conflict", format!("run {run} has ended"), Some("verifier run list")));
        }
        events::emit(&mut transaction, Some(&host), &event).await?;
        audit(&mut transaction, actor, "run-order", &format!("{order} {run} on {host}: {reason}")).await?;
        transaction.commit().await?;
        Ok(json!({"run": run, "host": host, "ordered": order}))
    }
}

#[cfg(test)]
mod tests {
    use countersign_wire::finding::{Finding, Kind};
    use countersign_wire::runlog::Entry;

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn runs_go_on_when_their_host_is_admitted_anew() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), true).await.unwrap();
        let mut transaction = store.write().await.unwrap();
        let (host, run, gone) = (HostId([1; 32]), RunId([4; 16]), RunId([5; 16]));
        let start = |run| Event::Start { run, workload: WorkloadId([6; 32]), time_ms: 7 };
        let finding = || Event::Finding { run, finding: Finding::new(Kind::Ptrace, "traced", "", 7).of(9, "/bin/x") };
        let log = |events: Vec<Event>| {
            let mut log = RunLog::empty();
            log.entries = events.into_iter().map(|event| Entry { event, digests: Vec::new(), end: 0 }).collect();
            log
        };
        replay(&mut transaction, &host, 1, &log(vec![start(gone)])).await.unwrap();
        // Another boot: what ran is lost.
        let first = vec![start(run), finding()];
        replay(&mut transaction, &host, 2, &log(first.clone())).await.unwrap();
        // Admitted anew, twice; the second time it tells nothing at first.
        let longer = [first, vec![finding()]].concat();
        replay(&mut transaction, &host, 3, &log(longer.clone())).await.unwrap();
        replay(&mut transaction, &host, 4, &log(Vec::new())).await.unwrap();
        let lost: Vec<Option<String>> =
            sqlx::query_scalar("SELECT status FROM runs ORDER BY run").fetch_all(&mut *transaction).await.unwrap();
        assert_eq!(lost, [Some(LOST.to_owned()), Some(LOST.to_owned())]);
        replay(&mut transaction, &host, 5, &log(longer)).await.unwrap();
        // Run, life, findings, status, end.
        type Row = (Vec<u8>, i64, i64, Option<String>, Option<i64>);
        let rows: Vec<Row> = sqlx::query_as("SELECT run, life, findings, status, ended_ms FROM runs ORDER BY run")
            .fetch_all(&mut *transaction)
            .await
            .unwrap();
        assert_eq!(rows[0], (run.0.to_vec(), 5, 2, None, None));
        assert_eq!((&rows[1].0, rows[1].1, rows[1].3.as_deref()), (&gone.0.to_vec(), 1, Some(LOST)));
        let entries: Vec<(i64, i64)> = sqlx::query_as("SELECT life, recnum FROM run_entries ORDER BY recnum")
            .fetch_all(&mut *transaction)
            .await
            .unwrap();
        assert_eq!(entries, [(5, 1), (5, 2)]);
    }
}
