//! Stored evidence: compressed in the database, and bounded for what was denied.

use std::io::Read as _;

use countersign_wire::id::HostId;
use countersign_wire::limits;
use countersign_wire::record::Record;
use sqlx::SqliteConnection;

use crate::error::Error;

/// First bytes of a zstd frame (RFC 8878, 3.1.1). An encoded record is a CBOR array and begins with another one.
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// A record as it is stored: logs shrink to a tenth, zeros to nothing.
pub(super) fn pack(record: &[u8]) -> Result<Vec<u8>, Error> {
    zstd::encode_all(record, 1).map_err(|e| Error::Internal(e.to_string()))
}

/// A stored record, encoded as it was signed. Older ones are stored as they are.
pub(super) fn unpack(stored: Vec<u8>) -> Result<Vec<u8>, Error> {
    if !stored.starts_with(&ZSTD) {
        return Ok(stored);
    }
    let corrupt = |e: std::io::Error| Error::Corrupt(format!("a stored record: {e}"));
    let most = u64::try_from(limits::RECORD).unwrap_or(u64::MAX);
    let mut record = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(stored.as_slice()).map_err(corrupt)?;
    decoder.take(most.saturating_add(1)).read_to_end(&mut record).map_err(corrupt)?;
    Ok(record)
}

/// A stored record.
pub(crate) fn decode(stored: Vec<u8>) -> Result<Record, Error> {
    countersign_wire::cbor::decode(&unpack(stored)?).map_err(|e| Error::Corrupt(e.to_string()))
}

/// Deletes a host's oldest evidence of denials beyond `most` bytes; verdicts stay. A host can be denied as often as it likes, and each time send as much
/// as it likes. What a policy wants kept is kept: else a host could push out what shows its first denial.
pub(super) async fn bound_denied(
    connection: &mut SqliteConnection,
    host: &HostId,
    now_ms: i64,
    most: i64,
) -> Result<(), Error> {
    sqlx::query(
        "UPDATE verdicts SET record = x'', evidence_deleted_ms = ?1 WHERE rowid IN (SELECT number FROM \
         (SELECT rowid AS number, retain_until_ms, SUM(length(record)) OVER (ORDER BY time_ms DESC, rowid DESC) AS total \
         FROM verdicts WHERE host = ?2 AND allow = 0 AND evidence_deleted_ms IS NULL AND length(record) > 0) \
         WHERE total > ?3 AND (retain_until_ms IS NULL OR retain_until_ms <= ?1))",
    )
    .bind(now_ms)
    .bind(host.0.as_slice())
    .bind(most)
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn records_are_stored_small_and_old_ones_are_read() {
        let zeros = vec![0x84; 1 << 20];
        let stored = pack(&zeros).unwrap();
        assert!(stored.len() < 1024, "{}", stored.len());
        assert_eq!(unpack(stored.clone()).unwrap(), zeros);
        assert_eq!(unpack(zeros.clone()).unwrap(), zeros, "as an older verifier wrote it");
        assert_eq!(unpack(Vec::new()).unwrap(), Vec::<u8>::new());
        assert!(matches!(unpack(stored[..stored.len() - 4].to_vec()), Err(Error::Corrupt(_))));
        assert!(matches!(decode(stored), Err(Error::Corrupt(_))));
        let bomb = pack(&vec![0; limits::RECORD + (1 << 20)]).unwrap();
        assert_eq!(unpack(bomb).unwrap().len(), limits::RECORD + 1, "no longer than the decoder refuses");
    }

    #[tokio::test]
    async fn evidence_of_denials_is_bounded_for_each_host() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), true).await.unwrap();
        let mut transaction = store.write().await.unwrap();
        let (mine, other) = (HostId([1; 32]), HostId([2; 32]));
        // time, host, allow, retained until: each of 100 bytes.
        let rows = [
            (1, &mine, 0, None),
            (2, &mine, 1, None),
            (3, &mine, 0, Some(2000)),
            (4, &mine, 0, Some(10)),
            (5, &other, 0, None),
            (6, &mine, 0, None),
            (7, &mine, 0, None),
        ];
        for (time, host, allow, retain) in rows {
            sqlx::query(
                "INSERT INTO verdicts (id, host, time_ms, purpose, allow, document, record, retain_until_ms) \
                 VALUES (?1, ?2, 0, 'attest', ?3, x'00', zeroblob(100), ?4)",
            )
            .bind(vec![time; 16])
            .bind(host.0.as_slice())
            .bind(allow)
            .bind(retain)
            .execute(&mut *transaction)
            .await
            .unwrap();
            sqlx::query("UPDATE verdicts SET time_ms = ? WHERE id = ?")
                .bind(i64::from(time))
                .bind(vec![time; 16])
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
        bound_denied(&mut transaction, &mine, 1000, 250).await.unwrap();
        let kept: Vec<i64> =
            sqlx::query_scalar("SELECT time_ms FROM verdicts WHERE length(record) = 100 ORDER BY time_ms")
                .fetch_all(&mut *transaction)
                .await
                .unwrap();
        assert_eq!(kept, [2, 3, 5, 6, 7]);
        let deleted: Vec<i64> =
            sqlx::query_scalar("SELECT time_ms FROM verdicts WHERE evidence_deleted_ms = 1000 ORDER BY time_ms")
                .fetch_all(&mut *transaction)
                .await
                .unwrap();
        assert_eq!(deleted, [1, 4]);
    }
}
