//! Which EKs are trusted, and which belong to one TPM (DESIGN.md section 4).

use std::collections::BTreeMap;

use countersign_tpm::ek::Template;
use countersign_tpm::ekcert;
use countersign_tpm::public::Public;
use countersign_wire::enrol::HostCard;
use countersign_wire::id::HostId;
use countersign_wire::record::EnrolmentRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::SqliteConnection;

use super::{Service, audit};
use crate::error::Error;
use crate::store::{array, now_ms, read_host, to_cbor};

/// EK certificates of one host that are looked at: three kinds are known, some TPMs have more.
const CERTIFICATES: usize = 8;
/// Root of a host whose EK is on the operator's list.
const LISTED: &str = "allow-list";

/// What the EK check found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Checked {
    pub(super) root: String,
    pub(super) simulated: bool,
    pub(super) facts: BTreeMap<String, String>,
}

/// An EK that is trusted.
pub(super) struct Trusted {
    pub(super) nv_index: u32,
    pub(super) public: Public,
    pub(super) checked: Checked,
    pub(super) record: EnrolmentRecord,
}

/// The identity that an EK stands for.
pub(super) fn identity(ek: &Public) -> Result<HostId, Error> {
    let spki = ek.spki().ok_or_else(|| Error::request("ek", "an unusable EK", None))?;
    Ok(HostId::of_ek_spki(&spki))
}

impl Service {
    /// The EKs of a card that are trusted: the one that it shows first, then the others by ascending NV index. Each public area is rebuilt from a
    /// certificate with a path to a curated root, or is on the operator's list; nothing else that the host says of it counts.
    ///
    /// # Errors
    /// [`Error::Request`]: the EK shown is not trusted.
    pub(super) async fn check_eks(
        &self,
        card: &HostCard,
        shown: &Public,
        now: i64,
    ) -> Result<(Trusted, Vec<Trusted>), Error> {
        let roots = self.store.ek_roots().await?;
        let ders: Vec<Vec<u8>> = roots.iter().map(|(der, _)| der.clone()).collect();
        let chain: Vec<Vec<u8>> = card.chain.iter().map(|der| der.to_vec()).collect();
        let seconds = u64::try_from(now.div_euclid(1000)).unwrap_or(0);
        let refuse = |title: String, hint: &str| Error::request("ek-certificate", title, Some(hint));
        if card.ek_certificates.len() > CERTIFICATES {
            let title = format!("{} EK certificates, at most {CERTIFICATES} are looked at", card.ek_certificates.len());
            return Err(refuse(title, "show those of the TPM's EKs only"));
        }
        let mut certificates: Vec<_> = card.ek_certificates.iter().collect();
        certificates.sort_by_key(|certificate| certificate.nv_index);
        let (mut trusted, mut refused): (Vec<Trusted>, _) = (Vec::new(), None);
        for certificate in certificates {
            let checked = match ekcert::check(&certificate.der, &chain, &ders, seconds) {
                Ok(checked) => checked,
                Err(e) => {
                    refused = refused.or(Some(e));
                    continue;
                }
            };
            // By position: two roots may have one subject, and only one of them be for development.
            let Some((root, development)) = roots.get(checked.root_index) else {
                return Err(Error::Internal("the EK certificate leads to a root that is not there".into()));
            };
            if trusted.iter().any(|other| other.public == checked.public) {
                continue;
            }
            let record = EnrolmentRecord {
                ek_certificate: certificate.der.clone(),
                chain: card.chain.clone(),
                root: root.clone(),
                time: seconds,
                ek_public: checked.public.to_bytes(),
            };
            let simulated = *development || checked.says_simulator();
            let facts = checked.facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            trusted.push(Trusted {
                nv_index: certificate.nv_index,
                public: checked.public,
                checked: Checked { root: checked.root, simulated, facts },
                record,
            });
        }
        if let Some(at) = trusted.iter().position(|ek| ek.public == *shown) {
            let own = trusted.remove(at);
            return Ok((own, trusted));
        }
        if let Some(listed) = self.listed(shown, seconds).await? {
            return Ok((listed, trusted));
        }
        Err(match (trusted.first(), refused) {
            (Some(other), Some(_)) => Error::request(
                "ek-other",
                format!(
                    "the EK shown is not the one that its trusted certificate at {:#010x} certifies",
                    other.nv_index
                ),
                Some("attest enroll shows each EK that has a certificate"),
            ),
            (Some(_), None) => Error::request("ek", "the EK shown is not the one that its certificate certifies", None),
            (None, Some(e)) => refuse(
                format!("EK certificate: {e}"),
                "verifier ek-root add VENDOR-ROOT.pem, if that vendor is to be trusted",
            ),
            (None, None) => refuse(
                "this TPM shows no EK certificate, and its EK is not on the operator's list".into(),
                "attest ek -o EK.pub on the host, then verifier ek allow EK.pub, when you know that it is that host's",
            ),
        })
    }

    /// An EK on the operator's list.
    async fn listed(&self, shown: &Public, seconds: u64) -> Result<Option<Trusted>, Error> {
        let id = identity(shown)?;
        let row: Option<(Vec<u8>, bool)> = sqlx::query_as("SELECT ek_public, development FROM ek_allowed WHERE ek = ?")
            .bind(id.0.as_slice())
            .fetch_optional(self.store.pool())
            .await?;
        let Some((ek_public, simulated)) = row.filter(|(public, _)| *public == shown.to_bytes()) else {
            return Ok(None);
        };
        let record = EnrolmentRecord {
            ek_certificate: Vec::new(),
            chain: Vec::new(),
            root: Vec::new(),
            time: seconds,
            ek_public,
        };
        let checked = Checked { root: LISTED.into(), simulated, facts: BTreeMap::new() };
        Ok(Some(Trusted { nv_index: 0, public: shown.clone(), checked, record }))
    }

    /// Lists an EK that has no certificate: TPMT_PUBLIC, TPM2B_PUBLIC, or SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`Error::Request`]: it is no EK of an accepted template.
    pub(crate) async fn allow_ek(&self, ek: &[u8], name: &str, development: bool, actor: &str) -> Result<Value, Error> {
        let refuse =
            |title: String| Error::request("ek", title, Some("attest ek -o EK.pub on the host, or attest show -o"));
        // A DER SEQUENCE; no TPM algorithm or size of an EK begins so.
        let public = if ek.starts_with(&[0x30]) {
            ekcert::from_spki(ek).map_err(|e| refuse(format!("EK: {e}")))?
        } else {
            Public::parse_file(ek).map_err(|e| refuse(format!("EK: {e}")))?
        };
        if Template::of(&public).is_none() {
            return Err(refuse("not an EK by one of the templates RSA-2048, P-256 and P-384".into()));
        }
        let (id, name) = (identity(&public)?, name.chars().filter(|c| !c.is_control()).take(128).collect::<String>());
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        sqlx::query("INSERT OR REPLACE INTO ek_allowed VALUES (?, ?, ?, ?, ?)")
            .bind(id.0.as_slice())
            .bind(public.to_bytes())
            .bind(&name)
            .bind(development)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        audit(&mut transaction, actor, "ek-allow", &format!("{id} {name}")).await?;
        transaction.commit().await?;
        Ok(json!({"ek": id, "name": name, "development": development}))
    }

    /// The operator's list.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub(crate) async fn allowed_eks(&self) -> Result<Value, Error> {
        let rows: Vec<(Vec<u8>, String, bool, i64)> =
            sqlx::query_as("SELECT ek, name, development, added_ms FROM ek_allowed ORDER BY name, ek")
                .fetch_all(self.store.pool())
                .await?;
        let eks = rows.into_iter().map(|(ek, name, development, added_ms)| {
            json!({"ek": hex::encode(ek), "name": name, "development": development, "added_ms": added_ms})
        });
        Ok(json!({"eks": eks.collect::<Vec<_>>()}))
    }

    /// Takes an EK off the list. A host that was enrolled with it stays enrolled: revoke it too, if that is meant.
    ///
    /// # Errors
    /// [`Error::Request`]: not exactly one EK begins so.
    pub(crate) async fn disallow_ek(&self, prefix: &str, actor: &str) -> Result<Value, Error> {
        let mut transaction = self.store.write().await?;
        let removed: Vec<Vec<u8>> =
            sqlx::query_scalar("DELETE FROM ek_allowed WHERE lower(hex(ek)) LIKE ? || '%' RETURNING ek")
                .bind(prefix)
                .fetch_all(&mut *transaction)
                .await?;
        if removed.len() != 1 {
            let title = format!("{} listed EKs begin with {prefix}", removed.len());
            return Err(Error::request("not-found", title, Some("verifier ek list")));
        }
        audit(&mut transaction, actor, "ek-remove", prefix).await?;
        transaction.commit().await?;
        let removed: Vec<String> = removed.into_iter().map(hex::encode).collect();
        Ok(json!({"removed": removed, "todo": "a host enrolled with it stays enrolled: verifier host revoke HOST"}))
    }
}

/// All EKs of one TPM are one identity: none of these may be another host's.
pub(super) async fn one_identity(
    connection: &mut SqliteConnection,
    host: &HostId,
    eks: &[HostId],
) -> Result<(), Error> {
    for ek in eks {
        let linked: Option<Vec<u8>> = sqlx::query_scalar("SELECT host FROM host_eks WHERE ek = ?")
            .bind(ek.0.as_slice())
            .fetch_optional(&mut *connection)
            .await?;
        let linked = match linked {
            Some(linked) => HostId(array(linked)?),
            // An EK that enrolled by itself, before it was shown together with another.
            None => *ek,
        };
        let Some(known) = read_host(connection, &linked).await?.filter(|_| linked != *host) else { continue };
        if known.snapshot.state == countersign_wire::enrol::HostState::Revoked {
            return Err(Error::request("host-revoked", "this TPM was revoked, by another of its EKs", None));
        }
        let title = format!("this TPM is enrolled as host {linked}, by another of its EKs");
        return Err(Error::request("ek-linked", title, Some("enrol with the state folder of that host, or revoke it")));
    }
    Ok(())
}

/// Notes the EKs of a host.
pub(super) async fn link(
    connection: &mut SqliteConnection,
    host: &HostId,
    eks: &[(HostId, EnrolmentRecord)],
) -> Result<(), Error> {
    for (ek, record) in eks {
        sqlx::query("INSERT OR REPLACE INTO host_eks VALUES (?, ?, ?)")
            .bind(ek.0.as_slice())
            .bind(host.0.as_slice())
            .bind(to_cbor(record))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
