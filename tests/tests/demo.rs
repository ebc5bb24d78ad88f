//! The demo as a program: what it leaves when it is ended.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Command lines of processes that have this folder in theirs.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(dir)).collect()
}

#[test]
fn a_signal_ends_the_demo_and_all_that_it_started() {
    let demo = Path::new(env!("CARGO_BIN_EXE_demo"));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().canonicalize().unwrap().join("demo");
    let mut command = Command::new(demo);
    command.arg("--bin-dir").arg(demo.parent().unwrap()).arg("--dir").arg(&dir);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // TPM and verifier are running now.
    assert!(lines.any(|line| line.contains("Enrol the host")));
    assert!(!processes_of(&dir.join("tpm")).is_empty() && !processes_of(&dir.join("verifier")).is_empty());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(!lines.any(|line| line.contains("Summary")));
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{words}");
    assert!(words.contains("ended by signal 2"), "{words}");
    assert_eq!(processes_of(&dir), Vec::<String>::new());
}
