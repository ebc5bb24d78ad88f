//! Attacks on a protected image.
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

use countersign_sif::binding::{Binding, Payload};
use countersign_sif::error::SifError;
use countersign_sif::format::{GROUP, Sif};
use countersign_sif::{Image, View};
use countersign_wire::id::PolicyDigest;
use serde_json::Value;
use support::{
    DESCRIPTOR, Fixture, PAYLOAD_TYPE, POLICY, at, content, ed25519, envelope, field, file, fixture, id, pae, put,
    replace_object, sign_again, signed_payload, signer,
};

fn refused<T: std::fmt::Debug>(result: Result<T, SifError>, why: &str) {
    match result {
        Ok(_) => panic!("accepted, expected: {why}"),
        Err(error) => assert!(error.to_string().contains(why), "{error}: expected {why}"),
    }
}

#[test]
fn stripped_signature() {
    let Some(fixture) = fixture() else { return };
    let mut bytes = fixture.bytes.clone();
    put(&mut bytes, at(id::SIGNATURE, 0), &[0; DESCRIPTOR]);
    refused(fixture.open(&bytes), "0 signatures");
}

#[test]
fn foreign_signature() {
    let Some(fixture) = fixture() else { return };
    let stranger = ed25519();
    let mut bytes = fixture.bytes.clone();
    sign_again(&mut bytes, &stranger);
    refused(fixture.open(&bytes), "not by a trusted key");
    refused(Image::from_file(file(&fixture.bytes), &[], false), "not by a trusted key");
    // It is a good signature; only its maker is not trusted.
    Image::from_file(file(&bytes), &[signer(&stranger)], true).unwrap();
    Image::from_file(file(&bytes), &[signer(&fixture.owner), signer(&stranger)], true).unwrap();
    // A second signature beside the owner's.
    let mut bytes = fixture.bytes.clone();
    let first = bytes[at(id::SIGNATURE, 0)..at(id::SIGNATURE, DESCRIPTOR)].to_vec();
    put(&mut bytes, at(7, 0), &first);
    put(&mut bytes, at(7, field::ID), &7u32.to_le_bytes());
    let foreign = envelope(PAYLOAD_TYPE, &signed_payload(&fixture.bytes), &[&stranger]).to_string();
    replace_object(&mut bytes, 7, foreign.as_bytes());
    refused(fixture.open(&bytes), "2 signatures");
}

#[test]
fn signature_for_another_group_or_image() {
    let Some(fixture) = fixture() else { return };
    let mut bytes = fixture.bytes.clone();
    put(&mut bytes, at(id::SIGNATURE, field::LINK), &(GROUP | 2).to_le_bytes());
    refused(fixture.open(&bytes), "another group");
    let mut bytes = fixture.bytes.clone();
    put(&mut bytes, 48, &[1; 16]);
    refused(fixture.open(&bytes), "header or descriptors");
}

#[test]
fn swapped_policy() {
    let Some(fixture) = fixture() else { return };
    let mut bytes = fixture.bytes.clone();
    replace_object(&mut bytes, id::POLICY, b"allow everything");
    refused(fixture.open(&bytes), "object 4 (countersign.policy) is not what was signed");
    // Even its owner cannot sign a policy that the binding does not name.
    sign_again(&mut bytes, &fixture.owner);
    refused(fixture.open(&bytes), "the policy's digest is");
    // With a new binding it is another workload: a key sealed for the first is not released for it.
    let binding = Binding::new(
        fixture.binding.payload.clone(),
        PolicyDigest::of(b"allow everything"),
        &bytes[48..64].try_into().unwrap(),
    );
    replace_object(&mut bytes, id::BINDING, &binding.to_bytes().unwrap());
    sign_again(&mut bytes, &fixture.owner);
    let image = fixture.open_full(&bytes).unwrap();
    assert_ne!(image.binding().workload, fixture.binding.workload);
}

#[test]
fn changed_binding() {
    let Some(fixture) = fixture() else { return };
    let good = String::from_utf8(content(&fixture.bytes, id::BINDING)).unwrap();
    let uuid = fixture.bytes[48..64].try_into().unwrap();
    let with = |change: &dyn Fn(&mut Payload)| {
        let mut payload = fixture.binding.payload.clone();
        change(&mut payload);
        String::from_utf8(Binding::new(payload, PolicyDigest::of(POLICY), &uuid).to_bytes().unwrap()).unwrap()
    };
    for (json, why) in [
        (good.replacen("{\"version\":1", "{\"version\":1,\"version\":1", 1), "duplicate field"),
        (good.replacen("{\"version\":1", "{\"version\":1,\"more\":1", 1), "unknown field"),
        (good.replacen("{\"version\":1", "{\"version\":2", 1), "version 2"),
        (good.replacen("\"salt\":\"", "\"salt\":\"00", 1), ""),
        (format!("{good} x"), "trailing"),
        (with(&|p| p.payload_offset = 0), "payload offset"),
        (with(&|p| p.payload_offset += 4096), "payload offset"),
        (with(&|p| p.payload_offset -= 1), "payload offset"),
        (with(&|p| p.cipher = "aes-cbc-essiv:sha256".into()), "cipher"),
        (with(&|p| p.sector_size = 4096), "4096-byte sectors"),
        (with(&|p| p.data_block_count += 1), "block sizes"),
        (with(&|p| p.data_block_size = 1024), "block sizes"),
        (with(&|p| p.hash_block_size = 512), "block sizes"),
        (
            with(&|p| {
                p.data_block_count -= 1;
                p.partition_length -= 4096;
            }),
            "the partition has",
        ),
    ] {
        let mut bytes = fixture.bytes.clone();
        replace_object(&mut bytes, id::BINDING, json.as_bytes());
        refused(fixture.open(&bytes), "object 5 (countersign.json) is not what was signed");
        sign_again(&mut bytes, &fixture.owner);
        refused(fixture.open(&bytes), why);
    }
    // A root that is not that of the stored tree opens, and gives nothing.
    let mut bytes = fixture.bytes.clone();
    replace_object(&mut bytes, id::BINDING, with(&|p| p.tree_root[0] ^= 1).as_bytes());
    sign_again(&mut bytes, &fixture.owner);
    let image = fixture.open(&bytes).unwrap();
    refused(image.open_escrow(&fixture.escrow_key()), "was changed");
    refused(fixture.open_full(&bytes), "was changed");
}

#[test]
fn objects_added_or_removed() {
    let Some(fixture) = fixture() else { return };
    for group in [GROUP, GROUP | 1, GROUP | 2] {
        let mut bytes = fixture.bytes.clone();
        let policy = bytes[at(id::POLICY, 0)..at(id::POLICY, DESCRIPTOR)].to_vec();
        put(&mut bytes, at(7, 0), &policy);
        put(&mut bytes, at(7, field::ID), &7u32.to_le_bytes());
        put(&mut bytes, at(7, field::GROUP), &group.to_le_bytes());
        replace_object(&mut bytes, 7, b"another policy");
        assert!(fixture.open(&bytes).is_err());
        put(&mut bytes, at(7, field::NAME), &[b'x'; 128]);
        refused(
            fixture.open(&bytes),
            if group == GROUP | 1 { "5 objects are signed, the group has 6" } else { "no signed group" },
        );
    }
    for removed in [id::PARTITION, id::MESSAGE, id::TREE, id::POLICY, id::BINDING] {
        let mut bytes = fixture.bytes.clone();
        put(&mut bytes, at(removed, 0), &[0; DESCRIPTOR]);
        assert!(fixture.open(&bytes).is_err());
    }
}

#[test]
fn envelopes_that_are_not_exactly_right() {
    let Some(fixture) = fixture() else { return };
    let payload = signed_payload(&fixture.bytes);
    let text = String::from_utf8(payload.clone()).unwrap();
    let open = |envelope: &str| {
        let mut bytes = fixture.bytes.clone();
        replace_object(&mut bytes, id::SIGNATURE, envelope.as_bytes());
        fixture.open(&bytes)
    };
    let sign = |payload: &str| envelope(PAYLOAD_TYPE, payload.as_bytes(), &[&fixture.owner]).to_string();
    open(&sign(&text)).unwrap();
    // Signed by the owner, but not the one JSON that the image has.
    for other in [
        text.replacen("{\"version\":1", "{\"version\":1,\"version\":1", 1),
        text.replacen("{\"version\":1", "{\"version\":1,\"more\":1", 1),
        text.replacen("{\"version\":1", "{\"version\": 1", 1),
        text.replacen("{\"version\":1", "{\"version\":2", 1),
        text.replacen("\"relativeId\":0", "\"relativeId\":1", 1),
        text.replacen("sha256:", "sha512:", 1),
        text.replacen("\"header\":", "\"Header\":", 1),
        format!("{text}\n"),
        text[..text.len() - 1].to_owned(),
        "{}".to_owned(),
        String::new(),
    ] {
        refused(open(&sign(&other)), "signature");
    }
    // An object less in the payload; the digests of two objects exchanged.
    let mut value: Value = serde_json::from_slice(&payload).unwrap();
    let objects = value["objects"].as_array_mut().unwrap();
    objects.swap(3, 4);
    let swapped = serde_json::to_string(&value).unwrap();
    refused(open(&sign(&swapped)), "not what was signed");
    value["objects"].as_array_mut().unwrap().pop();
    refused(open(&sign(&serde_json::to_string(&value).unwrap())), "4 objects are signed");
    // The envelope itself.
    let good = sign(&text);
    for (other, why) in [
        (good.replacen("{\"payload\":", "{\"payload\":\"\",\"payload\":", 1), "duplicate field"),
        (good.replacen("{\"payload\":", "{\"more\":1,\"payload\":", 1), "unknown field"),
        (good.replacen("\"signatures\":[{", "\"signatures\":[{\"sig\":\"\",", 1), "duplicate field"),
        (envelope("application/json", &payload, &[&fixture.owner]).to_string(), "another payload type"),
        (envelope(PAYLOAD_TYPE, &payload, &[]).to_string(), "no signature"),
        (envelope(PAYLOAD_TYPE, &payload, &[&fixture.owner, &ed25519()]).to_string(), "not by a trusted key"),
        (envelope(PAYLOAD_TYPE, &payload, &[&ed25519(), &fixture.owner]).to_string(), "not by a trusted key"),
        (format!("{good}x"), "trailing"),
        (good[..good.len() - 1].to_owned(), "no DSSE envelope"),
        (good.replacen("\"payload\":\"", "\"payload\":\"!", 1), "base64"),
        (good.replacen("\"sig\":\"", "\"sig\":\"!", 1), "base64"),
    ] {
        refused(open(&other), why);
    }
    // A signature over the bare payload, without the envelope's own encoding of it.
    let mut bare = envelope(PAYLOAD_TYPE, &payload, &[&fixture.owner]);
    let mut raw = openssl::sign::Signer::new_without_digest(&fixture.owner).unwrap();
    let raw = raw.sign_oneshot_to_vec(&payload).unwrap();
    bare["signatures"][0]["sig"] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, raw).into();
    refused(open(&bare.to_string()), "not by a trusted key");
    assert_ne!(pae(PAYLOAD_TYPE, &payload), payload);
    // Longer than any envelope.
    let mut bytes = fixture.bytes.clone();
    replace_object(&mut bytes, id::SIGNATURE, &vec![b' '; 1024 * 1024 + 1]);
    refused(fixture.open(&bytes), "at most");
}

#[test]
fn one_changed_byte_anywhere_in_an_object() {
    let Some(fixture) = fixture() else { return };
    for object in 1..=6 {
        let descriptor = fixture.object(object);
        for place in [descriptor.offset, descriptor.offset + descriptor.size / 2, descriptor.end() - 1] {
            let mut bytes = fixture.bytes.clone();
            bytes[usize::try_from(place).unwrap()] ^= 1;
            assert!(fixture.open_full(&bytes).is_err(), "object {object}, byte {place}");
            let opened = fixture.open(&bytes);
            assert_eq!(
                opened.is_ok(),
                [id::PARTITION, id::TREE].contains(&object),
                "object {object}, byte {place}: {opened:?}"
            );
        }
    }
}

fn view(fixture: &Fixture, image: &Image) -> View {
    let key = fixture.open(&fixture.bytes).unwrap().open_escrow(&fixture.escrow_key()).unwrap();
    View::new(image, &key, 1).unwrap()
}

#[test]
fn changed_blocks_are_never_decrypted() {
    let Some(fixture) = fixture() else { return };
    let partition = fixture.object(id::PARTITION);
    let payload = fixture.binding.payload.payload_offset;
    let block = (partition.size - payload) / 4096 / 2;
    let mut bytes = fixture.bytes.clone();
    bytes[usize::try_from(partition.offset + payload + block * 4096 + 17).unwrap()] ^= 0x80;
    let image = fixture.open(&bytes).unwrap();
    let view = view(fixture, &image);
    let want = payload / 4096 + block;
    match view.read_at(block * 4096 - 1, 2) {
        Err(SifError::Integrity { block, level: 0 }) => assert_eq!(block, want),
        other => panic!("{other:?}"),
    }
    // Its neighbours are as they were.
    let start = usize::try_from(block * 4096).unwrap();
    assert_eq!(view.read_at((block - 1) * 4096, 4096).unwrap(), fixture.squashfs[start - 4096..start]);
    assert_eq!(view.read_at((block + 1) * 4096, 4096).unwrap(), fixture.squashfs[start + 4096..start + 8192]);
    // Blocks exchanged with each other: same bytes, other places.
    let mut bytes = fixture.bytes.clone();
    let at = usize::try_from(partition.offset + payload).unwrap();
    let (a, b) = bytes[at..at + 8192].split_at_mut(4096);
    a.swap_with_slice(b);
    let image = fixture.open(&bytes).unwrap();
    assert!(self::view(fixture, &image).read_at(0, 1).is_err());
}

#[test]
fn changed_tree_nodes() {
    let Some(fixture) = fixture() else { return };
    let tree = fixture.object(id::TREE);
    // The top block, then the leaves of the first payload blocks.
    for (place, level) in [(0, 2), (4096 * 33, 1)] {
        let mut bytes = fixture.bytes.clone();
        bytes[usize::try_from(tree.offset + place + 5).unwrap()] ^= 1;
        let image = fixture.open(&bytes).unwrap();
        match view(fixture, &image).read_at(0, 1) {
            Err(SifError::Integrity { level: found, .. }) => assert_eq!(found, level),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_that_changes_after_it_was_checked() {
    let Some(fixture) = fixture() else { return };
    let file = file(&fixture.bytes);
    let image = Image::from_file(file.try_clone().unwrap(), &fixture.trusted(), true).unwrap();
    let view = view(fixture, &image);
    assert_eq!(view.read_at(0, 4096).unwrap(), fixture.squashfs[..4096]);
    let (policy, message) = (fixture.object(id::POLICY), fixture.object(id::MESSAGE));
    file.write_all_at(b"changed!", policy.offset).unwrap();
    file.write_all_at(b"changed!", message.offset).unwrap();
    file.write_all_at(&[0; 4096], fixture.object(id::TREE).offset).unwrap();
    // What was checked is what is used.
    assert_eq!(image.policy(), POLICY);
    image.open_escrow(&fixture.escrow_key()).unwrap_err();
    // A verified node is a copy of its own; a block is checked again at every read.
    assert_eq!(view.read_at(0, 4096).unwrap(), fixture.squashfs[..4096]);
    file.write_all_at(&[0; 8], fixture.object(id::PARTITION).offset + fixture.binding.payload.payload_offset).unwrap();
    refused(view.read_at(0, 4096), "was changed");
    // Truncated under the reader.
    file.set_len(fixture.object(id::PARTITION).offset + 4096).unwrap();
    assert!(view.read_at(8192, 4096).is_err());
}

#[test]
fn a_changed_luks_header_never_reaches_cryptsetup() {
    let Some(fixture) = fixture() else { return };
    let partition = usize::try_from(fixture.object(id::PARTITION).offset).unwrap();
    for place in [0, 4096 + 10, 32768 + 100, 16 * 1024 * 1024 - 1] {
        let mut bytes = fixture.bytes.clone();
        bytes[partition + place] ^= 1;
        let image = fixture.open(&bytes).unwrap();
        match image.open_escrow(&fixture.escrow_key()) {
            Err(SifError::Integrity { block, .. }) => assert_eq!(block, u64::try_from(place / 4096).unwrap()),
            other => panic!("{:?}", other.map(|_| "a key")),
        }
    }
}

/// Every byte of header and table: refused, or without effect.
#[test]
fn header_and_descriptor_sweep() {
    let Some(fixture) = fixture() else { return };
    let image = fixture.open(&fixture.bytes).unwrap();
    let file = file(&fixture.bytes);
    let mut without_effect = std::collections::BTreeSet::new();
    for place in (0..128).chain(4096..4096 + 7 * DESCRIPTOR) {
        for change in [0x01, 0x80, 0xff] {
            file.write_all_at(&[fixture.bytes[place] ^ change], u64::try_from(place).unwrap()).unwrap();
            if let Ok(other) = Image::from_file(file.try_clone().unwrap(), &fixture.trusted(), false) {
                assert_eq!(other.binding(), image.binding());
                assert_eq!(other.policy(), image.policy());
                assert_eq!(other.uuid(), image.uuid());
                // Where partition and tree lie is not signed: what lies there is bound block by block.
                let moved = [at(id::PARTITION, field::OFFSET), at(id::TREE, field::OFFSET)];
                if moved.iter().any(|offset| (*offset..offset + 8).contains(&place)) {
                    assert!(view(fixture, &other).read_at(0, 1).is_err(), "byte {place} ^ {change:#x}");
                    continue;
                }
                without_effect.insert(place);
            }
        }
        file.write_all_at(&fixture.bytes[place..=place], u64::try_from(place).unwrap()).unwrap();
    }
    // Only what the documentation lists as not signed.
    for place in without_effect {
        if place < 128 {
            assert!(
                (45..48).contains(&place) || (64..88).contains(&place) || (112..128).contains(&place),
                "header byte {place}"
            );
            continue;
        }
        let (slot, field) = ((place - 4096) / DESCRIPTOR, (place - 4096) % DESCRIPTOR);
        let signature = slot + 1 == 6 && (field::ID..field::LINK).contains(&field);
        let signature = signature || slot + 1 == 6 && (field::PADDED..DESCRIPTOR).contains(&field);
        let unsigned = (field::ID..field::GROUP).contains(&field) || (field::PADDED..field::CREATED).contains(&field);
        let unsigned = unsigned || (field::MODIFIED..field::MODIFIED + 8).contains(&field);
        assert!(signature || unsigned || slot == 6, "descriptor {}, byte {field}", slot + 1);
    }
}

#[test]
fn truncations() {
    let Some(fixture) = fixture() else { return };
    let file = file(&fixture.bytes);
    let length = fixture.bytes.len();
    let mut lengths: Vec<usize> = (0..length).step_by(100_003).chain(length - 3000..length).chain(0..200).collect();
    lengths.sort_unstable();
    for shorter in lengths.into_iter().rev() {
        file.set_len(u64::try_from(shorter).unwrap()).unwrap();
        assert!(
            Image::from_file(file.try_clone().unwrap(), &fixture.trusted(), false).is_err(),
            "{shorter} of {length} bytes"
        );
    }
}

#[test]
fn a_plain_image_is_not_a_protected_one() {
    let Some(fixture) = fixture() else { return };
    let mut bytes = fixture.bytes.clone();
    put(&mut bytes, at(id::PARTITION, field::EXTRA), &1i32.to_le_bytes());
    refused(fixture.open(&bytes), "no encrypted squashfs");
    // Names are found only once each, and must belong to the partition.
    let mut bytes = fixture.bytes.clone();
    put(&mut bytes, at(id::TREE, field::LINK), &0u32.to_le_bytes());
    sign_again(&mut bytes, &fixture.owner);
    refused(fixture.open(&bytes), "does not belong to the partition");
    assert!(Sif::read(&file(&bytes)).is_ok());
}
