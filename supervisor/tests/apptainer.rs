//! Runs under a real Apptainer, held against what it does by itself with the same root file system.
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
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::processes::{Family, signal};
use support::secrets::Secrets;
use support::{SECRET, Scene, Started, failed, stderr, stdout};

/// A scene, the real Apptainer, and the plain squashfs that it runs by itself.
struct Pair {
    scene: Scene,
    apptainer: PathBuf,
    plain: PathBuf,
}

impl Pair {
    fn new() -> Option<Self> {
        let apptainer = support::apptainer()?;
        let scene = Scene::new()?;
        // A runscript, as images have it.
        let rootfs = scene.owner.path("rootfs");
        std::fs::create_dir_all(rootfs.join(".singularity.d")).unwrap();
        let script = rootfs.join(".singularity.d/runscript");
        std::fs::write(&script, "#!/bin/sh\necho \"script: $*\"\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(scene.owner.protect(&rootfs, "script.sif", &[]).status.success());
        scene.owner.register(&scene.verifier, "script.sif");
        let plain = scene.path("script.sqfs");
        let mut made = Command::new("mksquashfs");
        made.arg(rootfs).arg(&plain).args(["-all-root", "-quiet", "-no-progress"]).stdout(Stdio::null());
        assert!(made.status().unwrap().success());
        Some(Self { scene, apptainer, plain })
    }

    fn ours(&self, verb: &str, flags: &[&str], arguments: &[&str]) -> Command {
        let runtime = self.apptainer.display().to_string();
        let options = [&["--runtime", runtime.as_str()], flags].concat();
        self.scene.command(verb, &options, &self.scene.owner.path("script.sif"), arguments)
    }

    fn theirs(&self, verb: &str, flags: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.apptainer);
        command.args([verb, "--userns"]).args(flags);
        if rustix::process::geteuid().is_root() {
            command.arg("--no-privs");
        }
        command.arg(&self.plain).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child = command.spawn().unwrap();
    // Some do not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn as_plain_apptainer_does() {
    let Some(pair) = Pair::new() else { return };
    let data = pair.scene.path("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "bound\n").unwrap();
    std::fs::write(data.join("env"), "FROM_FILE=yes\n").unwrap();
    let bind = format!("{}:/data:ro", data.display());
    let new_place = format!("{}:/made/for/it", data.display());
    let env_file = data.join("env").display().to_string();
    let cases: &[(&str, &[&str], &[&str], &str)] = &[
        ("exec", &[], &["cat", "/secret.txt"], ""),
        ("exec", &[], &["sh", "-c", "cat; echo err >&2; exit 7"], "through\n"),
        ("exec", &[], &["sh", "-c", "id -u; id -g; pwd; echo $HOME; echo \"$1\"", "x", "a  b\n'"], ""),
        ("exec", &[], &["sh", "-c", "kill -TERM $$"], ""),
        ("exec", &[], &["/bin/nothing"], ""),
        ("exec", &["-B", &bind, "--pwd", "/data"], &["sh", "-c", "cat file; pwd; echo x > new"], ""),
        ("exec", &["--bind", &new_place], &["cat", "/made/for/it/file"], ""),
        ("exec", &["--env", "A=b c", "--env-file", &env_file], &["sh", "-c", "echo $A $FROM_FILE $FROM_OUTSIDE"], ""),
        ("exec", &["-e", "--env=A=1"], &["sh", "-c", "echo $A:$FROM_OUTSIDE"], ""),
        (
            "exec",
            &["--containall"],
            &["sh", "-c", "ps > /tmp/list; wc -l < /tmp/list; echo x > /tmp/new && cat /tmp/new"],
            "",
        ),
        ("exec", &["--no-home", "-c"], &["sh", "-c", "ls /tmp; echo $HOME"], ""),
        (
            "exec",
            &["--net", "--network=none", "--uts", "--hostname", "inside"],
            &["sh", "-c", "hostname; cat /proc/net/route"],
            "",
        ),
        ("run", &[], &["a", "--b"], ""),
        ("shell", &[], &[], "echo in a shell\nexit 5\n"),
    ];
    for (verb, flags, arguments, input) in cases {
        let run = |mut command: Command| {
            command.env("FROM_OUTSIDE", "seen").current_dir(pair.scene.dir.path());
            with_input(command, input)
        };
        let (ours, theirs) = (run(pair.ours(verb, flags, arguments)), run(pair.theirs(verb, flags, arguments)));
        let of = |out: &Output| (out.status.code(), stdout(out));
        assert_eq!(of(&ours), of(&theirs), "{verb} {flags:?} {arguments:?}\n{}\n{}", stderr(&ours), stderr(&theirs));
    }
    // The secret is there, the host's state is not, and nobody has more privileges than plain users in a namespace.
    let state = pair.scene.path("host").display().to_string();
    let script = format!("cat /secret.txt; ls -A {state}; grep -E '^(CapEff|CapPrm):' /proc/self/status");
    let out = with_input(pair.ours("exec", &[], &["sh", "-c", &script]), "");
    let none = "0000000000000000";
    assert_eq!(stdout(&out), format!("{SECRET}.own\nimage\nCapPrm:\t{none}\nCapEff:\t{none}\n"), "{}", stderr(&out));
}

#[test]
fn a_quiet_runtime_says_nothing_but_errors() {
    let Some(pair) = Pair::new() else { return };
    // It says that another name of this variable is preferred.
    let run = |first: &[&str], script: &str| {
        let line = pair.ours("exec", &[], &["sh", "-c", script]);
        let mut command = Command::new(support::SUPERVISOR);
        command.args(first).args(line.get_args()).env("SINGULARITYENV_A", "1").stdin(Stdio::null());
        command.output().unwrap()
    };
    let script = "cat /secret.txt; echo mine >&2";
    let out = run(&[], script);
    assert!(stdout(&out) == SECRET && stderr(&out).contains("APPTAINERENV_A is preferred"), "{}", stderr(&out));
    let out = run(&["-q"], script);
    assert_eq!((stdout(&out).as_str(), stderr(&out).as_str()), (SECRET, "mine\n"));
    let out = run(&["--quiet"], "exec /bin/nothing");
    assert!(!out.status.success() && stderr(&out).contains("/bin/nothing"), "{}", stderr(&out));
}

#[test]
fn flags_that_break_the_promise_are_refused_by_name() {
    let Some(pair) = Pair::new() else { return };
    for (flags, word) in [
        (&["--writable"][..], "--writable is refused"),
        (&["--pem-path", "key.pem"][..], "--pem-path is refused"),
        (&["-Cf"][..], "--fakeroot is refused"),
        (&["--memory", "1G"][..], "--memory is refused"),
        (&["--colour"][..], "--colour"),
    ] {
        failed(&pair.ours("exec", flags, &["true"]).output().unwrap(), 200, &[word, "hint: "]);
    }
    let out = pair.ours("exec", &[], &["true"]).env("APPTAINER_UNSQUASH", "1").output().unwrap();
    failed(&out, 200, &["APPTAINER_UNSQUASH is refused", "unset"]);
    assert_eq!(pair.scene.runs(), Vec::<String>::new(), "nothing was released");
    // Keys for other images do not reach a workload's environment.
    let mut command = pair.ours("exec", &[], &["sh", "-c", "echo ${APPTAINER_ENCRYPTION_PASSPHRASE:-none}"]);
    let out =
        with_input(std::mem::replace(command.env("APPTAINER_ENCRYPTION_PASSPHRASE", "x"), Command::new("true")), "");
    assert_eq!(stdout(&out), "none\n", "{}", stderr(&out));
}

const ESCAPES: &str = "(setsid sleep 1001 &) ; (setsid sh -c 'sleep 1002; sleep 1003' &) ; echo ready; sleep 1000";

#[test]
fn its_processes_end_with_the_supervisor_and_the_image_has_no_path() {
    let Some(pair) = Pair::new() else { return };
    let runtime = pair.apptainer.display().to_string();
    for (victim, code) in [("supervisor", None), ("decryptor-process", Some(218)), ("squashfuse", Some(212))] {
        let run = pair.scene.started_with(&["--runtime", &runtime], ESCAPES);
        let family = Family::of(run.pid());
        for word in ["decryptor-process", "stage-process", "squashfuse", "bwrap", "Apptainer runtime", "1000"] {
            family.find(word);
        }
        // No mount of the decryptor's is left anywhere; where its place was is an empty folder.
        for process in &family.0 {
            let mounts = std::fs::read_to_string(process.file("mountinfo")).unwrap();
            assert!(!mounts.contains("fuse countersign"), "{}: {mounts}", process.command);
            let place = process.file("root").join(pair.scene.path("host/.own").strip_prefix("/").unwrap());
            let files = std::fs::read_dir(place).map(|entries| entries.count()).unwrap_or(0);
            assert_eq!(files, 0, "{}", process.command);
        }
        if victim == "supervisor" {
            family.0[0].kill()
        } else {
            family.find(victim).kill()
        }
        let (status, _, err) = run.end();
        assert_eq!(status, code, "{victim}: {err}");
        family.all_gone();
    }
}

/// Ends a run for whatever is found.
const KILLS: &str = r#"package countersign.workload

default verdict := {"allow": false, "reasons": [], "obligations": {"on_violation": "kill"}}

verdict := {"allow": true, "reasons": [], "obligations": {"lease_s": 3600, "reattest_s": 1800}} if input.purpose == "release"
"#;

#[test]
fn it_is_watched_and_none_of_its_processes_has_the_key() {
    if !support::is_root() {
        return;
    }
    let Some(pair) = Pair::new() else { return };
    let scene = &pair.scene;
    let (image, passphrase) = scene.with_passphrase("watched.sif", KILLS);
    let secrets = Secrets::new(&scene.owner.volume_key_by("watched.sif", &passphrase), &passphrase);
    let runtime = pair.apptainer.display().to_string();
    let script = "echo ready; read x; cp /bin/busybox /tmp/sleep; /tmp/sleep 1000";
    for more in [&[][..], &["--underlay"]] {
        let options = [&["--runtime", runtime.as_str(), "--containall", "--status-fd", "2"], more].concat();
        let mut run = Started::new(scene.command("exec", &options, &image, &["sh", "-c", script]));
        let family = Family::of(run.pid());
        secrets.only_in_the_decryptor(&family);
        run.say("go");
        let (code, _, err) = run.end();
        assert_eq!(code, Some(217), "{more:?}: {err}");
        let found = "error: the run was ended: process-not-in-image";
        assert!(err.contains(found) && err.contains("/tmp/sleep"), "{more:?}: {err}");
        family.all_gone();
    }
}

/// As [`KILLS`], but what cannot be told from the image may run if it is this program.
const ACCEPTS_BUSYBOX: &str = r#"
verdict := {"allow": true, "reasons": [], "obligations": {}} if {
	input.purpose == "run"
	every finding in input.run.findings {
		finding.kind == "process-not-in-image"
		finding.where == "/"
		finding.executable == "/bin/busybox"
	}
}
"#;

#[test]
fn what_is_written_to_a_writable_root_is_not_the_image() {
    let Some(pair) = Pair::new() else { return };
    let scene = &pair.scene;
    let runtime = pair.apptainer.display().to_string();
    let written = pair.scene.path("written");
    std::fs::create_dir(&written).unwrap();
    let written = written.display().to_string();
    let image = scene.with_policy("accepts", &format!("{KILLS}{ACCEPTS_BUSYBOX}"));
    let strict = scene.with_policy("kills", KILLS);
    let script = "echo ready; read x; /bin/busybox mkdir /new; cp /bin/busybox /new/sleep; exec /new/sleep 1000";
    for more in [&["--writable-tmpfs"][..], &["--overlay", &written]] {
        let options = [&["--runtime", runtime.as_str(), "--containall", "--status-fd", "2"], more].concat();
        let mut run = Started::new(scene.command("exec", &options, &image, &["sh", "-c", script]));
        let family = Family::of(run.pid());
        run.say("go");
        let (code, _, err) = run.end();
        assert_eq!(code, Some(217), "{more:?}: {err}");
        let found = "error: the run was ended: process-not-in-image";
        assert!(err.contains(found) && err.contains("/new/sleep"), "{more:?}: {err}");
        family.all_gone();
        // Nobody can say that even the first program is the image's.
        let mut command = scene.command("exec", &options, &strict, &["sleep", "1000"]);
        let out = command.stdin(Stdio::null()).output().unwrap();
        failed(&out, 217, &["process-not-in-image", "cannot be shown to be the image's"]);
    }
}

#[test]
fn a_signal_does_what_it_does_to_plain_apptainer() {
    let Some(pair) = Pair::new() else { return };
    // In the place where Apptainer is installed: signals go to what was started, and the wrapper is no part of it.
    let script = r#"set -u
        run() {
            "$@" > "$OUT" 2> /dev/null &
            until grep -q ready "$OUT"; do sleep 0.05; done
            kill -$signal $!
            wait $!
            echo "code $?"
            rm "$OUT"
        }
        trap='trap "exit 9" TERM; trap "exit 8" USR1; echo ready; while :; do sleep 0.01; done'
        for signal in TERM USR1; do
            run apptainer exec --userns "$1" sh -c "$trap"
            run "$0" exec --runtime apptainer --config "$2" --signer "$3" "$4" sh -c "$trap"
        done"#;
    let mut all = Command::new(&pair.apptainer);
    all.env("COUNTERSIGN_ROOT_PROGRAM", "/bin/bash").env("OUT", pair.scene.path("out"));
    all.args(["-c", script, support::SUPERVISOR]).arg(&pair.plain).arg(pair.scene.path("attest.toml"));
    all.arg(pair.scene.owner.path("owner.pub.pem")).arg(pair.scene.owner.path("script.sif"));
    let out = all.stdin(Stdio::null()).output().unwrap();
    assert_eq!(stdout(&out), "code 9\ncode 9\ncode 8\ncode 8\n", "{}", stderr(&out));
}

#[test]
fn a_key_that_stops_it_stops_its_supervisor_too() {
    use std::io::BufRead as _;
    let Some(pair) = Pair::new() else { return };
    let (mut keyboard, terminal) = support::terminal();
    let script = r#"exec setsid --ctty --wait bash -mc '"$@"; echo "stopped $?"; read x; fg; echo "ended $?"' bash \
        "$0" exec --runtime apptainer --config "$1" --signer "$2" "$3" sh -c 'while :; do sleep 0.05; echo tick; done'"#;
    let mut all = Command::new(&pair.apptainer);
    all.env("COUNTERSIGN_ROOT_PROGRAM", "/bin/bash");
    all.args(["-c", script, support::SUPERVISOR]).arg(pair.scene.path("attest.toml"));
    all.arg(pair.scene.owner.path("owner.pub.pem")).arg(pair.scene.owner.path("script.sif"));
    let again = || terminal.try_clone().unwrap();
    let mut child = all.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(keyboard.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut shows = |words: &str| assert!(lines.any(|line| line.contains(words)), "{words}");
    shows("tick");
    keyboard.write_all(b"\x1a").unwrap();
    shows("stopped 148");
    keyboard.write_all(b"\n").unwrap();
    shows("tick");
    keyboard.write_all(b"\x03").unwrap();
    shows("ended 130");
    child.wait().unwrap();
}

#[test]
fn flags_that_policy_demands() {
    let Some(pair) = Pair::new() else { return };
    let image = pair.scene.with_policy("strict", support::DEMANDS_ALL);
    let runtime = pair.apptainer.display().to_string();
    let run = |flags: &[&str], script: &str| {
        let options = [&["--runtime", runtime.as_str()], flags].concat();
        let mut command = pair.scene.command("exec", &options, &image, &["sh", "-c", script]);
        command.env("FROM_OUTSIDE", "seen").current_dir(pair.scene.dir.path());
        command.stdin(Stdio::null()).output().unwrap()
    };
    // No network, nothing of the host's files or environment, own processes.
    let data = pair.scene.path("data");
    std::fs::create_dir(&data).unwrap();
    let script =
        format!("{}; ls {} 2> /dev/null; echo \"$FROM_OUTSIDE.\"; echo $A", support::INTERFACES, data.display());
    let out = run(&["--env", "A=1"], &script);
    assert_eq!(stdout(&out), "lo\n.\n1\n", "{}", stderr(&out));
    let bind = format!("{}:/data", data.display());
    for (flags, words) in [
        (&["--bind", bind.as_str()][..], "--bind="),
        (&["--net", "--network", "bridge"][..], "--network=bridge is refused"),
        (&["--nv"][..], "--nv is refused"),
        (&["--no-privs=false"][..], "--no-privs=false is refused"),
    ] {
        failed(&run(flags, "true"), 200, &[words, "policy that released the key demands", "hint: leave the flag away"]);
    }
    let options = ["--runtime", runtime.as_str()];
    let out = pair.scene.command("exec", &options, &image, &["true"]).env("APPTAINER_BIND", "/data").output().unwrap();
    failed(&out, 200, &["APPTAINER_BIND is refused", "unset APPTAINER_BIND"]);
    assert_eq!(pair.scene.runs(), ["start", "exit 0"], "nothing else was started");
}

#[test]
fn a_runtime_that_is_missing_too_old_or_no_runtime() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let script = scene.path("old");
    let run = |runtime: &Path| {
        let runtime = runtime.display().to_string();
        scene.command("exec", &["--runtime", &runtime], &image, &["true"]).output().unwrap()
    };
    failed(&run(Path::new("/nonexistent/apptainer")), 211, &["no such program", "hint: "]);
    for (answer, word) in [
        ("apptainer version 1.2.5", "1.3 or newer"),
        ("singularity version 3.11.5", "4.0 or newer"),
        ("no runtime", "neither Apptainer nor SingularityCE"),
    ] {
        std::fs::write(&script, format!("#!/bin/sh\necho {answer}\n")).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        failed(&run(&script), 211, &[word, "--runtime builtin"]);
    }
    let out =
        scene.command("exec", &["--runtime", "apptainer"], &image, &["true"]).env("PATH", "/nonexistent").output();
    failed(&out.unwrap(), 211, &["apptainer is not installed"]);
    assert_eq!(scene.runs(), Vec::<String>::new(), "nothing was released");
}

/// The command lines of helpers and workloads that name this place.
fn of_runs(place: &str) -> Vec<String> {
    let command = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let commands = std::fs::read_dir("/proc").unwrap().map(|entry| command(entry.unwrap()));
    let commands = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
    let words = ["bwrap", "squashfuse", "runtime-process", "apptainer", "touch"];
    commands.filter(|command| command.contains(place) && words.iter().any(|word| command.contains(word))).collect()
}

#[test]
fn a_start_that_cannot_be_logged_runs_nothing_and_leaves_nothing() {
    let Some(apptainer) = support::apptainer() else { return };
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let runs = scene.path("host/runs");
    let ran = scene.path("ran");
    std::fs::write(&runs, "no folder").unwrap();
    let place = scene.dir.path().display().to_string();
    for runtime in ["builtin".to_owned(), apptainer.display().to_string()] {
        let bind = format!("{place}:/tmp");
        let command = ["touch", "/tmp/ran"];
        let run =
            || scene.command("exec", &["--runtime", &runtime, "--bind", &bind], &image, &command).output().unwrap();
        failed(&run(), 201, &["runs", "hint: "]);
        assert!(!ran.exists(), "{runtime}");
        // squashfuse ends with the stage, which the supervisor has waited for.
        let began = Instant::now();
        loop {
            let left = of_runs(&place);
            if left.is_empty() {
                break;
            }
            assert!(began.elapsed().as_secs() < 60, "{runtime}: {left:?}");
        }
        assert!(!ran.exists(), "{runtime}: nor later");
    }
    assert_eq!(scene.runs(), Vec::<String>::new());
    std::fs::remove_file(&runs).unwrap();
    let out = scene.command("exec", &["--runtime", "builtin"], &image, &["cat", "/secret.txt"]).output().unwrap();
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
}

#[test]
fn no_key_is_asked_for_before_the_runtime_has_said_its_version() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let (script, asked, go) = (scene.path("slow"), scene.path("asked"), scene.path("go"));
    let text = format!(
        "#!/bin/sh\necho >'{}'\nwhile ! [ -e '{}' ]; do sleep 0.01; done\necho apptainer version 1.2.5\n",
        asked.display(),
        go.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let log = || std::fs::read(scene.path("host/run.log")).unwrap_or_default();
    let before = log();
    let start = || {
        let runtime = script.display().to_string();
        let child = scene.command("exec", &["--runtime", &runtime], &image, &["true"]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        // Everything else is ready then: squashfuse waits for the decryptor.
        let pid = i32::try_from(child.id()).unwrap();
        while !asked.exists() || !Family::of(pid).0.iter().any(|process| process.command.contains("squashfuse")) {
            assert!(Instant::now() < until, "the helpers do not get ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(log(), before, "a receipt is the trace of a key");
        (child, Family::of(pid))
    };
    // Whoever waits for it can be interrupted.
    let (mut child, family) = start();
    signal(i32::try_from(child.id()).unwrap(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    family.all_gone();
    std::fs::remove_file(&asked).unwrap();
    let (child, family) = start();
    std::fs::write(&go, "").unwrap();
    failed(&child.wait_with_output().unwrap(), 211, &["1.3 or newer", "--runtime builtin"]);
    family.all_gone();
    assert_eq!(log(), before);
    // One that takes its time: the release that was ready is given up, so that others get the TPM, and done again.
    let text = "#!/bin/sh\nif [ \"$1\" = --version ]; then sleep 1.5; echo apptainer version 1.4.5; exit; fi\n\
        for word; do if [ -f \"$word/secret.txt\" ]; then exec cat \"$word/secret.txt\"; fi; done\n";
    std::fs::write(&script, text).unwrap();
    let runtime = script.display().to_string();
    let out = scene.command("exec", &["--runtime", &runtime], &image, &["true"]).output().unwrap();
    assert_eq!(stdout(&out), SECRET, "{}", stderr(&out));
    assert_eq!(scene.runs(), ["start", "exit 0"]);
}

#[test]
fn fifty_starts_at_once_on_one_tpm() {
    let Some(pair) = Pair::new() else { return };
    let script = |n: u32| format!("cat /secret.txt; exit {n}");
    let starts: Vec<_> = (0..50)
        .map(|n| pair.ours("exec", &[], &["sh", "-c", &script(n)]).stdin(Stdio::null()).spawn().unwrap())
        .collect();
    for (n, child) in starts.into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), stdout(&out).as_str()), (i32::try_from(n).ok(), SECRET), "{}", stderr(&out));
    }
    assert_eq!(std::fs::read_dir(pair.scene.path("host/queue")).unwrap().count(), 0);
    let mut runs = pair.scene.runs();
    runs.sort();
    let mut all: Vec<String> = (0..50).map(|n| format!("exit {n}")).collect();
    all.extend(std::iter::repeat_n("start".to_owned(), 50));
    all.sort();
    assert_eq!(runs, all);
}

#[test]
fn its_own_tools_read_our_images() {
    let Some(apptainer) = support::apptainer() else { return };
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let apptainer = |arguments: &[&str]| Command::new(&apptainer).args(arguments).arg(&image).output().unwrap();
    let key = scene.owner.path("owner.pub.pem").display().to_string();
    let out = apptainer(&["verify", "--all", "--key", &key]);
    assert!(out.status.success(), "{}{}", stdout(&out), stderr(&out));
    let other = support::Owner::with_image(scene.path("other")).path("owner.pub.pem").display().to_string();
    let out = apptainer(&["verify", "--all", "--key", &other]);
    assert!(!out.status.success(), "{}", stdout(&out));
    let out = apptainer(&["sif", "list"]);
    assert!(out.status.success() && stdout(&out).contains("Encrypted"), "{}{}", stdout(&out), stderr(&out));
}

/// Refuses every release.
const REFUSES: &str = r#"package countersign.workload

verdict := {"allow": false, "reasons": [{"id": "no", "message": "not today", "subject": ""}], "obligations": {}}
"#;

#[test]
fn a_runtime_that_was_started_early_sees_nothing_before_it_may() {
    let Some(scene) = Scene::new() else { return };
    let (script, began, saw) = (scene.path("early"), scene.path("began"), scene.path("saw"));
    let runtime = script.display().to_string();
    let write = |then: &str| {
        let head = "#!/bin/sh\nif [ \"$1\" = --version ]; then echo apptainer version 1.4.5; exit; fi\n";
        let text = format!("{head}echo >'{}'\n{then}\n", began.display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let run = |image: &Path| {
        let _ = std::fs::remove_file(&began);
        let child = scene.command("exec", &["--runtime", &runtime], image, &["true"]).spawn().unwrap();
        let family = Family::of(i32::try_from(child.id()).unwrap());
        (child.wait_with_output().unwrap(), family)
    };
    // It looks for its image at once, and at all that is beside it.
    let look = "for word; do case \"$word\" in */image/*) ls -d \"$word\" && cat \"$word/secret.txt\" && echo >'SAW';; esac; done";
    write(&look.replace("SAW", &saw.display().to_string()));
    let refused = scene.with_policy("refuses", REFUSES);
    let (out, family) = run(&refused);
    failed(&out, 209, &["not today"]);
    assert!(!saw.exists() && !stdout(&out).contains("image"), "{}", stdout(&out));
    family.all_gone();
    assert_eq!(scene.runs(), Vec::<String>::new());
    let (out, _) = run(&scene.owner.path("app.sif"));
    assert!(out.status.success() && saw.exists() && stdout(&out).ends_with(SECRET), "{}{}", stdout(&out), stderr(&out));
    assert!(began.exists());
    assert_eq!(scene.runs(), ["start", "exit 0"]);
    // Also where it is started when the root is there already, as policy demands flags: its first place is covered.
    write("cat /proc/self/mountinfo");
    let strict = scene.with_policy("strict", support::DEMANDS_ALL);
    let (out, _) = run(&strict);
    let at = |place: &str| {
        stdout(&out).lines().filter(|line| line.contains(&format!("/{place} "))).collect::<Vec<_>>().join("")
    };
    assert!(at("host/image/strict.sif").contains("fuse.squashfuse"), "{}{}", stdout(&out), stderr(&out));
    assert!(at("host/.own").contains("- tmpfs tmpfs "), "{}", stdout(&out));
    let before = scene.runs().len();
    // One that does not get as far as its image says why, as it does alone.
    write("echo 'FATAL: no' >&2; exit 7");
    let (out, _) = run(&scene.owner.path("app.sif"));
    assert!(out.status.code() == Some(7) && stderr(&out).contains("FATAL: no"), "{}", stderr(&out));
    assert_eq!(scene.runs()[before..], ["start", "exit 7"]);
    // A start that is interrupted while it waits there leaves none of it.
    write(&format!("sleep 1000 & ls \"{}\"/image/*; wait", scene.path("host").display()));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    scene.write_config(&format!("verifier = \"https://{}\"\n", silent.local_addr().unwrap()));
    let _ = std::fs::remove_file(&began);
    let mut child =
        scene.command("exec", &["--runtime", &runtime], &scene.owner.path("app.sif"), &["true"]).spawn().unwrap();
    while !began.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let family = Family::of(i32::try_from(child.id()).unwrap());
    family.find("runtime-process");
    signal(i32::try_from(child.id()).unwrap(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    family.all_gone();
}
