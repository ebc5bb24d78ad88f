//! Where a release's sealed object comes from: the broker wraps a key that it holds, or the owner has wrapped it (DESIGN.md section 8).

use countersign_tpm::import::wrap_sealed;
use countersign_tpm::policy::sealed_policy;
use countersign_tpm::public::{Name, Public};
use countersign_wire::cbor;
use countersign_wire::challenge::ImportBlob;
use countersign_wire::grant::Grant;
use countersign_wire::id::WorkloadId;
use countersign_wire::release::policy_ref;
use serde_json::{Value, json};

use super::{Service, audit, unknown_host, unknown_workload};
use crate::error::Error;
use crate::keys::rng;
use crate::store::{HostRow, from_cbor, now_ms, to_cbor};

/// What an owner does when a grant is missing or no longer fits.
const AGAIN: &str = "on the host: attest show -o host.card; the owner: supervisor grant APP.sif --host-card host.card -o app.grant; here: verifier grant add app.grant";

fn ak_name(host: &HostRow) -> Result<Name, Error> {
    Ok(Public::parse(&host.snapshot.ak_public).map_err(|e| Error::Corrupt(e.to_string()))?.name())
}

impl Service {
    /// The workload's key for this host's EK and its enrolled AK, under the present keys: by the broker, made once and kept; or by its owner.
    pub(super) async fn import(&self, host: &HostRow, workload: &WorkloadId) -> Result<ImportBlob, Error> {
        let Some((_, _, sealed_key)) = self.store.workload(workload).await? else {
            return Err(self.no_workload(workload).await?);
        };
        if sealed_key.is_empty() {
            return self.granted(host, workload).await;
        }
        let ak = ak_name(host)?;
        let id = &host.snapshot.host;
        let (approval, verdict) = (self.keys.approval_public().name(), self.keys.verdict_public().name());
        let kept: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT import_cbor FROM imports WHERE host = ? AND ak_name = ? AND workload = ?")
                .bind(id.0.as_slice())
                .bind(ak.as_bytes())
                .bind(workload.0.as_slice())
                .fetch_optional(self.store.pool())
                .await?;
        if let Some(bytes) = kept {
            let blob: ImportBlob = from_cbor(&bytes)?;
            // One for keys that were rotated since is void: it is made anew.
            if blob.opens_for(workload, id, ak.as_bytes(), &approval, &verdict) {
                return Ok(blob);
            }
        }
        let key = self.keys.unseal(&sealed_key, &workload.0)?;
        let ek = Public::parse(&host.ek_public).map_err(|e| Error::Corrupt(e.to_string()))?;
        let policy = sealed_policy(&approval, &verdict, &policy_ref(workload, id, ak.as_bytes()));
        let import = wrap_sealed(&ek, &policy, &key, &mut rng()).map_err(|e| Error::Internal(e.to_string()))?;
        let blob = ImportBlob { public: import.public.to_bytes(), duplicate: import.duplicate, seed: import.seed };
        sqlx::query("INSERT OR REPLACE INTO imports VALUES (?, ?, ?, ?)")
            .bind(id.0.as_slice())
            .bind(ak.as_bytes())
            .bind(workload.0.as_slice())
            .bind(to_cbor(&blob))
            .execute(self.store.pool())
            .await?;
        Ok(blob)
    }

    /// The owner's wrap; an error says why there is none that fits.
    async fn granted(&self, host: &HostRow, workload: &WorkloadId) -> Result<ImportBlob, Error> {
        let id = &host.snapshot.host;
        let stored: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT grant_cbor FROM grants WHERE workload = ? AND host = ?")
                .bind(workload.0.as_slice())
                .bind(id.0.as_slice())
                .fetch_optional(self.store.pool())
                .await?;
        let Some(stored) = stored else {
            let title =
                format!("the owner of workload {workload} holds its key, and has granted it to no TPM of host {id}");
            return Err(Error::request("grant-missing", title, Some(AGAIN)));
        };
        let grant: Grant = cbor::decode(&stored).map_err(|e| Error::Corrupt(e.to_string()))?;
        self.fits(&grant, host)?;
        Ok(grant.import)
    }

    /// Whether a grant is for the AK that this host has enrolled and the keys that sign here now.
    fn fits(&self, grant: &Grant, host: &HostRow) -> Result<(), Error> {
        let ak = ak_name(host)?;
        let id = &host.snapshot.host;
        if grant.ak_name != ak.as_bytes() {
            let title = format!(
                "the owner's grant is for another AK: host {id} has enrolled a new one since, or never had that one"
            );
            return Err(Error::request("grant-ak", title, Some(AGAIN)));
        }
        let (approval, verdict) = (self.keys.approval_public().name(), self.keys.verdict_public().name());
        if grant.approval != approval.as_bytes() || grant.verdict != verdict.as_bytes() {
            let title = "the owner's grant is for other approval or verdict keys: this verifier's were rotated since, or they are another verifier's";
            return Err(Error::request("grant-keys", title, Some(AGAIN)));
        }
        if !grant.import.opens_for(&grant.workload, id, ak.as_bytes(), &approval, &verdict) {
            let title = "the grant's sealed object has another policy than the grant says: it was changed";
            return Err(Error::request("grant-changed", title, Some(AGAIN)));
        }
        Ok(())
    }

    /// Takes an owner's grant; an earlier one for the same workload and host is replaced.
    pub(crate) async fn add_grant(&self, grant: &Grant, actor: &str) -> Result<Value, Error> {
        let host = self.store.host(&grant.host).await?.ok_or_else(|| unknown_host(&grant.host))?;
        let workload = self.store.workload(&grant.workload).await?;
        let (record, _, sealed_key) = workload.ok_or_else(|| unknown_workload(&grant.workload))?;
        if !sealed_key.is_empty() {
            let title = format!("this verifier holds the key of workload {} itself", grant.workload);
            let hint = "supervisor register --owner-held APP.sif takes the key from it";
            return Err(Error::request("grant-not-needed", title, Some(hint)));
        }
        self.fits(grant, &host)?;
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        sqlx::query("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)")
            .bind(grant.workload.0.as_slice())
            .bind(grant.host.0.as_slice())
            .bind(cbor::encode(grant))
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        audit(&mut transaction, actor, "grant-add", &format!("{} {}", grant.workload, grant.host)).await?;
        transaction.commit().await?;
        Ok(
            json!({"workload": grant.workload, "name": record.name, "host": grant.host, "host_name": host.snapshot.name}),
        )
    }

    /// All grants, each with why it no longer fits, where it does not.
    pub(crate) async fn grants(&self) -> Result<Value, Error> {
        let rows: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT grant_cbor, added_ms FROM grants ORDER BY workload, host")
                .fetch_all(self.store.pool())
                .await?;
        let mut grants = Vec::new();
        for (bytes, added_ms) in rows {
            let grant: Grant = cbor::decode(&bytes).map_err(|e| Error::Corrupt(e.to_string()))?;
            let host = self.store.host(&grant.host).await?;
            let state = match host.ok_or_else(|| unknown_host(&grant.host)).and_then(|host| self.fits(&grant, &host)) {
                Ok(()) => "good".to_owned(),
                Err(e) => e.to_string(),
            };
            grants.push(json!({"workload": grant.workload, "host": grant.host, "state": state, "added_ms": added_ms}));
        }
        Ok(json!({"grants": grants}))
    }
}
