//! File signatures (security.ima) and the certificates of their keys.
#![no_main]

use countersign_verifier::ima::Key;
use countersign_wire::ima::FileSignature;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signature) = FileSignature::parse(data) {
        let _ = signature.signed_digest(&data[..signature.hash.size().min(data.len())]);
    }
    let _ = Key::from_certificate(data);
});
