//! `supervisor daemon` with several users on one host: what they get, what they are refused, and what nobody reaches. The users exist as
//! numbers only; switching to them needs root.
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

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::host::{ALICE, BOB, Daemon, Host, as_user, connect, reacts, rule, settings};
use support::processes::{Family, Process, signal};
use support::secrets::Secrets;
use support::{SECRET, failed, receive, send, stderr, stdout};

fn field(process: &Process, name: &str) -> String {
    let status = fs::read_to_string(process.file("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn user_of(process: &Process) -> u32 {
    let users = field(process, "Uid:");
    let mut users = users.split(' ').map(|user| user.parse().unwrap());
    let first = users.next().unwrap();
    assert!(users.all(|user| user == first), "{}", process.command);
    first
}

#[test]
fn a_user_runs_it_and_neither_he_nor_others_reach_into_it() {
    let Some(host) = Host::of_alice() else { return };
    let mut run = host.started("echo ready; id -u; id -g; cat /secret.txt; exec sleep 1000");
    for expected in [format!("{ALICE}\n"), format!("{ALICE}\n"), SECRET.to_owned()] {
        let mut line = String::new();
        run.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }
    let family = host.family_with("sleep");
    let sleep = family.running("sleep").unwrap();
    let stage = family.find("stage-process");
    let (squashfuse, decryptor) = (family.find("squashfuse"), family.find("decryptor-process"));
    let container = user_of(stage);
    assert!((host.uids.0..=host.uids.1).contains(&container), "{container}");
    assert_eq!((user_of(sleep), user_of(squashfuse)), (container, container));
    assert_eq!(user_of(decryptor), container + 1);
    for process in [sleep, stage, squashfuse, decryptor] {
        assert_eq!(field(process, "Groups:"), "", "{}", process.command);
    }
    // The decryptor may lock memory, where that was its to keep, and can never get anything more.
    assert!(["0000000000004000", "0000000000000000"].contains(&field(decryptor, "CapPrm:").as_str()));
    assert_eq!((field(decryptor, "CapBnd:"), field(decryptor, "NoNewPrivs:")), ("0".repeat(16), "1".into()));

    // Neither the caller's other processes nor anybody else's.
    for user in [ALICE, BOB, container + 1] {
        for process in [sleep, stage, squashfuse, decryptor] {
            for file in ["mem", "maps", "environ", "root/secret.txt", "cwd/secret.txt", "exe", "fd/0", "ns/mnt"] {
                if process.pid == decryptor.pid && user == container + 1 && file == "maps" {
                    continue;
                }
                let path = process.file(file).display().to_string();
                let out = as_user(user, "cat").arg(&path).output().unwrap();
                let told = stderr(&out);
                assert!(!out.status.success() && told.contains("Permission denied"), "{user} {path}: {told}");
            }
            if user != container + 1 {
                let out = as_user(user, "sh").args(["-c", &format!("kill -0 {}", process.pid)]).output().unwrap();
                assert!(!out.status.success(), "{user} may signal {}", process.command);
            }
            let pid = process.pid.to_string();
            let out = as_user(user, "nsenter").args(["-t", &pid, "-U", "-m", "cat", "/secret.txt"]).output().unwrap();
            assert!(!out.status.success() && !stdout(&out).contains(SECRET), "{user} {}", process.command);
        }
    }
    // The attempt itself works: the container's own user could.
    let inside = sleep.file("root/secret.txt");
    assert_eq!(stdout(&as_user(container, "cat").arg(&inside).output().unwrap()), SECRET);

    // Neither the machine's TPM nor its state folder is his.
    let tpm = host.scene.sim.tpm_arg();
    let state = host.scene.path("host").display().to_string();
    let image = host.path("alice.sif").display().to_string();
    let signer = host.path("owner.pub.pem").display().to_string();
    let own = host.path("own-state");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(ALICE), Some(ALICE)).unwrap();
    let direct = |state: &str| {
        let mut command =
            host.command(ALICE, &["exec", "--tpm", &tpm, "--state-dir", state, "--signer", &signer, &image, "true"]);
        command.output().unwrap()
    };
    failed(&direct(&state), 201, &["Permission denied"]);
    assert!([205, 206].contains(&direct(own.to_str().unwrap()).status.code().unwrap()));
    for path in ["host/run.log", "host/ak.private"] {
        assert!(!as_user(ALICE, "cat").arg(host.scene.path(path)).output().unwrap().status.success());
    }
    let out = as_user(ALICE, "sh").args(["-c", "echo > \"$1\"", "sh"]).arg(host.path("run/x")).output().unwrap();
    assert!(!out.status.success());

    signal(run.pid(), Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    family.ended_but(" daemon ");
    Family(Vec::new()).all_gone();
    assert_eq!(host.scene.runs(), ["start", "exit 143"]);
}

#[test]
fn what_a_users_workload_executes_is_seen_however_short_it_is() {
    let Some(host) = Host::of_alice() else { return };
    let script = "cp /bin/busybox /tmp/true; /tmp/true; exit 9";
    for (reaction, code) in [("alert", 9), ("kill", 217)] {
        let image = format!("{reaction}.sif");
        let made = host.scene.with_policy(&format!("{reaction}-owner"), &reacts(reaction));
        host.image_of(ALICE, &made, &image);
        let out = host.exec(ALICE, &image, &["--status-fd", "2"], &["sh", "-c", script]);
        let err = stderr(&out);
        assert_eq!(out.status.code(), Some(code), "{err}");
        let found = err.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found: Vec<Value> = found.filter(|line| line["stage"] == "finding").collect();
        let ran = found.iter().find(|line| line["detail"]["finding"]["kind"] == "process-not-in-image");
        let ran = ran.unwrap_or_else(|| panic!("not seen: {err}"));
        assert_eq!(ran["detail"]["finding"]["where"], "/tmp", "{ran}");
        // Of a container that is gone by then the kernel names the file within its mount.
        let executable = ran["detail"]["finding"]["executable"].as_str().unwrap();
        assert!(["/tmp/true", "/true"].contains(&executable), "{ran}");
        assert!(!err.contains("\"warning\""), "all of the container's mounts are watched: {err}");
    }
}

#[test]
fn streams_exit_codes_and_signals_are_the_workloads() {
    let Some(mut host) = Host::of_alice() else { return };
    let flags = ["--status-fd", "2", "--env", "MINE=1", "--scratch", "/tmp/x"];
    let script = "cat; echo \"$1\" >&2; echo \"$TZ $LD_LIBRARY_PATH $MINE\" >&2; exit 7";
    let mut command = host.exec_command(ALICE, "alice.sif", &flags, &["sh", "-c", script, "x", "a  b\n'"]);
    command.env("TZ", "Mars").env("LD_LIBRARY_PATH", "/x").stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let err = stderr(&out);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(7), "through\n"), "{err}");
    let (lines, words): (Vec<&str>, Vec<&str>) = err.lines().partition(|line| line.starts_with('{'));
    assert_eq!(words, ["a  b", "'", "Mars  1"]);
    let stages = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["stage"].clone());
    // What the monitor says between them depends on the machine.
    let stages: Vec<Value> = stages.filter(|stage| stage != "warning" && stage != "events").collect();
    assert_eq!(stages, ["verified", "released", "mounted", "started", "ended"]);

    let run = host.started("trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done");
    let listed = host.ps(ALICE);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (&listed[0]["user"], &listed[0]["rule"], &listed[0]["state"]),
        (&json!(ALICE), &json!("alice"), &json!("running"))
    );
    assert!(listed[0]["run"].is_string() && listed[0]["workload"].is_string());
    // Root sees all; another user nothing, not even the number of runs.
    assert_eq!(host.ps(0).len(), 1);
    host.reload(&format!("{}{}", rule("alice", ALICE, ""), rule("bob", BOB, "")));
    assert_eq!(host.ps(BOB).len(), 0);
    signal(run.pid(), Signal::INT);
    assert_eq!(run.end().0, Some(9));

    let traps = "for name in HUP USR1 WINCH TERM; do trap \"echo $name\" $name; done";
    let mut run = host.started(&format!("{traps}; echo ready; while :; do sleep 0.01; done"));
    for (number, name) in [
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::WINCH, "WINCH"),
        (Signal::HUP, "HUP"),
        (Signal::TERM, "TERM"),
    ] {
        signal(run.pid(), number);
        let mut line = String::new();
        run.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{name}\n"));
    }
    // It does not want to hear it: the second one kills.
    std::thread::sleep(Duration::from_millis(1100));
    signal(run.pid(), Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    failed(&host.exec(ALICE, "alice.sif", &[], &["/bin/nothing"]), 213, &["\"/bin/nothing\""]);
    // The image at the path is another one by now: what was opened counts.
    let mut run = host.started("echo ready; read x; cat /secret.txt");
    fs::rename(host.path("bob.sif"), host.path("alice.sif")).unwrap();
    run.say("go");
    assert_eq!(run.end().1, SECRET);
}

#[test]
fn a_shell_has_a_terminal_of_its_own() {
    use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
    let Some(host) = Host::of_alice() else { return };
    let (pty, terminal) = support::terminal();
    let size = |rows| tcsetwinsize(&pty, Winsize { ws_row: rows, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    size(37);
    let before = format!("{:?}", tcgetattr(&terminal).unwrap());
    let again = || terminal.try_clone().unwrap();
    let mut command = Command::new("setsid");
    command.args(["--ctty", "setpriv", "--reuid", "54331", "--regid", "54331", "--clear-groups", "--"]);
    command.arg(host.path("supervisor")).arg("shell").arg(format!("--daemon={}", host.socket().display()));
    let mut child = command.arg(host.path("alice.sif")).stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    drop(command);
    let mut keyboard = pty.try_clone().unwrap();
    // What is typed is echoed: hence the quotes.
    let mut lines = BufReader::new(pty.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut shows = |words: &str| assert!(lines.any(|line| line.contains(words)), "{words}");
    // It is the foreground of its terminal, whose name leads to it, and as large as the user's.
    keyboard.write_all(b"echo rea''dy > /proc/self/fd/1; stty size\n").unwrap();
    shows("ready");
    shows("37 91");
    size(38);
    keyboard.write_all(b"until stty size | grep -q '38 91'; do :; done; echo siz''ed\n").unwrap();
    shows("sized");
    // A key is a signal for what runs in the foreground, and for nothing else.
    keyboard.write_all(b"sh -c 'echo as''leep; exec sleep 1000'\n").unwrap();
    shows("asleep");
    let family = host.family_with("sleep");
    assert_ne!(field(family.running("sleep").unwrap(), "Uid:").split(' ').next(), Some("54331"));
    keyboard.write_all(b"\x03").unwrap();
    keyboard.write_all(b"echo ali''ve; exit 5\n").unwrap();
    shows("alive");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before, "the user's terminal is as it was");
}

#[track_caller]
fn until(what: &str, is: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed().as_secs() < 60, "{what}: not within a minute");
        std::thread::yield_now();
    }
}

#[test]
fn a_program_at_a_terminal_has_its_keys() {
    let Some(host) = Host::of_alice() else { return };
    let as_alice = ["setpriv", "--reuid", "54331", "--regid", "54331", "--clear-groups", "--"];
    let inner = "trap 'echo inner; exit 3' INT; echo ready; while :; do sleep 0.05; echo tick; done";
    let outer = format!("trap 'echo outer' INT; sh -c \"{inner}\"; exit $?");
    let daemon = format!("--daemon={}", host.socket().display());
    let mut command = Command::new(host.path("supervisor"));
    command.args(["exec", &daemon]).arg(host.path("alice.sif")).args(["sh", "-c", &outer]);
    let frozen = |host: &Host| {
        let inside = host.family();
        let inside = inside.0.iter().find(|process| process.command.starts_with("sh -c trap 'echo inner")).unwrap();
        let time = || fs::read_to_string(inside.file("schedstat")).unwrap();
        let before = time();
        std::thread::sleep(Duration::from_millis(500));
        time() == before
    };
    // With a terminal of its own in between.
    let script = "\"$@\"; echo \"stopped $?\"; read x; bg; sleep 1; echo behind; read x; fg; echo \"ended $?\"";
    let mut desk = support::Desk::new(&as_alice, script, &command);
    desk.shows("tick");
    assert!(!frozen(&host));
    desk.types("\x1a");
    desk.shows("stopped 148");
    assert!(frozen(&host), "the run stands still with its client");
    desk.types("\n");
    desk.shows("tick");
    desk.shows("behind");
    assert!(!frozen(&host));
    desk.types("\n");
    // It is the relay's turn again when the key goes through.
    until("the relay has the terminal", || !desk.is_cooked());
    desk.types("\x03");
    desk.shows("inner");
    desk.shows("outer");
    desk.shows("ended 3");
    desk.end();

    // Streams that are mixed: the keys are heard by the client, and are for all of the workload.
    let script = "\"$@\" | sh -c \"trap '' INT; cat\"; echo \"stopped $?\"; read x; fg; echo ended";
    let mut desk = support::Desk::new(&as_alice, script, &command);
    desk.shows("tick");
    desk.types("\x1a");
    desk.shows("stopped 148");
    // The client asks for it, and does not wait.
    until("it is frozen", || frozen(&host));
    desk.types("\n");
    // What `cat` shows may be from before.
    until("it goes on", || !frozen(&host));
    desk.types("\x03");
    desk.shows("inner");
    desk.shows("outer");
    desk.shows("ended");
    desk.end();
    assert_eq!(host.scene.runs(), ["start", "exit 3", "start", "exit 3"]);

    // Who goes away while his run stands still ends it.
    let mut desk = support::Desk::new(&as_alice, "\"$@\"; echo \"stopped $?\"; read x", &command);
    desk.shows("tick");
    desk.types("\x1a");
    desk.shows("stopped 148");
    until("it is frozen", || frozen(&host));
    let client = desk.supervisor();
    client.kill();
    host.family().ended_but("daemon");
    desk.types("\n");
    desk.end();
    // The hang-up of its terminal, heard by the session or by the workload first, or that he is gone.
    let runs = host.scene.runs();
    assert!(runs.last().is_some_and(|end| end.starts_with("signal ") || end == "exit 129"), "{runs:?}");
}

#[test]
fn who_and_what_is_refused_and_why() {
    let Some(mut host) = Host::new("") else { return };
    let file = host.path("supervisor.toml").display().to_string();
    // Without a rule: root alone, who brings his signers.
    let no_rule = host.exec(ALICE, "alice.sif", &[], &["true"]);
    failed(&no_rule, 208, &[&format!("no rule of {file} admits user {ALICE}"), &format!("users = [\"{ALICE}\"]")]);
    let signer = host.path("owner.pub.pem").display().to_string();
    let out = host.exec(0, "alice.sif", &["--signer", &signer], &["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
    failed(&host.exec(0, "alice.sif", &[], &["true"]), 208, &["names no signers", "--signer"]);
    // Nor for a run's own user, whatever groups its caller lends it.
    host.reload(&rule("alice", ALICE, &format!("groups = [\"{}\"]", host.uids.0)));
    let told = receive(&connect(&host.socket(), host.uids.0)).unwrap();
    assert_eq!(told["Failed"]["error"], "the daemon refuses: a run starts no runs", "{told}");

    host.reload(&rule("alice", ALICE, "runs = 1"));
    failed(&host.exec(BOB, "bob.sif", &[], &["true"]), 208, &[&format!("admits user {BOB}")]);
    // A foreign image, and the attempt to bring its signer along.
    let stranger = support::Owner::with_image(host.path("stranger"));
    host.image_of(ALICE, &stranger.path("app.sif"), "foreign.sif");
    failed(&host.exec(ALICE, "foreign.sif", &[], &["true"]), 203, &["not by a trusted key"]);
    let foreign = host.path("foreign.pem").display().to_string();
    fs::copy(stranger.path("owner.pub.pem"), &foreign).unwrap();
    let brought = host.exec(ALICE, "foreign.sif", &["--signer", &foreign], &["true"]);
    failed(&brought, 208, &["rule \"alice\" fixes the signers", "leave --signer out"]);
    assert_eq!(stdout(&host.exec(ALICE, "alice.sif", &["--signer", &signer], &["cat", "/secret.txt"])), SECRET);
    // What the user may not read is not read for him.
    failed(&host.exec(ALICE, "bob.sif", &[], &["true"]), 202, &["bob.sif", "Permission denied"]);
    failed(&host.exec(ALICE, "alice.sif", &["--runtime", "apptainer"], &["true"]), 200, &["the built-in runtime only"]);
    failed(&host.exec(ALICE, "alice.sif", &["--bundle", "x"], &["true"]), 200, &["--bundle", "hint: "]);
    failed(
        &host.exec(ALICE, "alice.sif", &["--tpm", "swtpm:unix=/x"], &["true"]),
        200,
        &["a configuration of its own"],
    );
    let nowhere = format!("--daemon={}", host.path("nowhere").display());
    failed(
        &host.command(ALICE, &["exec", &nowhere, host.path("alice.sif").to_str().unwrap(), "true"]).output().unwrap(),
        207,
        &["nowhere"],
    );

    // One at a time.
    let mut run = host.started("echo ready; read x");
    failed(
        &host.exec(ALICE, "alice.sif", &[], &["true"]),
        208,
        &["rule \"alice\" allows 1 runs at a time", "supervisor ps"],
    );
    run.say("go");
    assert_eq!(run.end().0, Some(0));
    // Another workload than the rule lists.
    host.reload(&rule("alice", ALICE, &format!("workloads = [\"{}\"]", "07".repeat(32))));
    failed(&host.exec(ALICE, "alice.sif", &[], &["true"]), 208, &["does not list workload", "hint: "]);
    // Rules that are wrong change nothing.
    host.write_rules("[[daemon.rule]]\nname = \"x\"\n");
    signal(host.daemon().pid(), Signal::HUP);
    host.daemon().says("the old rules stay");
    host.reload(&rule("alice", ALICE, "own_signers = true"));
    // The key's release is for the verifier to decide, which does not know this workload.
    failed(&host.exec(ALICE, "foreign.sif", &["--signer", &foreign], &["true"]), 208, &["hint: "]);
}

#[test]
fn clients_that_send_nonsense_are_told_so_and_hold_nobody_up() {
    let Some(host) = Host::new(&format!("{}{}", rule("alice", ALICE, "runs = 1"), rule("bob", BOB, ""))) else {
        return;
    };
    let folder = host.public.path();
    let open = |path: &Path, flags: OFlags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let image = || open(&host.path("alice.sif"), OFlags::RDONLY);
    let null = || open(Path::new("/dev/null"), OFlags::RDWR);
    let (pipe, _writer) = std::io::pipe().unwrap();
    std::os::unix::fs::symlink(host.path("alice.sif"), host.path("link")).unwrap();
    let request = json!({"Run": {"task": {"Exec": []}, "settings": settings(), "terminal": false, "signers": [], "environment": []}});
    let with = |key: &str, value: Value| {
        let mut request = request.clone();
        request["Run"][key] = value;
        serde_json::to_vec(&request).unwrap()
    };
    let good = serde_json::to_vec(&request).unwrap();
    let half = &good[..good.len() / 2];
    let streams = || vec![null(), null(), null()];
    let given = |image: OwnedFd| std::iter::once(image).chain(streams()).collect::<Vec<_>>();
    let many: Vec<OwnedFd> = (0..22).map(|_| null()).collect();
    let cases: Vec<(&[u8], Vec<OwnedFd>, &str, &str)> = vec![
        (b"\xff\x00nonsense", vec![], "usage", "does not understand"),
        (half, given(image()), "usage", "does not understand"),
        (&good, many, "usage", "more than 131072 bytes or 21 descriptors"),
        (&good, vec![], "usage", "0 descriptors"),
        (&good, vec![image(), null()], "usage", "2 descriptors"),
        (&good, given(open(folder, OFlags::RDONLY)), "image", "Directory"),
        (&good, given(null()), "image", "CharacterDevice"),
        (&good, given(pipe.into()), "image", "Fifo"),
        (&good, given(open(&host.path("alice.sif"), OFlags::PATH)), "image", "not open for reading"),
        (&good, given(open(&host.path("link"), OFlags::PATH | OFlags::NOFOLLOW)), "image", "not open for reading"),
        (&good, given(open(&host.path("alice.sif"), OFlags::WRONLY)), "image", "not open for reading"),
        (&good, given(open(&host.path("owner.pub.pem"), OFlags::RDONLY)), "image", "SIF"),
        (&good, vec![image(), open(folder, OFlags::RDONLY), null(), null()], "usage", "Directory is refused"),
        (&good, vec![image(), null(), open(Path::new("/dev/null"), OFlags::PATH), null()], "usage", "only a path"),
    ];
    let answer = |bytes: &[u8], fds: &[OwnedFd]| {
        let client = connect(&host.socket(), ALICE);
        assert_eq!(receive(&client).unwrap(), "Ready");
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        send(&client, bytes, &fds);
        receive(&client).unwrap()
    };
    for (bytes, fds, stage, words) in cases {
        let told = answer(bytes, &fds);
        assert_eq!(told["Failed"]["stage"], stage, "{words}: {told}");
        assert!(told["Failed"]["error"].as_str().unwrap().contains(words), "{words}: {told}");
    }
    let huge = vec![b' '; 150_000];
    let variable = with("environment", json!([["LD_PRELOAD", "/x"]]));
    let unknown = with("binds", json!(["/"]));
    let signers = with("signers", json!(vec!["x"; 17]));
    for (bytes, words) in
        [(&huge, "131072"), (&variable, "LD_PRELOAD"), (&unknown, "unknown field"), (&signers, "too many")]
    {
        let told = answer(bytes, &given(image()));
        assert!(told["Failed"]["error"].as_str().unwrap().contains(words), "{words}: {told}");
    }

    // Many that connect and say nothing: as many as his rule allows, and the others are not held up.
    let mut clients = std::iter::repeat_with(|| connect(&host.socket(), ALICE));
    // The sessions of those before take a moment to end.
    let mut admitted = || clients.by_ref().take(10_000).find(|client| receive(client).unwrap() == "Ready").unwrap();
    let silent: Vec<OwnedFd> = (0..9).map(|_| admitted()).collect();
    let told = receive(&connect(&host.socket(), ALICE)).unwrap();
    assert!(told["Failed"]["error"].as_str().unwrap().contains("too many connections of user"), "{told}");
    let out = host.exec(BOB, "bob.sif", &[], &["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
    drop(silent);
    // Nonsense while it runs ends the run.
    let client = admitted();
    let (out, theirs) = std::io::pipe().unwrap();
    let words = ["sh", "-c", "echo ready; exec sleep 1000"].map(|word| json!({"Unix": word.as_bytes()}));
    let run = with("task", json!({"Exec": words}));
    {
        let (image, null) = (image(), null());
        send(&client, &run, &[image.as_fd(), null.as_fd(), theirs.as_fd(), null.as_fd()]);
    }
    drop(theirs);
    let mut out = BufReader::new(out);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{:?}", receive(&client));
    send(&client, b"{\"Signal\": 9}", &[]);
    send(&client, b"{", &[]);
    assert_eq!(out.read_to_string(&mut line).unwrap(), 0);
    assert_eq!(receive(&client).unwrap(), json!({"Ended": {"code": 143, "by_key": false}}));
}

#[test]
fn whoever_is_killed_nothing_is_left() {
    let Some(mut host) = Host::of_alice() else { return };
    let escapes = "(setsid sleep 1001 &) ; echo ready; exec sleep 1000";
    // The client: its run ends in order.
    let run = host.started(escapes);
    let family = host.family();
    signal(run.pid(), Signal::KILL);
    drop(run);
    family.ended_but(" daemon ");
    Family(Vec::new()).all_gone();
    host.daemon().says("has ended");
    assert_eq!(host.scene.runs(), ["start", "exit 143"]);

    // The session: so does its run, and the daemon goes on.
    let run = host.started(escapes);
    let family = host.family();
    family.find("session-process").kill();
    let (code, _, err) = run.end();
    assert_eq!(code, Some(207), "{err}");
    assert!(err.contains("the daemon has ended"), "{err}");
    family.ended_but(" daemon ");
    Family(Vec::new()).all_gone();

    // The daemon: everything. Another one takes its place, and ends what has a user of its range.
    let run = host.started(escapes);
    let family = host.family();
    family.0[0].kill();
    assert_eq!(run.end().0, Some(207));
    family.all_gone();
    let mut left = Command::new("sleep").arg("1000").uid(host.uids.1).gid(host.uids.1).spawn().unwrap();
    let (_, old) = (host.daemon.take(), host.socket().exists());
    assert!(old, "a killed daemon leaves its socket");
    host.start();
    assert_eq!(left.wait().unwrap().signal(), Some(9));
    let out = host.exec(ALICE, "alice.sif", &[], &["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
    let lost = "lost: its supervisor was killed";
    assert_eq!(host.scene.runs(), ["start", "exit 143", "start", lost, "start", lost, "start", "exit 0"]);
    // A second one at the same place is refused.
    let out = host.daemon_command().output().unwrap();
    failed(&out, 201, &["another daemon listens there"]);

    // Told to end, it ends its runs in order.
    let run = host.started(escapes);
    signal(host.daemon().pid(), Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    assert_eq!(host.daemon().child.wait().unwrap().code(), Some(0));
    assert!(!host.socket().exists());
    assert_eq!(host.scene.runs()[8..], ["start", "exit 143"]);
}

#[test]
fn fifty_starts_of_two_users_at_once() {
    let Some(host) = Host::new(&format!("{}{}", rule("alice", ALICE, "runs = 20"), rule("bob", BOB, "runs = 25")))
    else {
        return;
    };
    let start = |user, image: &str, n: usize| {
        let mut command = host.exec_command(user, image, &[], &["sh", "-c", &format!("cat /secret.txt; exit {n}")]);
        (user, n, command.spawn().unwrap())
    };
    // Alice's rule may be in the way of some of hers, and of nothing of Bob's.
    let starts: Vec<_> = (0..25).flat_map(|n| [start(ALICE, "alice.sif", n), start(BOB, "bob.sif", n + 25)]).collect();
    let mut ran = Vec::new();
    for (user, n, child) in starts {
        let out = child.wait_with_output().unwrap();
        if user == ALICE && out.status.code() == Some(208) {
            failed(&out, 208, &["rule \"alice\" allows 20 runs at a time"]);
            continue;
        }
        assert_eq!((out.status.code(), stdout(&out).as_str()), (i32::try_from(n).ok(), SECRET), "{}", stderr(&out));
        ran.push(n);
    }
    assert!(ran.len() >= 45, "{ran:?}");
    // None lost a session; nothing of the queue is left, and nothing of the runs.
    assert_eq!(fs::read_dir(host.scene.path("host/queue")).unwrap().count(), 0);
    let mut expected: Vec<String> = ran.iter().map(|n| format!("exit {n}")).collect();
    expected.extend(std::iter::repeat_n("start".to_owned(), ran.len()));
    let mut runs = host.scene.runs();
    runs.sort();
    expected.sort();
    assert_eq!(runs, expected);
    let out = host.exec(ALICE, "alice.sif", &[], &["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
}

#[test]
fn the_key_is_in_the_runs_decryptor_and_nowhere_else() {
    let Some(host) = Host::of_alice() else { return };
    let (image, passphrase) = host.scene.with_passphrase("locked.sif", &reacts("alert"));
    let secrets = Secrets::new(&host.scene.owner.volume_key_by("locked.sif", &passphrase), &passphrase);
    host.image_of(ALICE, &image, "locked.sif");
    let script = "echo ready; cat /big > /dev/null; echo read; exec sleep 1000";
    let start = || {
        let run = host.exec_command(ALICE, "locked.sif", &["--status-fd", "2"], &["sh", "-c", script]);
        let mut run = support::Started::new(run);
        let mut line = String::new();
        run.stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "read\n");
        run
    };
    let run = start();
    let mut family = host.family();
    family.0.extend(Family::of(run.pid()).0);
    assert!(family.0.len() >= 9, "daemon, session, decryptor, stage, squashfuse, bubblewrap twice, workload; client");
    secrets.only_in_the_decryptor(&family);
    // It is no process of the caller's, and has long given up being root.
    assert_eq!(user_of(family.find("decryptor-process")), user_of(family.find("stage-process")) + 1);
    signal(run.pid(), Signal::TERM);
    let (code, _, err) = run.end();
    assert!(code == Some(143) && !secrets.within(err.as_bytes()), "{code:?} {err}");
    // The daemon goes on, and has nothing of it.
    family.ended_but(" daemon ");
    let mut left = host.family();
    // A zombie, which has no command line, has ended; the daemon has not looked yet.
    left.0.retain(|process| !process.command.is_empty());
    assert_eq!(left.0.len(), 1);
    secrets.nowhere(&left);
}

#[test]
fn what_a_daemon_does_not_start_with() {
    let Some(mut host) = Host::new("") else { return };
    drop(host.daemon.take());
    let start = |host: &Host| host.daemon_command().output().unwrap();
    // Somebody's users.
    host.uids = (0xfff0, 0xffff);
    host.write_rules("");
    failed(&start(&host), 201, &["uids = \"65520-65535\"", "nobody in /etc/passwd"]);
    host.uids = (2_090_000_000, 2_090_000_009);
    // A file, and a key, that others may change.
    host.write_rules(&rule("alice", ALICE, ""));
    fs::set_permissions(host.path("supervisor.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    failed(&start(&host), 201, &["supervisor.toml: others than root may change it", "chmod go-w"]);
    fs::set_permissions(host.path("supervisor.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(host.path("owner.pub.pem"), Some(ALICE), None).unwrap();
    failed(&start(&host), 201, &["rule \"alice\"", "owner.pub.pem: others than root may change it"]);
    // And not as anybody else.
    let out = host.command(ALICE, &["daemon"]).output().unwrap();
    failed(&out, 201, &["only root can", "systemctl"]);
}

#[test]
fn a_socket_of_systemd() {
    let Some(mut host) = Host::of_alice() else { return };
    drop(host.daemon.take());
    fs::remove_file(host.socket()).unwrap();
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(host.socket()).unwrap()).unwrap();
    fs::set_permissions(host.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    let given = host.daemon_command();
    let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let activated = |stdin: OwnedFd| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(given.get_program()).args(given.get_args());
        command.stdin(Stdio::from(stdin)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut child = activated(socket.try_clone().unwrap()).spawn().unwrap();
    let stderr_of = BufReader::new(child.stderr.take().unwrap());
    let mut daemon = Daemon { child, stderr: stderr_of };
    let out = host.exec(ALICE, "alice.sif", &[], &["cat", "/secret.txt"]);
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
    daemon.says("has ended");
    signal(daemon.pid(), Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(host.socket().exists(), "it is systemd's");
    // Something else than a listening socket of that kind.
    let out = activated(File::open("/dev/null").unwrap().into()).output().unwrap();
    failed(&out, 201, &["systemd has passed something else", "ListenSequentialPacket="]);
}
