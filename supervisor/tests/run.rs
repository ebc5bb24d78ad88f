//! Whole runs on real parts: swtpm, a verifier, squashfuse, bubblewrap.
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
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{SECRET, Scene, failed, stderr, stdout};

#[test]
fn the_workload_sees_its_image_and_little_else() {
    let Some(scene) = Scene::new() else { return };
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(0), SECRET), "{}", stderr(&out));

    // Exit code, standard input and output, arguments as they are.
    let mut child = scene.command(
        "run",
        &[],
        &scene.owner.path("app.sif"),
        &["sh", "-c", "cat; echo \"$1\" >&2; exit 7", "x", "a  b\n'"],
    );
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(7), "through\n"));
    assert_eq!(stderr(&out), "a  b\n'\n");

    // What it is given: its own ids, no capability, no way to one, its own processes, three descriptors, a clean environment.
    let id = rustix::process::geteuid().as_raw().to_string();
    let mut command = scene.command(
        "exec",
        &["--status-fd", "9"],
        &scene.owner.path("app.sif"),
        &["sh", "-c", "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status; ls /proc/self/fd; echo $$; echo $HOME; readlink /proc/1/exe; touch /x 2>&1; touch /tmp/x && echo tmp"],
    );
    // Descriptor 9 for the status, 8 for nothing: the workload must get neither.
    let status = scene.path("status");
    let script = format!("exec 9>{} 8</etc/hostname; exec \"$@\"", status.display());
    let mut with_descriptors = Command::new("sh");
    with_descriptors.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    command = with_descriptors;
    let out = command.stdin(Stdio::null()).env("SECRET_OF_MINE", "x").output().unwrap();
    let text = stdout(&out);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], id, "{text}{}", stderr(&out));
    assert_eq!(lines[1..4], ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]);
    // 3 is the folder that ls reads.
    assert_eq!(lines[4..8], ["0", "1", "2", "3"], "{text}");
    assert_eq!(lines[8..10], ["2", ""], "process number, HOME");
    assert!(lines.iter().any(|line| line.contains("Read-only file system")), "{text}");
    assert_eq!(lines.last(), Some(&"tmp"));

    let status = std::fs::read_to_string(status).unwrap();
    let status: Vec<Value> = status
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        // Whether the verifier's own word is heard already when the workload ends is a matter of luck.
        .filter(|line| line["stage"] != "events")
        .collect();
    let stages: Vec<&str> = status.iter().map(|line| line["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["verified", "released", "mounted", "started", "ended"]);
    assert_eq!(status[4]["detail"]["code"], 0);
    assert!(status[1]["detail"]["tpm_commands"].as_u64().unwrap() <= 25, "{}", status[1]);
    let locked = status[1]["detail"]["locked"].as_str().unwrap();
    assert!(["all memory", "the heap"].contains(&locked), "{locked}");

    assert_eq!(scene.runs(), ["start", "exit 0", "start", "exit 7", "start", "exit 0"]);
    assert_eq!(std::fs::read_dir(scene.path("host/runs")).unwrap().count(), 0);
    let folder = std::env::temp_dir();
    let left = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("countersign-"));
    assert_eq!(left.count(), 0);
}

#[test]
fn values_of_variables_stand_on_no_command_line() {
    let Some(scene) = Scene::new() else { return };
    let file = scene.path("variables");
    std::fs::write(&file, "PASSWORD=of the seventh\n").unwrap();
    let options = ["--env-file", file.to_str().unwrap()];
    let mut started = scene.started_with(&options, "echo ready; read -r _; echo $PASSWORD");
    let family = support::processes::Family::of(started.pid());
    assert!(family.0.len() > 3);
    for process in &family.0 {
        let line = std::fs::read(process.file("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains("of the seventh"), "{line}");
    }
    started.say("go on");
    let (code, out, err) = started.end();
    assert_eq!((code, out.as_str()), (Some(0), "of the seventh\n"), "{err}");
}

#[test]
fn a_runscript_and_a_shell() {
    let Some(scene) = Scene::new() else { return };
    let rootfs = scene.owner.path("rootfs");
    std::fs::create_dir(rootfs.join(".singularity.d")).unwrap();
    let script = rootfs.join(".singularity.d/runscript");
    std::fs::write(&script, "#!/bin/sh\necho \"script: $*\"\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(scene.owner.protect(&rootfs, "script.sif", &[]).status.success());
    scene.owner.register(&scene.verifier, "script.sif");
    let image = scene.owner.path("script.sif");
    let run = |verb: &str, arguments: &[&str], input: &str| {
        let mut child = scene.command(verb, &[], &image, arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        stdout(&out)
    };
    assert_eq!(run("run", &["a", "--b"], ""), "script: a --b\n");
    assert_eq!(run("exec", &["echo", "--c"], ""), "--c\n");
    assert_eq!(run("shell", &[], "echo in a shell\nexit 0\n"), "in a shell\n");
}

#[test]
fn a_plain_sif_of_siftool() {
    let Some(scene) = Scene::new() else { return };
    let plain = scene.owner.path("plain.sif");
    let squashfs = scene.owner.path("rootfs.sqfs");
    let ok = |command: &mut Command| match command.output() {
        Ok(out) => {
            assert!(out.status.success(), "{}{}", stdout(&out), stderr(&out));
            true
        }
        Err(e) => {
            println!("skipped: {e}: {command:?}");
            false
        }
    };
    assert!(ok(Command::new("mksquashfs")
        .arg(scene.owner.path("rootfs"))
        .arg(&squashfs)
        .args(["-all-root", "-quiet"])));
    if !ok(Command::new("siftool").arg("new").arg(&plain)) {
        return;
    }
    let add = ["--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", "2", "--groupid", "1"];
    assert!(ok(Command::new("siftool").arg("add").args(add).arg(&plain).arg(&squashfs)));
    let out = scene.owner.protect(&plain, "from-plain.sif", &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    scene.owner.register(&scene.verifier, "from-plain.sif");
    let out =
        scene.command("exec", &[], &scene.owner.path("from-plain.sif"), &["cat", "/secret.txt"]).output().unwrap();
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
}

#[test]
fn each_stage_has_its_exit_code() {
    let Some(mut scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let run = |options: &[&str]| scene.command("exec", options, &image, &["cat", "/secret.txt"]).output().unwrap();
    let text = |name: &str| scene.path(name).display().to_string();

    failed(&run(&["--status-fd", "77"]), 200, &["--status-fd", "hint: give an open descriptor"]);
    failed(&run(&["--tpm", "nonsense"]), 200, &["nonsense", "hint: --tpm"]);
    // Said before a verdict is asked for.
    failed(&run(&["--bundle", "/nonexistent/run.bundle"]), 200, &["/nonexistent/run.bundle", "hint: --bundle"]);
    std::fs::write(scene.path("bad.toml"), "colour = 1\n").unwrap();
    let out = scene.command("exec", &[], &image, &["true"]);
    let bad = text("bad.toml");
    let mut out_of_order: Vec<&std::ffi::OsStr> = out.get_args().collect();
    out_of_order[2] = bad.as_ref();
    failed(&Command::new(support::SUPERVISOR).args(out_of_order).output().unwrap(), 201, &["colour"]);
    failed(&run(&["--signer", "/nonexistent"]), 201, &["/nonexistent", "owner's public key"]);
    let private = scene.owner.path("owner.pem").display().to_string();
    failed(&run(&["--signer", &private]), 201, &["owner.pem", "no PEM public key"]);
    let no_image = scene.command("exec", &[], &scene.path("boot"), &["true"]).output().unwrap();
    failed(&no_image, 202, &["SIF"]);
    failed(&scene.command("exec", &[], &scene.path("no"), &["true"]).output().unwrap(), 202, &["No such file"]);
    failed(&run(&["--state-dir", &text("empty")]), 205, &["not enrolled", "attest enroll"]);
    failed(&run(&["--tpm", &format!("swtpm:unix={}", text("nowhere"))]), 206, &["nowhere"]);
    failed(&scene.exec(&["/bin/nothing"]), 213, &["\"/bin/nothing\"", "in the image"]);

    // A workload that nobody registered.
    assert!(scene.owner.protect(&scene.owner.path("rootfs"), "other.sif", &[]).status.success());
    let other = scene.command("exec", &[], &scene.owner.path("other.sif"), &["true"]).output().unwrap();
    failed(&other, 208, &["hint: "]);

    let status =
        scene.command("exec", &["--status-fd", "1"], &scene.owner.path("other.sif"), &["true"]).output().unwrap();
    let last: Value = serde_json::from_str(stdout(&status).lines().last().unwrap()).unwrap();
    assert_eq!((last["stage"].as_str(), last["detail"]["code"].as_u64()), (Some("failed"), Some(208)));

    // Nothing of all this has started anything, but what bubblewrap could not run.
    assert_eq!(scene.runs().len(), 2, "{:?}", scene.runs());

    // Another boot than the one that is accepted.
    scene.reset();
    let denied = scene.exec(&["cat", "/secret.txt"]);
    failed(&denied, 209, &["denied", "got", "want", "since the last good boot", "what to do", "hint: "]);
    assert!(denied.stdout.is_empty());
}

#[test]
fn fifty_starts_at_once_on_one_tpm() {
    let Some(scene) = Scene::new() else { return };
    let starts: Vec<_> = (0..50)
        .map(|n| {
            let image = scene.owner.path("app.sif");
            scene.command("exec", &[], &image, &["sh", "-c", &format!("cat /secret.txt; exit {n}")]).spawn().unwrap()
        })
        .collect();
    for (n, child) in starts.into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), stdout(&out).as_str()), (i32::try_from(n).ok(), SECRET), "{}", stderr(&out));
    }
    // None lost a session, none was overtaken for ever; nothing of the queue is left.
    assert_eq!(std::fs::read_dir(scene.path("host/queue")).unwrap().count(), 0);
    let mut runs = scene.runs();
    runs.sort();
    let mut all: Vec<String> = (0..50).map(|n| format!("exit {n}")).collect();
    all.extend(std::iter::repeat_n("start".to_owned(), 50));
    all.sort();
    assert_eq!(runs, all);
}

#[test]
fn a_verifier_that_is_gone_or_never_answers() {
    let Some(scene) = Scene::new() else { return };
    // It accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    scene.write_config(&format!("verifier = \"https://127.0.0.1:{port}\"\ndeadline_s = 1\n"));
    let out = scene.exec(&["cat", "/secret.txt"]);
    failed(&out, 207, &["127.0.0.1", "hint: "]);
    drop(silent);
    failed(&scene.exec(&["cat", "/secret.txt"]), 207, &["127.0.0.1"]);
    scene.write_config("");
    let mut run = scene.started("echo ready; read x; cat /secret.txt");
    // It goes while the workload runs: the run goes on, and its end is logged.
    let Scene { sim, verifier, owner, dir } = scene;
    verifier.stop();
    run.say("go");
    let (code, out, err) = run.end();
    assert_eq!((code, out.as_str()), (Some(0), SECRET), "{err}");
    let log = std::fs::read_to_string(dir.path().join("host/run.log")).unwrap();
    assert_eq!(log.matches("\"type\":\"start\"").count(), 1, "{log}");
    assert!(log.contains("\"status\":\"exit 0\""), "{log}");
    drop((sim, owner));
}

#[test]
fn flags_that_policy_demands() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.with_policy("strict", support::DEMANDS_ALL);
    let run = |image: &std::path::Path, flags: &[&str]| {
        let mut command = scene.command("exec", flags, image, &["sh", "-c", support::INTERFACES]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let out = run(&image, &["--env", "A=1"]);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(0), "lo\n"), "{}", stderr(&out));
    // Without the demand the machine's own interfaces are there.
    let host = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count() - 2;
    let out = run(&scene.owner.path("app.sif"), &[]);
    assert_eq!(stdout(&out).lines().count(), host, "{}", stderr(&out));
    for (flags, words) in [
        (&["--bind", "/usr:/data"][..], "--bind=/usr:/data is refused"),
        (&["--home", "/usr:/home"][..], "--home=/usr:/home is refused"),
        (&["--cleanenv=false"][..], "--cleanenv=false is refused"),
    ] {
        failed(
            &run(&image, flags),
            200,
            &[words, "the policy that released the key demands containall", "hint: leave"],
        );
    }
    assert_eq!(scene.runs(), ["start", "exit 0", "start", "exit 0"], "what is refused never started");
    // A command line that does not fit says so before anything is asked of anybody.
    let long = "x".repeat(100_000);
    let out = scene.command("exec", &[], &image, &["echo", &long]).stdin(Stdio::null()).output().unwrap();
    failed(&out, 200, &["too long", "131072 at most", "hint: put it into a script"]);
}

#[test]
fn without_fuse_nothing_is_released() {
    let Some(scene) = Scene::new() else { return };
    // /dev/fuse is another file to this run: as on a machine without FUSE.
    let command = scene.command("exec", &[], &scene.owner.path("app.sif"), &["true"]);
    let mut hidden = Command::new("unshare");
    hidden.args(["-Urm", "sh", "-c", "mount --bind /dev/null /dev/fuse && exec \"$@\"", "sh"]);
    hidden.arg(command.get_program()).args(command.get_args()).env("COUNTERSIGN_RUNTIME", "builtin");
    let out = hidden.stdin(Stdio::null()).output().unwrap();
    failed(&out, 212, &["a private mount cannot be made", "/dev/fuse", "hint: "]);
    assert_eq!(scene.runs(), Vec::<String>::new());
}

#[test]
fn a_full_disk_below_the_state_folder() {
    let Some(scene) = Scene::new() else { return };
    // The state folder on a file system with no byte left.
    let command = scene.command("exec", &[], &scene.owner.path("app.sif"), &["true"]);
    let mut full = Command::new("unshare");
    let script = r#"set -e; cp -a "$STATE" "$STATE.copy"; mount -t tmpfs -o size=256k,mode=0700 full "$STATE"
        cp -a "$STATE.copy"/. "$STATE"; cat /dev/zero > "$STATE/filler" 2> /dev/null || true; exec "$@""#;
    full.args(["-Urm", "sh", "-c", script, "sh"]).env("STATE", scene.path("host"));
    full.arg(command.get_program()).args(command.get_args()).env("COUNTERSIGN_RUNTIME", "builtin");
    let out = full.stdin(Stdio::null()).output().unwrap();
    failed(&out, 201, &["No space left on device"]);
    assert_eq!(scene.runs(), Vec::<String>::new());
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let Some(scene) = Scene::new() else { return };
    let examine = |more: &[&str]| {
        let mut command = Command::new(support::SUPERVISOR);
        let out = command
            .args(["--json", "doctor", "--config"])
            .arg(scene.path("attest.toml"))
            .args(more)
            .env("COUNTERSIGN_RUNTIME", "builtin")
            .output()
            .unwrap();
        let findings: Value = serde_json::from_slice(&out.stdout).unwrap();
        let problems =
            findings["findings"].as_array().unwrap().iter().filter(|finding| finding["outcome"] == "problem");
        let problems: Vec<String> = problems
            .map(|finding| {
                assert!(!finding["fix"].as_str().unwrap().is_empty(), "{finding}");
                finding["check"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(out.status.code(), Some(if problems.is_empty() { 0 } else { 219 }));
        problems
    };
    assert_eq!(examine(&[]), Vec::<String>::new());
    let nowhere = format!("swtpm:unix={}", scene.path("nowhere").display());
    assert_eq!(examine(&["--tpm", &nowhere]), ["TPM"]);
    let empty = scene.path("empty").display().to_string();
    assert_eq!(examine(&["--state-dir", &empty]), ["enrolment", "verifier"]);
    std::fs::remove_file(scene.path("boot")).unwrap();
    scene.write_config("verifier = \"https://127.0.0.1:9\"\n");
    assert_eq!(examine(&[]), ["boot log", "verifier"]);
    let out =
        Command::new(support::SUPERVISOR).args(["doctor", "--config"]).arg(scene.path("attest.toml")).output().unwrap();
    let text = stdout(&out);
    assert!(text.contains("problem boot log") && text.contains("fix: ") && text.contains("good    TPM"), "{text}");
    // The runtime that would be taken, or why there is none.
    let said = |runtime: &str| {
        let mut command = Command::new(support::SUPERVISOR);
        command.args(["doctor", "--config"]).arg(scene.path("attest.toml")).env("COUNTERSIGN_RUNTIME", runtime);
        stdout(&command.output().unwrap())
    };
    assert!(said("builtin").contains("good    container runtime  the built-in runtime"), "{}", said("builtin"));
    let missing = said("/nonexistent/apptainer");
    assert!(missing.contains("problem container runtime  /nonexistent/apptainer: no such program"), "{missing}");
    if let Some(apptainer) = support::apptainer() {
        let apptainer = apptainer.display().to_string();
        let text = said(&apptainer);
        assert!(text.contains("good    container runtime  Apptainer 1.") && text.contains(&apptainer), "{text}");
    }
}
