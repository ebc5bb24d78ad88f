//! The host policy in a state folder: which keys may sign it, which bundle is in force, what came before.
//!
//! ```text
//! policy/keys/ID.pem      trusted public keys
//! policy/current          the bundle in force (none: the policy of verifier.toml, or the shipped one)
//! policy/previous         the one before it
//! policy/candidate        one that decides beside it and never grants
//! policy/highest          the highest revision that was ever loaded
//! policy/audit.jsonl      what was loaded, refused and rolled back
//! policy/poll.json        how fetching bundles goes
//! policy/report.json      how reporting decisions goes
//! policy/lock             held by whoever changes what is in force
//! ```
//! A bundle is written beside `current` and renamed over it: at every moment there is a whole one, and a refused one changes nothing.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use countersign_policy::{Manifest, PolicyBundle, Role};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::poll::{Polled, polled};
use super::report::{Reported, reported};
use super::sandbox::{Failure, Trial};
pub use super::signed::sign;
use crate::error::Error;

/// What a bundle is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// SHA-256 (hex) of the bundle as stored: what verdicts name.
    pub digest: String,
    /// Its own revision.
    pub revision: u64,
    /// From when on it denies, milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// Id of the key that signed it.
    pub keyid: String,
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "revision {}, signed by {}, SHA-256 {}", self.revision, self.keyid, self.digest)?;
        self.expires_ms.map_or(Ok(()), |expires| write!(f, ", until {expires} ms since 1970"))
    }
}

/// A bundle whose signature holds.
#[derive(Debug)]
pub struct Verified {
    /// What it is.
    pub about: About,
    /// The bundle in this program's own form.
    pub bundle: Vec<u8>,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The bundle in force; none: the policy of verifier.toml, or the shipped one.
    pub current: Option<About>,
    /// The one before it.
    pub previous: Option<About>,
    /// One that decides beside it, audit-only.
    pub candidate: Option<About>,
    /// The highest revision that was ever loaded.
    pub highest: u64,
    /// Ids of the trusted keys.
    pub keys: Vec<String>,
    /// How fetching bundles went last.
    pub polled: Option<Polled>,
    /// How reporting decisions went last.
    pub reported: Option<Reported>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            Some(about) => writeln!(f, "in force   {about}")?,
            None if self.highest > 0 => writeln!(f, "in force   nothing: all is denied until a bundle is loaded")?,
            None => writeln!(f, "in force   no bundle: the policy of verifier.toml, or the shipped one")?,
        }
        if let Some(about) = &self.previous {
            writeln!(f, "before it  {about}")?;
        }
        if let Some(about) = &self.candidate {
            writeln!(f, "candidate  {about}; audit-only: it decides and never grants (verifier policy audit)")?;
        }
        if let Some(polled) = &self.polled {
            writeln!(f, "{polled}")?;
        }
        if let Some(reported) = &self.reported {
            writeln!(f, "{reported}")?;
        }
        write!(f, "highest    {}\nkeys       {}", self.highest, self.keys.join(", "))
    }
}

/// Milliseconds since 1970 by this machine's clock: for expiry when a bundle is built or loaded, never for a verdict.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::request("policy-refused", why.to_string(), Some("the policy in force stays as it is"))
}

fn state(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::State { path: path.display().to_string(), reason: e.to_string() }
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("policy")
}

/// Builds a bundle with revision and expiry in its manifest.
///
/// # Errors
/// The folder is no policy.
pub fn build(dir: &Path, revision: u64, expires_ms: i64) -> Result<Vec<u8>, String> {
    let plain = PolicyBundle::from_dir(dir).map_err(|e| e.to_string())?;
    let mut files = countersign_policy::bundle_files(&plain).map_err(|e| e.to_string())?;
    let parsed = PolicyBundle::parse(&plain).map_err(|e| e.to_string())?;
    let mut manifest: Manifest = parsed.manifest().clone();
    manifest.revision = revision.to_string();
    manifest.metadata.insert("countersign".into(), json!({"revision": revision, "expires_ms": expires_ms}));
    files.insert(".manifest".into(), serde_json::to_vec(&manifest).map_err(|e| e.to_string())?);
    PolicyBundle::build(files).map_err(|e| e.to_string())
}

/// Verifies a signed bundle with trusted keys (id to PEM).
///
/// # Errors
/// What is wrong.
pub fn verify(bundle: &[u8], keys: &BTreeMap<String, Vec<u8>>) -> Result<Verified, String> {
    let (own, keyid) = super::signed::verify(bundle, keys)?;
    Ok(Verified { about: about(&own, keyid)?, bundle: own })
}

fn about(own: &[u8], keyid: String) -> Result<About, String> {
    let parsed = PolicyBundle::parse(own).map_err(|e| e.to_string())?;
    let release = parsed.manifest().release()?;
    Ok(About {
        digest: hex::encode(parsed.digest()),
        revision: release.revision,
        expires_ms: release.expires_ms,
        keyid,
    })
}

/// Trusts a public key; answers its id.
///
/// # Errors
/// [`Error`].
pub fn trust(dir: &Path, file: &Path, pem: &[u8]) -> Result<String, Error> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem)
        .map_err(|e| refuse(format!("{} is no public key in PEM: {e}", file.display())))?;
    let id = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(refuse("a key's file name has letters, digits, - _ . only"));
    }
    let keys = folder(dir).join("keys");
    std::fs::create_dir_all(&keys).map_err(|e| state(&keys, &e))?;
    replace(&keys.join(format!("{id}.pem")), pem)?;
    audit(dir, "trust", &id)?;
    Ok(id)
}

fn keys(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let place = folder(dir).join("keys");
    let mut keys = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(&place) else { return Ok(keys) };
    for entry in entries {
        let path = entry.map_err(|e| state(&place, &e))?.path();
        if let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pem")) {
            keys.insert(id.to_owned(), std::fs::read(&path).map_err(|e| state(&path, &e))?);
        }
    }
    Ok(keys)
}

/// Makes a signed bundle the host policy: signature, revision, expiry, then a trial, then the change. A candidate that is the same bundle is none any
/// more: it is promoted.
///
/// # Errors
/// [`Error::Request`] says why it is refused: nothing has changed then, but the audit.
pub fn load(dir: &Path, bundle: &[u8], trial: &Trial) -> Result<About, Error> {
    let _lock = lock(dir)?;
    let done = good(dir, bundle, trial).and_then(|verified| enforce(dir, verified));
    recorded(dir, "load", done)
}

/// Makes a signed bundle the candidate: it decides beside the policy in force and never grants. It meets what [`load`] asks for; its revision is taken
/// only when it is loaded.
///
/// # Errors
/// As [`load`].
pub fn load_candidate(dir: &Path, bundle: &[u8], trial: &Trial) -> Result<About, Error> {
    let _lock = lock(dir)?;
    let done = good(dir, bundle, trial).and_then(|verified| {
        replace(&folder(dir).join("candidate"), &verified.bundle)?;
        Ok(verified.about)
    });
    recorded(dir, "load-candidate", done)
}

/// No candidate any more; answers whether there was one.
///
/// # Errors
/// [`Error`].
pub fn drop_candidate(dir: &Path) -> Result<bool, Error> {
    let _lock = lock(dir)?;
    let path = folder(dir).join("candidate");
    match std::fs::remove_file(&path) {
        Ok(()) => audit(dir, "drop-candidate", "").map(|()| true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(state(&path, &e)),
    }
}

/// The candidate, for the service. One that cannot be read is none: it changes no answer.
pub(crate) fn candidate(dir: &Path) -> Option<Vec<u8>> {
    let path = folder(dir).join("candidate");
    match std::fs::read(&path) {
        Ok(bundle) => Some(bundle),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => {
            tracing::error!(error = %e, "policy/candidate");
            None
        }
    }
}

/// What a signed bundle is, if its revision is the highest that was ever loaded here.
pub(super) fn newest(dir: &Path, bundle: &[u8]) -> Result<Option<About>, Error> {
    let verified = verify(bundle, &keys(dir)?).map_err(refuse)?;
    let highest = highest(dir)?;
    Ok(Some(verified.about).filter(|about| highest > 0 && about.revision == highest))
}

/// What a refusal of a bundle rests on: its bytes and the keys that are trusted. The same again is refused again.
pub(super) fn circumstances(dir: &Path, bundle: &[u8]) -> Result<String, Error> {
    let mut hash = Sha256::new_with_prefix(Sha256::digest(bundle));
    for (id, pem) in keys(dir)? {
        hash.update(Sha256::digest(id));
        hash.update(Sha256::digest(pem));
    }
    Ok(hex::encode(hash.finalize()))
}

fn recorded(dir: &Path, action: &str, done: Result<About, Error>) -> Result<About, Error> {
    match &done {
        Ok(about) => audit(dir, action, &about.to_string())?,
        Err(e @ Error::Request(_)) => audit(dir, "refuse", &e.to_string())?,
        // Nothing was decided about it: it may come again, and again.
        Err(_) => {}
    }
    done
}

/// Held while what is in force changes: a command and the service may both load.
fn lock(dir: &Path) -> Result<std::fs::File, Error> {
    let path = folder(dir).join("lock");
    std::fs::create_dir_all(folder(dir)).map_err(|e| state(&path, &e))?;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| state(&path, &e))?;
    file.lock().map_err(|e| state(&path, &e))?;
    Ok(file)
}

/// A bundle that may decide: signature, revision, expiry, and a trial.
fn good(dir: &Path, bundle: &[u8], trial: &Trial) -> Result<Verified, Error> {
    let verified = verify(bundle, &keys(dir)?).map_err(refuse)?;
    let about = &verified.about;
    let highest = highest(dir)?;
    if about.revision < highest || (about.revision == highest && !unfinished(dir, highest)?) {
        return Err(refuse(format!("revision {} is not above {highest}, which was loaded before", about.revision)));
    }
    match about.expires_ms {
        None => return Err(refuse("the bundle has no expiry (metadata.countersign.expires_ms)")),
        Some(expires) if expires <= now_ms() => return Err(refuse(format!("expired ({expires} ms since 1970)"))),
        Some(_) => {}
    }
    trial.run(&verified.bundle, Role::Host).map_err(|failure| match failure {
        Failure::Refused(why) => refuse(why),
        Failure::Untried(why) => Error::State { path: "policy trial".to_owned(), reason: why },
    })?;
    Ok(verified)
}

/// Whether the newest revision was written down and never came into force: loading was interrupted, or what it had put in force is gone. A rollback
/// leaves the newest one as the previous one.
fn unfinished(dir: &Path, highest: u64) -> Result<bool, Error> {
    let revision = |bundle: Vec<u8>| about(&bundle, String::new()).ok().map(|about| about.revision);
    let Some(current) = active(dir)? else { return Ok(highest > 0) };
    Ok(highest > 0 && revision(current) != Some(highest) && previous(dir)?.and_then(revision) != Some(highest))
}

/// With no bundle in force: why the configured policy may not decide either. It may when no bundle was ever loaded, and none is to be `fetched`.
pub(crate) fn missing(dir: &Path, fetched: bool) -> Result<Option<String>, Error> {
    Ok(match highest(dir)? {
        0 if fetched => Some("no bundle came from the bundle server yet".to_owned()),
        0 => None,
        highest => Some(format!("revision {highest} was loaded here, and policy/current is gone")),
    })
}

fn enforce(dir: &Path, Verified { about, bundle }: Verified) -> Result<About, Error> {
    let place = folder(dir);
    let current = place.join("current");
    // The revision first: after a crash in between this bundle may be loaded once more, and never an older one.
    replace(&place.join("highest"), about.revision.to_string().as_bytes())?;
    if let Some(old) = active(dir)? {
        replace(&place.join("previous"), &old)?;
    }
    replace(&current, &bundle)?;
    if candidate(dir).as_ref() == Some(&bundle) {
        let path = place.join("candidate");
        std::fs::remove_file(&path).map_err(|e| state(&path, &e))?;
    }
    Ok(about)
}

/// Puts the previous bundle in force again: an operator's own act, which the revision does not stand against.
///
/// # Errors
/// There is none, or it no longer verifies.
pub fn rollback(dir: &Path) -> Result<About, Error> {
    let _lock = lock(dir)?;
    let place = folder(dir);
    let (current, previous) = (place.join("current"), place.join("previous"));
    let old = std::fs::read(&previous).map_err(|_| refuse("there is no policy before the current one"))?;
    let verified = verify(&old, &keys(dir)?).map_err(refuse)?;
    exchange(&current, &previous)?;
    audit(dir, "rollback", &verified.about.to_string())?;
    Ok(verified.about)
}

/// What is in force.
///
/// # Errors
/// [`Error`].
pub fn status(dir: &Path) -> Result<Status, Error> {
    let keys = keys(dir)?;
    let read = |name: &str| -> Result<Option<About>, Error> {
        match std::fs::read(folder(dir).join(name)) {
            Ok(bundle) => verify(&bundle, &keys).map(|verified| Some(verified.about)).map_err(refuse),
            Err(_) => Ok(None),
        }
    };
    Ok(Status {
        current: read("current")?,
        previous: read("previous")?,
        candidate: read("candidate")?,
        highest: highest(dir)?,
        keys: keys.into_keys().collect(),
        polled: polled(dir),
        reported: reported(dir),
    })
}

/// The bundle in force, for the service; none: the configured one.
///
/// # Errors
/// It is there and cannot be read.
pub fn active(dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    bundle(dir, "current")
}

/// The bundle before it.
///
/// # Errors
/// It is there and cannot be read.
pub(super) fn previous(dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    bundle(dir, "previous")
}

fn bundle(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = folder(dir).join(name);
    match std::fs::read(&path) {
        Ok(bundle) => Ok(Some(bundle)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(state(&path, &e)),
    }
}

fn highest(dir: &Path) -> Result<u64, Error> {
    let path = folder(dir).join("highest");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|e| state(&path, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(state(&path, &e)),
    }
}

/// Writes a file so that there is always a whole one: synced beside it, renamed over it, the folder synced.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e: std::io::Error| state(path, &e);
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = std::fs::File::create(&beside).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)?;
    std::fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Two files change places at once: no crash leaves only one of them. A file system that cannot do so gets both written.
fn exchange(one: &Path, other: &Path) -> Result<(), Error> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            let read = |path: &Path| std::fs::read(path).map_err(|e| state(path, &e));
            let (first, second) = (read(one)?, read(other)?);
            replace(one, &second)?;
            return replace(other, &first);
        }
        done => done.map_err(|e| state(one, &e))?,
    }
    let parent = one.parent().unwrap_or_else(|| Path::new("."));
    std::fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| state(one, &e))
}

fn audit(dir: &Path, action: &str, detail: &str) -> Result<(), Error> {
    let path = folder(dir).join("audit.jsonl");
    std::fs::create_dir_all(folder(dir)).map_err(|e| state(&path, &e))?;
    let line = format!("{}\n", json!({"time_ms": now_ms(), "action": action, "detail": detail}));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|e| state(&path, &e))
}
