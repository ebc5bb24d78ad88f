//! The firmware's event log: parsed, replayed, judged, turned into facts and into a canonical event log.
#![no_main]

use countersign_wire::cel;
use countersign_wire::eventlog::{EventLog, PcrSet, Registers};
use countersign_wire::facts::Facts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(log) = EventLog::parse(data) else { return };
    assert!(log.events.windows(2).all(|pair| pair[0].offset < pair[1].offset));
    assert!(log.padding <= data.len());
    for alg in log.known_banks() {
        for registers in [Registers::Tpm, Registers::Cc] {
            let Ok(examined) = log.examine(&[(alg, PcrSet::ALL)], registers) else { continue };
            // What is judged true replays, and to the same values.
            if registers == Registers::Tpm {
                assert_eq!(log.replay(alg).as_ref(), Ok(&examined.banks[0]));
            }
            let facts = Facts::of(&examined, &[]);
            let text = serde_json::to_string(&facts).unwrap();
            assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
        }
    }
    if let Ok(read) = cel::parse(cel::write(&log, &[]).as_bytes())
        && let Ok(again) = EventLog::parse(&read.firmware)
    {
        for alg in again.known_banks() {
            if let (Ok(one), Ok(two)) = (log.replay(alg), again.replay(alg)) {
                assert_eq!(one, two);
            }
        }
    }
});
