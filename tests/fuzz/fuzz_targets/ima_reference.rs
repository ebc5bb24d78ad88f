//! Reference sets: parsing, canonical form, compilation; and envelopes around them.
#![no_main]

use countersign_verifier::ima::Reference;
use countersign_wire::dsse;
use countersign_wire::refset::{PAYLOAD_TYPE, ReferenceSet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(set) = ReferenceSet::parse(data) {
        let json = set.to_json().unwrap();
        let again = ReferenceSet::parse(&json).unwrap();
        assert_eq!(again.to_json().unwrap(), json);
        let _ = Reference::compile([json.as_slice()]);
    }
    let key = dsse::PublicKey::from_raw(&[1; 32]).unwrap();
    assert!(dsse::open(data, PAYLOAD_TYPE, &[key]).is_err());
});
