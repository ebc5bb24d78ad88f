//! The owner's way back without this program: a real Apptainer, as root in a VM whose kernel has dm-crypt, opens protected images by their escrow.
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

use support::{Owner, SUPERVISOR, stderr, stdout};

const PASSPHRASE: &str = "correct horse battery staple";

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

    let passphrase = owner.path("passphrase");
    write(&passphrase, PASSPHRASE.as_bytes(), 0o600);
    let mut command = Command::new(SUPERVISOR);
    command.arg("protect").arg(owner.path("rootfs")).arg("--sign").arg(owner.path("owner.pem"));
    command.arg("--escrow-passphrase-file").arg(&passphrase).arg("-o").arg(given.join("passphrase.sif"));
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));

    // Apptainer reads PKCS#1 only, and openssl 3 writes PKCS#8 unless told otherwise.
    let key = openssl::rsa::Rsa::private_key_from_pem(&std::fs::read(owner.path("escrow.pem")).unwrap()).unwrap();
    let other = openssl::rsa::Rsa::generate(2048).unwrap();
    std::fs::write(given.join("escrow.pem"), key.private_key_to_pem().unwrap()).unwrap();
    std::fs::write(given.join("other.pem"), other.private_key_to_pem().unwrap()).unwrap();
    let key = openssl::pkey::PKey::from_rsa(key).unwrap();
    std::fs::write(given.join("pkcs8.pem"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();

    let out = Command::new(vm).arg(&given).stdin(Stdio::null()).output().unwrap();
    let said = stdout(&out);
    assert!(said.ends_with("\nended 0\n"), "the VM did not get to the end: {said}{}", stderr(&out));
    println!("{said}");
    let all = attempts(&said);

    let files = ["secret.txt", "big"].map(|name| std::fs::read(owner.path("rootfs").join(name)).unwrap());
    let (content, nothing) = (hex::encode(sha256(&files.concat())), hex::encode(sha256(&[])));
    assert_eq!(all["version"].code, "0");
    for name in ["pem", "passphrase"] {
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
