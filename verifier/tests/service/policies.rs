//! Signed host policies for a lab, and waiting for what a verifier writes about them.

use std::time::{Duration, Instant};

use countersign_policy::settings::Settings;
use countersign_policy::{PolicyBundle, bundle_files, shipped_host_policy};
use countersign_verifier::policy::mutate::with_settings;
use countersign_verifier::policy::store;
use serde_json::{Value, json};

use crate::lab::Lab;

pub(crate) const DAY: i64 = 86_400_000;

/// The key `ops` that a lab trusts.
pub(crate) struct Signer(pub(crate) rcgen::KeyPair);

impl Signer {
    pub(crate) fn trusted(lab: &Lab) -> Self {
        let signer = Self(rcgen::KeyPair::generate().unwrap());
        let file = lab.path().join("ops.pem");
        std::fs::write(&file, signer.public()).unwrap();
        store::trust(lab.path(), &file, signer.public().as_bytes()).unwrap();
        signer
    }

    pub(crate) fn public(&self) -> String {
        self.0.public_key_pem()
    }

    pub(crate) fn sign(&self, bundle: &[u8]) -> Vec<u8> {
        store::sign(bundle, self.0.serialize_pem().as_bytes(), "ops").unwrap()
    }

    /// The shipped policy, which accepts the lab's machines.
    pub(crate) fn good(&self, revision: u64) -> Vec<u8> {
        self.sign(&released(shipped_host_policy(), revision, store::now_ms() + DAY))
    }

    /// One that accepts nobody: it requires a check that nothing proves.
    pub(crate) fn strict(&self, revision: u64) -> Vec<u8> {
        let settings = Settings { required: vec!["unheard-of".into()], ..Settings::default() };
        let bundle = with_settings(shipped_host_policy(), &settings).unwrap();
        self.sign(&released(&bundle, revision, store::now_ms() + DAY))
    }
}

/// A bundle with this revision and expiry.
pub(crate) fn released(bundle: &[u8], revision: u64, expires_ms: i64) -> Vec<u8> {
    let mut files = bundle_files(bundle).unwrap();
    let mut manifest: Value = serde_json::from_slice(&files[".manifest"]).unwrap();
    manifest["revision"] = json!(revision.to_string());
    manifest["metadata"] = json!({"countersign": {"revision": revision, "expires_ms": expires_ms}});
    files.insert(".manifest".into(), serde_json::to_vec(&manifest).unwrap());
    PolicyBundle::build(files).unwrap()
}

/// Waits for something that another thread or process brings about.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
