//! `verifier reference add NAME --file SET`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_wire::dsse::{self, Envelope, PublicKey};
use countersign_wire::limits;
use countersign_wire::refset::{PAYLOAD_TYPE, ReferenceSet};

use crate::admin::Request;
use crate::check::{CheckError, code};
use crate::out::Failure;

/// The request: the set's document, and who signed it. With keys only a set that one of them signed; a signed set only with its key.
pub(super) fn add(name: &str, file: &Path, keys: &[PathBuf]) -> Result<Request, Failure> {
    let bad = |check: &str, got: String, want: &str| {
        Failure::from(CheckError::new(code::INPUT, check, got, want).about(file.display().to_string()))
    };
    // Base64 and the envelope around it take a third more.
    let read = |path: &Path| super::read_at_most(path, limits::REFERENCE_SET.saturating_mul(3) / 2);
    let bytes = read(file)?;
    let (json, signer) = if keys.is_empty() {
        if Envelope::is(&bytes) {
            return Err(bad("reference-set", "a signed set".into(), "the signer's key: --key PEM"));
        }
        (bytes, String::new())
    } else {
        let keys = keys.iter().map(|path| {
            PublicKey::from_pem(&read(path)?).map_err(|e| bad("key", e.to_string(), "an Ed25519, P-256 or P-384 key"))
        });
        let keys = keys.collect::<Result<Vec<_>, Failure>>()?;
        let (json, signer) = dsse::open(&bytes, PAYLOAD_TYPE, &keys)
            .map_err(|e| bad("signature", e.to_string(), "a set that the given key signed"))?;
        (json, signer.id().to_owned())
    };
    ReferenceSet::parse(&json).map_err(|e| bad("reference-set", e.to_string(), "a reference set"))?;
    let set = zstd::encode_all(json.as_slice(), 3).map_err(|e| bad("reference-set", e.to_string(), "zstd"))?;
    Ok(Request::ReferenceAddSet { name: name.to_owned(), set: STANDARD.encode(set), signer })
}
