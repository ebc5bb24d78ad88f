//! What an owner does: protect, register, inspect.
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

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::processes::{Family, signal};
use support::{Owner, SUPERVISOR, Scene, failed, stderr, stdout, typed};
use tempfile::TempDir;

/// What is in a folder, hidden files too.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// An owner, where cryptsetup and mksquashfs are installed.
fn owner() -> Option<(TempDir, Owner)> {
    for name in ["/usr/sbin/cryptsetup", "/usr/bin/mksquashfs", "/bin/busybox"] {
        if !Path::new(name).exists() {
            println!("skipped: {name} is missing");
            return None;
        }
    }
    let dir = TempDir::new().unwrap();
    let owner = Owner::with_image(dir.path().join("owner"));
    Some((dir, owner))
}

#[test]
fn an_image_is_not_replaced_by_accident() {
    let Some((_dir, owner)) = owner() else { return };
    let before = std::fs::read(owner.path("app.sif")).unwrap();
    let list = names(&owner.dir);
    let rootfs = owner.path("rootfs");
    failed(&owner.protect(&rootfs, "app.sif", &[]), 216, &["app.sif exists already", "--force"]);
    assert!(std::fs::read(owner.path("app.sif")).unwrap() == before);
    let out = owner.protect(&rootfs, "app.sif", &["--force"]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(std::fs::read(owner.path("app.sif")).unwrap() != before, "another key");
    assert_eq!(names(&owner.dir), list, "nothing else was made");
    // Inputs that are no file system, or an image that is protected already.
    failed(&owner.protect(&owner.path("owner.pem"), "x.sif", &[]), 202, &["shorter than a SIF header"]);
    failed(&owner.protect(&owner.path("app.sif"), "x.sif", &[]), 202, &["encrypted already"]);
    failed(&owner.protect(&owner.path("nothing"), "x.sif", &[]), 216, &["nothing", "No such file"]);
    failed(&owner.protect(&rootfs, "no/such/folder/x.sif", &[]), 216, &["No such file"]);
    failed(&owner.protect(&rootfs, "x.sif", &["--policy", "/proc/self/fd"]), 216, &[]);
    assert_eq!(names(&owner.dir), list);
}

#[test]
fn an_interrupted_protect_leaves_nothing() {
    let Some((_dir, owner)) = owner() else { return };
    std::fs::write(owner.path("passphrase"), "a long enough passphrase\n").unwrap();
    let list = names(&owner.dir);
    for (number, name) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut command = Command::new(SUPERVISOR);
        command.arg("protect").arg(owner.path("rootfs")).arg("--sign").arg(owner.path("owner.pem"));
        // argon2id takes cryptsetup seconds.
        command.arg("--escrow-passphrase-file").arg(owner.path("passphrase")).arg("-o").arg(owner.path("late.sif"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let family = loop {
            let family = Family::of(pid);
            if let Some(cryptsetup) = family.0.iter().find(|process| process.command.contains("luksFormat")) {
                // Its secrets come through pipes.
                for file in ["cmdline", "environ"] {
                    let bytes = std::fs::read(cryptsetup.file(file)).unwrap_or_default();
                    assert!(!String::from_utf8_lossy(&bytes).contains("long enough"), "{file}");
                }
                break family;
            }
            assert_eq!(child.try_wait().unwrap(), None, "it ended before cryptsetup was seen");
        };
        assert_eq!(names(&owner.dir).len(), list.len() + 1, "its folder");
        signal(pid, number);
        let out = child.wait().unwrap();
        assert_eq!(out.code(), Some(name));
        family.ended();
        assert_eq!(names(&owner.dir), list);
    }
}

/// Secrets of an image that is being made go through pipes: they are in no argument, no environment, and no file, as long as it takes.
#[test]
fn protect_keeps_its_secrets() {
    let Some((_dir, owner)) = owner() else { return };
    let phrase = "a long enough passphrase";
    std::fs::write(owner.path("passphrase"), format!("{phrase}\n")).unwrap();
    let mut command = Command::new(SUPERVISOR);
    command.arg("protect").arg(owner.path("rootfs")).arg("--sign").arg(owner.path("owner.pem"));
    command.arg("--escrow-passphrase-file").arg(owner.path("passphrase")).arg("-o").arg(owner.path("late.sif"));
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // Everything that was to be seen meanwhile: once each, by name and length.
    let mut seen: std::collections::BTreeMap<(String, usize), Vec<u8>> = std::collections::BTreeMap::new();
    let mut cryptsetup = false;
    while child.try_wait().unwrap().is_none() {
        for process in &Family::of(pid).0 {
            cryptsetup |= process.command.contains("luksFormat");
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(process.file(file)).unwrap_or_default();
                seen.insert((format!("{file} of {}", process.command), bytes.len()), bytes);
            }
        }
        let folders = names(&owner.dir).into_iter().filter(|name| name.starts_with(".countersign-"));
        for folder in folders.map(|name| owner.path(&name)) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                seen.insert((entry.path().display().to_string(), bytes.len()), bytes);
            }
        }
    }
    assert!(child.wait().unwrap().success() && cryptsetup);
    let signer = countersign_sif::dsse::SignerKey::from_pem(&std::fs::read(owner.path("owner.pub.pem")).unwrap());
    let image = countersign_sif::Image::open(&owner.path("late.sif"), &[signer.unwrap()]).unwrap();
    let escrow = countersign_sif::escrow::EscrowKey::Passphrase(phrase.as_bytes().to_vec().into());
    let key = image.open_escrow(&escrow).unwrap();
    assert!(seen.keys().any(|(name, _)| name.contains(".countersign-")), "a file was seen");
    seen.insert(("the image".into(), 0), std::fs::read(owner.path("late.sif")).unwrap());
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for ((name, _), bytes) in &seen {
        // Page by page, each with the beginning of the next; most of a new LUKS header is zeros.
        for start in (0..bytes.len()).step_by(4096) {
            let page = &bytes[start..bytes.len().min(start + 4096 + 128)];
            if page == &[0; 4096 + 128][..page.len()] {
                continue;
            }
            for secret in [key.as_slice(), digits.as_bytes(), phrase.as_bytes()] {
                assert!(!page.windows(secret.len()).any(|window| window == secret), "{name}");
            }
        }
    }
}

/// Most memory that a process had, bytes, read until it ends.
fn peak(mut child: std::process::Child) -> u64 {
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.map_or(peak, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024);
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn protect_takes_the_same_memory_for_any_size() {
    let Some((_dir, owner)) = owner() else { return };
    let source = owner.path("source.sqfs");
    let mut made = Command::new("mksquashfs");
    made.arg(owner.path("rootfs")).arg(&source).args(["-quiet", "-no-progress"]).stdout(Stdio::null());
    assert!(made.status().unwrap().success());
    let measure = || {
        let mut command = Command::new(SUPERVISOR);
        command.arg("protect").arg(&source).arg("--sign").arg(owner.path("owner.pem")).arg("--force");
        command.arg("--escrow").arg(owner.path("escrow.pub.pem")).arg("-o").arg(owner.path("large.sif"));
        peak(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    };
    let small = measure();
    assert!(small > 1 << 20, "it was seen: {small}");
    // Zeros behind a file system are part of it. Four times what it may take.
    let size: u64 = 256 << 20;
    std::fs::File::options().write(true).open(&source).unwrap().set_len(size).unwrap();
    let large = measure();
    assert!(std::fs::metadata(owner.path("large.sif")).unwrap().len() > size);
    assert!(large < small + (64 << 20), "{small} bytes for a small one, {large} for one of {size}");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let Some((_dir, owner)) = owner() else { return };
    let small = owner.path("small");
    std::fs::create_dir(&small).unwrap();
    let list = names(&owner.dir);
    // A file system of 12 MiB, which the header alone overfills, and one of 20, which the payload does.
    for size in ["12m", "20m"] {
        let script = format!(
            "mount -t tmpfs -o size={size} none {0} && {SUPERVISOR} protect {1} --sign {2} --escrow {3} -o {0}/app.sif; echo \"code $?\"; ls -A {0}",
            small.display(),
            owner.path("rootfs").display(),
            owner.path("owner.pem").display(),
            owner.path("escrow.pub.pem").display()
        );
        let out = Command::new("unshare").args(["-Urm", "sh", "-c", &script]).output().unwrap();
        if !out.status.success() && stdout(&out).is_empty() {
            println!("skipped: no user namespaces");
            return;
        }
        // No program is missing: what to do about it is another thing.
        assert_eq!(stdout(&out), "code 216\n", "{size}: {}", stderr(&out));
        assert!(stderr(&out).contains("error: ") && stderr(&out).contains("free space"), "{}", stderr(&out));
    }
    assert_eq!(names(&owner.dir), list);
}

#[test]
fn progress_is_shown_at_a_terminal_and_nothing_when_quiet() {
    for (verb, word) in [("protect", "encrypting"), ("unprotect", "decrypting")] {
        let Some((_dir, owner)) = owner() else { return };
        let command = |more: &[&str]| {
            let mut command = Command::new(SUPERVISOR);
            command.args(more).arg(verb);
            if verb == "protect" {
                command.arg(owner.path("rootfs")).arg("--sign").arg(owner.path("owner.pem"));
                command.arg("--escrow").arg(owner.path("escrow.pub.pem"));
            } else {
                command.arg(owner.path("app.sif")).arg("--signer").arg(owner.path("owner.pub.pem"));
                command.arg("--escrow-key").arg(owner.path("escrow.pem"));
            }
            command.arg("--force").arg("-o").arg(owner.path("made.sif")).stdin(Stdio::null());
            command
        };
        let bar = |text: &str| text.contains(word) || text.contains(['\r', '\x1b']);
        let (code, screen) = typed(&command(&[]), &[]);
        assert_eq!(code, Some(0), "{screen}");
        // It goes from nothing to all, and is gone at the end: the line is cleared behind its last picture.
        let after = screen.rsplit_once(word).expect("a bar").1;
        assert!(screen.contains("B/s") && after.contains("\x1b[2K"), "{screen:?}");
        let out = command(&[]).env("TERM", "xterm").output().unwrap();
        assert!(out.status.success() && stdout(&out).contains("made.sif"), "{}", stderr(&out));
        assert!(!bar(&stdout(&out)) && !bar(&stderr(&out)), "{:?}", stderr(&out));
        // Everybody can read the keys here, which is a warning otherwise.
        let (code, screen) = typed(&command(&["--quiet"]), &[]);
        assert_eq!((code, screen.as_str()), (Some(0), ""));
        let (code, screen) = typed(&command(&["-q", "--json"]), &[]);
        assert!(code == Some(0) && screen.starts_with('{') && screen.contains("made.sif"), "{screen}");
        // Errors are said.
        let out = command(&["-q", "--no-such-flag"]).output().unwrap();
        failed(&out, 200, &["--no-such-flag"]);
        std::fs::write(owner.path("escrow.pem"), "none").unwrap();
        std::fs::write(owner.path("escrow.pub.pem"), "none").unwrap();
        let out = command(&["-q"]).output().unwrap();
        failed(&out, 215, &["escrow", "hint: "]);
        assert_eq!(stdout(&out), "");
    }
}

#[test]
fn inspect_says_what_is_verified() {
    let Some((_dir, owner)) = owner() else { return };
    let (image, signer) = (owner.path("app.sif"), owner.path("owner.pub.pem"));
    let inspect = |more: &[&str]| {
        let mut command = Command::new(SUPERVISOR);
        command.arg("inspect").arg(&image).args(more).output().unwrap()
    };
    let signer = signer.to_str().unwrap();
    let seen: Value = serde_json::from_slice(&inspect(&["--json"]).stdout).unwrap();
    let checked: Value = serde_json::from_slice(&inspect(&["--json", "--signer", signer]).stdout).unwrap();
    assert_eq!((&seen["verified"], &checked["verified"]), (&Value::Bool(false), &Value::Bool(true)));
    for field in ["workload", "payload_root", "policy", "uuid", "objects"] {
        assert_eq!(seen[field], checked[field], "{field}");
        assert!(!seen[field].is_null());
    }
    assert!(stdout(&inspect(&[])).contains("nothing: give the owner's public key with --signer"));
    let full: Value = serde_json::from_slice(&inspect(&["--json", "--full", "--signer", signer]).stdout).unwrap();
    assert_eq!(full["checked"], "every object and every block");
    assert_eq!(full["policy_object"]["digest"], full["policy"]);
    let modules = full["policy_object"]["modules"].as_array().unwrap();
    assert!(modules.iter().any(|module| module["package"] == "countersign.workload"), "{modules:?}");
    let words = stdout(&inspect(&["--signer", signer]));
    let lines = [
        format!("VERIFIED      signed by {}", checked["signer"].as_str().unwrap()),
        format!("workload      {}", checked["workload"].as_str().unwrap()),
        "package countersign.workload".into(),
        "LUKS2 container".into(),
        "hash tree        countersign.verity   object 1".into(),
    ];
    for line in lines {
        assert!(words.contains(&line), "{line:?} is not in\n{words}");
    }
    assert!(stdout(&inspect(&[])).starts_with("NOT VERIFIED"));
    failed(&inspect(&["--full"]), 200, &["--signer"]);

    // One bit in the middle of the payload: only --full sees it.
    let mut bytes = std::fs::read(&image).unwrap();
    let payload = owner.payload("app.sif");
    let middle = usize::try_from(payload.start + (payload.end - payload.start) / 2).unwrap();
    bytes[middle] ^= 0x10;
    std::fs::write(&image, bytes).unwrap();
    assert!(inspect(&["--signer", signer]).status.success());
    let out = inspect(&["--full", "--signer", signer]);
    failed(&out, 203, &["object 1 is not what was signed", "copied again"]);
    let foreign = Command::new(SUPERVISOR).args(["inspect", "/dev/null"]).output().unwrap();
    failed(&foreign, 202, &["/dev/null: SIF", "hint: it is no image"]);
}

#[test]
fn a_wrong_key_or_input_is_named() {
    let Some((_dir, owner)) = owner() else { return };
    let path = |name: &str| owner.path(name).display().to_string();
    let (image, key, public) = (path("app.sif"), path("owner.pem"), path("owner.pub.pem"));
    let (escrow, made) = (path("escrow.pub.pem"), path("made.sif"));
    let call = |arguments: &[&str]| Command::new(SUPERVISOR).args(arguments).output().unwrap();
    failed(&call(&["inspect", "--signer", &key, &image]), 201, &[&key, "no PEM public key", "-pubout"]);
    let protect = |input: &str, sign: &str, escrow: &str| {
        call(&["protect", input, "--sign", sign, "--escrow", escrow, "-o", &made])
    };
    failed(&protect(&path("rootfs"), &public, &escrow), 216, &[&public, "no PEM private key", "hint: --sign"]);
    failed(&protect(&path("rootfs"), &key, &public), 215, &[&public, "no PEM RSA public key", "hint: --escrow"]);
    failed(&protect(&image, &key, &escrow), 202, &[&image, "encrypted already", "supervisor rekey"]);
    failed(&protect(&key, &key, &escrow), 202, &[&key, "a squashfs, or an OCI layout"]);
    // A key that everybody can read is used, with a warning.
    let open = |mode| std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    for (mode, warned) in [(0o600, false), (0o644, true)] {
        open(mode);
        let out = protect("/nonexistent", &key, &escrow);
        failed(&out, 216, &["/nonexistent"]);
        assert_eq!(stderr(&out).contains(&format!("warning: others can read or change {key}: chmod 600")), warned);
    }
    let opened = call(&["unprotect", &image, "--signer", &public, "--escrow-key", &public, "-o", &made]);
    failed(&opened, 215, &[&public, "hint: --escrow-key"]);
    // Without mksquashfs: a program is missing, and which package has it is said.
    let mut command = Command::new(SUPERVISOR);
    command.args(["protect", &path("rootfs"), "--sign", &key, "--escrow", &escrow, "-o", &made]);
    failed(&command.env("PATH", "/nonexistent").output().unwrap(), 211, &["mksquashfs", "squashfs-tools"]);
    assert!(!owner.path("made.sif").exists());
}

#[test]
fn register_says_who_refuses() {
    let Some(scene) = Scene::new() else { return };
    let again = scene.owner.register_command(&scene.verifier, "app.sif").output().unwrap();
    assert!(again.status.success(), "{}", stderr(&again));
    // Another escrow key.
    let stranger = Owner::with_image(scene.path("stranger"));
    std::fs::copy(stranger.path("escrow.pem"), scene.owner.path("escrow.pem")).unwrap();
    let out = scene.owner.register_command(&scene.verifier, "app.sif").output().unwrap();
    failed(&out, 215, &["escrow key does not open the image", "hint: "]);
    // Another's token, another CA, nobody there.
    let mut command = stranger.register_command(&scene.verifier, "app.sif");
    std::fs::write(scene.verifier.dir.join("operator.token"), "wrong\n").unwrap();
    failed(&command.output().unwrap(), 208, &["error: "]);
    std::fs::write(scene.verifier.dir.join("operator.token"), "operator\n").unwrap();
    std::fs::copy(scene.sim.ca_pem().unwrap(), scene.verifier.dir.join("ca.pem")).unwrap();
    failed(&command.output().unwrap(), 207, &["127.0.0.1"]);
}

#[test]
fn the_owner_gets_it_back_and_rekeys_it() {
    let Some(scene) = Scene::new() else { return };
    let owner = &scene.owner;
    let run = |verb: &str, output: &str, more: &[&str]| {
        let mut command = Command::new(SUPERVISOR);
        command.args(["--json", verb]).arg(owner.path("app.sif")).arg("--signer").arg(owner.path("owner.pub.pem"));
        command.arg("--escrow-key").arg(owner.path("escrow.pem")).arg("-o").arg(owner.path(output)).args(more);
        command.output().unwrap()
    };
    let list = names(&owner.dir);
    let out = run("unprotect", "plain.sif", &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    failed(&run("unprotect", "plain.sif", &[]), 216, &["exists already", "--force"]);
    // What went in comes out: unsquashfs reads the plain SIF's partition.
    let sif = countersign_sif::format::Sif::read(&std::fs::File::open(owner.path("plain.sif")).unwrap()).unwrap();
    let offset = sif.primary().unwrap().offset.to_string();
    let out = Command::new("unsquashfs")
        .args(["-o", &offset, "-cat"])
        .arg(owner.path("plain.sif"))
        .arg("secret.txt")
        .output()
        .unwrap();
    assert_eq!(stdout(&out), support::SECRET, "{}", stderr(&out));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(owner.path("plain.sif")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let (sign, escrow) =
        (owner.path("owner.pem").display().to_string(), owner.path("escrow.pub.pem").display().to_string());
    let out = run("rekey", "again.sif", &["--sign", &sign, "--escrow", &escrow]);
    assert!(out.status.success(), "{}", stderr(&out));
    let made: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_ne!(made["workload"], made["was"]);
    assert_ne!(owner.volume_key("again.sif").as_slice(), owner.volume_key("app.sif").as_slice());
    let mut all = list;
    all.extend(["plain.sif".to_owned(), "again.sif".to_owned()]);
    all.sort();
    assert_eq!(names(&owner.dir), all);
    owner.register(&scene.verifier, "again.sif");
    let out = scene.command("exec", &[], &owner.path("again.sif"), &["cat", "/secret.txt"]).output().unwrap();
    assert_eq!(stdout(&out), support::SECRET, "{}", stderr(&out));

    // A block that was changed is not written anywhere.
    let mut bytes = std::fs::read(owner.path("app.sif")).unwrap();
    let middle = usize::try_from(owner.payload("app.sif").start).unwrap() + 70_000;
    bytes[middle] ^= 1;
    std::fs::write(owner.path("app.sif"), bytes).unwrap();
    failed(&run("unprotect", "late.sif", &[]), 214, &["was changed"]);
    failed(&run("rekey", "late.sif", &["--sign", &sign, "--escrow", &escrow]), 214, &["was changed"]);
    assert_eq!(names(&owner.dir), all);
}
