//! Signals and terminals of whole runs: what a key, a shell or a batch system sends, and whom it reaches.
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
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::processes::signal;
use support::{SECRET, Scene, failed, stderr, stdout};

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
    let lives: Vec<_> = all().filter(support::processes::Process::lives).collect();
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

/// A shell's wait for its job.
const STOPPED: &str = "until jobs | grep -q Stopped; do sleep 0.1; done; jobs";

/// Under a runtime: what was continued in the foreground reads there again.
fn gets_its_terminal_back(scene: &Scene, runtime: &str) {
    let reader = scene.command("exec", &["--runtime", runtime], &scene.owner.path("app.sif"), &["sh", "-c", READER]);
    // Stopped by a key, continued in the background, where it must not read, and then in the foreground.
    let script = format!(
        "\"$@\"; echo \"stopped $?\"; bg; {STOPPED}; read x; fg; echo \"again $?\"; read x; fg; echo \"ended $?\""
    );
    let mut desk = support::Desk::new(&[], &script, &reader);
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
    let script = format!("\"$@\" & {STOPPED}; read x; fg; echo \"ended $?\"");
    let mut desk = support::Desk::new(&[], &script, &reader);
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
    let script = "trap 'echo told' INT; sh -c 'echo ready; exec busybox sleep 1000'";
    let program = scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-c", script]);
    let mut desk = support::Desk::new(&[], "true | \"$@\"; echo ended", &program);
    desk.shows("ready");
    desk.types("\x03");
    desk.shows("told");
    desk.shows("ended");
    desk.end();
}
