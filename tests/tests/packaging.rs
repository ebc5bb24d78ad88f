//! What `make install` installs, and that systemd takes the units.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The programs that were built, when all of them were.
fn programs() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_BIN_EXE_demo")).parent().unwrap();
    let missing = ["attest", "verifier", "supervisor"].into_iter().find(|name| !folder.join(name).exists());
    if let Some(name) = missing {
        println!("skipped: {name} is not built (cargo build --workspace --all-targets)");
        return None;
    }
    Some(folder.to_owned())
}

fn install(programs: &Path, root: &Path) {
    let mut command = Command::new(checkout().join("scripts/install.sh"));
    command.arg(programs).env("DESTDIR", root).env("PREFIX", "/usr").env_remove("SYSCONFDIR").env_remove("UNITDIR");
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn everything_is_installed_and_no_configuration_is_replaced() {
    let Some(programs) = programs() else { return };
    let root = tempfile::tempdir().unwrap();
    install(&programs, root.path());
    let at = |path: &str| root.path().join(path);
    for (path, mode) in [
        ("usr/bin/attest", 0o755),
        ("usr/bin/verifier", 0o755),
        ("usr/bin/supervisor", 0o755),
        ("usr/lib/systemd/system/countersign-attest.service", 0o644),
        ("usr/lib/systemd/system/countersign-supervisor.service", 0o644),
        ("usr/lib/systemd/system/countersign-supervisor.socket", 0o644),
        ("usr/lib/systemd/system/countersign-verifier.service", 0o644),
        ("usr/lib/sysusers.d/countersign-verifier.conf", 0o644),
        ("usr/share/man/man1/attest.1", 0o644),
        ("usr/share/man/man1/attest-serve.1", 0o644),
        ("usr/share/man/man1/verifier-run-list.1", 0o644),
        ("usr/share/bash-completion/completions/supervisor", 0o644),
        ("usr/share/zsh/site-functions/_attest", 0o644),
        ("usr/share/fish/vendor_completions.d/verifier.fish", 0o644),
        ("usr/share/doc/countersign/supervisor.toml.example", 0o644),
        ("usr/share/doc/countersign/verifier.toml.example", 0o644),
        ("etc/countersign/attest.toml", 0o644),
    ] {
        let meta = fs::metadata(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(meta.len() > 0, "{path} is empty");
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{path}");
    }
    let unit = fs::read_to_string(at("usr/lib/systemd/system/countersign-attest.service")).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/attest serve\n"));
    fs::write(at("etc/countersign/attest.toml"), "run_pcr = 14\n").unwrap();
    install(&programs, root.path());
    assert_eq!(fs::read_to_string(at("etc/countersign/attest.toml")).unwrap(), "run_pcr = 14\n");
}

#[test]
fn systemd_takes_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for entry in fs::read_dir(checkout().join("packaging/systemd")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "service" || extension == "socket") {
            // Any program that is there: what is looked at is the unit.
            let text = fs::read_to_string(&path).unwrap();
            let text = ["attest", "verifier", "supervisor"]
                .into_iter()
                .fold(text, |text, name| text.replace(&format!("@BINDIR@/{name}"), "/bin/true"));
            assert!(!text.contains('@') || text.contains("@system-service"), "{}", path.display());
            let unit = folder.path().join(path.file_name().unwrap());
            fs::write(&unit, text).unwrap();
            units.push(unit);
        }
    }
    assert_eq!(units.len(), 4);
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output();
    let Ok(out) = verified else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && words.is_empty(), "{words}");
}
