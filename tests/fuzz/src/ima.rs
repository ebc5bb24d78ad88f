//! IMA lists.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_verifier::ima::{Key, Keyring};
use countersign_wire::ima::{Extent, FileSignature, PCR, entries, extent, frames, looks_ascii, replay_to, to_binary};

/// The binary list: frames, fields, extents and replay say the same.
pub fn binary(data: &[u8]) {
    let Ok(list) = frames(data) else { return };
    let list: Vec<_> = list.map_while(Result::ok).collect();
    let start = Digest::filled(HashAlg::Sha256, 0);
    let mut value = start;
    for (frame, next) in list.iter().zip(list.iter().skip(1).map(|frame| frame.offset).chain([data.len()])) {
        let rest = &data[frame.offset..];
        let Ok(Extent::Bytes(length)) = extent(rest) else { panic!("an entry without an end") };
        assert!(frame.offset + usize::try_from(length).unwrap() <= next);
        assert!(frame.pcr < 24);
        if frame.pcr == u32::from(PCR) {
            value = value.extend(frame.extends(HashAlg::Sha256).as_bytes());
        }
        let _ = (frame.extends_padded(HashAlg::Sha384), frame.is_consistent());
        let entry = entries(rest).unwrap().next().unwrap();
        // The short way to what nearly all entries are must not see more than the long one.
        if let Some((digest, path)) = frame.plain() {
            let entry = entry.as_ref().unwrap();
            assert_eq!((entry.digest_alg, entry.digest), (b"sha256".as_slice(), digest.as_slice()));
            assert_eq!(entry.path, path);
            assert!(!entry.is_violation());
        }
        if let Ok(entry) = entry {
            let _ = (entry.buffer_is_digested(), FileSignature::parse(entry.signature));
        }
    }
    // All of what is well-formed leads to its value, if not a part of it does.
    let prefix = replay_to(data, &[start], &[value]).unwrap();
    assert!(prefix.bytes <= data.len() && prefix.entries <= u64::try_from(list.len()).unwrap());
}

/// The ASCII list: what it becomes is a binary list with as many entries.
pub fn ascii(data: &[u8]) {
    let _ = looks_ascii(data);
    let Ok(binary) = to_binary(data) else { return };
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    assert_eq!(frames(&binary).unwrap().map(Result::unwrap).count(), lines);
}

/// The signature of a file: type, header, signature.
pub fn signature(data: &[u8]) {
    let _ = FileSignature::parse(data);
}

/// A signature that is appended to a module (CMS): nobody signed, where there is no key.
pub fn modsig(data: &[u8]) {
    let digest = [b"sha256:\0".as_slice(), &[2; 32]].concat();
    let mut fields = Vec::new();
    for field in [&digest, b"/a\0".as_slice(), b"", &digest, data] {
        fields.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
        fields.extend(field);
    }
    let mut list = 10_u32.to_le_bytes().to_vec();
    list.extend([1; 20]);
    list.extend(10_u32.to_le_bytes());
    list.extend(b"ima-modsig");
    list.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
    list.extend(fields);
    let entry = entries(&list).unwrap().next().unwrap().unwrap();
    assert!(Keyring::default().check(&entry).is_err());
}

/// A certificate that IMA keys come from.
pub fn certificate(data: &[u8]) {
    if let Ok(key) = Key::from_certificate(data) {
        let _ = key.subject();
    }
}
