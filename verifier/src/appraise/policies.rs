//! Compiled policies, kept by digest: a policy is compiled once, not for every appraisal.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use countersign_policy::input::Reference;
use countersign_policy::{Compiled, ReferenceData, Role, reference_document};
use sha2::{Digest as _, Sha256};

/// Policies kept; when there are more, all are forgotten and compiled again as they are needed.
const KEPT: usize = 1024;

type Kept = HashMap<(bool, [u8; 32]), Compiled>;

static CACHE: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// Reference values as they are, and in the engine's form.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// SHA-256 of their JSON.
    pub(super) digest: [u8; 32],
    /// The values; none when they cannot be read.
    pub(super) values: Arc<Reference>,
    /// The values in the engine's form.
    pub(super) document: ReferenceData,
    /// Why they cannot be read.
    pub(super) unreadable: Option<String>,
}

/// The reference values that were used last: they change seldom and every decision needs them.
static REFERENCE: LazyLock<Mutex<Option<Known>>> = LazyLock::new(Mutex::default);

/// Reference values.
pub(super) fn reference(json: &[u8]) -> Known {
    let digest: [u8; 32] = Sha256::digest(json).into();
    let mut kept = REFERENCE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = kept.as_ref().filter(|known| known.digest == digest) {
        return found.clone();
    }
    let (values, unreadable) = match serde_json::from_slice::<Reference>(json) {
        Ok(values) => (values, None),
        Err(e) => (Reference::default(), Some(format!("the reference values cannot be read: {e}"))),
    };
    let document = ReferenceData::new(&reference_document(&values));
    let known = Known { digest, values: Arc::new(values), document, unreadable };
    *kept = Some(known.clone());
    known
}

/// The compiled policy of a bundle.
pub(super) fn compiled(role: Role, bundle: &[u8]) -> Result<Compiled, String> {
    let key = (role == Role::Host, Sha256::digest(bundle).into());
    if let Some(found) = CACHE.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(found.clone());
    }
    let compiled = super::decide::compile(role, bundle)?;
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(key, compiled.clone());
    Ok(compiled)
}
