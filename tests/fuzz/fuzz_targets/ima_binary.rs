//! The binary IMA list: frames, fields, replay, and the quick view of plain entries, which must say what the fields say.
#![no_main]

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::ima::{entries, extent, frames, replay_to, Extent, Field};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = extent(data);
    let Ok(list) = frames(data) else { return };
    for frame in list.map_while(Result::ok) {
        if let Ok(Extent::Bytes(bytes)) = extent(&data[frame.offset..]) {
            assert!(usize::try_from(bytes).is_ok_and(|bytes| frame.offset + bytes <= data.len()));
        }
        let _ = (frame.is_consistent(), frame.extends(HashAlg::Sha256), frame.extends_padded(HashAlg::Sha384));
    }
    for entry in entries(data).into_iter().flatten().map_while(Result::ok) {
        if let Some((digest, path)) = entry.frame().plain() {
            assert_eq!((&digest[..], path), (entry.digest, entry.path));
        }
        let _ = (entry.buffer_is_digested(), Field::ALL.map(|field| entry.field(field).map(<[u8]>::len)));
    }
    let zero = Digest::filled(HashAlg::Sha256, 0);
    let _ = replay_to(data, &[zero], &[Digest::filled(HashAlg::Sha256, 1)]);
});
