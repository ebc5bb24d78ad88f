//! Compiled policies, kept by digest: a policy is compiled once, not for every appraisal.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use countersign_policy::{Compiled, Role};
use sha2::{Digest as _, Sha256};

/// Policies kept; when there are more, all are forgotten and compiled again as they are needed.
const KEPT: usize = 1024;

type Kept = HashMap<(bool, [u8; 32]), Compiled>;

static CACHE: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

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
