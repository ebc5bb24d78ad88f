//! Reference values of boots and IMA reference sets: what operators add and list.

use countersign_policy::input::ReferenceValue;
use countersign_tpm::alg::HashAlg;
use countersign_wire::eventlog::{EventLog, PcrSet, Refusal, Registers};
use countersign_wire::facts::Content;
use countersign_wire::limits;
use countersign_wire::refset::ReferenceSet;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::raise;
use crate::error::Error;
use crate::ima::Reference;
use crate::service::{Service, audit};
use crate::store::{now_ms, read_ima_sets, to_db};

/// PCRs of which `reference add` takes events when none are named: firmware, its configuration, boot loaders, Secure Boot, what the boot loader
/// ran and loaded, and shim's lists. PCR 5 (partition table) and 1 (boot order) differ between machines of one kind.
pub const DEFAULT_PCRS: [u8; 8] = [0, 2, 3, 4, 7, 8, 9, 14];

/// The reference values that a boot log holds for some PCRs; none take [`DEFAULT_PCRS`].
///
/// # Errors
/// The log does not replay in the SHA-256 bank, or lies.
pub fn reference_values(name: &str, log: &[u8], pcrs: &[u8]) -> Result<Vec<ReferenceValue>, String> {
    values_of(name, log, pcrs, PcrSet::ALL)
}

/// As [`reference_values`], of a log of which these PCRs are judged.
fn values_of(name: &str, log: &[u8], pcrs: &[u8], judged: PcrSet) -> Result<Vec<ReferenceValue>, String> {
    let log = EventLog::parse(log).map_err(|e| e.to_string())?;
    let alg = HashAlg::Sha256;
    let examined = log.examine(&[(alg, judged)], Registers::Tpm).map_err(|refusal| match refusal {
        Refusal::Replay(e) => e.to_string(),
        Refusal::Lie(lie) => format!("{}: {}", lie.event, lie.got),
    })?;
    let pcrs = if pcrs.is_empty() { &DEFAULT_PCRS[..] } else { pcrs };
    let mut values = Vec::new();
    for (event, pcr, part) in examined.events() {
        if let (true, Some(digest)) = (pcrs.contains(&pcr), event.digest(alg)) {
            values.push(ReferenceValue {
                name: name.to_owned(),
                bank: alg.name().to_owned(),
                pcr,
                kind: event.kind.to_string(),
                digest: hex::encode(digest),
                content: Content::of(event, part),
            });
        }
    }
    values.sort();
    // One digest under two names is one value.
    values.dedup_by(|one, two| (one.pcr, &one.kind, &one.digest) == (two.pcr, &two.kind, &two.digest));
    Ok(values)
}

/// As [`add_boot`], of a log for which only these PCRs vouch.
pub(super) async fn add_vouched(
    service: &Service,
    name: &str,
    (log, vouched): (&[u8], PcrSet),
    pcrs: &[u8],
    actor: &str,
) -> Result<Value, Error> {
    let pcrs = if pcrs.is_empty() { &DEFAULT_PCRS[..] } else { pcrs };
    if let Some(pcr) = pcrs.iter().find(|pcr| !vouched.contains(**pcr)) {
        let what = format!("PCR {pcr} of the SHA-256 bank was not quoted: nothing vouches for what the log says of it");
        return Err(Error::request("eventlog", what, Some("name the quoted ones: --pcr N")));
    }
    add_boot(service, name, (log, vouched), pcrs, actor).await
}

/// Adds the reference values of a boot log of which some PCRs are judged.
pub(super) async fn add_boot(
    service: &Service,
    name: &str,
    (log, judged): (&[u8], PcrSet),
    pcrs: &[u8],
    actor: &str,
) -> Result<Value, Error> {
    if name.is_empty() || name.len() > 128 {
        return Err(Error::request("malformed", "a set's name has 1 to 128 characters", None));
    }
    let refuse = |e: String| Error::request("eventlog", e, Some("verifier check eventlog FILE --pcrs PCRS.json"));
    let values = values_of(name, log, pcrs, judged).map_err(refuse)?;
    let pcrs = if pcrs.is_empty() { &DEFAULT_PCRS[..] } else { pcrs };
    let data = serde_json::to_string(&values).map_err(|e| Error::Internal(e.to_string()))?;
    let mut transaction = service.store.write().await?;
    let now = now_ms(&mut transaction).await?;
    sqlx::query("INSERT OR REPLACE INTO reference_sets VALUES (?, ?, ?)")
        .bind(name)
        .bind(data)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    let revision = raise(&mut transaction, "reference_revision").await?;
    audit(&mut transaction, actor, "reference-add", name).await?;
    transaction.commit().await?;
    Ok(json!({"name": name, "values": values.len(), "pcrs": pcrs, "revision": revision}))
}

/// Decompresses a document, up to its limit.
fn decompress(set: &[u8]) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let limit = u64::try_from(limits::REFERENCE_SET).unwrap_or(u64::MAX);
    let mut json = Vec::new();
    let decoder = zstd::Decoder::new(set).map_err(|e| e.to_string())?;
    decoder.take(limit.saturating_add(1)).read_to_end(&mut json).map_err(|e| e.to_string())?;
    Ok(json)
}

/// Adds a set, or puts another in the place of the one with this name. It must compile, alone and beside the others.
pub(super) async fn add(service: &Service, name: &str, set: &[u8], signer: &str, actor: &str) -> Result<Value, Error> {
    if name.is_empty() || name.len() > 128 {
        return Err(Error::request("malformed", "a set's name has 1 to 128 characters", None));
    }
    let refuse = |e: String| Error::request("reference-set", e, Some("attest reference verify FILE"));
    let set = set.to_vec();
    let compiled = tokio::task::spawn_blocking(move || {
        let json = decompress(&set)?;
        let files = ReferenceSet::parse(&json).map_err(|e| e.to_string())?.files();
        Reference::compile([json.as_slice()]).map_err(|e| e.to_string())?;
        Ok::<_, String>((json, files))
    });
    let (json, files) = compiled.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(refuse)?;
    let digest: [u8; 32] = Sha256::digest(&json).into();
    let mut transaction = service.store.write().await?;
    let now = now_ms(&mut transaction).await?;
    sqlx::query("INSERT OR IGNORE INTO ima_documents VALUES (?, ?)")
        .bind(digest.as_slice())
        .bind(&json)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("INSERT OR REPLACE INTO ima_sets VALUES (?, ?, ?, ?, ?)")
        .bind(name)
        .bind(digest.as_slice())
        .bind(to_db(u64::try_from(files).unwrap_or(u64::MAX)))
        .bind(signer)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    let total: i64 = sqlx::query_scalar(
        "SELECT COALESCE(SUM(length(data)), 0) FROM ima_sets JOIN ima_documents ON ima_sets.digest = ima_documents.digest",
    )
    .fetch_one(&mut *transaction)
    .await?;
    if usize::try_from(total).unwrap_or(usize::MAX) > limits::REFERENCE_SETS {
        return Err(refuse(format!("all sets together have {total} bytes, at most {}", limits::REFERENCE_SETS)));
    }
    let sets = read_ima_sets(&mut transaction).await?.len();
    let revision = raise(&mut transaction, "reference_revision").await?;
    audit(&mut transaction, actor, "reference-add", &format!("{name} {} {signer}", hex::encode(digest))).await?;
    transaction.commit().await?;
    Ok(
        json!({"name": name, "files": files, "sha256": hex::encode(digest), "signer": signer, "sets": sets, "revision": revision}),
    )
}

/// The sets, as `reference list` shows them.
pub(super) async fn list(service: &Service) -> Result<Vec<Value>, Error> {
    let sets: Vec<(String, Vec<u8>, i64, String, i64)> =
        sqlx::query_as("SELECT name, digest, files, signer, added_ms FROM ima_sets ORDER BY name")
            .fetch_all(service.store.pool())
            .await?;
    let json = |(name, digest, files, signer, added_ms): (String, Vec<u8>, i64, String, i64)| json!({"name": name, "files": files, "sha256": hex::encode(digest), "signer": signer, "added_ms": added_ms});
    Ok(sets.into_iter().map(json).collect())
}
