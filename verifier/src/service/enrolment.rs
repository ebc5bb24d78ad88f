//! Enrolment: EK chain, credential activation, admission (DESIGN.md section 4).

use countersign_tpm::ak;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::credential::make_credential;
use countersign_tpm::kdf::hmac;
use countersign_tpm::public::Public;
use countersign_wire::cbor;
use countersign_wire::enrol::{EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostState, OtherEk, transcript};
use countersign_wire::id::{EnrolmentId, HostId};
use countersign_wire::record::EnrolmentRecord;
use countersign_wire::trust::TrustBundle;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::eks::{self, Checked};
use super::{Service, audit, events};
use crate::error::Error;
use crate::keys::{random, rng};
use crate::store::{from_cbor, now_ms, read_host, state_number, to_cbor, to_db};

/// How long a host has to prove activation, in milliseconds.
const PROOF_MS: i64 = 60_000;

/// proof, request, enrolment, checked, further EKs.
type EnrolmentRow = (Vec<u8>, Vec<u8>, Vec<u8>, String, Vec<u8>);

impl Service {
    /// `POST /v1/enrol`: checks EK and AK, and answers with a credential for both.
    ///
    /// # Errors
    /// [`Error::Request`] names what is not acceptable.
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<EnrolChallenge, Error> {
        let card = &request.card;
        let refuse = |id: &str, title: String, hint: Option<&str>| Error::request(id, title, hint);
        let ak = Public::parse(&card.ak_public).map_err(|e| refuse("ak", format!("AK: {e}"), None))?;
        ak::check(&ak).map_err(|e| refuse("ak", e.to_string(), Some("attest enroll makes an AK that is accepted")))?;
        // Firmware's PCRs and IMA's are taken, and software can reset those from 16 on.
        if !(8..16).contains(&card.run_pcr) || card.run_pcr == countersign_wire::ima::PCR {
            let title = format!("run PCR {}: one from 8 to 15, but not 10, is needed", card.run_pcr);
            return Err(refuse("run-pcr", title, Some("run_pcr in the host's attest.toml; 13 is the default")));
        }
        let now = self.store.now_ms().await?;
        let shown = Public::parse(&card.ek_public).map_err(|e| refuse("ek", format!("EK: {e}"), None))?;
        let (own, others) = self.check_eks(card, &shown, now).await?;
        if eks::identity(&own.public)? != card.host {
            return Err(refuse("ek", "the host id is not that of the EK".into(), None));
        }
        let further: Result<Vec<HostId>, Error> = others.iter().map(|other| eks::identity(&other.public)).collect();
        let identities: Vec<HostId> = further?.into_iter().chain([card.host]).collect();
        eks::one_identity(&mut *self.store.pool().acquire().await?, &card.host, &identities).await?;
        let mut token = request.token.clone().unwrap_or_default();
        let token_id = token.get(..16).unwrap_or_default().to_vec();
        // One secret for each EK: only a TPM that has them all, and the AK, opens all.
        let mut secrets = Zeroizing::new(Vec::with_capacity(32_usize.saturating_mul(identities.len())));
        let mut credential = |ek: &Public| {
            let secret = Zeroizing::new(random::<32>());
            secrets.extend_from_slice(&*secret);
            make_credential(ek, &ak.name(), &*secret, &mut rng()).map_err(|e| refuse("ek", e.to_string(), None))
        };
        let own_credential = credential(&own.public)?;
        let mut shown_others = Vec::new();
        for other in &others {
            let made = credential(&other.public)?;
            let ek_public = other.record.ek_public.clone();
            shown_others.push(OtherEk {
                nv_index: other.nv_index,
                ek_public,
                credential: made.blob,
                secret: made.secret,
            });
        }
        let trust = TrustBundle::digest(&self.keys.trust);
        let publics: Vec<&[u8]> = std::iter::once(&card.ek_public)
            .chain(shown_others.iter().map(|ek| &ek.ek_public))
            .map(Vec::as_slice)
            .collect();
        let transcript = transcript(&publics, &card.ak_public, &request.tls_key, &token_id, &trust);
        let proof = hmac(HashAlg::Sha256, &secrets, &[&transcript]).ok_or_else(|| Error::Internal("HMAC".into()))?;
        let id = EnrolmentId(random());
        // The token's secret is kept as its hash only.
        if let Some(secret) = token.get(16..) {
            let hash = Sha256::digest(secret).to_vec();
            token.truncate(16);
            token.extend(hash);
        }
        let stored = EnrolRequest { token: Some(token), ..request.clone() };
        let checked = serde_json::to_string(&own.checked).map_err(|e| Error::Internal(e.to_string()))?;
        sqlx::query("DELETE FROM enrolments WHERE expires_ms < ?").bind(now).execute(self.store.pool()).await?;
        let records: Vec<EnrolmentRecord> = others.into_iter().map(|other| other.record).collect();
        sqlx::query("INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(id.0.as_slice())
            .bind(proof.as_bytes())
            .bind(cbor::encode(&stored))
            .bind(to_cbor(&own.record))
            .bind(checked)
            .bind(now.saturating_add(PROOF_MS))
            .bind(to_cbor(&records))
            .execute(self.store.pool())
            .await?;
        let others = Some(shown_others).filter(|others| !others.is_empty());
        let (credential, secret) = (own_credential.blob, own_credential.secret);
        Ok(EnrolChallenge { version: 1, id, credential, secret, others })
    }

    /// `POST /v1/enrol/proof`: the host activated the credential; admit it as its token allows.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub async fn enrol_proof(&self, proof: &EnrolProof) -> Result<Enrolled, Error> {
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        let row: Option<EnrolmentRow> = sqlx::query_as(
            "DELETE FROM enrolments WHERE id = ? AND expires_ms > ? RETURNING proof, request_cbor, enrolment_cbor, checked, others_cbor",
        )
        .bind(proof.id.0.as_slice())
        .bind(now)
        .fetch_optional(&mut *transaction)
        .await?;
        let again = Some("attest enroll again");
        let Some((want, request, enrolment, checked, others)) = row else {
            return Err(Error::request("enrolment-unknown", "no such enrolment, or it took too long", again));
        };
        if !bool::from(want.as_slice().ct_eq(&proof.proof)) {
            transaction.commit().await?;
            return Err(Error::request("activation", "the credential was not opened by this EK and AK", again));
        }
        let request: EnrolRequest = cbor::decode(&request).map_err(|e| Error::Corrupt(e.to_string()))?;
        let enrolment: EnrolmentRecord = from_cbor(&enrolment)?;
        let checked: Checked = serde_json::from_str(&checked).map_err(|e| Error::Corrupt(e.to_string()))?;
        let host = request.card.host;
        let others: Vec<EnrolmentRecord> = from_cbor(&others)?;
        let mut linked = vec![(host, enrolment.clone())];
        for record in others {
            let ek = Public::parse(&record.ek_public).map_err(|e| Error::Corrupt(e.to_string()))?;
            linked.push((eks::identity(&ek)?, record));
        }
        let identities: Vec<HostId> = linked.iter().map(|(ek, _)| *ek).collect();
        eks::one_identity(&mut transaction, &host, &identities).await?;
        let known = read_host(&mut transaction, &host).await?;
        let state = match &known {
            Some(known) if known.snapshot.state == HostState::Revoked => {
                return Err(Error::request("host-revoked", "this host was revoked", None));
            }
            Some(known) if known.snapshot.state == HostState::Pending => {
                self.pending_again(&mut transaction, &request, &known.snapshot.ak_public, now).await?
            }
            // A lost answer is no loss: the enrolled AK, proved again, keeps its state and gets its certificate.
            Some(known) if known.snapshot.ak_public == request.card.ak_public => known.snapshot.state,
            Some(known) => {
                // Another AK on a known host: TPM2_Clear, a reinstall, a diskless node. Only a token for this host admits it.
                let admitted = self.use_token(&mut transaction, &request, Some(&host), now).await?;
                let state = if admitted { HostState::Active } else { HostState::Suspended };
                let reason =
                    if admitted { "new AK admitted by a token for this host" } else { "another AK on a known EK" };
                sqlx::query(
                    "UPDATE hosts SET ak_public = ?, run_pcr = ?, state = ?, state_reason = ?, baseline_cbor = NULL, \
                     version = version + 1 WHERE host = ?",
                )
                .bind(&request.card.ak_public)
                .bind(i64::from(request.card.run_pcr))
                .bind(state_number(state))
                .bind(reason)
                .bind(host.0.as_slice())
                .execute(&mut *transaction)
                .await?;
                sqlx::query("DELETE FROM imports WHERE host = ?")
                    .bind(host.0.as_slice())
                    .execute(&mut *transaction)
                    .await?;
                if let Some(event) = events::of_state(state, reason) {
                    events::emit(&mut transaction, Some(&host), &event).await?;
                }
                audit(
                    &mut transaction,
                    "enrolment",
                    "new-ak",
                    &format!("{host} {reason}; was {:?}", known.snapshot.state),
                )
                .await?;
                state
            }
            None => {
                let (state, reason) = if self.use_token(&mut transaction, &request, None, now).await? {
                    (HostState::Active, "admitted by a token")
                } else if shows_a_token(&request) {
                    return Err(bad_token());
                } else {
                    self.room_to_wait(&mut transaction).await?;
                    (HostState::Pending, "no join token: waits for an operator")
                };
                let tpm = serde_json::to_string(&checked.facts).map_err(|e| Error::Internal(e.to_string()))?;
                let name: String = request.name.chars().filter(|c| !c.is_control()).take(128).collect();
                sqlx::query(
                    "INSERT INTO hosts (host, name, state, state_reason, simulated, ek_root, tpm, ek_public, ak_public, \
                     run_pcr, next_receipt, enrolment_cbor, version, enrolled_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 1, ?)",
                )
                .bind(host.0.as_slice())
                .bind(&name)
                .bind(state_number(state))
                .bind(reason)
                .bind(checked.simulated)
                .bind(&checked.root)
                .bind(tpm)
                .bind(&enrolment.ek_public)
                .bind(&request.card.ak_public)
                .bind(i64::from(request.card.run_pcr))
                .bind(to_cbor(&enrolment))
                .bind(now)
                .execute(&mut *transaction)
                .await?;
                audit(&mut transaction, "enrolment", "host-new", &format!("{host} {name} {reason}")).await?;
                state
            }
        };
        eks::link(&mut transaction, &host, &linked).await?;
        let certificate = if state == HostState::Active {
            Some(crate::tls::host_certificate(&self.keys, &host, &request.tls_key, now)?)
        } else {
            None
        };
        transaction.commit().await?;
        Ok(Enrolled { version: 1, host, state, certificate })
    }

    /// A host that nobody has admitted yet: a token admits it now; without one it goes on waiting, with the AK that it proved last.
    async fn pending_again(
        &self,
        connection: &mut sqlx::SqliteConnection,
        request: &EnrolRequest,
        enrolled_ak: &[u8],
        now: i64,
    ) -> Result<HostState, Error> {
        let host = request.card.host;
        let admitted = self.use_token(connection, request, None, now).await?
            || self.use_token(connection, request, Some(&host), now).await?;
        if !admitted && shows_a_token(request) {
            return Err(bad_token());
        }
        if !admitted && enrolled_ak == request.card.ak_public {
            return Ok(HostState::Pending);
        }
        let (state, reason) = if admitted {
            (HostState::Active, "admitted by a token")
        } else {
            (HostState::Pending, "no join token: waits for an operator")
        };
        sqlx::query(
            "UPDATE hosts SET ak_public = ?, run_pcr = ?, state = ?, state_reason = ?, baseline_cbor = NULL, \
             version = version + 1 WHERE host = ?",
        )
        .bind(&request.card.ak_public)
        .bind(i64::from(request.card.run_pcr))
        .bind(state_number(state))
        .bind(reason)
        .bind(host.0.as_slice())
        .execute(&mut *connection)
        .await?;
        if admitted {
            audit(connection, "enrolment", "host-admitted", &format!("{host} {reason}")).await?;
        }
        Ok(state)
    }

    /// Hosts without a token are recorded up to a number: whoever has many TPMs fills no database with them.
    async fn room_to_wait(&self, connection: &mut sqlx::SqliteConnection) -> Result<(), Error> {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM hosts WHERE state = ?")
            .bind(state_number(HostState::Pending))
            .fetch_one(connection)
            .await?;
        if waiting < i64::from(self.config.pending_hosts) {
            return Ok(());
        }
        let title = format!("this host shows no join token, and {waiting} others wait for an operator already");
        Err(Error::request(
            "token",
            title,
            Some("verifier token new, or admit or revoke those that wait: verifier host list"),
        ))
    }

    /// Uses a token up: true when it is good for this host (`only`), or for any new one.
    async fn use_token(
        &self,
        connection: &mut sqlx::SqliteConnection,
        request: &EnrolRequest,
        only: Option<&HostId>,
        now: i64,
    ) -> Result<bool, Error> {
        let token = request.token.as_deref().unwrap_or_default();
        let Some((id, hash)) = token.split_first_chunk::<16>() else { return Ok(false) };
        let row: Option<(Vec<u8>, Option<Vec<u8>>)> =
            sqlx::query_as("SELECT secret_hash, host FROM tokens WHERE id = ? AND uses_left > 0 AND expires_ms > ?")
                .bind(id.as_slice())
                .bind(now)
                .fetch_optional(&mut *connection)
                .await?;
        let Some((want, host)) = row else { return Ok(false) };
        let good = bool::from(want.as_slice().ct_eq(hash)) && host.as_deref() == only.map(|host| host.0.as_slice());
        if good {
            sqlx::query("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?")
                .bind(id.as_slice())
                .execute(connection)
                .await?;
        }
        Ok(good)
    }

    /// Makes a token: `csjoin1.` text. `host` admits a new AK on that known host; none admits an EK never seen before.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn new_token(
        &self,
        url: &str,
        uses: u32,
        ttl_s: u32,
        host: Option<&HostId>,
        actor: &str,
    ) -> Result<String, Error> {
        use base64::Engine as _;
        let token = countersign_wire::trust::JoinToken {
            version: 1,
            url: url.to_owned(),
            trust: TrustBundle::digest(&self.keys.trust),
            id: random(),
            secret: random(),
        };
        let mut transaction = self.store.write().await?;
        let now = now_ms(&mut transaction).await?;
        sqlx::query("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)")
            .bind(token.id.as_slice())
            .bind(Sha256::digest(token.secret).as_slice())
            .bind(host.map(|host| host.0.to_vec()))
            .bind(i64::from(uses))
            .bind(now.saturating_add(to_db(u64::from(ttl_s)).saturating_mul(1000)))
            .execute(&mut *transaction)
            .await?;
        audit(&mut transaction, actor, "token-new", &format!("{} uses {uses}", hex::encode(token.id))).await?;
        transaction.commit().await?;
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(cbor::encode(&token));
        Ok(format!("{}{text}", countersign_wire::trust::JoinToken::PREFIX))
    }
}

/// Whether a request came with a join token, good or bad.
fn shows_a_token(request: &EnrolRequest) -> bool {
    request.token.as_ref().is_some_and(|token| !token.is_empty())
}

fn bad_token() -> Error {
    Error::request(
        "token",
        "the join token is unknown, used up, expired or for another host",
        Some("ask the verifier's operator for one: verifier token new"),
    )
}
