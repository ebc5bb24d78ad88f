//! Who is no part of a container: programs in disguise, and processes that are put into it; and one in which nothing happens.
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

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::processes::{Family, Process};
use support::watched::{Watched, logged, policy};
use support::{Scene, as_nobody, is_root};

/// Who a process says it is, and what it runs.
fn is(pid: u64) -> [String; 3] {
    let read =
        |name: &str| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned();
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    [read("comm").trim_end().to_owned(), read("cmdline").replace('\0', " "), executable.display().to_string()]
}

#[test]
fn no_name_is_a_disguise() {
    let Some(scene) = Scene::new() else { return };
    // Another name than its file's: as prctl(PR_SET_NAME) gives it, and as its own first argument.
    let script = "cp /bin/busybox /tmp/sh; cp /bin/busybox /tmp/x; echo ready; read x
        /tmp/sh -c 'echo bwrap > /proc/self/comm; while :; do /bin/sleep 0.1; done' & read x
        /bin/busybox start-stop-daemon -S -b -x /tmp/x -a sleep -- 1001; read x; exit 3";
    let mut run = Watched::new(&scene, "names", &policy(600, 300, "alert", &[]), script);
    for (executable, name, arguments) in [("/tmp/sh", "bwrap", "/tmp/sh -c "), ("/tmp/x", "x", "sleep 1001 ")] {
        run.say("go");
        let found = run.status(|line| line["detail"]["finding"]["executable"] == executable)["detail"].clone();
        assert_eq!(found["finding"]["kind"], "process-not-in-image", "{found}");
        assert_eq!(found["finding"]["where"], "/tmp", "as a look has it, and an announcement: {found}");
        let pid = found["finding"]["pid"].as_u64().unwrap();
        // It is told while it executes its program, when it has no arguments yet and may still have its old name.
        let as_it_calls_itself = |[comm, command, _]: &[String; 3]| comm == name && command.starts_with(arguments);
        let (began, mut seen) = (Instant::now(), is(pid));
        while !as_it_calls_itself(&seen) && began.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
            seen = is(pid);
        }
        assert!(as_it_calls_itself(&seen) && seen[2] == executable, "{seen:?}");
    }
    run.say("go");
    let (code, words) = run.end();
    assert_eq!(code, Some(3), "{words}");
    // One rule for both ways of seeing it: each is one finding.
    for executable in ["/tmp/sh", "/tmp/x"] {
        let told = words
            .lines()
            .filter(|line| line.contains("\"stage\":\"finding\"") && line.contains(&format!("{executable:?}")));
        assert_eq!(told.count(), 1, "{words}");
    }
}

/// Runs of one image: as root, as an ordinary user, under Apptainer.
fn each(scene: &Scene, image: &Path, script: &str, with: impl Fn(&str, Watched)) {
    let command = |more: &[&str]| {
        let options = [&["--status-fd", "2"], more].concat();
        scene.command("exec", &options, image, &["sh", "-c", script])
    };
    with("here", Watched::of(&mut command(&[])));
    if let Some(apptainer) = support::apptainer() {
        let apptainer = apptainer.display().to_string();
        with("Apptainer", Watched::of(&mut command(&["--runtime", &apptainer, "--containall"])));
    }
    if is_root() {
        with("an ordinary user", Watched::of(&mut scene.given_away(&command(&[]))));
    }
}

#[test]
fn an_idle_container_is_no_finding() {
    let Some(scene) = Scene::new() else { return };
    scene.write_config("monitor_interval_s = 1\n");
    let image = scene.with_policy("idle", &policy(600, 300, "kill", &[]));
    each(&scene, &image, "echo ready; read x; exit 5", |who, mut run| {
        std::thread::sleep(Duration::from_secs(6));
        run.say("go");
        let (code, words) = run.end();
        assert_eq!(code, Some(5), "{who}: {words}");
        assert!(!words.contains("\"stage\":\"finding\"") && !words.contains("\"warning\""), "{who}: {words}");
    });
    assert!(logged(&scene).iter().all(|line| line == "exit 5"), "{:?}", logged(&scene));
}

/// A child that is ended.
struct Intruder(Child);

impl Intruder {
    /// Those below it, once one of them runs this command line.
    fn processes(&self, command: &str) -> Vec<i64> {
        let began = Instant::now();
        loop {
            let family = Family::of(i32::try_from(self.0.id()).unwrap());
            if family.0.iter().any(|process| process.command.starts_with(command)) {
                return family.0.iter().skip(1).map(|process| process.pid.into()).collect();
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no {command}");
        }
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        // Before what it has started, whose end would be its own.
        Family::of(i32::try_from(self.0.id()).unwrap()).0.iter().for_each(Process::kill);
        let _ = self.0.wait();
    }
}

/// Puts one into the container who has left his parents: a child of the container's first process, and its own but for his cgroup.
fn orphan_is_found(who: &str, run: &mut Watched, nsenter: &Path, workload: i32) {
    let Some(cgroup) = run.cgroup() else { return };
    let mut command = Command::new(nsenter);
    command.args(["--target", &workload.to_string(), &format!("--user=/proc/{workload}/ns/user")]);
    command.args(["--preserve-credentials", "-m", "-p", "-i", "-n", "-u", "-C", "/bin/sh", "-c"]);
    command.arg("(/bin/busybox setsid /bin/busybox sleep 1999 </dev/null >/dev/null 2>&1 &)").stdin(Stdio::null());
    assert!(command.status().unwrap().success(), "{who}");
    let intruder = loop {
        let mut family = run.family();
        if let Some(at) = family.0.iter().position(|process| process.command == "/bin/busybox sleep 1999 ") {
            break family.0.swap_remove(at);
        }
    };
    let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert!(!inside.lines().any(|pid| pid == intruder.pid.to_string()), "{who}: {inside}");
    let stat = std::fs::read_to_string(intruder.file("stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().to_owned();
    let is_his =
        |finding: &Value| finding["kind"] == "new-namespace" && finding["pid"].as_i64() == Some(intruder.pid.into());
    let found = run.status(|line| is_his(&line["detail"]["finding"]))["detail"]["finding"].clone();
    assert_eq!(found["where"], format!("/proc/{parent}"), "{who}: {found}");
    assert_eq!(found["what"], "was put into the container's namespaces from outside", "{who}");
    intruder.kill();
    intruder.gone();
}

#[test]
fn whoever_is_put_into_the_container_is_found() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    scene.write_config("monitor_interval_s = 1\n");
    let image = scene.with_policy("intruders", &policy(600, 300, "alert", &[]));
    let nsenter = ["/usr/bin/nsenter", "/bin/nsenter"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let Some(nsenter) = nsenter else { return println!("skipped: nsenter is not installed") };
    each(&scene, &image, "sleep 1000 & echo ready; read x; exit 5", |who, mut run| {
        // What has just been forked is on its way to be this.
        let mut family = run.family();
        while !family.0.iter().any(|process| process.command.starts_with("sleep 1000")) {
            family = run.family();
        }
        let workload = family.0.iter().rev().find(|process| process.command.starts_with("sleep 1000")).unwrap().pid;
        let helper = family.0.iter().find(|process| process.command.starts_with("Apptainer runtime")).map(|it| it.pid);
        let stage = family.find("stage-process").pid;
        orphan_is_found(who, &mut run, &nsenter, workload);
        let mut number = 2000;
        let mut enters = |target: i32, namespaces: &[&str], what: &[&str]| {
            number += 1;
            // By the same user, each from a process of its own: what is found once of one is not told again of another that is the same.
            let mut command = if who == "an ordinary user" { as_nobody("sh") } else { Command::new("sh") };
            command.args(["-c", "\"$@\" & wait", "sh"]).arg(&nsenter);
            // He has privileges in what the stage has made, and so over all that was made in there.
            let user = if who == "an ordinary user" { stage } else { target };
            command.args(["--target", &target.to_string(), &format!("--user=/proc/{user}/ns/user")]);
            command.arg("--preserve-credentials").args(namespaces);
            command.args(["/bin/sleep", &number.to_string()]).stdin(Stdio::null());
            let intruder = Intruder(command.spawn().unwrap());
            // Who goes in, and whom it starts there.
            let pids = intruder.processes(&format!("/bin/sleep {number}"));
            // Its entrance first: who put it there, or where else it is.
            let mut missing = what.to_vec();
            while !missing.is_empty() {
                let found =
                    run.status(|line| line["detail"]["finding"]["pid"].as_i64().is_some_and(|pid| pids.contains(&pid)))
                        ["detail"]
                        .clone();
                let said = format!(
                    "{}: {}",
                    found["finding"]["kind"].as_str().unwrap(),
                    found["finding"]["what"].as_str().unwrap()
                );
                missing.retain(|words| !said.contains(words));
            }
            drop(intruder);
        };
        let put = "new-namespace: was put into the container's namespaces from outside";
        // Among its files and processes, with a program of the image's own.
        enters(workload, &["-m", "-p"], &[put]);
        // Where its files are, and nowhere else.
        enters(workload, &["-m"], &[put, "new-namespace: in another pid namespace"]);
        // With a program of the machine.
        enters(workload, &["-p"], &[put, "process-not-in-image", "new-namespace: in another mnt namespace"]);
        if let Some(helper) = helper {
            enters(helper, &["-m", "-p"], &[put]);
            enters(helper, &["-m"], &[put]);
            enters(helper, &["-p"], &[put]);
        }
        run.say("go");
        let (code, words) = run.end();
        assert_eq!(code, Some(5), "{who}: {words}");
    });
}
