//! The host policy in a state folder: which keys may sign it, which bundle is in force, what came before.
//!
//! ```text
//! policy/keys/ID.pem      trusted public keys
//! policy/current          the bundle in force (none: the policy of verifier.toml, or the shipped one)
//! policy/previous         the one before it
//! policy/highest          the highest revision that was ever loaded
//! policy/audit.jsonl      what was loaded, refused and rolled back
//! ```
//! A bundle is written beside `current` and renamed over it: at every moment there is a whole one, and a refused one changes nothing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use countersign_policy::{Compiled, Manifest, PolicyBundle, ReferenceData, Role};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::Serialize;
use serde_json::json;

pub use super::signed::sign;
use crate::error::Error;

/// Address space of the process that tries a new policy, bytes.
const SANDBOX_MEMORY: u64 = 2 << 30;
/// Its processor time, seconds.
const SANDBOX_CPU: u64 = 10;
/// And its time by the clock.
const SANDBOX_TIME: Duration = Duration::from_secs(30);

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
    /// The highest revision that was ever loaded.
    pub highest: u64,
    /// Ids of the trusted keys.
    pub keys: Vec<String>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            Some(about) => writeln!(f, "in force   {about}")?,
            None => writeln!(f, "in force   no bundle: the policy of verifier.toml, or the shipped one")?,
        }
        if let Some(about) = &self.previous {
            writeln!(f, "before it  {about}")?;
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

fn refuse(why: impl std::fmt::Display) -> Error {
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

/// Makes a signed bundle the host policy: signature, revision, expiry, then a trial under limits in a process of its own (`program` is the
/// verifier's own binary), then the change.
///
/// # Errors
/// [`Error::Request`] says why it is refused: nothing has changed then, but the audit.
pub fn load(dir: &Path, bundle: &[u8], program: &Path) -> Result<About, Error> {
    let done = try_load(dir, bundle, program);
    match &done {
        Ok(about) => audit(dir, "load", &about.to_string())?,
        Err(e) => audit(dir, "refuse", &e.to_string())?,
    }
    done
}

fn try_load(dir: &Path, bundle: &[u8], program: &Path) -> Result<About, Error> {
    let verified = verify(bundle, &keys(dir)?).map_err(refuse)?;
    let about = verified.about;
    let highest = highest(dir)?;
    if about.revision <= highest {
        return Err(refuse(format!("revision {} is not above {highest}, which was loaded before", about.revision)));
    }
    match about.expires_ms {
        None => return Err(refuse("the bundle has no expiry (metadata.countersign.expires_ms)")),
        Some(expires) if expires <= now_ms() => return Err(refuse(format!("expired ({expires} ms since 1970)"))),
        Some(_) => {}
    }
    sandbox(program, &verified.bundle, Role::Host).map_err(refuse)?;
    let place = folder(dir);
    let current = place.join("current");
    // The revision first: a crash in between refuses this bundle once more, and never accepts an older one.
    replace(&place.join("highest"), about.revision.to_string().as_bytes())?;
    if let Ok(old) = std::fs::read(&current) {
        replace(&place.join("previous"), &old)?;
    }
    replace(&current, &verified.bundle)?;
    Ok(about)
}

/// Puts the previous bundle in force again: an operator's own act, which the revision does not stand against.
///
/// # Errors
/// There is none, or it no longer verifies.
pub fn rollback(dir: &Path) -> Result<About, Error> {
    let place = folder(dir);
    let (current, previous) = (place.join("current"), place.join("previous"));
    let old = std::fs::read(&previous).map_err(|_| refuse("there is no policy before the current one"))?;
    let verified = verify(&old, &keys(dir)?).map_err(refuse)?;
    let newer = std::fs::read(&current).map_err(|e| state(&current, &e))?;
    replace(&current, &old)?;
    replace(&previous, &newer)?;
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
        highest: highest(dir)?,
        keys: keys.into_keys().collect(),
    })
}

/// The bundle in force, for the service; none: the configured one.
///
/// # Errors
/// It is there and cannot be read.
pub fn active(dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    let path = folder(dir).join("current");
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

fn audit(dir: &Path, action: &str, detail: &str) -> Result<(), Error> {
    let path = folder(dir).join("audit.jsonl");
    std::fs::create_dir_all(folder(dir)).map_err(|e| state(&path, &e))?;
    let line = format!("{}\n", json!({"time_ms": now_ms(), "action": action, "detail": detail}));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|e| state(&path, &e))
}

/// Tries a policy in a process of its own, under limits of memory, processor and time: it must compile, and decide on an empty input.
///
/// # Errors
/// Why it is refused: the child's own words, or that it did not survive.
pub fn sandbox(program: &Path, bundle: &[u8], role: Role) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(["policy", "sandbox"]).env_clear();
    if role == Role::Workload {
        command.arg("--workload");
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(|e| format!("the trial cannot be started: {e}"))?;
    let (mut stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    let bytes = bundle.to_vec();
    let feeder = std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(&bytes)));
    let reader = std::thread::spawn(move || {
        let mut words = String::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.take(65_536).read_to_string(&mut words);
        }
        words
    });
    let (sender, ended) = std::sync::mpsc::channel();
    let id = rustix::process::Pid::from_child(&child);
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        let _ = sender.send(());
        status
    });
    let late = ended.recv_timeout(SANDBOX_TIME).is_err();
    if late {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
    let status = waiter.join().map_err(|_| "the trial's end was not seen".to_owned())?.map_err(|e| e.to_string())?;
    let (_, words) = (feeder.join(), reader.join().unwrap_or_default());
    if late {
        return Err(format!("the policy did not come to an end within {} s", SANDBOX_TIME.as_secs()));
    }
    if status.success() {
        return Ok(());
    }
    let words = words.trim().trim_start_matches("error: ").to_owned();
    if status.code().is_some() && !words.is_empty() {
        return Err(words);
    }
    Err(format!("the policy broke its trial ({status}): it needs more than {SANDBOX_MEMORY} bytes or {SANDBOX_CPU} s"))
}

/// The other side of [`sandbox`]: reads a bundle from standard input.
///
/// # Errors
/// Why the policy is refused.
pub fn sandbox_child(role: Role) -> Result<(), String> {
    let limit = |resource, value| setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    limit(Resource::As, SANDBOX_MEMORY).map_err(|e| e.to_string())?;
    limit(Resource::Cpu, SANDBOX_CPU).map_err(|e| e.to_string())?;
    limit(Resource::Core, 0).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let most = u64::try_from(countersign_policy::limits::BUNDLE_BYTES).unwrap_or(u64::MAX);
    std::io::stdin().take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let parsed = PolicyBundle::parse(&bytes).map_err(|e| e.to_string())?;
    let compiled = Compiled::new(&parsed, role).map_err(|e| e.to_string())?;
    let reference = countersign_policy::reference_document(&countersign_policy::input::Reference::default());
    let ready = compiled.ready(&ReferenceData::new(&reference));
    let shipped = super::mutate::shipped_input().map_err(|e| e.clone())?;
    for (empty, input) in [(true, json!({"time_ms": 0})), (false, json!(shipped))] {
        let decision = ready.decide_json(input);
        let broken = [
            countersign_policy::reason::TIMEOUT,
            countersign_policy::reason::TYPE,
            countersign_policy::reason::OBLIGATION,
        ];
        if let Some(reason) = decision.reasons.iter().find(|reason| broken.contains(&reason.id.as_str())) {
            return Err(format!("{}: {}", reason.id, reason.message));
        }
        if empty && decision.allow && role == Role::Host {
            return Err("the policy allows a host of which nothing is known".into());
        }
    }
    Ok(())
}

/// One verdict that would be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The stored verdict.
    pub verdict: String,
    /// Host id.
    pub host: String,
    /// Workload id, for a release.
    pub workload: Option<String>,
    /// What was decided.
    pub was: bool,
    /// What would be.
    pub would_be: bool,
    /// Why: the reasons of the side that says no.
    pub reasons: Vec<String>,
}

/// What a policy would change on stored evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Verdicts that were decided again.
    pub looked_at: usize,
    /// Those that would be another.
    pub changes: Vec<Change>,
}

impl std::fmt::Display for Preview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |allow: bool| if allow { "ALLOW" } else { "DENY" };
        for change in &self.changes {
            writeln!(
                f,
                "{} -> {}  host {}  {}",
                word(change.was),
                word(change.would_be),
                change.host,
                change.reasons.join(", ")
            )?;
        }
        write!(f, "{} of {} stored verdicts would change", self.changes.len(), self.looked_at)
    }
}

/// Decides the newest stored evidence again with another host policy. Nothing is written.
///
/// # Errors
/// [`Error`].
pub async fn preview(service: &crate::service::Service, policy: &[u8], limit: u32) -> Result<Preview, Error> {
    let parsed = PolicyBundle::parse(policy).map_err(refuse)?;
    Compiled::new(&parsed, Role::Host).map_err(refuse)?;
    let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT record FROM verdicts ORDER BY time_ms DESC LIMIT ?")
        .bind(i64::from(limit))
        .fetch_all(service.store.pool())
        .await?;
    let mut preview = Preview::default();
    for bytes in rows {
        let corrupt = |e: &dyn std::fmt::Display| Error::Corrupt(e.to_string());
        let record: countersign_wire::record::Record =
            countersign_wire::cbor::decode(&bytes).map_err(|e| corrupt(&e))?;
        let mut context: crate::appraise::Context = crate::store::from_cbor(&record.context)?;
        let was = crate::appraise::appraise(&record.evidence, &context).verdict;
        context.host_policy = policy.to_vec();
        let new = crate::appraise::appraise(&record.evidence, &context).verdict;
        preview.looked_at = preview.looked_at.saturating_add(1);
        if was.allow != new.allow {
            let why = if new.allow { &was.reasons } else { &new.reasons };
            preview.changes.push(Change {
                verdict: was.id,
                host: was.host,
                workload: was.workload,
                was: was.allow,
                would_be: new.allow,
                reasons: why.iter().map(|reason| format!("{}: {}", reason.id, reason.message)).collect(),
            });
        }
    }
    Ok(preview)
}
