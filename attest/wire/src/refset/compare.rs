//! What distinguishes two sets.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::file::escape;
use super::{FileDigest, Origin, ReferenceSet};

/// The difference between two sets, for people and as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Packages, images and hosts that came, went or changed their version.
    pub packages: Vec<PackageChange>,
    /// `PATH` or digest that only the second set accepts.
    pub added: Vec<String>,
    /// `PATH` or digest that only the first set accepts.
    pub removed: Vec<String>,
    /// Paths whose digests differ.
    pub changed: Vec<String>,
    /// Entries of `deny`, `exclude`, `certificates` and `learn_keys_from`: `+` only in the second, `-` only in the first.
    pub rules: Vec<String>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// Kind and name.
    pub name: String,
    /// Versions in the first set.
    pub before: Vec<String>,
    /// Versions in the second set.
    pub after: Vec<String>,
}

type Paths = BTreeMap<String, BTreeSet<String>>;

/// Digests by path; a digest that is good everywhere stands for itself.
fn paths(set: &ReferenceSet) -> Paths {
    let mut paths = Paths::new();
    for file in set.origins.iter().flat_map(|origin| &origin.files) {
        let Ok(file) = FileDigest::parse(file) else { continue };
        let digest = file.digest_text();
        let path = file.path.as_deref().map_or_else(|| digest.clone(), escape);
        paths.entry(path).or_default().insert(digest);
    }
    paths
}

fn versions(set: &ReferenceSet) -> BTreeMap<String, BTreeSet<String>> {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Origin { kind, name, version, arch, .. } in &set.origins {
        let version = format!("{version} {arch}").trim().to_owned();
        let version = if version.is_empty() { "present".to_owned() } else { version };
        versions.entry(format!("{kind} {name}")).or_default().insert(version);
    }
    versions
}

impl Difference {
    /// What `after` accepts otherwise than `before`.
    #[must_use]
    pub fn between(before: &ReferenceSet, after: &ReferenceSet) -> Self {
        let mut difference = Self::default();
        let (old, new) = (paths(before), paths(after));
        for (path, digests) in &new {
            match old.get(path) {
                None => difference.added.push(path.clone()),
                Some(was) if was != digests => difference.changed.push(path.clone()),
                Some(_) => {}
            }
        }
        difference.removed = old.keys().filter(|path| !new.contains_key(*path)).cloned().collect();
        let (old, new) = (versions(before), versions(after));
        let list = |versions: Option<&BTreeSet<String>>| versions.into_iter().flatten().cloned().collect::<Vec<_>>();
        for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            if old.get(name) != new.get(name) {
                let (before, after) = (list(old.get(name)), list(new.get(name)));
                difference.packages.push(PackageChange { name: name.clone(), before, after });
            }
        }
        let (old, new) = (rules(before), rules(after));
        difference.rules.extend(new.difference(&old).map(|rule| format!("+ {rule}")));
        difference.rules.extend(old.difference(&new).map(|rule| format!("- {rule}")));
        difference
    }

    /// Whether both sets accept the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn rules(set: &ReferenceSet) -> BTreeSet<String> {
    let deny = set.deny.iter().map(|denied| format!("deny {} ({})", denied.digest, denied.reason));
    let exclude = set.exclude.iter().map(|pattern| format!("exclude {pattern}"));
    let certificates = set.certificates.iter().map(|der| format!("certificate {der}"));
    let learn = set.learn_keys_from.iter().map(|keyring| format!("learn_keys_from {keyring}"));
    deny.chain(exclude).chain(certificates).chain(learn).collect()
}
