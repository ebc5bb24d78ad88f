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

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::processes::signal;
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
fn signals_end_the_container_in_order() {
    let Some(scene) = Scene::new() else { return };
    // Passed on; what the workload makes of it is its own.
    let run = scene.started("echo ready; exec sleep 1000");
    signal(run.pid(), Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    let run = scene.started("trap 'exit 7' INT; echo ready; while :; do sleep 0.01; done");
    signal(run.pid(), Signal::INT);
    assert_eq!(run.end().0, Some(7));
    // It does not want to hear it: the second one kills.
    let mut run = scene.started("trap 'echo not me' TERM; echo ready; while :; do sleep 0.01; done");
    signal(run.pid(), Signal::TERM);
    assert_eq!(next_line(&mut run), "not me\n");
    let family = support::processes::Family::of(run.pid());
    // Sooner it would be the first one, come twice.
    std::thread::sleep(Duration::from_millis(1100));
    signal(run.pid(), Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    family.all_gone();
    assert_eq!(scene.runs(), ["start", "exit 143", "start", "exit 7", "start", "signal 15"]);

    // Before anything has started: while the machine's lock is held by another.
    let lock = std::fs::OpenOptions::new().write(true).open(scene.path("host/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut command = scene.command("exec", &["--status-fd", "1"], &scene.owner.path("app.sif"), &["true"]);
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut first).unwrap();
    assert!(first.contains("verified"), "{first}");
    let helpers = loop {
        let family = support::processes::Family::of(i32::try_from(child.id()).unwrap());
        if family.0.iter().any(|process| process.command.contains("stage-process")) {
            break family;
        }
    };
    let pid = i32::try_from(child.id()).unwrap();
    // For a workload that is not there yet.
    [Signal::USR1, Signal::QUIT, Signal::ALARM].into_iter().for_each(|number| signal(pid, number));
    std::thread::sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    signal(pid, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    helpers.ended();
    assert_eq!(scene.runs().len(), 6);
}

fn next_line(run: &mut support::Started) -> String {
    let mut line = String::new();
    run.stdout.read_line(&mut line).unwrap();
    line
}

#[test]
fn what_a_signal_means_is_for_the_workload_to_say() {
    let Some(scene) = Scene::new() else { return };
    let passed = [
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::CONT, "CONT"),
        (Signal::WINCH, "WINCH"),
    ];
    let traps: String = passed.iter().map(|(_, name)| format!("trap 'echo {name}' {name}; ")).collect();
    let script = format!("{traps}trap 'echo saved; exit 6' TERM; echo ready; while :; do sleep 0.01; done");
    let mut run = scene.started(&script);
    // A reload, and another one later: no number of them ends it.
    for (number, name) in passed.into_iter().chain(passed) {
        signal(run.pid(), number);
        assert_eq!(next_line(&mut run), format!("{name}\n"));
    }
    signal(run.pid(), Signal::TERM);
    assert_eq!(next_line(&mut run), "saved\n");
    assert_eq!(run.end().0, Some(6));
    // By the signal's default: it is the workload that ends, and its end is logged.
    let run = scene.started("echo ready; exec sleep 1000");
    signal(run.pid(), Signal::USR1);
    assert_eq!(run.end().0, Some(138));
    assert_eq!(scene.runs(), ["start", "exit 6", "start", "exit 138"]);
}

#[test]
fn a_signal_to_all_processes_of_a_job_is_the_workloads_too() {
    let Some(scene) = Scene::new() else { return };
    let script = "trap 'echo told' USR1; trap 'echo saved; cat /secret.txt; exit 6' TERM; echo ready; while :; do sleep 0.01; done";
    let run = scene.started(script);
    // As Slurm does it; without what sleeps a moment.
    let all = || {
        support::processes::Family::of(run.pid()).0.into_iter().filter(|process| !process.command.starts_with("sleep "))
    };
    let send = |number: Signal| all().for_each(|process| process.signal_if_there(number));
    send(Signal::USR1);
    let lives: Vec<_> = all().filter(|process| process.state() != 'Z').collect();
    for helper in ["decryptor-process", "stage-process", "squashfuse", "bwrap"] {
        assert!(lives.iter().any(|process| process.command.contains(helper)), "{helper} has ended");
    }
    send(Signal::TERM);
    let (code, out, err) = run.end();
    assert!(
        code == Some(6) && out.contains("told\n") && out.contains("saved\n") && out.ends_with(SECRET),
        "{out}{err}"
    );
    assert_eq!(scene.runs(), ["start", "exit 6"]);
}

#[test]
fn an_interrupt_at_a_terminal_is_for_what_the_shell_runs() {
    let Some(scene) = Scene::new() else { return };
    let (mut pty, terminal) = support::terminal();
    let mut command = scene.command::<&str>("shell", &[], &scene.owner.path("app.sif"), &[]);
    let again = || terminal.try_clone().unwrap();
    let mut child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop((command, terminal));
    // Its echo of what is typed is among them: hence the quotes.
    let mut lines = BufReader::new(pty.try_clone().unwrap()).lines().map_while(Result::ok);
    pty.write_all(b"echo rea''dy; sleep 1000\n").unwrap();
    assert!(lines.any(|line| line.contains("ready")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    pty.write_all(b"echo ali''ve; exit 5\n").unwrap();
    assert!(lines.any(|line| line.contains("alive")), "the shell goes on");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn the_keys_of_a_terminal_are_for_what_runs_there() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(scene) = Scene::new() else { return };
    let (mut keyboard, terminal) = support::terminal();
    // The user's shell, which has job control. Echoed is what is typed only.
    let job = "\"$@\"; echo \"stopped $?\"; read x; fg; echo \"ended $?\"";
    let inner = "trap 'echo inner; exit 3' INT; echo ready; while :; do sleep 0.05; echo tick; done";
    let outer = format!("trap 'echo outer' INT; sh -c \"{inner}\"; exit $?");
    let given = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-c", &outer]);
    let again = || terminal.try_clone().unwrap();
    let in_shell = |given: &Command| {
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "bash", "-mc", job, "bash"]).arg(given.get_program()).args(given.get_args());
        command.env("COUNTERSIGN_RUNTIME", "builtin");
        command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap()
    };
    let mut child = in_shell(&given);
    let screen = keyboard.try_clone().unwrap();
    let mut lines = BufReader::new(keyboard.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut shows = |words: &str| assert!(lines.any(|line| line.contains(words)), "{words}");
    shows("tick");
    keyboard.write_all(b"\x1a").unwrap();
    // The user's shell has its terminal again, and the workload stands still.
    shows("stopped 148");
    let half = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
    assert_eq!(poll(&mut [PollFd::new(&screen, PollFlags::IN)], Some(&half)).unwrap(), 0, "it goes on");
    keyboard.write_all(b"\n").unwrap();
    shows("tick");
    // Each of the program's own processes hears it.
    keyboard.write_all(b"\x03").unwrap();
    shows("inner");
    shows("outer");
    shows("ended 3");
    child.wait().unwrap();
    assert_eq!(scene.runs(), ["start", "exit 3"]);

    // A shell's keys are its own; what took its place is stopped with its supervisor, and neither takes the terminal with it.
    let mut child = in_shell(&scene.command::<&str>("shell", &[], &scene.owner.path("app.sif"), &[]));
    keyboard.write_all(b"sleep 1000\n").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    keyboard.write_all(b"\x1a").unwrap();
    keyboard.write_all(b"kill %1; echo ba''ck; exec sh -c 'while :; do sleep 0.05; echo tock; done'\n").unwrap();
    shows("back");
    shows("tock");
    keyboard.write_all(b"\x1a").unwrap();
    shows("stopped 148");
    keyboard.write_all(b"\n").unwrap();
    shows("tock");
    keyboard.write_all(b"\x03").unwrap();
    shows("ended 130");
    child.wait().unwrap();
    assert_eq!(scene.runs(), ["start", "exit 3", "start", "exit 130"]);
}

/// Reads lines from its terminal and says what it has read.
const READER: &str = "echo ready; grep -n ''; exit 4";

/// Under a runtime: what was continued in the foreground reads there again.
fn gets_its_terminal_back(scene: &Scene, runtime: &str) {
    let reader = scene.command("exec", &["--runtime", runtime], &scene.owner.path("app.sif"), &["sh", "-c", READER]);
    // Stopped by a key, continued in the background, where it must not read, and then in the foreground.
    let script =
        "\"$@\"; echo \"stopped $?\"; bg; sleep 3; jobs; read x; fg; echo \"again $?\"; read x; fg; echo \"ended $?\"";
    let mut desk = support::Desk::new(&[], script, &reader);
    desk.shows("ready");
    desk.types("one\n");
    desk.shows(":one");
    desk.types("\x1a");
    desk.shows("stopped 148");
    // A program that reads there is stopped once more, and its supervisor with it.
    desk.shows("Stopped");
    desk.types("\n");
    desk.types("two\n");
    desk.shows(":two");
    // Its supervisor is stopped, by somebody else; the terminal is the shell's by then.
    let supervisor = desk.supervisor();
    signal(supervisor.pid, Signal::TSTP);
    desk.shows("again 148");
    desk.types("\n");
    desk.types("three\n");
    desk.shows(":three");
    desk.types("\x04");
    desk.shows("ended 4");
    desk.end();

    // Started in the background.
    let mut desk = support::Desk::new(&[], "\"$@\" & sleep 4; jobs; read x; fg; echo \"ended $?\"", &reader);
    desk.shows("Stopped");
    desk.types("\n");
    desk.types("four\n");
    desk.shows(":four");
    desk.types("\x04");
    desk.shows("ended 4");
    desk.end();
}

#[test]
fn who_had_the_terminal_gets_it_back() {
    let Some(scene) = Scene::new() else { return };
    gets_its_terminal_back(&scene, "builtin");
    let Some(apptainer) = support::apptainer() else { return };
    gets_its_terminal_back(&scene, apptainer.to_str().unwrap());
}

#[test]
fn whom_somebody_else_stops_stops_alone() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let reader = scene.command("exec", &[], &image, &["sh", "-c", READER]);
    let mut desk = support::Desk::new(&[], "\"$@\"; echo \"stopped $?\"; read x; fg; echo \"ended $?\"", &reader);
    desk.types("zero\n");
    desk.shows(":zero");
    let supervisor = desk.supervisor();
    let family = support::processes::Family::of(supervisor.pid);
    let reader = family.0.iter().rfind(|process| process.command.starts_with("grep")).unwrap();
    signal(reader.pid, Signal::STOP);
    // Longer than the supervisor takes to notice a key.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(reader.state(), 'T');
    assert_ne!(supervisor.state(), 'T', "it watches on");
    signal(reader.pid, Signal::CONT);
    desk.types("one\n");
    desk.shows(":one");
    desk.types("\x1a");
    desk.shows("stopped 148");
    assert_eq!(supervisor.state(), 'T');
    desk.types("\n");
    desk.types("two\n");
    desk.shows(":two");
    desk.types("\x04");
    desk.shows("ended 4");
    desk.end();
}

#[test]
fn a_key_stops_nothing_that_nobody_would_continue() {
    let Some(scene) = Scene::new() else { return };
    let reader = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-c", READER]);
    // No shell above it.
    let mut desk = support::Desk::new(&[], "exec \"$@\"", &reader);
    desk.types("zero\n");
    desk.shows(":zero");
    desk.types("\x1a");
    std::thread::sleep(Duration::from_millis(2500));
    desk.types("one\n");
    desk.shows(":one");
    desk.types("\x04");
    desk.end();
    assert_eq!(scene.runs(), ["start", "exit 4"]);
}

#[test]
fn a_run_that_is_suspended_keeps_nobody_from_the_tpm() {
    let Some(scene) = Scene::new() else { return };
    // It attests all the time: sooner or later a key comes when it has its turn.
    let policy = "package countersign.workload\n\ndefault verdict := {\"allow\": true, \"reasons\": [], \"obligations\": {\"reattest_s\": 1, \"lease_s\": 3600}}\n";
    let image = scene.with_policy("often", policy);
    // A loop would be left by it.
    let script = format!("\"$@\"; echo \"stopped $?\"{}", "; read x; fg; echo \"stopped $?\"".repeat(5));
    let ticks = scene.command("exec", &[], &image, &["sh", "-c", "while :; do sleep 0.05; echo tick; done"]);
    let mut desk = support::Desk::new(&[], &script, &ticks);
    desk.shows("tick");
    for _ in 0..5 {
        signal(desk.supervisor().pid, Signal::TSTP);
        desk.shows("stopped 148");
        let out = scene.exec(&["cat", "/secret.txt"]);
        assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(0), SECRET), "{}", stderr(&out));
        desk.types("\n");
        desk.shows("tick");
    }
    drop(desk);
    // Whom nothing can keep from being stopped with it is named.
    let lock = scene.path("host/lock");
    let mut holder = Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "1000"]).spawn().unwrap();
    // Behind the run that was just ended.
    let (locks, pid) = (|| std::fs::read_to_string("/proc/locks").unwrap(), holder.id().to_string());
    while !locks().lines().any(|line| line.split_whitespace().skip(1).step_by(3).take(2).eq(["FLOCK", &*pid])) {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&holder), Signal::STOP).unwrap();
    let out = scene.exec(&["true"]);
    let process = format!("process {} (", holder.id());
    failed(&out, 201, &[&process, "), which is stopped, keeps it", "hint: continue a program that is stopped"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_signal_to_its_own_group_reaches_nobody_outside() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    // All of its group, whatever process namespace they are in: neither the supervisor nor what is around the container.
    let stops = scene.command("exec", &[], &image, &["sh", "-c", "echo ready; kill -STOP 0; kill -KILL 0"]);
    let mut desk = support::Desk::new(&[], "\"$@\"; echo \"ended $?\"", &stops);
    desk.shows("ready");
    let supervisor = desk.supervisor();
    let family = support::processes::Family::of(supervisor.pid);
    let workload = family.0.iter().find(|process| process.command.starts_with("sh -c echo ready")).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    let stopped: Vec<&str> =
        family.0.iter().filter(|process| process.state() == 'T').map(|process| &*process.command).collect();
    assert_eq!(stopped, [workload.command.as_str()]);
    signal(workload.pid, Signal::CONT);
    desk.shows("ended 137");
    desk.end();
    assert_eq!(scene.runs(), ["start", "exit 137"]);
}

#[test]
fn a_shell_by_exec_has_job_control_and_types_nothing() {
    let Some(scene) = Scene::new() else { return };
    let given = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-i"]);
    let mut desk = support::Desk::new(&[], "\"$@\"; echo \"ended $?\"", &given);
    // What is typed is echoed: hence the quotes.
    desk.types("grep Seccomp: /proc/self/status; echo rea''dy\n");
    desk.shows("Seccomp:\t2");
    desk.shows("ready");
    desk.types("sh -c 'while :; do sleep 0.05; echo ti''ck; done'\n");
    desk.shows("tick");
    desk.types("\x1a");
    desk.shows("Stopped");
    desk.types("fg\n");
    desk.shows("tick");
    desk.types("\x03");
    // The end of what the key was for; the shell goes on.
    desk.types("echo ali''ve; exit 5\n");
    desk.shows("alive");
    desk.shows("ended 5");
    desk.end();
}

#[test]
fn a_script_and_a_pipeline_share_the_terminal() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let sleeps = scene.command("exec", &[], &image, &["sh", "-c", "echo ready; exec sleep 1000"]);
    // A key is for the script too, as if it had the terminal.
    let mut desk = support::Desk::new(&[], "dash -c '\"$@\"; echo went on' dash \"$@\"", &sleeps);
    desk.shows("ready");
    desk.types("\x03");
    let rest = desk.rest();
    assert!(!rest.contains("went on"), "{rest}");
    // It stops with what it has started.
    let script = "dash -c '\"$@\"; echo went on' dash \"$@\"; echo \"stopped $?\"; read x; fg; echo \"ended $?\"";
    let reader = scene.command("exec", &[], &image, &["sh", "-c", READER]);
    let mut desk = support::Desk::new(&[], script, &reader);
    desk.shows("ready");
    desk.types("\x1a");
    desk.shows("stopped 148");
    desk.types("\n");
    desk.types("one\n");
    desk.shows(":one");
    desk.types("\x04");
    desk.shows("went on");
    desk.shows("ended 0");
    desk.end();
    // Whoever else is in a pipeline keeps the terminal.
    let pager =
        "\"$@\" | sh -c 'trap \"\" INT; read a; echo \"first $a.\"; read x < /dev/tty; echo \"typed $x.\"'; echo ended";
    let mut desk = support::Desk::new(&[], pager, &sleeps);
    desk.shows("first ready.");
    desk.types("yes\n");
    desk.shows("typed yes.");
    desk.types("\x03");
    desk.shows("ended");
    desk.end();
}

#[test]
fn whoever_has_the_terminal_cannot_stop_his_supervisor_with_it() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.with_policy("alerts", &support::watched::policy(3600, 1800, "alert", &[]));
    // Who writes from the background is stopped now, and each finding is written.
    let stranger = "cp /bin/busybox /tmp/busybox; busybox stty tostop; echo ready; read x; /tmp/busybox sleep 0.5";
    let script = format!("{stranger}; read x; grep SigBlk /proc/self/status; exit 4");
    let program = scene.command("exec", &[], &image, &["sh", "-c", &script]);
    let mut desk = support::Desk::new(&[], "\"$@\"; echo \"ended $?\"", &program);
    desk.shows("ready");
    desk.types("\n");
    desk.shows("process-not-in-image");
    assert_ne!(desk.supervisor().state(), 'T');
    desk.types("\n");
    desk.shows("0000000000000000");
    desk.shows("ended 4");
    desk.end();
}

#[test]
fn a_shells_last_code_is_no_key() {
    let Some(scene) = Scene::new() else { return };
    let shell = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh"]);
    let mut desk = support::Desk::new(&[], "dash -c '\"$@\"; echo \"went on $?\"' dash \"$@\"", &shell);
    desk.types("echo rea''dy\n");
    desk.shows("ready");
    desk.types("\x03");
    desk.types("exit 130\n");
    desk.shows("went on 130");
    desk.end();
}

#[test]
fn a_key_reaches_all_also_where_the_input_is_a_pipe() {
    let Some(scene) = Scene::new() else { return };
    let script = "trap 'echo told' INT; echo ready; busybox sleep 1000";
    let program = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-c", script]);
    let mut desk = support::Desk::new(&[], "true | \"$@\"; echo ended", &program);
    desk.shows("ready");
    desk.types("\x03");
    desk.shows("told");
    desk.shows("ended");
    desk.end();
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
