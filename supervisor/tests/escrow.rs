//! The owner's escrow: by keys, by passphrases from files and from a terminal; and without this program, by a real Apptainer, as root in a VM whose
//! kernel has dm-crypt.
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

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openssl::sha::sha256;

use support::{Owner, SUPERVISOR, failed, stderr, stdout, typed};

const PASSPHRASE: &str = "correct horse battery staple";

/// Most seconds that the VM may take: it needs one or two minutes, and far more on a machine that does much else.
const PATIENCE: &str = "1500";

/// What the VM does: each line says a name, the status, the SHA-256 of the output; then what was said, behind the name.
const RUN: &str = r#"#!/bin/sh
try() {
	name=$1
	shift
	"$@" > /tmp/out 2> /tmp/err
	echo "$name $? $(sha256sum < /tmp/out | cut -c1-64)"
	sed "s/^/$name: /" /tmp/err
}
reads() {
	try "$@" cat /secret.txt /big
}
try version apptainer --version
reads pem apptainer exec --pem-path /given/escrow.pem /given/pem.sif
reads pkcs8 apptainer exec --pem-path /given/pkcs8.pem /given/pem.sif
reads wrong-pem apptainer exec --pem-path /given/other.pem /given/pem.sif
reads no-key apptainer exec /given/pem.sif
export APPTAINER_ENCRYPTION_PASSPHRASE='correct horse battery staple'
reads passphrase apptainer exec /given/passphrase.sif
export APPTAINER_ENCRYPTION_PASSPHRASE='correct horse battery stable'
reads wrong-passphrase apptainer exec /given/passphrase.sif
export APPTAINER_ENCRYPTION_PASSPHRASE='another one since today'
reads rekeyed apptainer exec /given/rekeyed.sif
"#;

/// A program that starts a VM (`scripts/vm.sh build` makes one); `None`, said aloud, where there is none.
fn vm() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/vm.sh");
    let out = Command::new(script).arg("path").output().unwrap();
    if !out.status.success() {
        println!("skipped: no VM with dm-crypt: make lab, or scripts/vm.sh build");
        return None;
    }
    Some(PathBuf::from(stdout(&out).trim()))
}

fn protect(owner: &Owner, output: &Path) -> Command {
    let mut command = Command::new(SUPERVISOR);
    command.arg("protect").arg(owner.path("rootfs")).arg("--sign").arg(owner.path("owner.pem"));
    command.arg("-o").arg(output).stdin(Stdio::null());
    command
}

fn rekey(owner: &Owner, image: &Path, output: &Path) -> Command {
    let mut command = Command::new(SUPERVISOR);
    command.arg("rekey").arg(image).arg("--signer").arg(owner.path("owner.pub.pem"));
    command.arg("--sign").arg(owner.path("owner.pem")).arg("-o").arg(output).stdin(Stdio::null());
    command
}

/// What the VM said of one attempt.
#[derive(Debug, Default)]
struct Attempt {
    code: String,
    sha256: String,
    said: String,
}

fn attempts(said: &str) -> BTreeMap<String, Attempt> {
    let mut all: BTreeMap<String, Attempt> = BTreeMap::new();
    for line in said.lines() {
        if let Some((name, words)) = line.split_once(": ") {
            all.get_mut(name).unwrap().said.push_str(&format!("{words}\n"));
        } else if let [name, code, sha256] = line.split(' ').collect::<Vec<_>>()[..] {
            let attempt = Attempt { code: code.into(), sha256: sha256.into(), said: String::new() };
            all.insert(name.into(), attempt);
        }
    }
    all
}

#[test]
fn a_real_apptainer_opens_our_images_by_their_escrow() {
    let Some(vm) = vm() else { return };
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::with_image(dir.path().join("owner"));
    let given = dir.path().join("given");
    std::fs::create_dir(&given).unwrap();
    let write = |path: &Path, bytes: &[u8], mode| {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    write(&given.join("run"), RUN.as_bytes(), 0o755);
    std::fs::copy(owner.path("app.sif"), given.join("pem.sif")).unwrap();

    let (passphrase, new) = (owner.path("passphrase"), owner.path("new-passphrase"));
    write(&passphrase, PASSPHRASE.as_bytes(), 0o600);
    write(&new, b"another one since today\nand a second line\n", 0o600);
    let mut command = protect(&owner, &given.join("passphrase.sif"));
    let out = command.arg("--escrow-passphrase-file").arg(&passphrase).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let mut command = rekey(&owner, &given.join("passphrase.sif"), &given.join("rekeyed.sif"));
    command.arg("--escrow-passphrase-file").arg(&passphrase).arg("--new-passphrase-file").arg(&new);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));

    // Apptainer reads PKCS#1 only, and openssl 3 writes PKCS#8 unless told otherwise.
    let key = openssl::rsa::Rsa::private_key_from_pem(&std::fs::read(owner.path("escrow.pem")).unwrap()).unwrap();
    let other = openssl::rsa::Rsa::generate(2048).unwrap();
    std::fs::write(given.join("escrow.pem"), key.private_key_to_pem().unwrap()).unwrap();
    std::fs::write(given.join("other.pem"), other.private_key_to_pem().unwrap()).unwrap();
    let key = openssl::pkey::PKey::from_rsa(key).unwrap();
    std::fs::write(given.join("pkcs8.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();

    let out = Command::new(vm).arg(&given).arg(PATIENCE).stdin(Stdio::null()).output().unwrap();
    let said = stdout(&out);
    assert!(said.ends_with("\nended 0\n"), "the VM did not get to the end: {said}{}", stderr(&out));
    println!("{said}");
    let all = attempts(&said);

    let files = ["secret.txt", "big"].map(|name| std::fs::read(owner.path("rootfs").join(name)).unwrap());
    let (content, nothing) = (hex::encode(sha256(&files.concat())), hex::encode(sha256(&[])));
    assert_eq!(all["version"].code, "0");
    for name in ["pem", "passphrase", "rekeyed"] {
        let attempt = &all[name];
        assert_eq!((attempt.code.as_str(), &attempt.sha256), ("0", &content), "{name}: {}", attempt.said);
    }
    for (name, word) in [
        ("pkcs8", "ParsePKCS8PrivateKey"),
        ("wrong-pem", "could not decrypt LUKS key"),
        ("no-key", "--passphrase or --pem-path missing"),
        ("wrong-passphrase", "failed to decrypt"),
    ] {
        let attempt = &all[name];
        assert_eq!((attempt.code.as_str(), &attempt.sha256), ("255", &nothing), "{name}: {}", attempt.said);
        assert!(attempt.said.contains(word), "{name}: {}", attempt.said);
    }
}

/// Where cryptsetup and mksquashfs are installed.
fn owner() -> Option<(tempfile::TempDir, Owner)> {
    for name in ["/usr/sbin/cryptsetup", "/usr/bin/mksquashfs", "/bin/busybox"] {
        if !Path::new(name).exists() {
            println!("skipped: {name} is missing");
            return None;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::with_image(dir.path().join("owner"));
    Some((dir, owner))
}

const OLD: &str = "Passphrase of the image's escrow";
const NEW: &str = "Passphrase for the new image's escrow";
const AGAIN: &str = "The same again";

#[test]
fn an_image_is_rekeyed_by_passphrases_that_are_typed_and_not_shown() {
    let Some((_dir, owner)) = owner() else { return };
    let (first, second, third) = (owner.path("first.sif"), owner.path("second.sif"), owner.path("third.sif"));
    let mut command = protect(&owner, &first);
    command.arg("--escrow-passphrase");
    // The keys that change a line do so.
    let (code, screen) = typed(&command, &[(NEW, "correx\x7fct horse\n"), (AGAIN, "correct horse\n")]);
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("horse"), "{screen}");
    let key = owner.volume_key_by("first.sif", "correct horse");

    // From a passphrase to another one.
    let mut command = rekey(&owner, &first, &second);
    command.args(["--escrow-passphrase", "--new-passphrase"]);
    let answers = [(OLD, "correct horse\n"), (NEW, "battery staple\n"), (AGAIN, "battery staple\n")];
    let (code, screen) = typed(&command, &answers);
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("horse") && !screen.contains("staple"), "{screen}");
    assert_ne!(owner.volume_key_by("second.sif", "battery staple").as_slice(), key.as_slice());

    // And to a key.
    let mut command = rekey(&owner, &second, &third);
    command.arg("--escrow-passphrase").arg("--escrow").arg(owner.path("escrow.pub.pem"));
    let (code, screen) = typed(&command, &[(OLD, "correct horse\n")]);
    assert_eq!(code, Some(215), "{screen}");
    assert!(screen.contains("error: ") && screen.contains("hint: give the passphrase that"), "{screen}");
    assert!(!third.exists());
    let (code, screen) = typed(&command, &[(OLD, "battery staple\n")]);
    assert_eq!(code, Some(0), "{screen}");
    owner.volume_key("third.sif");
    // The passphrase opens nothing of that one.
    let mut command = Command::new(SUPERVISOR);
    command.arg("unprotect").arg(&third).arg("--signer").arg(owner.path("owner.pub.pem"));
    command.arg("--escrow-passphrase").arg("-o").arg(owner.path("plain.sif"));
    let (code, screen) = typed(&command, &[(OLD, "battery staple\n")]);
    assert_eq!(code, Some(215), "{screen}");
    assert!(!owner.path("plain.sif").exists());
}

#[test]
fn what_is_typed_wrong_makes_nothing() {
    let Some((_dir, owner)) = owner() else { return };
    let made = owner.path("made.sif");
    let image = owner.path("app.sif");
    let by_key = || {
        let mut command = rekey(&owner, &image, &made);
        command.arg("--escrow-key").arg(owner.path("escrow.pem")).arg("--new-passphrase");
        command
    };
    let long = "x".repeat(600) + "\n";
    for (answers, word) in [
        (&[(NEW, "correct horse\n"), (AGAIN, "correct house\n")][..], "not the same twice"),
        (&[(NEW, "short\n"), (AGAIN, "short\n")], "fewer than 8 bytes"),
        (&[(NEW, "correct hor\x03")], "no passphrase was typed"),
        (&[(NEW, "\x04")], "no passphrase was typed"),
        (&[(NEW, &long)], "more than 512 bytes"),
    ] {
        let (code, screen) = typed(&by_key(), answers);
        assert_eq!(code, Some(215), "{word}: {screen}");
        assert!(screen.contains(word) && screen.contains("hint: ") && !screen.contains("correct"), "{screen}");
        assert!(!made.exists(), "{word}");
    }
    // A signal ends it as ever, and the terminal shows again what is typed.
    for signal in ["TERM", "INT", "HUP"] {
        let script = format!(
            "me=$$; (until stty -a | grep -q -- ' -echo '; do sleep 0.05; done; kill -{signal} $me) </dev/tty & exec \"$@\""
        );
        let (asks, mut command) = (by_key(), Command::new("env"));
        command
            .args(["--default-signal=HUP,INT,TERM", "sh", "-c", &script, "sh"])
            .arg(asks.get_program())
            .args(asks.get_args());
        let (code, screen) = typed(&command, &[]);
        assert_eq!(code, None, "{signal}, and no code of its own: {screen}");
        assert!(screen.contains(NEW) && !made.exists(), "{screen}");
    }
    // Without a terminal it says what needs none.
    let mut alone = Command::new("setsid");
    alone.arg("--wait").arg(SUPERVISOR).args(by_key().get_args()).stdin(Stdio::null());
    failed(&alone.output().unwrap(), 215, &["no passphrase from the terminal", "--new-passphrase-file"]);
    // One new escrow, not none and not two.
    let key = owner.path("escrow.pub.pem");
    failed(&by_key().arg("--escrow").arg(&key).output().unwrap(), 200, &["--escrow", "--new-passphrase"]);
    let mut none = rekey(&owner, &image, &made);
    none.arg("--escrow-key").arg(owner.path("escrow.pem"));
    failed(&none.output().unwrap(), 200, &["--escrow"]);
    // A wrong passphrase from a file, and a file that is not there.
    let file = owner.path("passphrase");
    std::fs::write(&file, "no passphrase of this image").unwrap();
    let by_file = |file: &Path| {
        let mut command = rekey(&owner, &image, &made);
        command.arg("--escrow-passphrase-file").arg(file).arg("--escrow").arg(&key).output().unwrap()
    };
    failed(&by_file(&file), 215, &["hint: give the passphrase that"]);
    failed(&by_file(&owner.path("nothing")), 215, &["nothing"]);
    assert!(!made.exists());
}
