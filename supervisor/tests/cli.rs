//! The command line: texts in `cmd/`, completions and man pages.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

#[test]
fn texts() {
    trycmd::TestCases::new().case("tests/cmd/*.toml");
}

#[test]
fn completions_and_man_pages() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let out = Command::new(env!("CARGO_BIN_EXE_supervisor")).args(["completions", shell]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && text.contains("protect") && text.contains("signer"), "{shell}");
    }
    let dir = tempfile::TempDir::new().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_supervisor")).arg("man").arg(dir.path()).output().unwrap();
    assert!(out.status.success());
    let names: Vec<String> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for name in ["supervisor.1", "supervisor-run.1", "supervisor-protect.1", "supervisor-doctor.1"] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("process")), "the helpers are nobody's business: {names:?}");
    let page = std::fs::read_to_string(dir.path().join("supervisor.1")).unwrap();
    assert!(page.contains("Exit codes") && page.contains("Examples"));
}
