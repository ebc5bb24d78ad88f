//! A whole list against a fixed reference: counts add up, findings stay bounded.
#![no_main]

use countersign_verifier::ima::{ImaState, Reference, judge};
use countersign_wire::ima::frames;
use libfuzzer_sys::fuzz_target;

const SET: &[u8] = br#"{"type": "countersign.reference/v1", "exclude": ["/tmp/.*"], "learn_keys_from": [".ima"], "origins": [
    {"kind": "manual", "name": "x", "files": ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}]}"#;

fuzz_target!(|data: &[u8]| {
    let reference = Reference::compile([SET]).unwrap();
    let Ok(list) = frames(data) else { return };
    let count = u64::try_from(list.map_while(Result::ok).count()).unwrap();
    let mut state = ImaState::default();
    if judge(data, count, Some(&reference), &mut state).is_ok() {
        let tally = state.tally;
        let judged = tally.violations + tally.accepted + tally.excluded + tally.signed + tally.keys + tally.unknown + tally.denied;
        assert!(state.entries == count && (judged == count || judged + 1 == count), "{tally:?}");
        assert!(state.findings.len() <= 96);
    }
});
