//! Compiled reference sets, kept by identity: compiled once, not for every host or request.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::reference::Reference;

/// References kept; when there are more, all are forgotten and compiled again as they are needed. One is in use; a change makes a second.
const KEPT: usize = 4;

static CACHE: LazyLock<Mutex<HashMap<[u8; 32], Arc<Reference>>>> = LazyLock::new(Mutex::default);

/// A reference that was compiled before.
#[must_use]
pub fn loaded(identity: &[u8; 32]) -> Option<Arc<Reference>> {
    CACHE.lock().unwrap_or_else(PoisonError::into_inner).get(identity).cloned()
}

/// Keeps a compiled reference for all that ask for its identity.
pub fn remember(reference: Reference) -> Arc<Reference> {
    let reference = Arc::new(reference);
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(*reference.identity(), Arc::clone(&reference));
    reference
}
