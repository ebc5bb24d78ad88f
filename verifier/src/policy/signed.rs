//! Signed OPA bundles (<https://www.openpolicyagent.org/docs/management-bundles#signing>): what `opa build --signing-key` makes verifies here, and
//! the reverse.
//!
//! `.signatures.json` holds one JWS (RFC 7515) over {files: [{name, hash, algorithm}]}. Stricter than OPA: the key id is required, every file must
//! be listed and every listed file be there, roots are explicit, deltas and YAML are refused.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_policy::{PolicyBundle, bundle_files};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const SIGNATURES: &str = ".signatures.json";
const MANIFEST: &str = ".manifest";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signatures {
    signatures: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    plugin: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    kid: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    hash: String,
    algorithm: String,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    keyid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    scope: Option<String>,
}

/// Signs a bundle with ES256; an older signature is replaced.
///
/// # Errors
/// No policy bundle, or no P-256 key in PKCS#8 PEM.
pub fn sign(bundle: &[u8], key: &[u8], keyid: &str) -> Result<Vec<u8>, String> {
    if keyid.is_empty() {
        return Err("the key id is empty".into());
    }
    let der = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|e| format!("the key is no PKCS#8 PEM: {e}"))?;
    let key = p256::ecdsa::SigningKey::from_pkcs8_der(der.secret_pkcs8_der())
        .map_err(|e| format!("the key is no P-256 key: {e}"))?;
    let mut files = bundle_files(bundle).map_err(|e| e.to_string())?;
    files.remove(SIGNATURES);
    let listed: Result<Vec<File>, String> = files
        .iter()
        .map(|(name, content)| {
            Ok(File { name: name.clone(), hash: hash(name, content)?, algorithm: "SHA-256".to_owned() })
        })
        .collect();
    let payload = Payload { files: listed?, keyid: Some(keyid.to_owned()), scope: None };
    let header = Header { alg: "ES256".into(), kid: Some(keyid.to_owned()) };
    let text = |value: Result<Vec<u8>, serde_json::Error>| value.map(|json| URL_SAFE_NO_PAD.encode(json));
    let header = text(serde_json::to_vec(&header)).map_err(|e| e.to_string())?;
    let payload = text(serde_json::to_vec(&payload)).map_err(|e| e.to_string())?;
    let message = format!("{header}.{payload}");
    let signature: p256::ecdsa::Signature = key.sign(message.as_bytes());
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()));
    let signatures = serde_json::to_vec(&Signatures { signatures: vec![token], plugin: None });
    files.insert(SIGNATURES.to_owned(), signatures.map_err(|e| e.to_string())?);
    PolicyBundle::build(files).map_err(|e| e.to_string())
}

/// Verifies a signed bundle with the keys that are trusted (id to PEM). Answers the bundle in this program's own form, signature included, and
/// the id of the key.
///
/// # Errors
/// What is wrong, with the file's name.
pub fn verify(bundle: &[u8], keys: &BTreeMap<String, Vec<u8>>) -> Result<(Vec<u8>, String), String> {
    let files = bundle_files(bundle).map_err(|e| e.to_string())?;
    if let Some(delta) = files.keys().find(|name| name.rsplit('/').next() == Some("patch.json")) {
        return Err(format!("{delta}: delta bundles are refused"));
    }
    let given = files.get(SIGNATURES).ok_or("the bundle is not signed (no .signatures.json)")?;
    let given: Signatures = serde_json::from_slice(given).map_err(|e| format!("{SIGNATURES}: {e}"))?;
    let [token] = given.signatures.as_slice() else {
        return Err(format!("{SIGNATURES}: {} signatures, one is expected", given.signatures.len()));
    };
    if given.plugin.is_some_and(|plugin| plugin != "_default") {
        return Err(format!("{SIGNATURES}: a plug-in's signature"));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else {
        return Err(format!("{SIGNATURES}: no compact JWS"));
    };
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|e| format!("{SIGNATURES}: {e}"));
    let head: Header = serde_json::from_slice(&decoded(header)?).map_err(|e| format!("{SIGNATURES}: {e}"))?;
    let claims: Payload = serde_json::from_slice(&decoded(payload)?).map_err(|e| format!("{SIGNATURES}: {e}"))?;
    let keyid = match (&head.kid, &claims.keyid) {
        (Some(a), Some(b)) if a != b => return Err(format!("{SIGNATURES}: two key ids, {a} and {b}")),
        (Some(id), _) | (None, Some(id)) => id.clone(),
        (None, None) => return Err(format!("{SIGNATURES}: no key id")),
    };
    let key = keys.get(&keyid).ok_or_else(|| format!("signed by {keyid:?}, which is not trusted"))?;
    let message = format!("{header}.{payload}");
    check_signature(key, &head.alg, message.as_bytes(), &decoded(signature)?)?;
    if claims.scope.is_some() {
        return Err(format!("{SIGNATURES}: a scope is not understood"));
    }
    let mut left: Vec<&String> = files.keys().filter(|name| *name != SIGNATURES).collect();
    for file in &claims.files {
        let name = file.name.trim_start_matches('/');
        if file.algorithm != "SHA-256" {
            return Err(format!("{name}: {} instead of SHA-256", file.algorithm));
        }
        let content = files.get(name).ok_or_else(|| format!("{name}: signed, but not in the bundle"))?;
        let got = hash(name, content)?;
        if got != file.hash.to_lowercase() {
            return Err(format!("{name}: its digest is {got}, signed is {}", file.hash));
        }
        let before = left.len();
        left.retain(|listed| *listed != name);
        if left.len() == before {
            return Err(format!("{name}: signed twice"));
        }
    }
    if let Some(name) = left.first() {
        return Err(format!("{name}: in the bundle, but not signed"));
    }
    let own = PolicyBundle::build(files).map_err(|e| e.to_string())?;
    let parsed = PolicyBundle::parse(&own).map_err(|e| e.to_string())?;
    if parsed.manifest().roots.is_empty() || parsed.manifest().roots.iter().any(String::is_empty) {
        return Err(format!("{MANIFEST}: roots must be named (an empty root owns everything)"));
    }
    Ok((own, keyid))
}

fn check_signature(pem: &[u8], alg: &str, message: &[u8], signature: &[u8]) -> Result<(), String> {
    let wrong = || "the signature does not verify".to_owned();
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|e| format!("the public key is no PEM: {e}"))?;
    match alg {
        "ES256" => {
            let key = p256::ecdsa::VerifyingKey::from_public_key_der(&der).map_err(|e| e.to_string())?;
            let signature = p256::ecdsa::Signature::from_slice(signature).map_err(|_| wrong())?;
            key.verify(message, &signature).map_err(|_| wrong())
        }
        "RS256" => {
            use x509_cert::der::Decode as _;
            let info = x509_cert::spki::SubjectPublicKeyInfoRef::from_der(&der).map_err(|e| e.to_string())?;
            let key = ring::signature::UnparsedPublicKey::new(
                &ring::signature::RSA_PKCS1_2048_8192_SHA256,
                info.subject_public_key.raw_bytes(),
            );
            key.verify(message, signature).map_err(|_| wrong())
        }
        other => Err(format!("the signature's algorithm {other:?} is not accepted (ES256 and RS256 are)")),
    }
}

/// The digest that OPA signs: of the bytes, but for JSON of its canonical form.
fn hash(name: &str, content: &[u8]) -> Result<String, String> {
    let mut hash = Sha256::new();
    match name.rsplit('/').next() {
        Some("data.json" | MANIFEST) => {
            let value: Value = serde_json::from_slice(content).map_err(|e| format!("{name}: {e}"))?;
            walk(&value, &mut hash);
        }
        Some("data.yaml" | "data.yml") => return Err(format!("{name}: YAML is refused")),
        _ => hash.update(content),
    }
    Ok(hex::encode(hash.finalize()))
}

/// Keys sorted bytewise, no spaces; strings as Go's encoder writes them without HTML escapes.
fn walk(value: &Value, hash: &mut Sha256) {
    let plain = |value: &Value| value.to_string().replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    match value {
        Value::Object(map) => {
            hash.update("{");
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            for (at, (key, inner)) in sorted.into_iter().enumerate() {
                hash.update(if at > 0 { "," } else { "" });
                hash.update(plain(&Value::String(key.clone())));
                hash.update(":");
                walk(inner, hash);
            }
            hash.update("}");
        }
        Value::Array(list) => {
            hash.update("[");
            for (at, inner) in list.iter().enumerate() {
                hash.update(if at > 0 { "," } else { "" });
                walk(inner, hash);
            }
            hash.update("]");
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => hash.update(plain(value)),
    }
}
