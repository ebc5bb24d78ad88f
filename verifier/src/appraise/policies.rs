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

/// Values as they are, and in the engine's form.
pub(super) type Values = (Arc<Reference>, ReferenceData);
/// Digest and values.
type Known = ([u8; 32], Values);

/// The reference values that were used last, by digest of their JSON: they change seldom and every decision needs them.
static REFERENCE: LazyLock<Mutex<Option<Known>>> = LazyLock::new(Mutex::default);

/// No reference values at all.
pub(super) fn no_reference() -> Values {
    let none = Reference::default();
    let data = ReferenceData::new(&reference_document(&none));
    (Arc::new(none), data)
}

/// Reference values, or why they cannot be read.
pub(super) fn reference(json: &[u8]) -> Result<Values, String> {
    let key: [u8; 32] = Sha256::digest(json).into();
    let mut kept = REFERENCE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, found)) = kept.as_ref().filter(|(known, _)| *known == key) {
        return Ok(found.clone());
    }
    let values: Reference =
        serde_json::from_slice(json).map_err(|e| format!("the reference values cannot be read: {e}"))?;
    let data = ReferenceData::new(&reference_document(&values));
    let found = (Arc::new(values), data);
    *kept = Some((key, found.clone()));
    Ok(found)
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
