//! The command: texts in `cmd/`, and one host's life through the program.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_wire::cbor;
use countersign_wire::trust::JoinToken;
use support::stage::Stage;
use tempfile::TempDir;

#[test]
fn texts() {
    let state = TempDir::new().unwrap();
    trycmd::TestCases::new().case("tests/cmd/*.toml").env("COUNTERSIGN_STATE_DIR", state.path().to_string_lossy());
}

fn attest(stage: &Stage, args: &[&str], input: &str) -> Output {
    let config = stage.path("attest.toml");
    let text = format!("event_log = {:?}\nima_log = {:?}\nsystemd_log = \"\"\n", stage.path("boot"), stage.path("ima"));
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_attest"));
    command.arg("--config").arg(&config).arg("--state-dir").arg(stage.path("host")).args(args);
    command.env("COUNTERSIGN_TPM", stage.sim.tpm_arg());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_host_joins_attests_and_is_denied() {
    let Some(mut stage) = Stage::new() else { return };
    let text = |token: JoinToken| format!("{}{}\n", JoinToken::PREFIX, URL_SAFE_NO_PAD.encode(cbor::encode(&token)));
    let token = text(stage.verifier.token(None));
    let out = attest(&stage, &["enroll", "--token", "-"], &token);
    let stdout = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && stdout.ends_with(" is active\n"), "{}", String::from_utf8_lossy(&out.stderr));
    // What it sees of the token on the way says nothing of the secret.
    std::fs::write(stage.path("token"), &token).unwrap();
    let token = stage.path("token").display().to_string();
    let out = attest(&stage, &["inspect", &token], "");
    assert!(String::from_utf8(out.stdout).unwrap().contains(&stage.verifier.url));

    let out = attest(&stage, &["--json", "now"], "");
    let verdict: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((verdict["allow"].as_bool(), verdict["simulated"].as_bool()), (Some(true), Some(true)));
    let out = attest(&stage, &["now"], "");
    assert!(String::from_utf8(out.stdout).unwrap().starts_with("allow (simulated TPM): verdict "));

    let card = stage.path("card").display().to_string();
    assert!(attest(&stage, &["show", "-o", &card], "").status.success());
    for (file, kind) in [
        (card, "host card"),
        (stage.path("host/trust.bundle").display().to_string(), "trust bundle"),
        (stage.path("host/run.log").display().to_string(), "run log"),
        (stage.path("host/tls.crt").display().to_string(), "certificate"),
        (stage.path("ima").display().to_string(), "IMA list"),
    ] {
        let out = attest(&stage, &["inspect", &file], "");
        let stdout = String::from_utf8(out.stdout).unwrap();
        assert!(stdout.starts_with(&format!("{kind} (not checked for authenticity)\n")), "{stdout}");
        // Every shorter file of that kind is refused or something else, never a crash.
        let bytes = std::fs::read(&file).unwrap();
        for end in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
            let _ = countersign_attest::inspect::describe(&bytes[..end]);
        }
    }

    stage.sim.reset().unwrap();
    let out = attest(&stage, &["now"], "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(30), "{stderr}");
    assert!(stderr.starts_with("error: the verifier denied the attest\n"), "{stderr}");
    assert!(["got", "want", "hint:"].iter().all(|word| stderr.contains(word)), "{stderr}");
    let out = attest(&stage, &["--json", "now"], "");
    let denial: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(denial["code"], 30);
    assert!(denial["denial"]["reasons"][0]["id"].is_string());
    let told = &denial["denial"]["explanation"];
    assert_eq!(told["verdict"], denial["denial"]["id"]);
    assert_eq!((&told["allow"], &told["findings"][0]["source"]), (&false.into(), &"appraisal".into()));
    assert!(stderr.contains("since the last good boot"), "{stderr}");
}

#[test]
fn a_host_without_a_token_waits_for_the_operator() {
    let Some(stage) = Stage::new() else { return };
    let digest = hex::encode(stage.verifier.token(None).trust);
    // Another bundle than the one named: nothing is sent.
    let wrong = ["enroll", "--url", &stage.verifier.url, "--trust", &"00".repeat(32)];
    assert_eq!(attest(&stage, &wrong, "").status.code(), Some(21));
    let enroll = ["enroll", "--url", &stage.verifier.url, "--trust", &digest];
    let out = attest(&stage, &enroll, "");
    let stdout = String::from_utf8(out.stdout).unwrap();
    assert!(stdout.contains(" is pending: `verifier host admit "), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(stage.verifier.state(), "pending");
    let out = attest(&stage, &["now"], "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(22), "{stderr}");
    let command = stderr.split("hint: verifier host admit ").nth(1).unwrap().trim();
    stage.verifier.ask(
        serde_json::from_value(serde_json::json!(
            {"op": "host-state", "host": command, "state": "active", "reason": "known"}
        ))
        .unwrap(),
    );
    for _ in 0..2 {
        let out = attest(&stage, &["now"], "");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    for usage in [&["enroll"][..], &["enroll", "--url", "https://v:1"], &["enroll", "--trust", &digest]] {
        assert_eq!(attest(&stage, usage, "").status.code(), Some(2));
    }
}
