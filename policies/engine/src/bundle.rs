//! Policy bundles: OPA's own format (<https://www.openpolicyagent.org/docs/management-bundles>), the part of it that is safe to accept from strangers.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    error::PolicyError,
    limits,
    tar::{self, Entry, size_u64},
};

const MANIFEST: &str = ".manifest";
const SIGNATURES: &str = ".signatures.json";
const DATA: &str = "data.json";

/// `.manifest`. Keys that it does not list are refused: they could change what the bundle means to another engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Free text; not interpreted.
    pub revision: String,
    /// Paths below `data` that this bundle owns, for example `countersign/workload`. Everything in it lies under one of them.
    pub roots: Vec<String>,
    /// 1: Rego v1, the only version accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rego_version: Option<u8>,
    /// Free, but for `countersign`: [`Release`].
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

/// `metadata.countersign` of a manifest: what orders the versions of a policy and ends their validity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Rises with every version; a lower one is refused once a higher one was loaded. 0: none.
    #[serde(default)]
    pub revision: u64,
    /// From when on the policy denies, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_ms: Option<i64>,
}

impl Manifest {
    /// Revision and expiry.
    ///
    /// # Errors
    /// `metadata.countersign` has another form.
    pub fn release(&self) -> Result<Release, String> {
        match self.metadata.get("countersign") {
            None => Ok(Release::default()),
            Some(given) => {
                serde_json::from_value(given.clone()).map_err(|e| format!("{MANIFEST}: metadata.countersign: {e}"))
            }
        }
    }
}

/// A bundle that was unpacked within the limits of [`limits`]. Nothing in it was compiled yet: see [`crate::Compiled`].
///
/// Not authenticated by itself: its digest is bound by the workload id (workload policy) or chosen by the operator (host policy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyBundle {
    digest: [u8; 32],
    manifest: Manifest,
    modules: BTreeMap<String, String>,
    data: Map<String, Value>,
}

impl PolicyBundle {
    /// Build a bundle from a folder: `*.rego` (tests, `*_test.rego`, stay out), `data.json` anywhere, and optionally `.manifest`.
    ///
    /// The same files give the same bytes on every machine and version: entries are sorted, owners and times are zero, and the gzip stream
    /// holds stored blocks only. Markdown files are left out; any other file, and any symbolic link, is an error, because a silently forgotten file would change what the policy means.
    ///
    /// # Errors
    /// [`PolicyError`] for whatever [`PolicyBundle::parse`] would refuse, and for folders that cannot be read.
    pub fn from_dir(dir: &Path) -> Result<Vec<u8>, PolicyError> {
        let mut files = BTreeMap::new();
        collect(dir, "", 0, &mut files)?;
        Self::build(files)
    }

    /// Build a bundle from named files, as [`PolicyBundle::from_dir`] does from a folder.
    ///
    /// # Errors
    /// As [`PolicyBundle::parse`].
    pub fn build(mut files: BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, PolicyError> {
        let (modules, data) = sort_files(&files)?;
        if !files.contains_key(MANIFEST) {
            let roots = roots(&modules, &data);
            let manifest = Manifest { roots, rego_version: Some(1), ..Manifest::default() };
            let json = serde_json::to_vec(&manifest).map_err(|error| PolicyError::Compile(error.to_string()))?;
            files.insert(MANIFEST.to_owned(), json);
        }
        let entries: Vec<Entry> = files.into_iter().map(|(path, content)| Entry { path, content }).collect();
        let archive = tar::write(&entries)?;
        let gzip = |error: std::io::Error| PolicyError::Gzip(error.to_string());
        // Stored blocks: the bytes must not depend on the version of a compressor.
        let mut writer =
            flate2::GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), flate2::Compression::none());
        writer.write_all(&archive).map_err(gzip)?;
        let bytes = writer.finish().map_err(gzip)?;
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Unpack a bundle. Reads `.manifest`, `*.rego` and `data.json` (at any depth) and refuses everything else.
    ///
    /// # Errors
    /// [`PolicyError`]: a limit of [`limits`], or what is wrong with which entry.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let files: BTreeMap<String, Vec<u8>> =
            tar::read(&unpack(bytes)?, false)?.into_iter().map(|entry| (entry.path, entry.content)).collect();
        let manifest =
            files.get(MANIFEST).ok_or_else(|| file(MANIFEST, "is missing: it says which roots the bundle owns"))?;
        let manifest: Manifest =
            serde_json::from_slice(manifest).map_err(|error| file(MANIFEST, &error.to_string()))?;
        if manifest.rego_version.is_some_and(|version| version != 1) {
            return Err(file(MANIFEST, "rego_version must be 1"));
        }
        let (modules, data) = sort_files(&files)?;
        let roots: BTreeSet<&str> = manifest.roots.iter().map(String::as_str).collect();
        for (owner, path) in owned(&modules, &data) {
            if !roots.iter().any(|root| within(&path, root)) {
                return Err(file(&owner, &format!("{path} lies under none of the roots in {MANIFEST}")));
            }
        }
        Ok(Self { digest: Sha256::digest(bytes).into(), manifest, modules, data })
    }

    /// SHA-256 of the bundle's bytes: the policy digest.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Rego sources by path.
    #[must_use]
    pub fn modules(&self) -> &BTreeMap<String, String> {
        &self.modules
    }

    /// Base documents, merged.
    #[must_use]
    pub fn data(&self) -> &Map<String, Value> {
        &self.data
    }
}

/// Every file of a bundle by its path, within the limits of [`limits`], nothing interpreted. `opa build` writes its paths with a slash in
/// front: it is taken away.
///
/// # Errors
/// [`PolicyError`].
pub fn bundle_files(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, PolicyError> {
    Ok(tar::read(&unpack(bytes)?, true)?.into_iter().map(|entry| (entry.path, entry.content)).collect())
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, PolicyError> {
    if bytes.len() > limits::BUNDLE_BYTES {
        return Err(PolicyError::TooLarge {
            what: "its size",
            got: size_u64(bytes.len()),
            limit: size_u64(limits::BUNDLE_BYTES),
        });
    }
    let gzip = |error: std::io::Error| PolicyError::Gzip(error.to_string());
    let mut decoder = flate2::bufread::GzDecoder::new(bytes);
    let mut archive = Vec::new();
    let limit = size_u64(limits::UNPACKED_BYTES);
    (&mut decoder).take(limit.saturating_add(1)).read_to_end(&mut archive).map_err(gzip)?;
    if archive.len() > limits::UNPACKED_BYTES {
        return Err(PolicyError::TooLarge { what: "its unpacked size", got: size_u64(archive.len()), limit });
    }
    if !decoder.into_inner().is_empty() {
        return Err(PolicyError::Gzip("bytes follow the end of the stream".to_owned()));
    }
    Ok(archive)
}

type Sorted = (BTreeMap<String, String>, Map<String, Value>);

/// Modules and merged data of a list of files; all else is refused.
fn sort_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Sorted, PolicyError> {
    let mut modules = BTreeMap::new();
    let mut data = Map::new();
    let mut rego_bytes = 0_usize;
    for (path, content) in files {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        // The signatures are whoever loads a signed bundle's business.
        if path == MANIFEST || path == SIGNATURES {
            continue;
        }
        if name == DATA {
            let value: Value = serde_json::from_slice(content).map_err(|error| file(path, &error.to_string()))?;
            let nested = folder
                .split('/')
                .rev()
                .filter(|part| !part.is_empty())
                .fold(value, |inner, part| Value::Object(Map::from_iter([(part.to_owned(), inner)])));
            let Value::Object(nested) = nested else {
                return Err(file(path, "the root document must be a JSON object"));
            };
            merge(&mut data, nested).map_err(|at| file(path, &format!("defines {at} a second time")))?;
        } else if name.len() > 5 && Path::new(name).extension().is_some_and(|extension| extension == "rego") {
            let text = String::from_utf8(content.clone()).map_err(|_| file(path, "not UTF-8"))?;
            rego_bytes = rego_bytes.saturating_add(text.len());
            modules.insert(path.clone(), text);
        } else {
            return Err(file(path, "has no place in a policy bundle (*.rego, data.json and .manifest have)"));
        }
    }
    if modules.is_empty() {
        return Err(file("*.rego", "is missing: the bundle has no policy"));
    }
    if rego_bytes > limits::REGO_BYTES {
        return Err(PolicyError::TooLarge {
            what: "its Rego text",
            got: size_u64(rego_bytes),
            limit: size_u64(limits::REGO_BYTES),
        });
    }
    Ok((modules, data))
}

/// Merge objects; two values for one path are an error that names it.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) -> Result<(), String> {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (None, value) => {
                into.insert(key, value);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new).map_err(|at| format!("{key}/{at}"))?,
            (Some(_), _) => return Err(key),
        }
    }
    Ok(())
}

/// What the bundle defines: (file, path below `data`).
fn owned(modules: &BTreeMap<String, String>, data: &Map<String, Value>) -> Vec<(String, String)> {
    let packages = modules.iter().map(|(path, text)| (path.clone(), package(text).replace('.', "/")));
    let documents = data.iter().flat_map(|(top, value)| match value {
        // Two levels are enough to tell one owner's documents from another's.
        Value::Object(inner) if !inner.is_empty() => {
            inner.keys().map(|key| (DATA.to_owned(), format!("{top}/{key}"))).collect()
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            vec![(DATA.to_owned(), top.clone())]
        }
    });
    packages.chain(documents).collect()
}

/// Smallest set of roots over everything that the files define.
fn roots(modules: &BTreeMap<String, String>, data: &Map<String, Value>) -> Vec<String> {
    let mut roots: Vec<String> = Vec::new();
    let all: BTreeSet<String> = owned(modules, data).into_iter().map(|(_, path)| path).collect();
    for path in all {
        if !roots.iter().any(|root| within(&path, root)) {
            roots.push(path);
        }
    }
    roots
}

/// The package that a module's text names, empty if none: enough to sort files; the compiler checks it properly.
pub(crate) fn package(text: &str) -> &str {
    text.lines()
        .find_map(|line| line.trim_start().strip_prefix("package "))
        .map_or("", |rest| rest.split('#').next().unwrap_or_default().trim())
}

pub(crate) fn within(path: &str, root: &str) -> bool {
    root.is_empty() || path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

fn collect(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), PolicyError> {
    let folder = |path: &Path, why: String| PolicyError::Folder { path: path.display().to_string(), why };
    if depth > limits::FOLDER_DEPTH {
        return Err(folder(dir, format!("more than {} folders below each other", limits::FOLDER_DEPTH)));
    }
    for entry in std::fs::read_dir(dir).map_err(|error| folder(dir, error.to_string()))? {
        let entry = entry.map_err(|error| folder(dir, error.to_string()))?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| folder(&path, "its name is not UTF-8".to_owned()))?;
        let inner = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(|error| folder(&path, error.to_string()))?;
        if kind.is_symlink() {
            return Err(folder(&path, "a symbolic link".to_owned()));
        }
        if kind.is_dir() {
            collect(&path, &inner, depth.saturating_add(1), files)?;
            continue;
        }
        if name.ends_with("_test.rego") || Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            continue;
        }
        let length = entry.metadata().map_err(|error| folder(&path, error.to_string()))?.len();
        if !kind.is_file() || length > size_u64(limits::UNPACKED_BYTES) || files.len() >= limits::FILES {
            return Err(folder(&path, "not a regular file, too large, or one file too many".to_owned()));
        }
        files.insert(inner, std::fs::read(&path).map_err(|error| folder(&path, error.to_string()))?);
    }
    Ok(())
}

fn file(path: &str, why: &str) -> PolicyError {
    PolicyError::File { path: path.to_owned(), why: why.to_owned() }
}
