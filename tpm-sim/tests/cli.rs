//! The command: texts in `cmd/`, and one TPM's life through the program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

#[test]
fn texts() {
    trycmd::TestCases::new().case("tests/cmd/*.toml").env("COUNTERSIGN_TPM_SIM_STATE_DIR", "/nonexistent/tpm-sim");
}

/// A state folder whose TPMs end with it.
struct State(TempDir);

impl State {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tpm-sim")).arg("--state-dir").arg(self.0.path()).args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--json"], args].concat())).unwrap()
    }

    fn error(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for name in ["a", "b", "c"] {
            self.run(&["destroy", name]);
        }
    }
}

fn fixture(file: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sb-ms-shim-grub212").join(file);
    path.display().to_string()
}

#[test]
fn a_life() {
    let state = State(TempDir::new().unwrap());
    let created = state.run(&["create", "a", "b"]);
    let message = String::from_utf8_lossy(&created.stderr).into_owned();
    if message.contains("is not installed") {
        return println!("skipped: {message}");
    }
    assert!(created.status.success(), "{message}");
    assert!(state.error(&["create", "a"]).contains("hint: take another name, or remove it first: tpm-sim destroy a"));
    assert!(state.error(&["reset", "a"]).contains("hint: start it first: tpm-sim start a"));
    let ca = state.ok(&["ca", "a"]);
    assert_eq!(ca, state.ok(&["ca", "b"]), "one CA for all");
    assert!(std::fs::read_to_string(&ca).unwrap().matches("BEGIN CERTIFICATE").count() == 2);

    let address = state.ok(&["start", "a"]);
    assert_eq!(address, format!("swtpm:unix={}/tpm/a/tpm.sock", state.0.path().canonicalize().unwrap().display()));
    assert_eq!(state.ok(&["start", "a"]), address, "starting twice is once");
    let show = state.json(&["show", "a"]);
    let count = show["clock"]["reset_count"].as_u64().unwrap();
    assert_eq!((show["running"].as_bool(), show["address"].as_str()), (Some(true), Some(address.as_str())));

    let (log, ima) = (fixture("binary_bios_measurements"), fixture("ima_binary"));
    let done = state.json(&["replay", "a", "--eventlog", &log, "--ima", &ima]);
    assert!(done["events"].as_u64() > Some(20));
    let want: Value = serde_json::from_str(&std::fs::read_to_string(fixture("PCRS.json")).unwrap()).unwrap();
    let got = state.json(&["pcrs", "a"]);
    for (pcr, value) in want["sha256"].as_object().unwrap() {
        assert_eq!(got["sha256"][pcr], *value, "PCR {pcr}");
    }
    assert!(state.error(&["pcrs", "a", "--bank", "sha512"]).contains("the sha512 bank is not active"));
    assert!(state.error(&["replay", "a", "--ima", &log]).contains("IMA list"));

    state.ok(&["extend", "a", "8", "something else"]);
    assert_ne!(state.json(&["pcrs", "a"])["sha256"]["8"], got["sha256"]["8"]);
    assert!(state.error(&["clone", "a", "a"]).contains("itself"));
    state.ok(&["clone", "a", "c"]);
    state.ok(&["start", "c"]);
    assert_eq!(state.json(&["pcrs", "a"]), state.json(&["pcrs", "c"]));

    let reset = state.json(&["reset", "a"]);
    assert_eq!(reset[0]["clock"]["reset_count"].as_u64(), Some(count + 1));
    assert!(state.ok(&["suspend", "a"]).contains("restartCount 1"));
    assert!(state.ok(&["restart", "a"]).contains("restartCount 2"));
    assert_eq!(state.ok(&["kill", "a"]), "a: stopped");
    state.ok(&["start", "a"]);
    assert_eq!(state.json(&["show", "a"])["clock"]["safe"].as_bool(), Some(false));
    assert!(state.ok(&["clear", "a"]).contains("resetCount 0"));

    let list = state.json(&["list"]);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|tpm| tpm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(state.ok(&["list"]).lines().count(), 3);
    assert_eq!(state.ok(&["stop", "a", "c"]), "a: stopped\nc: stopped");
    state.ok(&["destroy", "a", "b", "c"]);
    assert_eq!(state.json(&["list"]), Value::Array(Vec::new()));
    assert!(state.error(&["show", "a"]).contains("hint: see which there are: tpm-sim list"));
}

#[test]
fn man_pages_and_completions() {
    let dir = TempDir::new().unwrap();
    let state = State(TempDir::new().unwrap());
    state.ok(&["man", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("tpm-sim.1").is_file() && dir.path().join("tpm-sim-replay.1").is_file());
    assert!(state.ok(&["completions", "bash"]).contains("complete -F"));
}
