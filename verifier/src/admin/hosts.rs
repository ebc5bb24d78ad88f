//! Hosts, and the CAs that vouch for their TPMs.

use countersign_wire::id::HostId;
use serde_json::{Value, json};

use super::bytes;
use crate::error::Error;
use crate::service::{Service, audit};
use crate::store::HostRow;

/// A host by id, by the beginning of its id, or by name; exactly one.
pub(super) async fn find_host(service: &Service, text: &str) -> Result<HostRow, Error> {
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

pub(super) fn host_json(host: &HostRow) -> Value {
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

pub(super) async fn ek_root_add(
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
