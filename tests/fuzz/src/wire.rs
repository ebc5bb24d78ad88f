//! Messages, envelopes, reference sets and the run log.

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_wire::answer::Answer;
use countersign_wire::cbor::{Message, decode, encode};
use countersign_wire::challenge::{Challenge, ChallengeRequest};
use countersign_wire::dsse::{Envelope, PublicKey, open};
use countersign_wire::enrol::{EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostCard};
use countersign_wire::event::Reader;
use countersign_wire::evidence::Evidence;
use countersign_wire::explanation::Explanation;
use countersign_wire::finding::Finding;
use countersign_wire::record::{Bundle, Record};
use countersign_wire::refset::{FileDigest, ReferenceSet};
use countersign_wire::runlog::RunLog;
use countersign_wire::statement::Statement;
use countersign_wire::trust::{JoinToken, TrustBundle};

/// One value has one encoding.
fn message<T: Message>(data: &[u8]) {
    if let Ok(message) = decode::<T>(data) {
        assert_eq!(encode(&message), data);
    }
}

/// Every message but evidence; the first byte says which one.
pub fn messages(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let kinds = [
        message::<Answer>,
        message::<Bundle>,
        message::<Challenge>,
        message::<ChallengeRequest>,
        message::<EnrolChallenge>,
        message::<EnrolProof>,
        message::<EnrolRequest>,
        message::<Enrolled>,
        message::<HostCard>,
        message::<JoinToken>,
        message::<Record>,
        message::<Statement>,
        message::<TrustBundle>,
        message::<Finding>,
    ];
    if let Some(kind) = kinds.get(usize::from(*kind)) {
        kind(data);
    }
}

/// Evidence.
pub fn evidence(data: &[u8]) {
    message::<Evidence>(data);
}

/// A DSSE envelope: nothing opens it without a key that signed it; and public keys.
pub fn dsse(data: &[u8]) {
    let _ = Envelope::is(data);
    assert!(open(data, countersign_wire::refset::PAYLOAD_TYPE, &[]).is_err());
    if let Ok(key) = PublicKey::from_pem(data).or_else(|_| PublicKey::from_spki(data)) {
        assert!(!key.id().is_empty());
    }
}

/// A reference set: its canonical form says the same, and is its own canonical form. And one line of it.
pub fn reference_set(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(file) = FileDigest::parse(text)
    {
        assert_eq!(FileDigest::parse(&file.to_string()), Ok(file));
    }
    let Ok(set) = ReferenceSet::parse(data) else { return };
    let json = set.to_json().unwrap();
    let again = ReferenceSet::parse(&json).unwrap();
    assert_eq!(again, set.clone().canonical());
    assert_eq!(again.to_json().unwrap(), json);
    assert_eq!(set.clone().merge(set), again);
}

/// A finding in its JSON form: what is read is bounded, and says the same when it is written.
pub fn finding(data: &[u8]) {
    let Ok(finding) = serde_json::from_slice::<Finding>(data) else { return };
    assert!(encode(&finding).len() <= Finding::MAX);
    assert_eq!(serde_json::from_slice::<Finding>(&serde_json::to_vec(&finding).unwrap()).unwrap(), finding);
}

/// The run log.
pub fn run_log(data: &[u8]) {
    let Ok(log) = RunLog::parse(data) else { return };
    let _ = (log.replay(Digest::filled(HashAlg::Sha256, 0)), log.receipts());
}

pub fn event_stream(data: &[u8]) {
    let (mut whole, mut pieces) = (Reader::default(), Reader::default());
    let Ok(events) = whole.push(data) else { return };
    let mut one_by_one = Vec::new();
    for byte in data {
        one_by_one.extend(pieces.push(&[*byte]).unwrap());
    }
    assert_eq!((events, whole.last()), (one_by_one, pieces.last()));
}

/// A verifier's explanation: what a host prints of it does nothing to a terminal.
pub fn explanation(data: &[u8]) {
    let Some(explanation) = Explanation::from_json(data) else { return };
    assert!(!explanation.words().contains(|c: char| c.is_control() && c != '\n'));
    let json = explanation.clone().to_json().unwrap();
    assert!(Explanation::from_json(&json).is_some());
}
