//! What operators ask: one request type, whether it comes over HTTPS with a token or from the command line on the state folder itself.

mod hosts;
mod reference;
mod releases;
mod request;
mod workloads;

pub use reference::{DEFAULT_PCRS, reference_values};
pub use request::{Request, RunOrder, Secret};
pub use workloads::LEAST_SELECTION;

use countersign_wire::enrol::HostState;
use countersign_wire::event::HostEvent;
use countersign_wire::eventlog::PcrSet;
use serde_json::{Value, json};

use crate::error::Error;
use crate::service::events::emit;
use crate::service::{Service, audit};
use hosts::{ek_root_add, find_host, host_json};
use workloads::{Registration, WorkloadRow, no_such_workload, register, workload_json};

fn bytes(field: &str, text: &str) -> Result<Vec<u8>, Error> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|_| Error::request("malformed", format!("{field} is not base64"), None))
}

/// Carries out a request; the answer is a JSON object.
///
/// # Errors
/// [`Error`].
pub async fn perform(service: &Service, request: Request, actor: &str) -> Result<Value, Error> {
    match request {
        Request::TokenNew { uses, ttl_s, host } => {
            let host = match host {
                Some(text) => Some(find_host(service, &text).await?.snapshot.host),
                None => None,
            };
            let url = service.url();
            let token = service.new_token(&url, uses, ttl_s, host.as_ref(), actor).await?;
            Ok(json!({"token": token, "url": url, "uses": uses, "ttl_s": ttl_s}))
        }
        Request::HostList {} => {
            let hosts = service.store.hosts().await?;
            Ok(json!({"hosts": hosts.iter().map(host_json).collect::<Vec<_>>()}))
        }
        Request::HostShow { host } => {
            let host = find_host(service, &host).await?;
            let eks: Vec<Vec<u8>> = sqlx::query_scalar("SELECT ek FROM host_eks WHERE host = ? ORDER BY ek")
                .bind(host.snapshot.host.0.as_slice())
                .fetch_all(service.store.pool())
                .await?;
            let mut shown = host_json(&host);
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("eks".into(), eks.into_iter().map(hex::encode).collect());
            }
            Ok(shown)
        }
        Request::HostState { host, state, reason } => {
            let host = find_host(service, &host).await?.snapshot.host;
            if state == HostState::Pending {
                return Err(Error::request(
                    "malformed",
                    "no host becomes pending again",
                    Some("verifier host suspend"),
                ));
            }
            service.set_state(&host, state, &reason, actor).await?;
            Ok(json!({"host": host, "state": state}))
        }
        Request::EkRootAdd { certificates, development } => {
            ek_root_add(service, &certificates, development, actor).await
        }
        Request::EkRootList {} => {
            let roots: Vec<(Vec<u8>, String, bool)> =
                sqlx::query_as("SELECT fingerprint, subject, development FROM ek_roots ORDER BY subject")
                    .fetch_all(service.store.pool())
                    .await?;
            let roots = roots.into_iter().map(|(fingerprint, subject, development)| {
                json!({"fingerprint": hex::encode(fingerprint), "subject": subject, "development": development})
            });
            Ok(json!({"roots": roots.collect::<Vec<_>>()}))
        }
        Request::EkRootRemove { fingerprint } => {
            let mut transaction = service.store.write().await?;
            let removed: Vec<String> = sqlx::query_scalar(
                "DELETE FROM ek_roots WHERE lower(hex(fingerprint)) LIKE ? || '%' RETURNING subject",
            )
            .bind(hex_prefix(&fingerprint)?)
            .fetch_all(&mut *transaction)
            .await?;
            if removed.len() != 1 {
                return Err(Error::request(
                    "not-found",
                    format!("{} roots begin with {fingerprint}", removed.len()),
                    Some("verifier ek-root list"),
                ));
            }
            audit(&mut transaction, actor, "ek-root-remove", &fingerprint).await?;
            transaction.commit().await?;
            Ok(json!({"removed": removed}))
        }
        Request::EkAllow { ek, name, development } => {
            service.allow_ek(&bytes("ek", &ek)?, &name, development, actor).await
        }
        Request::EkList {} => service.allowed_eks().await,
        Request::EkRemove { ek } => service.disallow_ek(&hex_prefix(&ek)?, actor).await,
        Request::ReferenceAdd { name, eventlog, pcrs } => {
            let log = bytes("eventlog", &eventlog)?;
            reference::add_boot(service, &name, (&log, PcrSet::ALL), &pcrs, actor).await
        }
        Request::ReferenceAddVerdict { name, id, pcrs } => {
            let (log, vouched) = service.boot_log(&id).await?;
            reference::add_vouched(service, &name, (&log, vouched), &pcrs, actor).await
        }
        Request::ReferenceAddSet { name, set, signer } => {
            reference::add(service, &name, &bytes("set", &set)?, &signer, actor).await
        }
        Request::ReferenceRevoke { name } => {
            let mut transaction = service.store.write().await?;
            let removed =
                sqlx::query("DELETE FROM reference_sets WHERE name = ?").bind(&name).execute(&mut *transaction).await?;
            let sets =
                sqlx::query("DELETE FROM ima_sets WHERE name = ?").bind(&name).execute(&mut *transaction).await?;
            if removed.rows_affected() == 0 && sets.rows_affected() == 0 {
                return Err(Error::request(
                    "not-found",
                    format!("there is no set {name:?}"),
                    Some("verifier reference list"),
                ));
            }
            let revision = raise(&mut transaction, "reference_revision").await?;
            let reason = format!("reference values were revoked: {name}");
            emit(&mut transaction, None, &HostEvent::Attest { reason }).await?;
            audit(&mut transaction, actor, "reference-revoke", &name).await?;
            transaction.commit().await?;
            Ok(json!({"revoked": name, "revision": revision}))
        }
        Request::ReferenceList {} => {
            let sets: Vec<(String, i64, i64)> =
                sqlx::query_as("SELECT name, json_array_length(data), added_ms FROM reference_sets ORDER BY name")
                    .fetch_all(service.store.pool())
                    .await?;
            let revision = service.store.setting("reference_revision").await?;
            let sets = sets
                .into_iter()
                .map(|(name, values, added_ms)| json!({"name": name, "values": values, "added_ms": added_ms}));
            let files = reference::list(service).await?;
            Ok(json!({"revision": revision, "sets": sets.chain(files).collect::<Vec<_>>()}))
        }
        Request::VerdictList { host, limit } => {
            let host = match host {
                Some(text) => Some(find_host(service, &text).await?.snapshot.host),
                None => None,
            };
            let documents: Vec<Vec<u8>> = sqlx::query_scalar(
                "SELECT document FROM verdicts WHERE ?1 IS NULL OR host = ?1 ORDER BY time_ms DESC, id LIMIT ?2",
            )
            .bind(host.map(|host| host.0.to_vec()))
            .bind(i64::from(limit))
            .fetch_all(service.store.pool())
            .await?;
            let documents: Vec<Value> =
                documents.iter().filter_map(|document| serde_json::from_slice(document).ok()).collect();
            Ok(json!({"verdicts": documents}))
        }
        Request::VerdictShow { id } => {
            let document: Option<Vec<u8>> = sqlx::query_scalar("SELECT document FROM verdicts WHERE id = ?")
                .bind(id.0.as_slice())
                .fetch_optional(service.store.pool())
                .await?;
            let document = document.ok_or_else(|| {
                Error::request("not-found", format!("there is no verdict {id}"), Some("verifier verdict list"))
            })?;
            serde_json::from_slice(&document).map_err(|e| Error::Corrupt(e.to_string()))
        }
        Request::VerdictExplain { id } => {
            serde_json::to_value(service.explain(&id).await?).map_err(|e| Error::Internal(e.to_string()))
        }
        Request::VerdictBundle { id } => {
            use base64::Engine as _;
            let file = service.bundle(&id, None).await?;
            Ok(json!({"bundle": base64::engine::general_purpose::STANDARD.encode(file)}))
        }
        Request::ReleaseList { host, limit } => releases::list(service, host.as_deref(), limit).await,
        Request::ReleaseRefund { run, host } => releases::refund(service, &run, host.as_deref(), actor).await,
        Request::WorkloadRegister { name, workload, payload_root, sif_uuid, policy, volume_key, least_selection } => {
            let policy = bytes("policy", &policy)?;
            let key = zeroize::Zeroizing::new(bytes("volume_key", &volume_key.0)?);
            let uuid = hex::decode(&sif_uuid).ok().and_then(|uuid| uuid.try_into().ok());
            let uuid: [u8; 16] =
                uuid.ok_or_else(|| Error::request("malformed", "sif_uuid is not 32 hex digits", None))?;
            let registration = Registration { name, workload, payload_root, uuid, policy, key, least_selection };
            register(service, registration, actor).await
        }
        Request::GrantAdd { grant } => {
            let grant = countersign_wire::artefact::from_file(&bytes("grant", &grant)?);
            let hint = Some("supervisor grant writes such a file");
            service.add_grant(&grant.map_err(|e| Error::request("malformed", e.to_string(), hint))?, actor).await
        }
        Request::GrantList {} => service.grants().await,
        Request::WorkloadList {} => {
            let rows: Vec<WorkloadRow> =
                sqlx::query_as("SELECT id, name, policy_digest, withdrawn, registered_ms, length(sealed_key) = 0 FROM workloads ORDER BY name")
                    .fetch_all(service.store.pool())
                    .await?;
            Ok(json!({"workloads": rows.into_iter().map(workload_json).collect::<Vec<_>>()}))
        }
        Request::WorkloadShow { workload } => {
            let row: Option<WorkloadRow> =
                sqlx::query_as("SELECT id, name, policy_digest, withdrawn, registered_ms, length(sealed_key) = 0 FROM workloads WHERE id = ?")
                    .bind(workload.0.as_slice())
                    .fetch_optional(service.store.pool())
                    .await?;
            row.map(workload_json).ok_or_else(|| no_such_workload(&workload))
        }
        Request::WorkloadWithdraw { workload } => {
            let mut transaction = service.store.write().await?;
            let changed = sqlx::query("UPDATE workloads SET withdrawn = 1 WHERE id = ?")
                .bind(workload.0.as_slice())
                .execute(&mut *transaction)
                .await?;
            if changed.rows_affected() == 0 {
                return Err(no_such_workload(&workload));
            }
            emit(&mut transaction, None, &HostEvent::WorkloadWithdrawn { workload }).await?;
            audit(&mut transaction, actor, "workload-withdraw", &workload.to_string()).await?;
            transaction.commit().await?;
            Ok(json!({"withdrawn": workload}))
        }
        Request::RunList { host, limit } => {
            let host = match host {
                Some(text) => Some(find_host(service, &text).await?.snapshot.host),
                None => None,
            };
            Ok(json!({"runs": service.runs(host.as_ref(), limit).await?}))
        }
        Request::RunShow { run } => service.run(&run).await,
        Request::RunOrder { run, order, reason } => service.order_run(&run, order.word(), &reason, actor).await,
        Request::Restored {} => {
            let mut transaction = service.store.write().await?;
            let epoch = raise(&mut transaction, "epoch").await?;
            // A backup must not revive nonces and tokens.
            for statement in ["DELETE FROM challenges", "DELETE FROM enrolments", "DELETE FROM tokens"] {
                sqlx::query(statement).execute(&mut *transaction).await?;
            }
            // Nor use a receipt's number twice: those that were issued since the backup are far below.
            sqlx::query("UPDATE hosts SET next_receipt = next_receipt + 1000000, version = version + 1")
                .execute(&mut *transaction)
                .await?;
            // Nor the number of an event: hosts that name one which is not there are told how things stand.
            for statement in [
                "INSERT INTO sqlite_sequence SELECT 'events', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'events')",
                "UPDATE sqlite_sequence SET seq = seq + 1000000 WHERE name = 'events'",
            ] {
                sqlx::query(statement).execute(&mut *transaction).await?;
            }
            audit(&mut transaction, actor, "restored", &epoch.to_string()).await?;
            transaction.commit().await?;
            let todo = "revoke, suspend and withdraw again what was so since the backup";
            Ok(json!({"epoch": epoch, "todo": todo}))
        }
    }
}

pub(super) async fn raise(connection: &mut sqlx::SqliteConnection, key: &str) -> Result<i64, Error> {
    Ok(sqlx::query_scalar("UPDATE settings SET value = value + 1 WHERE key = ? RETURNING value")
        .bind(key)
        .fetch_one(connection)
        .await?)
}

fn hex_prefix(text: &str) -> Result<String, Error> {
    let text = text.to_ascii_lowercase();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::request("malformed", format!("{text:?} is not hex"), None));
    }
    Ok(text)
}
