//! `attest inspect`: any artefact, in words. Nothing that is shown here was checked for authenticity.

mod logs;

pub use logs::{Which, canonical_of, compare};

use countersign_tpm::ak;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::attest::Quote;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert;
use countersign_tpm::public::{Curve, Key, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_wire::artefact::{self, Kind};
use countersign_wire::cel;
use countersign_wire::enrol::HostCard;
use countersign_wire::evidence::Evidence;
use countersign_wire::facts::Facts;
use countersign_wire::ima;
use countersign_wire::record::{Bundle, Record};
use countersign_wire::runlog::RunLog;
use countersign_wire::trust::{JoinToken, TrustBundle};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;

use crate::out::printable;
use crate::token;

/// An artefact in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Described {
    /// What it is.
    pub kind: String,
    /// Name and value; in JSON an object.
    #[serde(serialize_with = "as_object")]
    pub fields: Vec<(String, String)>,
    /// Entries of a log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<String>,
    /// What a boot log means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<Facts>>,
}

fn as_object<S: serde::Serializer>(fields: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

impl Described {
    fn new(kind: &str, fields: &[(&str, String)]) -> Self {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { kind: kind.to_owned(), fields, entries: Vec::new(), facts: None }
    }

    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        let mut out = format!("{} (not checked for authenticity)", self.kind);
        let width = self.fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &self.fields {
            out.push_str(&format!("\n  {name:width$}  {}", printable(value)));
        }
        for line in self.facts.iter().flat_map(|facts| logs::words(facts)) {
            out.push_str(&format!("\n  {}", printable(&line)));
        }
        for entry in &self.entries {
            out.push_str(&format!("\n  {}", printable(entry)));
        }
        out
    }
}

/// The EK template of a public area, in words.
#[must_use]
pub fn template_of(ek: &[u8]) -> String {
    let template = Public::parse(ek).ok().and_then(|public| Template::of(&public));
    template.map_or_else(|| "of no known template".into(), |template| template_words(template).into())
}

/// A template as TCG's EK Credential Profile calls it.
const fn template_words(template: Template) -> &'static str {
    match template {
        Template::Rsa2048 => "RSA-2048, SHA-256 (L-1)",
        Template::P256 => "P-256, SHA-256 (L-2)",
        Template::P384 => "P-384, SHA-384 (H-3)",
    }
}

fn attribute_words(public: &Public) -> String {
    let names = [
        (attributes::FIXED_TPM, "fixedTPM"),
        (attributes::ST_CLEAR, "stClear"),
        (attributes::FIXED_PARENT, "fixedParent"),
        (attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (attributes::USER_WITH_AUTH, "userWithAuth"),
        (attributes::ADMIN_WITH_POLICY, "adminWithPolicy"),
        (attributes::NO_DA, "noDA"),
        (attributes::ENCRYPTED_DUPLICATION, "encryptedDuplication"),
        (attributes::RESTRICTED, "restricted"),
        (attributes::DECRYPT, "decrypt"),
        (attributes::SIGN, "sign"),
    ];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| public.has(*bit)).map(|(_, name)| *name).collect();
    format!("{:#010x} {}", public.attributes, set.join(" "))
}

fn key_words(public: &Public) -> String {
    let scheme = match public.scheme() {
        Scheme::Null => String::new(),
        Scheme::Ecdsa(hash) => format!(", ECDSA with {hash}"),
        Scheme::Rsassa(hash) => format!(", RSASSA with {hash}"),
        Scheme::Rsapss(hash) => format!(", RSAPSS with {hash}"),
    };
    let kind = match &public.key {
        Key::Rsa { bits, .. } => format!("RSA-{bits}"),
        Key::Ecc { curve: Curve::P256, .. } => "P-256".into(),
        Key::Ecc { curve: Curve::P384, .. } => "P-384".into(),
        Key::Sealed { .. } => "sealed data".into(),
    };
    kind + &scheme
}

/// The Name of a public area, hex.
#[must_use]
pub fn name_of(public: &[u8]) -> String {
    Public::parse(public).map_or_else(|e| e.to_string(), |public| public.name().to_string())
}

/// Describes a file by what its bytes are.
///
/// # Errors
/// What is wrong with a file of a known kind, or that it is of none.
pub fn describe(bytes: &[u8]) -> Result<Described, String> {
    if let Some(kind) = Kind::of(bytes) {
        return ours(kind, bytes);
    }
    if bytes.starts_with(&[0xff, 0x54, 0x43, 0x47]) {
        return quote(bytes);
    }
    if bytes.starts_with(b"{\"recnum\"") {
        return run_log(bytes);
    }
    if cel::looks_like(bytes) {
        return logs::canonical(bytes);
    }
    if bytes.starts_with(&[0x1e]) {
        return logs::systemd(bytes);
    }
    if bytes.starts_with(JoinToken::PREFIX.as_bytes()) {
        let token = token::parse(&String::from_utf8_lossy(bytes))?;
        return Ok(Described::new(
            "join token",
            &[("verifier", token.url), ("trust bundle", hex::encode(token.trust)), ("id", hex::encode(token.id))],
        ));
    }
    if bytes.starts_with(b"-----BEGIN CERTIFICATE-----") {
        let der = CertificateDer::from_pem_slice(bytes).map_err(|e| e.to_string())?;
        return certificate(&der).ok_or_else(|| "the certificate is damaged".to_owned());
    }
    if let Some(described) = logs::firmware(bytes) {
        return described;
    }
    if let Ok(public) = Public::parse_file(bytes) {
        let mut described = Described::new(
            "TPM public area",
            &[
                ("Name", public.name().to_string()),
                ("key", key_words(&public)),
                ("attributes", attribute_words(&public)),
                (
                    "policy",
                    if public.auth_policy.is_empty() { "none".into() } else { hex::encode(&public.auth_policy) },
                ),
            ],
        );
        let fits = match (Template::of(&public), ak::check(&public)) {
            (Some(template), _) => format!("an EK: {}", template_words(template)),
            (None, Ok(())) => "a key with all that verifiers ask of an AK".into(),
            (None, Err(e)) => format!("neither an EK of a known template nor an AK ({e})"),
        };
        described.fields.push(("this is".into(), fits));
        return Ok(described);
    }
    if let Ok(signature) = Signature::parse(bytes) {
        let kind = match signature {
            Signature::Ecdsa { .. } => "ECDSA",
            Signature::Rsassa { .. } => "RSASSA",
            Signature::Rsapss { .. } => "RSAPSS",
        };
        return Ok(Described::new("TPM signature", &[("scheme", format!("{kind} with {}", signature.hash()))]));
    }
    if let Some(described) = certificate(ekcert::from_nv(bytes).unwrap_or(bytes)) {
        return Ok(described);
    }
    let from_ascii = if ima::looks_ascii(bytes) { ima::to_binary(bytes).ok() } else { None };
    let list: Result<Vec<_>, _> = ima::entries(from_ascii.as_deref().unwrap_or(bytes)).and_then(Iterator::collect);
    match list {
        Ok(list) if !list.is_empty() => {
            let mut described = Described::new("IMA list", &[("entries", list.len().to_string())]);
            described.entries = list
                .iter()
                .map(|entry| format!("{} {}", hex::encode(entry.digest), String::from_utf8_lossy(entry.path)))
                .collect();
            Ok(described)
        }
        _ => Err("this is no artefact that Countersign knows".into()),
    }
}

fn ours(kind: Kind, bytes: &[u8]) -> Result<Described, String> {
    match kind {
        Kind::HostCard => {
            let card: HostCard = artefact::from_file(bytes).map_err(|e| e.to_string())?;
            Ok(Described::new(
                "host card",
                &[
                    ("host", card.host.to_string()),
                    ("EK", template_of(&card.ek_public)),
                    ("certificates", card.ek_certificates.len().to_string()),
                    ("AK name", name_of(&card.ak_public)),
                    ("run PCR", card.run_pcr.to_string()),
                ],
            ))
        }
        Kind::TrustBundle => {
            let body = artefact::body::<TrustBundle>(bytes).map_err(|e| e.to_string())?;
            let trust: TrustBundle = artefact::from_file(bytes).map_err(|e| e.to_string())?;
            Ok(Described::new(
                "trust bundle",
                &[
                    ("SHA-256", hex::encode(TrustBundle::digest(body))),
                    ("CA", ekcert::subject(&trust.ca).unwrap_or_else(|e| e.to_string())),
                    ("approval key", name_of(&trust.approval_key)),
                    ("verdict key", name_of(&trust.verdict_key)),
                ],
            ))
        }
        Kind::Evidence => {
            let evidence: Evidence = artefact::from_file(bytes).map_err(|e| e.to_string())?;
            let mut described = quote(&evidence.quote)?;
            described.kind = "evidence".into();
            described.fields.insert(0, ("host".into(), evidence.host.to_string()));
            Ok(described)
        }
        Kind::Bundle => {
            let bundle: Bundle = artefact::from_file(bytes).map_err(|e| e.to_string())?;
            let record: Record = countersign_wire::cbor::decode(&bundle.record).map_err(|e| e.to_string())?;
            let verdict: serde_json::Value = serde_json::from_slice(&record.verdict).map_err(|e| e.to_string())?;
            let text =
                |name: &str| verdict.get(name).map_or_else(String::new, |value| value.to_string().replace('"', ""));
            Ok(Described::new(
                "evidence bundle",
                &[
                    ("verdict", text("id")),
                    ("allow", text("allow")),
                    ("purpose", text("purpose")),
                    ("host", text("host")),
                    ("workload", text("workload")),
                    ("trust bundle", hex::encode(TrustBundle::digest(&bundle.trust))),
                    ("check it with", "verifier check bundle FILE --trust TRUST".into()),
                ],
            ))
        }
    }
}

fn certificate(der: &[u8]) -> Option<Described> {
    let subject = ekcert::subject(der).ok()?;
    let key = ekcert::certified_key(der).ok().and_then(|key| Template::rebuild(&key));
    let template = key.map_or_else(|| "none".to_owned(), |(template, _)| template_words(template).to_owned());
    Some(Described::new("certificate", &[("subject", subject), ("EK template", template)]))
}

fn quote(bytes: &[u8]) -> Result<Described, String> {
    let quote = Quote::parse(bytes).map_err(|e| e.to_string())?;
    let selection: Vec<String> = quote
        .selection
        .0
        .iter()
        .map(|bank| {
            let alg = HashAlg::from_id(bank.alg).map_or_else(|| format!("{:#06x}", bank.alg), |alg| alg.to_string());
            let pcrs: Vec<String> = bank.pcrs().map(|pcr| pcr.to_string()).collect();
            format!("{alg}:{}", pcrs.join(","))
        })
        .collect();
    Ok(Described::new(
        "quote",
        &[
            ("signer", hex::encode(quote.qualified_signer)),
            ("extraData", hex::encode(quote.extra_data)),
            ("clock", format!("{} ms, safe {}", quote.clock.clock, quote.clock.safe)),
            ("resetCount", quote.clock.reset_count.to_string()),
            ("restartCount", quote.clock.restart_count.to_string()),
            ("firmware", format!("{:016x}", quote.firmware_version)),
            ("PCRs", selection.join(" ")),
            ("PCR digest", hex::encode(quote.pcr_digest)),
        ],
    ))
}

fn run_log(bytes: &[u8]) -> Result<Described, String> {
    let log = RunLog::parse(bytes).map_err(|e| e.to_string())?;
    let mut described = Described::new("run log", &[("entries", log.entries.len().to_string())]);
    described.entries = log.entries.iter().map(|entry| format!("{:?}", entry.event)).collect();
    Ok(described)
}
