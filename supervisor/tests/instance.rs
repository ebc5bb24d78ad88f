//! Instances: runs that stay, under the built-in runtime and under a real Apptainer.
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

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::processes::{Family, signal};
use support::{SECRET, SUPERVISOR, Scene, failed, stderr, stdout};

/// The supervisor with this scene's instances.
fn command(scene: &Scene, words: &[&str]) -> Command {
    let mut command = Command::new(SUPERVISOR);
    command.args(words).env("COUNTERSIGN_INSTANCE_DIR", scene.path("instances")).env("COUNTERSIGN_RUNTIME", "builtin");
    command.stdin(Stdio::null());
    command
}

fn ask(scene: &Scene, words: &[&str]) -> Output {
    command(scene, words).output().unwrap()
}

fn start(scene: &Scene, image: &str, runtime: &Path, name: &str, flags: &[&str]) -> Output {
    let mut command = command(scene, &["--json", "instance", "start", "--config"]);
    command.arg(scene.path("attest.toml")).arg("--signer").arg(scene.owner.path("owner.pub.pem"));
    command.arg("--runtime").arg(runtime).args(flags).arg(scene.owner.path(image)).arg(name).output().unwrap()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}{}", stdout(out), stderr(out));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn pid(note: &Value, name: &str) -> i32 {
    i32::try_from(note[name].as_i64().unwrap()).unwrap()
}

fn names(scene: &Scene) -> Vec<String> {
    let list = json(&ask(scene, &["--json", "instance", "list"]));
    list["instances"].as_array().unwrap().iter().map(|note| note["name"].as_str().unwrap().to_owned()).collect()
}

/// How many of a shell (`words` ask for it) in an instance that gets the user's terminal have a seccomp filter: one or none.
fn filters_at_a_terminal(scene: &Scene, words: &[&str]) -> u32 {
    let (mut pty, terminal) = support::terminal();
    // The terminal belongs to the session of who asks, in its foreground.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", SUPERVISOR]).args(words);
    command.env("COUNTERSIGN_INSTANCE_DIR", scene.path("instances"));
    let again = || terminal.try_clone().unwrap();
    let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop((command, terminal));
    pty.write_all(b"echo filter=$(grep -c Seccomp:.2 /proc/self/status); exit\n").unwrap();
    let mut lines = BufReader::new(pty).lines().map_while(Result::ok);
    // Its echo of what is typed is among them.
    let number = |line: String| line.split_once("filter=")?.1.trim().parse::<u32>().ok();
    let filters = lines.find_map(number).unwrap();
    assert!(child.wait().unwrap().success());
    filters
}

/// From its start to its end; whatever runtime it is.
fn lives(scene: &Scene, image: &str, runtime: &Path) {
    let note = json(&start(scene, image, runtime, "web", &["--env", "COLOUR=green"]));
    let family = Family::of(pid(&note, "pid"));
    assert_eq!(names(scene), ["web"]);
    failed(&start(scene, image, runtime, "web", &[]), 200, &["runs already", "instance stop web"]);

    let exec = |words: &[&str]| ask(scene, &[&["exec", "instance://web"], words].concat());
    let out = exec(&["cat", "/secret.txt"]);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(0), SECRET), "{}", stderr(&out));
    let out = exec(&["sh", "-c", "grep -E '^(CapEff|NoNewPrivs):' /proc/self/status; id -u; exit 7"]);
    let id = rustix::process::geteuid().as_raw();
    let expected = format!("CapEff:\t0000000000000000\nNoNewPrivs:\t1\n{id}\n");
    assert_eq!((out.status.code(), stdout(&out)), (Some(7), expected), "{}", stderr(&out));
    let use_of = json(&ask(scene, &["--json", "instance", "stats", "web"]));
    assert!(use_of["processes"].as_u64().unwrap() >= 2, "{use_of}");
    assert!(use_of["memory_kib"].as_u64().unwrap() > 0 && use_of["cpu_s"].as_f64().unwrap() >= 0.0, "{use_of}");
    for missing in use_of["not_read"].as_array().unwrap() {
        assert!(!missing["why"].as_str().unwrap().is_empty(), "{use_of}");
    }

    let stopped = json(&ask(scene, &["--json", "instance", "stop", "web"]));
    assert_eq!(stopped["stopped"][0]["how"], "with grace", "{stopped}");
    assert_eq!(names(scene), Vec::<String>::new());
    for process in &family.0 {
        process.gone();
    }
    family.all_gone();
    failed(&exec(&["true"]), 200, &["no instance web runs"]);
    failed(&ask(scene, &["instance", "stop", "web"]), 200, &["no instance web runs"]);
}

#[test]
fn from_start_to_stop() {
    let Some(scene) = Scene::new() else { return };
    let builtin = Path::new("builtin");
    lives(&scene, "app.sif", builtin);
    assert_eq!(scene.runs(), ["start", "exit 0"]);
    // One container: what is left in it by one process is there for the next.
    json(&start(&scene, "app.sif", builtin, "two", &["--env", "COLOUR=green"]));
    let left = ask(&scene, &["exec", "instance://two", "sh", "-c", "echo $COLOUR > /tmp/left"]);
    assert!(left.status.success(), "{}: {}\n{:?}", left.status, stderr(&left), scene.runs());
    assert_eq!(stdout(&ask(&scene, &["exec", "--env", "A=1", "instance://two", "cat", "/tmp/left"])), "green\n");
    // In a session of its own: not the one of whoever asks, with his terminal.
    let session = r#"set -- $(cat /proc/$$/stat); [ "$6" = $$ ] && echo own"#;
    assert_eq!(stdout(&ask(&scene, &["exec", "instance://two", "sh", "-c", session])), "own\n");
    assert_eq!(filters_at_a_terminal(&scene, &["shell", "instance://two"]), 1, "it may not type into it");
    failed(&ask(&scene, &["exec", "--nv", "instance://two", "true"]), 200, &["--nv"]);
    json(&ask(&scene, &["--json", "instance", "stop", "--all"]));
    for bad in ["../x", "", "a b", ".hidden"] {
        failed(&start(&scene, "app.sif", Path::new("builtin"), bad, &[]), 200, &["no name of an instance"]);
    }
    // What cannot start says why, as a run does, and leaves no instance.
    failed(&start(&scene, "none.sif", Path::new("builtin"), "web", &[]), 202, &["No such file"]);
    failed(&start(&scene, "app.sif", Path::new("builtin"), "web", &["--writable"]), 200, &["--writable is refused"]);
    assert_eq!(names(&scene), Vec::<String>::new());
}

#[test]
fn flags_that_policy_demands() {
    let Some(scene) = Scene::new() else { return };
    let builtin = Path::new("builtin");
    scene.with_policy("strict", support::DEMANDS_ALL);
    let out = start(&scene, "strict.sif", builtin, "web", &["--bind", "/usr:/data"]);
    failed(&out, 200, &["--bind=/usr:/data is refused", "demands containall"]);
    json(&start(&scene, "strict.sif", builtin, "web", &[]));
    let out = ask(&scene, &["exec", "instance://web", "sh", "-c", support::INTERFACES]);
    assert_eq!(stdout(&out), "lo\n", "{}", stderr(&out));
    json(&ask(&scene, &["--json", "instance", "stop", "--all"]));

    let Some(apptainer) = support::apptainer() else { return };
    let plain = scene.owner.path("plain.sif");
    let built = Command::new(&apptainer).arg("build").arg(&plain).arg(scene.owner.path("rootfs")).output().unwrap();
    assert!(built.status.success(), "{}", stderr(&built));
    let policy = scene.path("policy-strict").display().to_string();
    assert!(scene.owner.protect(&plain, "strict-built.sif", &["--policy", &policy]).status.success());
    scene.owner.register(&scene.verifier, "strict-built.sif");
    let script = r#"set -eu
        export COUNTERSIGN_RUNTIME=apptainer FROM_OUTSIDE=seen
        "$0" instance start --config "$1" --signer "$2" "$3" web > /dev/null 2>&1 || { cat "$COUNTERSIGN_INSTANCE_DIR/web/err"; exit 1; }
        "$0" exec instance://web sh -c "$4" 2> /dev/null
        "$0" exec instance://web sh -c 'echo "$FROM_OUTSIDE."' 2> /dev/null
        "$0" exec --cleanenv=false instance://web true 2>&1 || echo "code $?"
        "$0" --json instance stop web | grep -c '"with grace"'"#;
    let mut all = Command::new(&apptainer);
    all.env("COUNTERSIGN_ROOT_PROGRAM", "/bin/bash").env("COUNTERSIGN_INSTANCE_DIR", scene.path("instances"));
    all.args(["-c", script, SUPERVISOR]).arg(scene.path("attest.toml")).arg(scene.owner.path("owner.pub.pem"));
    all.arg(scene.owner.path("strict-built.sif")).arg(support::INTERFACES);
    let out = all.stdin(Stdio::null()).output().unwrap();
    let text = stdout(&out);
    assert!(text.starts_with("lo\n.\nerror: --cleanenv=false is refused"), "{text}{}", stderr(&out));
    assert!(text.ends_with("code 200\n1\n"), "{text}{}", stderr(&out));
}

#[test]
fn under_apptainer() {
    let Some(apptainer) = support::apptainer() else { return };
    let Some(scene) = Scene::new() else { return };
    // An image as Apptainer itself builds it.
    let plain = scene.owner.path("plain.sif");
    let built = Command::new(&apptainer).arg("build").arg(&plain).arg(scene.owner.path("rootfs")).output().unwrap();
    assert!(built.status.success(), "{}", stderr(&built));
    assert!(scene.owner.protect(&plain, "built.sif", &[]).status.success());
    scene.owner.register(&scene.verifier, "built.sif");
    // All of it in one place where Apptainer is installed: who enters an instance comes from the namespaces that it was started in.
    let script = r#"set -eu
        export COUNTERSIGN_RUNTIME=apptainer
        "$0" instance start --config "$1" --signer "$2" "$3" web > /dev/null 2>&1 || { cat "$COUNTERSIGN_INSTANCE_DIR/web/err"; exit 1; }
        "$0" exec instance://web cat /secret.txt 2> /dev/null
        "$0" exec instance://web sh -c 'grep CapEff: /proc/self/status; exit 7' 2> /dev/null || echo "code $?"
        "$0" --json instance list | grep -c '"runtime": "Apptainer"'
        "$0" --json instance stats web | grep -c memory_kib
        "$0" --json instance stop web | grep -c '"with grace"'
        "$0" instance list"#;
    let mut all = Command::new(&apptainer);
    all.env("COUNTERSIGN_ROOT_PROGRAM", "/bin/bash").env("COUNTERSIGN_INSTANCE_DIR", scene.path("instances"));
    all.args(["-c", script, SUPERVISOR]).arg(scene.path("attest.toml")).arg(scene.owner.path("owner.pub.pem"));
    let out = all.arg(scene.owner.path("built.sif")).stdin(Stdio::null()).output().unwrap();
    let expected = format!("{SECRET}CapEff:\t0000000000000000\ncode 7\n1\n1\n1\n\n");
    assert_eq!(stdout(&out), expected, "{}", stderr(&out));
    assert_eq!(scene.runs(), ["start", "exit 0"]);
}

#[test]
fn one_that_was_killed_or_does_not_want_to_end() {
    let Some(scene) = Scene::new() else { return };
    let builtin = Path::new("builtin");
    let rootfs = scene.owner.path("rootfs");
    std::fs::create_dir_all(rootfs.join(".singularity.d")).unwrap();
    let script = rootfs.join(".singularity.d/startscript");
    std::fs::write(&script, "#!/bin/sh\ntrap 'echo not me' TERM\necho \"script: $*\"\nwhile :; do sleep 0.01; done\n")
        .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(scene.owner.protect(&rootfs, "script.sif", &[]).status.success());
    scene.owner.register(&scene.verifier, "script.sif");

    let note = json(&start(&scene, "script.sif", builtin, "stubborn", &[]));
    let family = Family::of(pid(&note, "pid"));
    while !std::fs::read_to_string(scene.path("instances/stubborn/out")).unwrap().contains("script") {
        std::thread::yield_now();
    }
    let stopped = json(&ask(&scene, &["--json", "instance", "stop", "-t", "0", "stubborn"]));
    assert_eq!(stopped["stopped"][0]["how"], "killed", "{stopped}");
    family.all_gone();

    let note = json(&start(&scene, "script.sif", builtin, "gone", &[]));
    let family = Family::of(pid(&note, "pid"));
    signal(pid(&note, "pid"), Signal::KILL);
    for process in &family.0 {
        process.gone();
    }
    family.all_gone();
    assert!(scene.path("instances/gone/instance.json").exists(), "nobody was left to remove it");
    assert_eq!(names(&scene), Vec::<String>::new());
    assert!(!scene.path("instances/gone/instance.json").exists());
    json(&start(&scene, "script.sif", builtin, "gone", &[]));
    json(&start(&scene, "app.sif", builtin, "another", &[]));
    assert_eq!(names(&scene), ["another", "gone"]);
    let listed = json(&ask(&scene, &["--json", "instance", "list", "an*"]));
    assert_eq!(listed["instances"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["instances"][0]["name"], "another");
    failed(&ask(&scene, &["instance", "stop", "-s", "KILL", "gone"]), 200, &["USR2 or TERM"]);
    // Its shell does not listen to TERM, but to this.
    let stopped = json(&ask(&scene, &["--json", "instance", "stop", "-s", "SIGUSR1", "gone"]));
    assert_eq!(stopped["stopped"][0]["how"], "with grace", "{stopped}");
    json(&start(&scene, "script.sif", builtin, "gone", &[]));
    let stopped = json(&ask(&scene, &["--json", "instance", "stop", "--all", "--force"]));
    assert_eq!(stopped["stopped"].as_array().unwrap().len(), 2);
    assert_eq!(names(&scene), Vec::<String>::new());
}
