//! Compiled programs: packed for as long as a policy holds them, unpacked for those that decide. Policies with the same rules share one;
//! policies of one origin differ in their settings only.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use regorus::rvm::program::{DeserializationResult, Program};
use sha2::{Digest as _, Sha256};

use crate::bundle::PolicyBundle;
use crate::compiled::Role;
use crate::error::PolicyError;

/// Programs that are kept unpacked: those used last. One takes some 100 kB, packed it takes 20 kB; unpacking takes a hundredth of a decision.
const UNPACKED: usize = 32;

/// What a program is made from: the role and every module's path and text, hashed.
pub(crate) type Key = [u8; 32];

/// An inspected program in the engine's own form, made and read by this process only.
pub(crate) struct Packed {
    key: Key,
    bytes: Box<[u8]>,
}

#[derive(Default)]
struct Known {
    /// Those that some policy still holds; the others are forgotten when there are twice as many entries as at the last look.
    packed: HashMap<Key, Weak<Packed>>,
    look_at: usize,
    /// The one used last stands last.
    unpacked: Vec<(Key, Arc<Program>)>,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn key(bundle: &PolicyBundle, role: Role) -> Key {
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
pub(crate) fn in_use(key: &Key) -> Option<Arc<Packed>> {
    known().packed.get(key)?.upgrade()
}

impl Packed {
    /// Packs an inspected program without what only messages need, lines and source texts; remembered for as long as a policy holds it.
    ///
    /// # Errors
    /// [`PolicyError::Engine`]: the engine does not read what it wrote.
    pub(crate) fn new(key: Key, program: &Program) -> Result<Arc<Self>, PolicyError> {
        let mut program = Program::clone(program);
        program.instruction_spans = Vec::new();
        program.sources = Vec::new();
        let bytes = program.serialize_binary().map_err(PolicyError::Engine)?.into_boxed_slice();
        let packed = Arc::new(Self { key, bytes });
        let again = packed.read()?;
        let whole = again.literals == program.literals && again.rule_tree == program.rule_tree;
        if !whole || *again.serialize_binary().map_err(PolicyError::Engine)? != *packed.bytes {
            return Err(PolicyError::Engine("a packed program is another when it is unpacked".into()));
        }
        let mut known = known();
        if known.packed.len() >= known.look_at {
            known.packed.retain(|_, packed| packed.strong_count() > 0);
            known.look_at = known.packed.len().saturating_mul(2).max(64);
        }
        known.packed.insert(key, Arc::downgrade(&packed));
        Ok(packed)
    }

    /// The program, to run.
    ///
    /// # Errors
    /// [`PolicyError::Engine`]: never for one that was made.
    pub(crate) fn unpack(&self) -> Result<Arc<Program>, PolicyError> {
        let mut known = known();
        let program = match known.unpacked.iter().position(|(key, _)| *key == self.key) {
            Some(at) => known.unpacked.remove(at).1,
            None => {
                drop(known);
                let program = Arc::new(self.read()?);
                known = self::known();
                program
            }
        };
        if known.unpacked.len() >= UNPACKED {
            known.unpacked.remove(0);
        }
        known.unpacked.push((self.key, Arc::clone(&program)));
        Ok(program)
    }

    fn read(&self) -> Result<Program, PolicyError> {
        match Program::deserialize_binary(&self.bytes).map_err(PolicyError::Engine)? {
            DeserializationResult::Complete(program) => Ok(program),
            DeserializationResult::Partial(_) => Err(PolicyError::Engine("a packed program is not whole".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(number: usize) -> PolicyBundle {
        let text = format!("package countersign.host\n\nverdict := {{\"allow\": input.version == {number}}}\n");
        let files = [("countersign/host/host.rego".to_owned(), text.into_bytes())];
        PolicyBundle::parse(&PolicyBundle::build(files.into()).unwrap()).unwrap()
    }

    #[test]
    fn more_programs_than_are_kept_unpacked() {
        let programs: Vec<_> = (0..UNPACKED * 2)
            .map(|number| {
                let key = key(&bundle(number), Role::Host);
                let program = crate::compiled::checked(&bundle(number), Role::Host).unwrap();
                (number, Packed::new(key, &program).unwrap())
            })
            .collect();
        for (number, packed) in programs.iter().chain(programs.iter().rev()) {
            let mut vm =
                crate::compiled::machine(&packed.unpack().unwrap(), &regorus::Value::new_object(), 1000).unwrap();
            vm.set_input(regorus::Value::from(serde_json::json!({"version": number})));
            let verdict = vm.execute().unwrap();
            assert_eq!(verdict, regorus::Value::from(serde_json::json!({"allow": true})));
            assert!(known().unpacked.len() <= UNPACKED);
        }
    }

    #[test]
    fn damaged_ones_are_refused() {
        let program = crate::compiled::checked(&bundle(1), Role::Host).unwrap();
        let whole = Packed::new([1; 32], &program).unwrap();
        for length in 0..whole.bytes.len() {
            let cut = Packed { key: [2; 32], bytes: whole.bytes[..length].into() };
            assert!(matches!(cut.unpack(), Err(PolicyError::Engine(_))), "{length}");
        }
    }
}
