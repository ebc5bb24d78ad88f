//! Enrolment: pin the verifier, prove that this AK lives in the TPM of this EK (DESIGN.md section 4).

use countersign_tpm::ak;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert::certified_key;
use countersign_tpm::kdf::hmac;
use countersign_tpm::public::Public;
use countersign_wire::enrol::{
    EkCertificate, EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostCard, OtherEk, transcript,
};
use countersign_wire::id::HostId;
use countersign_wire::trust::{JoinToken, TrustBundle};
use countersign_wire::{artefact, cbor, systemd_log};
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use zeroize::Zeroizing;

use super::{Keys, Operation};
use crate::client::Client;
use crate::endorsement::{Ak, AkBlob, Ek, FoundCertificate, find_certificates};
use crate::error::HostError;
use crate::journal::RECEIPT;
use crate::random::system_rng;
use crate::state::StateDir;
use crate::tpm::TpmError;

/// TPM_RC_INTEGRITY: this TPM never made the blob, or was cleared since.
const INTEGRITY: u32 = 0x09F;

/// Problem ids: the verifier would take another of the EK certificates shown, and not the one of the EK shown; or it knows this TPM by another.
const EK_OTHER: [&str; 2] = ["ek-other", "ek-linked"];

/// Whether a refusal says that another of this host's EK certificates may do.
pub(super) fn another_may_do(error: &HostError) -> bool {
    matches!(error, HostError::Refused { problem, .. } if EK_OTHER.contains(&problem.id.as_str()))
}

impl Operation<'_> {
    /// Enrols with the EK of the certificate at this position, by NV index, unless one was enrolled before.
    pub(super) fn enroll(
        &mut self,
        url: &str,
        token: Option<&JoinToken>,
        trust_bytes: &[u8],
        name: &str,
        at: usize,
    ) -> Result<Enrolled, HostError> {
        let trust: TrustBundle = cbor::decode(trust_bytes)?;
        let client = Client::new(url, &trust.ca, None, self.host.config.deadline)?;
        let state = self.host.state.clone();
        let (mut certificates, chain) = find_certificates(&mut self.tpm)?;
        certificates.retain(|found| self.host.only.is_none_or(|only| found.template == only));
        let kept = self.host.keys().ok();
        if at > 0 && (kept.is_some() || certificates.get(at).is_none()) {
            return Err(HostError::NoCertificate);
        }
        let mut ek = self.enrolment_ek(kept.as_ref(), certificates.get(at))?;
        ek.make_persistent(&mut self.tpm);
        let ek_public = ek.key.public.clone();
        let host = HostId::of_ek_spki(&ek_public.spki().ok_or(HostError::NoCertificate)?);
        let run_pcr = self.run_pcr(kept.as_ref())?;
        let (blob, mut ak, new_ak) = self.enrolment_ak(kept.as_ref(), &ek)?;
        let others = self.other_eks(&certificates, &ek)?;
        let shown = |found: &&FoundCertificate| {
            found.template == ek.template || others.iter().any(|(template, _)| *template == found.template)
        };
        let card = HostCard {
            version: 1,
            host,
            ek_public: ek_public.to_bytes(),
            ek_certificates: certificates
                .iter()
                .filter(shown)
                .map(|found| EkCertificate { nv_index: found.index, der: found.der.clone() })
                .collect(),
            chain: chain.into_iter().map(Into::into).collect(),
            ak_public: blob.public.to_bytes(),
            run_pcr,
        };
        let (tls_key, tls_public) = tls_key(&state)?;
        let secret = token.map(|token| [token.id.as_slice(), &token.secret].concat());
        let token_id = token.map_or(&[][..], |token| token.id.as_slice());
        let request = EnrolRequest {
            version: 1,
            token: secret,
            card: card.clone(),
            tls_key: tls_public.clone(),
            name: name.to_owned(),
        };
        let challenge: EnrolChallenge = client.post("/v1/enrol", &request)?;
        let mut opened = ak.activate(&mut self.tpm, &ek, &challenge.credential, &challenge.secret)?;
        let mut eks = vec![card.ek_public.as_slice()];
        for other in challenge.others.iter().flatten() {
            opened = self.activate_other(&ak, other, &others, opened)?;
            eks.push(&other.ek_public);
        }
        let digest = TrustBundle::digest(trust_bytes);
        let transcript = transcript(&eks, &card.ak_public, &tls_public, token_id, &digest);
        let proof = hmac(HashAlg::Sha256, &opened, &[&transcript])
            .ok_or_else(|| HostError::Corrupt("HMAC-SHA256 is missing".into()))?;
        // What the verifier is about to admit must be on disk before it does: a lost answer is then no loss.
        state.write("ak.private", &blob.private)?;
        state.write("host.card", &artefact::to_file(&card))?;
        state.write("tls.key", &tls_key)?;
        if new_ak {
            // Receipts of the AK before it count no longer.
            state.remove(RECEIPT)?;
        }
        let proof = EnrolProof { version: 1, id: challenge.id, proof: proof.as_bytes().to_vec() };
        let enrolled: Enrolled = client.post("/v1/enrol/proof", &proof)?;
        if enrolled.host != host {
            let got = enrolled.host;
            return Err(HostError::unexpected(format!("it takes this host for {got}, its EK says {host}")));
        }
        state.write("trust.bundle", &artefact::to_file(&trust))?;
        state.write("verifier.url", url.as_bytes())?;
        if let Some(certificate) = &enrolled.certificate {
            state.write("tls.crt", certificate)?;
        }
        ak.make_persistent(&mut self.tpm);
        ak.close(&mut self.tpm)?;
        ek.close(&mut self.tpm)?;
        Ok(enrolled)
    }

    /// The TPM's other EKs, as their certificates say; one that its template does not make here belongs to another TPM, and is not shown.
    fn other_eks(&mut self, certificates: &[FoundCertificate], own: &Ek) -> Result<Vec<(Template, Public)>, HostError> {
        let auth = self.host.config.endorsement_auth()?;
        let mut others = Vec::new();
        for found in certificates.iter().filter(|found| found.template != own.template) {
            let certified = certified_key(&found.der).ok().and_then(|key| Template::rebuild(&key));
            let Some((template, public)) = certified else { continue };
            match Ek::open(&mut self.tpm, template, Some(&public), &auth) {
                Ok(ek) => ek.close(&mut self.tpm)?,
                Err(TpmError::OtherTpm { .. }) => continue,
                Err(e) => return Err(e.into()),
            }
            others.push((template, public));
        }
        Ok(others)
    }

    /// Opens the credential for another EK of this TPM, and puts its secret behind those that are open.
    fn activate_other(
        &mut self,
        ak: &Ak,
        other: &OtherEk,
        shown: &[(Template, Public)],
        mut opened: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, HostError> {
        let found = shown.iter().find(|(_, public)| public.to_bytes() == other.ek_public);
        let (template, public) = found.ok_or_else(|| {
            HostError::unexpected(format!("a credential for an EK ({:#010x}) that was not shown", other.nv_index))
        })?;
        let auth = self.host.config.endorsement_auth()?;
        let ek = Ek::open(&mut self.tpm, *template, Some(public), &auth)?;
        let secret = ak.activate(&mut self.tpm, &ek, &other.credential, &other.secret)?;
        ek.close(&mut self.tpm)?;
        // In a place of its own at once: a vector that grows leaves copies behind.
        let mut both = Zeroizing::new(Vec::with_capacity(opened.len().saturating_add(secret.len())));
        both.append(&mut opened);
        both.extend_from_slice(&secret);
        Ok(both)
    }

    /// The EK that enrolment would show.
    pub(super) fn endorsement_key(&mut self) -> Result<Public, HostError> {
        let (certificates, _) = find_certificates(&mut self.tpm)?;
        let kept = self.host.keys().ok();
        let ek = self.enrolment_ek(kept.as_ref(), certificates.first())?;
        let public = ek.key.public.clone();
        ek.close(&mut self.tpm)?;
        Ok(public)
    }

    /// The EK that was enrolled before; else the one of this certificate. A TPM without certificates shows its RSA EK, for
    /// an allow-list.
    fn enrolment_ek(&mut self, kept: Option<&Keys>, certificate: Option<&FoundCertificate>) -> Result<Ek, HostError> {
        let auth = self.host.config.endorsement_auth()?;
        let rebuilt = certificate.map(|first| {
            let certified = certified_key(&first.der).ok().and_then(|key| Template::rebuild(&key));
            (first.template, certified.map(|(_, public)| public))
        });
        let (template, expected) = match (kept, rebuilt) {
            (Some(keys), _) => (keys.template, Some(keys.ek.clone())),
            (None, Some(found)) => found,
            (None, None) => (Template::Rsa2048, None),
        };
        Ok(Ek::open(&mut self.tpm, template, expected.as_ref(), &auth)?)
    }

    /// The enrolled AK stays, unless this TPM no longer loads it (TPM2_Clear) or one of another kind is wanted; true when it is a new one.
    fn enrolment_ak(&mut self, kept: Option<&Keys>, ek: &Ek) -> Result<(AkBlob, Ak, bool), HostError> {
        let wanted = self.host.ak;
        let fits = |keys: &&Keys| wanted.is_none_or(|kind| ak::Kind::of(&keys.ak.public) == Some(kind));
        if let Some(keys) = kept.filter(fits) {
            match Ak::open(&mut self.tpm, ek, &keys.ak) {
                Ok(ak) => return Ok((keys.ak.clone(), ak, false)),
                Err(TpmError::Refused { code, .. }) if code.base() == INTEGRITY => (),
                Err(e) => return Err(e.into()),
            }
        }
        let blob = AkBlob::create_as(&mut self.tpm, ek, wanted.unwrap_or_default())?;
        let ak = Ak::load(&mut self.tpm, ek, &blob)?;
        Ok((blob, ak, true))
    }

    /// The run PCR: fixed at the first enrolment, and none that systemd extends.
    fn run_pcr(&self, kept: Option<&Keys>) -> Result<u8, HostError> {
        let wanted = self.host.config.run_pcr;
        let bad = |reason: String| HostError::Config { path: "run_pcr".into(), reason };
        match kept {
            Some(keys) if keys.card.run_pcr != wanted => {
                let fixed = keys.card.run_pcr;
                return Err(bad(format!("{wanted} is not the {fixed} that this state folder was enrolled with")));
            }
            Some(_) => return Ok(wanted),
            None => (),
        }
        let records =
            self.host.boot_logs()?.systemd.and_then(|bytes| systemd_log::parse(&bytes).ok()).unwrap_or_default();
        match records.iter().find(|record| record.pcr == wanted) {
            Some(record) => Err(bad(format!("{wanted} is taken: systemd extends it ({:?})", record.text))),
            None => Ok(wanted),
        }
    }
}

/// This host's TLS key (PKCS#8) and its SubjectPublicKeyInfo; made at the first use.
pub(super) fn tls_key(state: &StateDir) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), HostError> {
    let corrupt = |e: String| HostError::Corrupt(format!("tls.key: {e}"));
    let secret = match state.read("tls.key", 4096)?.map(Zeroizing::new) {
        Some(pkcs8) => p256::SecretKey::from_pkcs8_der(&pkcs8).map_err(|e| corrupt(e.to_string()))?,
        None => {
            use p256::elliptic_curve::Generate as _;
            p256::SecretKey::generate_from_rng(&mut system_rng())
        }
    };
    let pkcs8 = secret.to_pkcs8_der().map_err(|e| corrupt(e.to_string()))?;
    let public = secret.public_key().to_public_key_der().map_err(|e| corrupt(e.to_string()))?;
    Ok((Zeroizing::new(pkcs8.as_bytes().to_vec()), public.into_vec()))
}
