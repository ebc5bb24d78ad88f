//! Reference sets: what files a host may run, in one JSON document that people can read, diff, sign and edit.
//!
//! ```json
//! {
//!   "type": "countersign.reference/v1",
//!   "origins": [
//!     {"kind": "deb", "name": "bash", "version": "5.2.15-2", "arch": "amd64", "files": ["sha256:0b...e4 /usr/bin/bash"]}
//!   ],
//!   "deny": [{"digest": "sha256:d0...07", "reason": "CVE-2026-1"}],
//!   "exclude": ["/var/log/.*"],
//!   "certificates": ["MIID..."],
//!   "learn_keys_from": [".ima"]
//! }
//! ```
//!
//! * `origins`: where the digests come from; `kind` is `ima-list`, `directory`, `sif`, `deb`, `rpm`, `initrd` or `manual`. A file is
//!   `ALGORITHM:HEX PATH` and good at this path only, or `ALGORITHM:HEX` and good everywhere. In paths, `\` is `\\`, and bytes that are not printable
//!   UTF-8 are `\xNN`. The kernel logs `_` for a space, so both stand for each other.
//! * `deny`: digests that are never accepted, whatever else says so.
//! * `exclude`: regular expressions over whole paths, for files whose contents change. Who is root on the host chooses paths: a wide one accepts
//!   anything.
//! * `certificates`: X.509 (DER, base64) of keys whose file signatures are accepted.
//! * `learn_keys_from`: keyrings (names of `ima-buf` entries) whose keys are accepted too, from the entry on that measures them.
//!
//! Its canonical form has sorted lists (files by path) without duplicates; two sets that say the same are the same bytes.

mod compare;
mod file;

pub use compare::{Difference, PackageChange};
pub use file::{BadFile, FileDigest};

use serde::{Deserialize, Serialize};

use crate::limits;

/// `type` of a reference set.
pub const TYPE: &str = "countersign.reference/v1";
/// DSSE payload type of a signed one.
pub const PAYLOAD_TYPE: &str = "application/vnd.countersign.reference+json";

/// A reference set. See the [module](self) for its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSet {
    /// [`TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// Files by where they come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<Origin>,
    /// Digests that are never accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Denied>,
    /// Regular expressions over whole paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Certificates of signing keys (DER, base64).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// Keyrings whose measured keys are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learn_keys_from: Vec<String>,
}

/// Files that belong together: a package, an image, a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// What it is: see the [module](self).
    pub kind: String,
    /// Name of the package, file, folder or host.
    pub name: String,
    /// Version of a package.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Architecture of a package.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arch: String,
    /// `ALGORITHM:HEX PATH` or `ALGORITHM:HEX`.
    pub files: Vec<String>,
}

impl Origin {
    /// An origin without version and architecture.
    #[must_use]
    pub fn new(kind: &str, name: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.into(),
            version: String::new(),
            arch: String::new(),
            files: Vec::new(),
        }
    }

    /// Name, version and architecture, as far as it has them.
    #[must_use]
    pub fn describe(&self) -> String {
        [self.kind.as_str(), &self.name, &self.version, &self.arch]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A digest that is never accepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// `ALGORITHM:HEX`.
    pub digest: String,
    /// Why, for people.
    pub reason: String,
}

/// Why bytes are not a reference set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSet {
    /// Too many bytes.
    #[error("a reference set of {got} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not JSON of this shape.
    #[error("reference set: {0}")]
    Malformed(String),
    /// Another type or version.
    #[error("a document of type {0:?}, not {TYPE:?}")]
    Type(String),
    /// A file or digest is not written as it should be.
    #[error("{origin}: {bad}")]
    File {
        /// The origin, or `deny`.
        origin: String,
        /// What is wrong.
        bad: BadFile,
    },
}

impl Default for ReferenceSet {
    fn default() -> Self {
        Self {
            kind: TYPE.to_owned(),
            origins: Vec::new(),
            deny: Vec::new(),
            exclude: Vec::new(),
            certificates: Vec::new(),
            learn_keys_from: Vec::new(),
        }
    }
}

impl ReferenceSet {
    /// Reads a set and checks every file and digest in it.
    ///
    /// # Errors
    /// [`BadSet`].
    pub fn parse(json: &[u8]) -> Result<Self, BadSet> {
        if json.len() > limits::REFERENCE_SET {
            return Err(BadSet::TooLong { got: json.len(), max: limits::REFERENCE_SET });
        }
        let set: Self = serde_json::from_slice(json).map_err(|e| BadSet::Malformed(e.to_string()))?;
        if set.kind != TYPE {
            return Err(BadSet::Type(set.kind));
        }
        for origin in &set.origins {
            for file in &origin.files {
                FileDigest::parse(file).map_err(|bad| BadSet::File { origin: origin.describe(), bad })?;
            }
        }
        for denied in &set.deny {
            FileDigest::parse(&denied.digest).map_err(|bad| BadSet::File { origin: "deny".into(), bad })?;
        }
        Ok(set)
    }

    /// The canonical form: lists sorted, equal origins made one, no duplicates.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        self.origins.sort();
        let mut origins: Vec<Origin> = Vec::with_capacity(self.origins.len());
        for origin in self.origins {
            match origins.last_mut() {
                Some(last)
                    if (&last.kind, &last.name, &last.version, &last.arch)
                        == (&origin.kind, &origin.name, &origin.version, &origin.arch) =>
                {
                    last.files.extend(origin.files);
                }
                _ => origins.push(origin),
            }
        }
        for origin in &mut origins {
            // By path: as people look for them.
            origin.files.sort_unstable_by(|a, b| by_path(a).cmp(&by_path(b)));
            origin.files.dedup();
        }
        self.origins = origins;
        self.deny.sort();
        self.deny.dedup();
        for list in [&mut self.exclude, &mut self.certificates, &mut self.learn_keys_from] {
            list.sort_unstable();
            list.dedup();
        }
        self
    }

    /// The canonical form as JSON, one value a line.
    ///
    /// # Errors
    /// [`BadSet::Malformed`], which no set of ours is.
    pub fn to_json(&self) -> Result<Vec<u8>, BadSet> {
        let mut json =
            serde_json::to_vec_pretty(&self.clone().canonical()).map_err(|e| BadSet::Malformed(e.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Both sets in one.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.origins.extend(other.origins);
        self.deny.extend(other.deny);
        self.exclude.extend(other.exclude);
        self.certificates.extend(other.certificates);
        self.learn_keys_from.extend(other.learn_keys_from);
        self.canonical()
    }

    /// Number of files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.origins.iter().map(|origin| origin.files.len()).fold(0, usize::saturating_add)
    }
}

/// Path, then digest.
fn by_path(file: &str) -> (&str, &str) {
    file.split_once(' ').map_or(("", file), |(digest, path)| (path, digest))
}

#[cfg(test)]
mod tests;
