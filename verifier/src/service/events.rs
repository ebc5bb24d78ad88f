//! What hosts are told between attestations: stored first, so that nothing is lost over a reconnect or a restart.

use countersign_wire::enrol::HostState;
use countersign_wire::event::HostEvent;
use countersign_wire::id::{HostId, RunId, WorkloadId};
use sqlx::SqliteConnection;

use super::Service;
use crate::error::Error;
use crate::store::{array, from_db, now_ms, read_host};

/// How long an event is kept, milliseconds. Whoever was away longer is told how things stand instead.
const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;
/// Events that are told one by one after a reconnect; for more, how things stand is told instead.
const REPLAYED: i64 = 1000;

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its number.
    pub(crate) id: u64,
    /// Whom it is for; none: everybody.
    pub(crate) host: Option<HostId>,
    /// JSON, one line.
    pub(crate) data: String,
}

/// What a stream begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// Events to tell first; those of [`Beginning::position`] have no number of their own.
    pub(crate) events: Vec<Stored>,
    /// Up to here everything is told by them.
    pub(crate) position: u64,
}

/// Stores an event within the transaction that makes it true.
pub(crate) async fn emit(
    connection: &mut SqliteConnection,
    host: Option<&HostId>,
    event: &HostEvent,
) -> Result<(), Error> {
    let now = now_ms(connection).await?;
    let data = json(event)?;
    sqlx::query("INSERT INTO events (host, time_ms, data) VALUES (?, ?, ?)")
        .bind(host.map(|host| host.0.to_vec()))
        .bind(now)
        .bind(data)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM events WHERE time_ms < ?").bind(now.saturating_sub(KEPT_MS)).execute(connection).await?;
    Ok(())
}

/// The event of a new state; nobody is told that it is pending.
pub(crate) fn of_state(state: HostState, reason: &str) -> Option<HostEvent> {
    let reason = reason.to_owned();
    match state {
        HostState::Pending => None,
        HostState::Active => Some(HostEvent::Admitted { reason }),
        HostState::Suspended => Some(HostEvent::Suspended { reason }),
        HostState::Revoked => Some(HostEvent::Revoked { reason }),
    }
}

/// The event of an operator's order; none for a word that is none.
pub(crate) fn of_order(order: &str, run: RunId, reason: &str) -> Option<HostEvent> {
    let reason = reason.to_owned();
    match order {
        "stop" => Some(HostEvent::Stop { run, reason }),
        "freeze" => Some(HostEvent::Freeze { run, reason }),
        "thaw" => Some(HostEvent::Thaw { run, reason }),
        _ => None,
    }
}

fn json(event: &HostEvent) -> Result<String, Error> {
    serde_json::to_string(event).map_err(|e| Error::Internal(e.to_string()))
}

/// id, host, data.
type Row = (i64, Option<Vec<u8>>, String);

fn stored((id, host, data): Row) -> Result<Stored, Error> {
    let host = host.map(array).transpose()?.map(HostId);
    Ok(Stored { id: from_db(id), host, data })
}

impl Service {
    /// What a host's stream begins with: the events behind the one that it had last, or else how things stand.
    ///
    /// # Errors
    /// [`Error::Request`] for a host that is not known, not admitted or revoked.
    pub(crate) async fn beginning(&self, host: &HostId, last: Option<u64>) -> Result<Beginning, Error> {
        let mut connection = self.store.pool().begin().await?;
        let row = read_host(&mut connection, host).await?.ok_or_else(|| super::unknown_host(host))?;
        match row.snapshot.state {
            HostState::Active | HostState::Suspended => {}
            HostState::Pending => return Err(Error::request("host-pending", "this host was not admitted yet", None)),
            HostState::Revoked => {
                return Err(Error::request(
                    "host-revoked",
                    format!("this host was revoked: {}", row.state_reason),
                    None,
                ));
            }
        }
        let position: i64 =
            sqlx::query_scalar("SELECT COALESCE(max(id), 0) FROM events").fetch_one(&mut *connection).await?;
        // A number that is not there any more is too old, or from before a backup was restored.
        let last = last.and_then(|last| i64::try_from(last).ok());
        let known: Option<i64> = match last {
            Some(last) => {
                sqlx::query_scalar("SELECT id FROM events WHERE id = ?")
                    .bind(last)
                    .fetch_optional(&mut *connection)
                    .await?
            }
            None => None,
        };
        if let Some(known) = known {
            let missed: Vec<Row> = sqlx::query_as(
                "SELECT id, host, data FROM events WHERE id > ? AND (host IS NULL OR host = ?) ORDER BY id LIMIT ?",
            )
            .bind(known)
            .bind(host.0.as_slice())
            .bind(REPLAYED)
            .fetch_all(&mut *connection)
            .await?;
            if i64::try_from(missed.len()).unwrap_or(i64::MAX) < REPLAYED {
                let events: Result<Vec<Stored>, Error> = missed.into_iter().map(stored).collect();
                return Ok(Beginning { events: events?, position: from_db(position) });
            }
        }
        let mut standing = Vec::new();
        if row.snapshot.state == HostState::Suspended {
            standing.extend(of_state(row.snapshot.state, &row.state_reason));
        }
        let orders: Vec<(Vec<u8>, String, Option<String>)> = sqlx::query_as(
            "SELECT run, ordered, reason FROM runs WHERE host = ? AND status IS NULL AND ordered IS NOT NULL",
        )
        .bind(host.0.as_slice())
        .fetch_all(&mut *connection)
        .await?;
        for (run, order, reason) in orders {
            standing.extend(of_order(&order, RunId(array(run)?), &reason.unwrap_or_default()));
        }
        let withdrawn: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT DISTINCT workload FROM runs JOIN workloads ON workloads.id = runs.workload \
             WHERE host = ? AND status IS NULL AND withdrawn = 1",
        )
        .bind(host.0.as_slice())
        .fetch_all(&mut *connection)
        .await?;
        for workload in withdrawn {
            standing.push(HostEvent::WorkloadWithdrawn { workload: WorkloadId(array(workload)?) });
        }
        let position = from_db(position);
        let standing = standing.iter().map(|event| Ok(Stored { id: position, host: Some(*host), data: json(event)? }));
        let events: Result<Vec<Stored>, Error> = standing.collect();
        Ok(Beginning { events: events?, position })
    }

    /// The newest event's number.
    pub(crate) async fn newest_event(&self) -> Result<u64, Error> {
        let newest: i64 =
            sqlx::query_scalar("SELECT COALESCE(max(id), 0) FROM events").fetch_one(self.store.pool()).await?;
        Ok(from_db(newest))
    }

    /// Events behind a number, for everybody, oldest first.
    pub(crate) async fn events_after(&self, last: u64) -> Result<Vec<Stored>, Error> {
        let rows: Vec<Row> = sqlx::query_as("SELECT id, host, data FROM events WHERE id > ? ORDER BY id LIMIT ?")
            .bind(crate::store::to_db(last))
            .bind(REPLAYED)
            .fetch_all(self.store.pool())
            .await?;
        rows.into_iter().map(stored).collect()
    }

    /// Asks every host to attest.
    pub(crate) async fn ask_to_attest(&self, reason: &str) -> Result<(), Error> {
        let mut transaction = self.store.write().await?;
        emit(&mut transaction, None, &HostEvent::Attest { reason: reason.to_owned() }).await?;
        transaction.commit().await?;
        Ok(())
    }
}
