//! What operators ask: one request type, whether it comes over HTTPS with a token or from the command line on the state folder itself.

mod reference;
mod releases;

use countersign_policy::Role;
use countersign_policy::input::ReferenceValue;
use countersign_tpm::alg::HashAlg;
use countersign_wire::enrol::HostState;
use countersign_wire::event::HostEvent;
use countersign_wire::eventlog::{EventLog, PcrSet, Refusal, Registers};
use countersign_wire::facts::Content;
use countersign_wire::id::{HostId, PayloadRoot, PolicyDigest, RunId, VerdictId, WorkloadId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;
use crate::service::events::emit;
use crate::service::{Service, audit};
use crate::store::{HostRow, now_ms};

/// PCRs of which `reference add` takes events when none are named: firmware, its configuration, boot loaders, Secure Boot, what the boot loader
/// ran and loaded, and shim's lists. PCR 5 (partition table) and 1 (boot order) differ between machines of one kind.
pub const DEFAULT_PCRS: [u8; 8] = [0, 2, 3, 4, 7, 8, 9, 14];

/// The least selection of an approval when a workload names none.
pub const LEAST_SELECTION: [u8; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14];

/// A request of an operator. JSON: {"op": "...", ...}; binary values are base64, ids hex.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A join token.
    TokenNew {
        /// How many hosts it admits.
        uses: u32,
        /// Seconds until it expires.
        ttl_s: u32,
        /// Admits a new AK on this known host instead of a new host.
        host: Option<String>,
    },
    /// All hosts.
    HostList {},
    /// One host.
    HostShow {
        /// Id, its beginning, or name.
        host: String,
    },
    /// Changes a host's state.
    HostState {
        /// Id, its beginning, or name.
        host: String,
        /// New state.
        state: HostState,
        /// Why.
        reason: String,
    },
    /// Trusts a TPM vendor's CA.
    EkRootAdd {
        /// Certificates (DER, base64).
        certificates: Vec<String>,
        /// Hosts under it are simulated.
        development: bool,
    },
    /// Trusted CAs.
    EkRootList {},
    /// No longer trusts a CA.
    EkRootRemove {
        /// Beginning of the fingerprint.
        fingerprint: String,
    },
    /// Lists the EK of a TPM without a certificate.
    EkAllow {
        /// TPMT_PUBLIC, TPM2B_PUBLIC or SubjectPublicKeyInfo in DER (base64).
        ek: String,
        /// Label.
        name: String,
        /// The host with it is simulated.
        development: bool,
    },
    /// Listed EKs.
    EkList {},
    /// Takes an EK off the list.
    EkRemove {
        /// Beginning of its id.
        ek: String,
    },
    /// Adds reference values from a boot log.
    ReferenceAdd {
        /// Name of the set.
        name: String,
        /// The log (base64).
        eventlog: String,
        /// PCRs; empty takes the default.
        pcrs: Vec<u8>,
    },
    /// Adds an IMA reference set (`countersign.reference/v1`).
    ReferenceAddSet {
        /// Name of the set.
        name: String,
        /// The JSON document, compressed with zstd (base64).
        set: String,
        /// Key id of whoever signed it, as the command that sends it has checked; empty for an unsigned one.
        signer: String,
    },
    /// Removes a set.
    ReferenceRevoke {
        /// Its name.
        name: String,
    },
    /// All sets.
    ReferenceList {},
    /// Newest verdicts.
    VerdictList {
        /// Of this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// One verdict document.
    VerdictShow {
        /// Its id.
        id: VerdictId,
    },
    /// Why a verdict was a no: event or file, nearest accepted value, what changed, what to do.
    VerdictExplain {
        /// Its id.
        id: VerdictId,
    },
    /// One verdict's evidence bundle.
    VerdictBundle {
        /// Its id.
        id: VerdictId,
    },
    /// Newest releases.
    ReleaseList {
        /// To this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// Gives a release whose answer was lost back: it counts against the cap no longer.
    ReleaseRefund {
        /// Its run.
        run: RunId,
        /// Its host: id, a beginning of it, or name. Needed when several hosts have such a run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// Takes a protected image's key and policy.
    WorkloadRegister {
        /// Label.
        name: String,
        /// Workload id.
        workload: WorkloadId,
        /// Payload root.
        payload_root: PayloadRoot,
        /// UUID of the SIF, 32 hex digits.
        sif_uuid: String,
        /// The policy bundle (base64).
        policy: String,
        /// The LUKS2 volume key, 64 bytes (base64); empty when its owner holds it and grants it to each host.
        #[serde(default)]
        volume_key: Secret,
        /// PCRs that every approval must cover; empty takes the default.
        least_selection: Vec<u8>,
    },
    /// Takes an owner's grant.
    GrantAdd {
        /// The file that `supervisor grant` wrote (base64).
        grant: String,
    },
    /// All grants.
    GrantList {},
    /// All workloads.
    WorkloadList {},
    /// One workload.
    WorkloadShow {
        /// Workload id.
        workload: WorkloadId,
    },
    /// No longer releases a workload.
    WorkloadWithdraw {
        /// Workload id.
        workload: WorkloadId,
    },
    /// Newest runs.
    RunList {
        /// Of this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// One run, with what else its host's log says of it.
    RunShow {
        /// Id, or its beginning.
        run: String,
    },
    /// Stops, freezes or thaws a run.
    RunOrder {
        /// Id, or its beginning.
        run: String,
        /// What its host is to do.
        order: RunOrder,
        /// Why.
        reason: String,
    },
    /// Tells the verifier that its database was restored from a backup.
    Restored {},
}

/// What a host is told to do with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOrder {
    /// End it.
    Stop,
    /// Freeze it.
    Freeze,
    /// Let it go on.
    Thaw,
}

impl RunOrder {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }
}

/// Text that is not shown and not left in memory.
#[derive(Clone, Default)]
pub struct Secret(zeroize::Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.into())
    }
}

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
            reference_add(service, &name, &bytes("eventlog", &eventlog)?, &pcrs, actor).await
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

/// A host by id, by the beginning of its id, or by name; exactly one.
async fn find_host(service: &Service, text: &str) -> Result<HostRow, Error> {
    if let Ok(id) = text.parse::<HostId>()
        && let Some(host) = service.store.host(&id).await?
    {
        return Ok(host);
    }
    let mut found: Vec<HostRow> = service.store.hosts().await?;
    found.retain(|host| {
        host.snapshot.name == text || (text.len() >= 4 && host.snapshot.host.to_string().starts_with(text))
    });
    match (found.pop(), found.is_empty()) {
        (Some(host), true) => Ok(host),
        (None, _) => {
            Err(Error::request("host-unknown", format!("there is no host {text:?}"), Some("verifier host list")))
        }
        (Some(_), false) => {
            Err(Error::request("host-unknown", format!("{text:?} means several hosts"), Some("use the host id")))
        }
    }
}

fn host_json(host: &HostRow) -> Value {
    let snapshot = &host.snapshot;
    let tpm: serde_json::Map<String, Value> =
        snapshot.tpm.iter().map(|label| (label.name.clone(), Value::from(label.value.clone()))).collect();
    json!({
        "host": snapshot.host,
        "name": snapshot.name,
        "state": snapshot.state,
        "state_reason": host.state_reason,
        "simulated": snapshot.simulated,
        "ek_root": snapshot.ek_root,
        "tpm": tpm,
        "run_pcr": snapshot.run_pcr,
        "receipts": snapshot.receipts.len(),
        "attested_ms": host.attested_ms,
    })
}

async fn ek_root_add(
    service: &Service,
    certificates: &[String],
    development: bool,
    actor: &str,
) -> Result<Value, Error> {
    let mut transaction = service.store.write().await?;
    let mut added = Vec::new();
    for certificate in certificates {
        let der = bytes("certificate", certificate)?;
        let hint = "give the certificate of the vendor's CA, not one of an EK";
        let root = countersign_tpm::ekcert::check_root(&der)
            .map_err(|e| Error::request("ek-root", e.to_string(), Some(hint)))?;
        let (subject, fingerprint) = (root.subject, root.fingerprint.to_vec());
        // swtpm's own CA is a development CA whatever the operator says.
        let development = development || subject.to_ascii_lowercase().contains("swtpm");
        sqlx::query("INSERT OR REPLACE INTO ek_roots VALUES (?, ?, ?, ?)")
            .bind(&fingerprint)
            .bind(&der)
            .bind(&subject)
            .bind(development)
            .execute(&mut *transaction)
            .await?;
        audit(&mut transaction, actor, "ek-root-add", &format!("{} {subject}", hex::encode(&fingerprint))).await?;
        added.push(json!({"fingerprint": hex::encode(fingerprint), "subject": subject, "development": development}));
    }
    if added.is_empty() {
        return Err(Error::request("malformed", "the file holds no certificate", None));
    }
    transaction.commit().await?;
    Ok(json!({"added": added}))
}

/// The reference values that a boot log holds for some PCRs; none take [`DEFAULT_PCRS`].
///
/// # Errors
/// The log does not replay in the SHA-256 bank, or lies.
pub fn reference_values(name: &str, log: &[u8], pcrs: &[u8]) -> Result<Vec<ReferenceValue>, String> {
    let log = EventLog::parse(log).map_err(|e| e.to_string())?;
    let alg = HashAlg::Sha256;
    let examined = log.examine(&[(alg, PcrSet::ALL)], Registers::Tpm).map_err(|refusal| match refusal {
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

async fn reference_add(service: &Service, name: &str, log: &[u8], pcrs: &[u8], actor: &str) -> Result<Value, Error> {
    if name.is_empty() || name.len() > 128 {
        return Err(Error::request("malformed", "a set's name has 1 to 128 characters", None));
    }
    let refuse = |e: String| Error::request("eventlog", e, Some("verifier check eventlog FILE --pcrs PCRS.json"));
    let values = reference_values(name, log, pcrs).map_err(refuse)?;
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

/// id, name, policy digest, withdrawn, registered, whether its owner holds the key.
type WorkloadRow = (Vec<u8>, String, Vec<u8>, bool, i64, bool);

fn workload_json((id, name, policy, withdrawn, registered_ms, owner_held): WorkloadRow) -> Value {
    json!({
        "workload": hex::encode(id), "name": name, "policy": hex::encode(policy), "withdrawn": withdrawn,
        "registered_ms": registered_ms, "key_held_by": if owner_held { "owner" } else { "broker" },
    })
}

fn no_such_workload(workload: &WorkloadId) -> Error {
    Error::request("not-found", format!("there is no workload {workload}"), Some("verifier workload list"))
}

struct Registration {
    name: String,
    workload: WorkloadId,
    payload_root: PayloadRoot,
    uuid: [u8; 16],
    policy: Vec<u8>,
    /// Empty: the owner holds it.
    key: zeroize::Zeroizing<Vec<u8>>,
    least_selection: Vec<u8>,
}

async fn register(service: &Service, given: Registration, actor: &str) -> Result<Value, Error> {
    let refuse = |title: String| Error::request("workload", title, None);
    if !matches!(given.key.len(), 0 | 64) {
        return Err(refuse(format!("the volume key has {} bytes, 64 are needed", given.key.len())));
    }
    let digest = PolicyDigest::of(&given.policy);
    let want = WorkloadId::of(&given.payload_root, &digest, &given.uuid);
    if want != given.workload {
        return Err(refuse(format!("the workload id is {want}, not {}", given.workload)));
    }
    let least = if given.least_selection.is_empty() { LEAST_SELECTION.to_vec() } else { given.least_selection };
    // Only what challenges ask for can be approved.
    if least.iter().any(|pcr| *pcr >= 15 || *pcr == countersign_wire::ima::PCR) {
        return Err(refuse("the least selection may have PCRs 0 to 14 without 10".into()));
    }
    let (policy, trial) = (given.policy.clone(), service.trial.clone());
    let tried = tokio::task::spawn_blocking(move || trial.run(&policy, Role::Workload));
    tried.await.map_err(|e| Error::Internal(e.to_string()))?.map_err(|failure| refuse(failure.to_string()))?;
    let (custody, sealed) = if given.key.is_empty() {
        ("owner", Vec::new())
    } else {
        ("broker", service.keys.seal(&given.key, &given.workload.0)?)
    };
    let least = serde_json::to_string(&least).map_err(|e| Error::Internal(e.to_string()))?;
    let mut transaction = service.store.write().await?;
    let now = now_ms(&mut transaction).await?;
    sqlx::query("INSERT OR REPLACE INTO workloads VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)")
        .bind(given.workload.0.as_slice())
        .bind(&given.name)
        .bind(given.payload_root.0.as_slice())
        .bind(digest.0.as_slice())
        .bind(&given.policy)
        .bind(sealed)
        .bind(least)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM imports WHERE workload = ?")
        .bind(given.workload.0.as_slice())
        .execute(&mut *transaction)
        .await?;
    audit(
        &mut transaction,
        actor,
        "workload-register",
        &format!("{} {} key held by {custody}", given.workload, given.name),
    )
    .await?;
    transaction.commit().await?;
    Ok(json!({"ok": true, "workload": given.workload, "policy": digest, "key_held_by": custody}))
}
