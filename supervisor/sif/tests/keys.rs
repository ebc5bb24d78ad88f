//! Owners' keys in every form in which people keep them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use countersign_sif::Image;
use countersign_sif::dsse::{OwnerKey, object_digest};
use countersign_sif::error::SifError;
use countersign_sif::escrow::EscrowKey;
use countersign_sif::format::{Descriptor, Sif};
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::symm::Cipher;
use support::{ec, ed25519, file, fixture, id, rsa, signer};

const PHRASE: &[u8] = b"correct horse";

/// PEM in every form that OpenSSL writes, and whether it is encrypted.
fn forms(key: &PKey<Private>) -> Vec<(Vec<u8>, bool)> {
    let cipher = Cipher::aes_256_cbc();
    let mut forms = vec![
        (key.private_key_to_pem_pkcs8().unwrap(), false),
        (key.private_key_to_pem_pkcs8_passphrase(cipher, PHRASE).unwrap(), true),
    ];
    if let Ok(key) = key.ec_key() {
        forms.push((key.private_key_to_pem().unwrap(), false));
        forms.push((key.private_key_to_pem_passphrase(cipher, PHRASE).unwrap(), true));
    }
    if let Ok(key) = key.rsa() {
        forms.push((key.private_key_to_pem().unwrap(), false));
        forms.push((key.private_key_to_pem_passphrase(cipher, PHRASE).unwrap(), true));
    }
    forms
}

#[test]
fn every_kind_in_every_form_signs() {
    let Some(fixture) = fixture() else { return };
    for key in [ed25519(), ec(Nid::X9_62_PRIME256V1), ec(Nid::SECP384R1), rsa(2048)] {
        for (pem, encrypted) in forms(&key) {
            let owner = OwnerKey::from_encrypted_pem(&pem, Some(PHRASE)).unwrap();
            let mut bytes = fixture.bytes.clone();
            let image = file(&bytes);
            let sif = Sif::read(&image).unwrap();
            let objects = sif.objects.iter().filter(|object| object.id != id::SIGNATURE);
            let group: Vec<(&Descriptor, String)> =
                objects.map(|object| (object, object_digest(&image, object).unwrap())).collect();
            support::replace_object(&mut bytes, id::SIGNATURE, &owner.sign(&sif, &group).unwrap());
            let opened = Image::from_file(file(&bytes), &[signer(&key)], true).unwrap();
            assert_eq!(opened.signer, signer(&key).id().unwrap());
            assert!(Image::from_file(file(&bytes), &[signer(&ed25519())], true).is_err());
            // Never a question on a terminal: without the passphrase, or with another one, there is no key.
            let without = OwnerKey::from_pem(&pem);
            assert_eq!(without.is_err(), encrypted);
            if let Err(SifError::Key(why)) = without {
                assert!(why.contains("is encrypted"), "{why}");
            }
            for wrong in [&b"wrong"[..], b"", &[b'x'; 5000]] {
                let opened = OwnerKey::from_encrypted_pem(&pem, Some(wrong));
                assert_eq!(opened.is_err(), encrypted);
                if let Err(SifError::Key(why)) = opened {
                    assert!(why.contains("does not open"), "{why}");
                }
            }
        }
    }
}

#[test]
fn an_encrypted_escrow_key_opens_the_image() {
    let Some(fixture) = fixture() else { return };
    let image = fixture.open(&fixture.bytes).unwrap();
    let plain = image.open_escrow(&fixture.escrow_key()).unwrap();
    for (pem, encrypted) in forms(&fixture.escrow) {
        let key = EscrowKey::from_encrypted_pem(&pem, Some(PHRASE)).unwrap();
        assert_eq!(image.open_escrow(&key).unwrap().as_slice(), plain.as_slice());
        assert_eq!(EscrowKey::from_pem(&pem).is_err(), encrypted);
    }
}
