//! Workloads: what owners register.

use countersign_policy::Role;
use countersign_wire::id::{PayloadRoot, PolicyDigest, WorkloadId};
use serde_json::{Value, json};

use crate::error::Error;
use crate::service::{Service, audit};
use crate::store::now_ms;

/// The least selection of an approval when a workload names none.
pub const LEAST_SELECTION: [u8; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14];

/// id, name, policy digest, withdrawn, registered, whether its owner holds the key.
pub(super) type WorkloadRow = (Vec<u8>, String, Vec<u8>, bool, i64, bool);

pub(super) fn workload_json((id, name, policy, withdrawn, registered_ms, owner_held): WorkloadRow) -> Value {
    json!({
        "workload": hex::encode(id), "name": name, "policy": hex::encode(policy), "withdrawn": withdrawn,
        "registered_ms": registered_ms, "key_held_by": if owner_held { "owner" } else { "broker" },
    })
}

pub(super) fn no_such_workload(workload: &WorkloadId) -> Error {
    Error::request("not-found", format!("there is no workload {workload}"), Some("verifier workload list"))
}

pub(super) struct Registration {
    pub(super) name: String,
    pub(super) workload: WorkloadId,
    pub(super) payload_root: PayloadRoot,
    pub(super) uuid: [u8; 16],
    pub(super) policy: Vec<u8>,
    /// Empty: the owner holds it.
    pub(super) key: zeroize::Zeroizing<Vec<u8>>,
    pub(super) least_selection: Vec<u8>,
}

pub(super) async fn register(service: &Service, given: Registration, actor: &str) -> Result<Value, Error> {
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
