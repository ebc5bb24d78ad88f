//! Every message: round trip, each truncation, trailing bytes, other encodings, oversize, unknown version.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, reason = "tests")]

use countersign_wire::answer::{Answer, Release};
use countersign_wire::cbor::{BadCbor, Message, decode, encode};
use countersign_wire::challenge::{Bank, Challenge, ChallengeRequest, ImportBlob, RunRead};
use countersign_wire::enrol::{
    EkCertificate, EnrolChallenge, EnrolProof, EnrolRequest, Enrolled, HostCard, HostState, OtherEk,
};
use countersign_wire::evidence::{BankValues, Evidence, ImaPart, PcrValue};
use countersign_wire::finding::{Finding, Kind};
use countersign_wire::id::{EnrolmentId, HostId, Nonce, PayloadRoot, PolicyDigest, RunId, VerdictId, WorkloadId};
use countersign_wire::receipt::Receipt;
use countersign_wire::statement::{Label, Purpose, ReleaseRequest, Statement, qualifying_data};
use countersign_wire::trust::{JoinToken, TrustBundle};

fn sweep<T: Message + PartialEq + std::fmt::Debug>(message: &T) {
    let bytes = encode(message);
    assert_eq!(&decode::<T>(&bytes).unwrap(), message, "{} round trip", T::WHAT);
    for end in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..end]).is_err(), "{} cut at {end} was accepted", T::WHAT);
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode::<T>(&longer), Err(BadCbor::Malformed { offset, .. }) if offset == bytes.len()));
    assert!(matches!(decode::<T>(&vec![0; T::MAX.saturating_add(1)]), Err(BadCbor::TooLong { .. })));
    // Each byte set to the largest length of its kind: a clear error or another value, never a panic or a huge allocation.
    for at in 0..bytes.len() {
        for hostile in [0x1b, 0x3b, 0x5b, 0x7b, 0x9b, 0xbb, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = hostile;
            if let Ok(other) = decode::<T>(&changed) {
                assert_eq!(encode(&other), changed, "{}: two encodings of one value", T::WHAT);
            }
        }
    }
    // The version comes first: array header, then the small integer 1.
    let mut versioned = bytes.clone();
    versioned[1] = 2;
    assert!(matches!(decode::<T>(&versioned), Err(BadCbor::Version { got: 2, known: 1, .. })), "{}", T::WHAT);
    // 1 as a two-byte integer is well-formed CBOR but not the deterministic encoding.
    let mut padded = vec![bytes[0], 0x18, 1];
    padded.extend_from_slice(&bytes[2..]);
    assert!(matches!(decode::<T>(&padded), Err(BadCbor::NotDeterministic { .. })), "{}", T::WHAT);
}

fn card() -> HostCard {
    HostCard {
        version: 1,
        host: HostId([3; 32]),
        ek_public: vec![1, 2, 3],
        ek_certificates: vec![EkCertificate { nv_index: 0x01c0_0002, der: vec![0x30, 0] }],
        chain: vec![vec![0x30, 1, 0].into()],
        ak_public: vec![4; 40],
        run_pcr: 13,
    }
}

#[test]
fn statement() {
    let release = ReleaseRequest {
        workload: WorkloadId([9; 32]),
        run: RunId([8; 16]),
        object_name: vec![0, 11, 5],
        nonce_tpm: vec![6; 32],
    };
    let receipt = Receipt { number: 7, random: [1; 16], mac: [2; 32] };
    let label = Label { name: "hostname".into(), value: "node-1".into() };
    let full = Statement {
        version: 1,
        purpose: Purpose::Release,
        labels: vec![label],
        receipt: Some(receipt),
        tls_key: Some(vec![0x30]),
        release: Some(release),
        old_checkpoint: Some(vec![1]),
        new_checkpoint: Some(vec![2]),
    };
    sweep(&full);
    let least = Statement {
        purpose: Purpose::Attest,
        labels: vec![],
        receipt: None,
        tls_key: None,
        release: None,
        old_checkpoint: None,
        new_checkpoint: None,
        ..full.clone()
    };
    sweep(&least);
    let nonce = Nonce([4; 32]);
    assert_ne!(qualifying_data(&nonce, &encode(&full)), qualifying_data(&nonce, &encode(&least)));
    assert_ne!(qualifying_data(&nonce, &encode(&full)), qualifying_data(&Nonce([5; 32]), &encode(&full)));
}

#[test]
fn challenge() {
    sweep(&ChallengeRequest {
        version: 1,
        host: HostId([1; 32]),
        purpose: Purpose::Release,
        workload: Some(WorkloadId([2; 32])),
    });
    sweep(&Challenge {
        version: 1,
        nonce: Nonce([1; 32]),
        purpose: Purpose::Attest,
        ttl_s: 60,
        selection: vec![Bank { alg: 0x000b, pcrs: (0..15).collect() }],
        ima_from: 0,
        ima_boot: None,
        run: Some(RunRead { entries: 3, last: [4; 32], reset_count: 5, restart_count: 6 }),
        import: Some(ImportBlob { public: vec![1], duplicate: vec![2], seed: vec![3] }),
    });
}

#[test]
fn evidence() {
    let message = Evidence {
        version: 1,
        host: HostId([1; 32]),
        nonce: Nonce([2; 32]),
        quote: vec![3; 20],
        signature: vec![4; 20],
        pcrs: vec![BankValues { alg: 0x000b, pcrs: vec![PcrValue { index: 0, value: vec![0; 32] }] }],
        statement: vec![5],
        event_log: Some(vec![6]),
        ima: Some(ImaPart { from: 0, bytes: vec![7] }),
        systemd_log: Some(vec![]),
        run_log: Some(vec![8]),
        run_from: Some(9),
    };
    // As hosts wrote it that knew of no parts.
    let whole = Evidence { run_from: None, ..message.clone() };
    assert_eq!(encode(&whole).first(), Some(&0x8b), "an array of 11");
    assert_eq!(decode::<Evidence>(&encode(&whole)).unwrap(), whole);
    let bytes = encode(&message);
    assert_eq!(decode::<Evidence>(&bytes).unwrap(), message);
    for end in 0..bytes.len() {
        assert!(decode::<Evidence>(&bytes[..end]).is_err());
    }
}

#[test]
fn enrolment() {
    sweep(&card());
    sweep(&EnrolRequest {
        version: 1,
        token: Some(vec![1; 48]),
        card: card(),
        tls_key: vec![0x30, 2],
        name: "node-1".into(),
    });
    let other = OtherEk { nv_index: 0x01c0_000a, ek_public: vec![4; 20], credential: vec![5; 20], secret: vec![6; 10] };
    for others in [None, Some(vec![other])] {
        let (credential, secret) = (vec![2; 68], vec![3; 10]);
        sweep(&EnrolChallenge { version: 1, id: EnrolmentId([1; 16]), credential, secret, others });
    }
    sweep(&EnrolProof { version: 1, id: EnrolmentId([1; 16]), proof: vec![2; 32] });
    sweep(&Enrolled { version: 1, host: HostId([1; 32]), state: HostState::Active, certificate: Some(vec![0x30]) });
}

#[test]
fn answer() {
    let release = Release {
        approval_key: vec![1],
        verdict_key: vec![2],
        policy_ref: [3; 32],
        selection: Bank { alg: 0x000b, pcrs: vec![0, 7] },
        pcr_digest: [4; 32],
        reset_count: 5,
        restart_count: 6,
        clock_limit: 7,
        approval: vec![8],
        expiration: 30,
        verdict: vec![9],
        lease_s: 3600,
    };
    let accepted = Answer {
        version: 1,
        verdict_id: VerdictId([1; 16]),
        verdict: b"{}".to_vec(),
        allow: true,
        receipt: Some(Receipt { number: 1, random: [2; 16], mac: [3; 32] }),
        certificate: Some(vec![0x30]),
        release: Some(release),
        explanation: None,
    };
    sweep(&accepted);
    let denied = Answer {
        allow: false,
        receipt: None,
        certificate: None,
        release: None,
        explanation: Some(b"{}".to_vec()),
        ..accepted
    };
    sweep(&denied);
    // A denial as it was before denials were explained.
    let before = hex::decode("84015001010101010101010101010101010101427b7df4").unwrap();
    let read: Answer = decode(&before).unwrap();
    assert_eq!(read, Answer { explanation: None, ..denied });
    assert_eq!(encode(&read), before);
}

#[test]
fn trust() {
    sweep(&TrustBundle {
        version: 1,
        ca: vec![0x30],
        approval_key: vec![1],
        verdict_key: vec![2],
        log_key: vec![3],
        predecessor: Some([4; 32]),
        signature: Some(vec![5]),
    });
    let token =
        JoinToken { version: 1, url: "https://127.0.0.1:7448".into(), trust: [1; 32], id: [2; 16], secret: [0xab; 32] };
    sweep(&token);
    assert!(!format!("{token:?}").contains("ab, ab"), "a token's secret is never printed");
    assert!(!format!("{token:?}").contains("abab"));
}

#[test]
fn finding() {
    sweep(&Finding::new(Kind::NewMount, "a new mount", "/mnt", 12).of(4000, "/bin/mount"));
    sweep(&Finding::new(Kind::TimeJump, "the clock was set by 60 s", "", -1));
    // The longest one that can be made fits into its limit.
    let long = "x".repeat(5000);
    let finding = Finding::new(Kind::AttestationDenied, &long, &long, i64::MIN).of(u32::MAX, &long);
    assert_eq!(decode::<Finding>(&encode(&finding)).unwrap(), finding);
}

#[test]
fn receipts_have_one_length() {
    let receipt = Receipt { number: 0x0102, random: [3; 16], mac: [4; 32] };
    let bytes = receipt.to_bytes();
    assert_eq!(bytes.len(), 56);
    assert_eq!(Receipt::from_bytes(&bytes), Some(receipt));
    for end in 0..bytes.len() {
        assert_eq!(Receipt::from_bytes(&bytes[..end]), None);
    }
    assert_eq!(Receipt::from_bytes(&[bytes.as_slice(), &[0]].concat()), None);
}

#[test]
fn identities() {
    let (root, policy) = (PayloadRoot([1; 32]), PolicyDigest([2; 32]));
    let id = WorkloadId::of(&root, &policy, &[3; 16]);
    assert_ne!(id, WorkloadId::of(&root, &policy, &[4; 16]));
    assert_ne!(id, WorkloadId::of(&root, &PolicyDigest([0; 32]), &[3; 16]));
    assert_eq!(id.to_string().parse::<WorkloadId>().unwrap(), id);
    for wrong in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
        assert!(wrong.parse::<WorkloadId>().is_err(), "{wrong:?}");
    }
}
