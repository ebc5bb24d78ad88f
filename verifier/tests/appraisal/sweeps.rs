//! Every shorter message and every changed byte: no panic, and no allow that differs from the honest one.

use countersign_verifier::appraise::{Judged, appraise};
use countersign_wire::cbor;

use crate::support::case::{Case, accepted};

/// What an allow says and does, without the digest of the bytes that it was made from.
fn essence(mut judged: Judged) -> String {
    judged.verdict.basis.evidence.clear();
    format!("{judged:?}")
}

fn release() -> Case {
    let mut case = Case::release();
    let workload = case.context.workload.as_ref().unwrap().id;
    let run = countersign_wire::id::RunId([6; 16]);
    case.log(&[countersign_wire::runlog::Event::Start { run, workload, time_ms: 1 }]);
    case
}

#[test]
fn every_prefix_is_refused() {
    let case = release();
    let bytes = cbor::encode(&case.evidence());
    accepted(&appraise(&bytes, &case.context));
    for end in 0..bytes.len() {
        let judged = appraise(&bytes[..end], &case.context);
        assert!(!judged.verdict.allow && judged.suspend.is_none(), "{end}");
        assert_eq!(judged.verdict.reasons[0].id, "evidence");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(appraise(&longer, &case.context).verdict.reasons[0].id, "evidence");
}

#[test]
fn a_changed_byte_changes_no_allow() {
    let case = release();
    let bytes = cbor::encode(&case.evidence());
    let honest = essence(appraise(&bytes, &case.context));
    let place = |part: &[u8]| {
        let start = bytes.windows(part.len()).position(|at| at == part).unwrap();
        start..start + part.len()
    };
    let logs = place(case.event_log.as_ref().unwrap());
    // Each entry's template hash is SHA-1: what extends the SHA-256 bank is computed from its data.
    let ima = place(case.ima.as_ref().unwrap());
    let mut allowed = 0;
    // Each byte outside of the boot log; of that, one in 23: a prime, so that every field is hit.
    for at in (0..bytes.len()).filter(|at| !logs.contains(at) || at % 23 == 0) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let judged = appraise(&changed, &case.context);
        assert_eq!(judged.suspend, None, "byte {at}");
        if judged.verdict.allow {
            assert!(logs.contains(&at) || ima.contains(&at), "byte {at} is covered by nothing");
            assert_eq!(essence(judged), honest, "byte {at}");
            allowed += 1;
        }
    }
    // Data of events that hash something else (images) is not measured, and not used.
    assert!(allowed > 0, "the sweep reached unmeasured data");
}
