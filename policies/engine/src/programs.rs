//! Compiled programs, shared by all policies with the same rules: policies of one origin differ in their settings only.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use regorus::rvm::program::Program;
use sha2::{Digest as _, Sha256};

use crate::bundle::PolicyBundle;
use crate::compiled::Role;

/// Programs that some policy still holds; those that none holds are forgotten when there are twice as many entries as at the last look.
#[derive(Default)]
struct Known {
    programs: HashMap<[u8; 32], Weak<Program>>,
    look_at: usize,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// What a program is made from: the role and every module's path and text.
pub(crate) fn key(bundle: &PolicyBundle, role: Role) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(role.package());
    for (path, text) in bundle.modules() {
        for part in [path, text] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().into()
}

/// A program with these rules that is in use: it was inspected when it was made.
pub(crate) fn in_use(key: &[u8; 32]) -> Option<Arc<Program>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).programs.get(key)?.upgrade()
}

/// Remembers an inspected program for as long as a policy holds it.
pub(crate) fn remember(key: [u8; 32], program: &Arc<Program>) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.programs.len() >= known.look_at {
        known.programs.retain(|_, program| program.strong_count() > 0);
        known.look_at = known.programs.len().saturating_mul(2).max(64);
    }
    known.programs.insert(key, Arc::downgrade(program));
}
