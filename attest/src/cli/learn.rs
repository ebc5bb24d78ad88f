//! `attest learn` and `attest reference`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use countersign_wire::dsse::Envelope;
use countersign_wire::limits;
use countersign_wire::refset::{Difference, FileDigest, Origin, ReferenceSet, TYPE};
use serde_json::json;

use crate::exit::Exit;
use crate::learn::{self, LearnError};
use crate::out::{self, Failure};
use crate::state::read_bounded;

/// From what reference values are learned.
#[derive(Debug, Args)]
pub(super) struct Learn {
    #[command(subcommand)]
    from: Source,
    /// Write the set to a file instead of standard output
    #[arg(short, long, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Accept the files at any path
    #[arg(long, global = true)]
    digest_only: bool,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// What a golden host measured: its IMA list, binary or ASCII
    Host {
        /// The list (default: the configured ima_log)
        list: Option<PathBuf>,
    },
    /// Every file below a folder
    Dir {
        /// The folder
        dir: PathBuf,
    },
    /// Every file of a SIF image
    Sif {
        /// The image
        image: PathBuf,
    },
    /// Every file of Debian package files
    Deb {
        /// Package files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Every file of installed Debian packages, hashed here
    DebInstalled {
        /// Their names (default: all)
        packages: Vec<String>,
        /// Root of the system
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// The digests in RPM package files
    Rpm {
        /// Package files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// The digests of installed RPM packages
    RpmInstalled {
        /// Their names (default: all)
        packages: Vec<String>,
        /// Root of the system
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Every file of an initrd
    Initrd {
        /// The initrd
        file: PathBuf,
    },
}

/// What is done with reference sets.
#[derive(Debug, Subcommand)]
pub(super) enum Reference {
    /// One set that accepts what all of them accept
    Merge {
        /// Reference sets
        #[arg(required = true)]
        sets: Vec<PathBuf>,
        /// Write it to a file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What the second set accepts otherwise than the first
    Diff {
        /// First set
        before: PathBuf,
        /// Second set
        after: PathBuf,
    },
    /// Sign a set (DSSE)
    Sign {
        /// The set
        set: PathBuf,
        /// Private key, PKCS#8 PEM: Ed25519, P-256 or P-384
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The envelope
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Check a set, or a signed set against its signer's key
    Verify {
        /// The set or envelope
        file: PathBuf,
        /// Public key (PEM) that must have signed it
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// Write the set without its envelope to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl From<LearnError> for Failure {
    fn from(error: LearnError) -> Self {
        let hint = match &error {
            LearnError::Tool { tool, .. } => format!("install {tool}"),
            LearnError::File { .. } | LearnError::Failed { .. } | LearnError::Key(_) => String::new(),
        };
        Self { code: Exit::Learn.code(), error: error.to_string(), words: String::new(), hint, denial: None }
    }
}

fn bad(path: &Path, reason: impl ToString) -> LearnError {
    LearnError::File { path: path.to_owned(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, LearnError> {
    // Base64 and the envelope around it take a third more.
    let max = limits::REFERENCE_SET.saturating_mul(3) / 2;
    std::fs::File::open(path).and_then(|file| read_bounded(file, max)).map_err(|e| bad(path, e))
}

/// Whether bytes are a reference set, signed or not, well-formed or not: what `attest diff` goes by.
pub(super) fn is_set(bytes: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: String,
    }
    Envelope::is(bytes) || serde_json::from_slice::<Typed>(bytes).is_ok_and(|typed| typed.kind == TYPE)
}

fn read_set(path: &Path) -> Result<ReferenceSet, LearnError> {
    let bytes = read(path)?;
    if Envelope::is(&bytes) {
        return Err(bad(path, "a signed set: attest reference verify FILE --key PUB -o SET"));
    }
    ReferenceSet::parse(&bytes).map_err(|e| bad(path, e))
}

/// Writes a set to a file, with a line about it on standard output, or to standard output.
fn write_set(json: bool, set: &ReferenceSet, output: Option<&Path>) -> Result<(), Failure> {
    let set = set.clone().canonical();
    let bytes = set.to_json().map_err(|e| LearnError::Key(e.to_string()))?;
    let Some(path) = output else { return out::raw(&bytes) };
    std::fs::write(path, &bytes).map_err(|e| bad(path, e))?;
    let (origins, files) = (set.origins.len(), set.files());
    out::print(json, &json!({"file": path, "origins": origins, "files": files}), || {
        format!("{}: {files} files of {origins} origins", path.display())
    })
}

impl Learn {
    /// Learns, and writes the set.
    pub(super) fn run(
        &self,
        json: bool,
        ima_log: impl FnOnce() -> Result<Option<PathBuf>, Failure>,
    ) -> Result<(), Failure> {
        let origins = match &self.from {
            Source::Host { list } => {
                let list = match list {
                    Some(list) => list.clone(),
                    None => ima_log()?.ok_or_else(|| bad(Path::new("ima_log"), "no IMA list is configured"))?,
                };
                vec![learn::ima_list(&list, self.digest_only)?]
            }
            Source::Dir { dir } => vec![learn::directory(dir)?],
            Source::Sif { image } => vec![learn::sif(image)?],
            Source::Deb { files } => each(files, learn::deb_file)?,
            Source::DebInstalled { packages, root } => learn::deb_installed(root, packages)?,
            Source::Rpm { files } => each(files, learn::rpm_file)?,
            Source::RpmInstalled { packages, root } => learn::rpm_installed(root, packages)?,
            Source::Initrd { file } => vec![learn::initrd(file)?],
        };
        let mut set = ReferenceSet { origins, ..ReferenceSet::default() };
        if self.digest_only {
            set.origins.iter_mut().flat_map(|origin| &mut origin.files).for_each(without_path);
        }
        write_set(json, &set, self.output.as_deref())
    }
}

fn without_path(file: &mut String) {
    if let Ok(parsed) = FileDigest::parse(file) {
        *file = FileDigest { path: None, ..parsed }.to_string();
    }
}

fn each(files: &[PathBuf], learn: impl Fn(&Path) -> Result<Origin, LearnError>) -> Result<Vec<Origin>, LearnError> {
    files.iter().map(|file| learn(file)).collect()
}

impl Reference {
    /// Does it.
    pub(super) fn run(&self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Merge { sets, output } => {
                let mut merged = ReferenceSet::default();
                for path in sets {
                    merged = merged.merge(read_set(path)?);
                }
                write_set(json, &merged, output.as_deref())
            }
            Self::Diff { before, after } => {
                let difference = Difference::between(&read_set(before)?, &read_set(after)?);
                out::print(json, &difference, || words(&difference))
            }
            Self::Sign { set, key, output } => {
                let key = zeroize::Zeroizing::new(read(key)?);
                let (envelope, id) = learn::sign(&read_set(set)?, &key)?;
                std::fs::write(output, envelope).map_err(|e| bad(output, e))?;
                out::print(json, &json!({"file": output, "key": id}), || {
                    format!("{}: signed by key {id}", output.display())
                })
            }
            Self::Verify { file, key, output } => {
                let bytes = read(file)?;
                let (set, signer) = if Envelope::is(&bytes) {
                    if key.is_empty() {
                        return Err(bad(file, "a signed set: name its signer's key with --key").into());
                    }
                    let keys = key.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
                    let (set, signer) = learn::open(&bytes, &keys)?;
                    (set, Some(signer))
                } else if key.is_empty() {
                    (ReferenceSet::parse(&bytes).map_err(|e| bad(file, e))?, None)
                } else {
                    return Err(bad(file, "this set is not signed").into());
                };
                if let Some(path) = output {
                    return write_set(json, &set, Some(path));
                }
                let (origins, files) = (set.origins.len(), set.files());
                out::print(json, &json!({"signer": signer, "origins": origins, "files": files}), || {
                    let signed = signer.map_or_else(|| "not signed".to_owned(), |id| format!("signed by key {id}"));
                    format!("a reference set of {files} files of {origins} origins, {signed}")
                })
            }
        }
    }
}

fn words(difference: &Difference) -> String {
    if difference.is_empty() {
        return "both sets accept the same".into();
    }
    let mut lines = Vec::new();
    for package in &difference.packages {
        let versions = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        lines.push(format!("{}: {} -> {}", package.name, versions(&package.before), versions(&package.after)));
    }
    let lists = [("+", &difference.added), ("-", &difference.removed), ("!", &difference.changed)];
    for (mark, paths) in lists {
        lines.extend(paths.iter().map(|path| format!("{mark} {path}")));
    }
    lines.extend(difference.rules.iter().cloned());
    let lines: Vec<String> = lines.iter().map(|line| out::printable(line)).collect();
    lines.join("\n")
}
