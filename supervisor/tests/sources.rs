//! Where findings come from, each through a whole run: the machine, the verifier, and a file system that does not answer.
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

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_verifier::admin::{Request, RunOrder};
use countersign_wire::enrol::HostState;
use countersign_wire::runlog::Event;
use rustix::process::Signal;
use serde_json::json;
use support::processes::signal;
use support::stalling::Stalling;
use support::watched::{Watched, logged, policy, run_log};
use support::{Scene, is_root};

/// How long the monitor waits for an answer, and what noticing that may take on a busy machine.
const LATE: std::ops::Range<u64> = 10..60;

fn receipts(scene: &Scene) -> usize {
    run_log(scene).entries.iter().filter(|entry| matches!(entry.event, Event::Receipt { .. })).count()
}

/// What a program sees of its machine, between it and the kernel: nobody loads modules or sets clocks for a test. The clock is as many seconds
/// ahead as a file says, another file is /proc/modules, and while a third one is there no process's tables of TCP sockets can be opened.
const MACHINE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
    va_end(more);
    if (!strcmp(path, "/proc/modules") && getenv("MODULES")) path = getenv("MODULES");
    if (strstr(path, "/net/tcp") && getenv("UNSEEN") && !access(getenv("UNSEEN"), F_OK)) return errno = EMFILE, -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    long answer = syscall(SYS_clock_gettime, clock, time), ahead = 0;
    FILE *file = clock == CLOCK_REALTIME && getenv("AHEAD") ? fopen(getenv("AHEAD"), "r") : NULL;
    if (file) {
        if (fscanf(file, "%ld", &ahead) == 1) time->tv_sec += ahead;
        fclose(file);
    }
    return (int)answer;
}
"#;

/// A machine whose modules and clock are files: `modules`, `ahead`.
struct Machine<'a> {
    scene: &'a Scene,
}

impl<'a> Machine<'a> {
    /// `None`, said aloud, where there is no C compiler.
    fn of(scene: &'a Scene) -> Option<Self> {
        scene.write_config("monitor_interval_s = 1\n");
        let machine = Self { scene };
        machine.is("ahead", "0\n");
        machine.is("modules", "ext4 1 0 - Live 0x0\n");
        let [source, library] = ["machine.c", "machine.so"].map(|name| scene.path(name));
        std::fs::write(&source, MACHINE).unwrap();
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("skipped: no C compiler");
            return None;
        }
        Some(machine)
    }

    /// Puts another file in the place of one, at once.
    fn is(&self, name: &str, text: &str) {
        let new = self.scene.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.scene.path(name)).unwrap();
    }

    fn run(&self, name: &str, policy: &str) -> Watched {
        self.runs(name, policy, "echo ready; read x; exit 6")
    }

    /// Has one of them read from there.
    fn is_at(&self, name: &str, place: &Path) {
        std::os::unix::fs::symlink(place, self.scene.path("link")).unwrap();
        std::fs::rename(self.scene.path("link"), self.scene.path(name)).unwrap();
    }

    fn runs(&self, name: &str, policy: &str, script: &str) -> Watched {
        Watched::of(&mut self.command(name, policy, script))
    }

    fn command(&self, name: &str, policy: &str, script: &str) -> Command {
        let image = self.scene.with_policy(name, policy);
        let mut command = self.scene.command("exec", &["--status-fd", "2"], &image, &["sh", "-c", script]);
        let [library, modules, ahead, unseen] =
            ["machine.so", "modules", "ahead", "unseen"].map(|name| self.scene.path(name));
        command.env("LD_PRELOAD", library).env("MODULES", modules).env("AHEAD", ahead).env("UNSEEN", unseen);
        command
    }
}

#[test]
fn a_bound_file_system_that_does_not_answer_stops_no_supervision() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let busybox = std::fs::read(scene.owner.path("rootfs/bin/busybox")).unwrap();
    let script = "trap 'echo heard' USR1; echo ready; read x; /data/sleep 1001 & read x; cp /bin/busybox /tmp/sleep
        /tmp/sleep 1002 & while :; do sleep 0.05; done";
    let mut ends = 0;
    for (reaction, accepted) in [("alert", &[][..]), ("kill", &["process-not-in-image"])] {
        // The kernel opens it for the workload, and is to open it once more for the monitor.
        let place = scene.path(&format!("stalling-{reaction}"));
        let Some(stalling) = Stalling::on(&place, "sleep", busybox.clone(), 1) else { return };
        let image = scene.with_policy(reaction, &policy(600, 1, reaction, accepted));
        let bind = format!("{}:/data", place.display());
        let options = ["--status-fd", "2", "--bind", &bind];
        let mut run = Watched::of(&mut scene.command("exec", &options, &image, &["sh", "-c", script]));
        let began = Instant::now();
        run.say("go");
        stalling.stalls();
        let (found, took) = (run.finding("monitor-blind"), began.elapsed().as_secs());
        assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some(reaction)), "{found}");
        assert_eq!(found["finding"]["where"], "executions", "{found}");
        assert!(LATE.contains(&(took + 1)), "{took} s: {found}");
        let family = run.family();
        if reaction == "alert" {
            // All else goes on: looks, the lease, the user's signals, the operator's orders.
            run.say("go");
            let found = run.status(|line| line["detail"]["finding"]["executable"] == "/tmp/sleep");
            assert_eq!(found["detail"]["finding"]["kind"], "process-not-in-image", "{found}");
            let before = receipts(&scene);
            while receipts(&scene) < before + 2 {
                std::thread::yield_now();
            }
            signal(run.pid(), Signal::USR1);
            assert_eq!(run.line(), "heard\n");
            let id = run.id();
            let order =
                |order| scene.verifier.ask(Request::RunOrder { run: id.clone(), order, reason: "a drill".into() });
            order(RunOrder::Freeze);
            assert_eq!(run.stage("reaction")["reaction"], "freeze");
            assert!(run.is_frozen());
            order(RunOrder::Thaw);
            assert_eq!(run.stage("reaction")["reaction"], "thaw");
            order(RunOrder::Stop);
        }
        // Nothing of the container is left, nor the decryptor with its key, while it still does not answer.
        family.ended();
        ends += 1;
        while logged(&scene).iter().filter(|line| *line == "violation").count() < ends {
            std::thread::yield_now();
        }
        stalling.answer();
        let (code, words) = run.end();
        assert_eq!(code, Some(217), "{words}");
        assert_eq!(words.matches("\"kind\":\"monitor-blind\"").count(), 1, "told once: {words}");
    }
}

#[test]
fn a_workload_waits_until_it_is_watched() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let Some(machine) = Machine::of(&scene) else { return };
    for (name, reaction) in [("ended", "alert"), ("alert", "alert"), ("kill", "kill")] {
        let place = scene.path(&format!("stalling-{name}"));
        let Some(stalling) = Stalling::on(&place, "modules", Vec::new(), 0) else { return };
        machine.is_at("modules", &place.join("modules"));
        let script = "echo ready; read x; exit 6";
        let mut run = Watched::begun(&mut machine.command(name, &policy(600, 300, reaction, &[]), script));
        // There is a container, and how the machine is cannot be told.
        stalling.stalls();
        std::thread::sleep(Duration::from_millis(300));
        let family = run.family();
        assert!(family.0.iter().any(|process| process.command.contains("bwrap")));
        assert!(!family.0.iter().any(|process| process.command.starts_with("sh ")), "its program has not run");
        match name {
            "ended" => signal(run.pid(), Signal::TERM),
            _ => {
                let found = run.finding("monitor-blind");
                assert_eq!(
                    (&found["finding"]["where"], &found["reaction"]),
                    (&json!("looks"), &json!(reaction)),
                    "{found}"
                );
            }
        }
        if name == "alert" {
            // As its policy has it.
            assert_eq!(run.stage("started")["watched"], "not all: the findings say what is not");
            assert_eq!(run.line(), "ready\n");
            stalling.answer();
            run.say("go");
            let (code, words) = run.end();
            assert_eq!(code, Some(6), "{words}");
            continue;
        }
        family.ended();
        stalling.answer();
        assert_eq!(run.line(), "");
        let (code, words) = run.end();
        assert_eq!(code, Some(if name == "ended" { 143 } else { 217 }), "{words}");
        assert!(!words.contains("\"started\""), "{words}");
    }
    let ends: Vec<String> = scene.runs().into_iter().filter(|line| line != "start").collect();
    assert!(ends[0] == "signal 15" && ends[1] == "exit 6" && ends[2].starts_with("violation"), "{ends:?}");
}

#[test]
fn a_look_that_does_not_come_back_is_a_finding() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let Some(machine) = Machine::of(&scene) else { return };
    let Some(stalling) = Stalling::on(&scene.path("stalling"), "modules", Vec::new(), 0) else { return };
    let mut run = machine.run("late", &policy(600, 300, "kill", &[]));
    let family = run.family();
    let began = Instant::now();
    machine.is_at("modules", &scene.path("stalling/modules"));
    stalling.stalls();
    let found = run.finding("monitor-blind");
    let took = began.elapsed().as_secs();
    assert!(LATE.contains(&(took + 1)), "{took} s: {found}");
    let (place, reaction) = (found["finding"]["where"].as_str(), found["reaction"].as_str());
    assert_eq!((place, reaction), (Some("looks"), Some("kill")), "{found}");
    family.ended();
    stalling.answer();
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert_eq!(logged(&scene), ["monitor-blind", "kill", "violation"]);
}

#[test]
fn a_module_that_the_kernel_loads_is_seen() {
    let Some(scene) = Scene::new() else { return };
    let Some(machine) = Machine::of(&scene) else { return };
    let mut run = machine.run("module", &policy(600, 300, "kill", &[]));
    machine.is("modules", "rootkit 16384 0 - Live 0x0\next4 1 0 - Live 0x0\n");
    let found = run.finding("kernel-module-loaded");
    let (place, reaction) = (found["finding"]["where"].as_str(), found["reaction"].as_str());
    assert_eq!((place, reaction), (Some("rootkit"), Some("kill")), "{found}");
    assert_eq!((found["severity"].as_str(), found["accepted"].as_bool()), (Some("medium"), Some(false)), "{found}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    assert_eq!(logged(&scene), ["kernel-module-loaded", "kill", "violation"]);
}

#[test]
fn a_look_that_fails_keeps_what_it_found() {
    let Some(scene) = Scene::new() else { return };
    let Some(machine) = Machine::of(&scene) else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let script = format!(
        "/bin/busybox httpd -f -p {free} & echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000 & read x; exit 6"
    );
    let mut run = machine.runs("half", &policy(600, 300, "alert", &[]), &script);
    assert_eq!(run.finding("listening-socket")["finding"]["where"], free.to_string());
    machine.is("unseen", "");
    let found = run.finding("monitor-blind");
    assert!(found["finding"]["what"].as_str().unwrap().contains("cannot be looked at"), "{found}");
    // A change of the machine is seen once, by the look after it.
    machine.is("modules", "rootkit 16384 0 - Live 0x0\next4 1 0 - Live 0x0\n");
    assert_eq!(run.finding("kernel-module-loaded")["finding"]["where"], "rootkit");
    run.say("go");
    assert_eq!(run.finding("process-not-in-image")["finding"]["where"], "/tmp");
    std::fs::remove_file(scene.path("unseen")).unwrap();
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(6), "{words}");
    assert_eq!(words.matches("\"kind\":\"monitor-blind\"").count(), 1, "told once: {words}");
}

#[test]
fn a_clock_that_is_set_is_seen() {
    let Some(scene) = Scene::new() else { return };
    let Some(machine) = Machine::of(&scene) else { return };
    let mut run = machine.run("clock", &policy(600, 300, "freeze", &["time-jump"]));
    for (ahead, by) in [("-3600", -3600_i64), ("0", 3600), ("2", 2)] {
        machine.is("ahead", ahead);
        let found = run.finding("time-jump");
        let what = found["finding"]["what"].as_str().unwrap();
        let said = what.strip_prefix("the clock was set by ").and_then(|rest| rest.strip_suffix(" s"));
        // Both clocks are read one after the other.
        assert!((said.unwrap().parse::<i64>().unwrap() - by).abs() <= 1, "{found}");
        assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(true), Some("alert")), "{found}");
    }
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(6), "{words}");
    assert_eq!(words.matches("\"kind\":\"time-jump\"").count(), 3, "one that goes on as it is, is not set: {words}");
}

/// Between a host and its verifier: it can be cut and mended.
struct Wire {
    port: u16,
    state: Arc<Mutex<(bool, Vec<TcpStream>)>>,
}

impl Wire {
    fn to(url: &str) -> Self {
        let to: u16 = url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new((true, Vec::new())));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = shared.lock().unwrap();
                let (true, Ok(server)) = (state.0, TcpStream::connect(("127.0.0.1", to))) else { continue };
                let pass = |from: &TcpStream, to: &TcpStream| {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(n @ 1..) = from.read(&mut bytes) {
                            if to.write_all(&bytes[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                };
                pass(&client, &server);
                pass(&server, &client);
                state.1.extend([client, server]);
            }
        });
        Self { port, state }
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = false;
        for stream in state.1.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.state.lock().unwrap().0 = true;
    }
}

/// The verifier's word, sent while it is heard and while it is not.
#[test]
fn what_the_verifier_says_reaches_a_run_that_is_under_way() {
    let Some(scene) = Scene::new() else { return };
    let wire = Wire::to(&scene.verifier.url);
    scene.write_config(&format!("verifier = \"https://127.0.0.1:{}\"\n", wire.port));
    let host = scene.verifier.ask(Request::HostList {})["hosts"][0]["host"].as_str().unwrap().to_owned();
    let state = |state| {
        scene.verifier.ask(Request::HostState { host: host.clone(), state, reason: "a drill".into() });
    };
    for lost in [false, true] {
        // Nothing else tells it: the next attestation is an hour away.
        let name = format!("told-{lost}");
        let mut run = Watched::new(&scene, &name, &policy(7200, 3600, "alert", &[]), "echo ready; read x; exit 4");
        let workload = scene.owner.image(&format!("{name}.sif")).binding().workload;
        run.connected(true);
        let told = |run: &mut Watched, what: &str, send: &dyn Fn()| {
            if lost {
                wire.cut();
                run.connected(false);
            }
            send();
            wire.mend();
            let found = run.finding("revoked");
            assert!(found["finding"]["what"].as_str().unwrap().contains(what), "{what}: {found}");
            assert_eq!((found["accepted"].as_bool(), found["reaction"].as_str()), (Some(false), Some("alert")));
        };
        // Another workload than this one.
        let other = scene.owner.image("app.sif").binding().workload;
        scene.verifier.ask(Request::WorkloadWithdraw { workload: other });
        told(&mut run, "withdrew the workload", &|| {
            scene.verifier.ask(Request::WorkloadWithdraw { workload });
        });
        told(&mut run, "suspended this host", &|| state(HostState::Suspended));
        state(HostState::Active);
        run.say("go");
        let (code, words) = run.end();
        assert_eq!(code, Some(4), "{words}");
        assert_eq!(words.matches("\"kind\":\"revoked\"").count(), 2, "each once: {words}");
    }
    assert_eq!(logged(&scene).iter().filter(|line| *line == "revoked").count(), 4);
    // For good: it is not even let in again to hear it.
    let mut run = Watched::new(&scene, "revoked", &policy(7200, 3600, "kill", &[]), "echo ready; sleep 1000");
    let family = run.family();
    run.connected(true);
    wire.cut();
    run.connected(false);
    state(HostState::Revoked);
    wire.mend();
    let found = run.finding("revoked");
    assert!(found["finding"]["what"].as_str().unwrap().contains("revoked this host"), "{found}");
    let (code, words) = run.end();
    assert_eq!(code, Some(217), "{words}");
    family.ended();
}

/// Who starts a run tidies up what another one could not.
#[test]
fn the_cgroup_of_a_killed_supervisor_is_removed_by_the_next_start() {
    let Some(scene) = Scene::new() else { return };
    let run =
        Watched::new(&scene, "killed", &policy(600, 300, "kill", &[]), "(setsid sleep 1001 &); echo ready; sleep 1000");
    let Some(cgroup) = run.cgroup() else { return println!("skipped: {}", run.started["group"]) };
    let family = run.family();
    assert!(cgroup.exists());
    family.0[0].kill();
    assert_eq!(run.end().0, None);
    family.all_gone();
    assert!(scene.exec(&["cat", "/secret.txt"]).status.success());
    assert!(!cgroup.exists());
    assert_eq!(scene.runs(), ["start", "lost: its supervisor was killed", "start", "exit 0"]);
}
