//! Signatures of a plain image, verified before it is protected: PGP by GnuPG, DSSE by OpenSSL, over JSON that is made here from the format's notes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_sif::Image;
use countersign_sif::error::SifError;
use countersign_sif::escrow::Escrow;
use countersign_sif::format::{Arch, GROUP, data_type, fs_type};
use countersign_sif::input::Trusted;
use countersign_sif::layout::{Layout, Object, primary_extra};
use countersign_sif::pgp::Keyring;
use countersign_sif::protect::{Plan, Squashfs, protect, squashfs_of_signed};
use openssl::pkey::{PKey, Private};
use sha2::{Digest as _, Sha256};
use support::{POLICY, ed25519, envelope, have, owner, rsa, run, signer};

/// GnuPG with a home of its own; its agent ends with it.
struct Gpg(tempfile::TempDir);

impl Gpg {
    fn new(kind: &str) -> Self {
        let gpg = Self(tempfile::tempdir().unwrap());
        gpg.run(&["--quick-generate-key", "Owner <owner@example.org>", kind, "sign", "never"], b"");
        gpg
    }
    fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let home = self.0.path().to_str().unwrap();
        let common = ["--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
        run("gpg", &[&common[..], arguments].concat(), input)
    }
    fn keyring(&self, armour: bool) -> Keyring {
        let arguments = if armour { &["--armor", "--export"][..] } else { &["--export"] };
        Keyring::from_bytes(&self.run(arguments, b"")).unwrap()
    }
    fn fingerprint(&self) -> String {
        let list = String::from_utf8(self.run(&["--with-colons", "--list-keys"], b"")).unwrap();
        list.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap().trim_matches(':').to_owned()
    }
    fn sign(&self, text: &str, hash: &str) -> Vec<u8> {
        self.run(&["--clearsign", "--digest-algo", hash], text.as_bytes())
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").env("GNUPGHOME", self.0.path()).args(["--kill", "all"]).status();
    }
}

/// A plain SIF as a stock runtime builds it: recipe, metadata, partition, all in group 1.
struct Plain {
    folder: tempfile::TempDir,
    layout: Layout,
    contents: Vec<Vec<u8>>,
    signatures: Vec<(u32, Vec<u8>)>,
}

const GROUP_1: u32 = GROUP | 1;

impl Plain {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        // Longer than a chunk, so that several are under way.
        let noise: Vec<u8> = (0..30_000u32).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect();
        std::fs::write(root.join("data"), noise).unwrap();
        let made = folder.path().join("plain.sqfs");
        run("mksquashfs", &[root.to_str().unwrap(), made.to_str().unwrap(), "-quiet", "-no-progress"], b"");
        let mut plain =
            Self { folder, layout: Layout::new([9; 16], 1_700_000_000), contents: Vec::new(), signatures: Vec::new() };
        plain.add(0x4001, GROUP_1, &[], b"bootstrap: scratch\n".to_vec());
        plain.add(data_type::JSON, GROUP_1, &[], b"{}".to_vec());
        let squashfs = std::fs::read(made).unwrap();
        plain.add(data_type::PARTITION, GROUP_1, &primary_extra(fs_type::SQUASHFS, Arch::native()), squashfs);
        plain
    }
    fn add(&mut self, kind: i32, group: u32, extra: &[u8], content: Vec<u8>) {
        let size = u64::try_from(content.len()).unwrap();
        self.layout.add(Object { data_type: kind, name: "", link: 0, group, extra, size }).unwrap();
        self.contents.push(content);
    }
    /// The JSON that stock runtimes sign (sif-format, section 7), for the objects with these ids.
    fn json(&self, ids: &[u32]) -> String {
        let hex = |bytes: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let mut header = b"#!/usr/bin/env run-singularity\n\0".to_vec();
        header.extend_from_slice(b"SIF_MAGIC\x0001\0");
        header.extend_from_slice(&[9; 16]);
        let objects: Vec<String> = ids
            .iter()
            .map(|id| {
                let object = &self.layout.objects()[usize::try_from(id - 1).unwrap()];
                let relative = id - ids[0];
                let mut bytes = object.data_type.to_le_bytes().to_vec();
                bytes.push(1);
                bytes.extend_from_slice(&relative.to_le_bytes());
                bytes.extend_from_slice(&object.link.to_le_bytes());
                bytes.extend_from_slice(&object.size.to_le_bytes());
                bytes.extend_from_slice(&object.created.to_le_bytes());
                bytes.extend_from_slice(&[0; 16]);
                bytes.extend_from_slice(&object.name);
                bytes.extend_from_slice(object.extra.as_slice());
                assert_eq!(bytes.len(), 557);
                let content = &self.contents[usize::try_from(id - 1).unwrap()];
                format!(
                    r#"{{"relativeId":{relative},"descriptorDigest":"{}","objectDigest":"{}"}}"#,
                    hex(&bytes),
                    hex(content)
                )
            })
            .collect();
        format!(r#"{{"version":1,"header":{{"digest":"{}"}},"objects":[{}]}}"#, hex(&header), objects.join(","))
    }
    fn signed(mut self, group: u32, signature: Vec<u8>) -> Self {
        self.signatures.push((group, signature));
        self
    }
    fn write(&self) -> PathBuf {
        let mut layout = self.layout.clone();
        for (group, signature) in &self.signatures {
            let size = u64::try_from(signature.len()).unwrap();
            let extra = [1, 0, 0, 0];
            let object =
                Object { data_type: data_type::SIGNATURE, name: "", link: *group, group: GROUP, extra: &extra, size };
            layout.add(object).unwrap();
        }
        let path = self.folder.path().join("plain.sif");
        let file = std::fs::File::create(&path).unwrap();
        file.write_all_at(&layout.head(), 0).unwrap();
        let contents = self.contents.iter().chain(self.signatures.iter().map(|(_, signature)| signature));
        for (object, content) in layout.objects().iter().zip(contents) {
            file.write_all_at(content, object.offset).unwrap();
        }
        path
    }
    fn open(&self, trusted: &Trusted) -> Result<Squashfs, SifError> {
        squashfs_of_signed(&self.write(), self.folder.path(), trusted)
    }
    #[track_caller]
    fn refused(&self, trusted: &Trusted, why: &str) {
        match self.open(trusted) {
            Ok(_) => panic!("accepted, expected: {why}"),
            Err(SifError::Signature(error)) => assert!(error.contains(why), "{error}: expected {why}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn tools() -> bool {
    have("gpg") && have("gpgv") && have("mksquashfs")
}

fn pgp(keyring: Keyring) -> Trusted {
    Trusted { dsse: Vec::new(), pgp: Some(keyring) }
}

fn dsse(keys: &[&PKey<Private>]) -> Trusted {
    Trusted { dsse: keys.iter().map(|key| signer(key)).collect(), pgp: None }
}

fn dsse_signature(json: &str, key: &PKey<Private>) -> Vec<u8> {
    serde_json::to_vec(&envelope(support::PAYLOAD_TYPE, json.as_bytes(), &[key])).unwrap()
}

#[test]
fn pgp_signatures_of_stock_images() {
    if !tools() {
        return;
    }
    for (kind, hash, armour) in
        [("ed25519", "SHA256", true), ("rsa2048", "SHA512", false), ("nistp256", "SHA384", true)]
    {
        let gpg = Gpg::new(kind);
        let plain = Plain::new();
        let signature = gpg.sign(&plain.json(&[1, 2, 3]), hash);
        let plain = plain.signed(GROUP_1, signature);
        let squashfs = plain.open(&pgp(gpg.keyring(armour))).unwrap();
        assert_eq!(squashfs.verified().unwrap().signers, [gpg.fingerprint()], "{kind}");
        let unverified = plain.open(&Trusted::default()).unwrap();
        assert!(unverified.verified().is_none(), "nobody asked");
    }
}

#[test]
fn pgp_signatures_that_do_not_count() {
    if !tools() {
        return;
    }
    let (gpg, stranger) = (Gpg::new("ed25519"), Gpg::new("ed25519"));
    let trusted = pgp(gpg.keyring(true));
    let good = |plain: &Plain| gpg.sign(&plain.json(&[1, 2, 3]), "SHA256");
    Plain::new().refused(&trusted, "not signed");
    let plain = Plain::new();
    let foreign = stranger.sign(&plain.json(&[1, 2, 3]), "SHA256");
    let plain = plain.signed(GROUP_1, foreign.clone());
    plain.refused(&trusted, "not by a trusted key");
    // One by each: all that are found must hold.
    let signature = good(&plain);
    plain.signed(GROUP_1, signature).refused(&trusted, "not by a trusted key");

    // An object changed, one more in the group, one in a group of its own, in none.
    let mut changed = Plain::new();
    let signature = good(&changed);
    changed.contents[2][4000] ^= 1;
    changed.signed(GROUP_1, signature).refused(&trusted, "object 3 is not what was signed");
    for (group, why) in [(GROUP_1, "3 objects are signed"), (GROUP | 2, "group 2 is not signed"), (GROUP, "no group")] {
        let mut more = Plain::new();
        let signature = good(&more);
        more.add(data_type::GENERIC, group, &[], b"more".to_vec());
        more.signed(GROUP_1, signature).refused(&trusted, why);
    }
    // Another group's signature, or one over a part.
    let plain = Plain::new();
    let signature = good(&plain);
    plain.signed(GROUP | 2, signature).refused(&trusted, "group 1 is not signed");
    let plain = Plain::new();
    let part = gpg.sign(&plain.json(&[1, 2]), "SHA256");
    plain.signed(GROUP_1, part).refused(&trusted, "2 objects are signed");
    // Other JSON: white space, another digest.
    for change in [
        (",", ", "),
        ("relativeId\":0", "relativeId\":1"),
        ("descriptorDigest\":\"sha256:", "descriptorDigest\":\"sha256:0"),
    ] {
        let plain = Plain::new();
        let text = plain.json(&[1, 2, 3]).replacen(change.0, change.1, 1);
        let signature = gpg.sign(&text, "SHA256");
        plain.signed(GROUP_1, signature).refused(&trusted, "");
    }
    // Texts that are none: SHA-1, two signatures, words around it, nothing of it.
    let plain = Plain::new();
    let weak = gpg.sign(&plain.json(&[1, 2, 3]), "SHA1");
    plain.signed(GROUP_1, weak).refused(&trusted, "PGP");
    let plain = Plain::new();
    let text = good(&plain);
    let twice = [&text[..], &text[..]].concat();
    plain.signed(GROUP_1, twice).refused(&trusted, "PGP");
    let plain = Plain::new();
    plain.signed(GROUP_1, b"SIFHASH:\n00".to_vec()).refused(&trusted, "names no key for it");
    let plain = Plain::new();
    plain.signed(GROUP_1, b"-----BEGIN PGP SIGNED MESSAGE-----\n".to_vec()).refused(&trusted, "PGP");

    // A revoked key signs nothing.
    let revoked = Gpg::new("ed25519");
    let plain = Plain::new();
    let signature = revoked.sign(&plain.json(&[1, 2, 3]), "SHA256");
    let plain = plain.signed(GROUP_1, signature);
    plain.open(&pgp(revoked.keyring(true))).unwrap();
    let certificate = revoked.0.path().join("openpgp-revocs.d").join(format!("{}.rev", revoked.fingerprint()));
    let text = std::fs::read_to_string(certificate).unwrap().replace(":-----BEGIN", "-----BEGIN");
    revoked.run(&["--import"], text.as_bytes());
    plain.refused(&pgp(revoked.keyring(true)), "revoked");

    assert!(Keyring::from_bytes(&gpg.run(&["--export-secret-keys"], b"")).is_err());
    assert!(Keyring::from_bytes(b"").is_err());
    assert!(
        Keyring::from_bytes(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----").is_err()
    );
}

#[test]
fn dsse_signatures_of_the_input() {
    if !tools() {
        return;
    }
    let (mine, other) = (ed25519(), ed25519());
    let plain = Plain::new();
    let signature = dsse_signature(&plain.json(&[1, 2, 3]), &mine);
    let plain = plain.signed(GROUP_1, signature.clone());
    assert_eq!(plain.open(&dsse(&[&other, &mine])).unwrap().verified().unwrap().signers.len(), 1);
    plain.refused(&dsse(&[&other]), "not by a trusted key");
    // Of another kind than what is there.
    let gpg = Gpg::new("ed25519");
    plain.refused(&pgp(gpg.keyring(true)), "--input-signer names no key");
    let signature = gpg.sign(&plain.json(&[1, 2, 3]), "SHA256");
    let both = plain.signed(GROUP_1, signature);
    both.refused(&dsse(&[&mine]), "--input-pgp names no key");
    let trusted = Trusted { dsse: vec![signer(&mine)], pgp: Some(gpg.keyring(false)) };
    assert_eq!(both.open(&trusted).unwrap().verified().unwrap().signers.len(), 2);
    // What has no signature at all is refused when one is asked for.
    let folder = both.folder.path();
    for input in ["root", "plain.sqfs"] {
        let error = squashfs_of_signed(&folder.join(input), folder, &trusted).unwrap_err().to_string();
        assert!(error.contains("no SIF"), "{input}: {error}");
    }
}

#[test]
fn what_is_encrypted_is_what_was_signed() {
    if !tools() || !have("cryptsetup") {
        return;
    }
    let mine = ed25519();
    let plain = Plain::new();
    let signature = dsse_signature(&plain.json(&[1, 2, 3]), &mine);
    let plain = plain.signed(GROUP_1, signature);
    let path = plain.write();
    let trusted = dsse(&[&mine]);
    let (signing, escrow) = (owner(&mine), Escrow::from_pem(&rsa(2048).public_key_to_pem().unwrap()).unwrap());
    let make = |change: bool, output: &Path| {
        let squashfs = squashfs_of_signed(&path, plain.folder.path(), &trusted).unwrap();
        if change {
            // After its signature was verified, before it is read again.
            let at = plain.layout.objects()[2].offset + 500_000;
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"changed", at).unwrap();
        }
        protect(
            &Plan { squashfs: &squashfs, policy: POLICY, signer: &signing, escrow: &escrow, output, time: 0 },
            |_, _| {},
        )
    };
    let output = plain.folder.path().join("app.sif");
    make(false, &output).unwrap();
    Image::open(&output, &[signer(&mine)]).unwrap();
    let late = plain.folder.path().join("late.sif");
    assert!(matches!(make(true, &late), Err(SifError::Signature(why)) if why.contains("changed after")));
    assert!(!late.exists());
}
