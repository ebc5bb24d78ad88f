//! Runs under attack: processes killed, images changed or exchanged, eyes on the key.
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

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use support::processes::{Family, Process};
use support::secrets::Secrets;
use support::{SECRET, SUPERVISOR, Scene, Started, as_nobody, failed, is_root, receive, send, stderr, stdout};

/// A workload that escapes from its shell: double fork, a session of its own.
const ESCAPES: &str = "(setsid sleep 1001 &) ; (setsid sh -c 'sleep 1002; sleep 1003' &) ; echo ready; sleep 1000";

#[test]
fn whoever_is_killed_nothing_is_left() {
    let Some(scene) = Scene::new() else { return };
    for (victim, code, words) in [
        ("decryptor-process", 218, "the decryptor ended early"),
        ("stage-process", 213, "the container ended early"),
        ("squashfuse", 212, "squashfuse ended"),
        ("bwrap", 213, "bubblewrap was killed (signal 9)"),
    ] {
        let run = scene.started(ESCAPES);
        let family = Family::of(run.pid());
        for word in ["decryptor-process", "stage-process", "squashfuse", "bwrap", "1000", "1001", "1002"] {
            family.find(word);
        }
        family.find(victim).kill();
        let (status, _, err) = run.end();
        assert_eq!(status, Some(code), "{victim}: {err}");
        assert!(err.contains(words), "{victim}: {err}");
        family.all_gone();
    }
    let runs = scene.runs();
    assert_eq!(runs.len(), 8, "{runs:?}");
    assert!(runs.iter().skip(1).step_by(2).all(|end| end.starts_with("failed: ")), "{runs:?}");

    // The supervisor itself: its run has no end until the next start says that it was lost.
    let run = scene.started(ESCAPES);
    let family = Family::of(run.pid());
    let other = scene.started("echo ready; read x; exit 5");
    family.0[0].kill();
    assert_eq!(run.end().0, None);
    family.all_gone();
    assert_eq!(scene.runs()[8..], ["start", "start"]);
    assert_eq!(std::fs::read_dir(scene.path("host/runs")).unwrap().count(), 2);
    assert_eq!(stdout(&scene.exec(&["cat", "/secret.txt"])), SECRET);
    let lost = "lost: its supervisor was killed";
    assert_eq!(scene.runs()[8..], ["start", "start", lost, "start", "exit 0"], "the other one lives");
    let mut other = other;
    other.say("go");
    assert_eq!(other.end().0, Some(5));
    assert_eq!(scene.runs()[8..], ["start", "start", lost, "start", "exit 0", "exit 5"]);
    assert_eq!(std::fs::read_dir(scene.path("host/runs")).unwrap().count(), 0);
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Signs an image anew, as its owner; the envelope keeps its length.
fn sign_again(path: &Path, owner: &Path) {
    use countersign_sif::dsse::{OwnerKey, object_digest};
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let sif = countersign_sif::format::Sif::read(&file).unwrap();
    let (signature, signed): (Vec<_>, Vec<_>) = sif.objects.iter().partition(|object| object.data_type == 0x4005);
    let group: Vec<_> = signed.iter().map(|object| (*object, object_digest(&file, object).unwrap())).collect();
    let key = OwnerKey::from_pem(&std::fs::read(owner).unwrap()).unwrap();
    let envelope = key.sign(&sif, &group).unwrap();
    assert_eq!(u64::try_from(envelope.len()).unwrap(), signature[0].size);
    file.write_all_at(&envelope, signature[0].offset).unwrap();
}

#[test]
fn a_changed_block_ends_the_run() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let payload = scene.owner.payload("app.sif");
    // While it runs: blocks in the middle, which nobody has read yet.
    let mut run = scene.started("echo ready; read x; cat /big; echo \"cat: $?\"; sleep 1000");
    let family = Family::of(run.pid());
    let middle = payload.start + (payload.end - payload.start) / 2;
    flip(&image, middle);
    run.say("go");
    let mut out = Vec::new();
    run.stdout.read_to_end(&mut out).unwrap();
    let (code, _, err) = run.end();
    assert_eq!(code, Some(214), "{err}");
    let block = format!("block {} of the image was changed", (middle - payload.start) / 4096 + 4096);
    assert!(err.contains(&block) && err.contains("hint: "), "{err}, expected {block}");
    family.all_gone();
    flip(&image, middle);

    // Before the start: the file system's first block.
    flip(&image, payload.start + 5);
    let out = scene.exec(&["cat", "/secret.txt"]);
    failed(&out, 214, &["block 4096 of the image was changed"]);
    assert!(out.stdout.is_empty());
    flip(&image, payload.start + 5);

    // Shorter than it says, before and while it runs.
    let length = image.metadata().unwrap().len();
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(scene.path("short.sif"), &bytes[..bytes.len() - 4096]).unwrap();
    failed(&scene.command("exec", &[], &scene.path("short.sif"), &["true"]).output().unwrap(), 202, &["SIF"]);
    let mut run = scene.started("echo ready; read x; cat /big > /dev/null; exit 3");
    OpenOptions::new().write(true).open(&image).unwrap().set_len(middle).unwrap();
    run.say("go");
    let (code, _, words) = run.end();
    assert_eq!(code, Some(214), "what the owner signed is not there any more: {words}");
    OpenOptions::new().write(true).open(&image).unwrap().set_len(length).unwrap();
}

#[test]
fn signatures_and_policies_that_do_not_belong() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    let run = |image: &Path| scene.command("exec", &[], image, &["cat", "/secret.txt"]).output().unwrap();
    // Another owner's image, whole and well signed.
    let stranger = support::Owner::with_image(scene.path("stranger"));
    failed(&run(&stranger.path("app.sif")), 203, &["not by a trusted key", "--signer"]);
    // The signature object unused: its descriptor's first bytes say so.
    let bytes = std::fs::read(&image).unwrap();
    let sif = countersign_sif::format::Sif::read(&File::open(&image).unwrap()).unwrap();
    let position = |name: &str| sif.objects.iter().position(|object| object.name() == name).unwrap();
    let signature = sif.objects.iter().position(|object| object.data_type == 0x4005).unwrap();
    let mut stripped = bytes.clone();
    let table = usize::try_from(u64::from_le_bytes(bytes[96..104].try_into().unwrap())).unwrap();
    for byte in &mut stripped[table + 585 * signature..table + 585 * (signature + 1)] {
        *byte = 0;
    }
    std::fs::write(scene.path("stripped.sif"), stripped).unwrap();
    failed(&run(&scene.path("stripped.sif")), 203, &["0 signatures"]);
    // One byte of the policy.
    let policy = &sif.objects[position("countersign.policy")];
    std::fs::copy(&image, scene.path("policy.sif")).unwrap();
    flip(&scene.path("policy.sif"), policy.offset + policy.size / 2);
    failed(&run(&scene.path("policy.sif")), 203, &["hint: "]);
    // The same, well signed: the image still names another policy, and the key would belong to that one.
    sign_again(&scene.path("policy.sif"), &scene.owner.path("owner.pem"));
    failed(&run(&scene.path("policy.sif")), 204, &["binding: ", "policy", "hint: "]);
    assert_eq!(scene.runs(), Vec::<String>::new());
}

#[test]
fn an_image_exchanged_between_check_and_use() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    // The run waits for the machine's lock, with the image checked and nothing released.
    let lock = OpenOptions::new().write(true).open(scene.path("host/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut child = scene.command("exec", &["--status-fd", "1"], &image, &["cat", "/secret.txt"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains("\"verified\""), "{first}");
    std::fs::write(scene.owner.path("rootfs/secret.txt"), "another\n").unwrap();
    let made = scene.owner.protect(&scene.owner.path("rootfs"), "app.sif", &["--force"]);
    assert!(made.status.success(), "{}", stderr(&made));
    drop(lock);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.contains(SECRET) && !rest.contains("another"), "{rest}");
}

#[test]
fn an_image_overwritten_between_check_and_use() {
    let Some(scene) = Scene::new() else { return };
    let image = scene.owner.path("app.sif");
    std::fs::write(scene.owner.path("rootfs/secret.txt"), "another\n").unwrap();
    let made = scene.owner.protect(&scene.owner.path("rootfs"), "other.sif", &[]);
    assert!(made.status.success(), "{}", stderr(&made));
    // Well signed and registered: asked for by itself, its key is released.
    scene.owner.register(&scene.verifier, "other.sif");
    let [checked, other] = ["app.sif", "other.sif"].map(|name| scene.owner.image(name).binding().workload);
    let bytes = std::fs::read(scene.owner.path("other.sif")).unwrap();
    // The decryptor of a run, told what a supervisor tells it; `checked` is what was admitted.
    let told = |workload| {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let kind = rustix::net::SocketType::SEQPACKET;
        let (ours, theirs) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
        let mut child = Command::new(SUPERVISOR).arg("decryptor-process").stdin(Stdio::from(theirs)).spawn().unwrap();
        let file = File::open(&image).unwrap();
        // In place, behind the descriptor that was checked.
        std::fs::write(&image, &bytes).unwrap();
        let signer = std::fs::read_to_string(scene.owner.path("owner.pub.pem")).unwrap();
        let order = serde_json::json!({
            "config": scene.path("attest.toml"), "tpm": null, "state_dir": null, "signers": [signer],
            "run": countersign_wire::id::RunId([7; 16]), "workload": workload, "user": null,
        });
        send(&ours, order.to_string().as_bytes(), &[file.as_fd()]);
        // Of what was not admitted it says so by itself.
        if workload == other {
            send(&ours, b"\"Prepare\"", &[]);
            send(&ours, b"\"Release\"", &[]);
        }
        let report = receive(&ours).unwrap();
        drop(ours);
        (report, child.wait().unwrap().code())
    };
    let (report, code) = told(checked);
    assert_eq!((report["Failed"]["stage"].as_str(), code), (Some("binding"), Some(204)), "{report}");
    assert!(report["Failed"]["error"].as_str().unwrap().contains(&checked.to_string()), "{report}");
    assert_eq!(scene.runs(), Vec::<String>::new());
    let (report, _) = told(other);
    assert!(report["Released"]["verdict"].is_string(), "{report}");
}

/// Freezes for whatever is found.
const FREEZES: &str = r#"package countersign.workload

default verdict := {"allow": false, "reasons": [], "obligations": {"on_violation": "freeze", "freeze_hold_s": 600}}

verdict := {"allow": true, "reasons": [], "obligations": {"lease_s": 3600, "reattest_s": 1}} if input.purpose == "release"
"#;

#[test]
fn the_key_is_in_the_decryptor_and_nowhere_else() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    has_the_key_in_the_decryptor_only(&scene, false);
    let Some(scene) = Scene::new() else { return };
    has_the_key_in_the_decryptor_only(&scene, true);
}

/// A run from its start to its end, by root or an `ordinary` user.
fn has_the_key_in_the_decryptor_only(scene: &Scene, ordinary: bool) {
    let began = SystemTime::now();
    let (image, passphrase) = scene.with_passphrase("locked.sif", FREEZES);
    let secrets = Secrets::new(&scene.owner.volume_key_by("locked.sif", &passphrase), &passphrase);
    let files = |when: &str| {
        // The state folders, and the temp space; swtpm's state holds sealed things only.
        let folders = [scene.dir.path(), &std::env::temp_dir(), Path::new("/dev/shm"), Path::new("/var/tmp")];
        let mut found = folders.iter().flat_map(|folder| secrets.files(folder, began)).collect::<Vec<_>>();
        found.retain(|path| *path != scene.owner.path("passphrase"));
        assert_eq!(found, Vec::<PathBuf>::new(), "{when}");
    };
    files("protected and registered");

    let script =
        "echo ready; cat /big > /dev/null; echo read; read x; cp /bin/busybox /tmp/sleep; exec /tmp/sleep 1000";
    let by = |command: Command| if ordinary { scene.given_away(&command) } else { command };
    let mut run = Started::new(by(scene.command("exec", &["--status-fd", "2"], &image, &["sh", "-c", script])));
    let mut line = String::new();
    run.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "read\n");
    let family = Family::of(run.pid());
    assert!(family.0.len() >= 7, "supervisor, decryptor, stage, squashfuse, bubblewrap twice, workload");
    secrets.only_in_the_decryptor(&family);
    files("running");
    let decryptor = family.find("decryptor-process");
    let limits = std::fs::read_to_string(decryptor.file("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    // Not dumpable: its files in /proc are root's, whoever runs it.
    assert_eq!(decryptor.file("mem").metadata().unwrap().uid(), 0);

    // No path leads to the decrypted image: no mount of the decryptor's is left, and squashfuse's own descriptor opens for nobody else.
    let stage = family.find("stage-process");
    let mounts = std::fs::read_to_string(stage.file("mountinfo")).unwrap();
    assert!(!mounts.lines().any(|line| line.contains(" - fuse countersign ")), "{mounts}");
    assert!(mounts.contains("squashfuse"), "{mounts}");
    let squashfuse = family.find("squashfuse");
    let mut tried = 0;
    for entry in std::fs::read_dir(squashfuse.file("fd")).unwrap().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.ends_with("rootfs.sqfs")) {
            tried += 1;
            assert_eq!(File::open(entry.path()).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        }
    }
    assert_eq!(tried, 1);
    // While the monitor judges, records, reports and freezes.
    run.say("go");
    let mut words = BufReader::new(run.child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("\"reaction\":\"freeze\"") {
        assert_ne!(words.read_line(&mut said).unwrap(), 0, "nothing was found: {said}");
    }
    secrets.only_in_the_decryptor(&Family::of(run.pid()));
    files("frozen");
    support::processes::signal(run.pid(), rustix::process::Signal::TERM);
    words.read_to_string(&mut said).unwrap();
    assert!(!secrets.within(said.as_bytes()), "{said}");
    assert_eq!(run.child.wait().unwrap().code(), Some(143));
    family.all_gone();
    files("ended");
    // The workload's view of itself and of bubblewrap's process: nothing of us, nothing of the user's environment.
    let script = "cat /proc/1/environ /proc/self/environ /proc/*/cmdline";
    let mut command = by(scene.command("exec", &[], &scene.owner.path("app.sif"), &["sh", "-c", script]));
    let seen = stdout(&command.env("HOST_TOKEN", "of-the-host").stdin(Stdio::null()).output().unwrap());
    assert!(seen.contains("PATH=") && !seen.contains("countersign") && !seen.contains("of-the-host"), "{seen}");
}

#[test]
fn a_workload_that_looks_for_the_key_sees_its_own_processes() {
    let Some(scene) = Scene::new() else { return };
    let (image, passphrase) = scene.with_passphrase("looks.sif", FREEZES);
    let secrets = Secrets::new(&scene.owner.volume_key_by("looks.sif", &passphrase), &passphrase);
    // Whatever it can list and read: processes, their memory, keys of the kernel, devices, the machine's memory.
    let script = r#"for p in /proc/[0-9]*; do cat $p/comm; done; echo --
        cat /proc/*/cmdline /proc/*/environ /proc/*/maps /proc/keys /proc/key-users /proc/kcore /dev/mem /dev/kmem /dev/tpm* 2> /dev/null
        for p in /proc/[0-9]*; do for f in $p/fd/*; do echo $f; done; ls $p/root/ $p/cwd/; done 2> /dev/null; echo --; ls /dev"#;
    let mut runtimes = vec!["builtin".to_owned()];
    runtimes.extend(support::apptainer().map(|path| path.display().to_string()));
    for runtime in runtimes {
        let options = ["--runtime", &runtime, "--containall"];
        let mut command = scene.command("exec", &options, &image, &["sh", "-c", script]);
        let out = command.stdin(Stdio::null()).output().unwrap();
        let seen = stdout(&out);
        assert!(!secrets.within(&out.stdout), "{runtime}");
        let (names, rest) = seen.split_once("--\n").unwrap_or_else(|| panic!("{runtime}: {seen}{}", stderr(&out)));
        let known = ["bwrap", "sh", "cat", "appinit", "starter", "starter-suid", "sinit"];
        for name in names.lines() {
            assert!(known.contains(&name), "{runtime}: {name} is not the workload's: {names}");
        }
        assert!(names.lines().count() >= 2 && rest.contains("null"), "{runtime}: {seen}");
        let (read, devices) = rest.rsplit_once("--\n").unwrap();
        for (text, word) in
            [(rest, "decryptor-process"), (rest, "stage-process"), (read, "sqfs"), (devices, "tpm"), (devices, "fuse")]
        {
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(word)).collect();
            assert!(lines.is_empty(), "{runtime}: {word}: {lines:?}");
        }
    }
}

/// What this user can open, or list: the thread that tries is one of his.
fn reached(user: u32, places: &[PathBuf]) -> Vec<PathBuf> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::process::{Gid, Uid};
    let places = places.to_vec();
    let opens = |place: &PathBuf| {
        // A pipe keeps nobody waiting.
        let file = open(place, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        file.is_ok() && (!place.as_os_str().as_encoded_bytes().ends_with(b"/") || place.read_dir().is_ok())
    };
    let tried = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        let (gid, uid) = (Gid::from_raw(user), Uid::from_raw(user));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        places.into_iter().filter(opens).collect()
    });
    tried.join().unwrap()
}

/// Without the daemon: each user's runs are his.
#[test]
fn another_ordinary_user_reaches_nothing_of_a_run() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    // Words that no other test has.
    let words = format!("the secret of {}", hex::encode(countersign_attest::random::random::<16>()));
    std::fs::write(scene.owner.path("rootfs/words.txt"), &words).unwrap();
    assert!(scene.owner.protect(&scene.owner.path("rootfs"), "words.sif", &[]).status.success());
    scene.owner.register(&scene.verifier, "words.sif");
    // It has a file of the image open and mapped, and stands in a folder of it.
    let script = "cd /etc; echo ready; exec sleep 1000 < /words.txt";
    let given = scene.command("exec", &[], &scene.owner.path("words.sif"), &["sh", "-c", script]);
    let began = SystemTime::now();
    let run = Started::new(scene.given_away(&given));
    let family = Family::with(run.pid(), "sleep");
    let workload = family.running("sleep").unwrap();
    // Everything below /proc that leads to files, memory or mounts.
    let mut places = Vec::new();
    for process in &family.0 {
        let folders = ["root/", "cwd/", "fd/", "map_files/", "ns/", "root/etc/", "cwd/../bin/"];
        places.extend(folders.map(|name| process.file(name)));
        places.extend(
            ["root/words.txt", "cwd/../words.txt", "exe", "mem", "maps", "environ"].map(|name| process.file(name)),
        );
        for folder in ["fd", "map_files"] {
            places.extend(std::fs::read_dir(process.file(folder)).unwrap().flatten().map(|entry| entry.path()));
        }
    }
    assert!(places.len() > 200 && places.iter().any(|place| place.to_string_lossy().contains("map_files/")));
    let reached = |user| reached(user, &places).iter().map(|path| format!("{}\n", path.display())).collect::<String>();
    assert_eq!(reached(54322), "");
    // The attempt itself works: the user's own processes reach what they may, decision 0024 says what is done about that.
    let own = reached(54321);
    for name in ["root/words.txt", "cwd/", "root/", "fd/0"] {
        let path = workload.file(name).display().to_string();
        assert!(own.lines().any(|line| line == path), "{path} is not among\n{own}");
    }
    let decryptor = format!("/proc/{}/", family.find("decryptor-process").pid);
    assert!(!own.contains(&decryptor), "{own}");
    // Into its namespaces, and by any path: no mount, and no file in the places where programs leave files.
    let pid = workload.pid.to_string();
    let other = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "54322", "--regid", "54322", "--clear-groups"]).args(arguments).output().unwrap()
    };
    for namespaces in [&["-U", "-m"][..], &["-m"], &["-U", "-m", "-p"]] {
        let out = other(&[&["nsenter", "-t", &pid], namespaces, &["cat", "/words.txt"]].concat());
        assert!(!out.status.success() && !stdout(&out).contains(&words), "{namespaces:?}");
    }
    let mounts = stdout(&other(&["cat", "/proc/self/mountinfo"]));
    assert!(!mounts.contains("squashfuse") && !mounts.contains("fuse countersign"), "{mounts}");
    let since = began.elapsed().unwrap().as_secs() / 60 + 2;
    let search = ["/tmp", "/var/tmp", "/dev/shm", "/run"].join(" ");
    let search =
        format!("find {search} -type f -mmin -{since} -size -64k -exec grep -lF '{words}' {{}} + 2> /dev/null");
    // The owner's folder that the image was made of lies open.
    let found = stdout(&other(&["sh", "-c", &search]));
    assert!(found.lines().all(|path| path.ends_with("/owner/rootfs/words.txt")), "{found}");
    let all = Command::new("sh").args(["-c", &search]).output().unwrap();
    assert!(
        stdout(&all).contains("rootfs/words.txt"),
        "root finds the owner's own, so the search works: {}",
        stdout(&all)
    );
    support::processes::signal(run.pid(), rustix::process::Signal::TERM);
    assert_eq!(run.end().0, Some(143));
    family.all_gone();
}

#[test]
fn an_ordinary_user_runs_it_and_cannot_look_into_the_decryptor() {
    if !is_root() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let script = "id -u; cat /secret.txt; echo ready; exec sleep 1000";
    let given = scene.command("exec", &["--status-fd", "2"], &scene.owner.path("app.sif"), &["sh", "-c", script]);
    let mut child = scene.given_away(&given).stdin(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.ends_with("ready\n") {
        if out.read_line(&mut text).unwrap() == 0 {
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            panic!("{text}{err}");
        }
    }
    assert_eq!(text, format!("54321\n{SECRET}ready\n"));
    let family = Family::of(i32::try_from(child.id()).unwrap());
    let decryptor = family.find("decryptor-process");
    for file in ["mem", "maps", "environ", "fd/0", "root", "cwd", "exe"] {
        let path = decryptor.file(file).display().to_string();
        let out = as_nobody("cat").arg(&path).env("LC_ALL", "C").output().unwrap();
        assert!(!out.status.success() && stderr(&out).contains("Permission denied"), "{path}: {}", stderr(&out));
    }
    // The attempt itself works: the same user's supervisor lets itself be read.
    let own = family.0[0].file("environ").display().to_string();
    assert!(as_nobody("cat").arg(own).output().unwrap().status.success());
    // It is where the user is, not in the container's user namespace, where the user would be root.
    let namespace = |process: &Process| std::fs::read_link(process.file("ns/user")).unwrap();
    assert_eq!(namespace(decryptor), std::fs::read_link("/proc/self/ns/user").unwrap());
    assert_ne!(namespace(family.find("stage-process")), namespace(decryptor));
    support::processes::signal(i32::try_from(child.id()).unwrap(), rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    family.all_gone();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("\"locked\":\"the heap\"") || err.contains("\"locked\":\"all memory\""), "{err}");
}
