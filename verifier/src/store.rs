//! The database: SQLite in WAL mode, synchronous FULL. All times are the database's.

use std::path::Path;
use std::time::Duration;

use countersign_wire::enrol::HostState;
use countersign_wire::id::{HostId, WorkloadId};
use countersign_wire::record::EnrolmentRecord;
use countersign_wire::statement::Label;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row as _, SqliteConnection, SqlitePool};

use crate::appraise::{HostSnapshot, ImaContext, NamedSet, StoredReceipt, WorkloadRecord};
use crate::error::Error;

/// An open database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

/// A host's row, as commands show it and enrolment uses it.
#[derive(Debug, Clone)]
pub struct HostRow {
    /// What the appraisal is given.
    pub snapshot: HostSnapshot,
    /// Why it is in this state.
    pub state_reason: String,
    /// TPMT_PUBLIC of the EK.
    pub ek_public: Vec<u8>,
    /// How its EK was certified.
    pub enrolment: EnrolmentRecord,
    /// Number of the next receipt.
    pub next_receipt: u64,
    /// Last accepted attestation, ms since 1970.
    pub attested_ms: Option<i64>,
}

/// CBOR of a stored type.
pub(crate) fn to_cbor<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).unwrap_or_default()
}

/// A stored type from CBOR.
pub(crate) fn from_cbor<T: for<'b> minicbor::Decode<'b, ()>>(bytes: &[u8]) -> Result<T, Error> {
    minicbor::decode(bytes).map_err(|e| Error::Corrupt(e.to_string()))
}

/// SQLite has signed 64-bit integers.
pub(crate) fn to_db(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn from_db(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Store {
    /// Opens the database of a state folder, making it when `create` says so, and brings it up to date.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn open(dir: &Path, create: bool) -> Result<Self, Error> {
        let path = dir.join("verifier.db");
        if !create && !path.exists() {
            return Err(Error::State { path: path.display().to_string(), reason: "there is no verifier here".into() });
        }
        if create {
            use std::os::unix::fs::OpenOptionsExt as _;
            // Its folder may have been there before, and open to others. SQLite makes the files beside it with the same mode.
            let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
            file.map_err(|e| Error::State { path: path.display().to_string(), reason: e.to_string() })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!().run(&pool).await.map_err(|e| Error::Corrupt(e.to_string()))?;
        Ok(Self { pool })
    }

    /// The pool, for queries of one statement.
    pub(crate) const fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// A write transaction: nobody else writes until it ends.
    pub(crate) async fn write(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, Error> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// The database's clock, ms since 1970.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn now_ms(&self) -> Result<i64, Error> {
        let mut connection = self.pool.acquire().await?;
        now_ms(&mut connection).await
    }

    /// A number among the settings.
    pub(crate) async fn setting(&self, key: &str) -> Result<u64, Error> {
        let value: i64 =
            sqlx::query_scalar("SELECT value FROM settings WHERE key = ?").bind(key).fetch_one(&self.pool).await?;
        Ok(from_db(value))
    }

    /// A host; `None` when it is not known.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn host(&self, host: &HostId) -> Result<Option<HostRow>, Error> {
        let mut connection = self.pool.acquire().await?;
        read_host(&mut connection, host).await
    }

    /// All hosts, by name.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn hosts(&self) -> Result<Vec<HostRow>, Error> {
        let ids: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT host FROM hosts ORDER BY name, host").fetch_all(&self.pool).await?;
        let mut hosts = Vec::new();
        for id in ids {
            hosts.extend(self.host(&HostId(array(id)?)).await?);
        }
        Ok(hosts)
    }

    /// A registered workload that was not withdrawn, with its policy bundle and its sealed key.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn workload(&self, id: &WorkloadId) -> Result<Option<(WorkloadRecord, Vec<u8>, Vec<u8>)>, Error> {
        let row = sqlx::query("SELECT * FROM workloads WHERE id = ? AND withdrawn = 0")
            .bind(id.0.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| read_workload(&row)).transpose()
    }

    /// A workload that was withdrawn.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn withdrawn(&self, id: &WorkloadId) -> Result<Option<WorkloadRecord>, Error> {
        let row = sqlx::query("SELECT * FROM workloads WHERE id = ? AND withdrawn = 1")
            .bind(id.0.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| Ok(read_workload(&row)?.0)).transpose()
    }

    /// `data.countersign.reference` as JSON: always the same bytes for the same sets.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn reference(&self) -> Result<Vec<u8>, Error> {
        let mut connection = self.pool.acquire().await?;
        let revision: i64 = sqlx::query_scalar("SELECT value FROM settings WHERE key = 'reference_revision'")
            .fetch_one(&mut *connection)
            .await?;
        let sets: Vec<String> =
            sqlx::query_scalar("SELECT data FROM reference_sets ORDER BY name").fetch_all(&mut *connection).await?;
        let mut values: Vec<countersign_policy::input::ReferenceValue> = Vec::new();
        for set in sets {
            let set: Vec<countersign_policy::input::ReferenceValue> =
                serde_json::from_str(&set).map_err(|e| Error::Corrupt(e.to_string()))?;
            values.extend(set);
        }
        values.sort();
        let reference = countersign_policy::input::Reference { revision: from_db(revision), values };
        serde_json::to_vec(&reference).map_err(|e| Error::Internal(e.to_string()))
    }

    /// The IMA reference sets: name and SHA-256 of each.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ima_sets(&self) -> Result<Vec<NamedSet>, Error> {
        let mut connection = self.pool.acquire().await?;
        read_ima_sets(&mut connection).await
    }

    /// The documents of sets, also of ones that were removed since.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when one is missing.
    pub(crate) async fn ima_documents(&self, sets: &[NamedSet]) -> Result<Vec<Vec<u8>>, Error> {
        let mut documents = Vec::new();
        for set in sets {
            let data: Option<Vec<u8>> = sqlx::query_scalar("SELECT data FROM ima_documents WHERE digest = ?")
                .bind(set.digest.as_slice())
                .fetch_optional(&self.pool)
                .await?;
            documents.push(data.ok_or_else(|| Error::Corrupt(format!("reference set {:?} is missing", set.name)))?);
        }
        Ok(documents)
    }

    /// Curated EK roots: DER, and whether it is a development CA.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn ek_roots(&self) -> Result<Vec<(Vec<u8>, bool)>, Error> {
        Ok(sqlx::query_as("SELECT der, development FROM ek_roots ORDER BY fingerprint").fetch_all(&self.pool).await?)
    }
}

/// The IMA reference sets within a transaction.
pub(crate) async fn read_ima_sets(connection: &mut SqliteConnection) -> Result<Vec<NamedSet>, Error> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT name, digest FROM ima_sets ORDER BY name").fetch_all(connection).await?;
    rows.into_iter().map(|(name, digest)| Ok(NamedSet { name, digest: array(digest)? })).collect()
}

/// What the appraisal of a host's IMA list starts from, within a transaction.
pub(crate) async fn read_ima(connection: &mut SqliteConnection, host: &HostId) -> Result<Option<ImaContext>, Error> {
    let sets = read_ima_sets(connection).await?;
    let state: Option<Vec<u8>> = sqlx::query_scalar("SELECT state_cbor FROM ima_states WHERE host = ?")
        .bind(host.0.as_slice())
        .fetch_optional(connection)
        .await?;
    let state = state.map(|bytes| from_cbor(&bytes)).transpose()?;
    Ok((!sets.is_empty() || state.is_some()).then_some(ImaContext { sets, state }))
}

/// The database's clock within a transaction.
pub(crate) async fn now_ms(connection: &mut SqliteConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)").fetch_one(connection).await?)
}

pub(crate) fn array<const N: usize>(bytes: Vec<u8>) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| Error::Corrupt("an id has another length".into()))
}

/// Reads a host within a transaction.
pub(crate) async fn read_host(connection: &mut SqliteConnection, host: &HostId) -> Result<Option<HostRow>, Error> {
    let row = sqlx::query("SELECT * FROM hosts WHERE host = ?")
        .bind(host.0.as_slice())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let receipts: Vec<Vec<u8>> = sqlx::query_scalar("SELECT receipt_cbor FROM receipts WHERE host = ? ORDER BY number")
        .bind(host.0.as_slice())
        .fetch_all(connection)
        .await?;
    let receipts: Result<Vec<StoredReceipt>, Error> = receipts.iter().map(|bytes| from_cbor(bytes)).collect();
    host_from(&row, *host, receipts?).map(Some)
}

fn host_from(row: &SqliteRow, host: HostId, receipts: Vec<StoredReceipt>) -> Result<HostRow, Error> {
    let state = match row.try_get::<i64, _>("state")? {
        0 => HostState::Pending,
        1 => HostState::Active,
        2 => HostState::Suspended,
        _ => HostState::Revoked,
    };
    let tpm: std::collections::BTreeMap<String, String> =
        serde_json::from_str(row.try_get("tpm")?).map_err(|e| Error::Corrupt(e.to_string()))?;
    let ek_public: Vec<u8> = row.try_get("ek_public")?;
    let ek = countersign_tpm::public::Public::parse(&ek_public).map_err(|e| Error::Corrupt(e.to_string()))?;
    let baseline: Option<Vec<u8>> = row.try_get("baseline_cbor")?;
    let enrolment: Vec<u8> = row.try_get("enrolment_cbor")?;
    let snapshot = HostSnapshot {
        host,
        name: row.try_get("name")?,
        state,
        simulated: row.try_get("simulated")?,
        ek_root: row.try_get("ek_root")?,
        tpm: tpm.into_iter().map(|(name, value)| Label { name, value }).collect(),
        ak_public: row.try_get("ak_public")?,
        ek_name: ek.name().as_bytes().to_vec(),
        run_pcr: u8::try_from(row.try_get::<i64, _>("run_pcr")?).unwrap_or(13),
        baseline: baseline.map(|bytes| from_cbor(&bytes)).transpose()?,
        receipts,
        lost_epoch: row.try_get::<Option<i64>, _>("lost_epoch")?.map(from_db),
        version: from_db(row.try_get("version")?),
    };
    Ok(HostRow {
        snapshot,
        state_reason: row.try_get("state_reason")?,
        ek_public,
        enrolment: from_cbor(&enrolment)?,
        next_receipt: from_db(row.try_get("next_receipt")?),
        attested_ms: row.try_get("attested_ms")?,
    })
}

fn read_workload(row: &SqliteRow) -> Result<(WorkloadRecord, Vec<u8>, Vec<u8>), Error> {
    let least: &str = row.try_get("least_selection")?;
    let record = WorkloadRecord {
        id: WorkloadId(array(row.try_get("id")?)?),
        payload_root: countersign_wire::id::PayloadRoot(array(row.try_get("payload_root")?)?),
        policy_digest: countersign_wire::id::PolicyDigest(array(row.try_get("policy_digest")?)?),
        name: row.try_get("name")?,
        least_selection: serde_json::from_str(least).map_err(|e| Error::Corrupt(e.to_string()))?,
    };
    Ok((record, row.try_get("policy")?, row.try_get("sealed_key")?))
}

/// Number of a state in the database.
pub(crate) const fn state_number(state: HostState) -> i64 {
    match state {
        HostState::Pending => 0,
        HostState::Active => 1,
        HostState::Suspended => 2,
        HostState::Revoked => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_durable() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), true).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(store.pool()).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(store.pool()).await.unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", 2), "2 is FULL");
        assert!(matches!(Store::open(&dir.path().join("nothing"), false).await, Err(Error::State { .. })));
    }

    #[tokio::test]
    async fn nobody_else_reads_the_database() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let store = Store::open(dir.path(), true).await.unwrap();
        sqlx::query("UPDATE settings SET value = value + 1").execute(store.pool()).await.unwrap();
        let mut files = 0;
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
            files += 1;
        }
        assert!(files >= 2, "the database and its WAL");
    }
}
