//! Other people's programs read what we write, and we read what they write.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use countersign_sif::View;
use countersign_sif::dsse::{SignerKey, object_digest};
use countersign_sif::format::{GROUP, Sif, data_type};
use countersign_sif::protect::squashfs_of;
use countersign_sif::verity::{Builder, leaves, tree_size};
use countersign_sif::xts::Xts;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use sha2::{Digest as _, Sha256};
use support::{
    DESCRIPTOR, PAYLOAD_TYPE, POLICY, at, content, ec, ed25519, field, file, fixture, folder_with_files, have, id,
    owner, pae, rsa, run, sign_again, signed_payload, signer,
};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn text(program: &str, arguments: &[&str]) -> String {
    String::from_utf8(run(program, arguments, b"")).unwrap()
}

#[test]
fn siftool_reads_our_images() {
    let Some(fixture) = fixture() else { return };
    if !have("siftool") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("app.sif");
    std::fs::write(&image, &fixture.bytes).unwrap();
    let header = text("siftool", &["header", path(&image)]);
    assert!(header.contains("run-singularity") && header.contains("Version:") && header.contains("42"), "{header}");
    let list = text("siftool", &["list", path(&image)]);
    assert!(list.contains("FS (Encrypted squashfs/*System/"), "{list}");
    for word in ["JSON.Generic", "Generic/Raw", "Cryptographic Message (PEM/RSA-OAEP)", "Signature (SHA-256)"] {
        assert!(list.contains(word), "{word} is missing in\n{list}");
    }
    let info = text("siftool", &["info", "3", path(&image)]);
    assert!(info.contains("countersign.verity") && info.contains("Linked ID:") && info.contains('1'), "{info}");
    for object in 1..=6 {
        assert!(
            run("siftool", &["dump", &object.to_string(), path(&image)], b"") == content(&fixture.bytes, object),
            "object {object}"
        );
    }
}

#[test]
fn we_read_what_siftool_writes() {
    if !have("siftool") || !have("mksquashfs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    folder_with_files(&folder.path().join("root"));
    let (root, sqfs, image) =
        (folder.path().join("root"), folder.path().join("root.sqfs"), folder.path().join("plain.sif"));
    run("mksquashfs", &[path(&root), path(&sqfs), "-quiet", "-no-progress"], b"");
    let note = folder.path().join("note");
    std::fs::write(&note, "a note").unwrap();
    run("siftool", &["new", path(&image)], b"");
    run("siftool", &["add", "--datatype", "7", path(&image), path(&note)], b"");
    let partition =
        ["add", "--datatype", "4", "--parttype", "2", "--partfs", "1", "--partarch", "4", path(&image), path(&sqfs)];
    run("siftool", &partition, b"");
    run("siftool", &["add", "--datatype", "6", path(&image), path(&note)], b"");
    run("siftool", &["del", "1", path(&image)], b"");
    let opened = std::fs::File::open(&image).unwrap();
    let sif = Sif::read(&opened).unwrap();
    assert_eq!(
        sif.objects.iter().map(|o| (o.id, o.data_type)).collect::<Vec<_>>(),
        [(2, data_type::PARTITION), (3, data_type::JSON)]
    );
    assert_eq!(sif.primary().unwrap().group, GROUP, "siftool puts objects into no group unless told");
    let squashfs = squashfs_of(&image, folder.path()).unwrap();
    let want = std::fs::read(&sqfs).unwrap();
    let mut got = vec![0; usize::try_from(squashfs.length()).unwrap()];
    squashfs.read_exact_at(&mut got, 0).unwrap();
    assert!(got == want);
    assert_eq!(squashfs.arch().0, *b"04\0", "the architecture of the image, not of this machine");
}

/// What a signature covers, from the bytes of the table alone (sif-format, section 7).
#[test]
fn the_signed_json_as_computed_from_the_raw_bytes() {
    let Some(fixture) = fixture() else { return };
    let bytes = &fixture.bytes;
    let digest = |parts: &[&[u8]]| format!("sha256:{}", hex::encode(Sha256::digest(parts.concat())));
    let objects: Vec<String> = (1..=5)
        .map(|object: u32| {
            let part = |from, to| &bytes[at(object, from)..at(object, to)];
            let relative = (object - 1).to_le_bytes();
            let descriptor = [
                part(field::TYPE, field::ID),
                &relative,
                part(field::LINK, field::OFFSET),
                part(field::SIZE, field::PADDED),
                part(field::CREATED, field::MODIFIED),
                part(57, DESCRIPTOR),
            ];
            assert_eq!(descriptor.concat().len(), 557);
            format!(
                r#"{{"relativeId":{},"descriptorDigest":"{}","objectDigest":"{}"}}"#,
                object - 1,
                digest(&descriptor),
                digest(&[&content(bytes, object)])
            )
        })
        .collect();
    let header = digest(&[&bytes[0..45], &bytes[48..64]]);
    let want = format!(r#"{{"version":1,"header":{{"digest":"{header}"}},"objects":[{}]}}"#, objects.join(","));
    assert_eq!(String::from_utf8(signed_payload(bytes)).unwrap(), want);
}

#[test]
fn openssl_verifies_every_kind_of_signature() {
    let Some(fixture) = fixture() else { return };
    if !have("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file_of = |name: &str, bytes: &[u8]| {
        let place = folder.path().join(name);
        std::fs::write(&place, bytes).unwrap();
        path(&place).to_owned()
    };
    let keys: [(&str, PKey<Private>); 4] =
        [("ed25519", ed25519()), ("p256", ec(Nid::X9_62_PRIME256V1)), ("p384", ec(Nid::SECP384R1)), ("rsa", rsa(2048))];
    for (name, key) in keys {
        let mut bytes = fixture.bytes.clone();
        sign_again(&mut bytes, &key);
        let image = countersign_sif::Image::from_file(file(&bytes), &[signer(&key)], false).unwrap();
        let envelope: serde_json::Value = serde_json::from_slice(&content(&bytes, id::SIGNATURE)).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        assert_eq!(text(&envelope["signatures"][0]["keyid"]), image.signer);
        let signature =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text(&envelope["signatures"][0]["sig"]));
        let signature = file_of(&format!("{name}.sig"), &signature.unwrap());
        let message = file_of(&format!("{name}.pae"), &pae(PAYLOAD_TYPE, &signed_payload(&bytes)));
        let public = file_of(&format!("{name}.pem"), &key.public_key_to_pem().unwrap());
        let mut arguments =
            vec!["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", &public, "-in", &message, "-sigfile", &signature];
        if name != "ed25519" {
            arguments.extend(["-digest", "sha256"]);
        }
        run("openssl", &arguments, b"");
        // OpenSSH's own fingerprint of the same key (it reads no Ed25519 from SPKI).
        if name != "ed25519" && have("ssh-keygen") {
            let line = run("ssh-keygen", &["-i", "-m", "PKCS8", "-f", &public], b"");
            let fingerprint = String::from_utf8(run("ssh-keygen", &["-l", "-f", &file_of("ssh", &line)], b"")).unwrap();
            assert!(fingerprint.contains(&image.signer), "{fingerprint} {}", image.signer);
        }
    }
    for refused in [rsa(1024), ec(Nid::SECP521R1), ec(Nid::SECP256K1)] {
        assert!(SignerKey::from_pem(&refused.public_key_to_pem().unwrap()).is_err());
    }
    assert!(SignerKey::from_pem(b"nonsense").is_err());
    assert!(!format!("{:?}", owner(&fixture.owner)).contains("PRIVATE"));
}

#[test]
fn cryptsetup_and_openssl_open_the_container_with_the_escrow_key() {
    let Some(fixture) = fixture() else { return };
    if !have("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let partition = folder.path().join("partition");
    std::fs::write(&partition, content(&fixture.bytes, id::PARTITION)).unwrap();
    // The passphrase, unwrapped by OpenSSL's command: PEM, DER OCTET STRING, RSA-OAEP with SHA-256.
    let message = String::from_utf8(content(&fixture.bytes, id::MESSAGE)).unwrap();
    assert!(
        message.lines().all(|line| line.len() <= 64) && message.len() == 400,
        "as stock runtimes write it\n{message}"
    );
    let body: String = message.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    assert_eq!(der[..4], [4, 0x82, 1, 0]);
    let key = folder.path().join("escrow.pem");
    std::fs::write(&key, fixture.escrow.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let options =
        ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"];
    let passphrase =
        run("openssl", &[&["pkeyutl", "-decrypt", "-inkey", path(&key)][..], &options].concat(), &der[4..]);
    assert_eq!(passphrase.len(), 64);
    let open = ["open", "--batch-mode", "--type", "luks2", "--test-passphrase", "--key-file", "-", path(&partition)];
    run("cryptsetup", &open, &passphrase);
    let dump = text("cryptsetup", &["luksDump", path(&partition)]);
    for words in [
        "offset: 16777216 [bytes]",
        "cipher: aes-xts-plain64",
        "sector: 512 [bytes]",
        "PBKDF:      pbkdf2",
        "Iterations: 1000",
    ] {
        assert!(dump.contains(words), "{words} is missing in\n{dump}");
    }
    assert_eq!(dump.matches(": luks2\n").count(), 1, "one keyslot");
    // Its volume key decrypts the payload to the squashfs.
    let printed = text_with(
        "cryptsetup",
        &["luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-", path(&partition)],
        &passphrase,
    );
    let digits: String = printed.split("MK dump:").nth(1).unwrap().chars().filter(char::is_ascii_hexdigit).collect();
    let image = fixture.open_full(&fixture.bytes).unwrap();
    let ours = image.open_escrow(&fixture.escrow_key()).unwrap();
    assert_eq!(hex::encode(ours.as_slice()), digits);
    let payload = &content(&fixture.bytes, id::PARTITION)[16 << 20..];
    let mut plain = vec![0; payload.len()];
    Xts::decryptor(&ours).unwrap().run(0, payload, &mut plain).unwrap();
    assert!(plain[..fixture.squashfs.len()] == fixture.squashfs[..]);
    assert!(plain[fixture.squashfs.len()..].iter().all(|&byte| byte == 0));
    assert_eq!(content(&fixture.bytes, id::PARTITION).len(), plain.len() + (16 << 20));
    // And the view gives the same.
    let view = View::new(&image, &ours, 2).unwrap();
    assert!(view.read_at(0, usize::MAX).unwrap() == plain);
    if have("unsquashfs") {
        let whole = folder.path().join("view.sqfs");
        std::fs::write(&whole, view.read_at(0, usize::MAX).unwrap()).unwrap();
        assert_eq!(run("unsquashfs", &["-cat", path(&whole), "secret.txt"], b""), b"the secret\n");
        let list = text("unsquashfs", &["-lln", path(&whole)]);
        assert!(list.lines().all(|line| line.contains(" 0/0 ")), "all files are root's\n{list}");
    }
}

fn text_with(program: &str, arguments: &[&str], input: &[u8]) -> String {
    String::from_utf8(run(program, arguments, input)).unwrap()
}

#[test]
fn the_tree_is_that_of_veritysetup() {
    if !have("veritysetup") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, tree) = (folder.path().join("data"), folder.path().join("tree"));
    for blocks in [2u64, 127, 128, 129, 300, 128 * 128 + 3] {
        let bytes: Vec<u8> = (0..blocks).flat_map(|n| [n.to_le_bytes(); 512]).flatten().collect();
        std::fs::write(&data, &bytes).unwrap();
        let salt = [0xa5; 32];
        let _ = std::fs::remove_file(&tree);
        let salt_digits = hex::encode(salt);
        let arguments =
            ["format", "--no-superblock", "--hash", "sha256", "--data-block-size", "4096", "--hash-block-size", "4096"];
        let said = text("veritysetup", &[&arguments[..], &["--salt", &salt_digits, path(&data), path(&tree)]].concat());
        let mut ours = vec![0; usize::try_from(tree_size(blocks)).unwrap()];
        let mut store = |at: u64, block: &[u8]| {
            let at = usize::try_from(at).unwrap();
            ours[at..at + block.len()].copy_from_slice(block);
            Ok::<(), std::convert::Infallible>(())
        };
        let mut builder = Builder::new(salt, blocks);
        // In pieces of any length.
        for piece in bytes.chunks(4096 * 37) {
            builder.add(&leaves(&salt, piece), &mut store).unwrap();
        }
        let root = builder.finish(&mut store).unwrap();
        assert!(said.contains(&hex::encode(root)), "{blocks} blocks: {said}");
        assert!(std::fs::read(&tree).unwrap() == ours, "{blocks} blocks");
    }
    // That of a whole image.
    let Some(fixture) = fixture() else { return };
    std::fs::write(&data, content(&fixture.bytes, id::PARTITION)).unwrap();
    std::fs::write(&tree, content(&fixture.bytes, id::TREE)).unwrap();
    let salt = hex::encode(fixture.binding.payload.salt);
    let root = hex::encode(fixture.binding.payload.tree_root);
    let options = [
        "--no-superblock",
        "--hash",
        "sha256",
        "--data-block-size",
        "4096",
        "--hash-block-size",
        "4096",
        "--salt",
        &salt,
    ];
    run("veritysetup", &[&["verify"][..], &options, &[path(&data), path(&tree), &root]].concat(), b"");
}

#[test]
fn one_folder_gives_the_same_squashfs_twice() {
    if !have("mksquashfs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("-root"); // not an option
    folder_with_files(&root);
    std::fs::set_permissions(root.join("secret.txt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let make = || {
        let squashfs = squashfs_of(&root, folder.path()).unwrap();
        let mut bytes = vec![0; usize::try_from(squashfs.length()).unwrap()];
        squashfs.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(make() == make());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the folder itself is left");
}

#[test]
fn digests_of_objects_are_read_from_the_file() {
    let Some(fixture) = fixture() else { return };
    let file = file(&fixture.bytes);
    let policy = fixture.object(id::POLICY);
    assert_eq!(object_digest(&file, &policy).unwrap(), format!("sha256:{}", hex::encode(Sha256::digest(POLICY))));
    file.write_all_at(b"x", policy.offset).unwrap();
    assert_ne!(object_digest(&file, &policy).unwrap(), format!("sha256:{}", hex::encode(Sha256::digest(POLICY))));
    file.set_len(policy.offset + 3).unwrap();
    assert!(object_digest(&file, &policy).is_err());
}
