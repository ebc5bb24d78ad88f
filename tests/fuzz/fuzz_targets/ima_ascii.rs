//! The ASCII IMA list: whatever is accepted is a binary list that parses.
#![no_main]

use countersign_wire::ima::{entries, to_binary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(binary) = to_binary(data) {
        // A digest field may still lack what the binary form asks of it; it must be an error then, and nothing else.
        for entry in entries(&binary).into_iter().flatten() {
            let _ = entry.map(|entry| entry.path.len());
        }
    }
});
