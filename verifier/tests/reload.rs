//! `verifier serve` and SIGHUP.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const VERIFIER: &str = env!("CARGO_BIN_EXE_verifier");

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(VERIFIER);
    command.arg("--state-dir").arg(dir).args(arguments).stdin(Stdio::null());
    command
}

fn ask(dir: &Path, arguments: &[&str]) -> Value {
    let out = command(dir, arguments).arg("--json").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

struct Serving {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    log: Lines<BufReader<ChildStderr>>,
}

impl Serving {
    fn new(dir: &Path) -> Self {
        let mut child = command(dir, &["serve"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, out, log }
    }

    /// Waits until it serves; its trust bundle's digest.
    fn trust(&mut self, dir: &Path) -> Value {
        let line = self.out.next().unwrap().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(&std::fs::read(dir.join("ca.pem")).unwrap()).unwrap();
        let client = reqwest::blocking::Client::builder().tls_certs_only([ca]).no_proxy().build().unwrap();
        let url = format!("{}/v1/trust", line.strip_prefix("ready ").unwrap());
        Value::String(hex::encode(Sha256::digest(client.get(url).send().unwrap().bytes().unwrap())))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn new_keys_and_settings_without_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("verifier");
    ask(&dir, &["init", "--url", "https://127.0.0.1:0"]);
    let first = ask(&dir, &["keys", "show"])["trust_bundle"].clone();
    let mut serving = Serving::new(&dir);
    assert_eq!(serving.trust(&dir), first);
    let second = ask(&dir, &["keys", "rotate", "approval"])["trust_bundle"].clone();
    assert_ne!(second, first);
    serving.signal(Signal::HUP);
    assert_eq!(serving.trust(&dir), second);

    // What cannot be read changes nothing.
    let settings = std::fs::read(dir.join("verifier.toml")).unwrap();
    std::fs::write(dir.join("verifier.toml"), "no settings").unwrap();
    serving.signal(Signal::HUP);
    assert!(serving.log.by_ref().any(|line| line.unwrap().contains("goes on as it was")));
    assert_eq!(serving.child.try_wait().unwrap(), None);
    std::fs::write(dir.join("verifier.toml"), settings).unwrap();
    let third = ask(&dir, &["keys", "rotate", "verdict"])["trust_bundle"].clone();
    serving.signal(Signal::HUP);
    assert_eq!(serving.trust(&dir), third);
    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());
}
