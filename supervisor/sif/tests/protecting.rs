//! Making images: atomically, for either escrow; and reading the decrypted view.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use countersign_sif::error::SifError;
use countersign_sif::escrow::{Escrow, EscrowKey};
use countersign_sif::protect::{Plan, protect, squashfs_of};
use countersign_sif::{Image, View};
use proptest::prelude::*;
use support::{POLICY, ec, ed25519, fixture, id, owner, rsa, signer};
use zeroize::Zeroizing;

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn a_typed_passphrase_opens_the_image() {
    let Some(fixture) = fixture() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("a.sqfs"), folder.path().join("app.sif"));
    std::fs::write(&source, &fixture.squashfs).unwrap();
    std::fs::write(&output, "an older file").unwrap();
    let key = ed25519();
    let squashfs = squashfs_of(&source, folder.path()).unwrap();
    let phrase = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
    // A trailing newline and a zero byte are part of it.
    let escrow = Escrow::Passphrase(phrase("correct horse\0battery\n"));
    let signing = owner(&key);
    let plan =
        Plan { squashfs: &squashfs, policy: POLICY, signer: &signing, escrow: &escrow, output: &output, time: 0 };
    let mut steps = Vec::new();
    let binding = protect(&plan, |done, all| steps.push((done, all))).unwrap();
    assert_eq!(steps.last().map(|(done, all)| done == all), Some(true));
    assert_eq!(names(folder.path()), [source, output.clone()]);
    assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o755);
    let image = Image::from_file(std::fs::File::open(&output).unwrap(), &[signer(&key)], true).unwrap();
    assert_eq!(image.binding(), &binding);
    assert!(image.objects().iter().all(|object| object.data_type != 0x4008), "no crypto message");
    let volume = image.open_escrow(&EscrowKey::Passphrase(phrase("correct horse\0battery\n"))).unwrap();
    let view = View::new(&image, &volume, 1).unwrap();
    assert!(view.read_at(0, fixture.squashfs.len()).unwrap() == fixture.squashfs);
    assert!(matches!(
        image.open_escrow(&EscrowKey::Passphrase(phrase("correct horse"))),
        Err(SifError::Program { program: "cryptsetup", reason }) if reason.contains("No key available")
    ));
    assert!(matches!(image.open_escrow(&EscrowKey::Passphrase(phrase(""))), Err(SifError::Key(_))));
    assert!(matches!(image.open_escrow(&fixture.escrow_key()), Err(SifError::Key(_))));
    // The same input again is another image with another key.
    let other = protect(
        &Plan { escrow: &Escrow::from_pem(&fixture.escrow.public_key_to_pem().unwrap()).unwrap(), ..plan },
        |_, _| {},
    )
    .unwrap();
    assert_ne!(other.workload, binding.workload);
    assert_ne!(other.payload.salt, binding.payload.salt);
    let image = Image::open(&output, &[signer(&key)]).unwrap();
    assert_ne!(image.open_escrow(&fixture.escrow_key()).unwrap().as_slice(), volume.as_slice());
}

#[test]
fn keys_that_do_not_open_it() {
    let Some(fixture) = fixture() else { return };
    let image = fixture.open(&fixture.bytes).unwrap();
    let stranger = EscrowKey::from_pem(&rsa(2048).private_key_to_pem_pkcs8().unwrap()).unwrap();
    assert!(matches!(image.open_escrow(&stranger), Err(SifError::Key(why)) if why.contains("does not open")));
    let longer = EscrowKey::from_pem(&rsa(3072).private_key_to_pem_pkcs8().unwrap()).unwrap();
    assert!(matches!(image.open_escrow(&longer), Err(SifError::Key(_))));
    // Either form of the right one does.
    for pem in [
        fixture.escrow.private_key_to_pem_pkcs8().unwrap(),
        fixture.escrow.rsa().unwrap().private_key_to_pem().unwrap(),
    ] {
        image.open_escrow(&EscrowKey::from_pem(&pem).unwrap()).unwrap();
    }
    let curve = ec(openssl::nid::Nid::X9_62_PRIME256V1);
    assert!(
        matches!(EscrowKey::from_pem(&curve.private_key_to_pem_pkcs8().unwrap()), Err(SifError::Key(why)) if why.contains("no RSA"))
    );
    assert!(Escrow::from_pem(&curve.public_key_to_pem().unwrap()).is_err());
    assert!(
        matches!(Escrow::from_pem(&rsa(1024).public_key_to_pem().unwrap()), Err(SifError::Key(why)) if why.contains("2048"))
    );
    for nonsense in [&b""[..], b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"] {
        assert!(Escrow::from_pem(nonsense).is_err());
        assert!(EscrowKey::from_pem(nonsense).is_err());
    }
    assert_eq!(format!("{:?}", fixture.escrow_key()), "EscrowKey::Pem");
}

#[test]
fn crypto_messages_that_are_malformed() {
    let Some(fixture) = fixture() else { return };
    let good = String::from_utf8(support::content(&fixture.bytes, id::MESSAGE)).unwrap();
    let body = |bytes: &[u8]| {
        format!(
            "-----BEGIN MESSAGE-----\n{}\n-----END MESSAGE-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
        )
    };
    for message in [
        String::new(),
        good.replacen("MESSAGE", "PUBLIC KEY", 1),
        good[..good.len() / 2].to_owned(),
        good.replacen('\n', "\n!", 1),
        body(&[]),
        body(&[4, 0x82, 1]),
        body(&[4, 0x82, 1, 0]),
        body(&[4, 0x82, 0, 0]),
        body(&[[4, 0x82, 1, 0].as_slice(), &[7; 255]].concat()),
        body(&[[4, 0x82, 1, 0].as_slice(), &[7; 256]].concat()),
        body(&[[4, 0x82, 1, 0].as_slice(), &[0xff; 256]].concat()),
        body(&[[4, 0x82, 1, 0].as_slice(), &[7; 257]].concat()),
    ] {
        let mut bytes = fixture.bytes.clone();
        support::replace_object(&mut bytes, id::MESSAGE, message.as_bytes());
        support::sign_again(&mut bytes, &fixture.owner);
        let image = fixture.open(&bytes).unwrap();
        assert!(matches!(image.open_escrow(&fixture.escrow_key()), Err(SifError::Key(_))), "{message}");
    }
    // A message of another kind is not taken for the escrow's.
    let mut bytes = fixture.bytes.clone();
    support::put(&mut bytes, support::at(id::MESSAGE, support::field::EXTRA) + 4, &0x201i32.to_le_bytes());
    support::sign_again(&mut bytes, &fixture.owner);
    assert!(
        matches!(fixture.open(&bytes).unwrap().open_escrow(&fixture.escrow_key()), Err(SifError::Key(why)) if why.contains("passphrase"))
    );
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let Some(fixture) = fixture() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, output, taken) =
        (folder.path().join("a.sqfs"), folder.path().join("app.sif"), folder.path().join("taken"));
    std::fs::write(&source, &fixture.squashfs).unwrap();
    std::fs::write(&output, "an older file").unwrap();
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("x"), "").unwrap();
    let before = names(folder.path());
    let signing = owner(&ed25519());
    let pem = Escrow::from_pem(&fixture.escrow.public_key_to_pem().unwrap()).unwrap();
    let attempt = |escrow: &Escrow, output: &Path, shorter: bool| {
        std::fs::write(&source, &fixture.squashfs).unwrap();
        let squashfs = squashfs_of(&source, folder.path()).unwrap();
        if shorter {
            // The input shrinks after it was opened: an image padded with zeros would be worse than none.
            std::fs::OpenOptions::new().write(true).open(&source).unwrap().set_len(5000).unwrap();
        }
        let outcome = protect(
            &Plan { squashfs: &squashfs, policy: POLICY, signer: &signing, escrow, output, time: 0 },
            |_, _| {},
        );
        assert_eq!(names(folder.path()), before);
        assert_eq!(std::fs::read(folder.path().join("app.sif")).unwrap(), b"an older file");
        outcome.unwrap_err()
    };
    assert!(matches!(attempt(&pem, &output, true), SifError::Io(_)));
    assert!(matches!(attempt(&pem, &taken, false), SifError::Io(_)));
    assert!(matches!(attempt(&pem, &folder.path().join("no/where"), false), SifError::Io(_)));
    for phrase in [vec![], vec![b'x'; 513]] {
        assert!(matches!(attempt(&Escrow::Passphrase(Zeroizing::new(phrase)), &output, false), SifError::Key(_)));
    }
}

#[test]
fn inputs_that_are_no_file_system() {
    let Some(fixture) = fixture() else { return };
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    let mut other_version = fixture.squashfs.clone();
    other_version[28] = 3;
    for (bytes, why) in [
        (&b""[..], "too short"),
        (b"hsqs", "superblock"),
        (&[0; 200], "magic"),
        (&fixture.squashfs[..fixture.squashfs.len() - 5000], "truncated"),
        (&other_version, "version"),
        (&fixture.bytes, "encrypted already"),
    ] {
        std::fs::write(&input, bytes).unwrap();
        match squashfs_of(&input, folder.path()) {
            Ok(_) => panic!("accepted, expected: {why}"),
            Err(error) => assert!(error.to_string().contains(why), "{error}: expected {why}"),
        }
    }
    assert!(squashfs_of(&folder.path().join("absent"), folder.path()).is_err());
}

#[test]
fn a_view_shared_by_more_threads_than_it_has_contexts() {
    let Some(fixture) = fixture() else { return };
    let image = fixture.open(&fixture.bytes).unwrap();
    let view = View::new(&image, &image.open_escrow(&fixture.escrow_key()).unwrap(), 2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let view = &view;
            scope.spawn(move || {
                for n in 0..60 {
                    let from = (thread * 7919 + n * 48_611) % (view.length() - 9000);
                    let start = usize::try_from(from).unwrap();
                    assert!(view.read_at(from, 9000).unwrap()[..100] == fixture.squashfs[start..start + 100]);
                }
            });
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_span_of_the_view_is_that_of_the_file_system(from in 0u64..3_100_000, size in 0usize..20_000) {
        let Some(fixture) = fixture() else { return Ok(()) };
        static VIEW: std::sync::OnceLock<View> = std::sync::OnceLock::new();
        let view = VIEW.get_or_init(|| {
            let image = fixture.open(&fixture.bytes).unwrap();
            View::new(&image, &image.open_escrow(&fixture.escrow_key()).unwrap(), 1).unwrap()
        });
        let mut want = fixture.squashfs.clone();
        want.resize(usize::try_from(view.length()).unwrap(), 0);
        let start = usize::try_from(from).unwrap().min(want.len());
        let end = (start + size).min(want.len());
        prop_assert!(view.read_at(from, size).unwrap() == want[start..end]);
        prop_assert!(view.read_at(u64::MAX - from, size).unwrap().is_empty());
    }
}
