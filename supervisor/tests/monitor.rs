//! Monitor mode on real parts: what the workload does, what its policy says of it, and what is done.
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

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use countersign_verifier::admin::{Request, RunOrder};
use countersign_wire::runlog::{Event, RunLog};
use serde_json::Value;
use support::processes::{Family, signal};
use support::watched::{HOLD, Watched, logged, policy};
use support::{Scene, failed, is_root, stderr};

/// Ends in each way; nothing may be left of any.
#[test]
fn a_stranger_is_killed_with_all_that_escaped() {
    let Some(scene) = Scene::new() else { return };
    // A copy of the shell's program runs from the container's own memory, twice forked, in a session of its own, under another name.
    let script =
        "(setsid sleep 1001 &); echo ready; read x; cp /bin/busybox /tmp/sleep; (setsid /tmp/sleep 1002 &); sleep 1000";
    for (reaction, end) in [("kill", "kill"), ("stop", "stop")] {
        let mut run = Watched::new(&scene, reaction, &policy(600, 300, reaction, &[]), script);
        let family = run.family();
        let cgroup = run.cgroup();
        run.say("go");
        let found = run.finding("process-not-in-image");
        let executable = found["finding"]["executable"].as_str().unwrap().to_owned();
        assert!(executable.ends_with("/sleep"), "{found}");
        assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some(end)), "{found}");
        let (code, words) = run.end();
        assert_eq!(code, Some(217), "{words}");
        for word in ["error: the run was ended: process-not-in-image", "not-accepted: this is no business", "hint: "] {
            assert!(words.contains(word), "{word:?} is not in\n{words}");
        }
        family.ended();
        assert!(cgroup.is_none_or(|path| !path.exists()));
    }
    let log = logged(&scene);
    assert_eq!(log.iter().filter(|line| *line == "violation").count(), 2, "{log:?}");
    for (finding, reaction) in [("process-not-in-image", "kill"), ("process-not-in-image", "stop")] {
        assert!(log.windows(2).any(|pair| pair == [finding, reaction]), "{log:?}");
    }
}

#[test]
fn a_stop_that_is_not_heeded_kills_after_its_grace() {
    let Some(scene) = Scene::new() else { return };
    let script =
        "trap '' HUP; trap 'echo not me' TERM; echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000 &
        while :; do sleep 0.01; done";
    let mut run = Watched::new(&scene, "grace", &policy(600, 300, "stop", &[]), script);
    let family = run.family();
    let began = Instant::now();
    run.say("go");
    let found = run.finding("process-not-in-image");
    // It may have taken a while to hear of it: by then its ten seconds are running.
    let heard = began.elapsed().as_secs_f64();
    assert_eq!(found["reaction"], "stop", "{found}");
    let mut line = String::new();
    run.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "not me\n");
    // It prolongs nothing.
    signal(i32::try_from(run.child.id()).unwrap(), rustix::process::Signal::HUP);
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    let took = began.elapsed().as_secs_f64();
    assert!(took > 9.5 && took - heard < 60.0, "{took} s, heard of after {heard} s");
    family.all_gone();
    assert_eq!(logged(&scene), ["process-not-in-image", "stop", "violation"]);
}

#[test]
fn a_frozen_run_stands_still_and_is_ended_in_time() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000; echo never";
    let mut run = Watched::new(&scene, "freeze", &policy(600, 300, "freeze", &[]), script);
    let id = run.started["run"].as_str().unwrap().to_owned();
    let family = run.family();
    run.say("go");
    let found = run.finding("process-not-in-image");
    assert_eq!(found["reaction"], "freeze", "{found}");
    assert!(run.is_frozen());
    // The key is kept: whoever approves lets it go on.
    assert!(run.family().0.iter().any(|process| process.command.contains("decryptor-process")));
    let why = run.stage("reaction");
    assert_eq!(why["reaction"], "kill", "nobody approved it within its time: {why}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert!(words.contains("nobody approved"), "{words}");
    family.ended();
    // The verifier was told before this program ended.
    let told = scene.verifier.ask(Request::RunShow { run: id });
    assert!(told["status"].as_str().unwrap().starts_with("violation: "), "{told}");
    assert_eq!(logged(&scene), ["process-not-in-image", "freeze", "kill", "violation"]);

    // A signal to a frozen run ends it: its workload would hear nothing.
    let mut run = Watched::new(&scene, "signal", &policy(600, 300, "freeze", &[]), script);
    let family = run.family();
    run.say("go");
    run.finding("process-not-in-image");
    signal(i32::try_from(run.child.id()).unwrap(), rustix::process::Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    family.ended();
}

#[test]
fn what_is_alerted_or_accepted_goes_on_and_is_told() {
    let Some(scene) = Scene::new() else { return };
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    scene.write_config(&format!("webhook = \"http://{}/events\"\n", collector.local_addr().unwrap()));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!(
        "echo ready; read x; cp /bin/busybox /tmp/true; /tmp/true; /bin/busybox httpd -f -p 127.0.0.1:{free} & read y; exit 9"
    );
    let mut run = Watched::new(&scene, "alert", &policy(600, 300, "alert", &["listening-socket"]), &script);
    let sees_all = run.started["watched"].as_str().unwrap().starts_with("every execution");
    run.say("go");
    if sees_all {
        // It is over long before anybody could look.
        let found = run.finding("process-not-in-image");
        assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some("alert")), "{found}");
    } else {
        println!("skipped: short-lived processes: executions are seen by root only");
    }
    let found = run.finding("listening-socket");
    assert_eq!(found["finding"]["where"], format!("127.0.0.1:{free}"));
    assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(true), Some("alert")), "{found}");

    // The webhook's first event, as CloudEvents has it.
    let (mut stream, _) = collector.accept().unwrap();
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        request.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
    assert!(request.starts_with("POST /events ") && request.contains("application/cloudevents+json"), "{request}");
    let event: Value = serde_json::from_slice(&body).unwrap();
    let kind = event["data"]["finding"]["kind"].as_str().unwrap();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], format!("countersign.finding.{kind}"));
    assert_eq!(event["subject"], format!("run/{}", run.started["run"].as_str().unwrap()));
    drop(collector);

    run.child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    let (code, words) = run.end();
    assert_eq!(code, Some(9), "{words}");
    let log = logged(&scene);
    assert!(log.windows(2).any(|pair| pair == ["listening-socket", "alert"]), "{log:?}");
    assert_eq!(log.last().unwrap(), "exit 9");
    // The verifier knows, by a quote over this very log.
    scene.write_config("");
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn a_standard_error_that_nobody_reads_stops_no_supervision() {
    let Some(scene) = Scene::new() else { return };
    let (_reader, writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while rustix::io::write(&writer, &vec![b'x'; size]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
    let image = scene.with_policy("mute", &policy(600, 300, "stop", &[]));
    let script = "cp /bin/busybox /tmp/sleep; exec /tmp/sleep 1000";
    let mut command = scene.command("exec", &[], &image, &["sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(217));
    assert_eq!(logged(&scene), ["process-not-in-image", "stop", "violation"]);
}

#[test]
fn a_frozen_run_that_is_approved_goes_on() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000 & read x; kill $!; echo on; exit 5";
    let hold = format!("\"freeze_hold_s\": {HOLD}");
    let patient = policy(600, 300, "freeze", &[]).replace(&hold, "\"freeze_hold_s\": 600");
    let mut run = Watched::new(&scene, "approved", &patient, script);
    let id = run.started["run"].as_str().unwrap().to_owned();
    run.say("go");
    run.finding("process-not-in-image");
    assert!(run.is_frozen());
    // The operator sees what waits for him.
    let state = || scene.verifier.ask(Request::RunShow { run: id.clone() })["state"].clone();
    while state() != "frozen" {
        std::thread::yield_now();
    }
    scene.verifier.ask(Request::RunOrder { run: id.clone(), order: RunOrder::Thaw, reason: "known".into() });
    assert_eq!(run.stage("reaction")["reaction"], "thaw");
    run.say("on");
    let mut line = String::new();
    run.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    let (code, words) = run.end();
    assert_eq!(code, Some(5), "{words}");
    assert_eq!(logged(&scene)[..3], ["process-not-in-image", "freeze", "thaw"]);
}

#[test]
fn an_operator_freezes_thaws_and_stops() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; while read x; do echo $x; done; sleep 1000";
    let mut run = Watched::new(&scene, "operator", &policy(600, 1, "kill", &[]), script);
    let id = run.started["run"].as_str().unwrap().to_owned();
    // The verifier knows the run once an attestation has told it.
    while !scene.verifier.ask(Request::RunList { host: None, limit: 10 }).to_string().contains(&id) {
        std::thread::yield_now();
    }
    let order = |order| scene.verifier.ask(Request::RunOrder { run: id.clone(), order, reason: "a drill".into() });
    order(RunOrder::Freeze);
    assert_eq!(run.stage("reaction")["reaction"], "freeze");
    assert!(run.is_frozen());
    run.child.stdin.as_mut().unwrap().write_all(b"again\n").unwrap();
    order(RunOrder::Thaw);
    let why = run.stage("reaction");
    assert_eq!(why["reaction"], "thaw");
    assert!(why["reasons"][0].as_str().unwrap().contains("a drill"), "{why}");
    let mut line = String::new();
    run.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "again\n");
    order(RunOrder::Stop);
    assert_eq!(run.stage("reaction")["reaction"], "stop");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert!(words.contains("a drill"), "{words}");
    assert_eq!(logged(&scene), ["freeze", "thaw", "stop", "violation"]);
}

/// As on a batch node: no cgroup of its own, no fanotify.
#[test]
fn a_run_of_an_ordinary_user_is_frozen_and_ended_process_by_process() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let image = scene.with_policy("user", &policy(600, 300, "freeze", &[]));
    let script = "(setsid sh -c 'while :; do :; done' &); sleep 1001 & echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000";
    let given = scene.command("exec", &["--status-fd", "2"], &image, &["sh", "-c", script]);
    let mut run = Watched::of(&mut scene.given_away(&given));
    let group = run.started["group"].as_str().unwrap().to_owned();
    assert!(group.starts_with("process tree ("), "{group}");
    assert_eq!(run.started["watched"], "at intervals");
    run.say("go");
    let found = run.finding("process-not-in-image");
    assert_eq!(found["reaction"], "freeze", "{found}");
    assert!(run.is_frozen());
    let frozen = run.family();
    let stranger = found["finding"]["pid"].as_i64().unwrap();
    assert!(frozen.0.iter().any(|process| i64::from(process.pid) == stranger), "{found}");
    assert_eq!(run.stage("reaction")["reaction"], "kill");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    frozen.all_gone();
    assert_eq!(logged(&scene), ["process-not-in-image", "freeze", "kill", "violation"]);
}

#[test]
fn a_program_in_memory_is_seen_from_the_first_moment() {
    let Some(scene) = Scene::new() else { return };
    // Nothing but this file without a place runs: before anybody has looked, and still by its own name.
    let memory = rustix::fs::memfd_create("harmless", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut memory = File::from(memory);
    memory.write_all(&std::fs::read(scene.owner.path("rootfs/bin/busybox")).unwrap()).unwrap();
    let image = scene.with_policy("memory", &policy(600, 300, "kill", &[]));
    let script = "echo ready; /bin/busybox ln -s /proc/self/fd/0 /tmp/sleep; exec /tmp/sleep 1000";
    let mut command = scene.command("exec", &["--status-fd", "2"], &image, &["sh", "-c", script]);
    command.stdin(memory);
    let mut run = Watched::of(&mut command);
    let family = run.family();
    let found = run.finding("process-not-in-image");
    assert!(found["finding"]["executable"].as_str().unwrap().starts_with("/memfd:harmless"), "{found}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    family.all_gone();
}

/// The last finding taken out of the log, or put before another one: the TPM knows better.
#[test]
fn findings_do_not_leave_the_run_log() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000";
    let mut run = Watched::new(&scene, "logged", &policy(600, 300, "kill", &[]), script);
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert_eq!(logged(&scene), ["process-not-in-image", "kill", "violation"]);
    let path = scene.path("host/run.log");
    let whole = std::fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let at = lines.iter().position(|line| String::from_utf8_lossy(line).contains("process-not-in-image")).unwrap();
    let mut swapped = lines.clone();
    swapped.swap(at, at + 1);
    let without = [&lines[..at], &lines[at + 1..]].concat();
    for (changed, code, words) in [
        (lines[..at].concat(), 209, "run-log"),
        (without.concat(), 201, "reboot to begin a new one"),
        (swapped.concat(), 201, "reboot to begin a new one"),
    ] {
        std::fs::write(&path, &changed).unwrap();
        failed(&scene.exec(&["cat", "/secret.txt"]), code, &[words]);
        assert_eq!(std::fs::read(&path).unwrap(), changed, "evidence is not tidied away");
    }
    std::fs::write(&path, &whole).unwrap();
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert!(out.status.success(), "{}", stderr(&out));

    // A program that died between the disk and the TPM: its entry is extended by the next one, and the verifier accepts it.
    let log = RunLog::parse(&std::fs::read(&path).unwrap()).unwrap();
    let banks: Vec<_> = log.entries[0].digests.iter().map(countersign_tpm::alg::Digest::alg).collect();
    let event = log.entries.iter().find(|entry| matches!(entry.event, Event::Finding { .. })).unwrap().event.clone();
    let (line, _) = log.next(13, &banks, event).unwrap();
    File::options().append(true).open(&path).unwrap().write_all(&line).unwrap();
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(logged(&scene).iter().filter(|line| *line == "process-not-in-image").count(), 2);
}

/// A small disk of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn on(path: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(path).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }

    fn fill(&self) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_starts_nothing_and_ends_what_must_be_recorded() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let (state, kept) = (scene.path("host"), scene.path("kept"));
    std::fs::rename(&state, &kept).unwrap();
    std::fs::create_dir(&state).unwrap();
    let Some(disk) = Disk::on(&state) else { return println!("skipped: no mount") };
    let copied = Command::new("cp").arg("-a").arg(kept.join(".")).arg(&state).status().unwrap();
    assert!(copied.success());
    // One entry may find room in what the log has already; a page has none for all of these.
    let script = "echo ready; read x; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        /bin/busybox mkdir /tmp/$i; cp /bin/busybox /tmp/$i/sleep; /tmp/$i/sleep 1000 & done; wait";
    let mut run = Watched::new(&scene, "disk", &policy(600, 300, "alert", &[]), script);
    disk.fill();
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert!(words.contains("a finding cannot be recorded") && words.contains("No space left"), "{words}");
    let out = scene.exec(&["cat", "/secret.txt"]);
    failed(&out, 201, &["No space left"]);
    assert!(out.stdout.is_empty());
    // Space again: what was begun and not finished is no entry, and the log still agrees with the TPM.
    std::fs::remove_file(state.join("ballast")).unwrap();
    let out = scene.exec(&["cat", "/secret.txt"]);
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn the_last_thing_that_a_workload_does_is_seen() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cp /bin/busybox /tmp/true; exec /tmp/true";
    let mut run = Watched::new(&scene, "last", &policy(600, 300, "stop", &[]), script);
    if run.started["watched"] == "at intervals" {
        return println!("skipped: executions are seen by root only");
    }
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert_eq!(logged(&scene), ["process-not-in-image", "stop", "violation"]);
}

#[test]
fn the_first_thing_that_a_workload_does_is_seen_however_short_it_is() {
    let Some(scene) = Scene::new() else { return };
    if !is_root() {
        return println!("skipped: executions are seen by root only");
    }
    let folder = scene.path("own");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(scene.owner.path("rootfs/bin/busybox"), folder.join("true")).unwrap();
    // A place that mount tables write otherwise.
    let bind = format!("{}:/tmp/own place", folder.display());
    let image = scene.with_policy("first", &policy(600, 300, "alert", &[]));
    // The workload is that program, and over at once.
    let out = scene
        .command("exec", &["--status-fd", "2", "--bind", &bind], &image, &["/tmp/own place/true"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert_eq!(logged(&scene), ["process-not-in-image", "alert", "exit 0"], "{}", stderr(&out));
}

#[test]
fn a_monitor_that_cannot_look_says_so() {
    let Some(scene) = Scene::new() else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!("echo ready; exec /bin/busybox httpd -f -p 127.0.0.1:{free}");
    let mut run = Watched::new(&scene, "blind", &policy(600, 300, "kill", &["listening-socket"]), &script);
    let family = run.family();
    // It has looked, and that is recorded and reported.
    run.finding("listening-socket");
    let id = run.started["run"].as_str().unwrap().to_owned();
    while !scene.verifier.ask(Request::RunShow { run: id.clone() }).to_string().contains("listening-socket") {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&run.child);
    // Enough to wait for several at a time, and fewer than it has open.
    let none = rustix::process::Rlimit { current: Some(12), maximum: Some(12) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, none).unwrap();
    let found = run.finding("monitor-blind");
    assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some("kill")), "{found}");
    assert!(found["finding"]["what"].as_str().unwrap().contains("cannot be looked at"), "{found}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    family.ended();
}

#[test]
fn tracers_are_seen() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; exec sleep 1000";
    let mut run = Watched::new(&scene, "traced", &policy(600, 300, "kill", &[]), script);
    let victim = Family::with(run.pid(), "sleep").running("sleep").unwrap().pid;
    let tracer = Command::new("strace").args(["-p", &victim.to_string()]).stderr(Stdio::null()).spawn();
    let Ok(mut tracer) = tracer else { return println!("skipped: strace is not installed") };
    let found = run.finding("ptrace");
    assert_eq!(found["finding"]["where"], format!("/proc/{}", tracer.id()), "{found}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    tracer.wait().unwrap();
}

#[test]
fn namespaces_mounts_and_capabilities_are_seen() {
    let Some(scene) = Scene::new() else { return };
    let unshare = ["/usr/bin/unshare", "/bin/unshare"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let Some(unshare) = unshare else { return println!("skipped: unshare is not installed") };
    // busybox has none everywhere: the host's own, with what it is linked to.
    let rootfs = scene.owner.path("rootfs");
    let libraries = Command::new("ldd").arg(&unshare).output().unwrap();
    std::fs::copy(&unshare, rootfs.join("bin/unshare")).unwrap();
    for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let place = rootfs.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(word, place).unwrap();
    }
    let script = "echo ready; read x; /bin/unshare -Um --keep-caps sh -c 'mount -o bind /bin /tmp; sleep 1000'";
    let mut run = Watched::new(&scene, "unshare", &policy(600, 300, "alert", &[]), script);
    run.say("go");
    let mut wanted = vec!["new-namespace", "new-mount", "capability-gained"];
    while !wanted.is_empty() {
        let found = run.stage("finding");
        wanted.retain(|kind| found["finding"]["kind"] != *kind);
        // Between its two system calls its own file is on a mount that its new namespace has not.
        let between = found["finding"]["executable"].as_str().is_some_and(|path| path.ends_with("/unshare"));
        let stranger = found["finding"]["kind"] == "process-not-in-image";
        assert!(between || !stranger, "what it runs is in the image: {found}");
    }
}

#[test]
fn a_verifier_that_says_no_or_nothing() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; sleep 1000";
    // Its operator suspends the host: said at once.
    let mut run = Watched::new(&scene, "denied", &policy(600, 1, "kill", &[]), script);
    let host = scene.verifier.ask(Request::HostList {})["hosts"][0]["host"].as_str().unwrap().to_owned();
    let state = |state| {
        scene.verifier.ask(Request::HostState { host: host.clone(), state, reason: "test".into() });
    };
    run.connected(true);
    state(countersign_wire::enrol::HostState::Suspended);
    let found = run.finding("revoked");
    assert_eq!(found["reaction"], "kill", "{found}");
    assert_eq!(run.end().0, Some(217));
    state(countersign_wire::enrol::HostState::Active);

    // The TPM is reset under the run: what it quotes is not what was accepted.
    let mut scene = scene;
    let mut run = Watched::new(&scene, "reset", &policy(600, 1, "kill", &[]), script);
    scene.reset();
    run.finding("attestation-denied");
    let (code, words) = run.end();
    assert_eq!(code, Some(217));
    // As `verifier explain` has it.
    assert!(words.contains("since the last good boot"), "{words}");
}

#[test]
fn a_lease_that_nobody_renews_ends() {
    let Some(scene) = Scene::new() else { return };
    scene.write_config("deadline_s = 10\n");
    let mut run = Watched::new(&scene, "lease", &policy(20, 2, "stop", &[]), "echo ready; sleep 1000");
    let family = run.family();
    let began = Instant::now();
    let Scene { sim, verifier, owner, dir } = scene;
    verifier.stop();
    let found = run.finding("lease-expired");
    assert_eq!(found["reaction"], "stop", "{found}");
    assert!(began.elapsed().as_secs() < 60, "it is the lease that ends, not somebody's patience");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert!(words.contains("the lease is not renewed"), "{words}");
    family.ended();
    drop((sim, owner, dir));
}

/// Its own user can stop the supervisor as he can any process of his.
#[test]
fn a_stopped_supervisor_lifts_no_lease() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cat /big > /dev/null && echo read; sleep 1000";
    // The images first: no lease is to end while others are made.
    let reactions = ["alert", "freeze", "stop", "kill"];
    let images = reactions.map(|reaction| scene.with_policy(reaction, &policy(12, 2, reaction, &[])));
    let image = scene.with_policy("long", &policy(600, 300, "kill", &[]));
    let start =
        |image: &PathBuf| Watched::of(&mut scene.command("exec", &["--status-fd", "2"], image, &["sh", "-c", script]));
    let mut long = start(&image);
    let mut runs: Vec<(&str, Watched)> = reactions.into_iter().zip(images.iter().map(start)).collect();
    let pid = |run: &Watched| i32::try_from(run.child.id()).unwrap();
    let stopped = Instant::now();
    for run in runs.iter().map(|(_, run)| run).chain([&long]) {
        signal(pid(run), rustix::process::Signal::STOP);
    }
    std::thread::sleep(Duration::from_secs(12));
    // Nothing that was not read before is to be had.
    for (reaction, run) in &mut runs {
        run.say("go");
        assert!(!run.says(Duration::from_millis(500)), "{reaction}: it reads on");
    }
    let next = |run: &mut Watched| {
        let mut line = String::new();
        run.stdout.read_line(&mut line).unwrap();
        line
    };
    for (reaction, mut run) in runs {
        let family = run.family();
        signal(pid(&run), rustix::process::Signal::CONT);
        let found = run.finding("lease-expired");
        assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some(reaction)), "{found}");
        match reaction {
            // It goes on as policy has it, and so do its reads.
            "alert" => assert_eq!(next(&mut run), "read\n"),
            "freeze" => assert!(run.is_frozen()),
            _ => {
                let (code, words) = run.end();
                assert_eq!(code, Some(217), "{words}");
                assert!(!words.contains("the container's processes"), "{words}");
                family.all_gone();
            }
        }
    }
    // Long before the lease ends: what was not watched for so long has to wait, and nothing is lost.
    assert!(stopped.elapsed() > Duration::from_secs(11));
    long.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert!(!long.says(Duration::from_secs(1)), "it reads on");
    signal(pid(&long), rustix::process::Signal::CONT);
    assert_eq!(next(&mut long), "read\n");
    signal(pid(&long), rustix::process::Signal::USR1);
    let (code, words) = long.end();
    assert_eq!(code, Some(138), "{words}");
    assert!(!words.contains("lease-expired"), "{words}");
}

#[test]
fn findings_that_cannot_be_recorded_end_the_run() {
    let Some(scene) = Scene::new() else { return };
    let script = "echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000";
    let mut run = Watched::new(&scene, "unrecorded", &policy(600, 300, "alert", &[]), script);
    // No entry fits into the run log any more, as on a full disk.
    std::fs::remove_file(scene.path("host/run.log")).unwrap();
    std::os::unix::fs::symlink("/dev/full", scene.path("host/run.log")).unwrap();
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert!(words.contains("a finding cannot be recorded"), "{words}");
}
