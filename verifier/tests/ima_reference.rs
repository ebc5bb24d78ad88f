//! IMA lists against reference sets: what is accepted, what is not, and why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_verifier::ima::{
    FindingKind, ImaState, Key, Reference, Tally, appraise, identity, judge, loaded, remember,
};
use countersign_verifier::keys::rng;
use countersign_wire::ima::synthetic::{self, Synthetic, d_ng, n_ng};
use countersign_wire::ima::{KernelHash, frames};
use countersign_wire::refset::{Denied, FileDigest, Origin, ReferenceSet};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair,
};
use sha2::Digest as _;

fn sha256(bytes: &[u8]) -> Vec<u8> {
    HashAlg::Sha256.digest(&[bytes]).as_bytes().to_vec()
}

fn file(digest: &[u8], path: Option<&str>) -> String {
    let path = path.map(|path| path.as_bytes().to_vec());
    FileDigest { alg: KernelHash::SHA256, digest: digest.to_vec(), path }.to_string()
}

fn compile(set: &ReferenceSet) -> Reference {
    Reference::compile([set.to_json().unwrap().as_slice()]).unwrap()
}

fn judged(list: &Synthetic, reference: Option<&Reference>) -> ImaState {
    let mut state = ImaState::default();
    let count = u64::try_from(frames(&list.bytes).unwrap().count()).unwrap();
    judge(&list.bytes, count, reference, &mut state).unwrap();
    assert_eq!(state.entries, count);
    state
}

fn reasons(state: &ImaState, kind: FindingKind) -> Vec<(u64, &str, &str)> {
    state.of(kind).map(|finding| (finding.entry, finding.path.as_str(), finding.reason.as_str())).collect()
}

#[test]
fn files_by_path_by_digest_excluded_denied_and_unknown() {
    let mut set = ReferenceSet::default();
    let mut origin = Origin::new("manual", "test");
    origin.files = vec![
        file(&sha256(b"a"), Some("/bin/a")),
        file(&sha256(b"any"), None),
        file(&sha256(b"two words"), Some("/opt/two words")),
        file(&sha256(b"denied"), Some("/bin/denied")),
    ];
    set.origins.push(origin);
    set.deny.push(Denied { digest: file(&sha256(b"denied"), None), reason: "CVE-2026-1".into() });
    set.exclude = vec!["/var/log/.*".into(), "/tmp/[a-z]+".into()];
    let reference = compile(&set);
    let mut list = Synthetic::default();
    list.push_file("boot_aggregate", &[1; 32]); // 0: judged by the PCRs
    list.push_file("/bin/a", &sha256(b"a")); // 1
    list.push_file("/bin/b", &sha256(b"a")); // 2: elsewhere
    list.push_file("/anywhere", &sha256(b"any")); // 3
    list.push_file("/opt/two_words", &sha256(b"two words")); // 4
    list.push_file("/bin/denied", &sha256(b"denied")); // 5: although a set accepts it
    list.push_file("/var/log/messages", &sha256(b"log")); // 6
    list.push_file("/chroot/var/log/messages", &sha256(b"log")); // 7: whole paths only
    list.push_file("/var/log/", &sha256(b"log")); // 8
    list.push_file("/tmp/x1", &sha256(b"log")); // 9
    list.push_violation("/bin/a"); // 10
    list.push_file("boot_aggregate", &[1; 32]); // 11: kexec, and nothing accepts it
    let state = judged(&list, Some(&reference));
    let want = Tally { violations: 1, accepted: 3, excluded: 2, unknown: 4, denied: 1, kexecs: 1, signed: 0, keys: 0 };
    assert_eq!(state.tally, want);
    let nothing = "no reference set has this digest";
    assert_eq!(
        reasons(&state, FindingKind::Unknown),
        [
            (2, "/bin/b", "accepted only as /bin/a"),
            (7, "/chroot/var/log/messages", nothing),
            (9, "/tmp/x1", nothing),
            (11, "boot_aggregate", nothing)
        ]
    );
    assert_eq!(reasons(&state, FindingKind::Denied), [(5, "/bin/denied", "denied: CVE-2026-1")]);
    assert_eq!(state.of(FindingKind::Violation).count(), 1);
    // Without sets only what needs none is counted.
    let bare = judged(&list, None);
    assert_eq!(bare.tally, Tally { violations: 1, kexecs: 1, ..Tally::default() });
    // In two parts it is the same.
    let cut = frames(&list.bytes).unwrap().map(Result::unwrap).nth(6).unwrap();
    let at = cut.data().as_ptr().addr() - list.bytes.as_ptr().addr() - 4 - 6 - 28;
    let mut parts = ImaState::default();
    judge(&list.bytes[..at], 6, Some(&reference), &mut parts).unwrap();
    judge(&list.bytes[at..], 6, Some(&reference), &mut parts).unwrap();
    assert_eq!(parts, state);
    // What lies beyond the count is not read.
    list.bytes.extend(b"no entry");
    let mut first = ImaState::default();
    judge(&list.bytes, 12, Some(&reference), &mut first).unwrap();
    assert_eq!(first, state);
}

#[test]
fn findings_are_bounded_and_counts_go_on() {
    let reference = compile(&ReferenceSet::default());
    let mut list = synthetic::list(1000);
    list.push_file(&"x".repeat(4000), &[1; 32]);
    for _ in 0..100 {
        list.push_violation("/v");
    }
    let state = judged(&list, Some(&reference));
    assert_eq!((state.tally.unknown, state.tally.violations), (1001, 100));
    assert_eq!((state.of(FindingKind::Unknown).count(), state.of(FindingKind::Violation).count()), (32, 32));
    assert!(minicbor::to_vec(&state).unwrap().len() < 64 * 1024);
}

#[test]
fn excludes_that_are_no_expressions() {
    let refused = |pattern: &str| {
        let set = ReferenceSet { exclude: vec![pattern.into()], ..ReferenceSet::default() };
        Reference::compile([set.to_json().unwrap().as_slice()]).unwrap_err().to_string()
    };
    for pattern in ["(", "a)|(?:.*", "[", "a{100000}{100000}", r"(a)\1", "(?=a)"] {
        assert!(refused(pattern).starts_with("exclude: "), "{pattern}");
    }
    // Backtracking engines take for ever over this one.
    let set = ReferenceSet { exclude: vec!["(a*)*b".into()], ..ReferenceSet::default() };
    let reference = compile(&set);
    assert!(!reference.excludes(&vec![b'a'; 4096]));
    assert!(reference.excludes(b"aaab") && !reference.excludes(b"aaabc"));
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key that signs files, its certificate (DER), and its name in signatures.
struct Signer {
    certificate: Vec<u8>,
    id: [u8; 4],
    sign: Sign,
    hash: KernelHash,
}

fn certificate(pkcs8: &[u8]) -> (Vec<u8>, [u8; 4]) {
    let key = rcgen::KeyPair::try_from(pkcs8).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "file signing");
    let bits = rcgen::PublicKeyData::der_bytes(&key).to_vec();
    let id = HashAlg::Sha1.digest(&[&bits]).as_bytes()[16..].try_into().unwrap();
    (params.self_signed(&key).unwrap().der().to_vec(), id)
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm, hash: KernelHash) -> Signer {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let (certificate, id) = certificate(pkcs8.as_ref());
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
    let sign = move |content: &[u8]| pair.sign(&random, content).unwrap().as_ref().to_vec();
    Signer { certificate, id, sign: Box::new(sign), hash }
}

fn rsa(encoding: &'static dyn RsaEncoding, hash: KernelHash) -> Signer {
    use p256::pkcs8::EncodePrivateKey as _;
    let pkcs8 = rsa::PrivateKey::new(&mut rng(), 2048).unwrap().to_pkcs8_der().unwrap();
    let (certificate, id) = certificate(pkcs8.as_bytes());
    let pair = RsaKeyPair::from_pkcs8(pkcs8.as_bytes()).unwrap();
    let sign = move |content: &[u8]| {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), content, &mut signature).unwrap();
        signature
    };
    Signer { certificate, id, sign: Box::new(sign), hash }
}

impl Signer {
    fn digest(&self, content: &[u8]) -> Vec<u8> {
        HashAlg::from_name(self.hash.name()).unwrap().digest(&[content]).as_bytes().to_vec()
    }

    /// security.ima of a file.
    fn xattr(&self, content: &[u8]) -> Vec<u8> {
        self.header(3, 2, &(self.sign)(content))
    }

    fn header(&self, kind: u8, version: u8, signature: &[u8]) -> Vec<u8> {
        let size = u16::try_from(signature.len()).unwrap().to_be_bytes();
        [&[kind, version, self.hash.id()], &self.id[..], &size, signature].concat()
    }

    fn entry(&self, list: &mut Synthetic, content: &[u8], signature: &[u8]) {
        list.push("ima-sig", &[&d_ng(self.hash.name(), &self.digest(content)), &n_ng("/bin/signed"), signature]);
    }
}

#[test]
fn signatures_of_every_kind_of_key() {
    let p256 = || ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, KernelHash::SHA256);
    let (stranger, signers) = (
        p256(),
        [
            p256(),
            ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, KernelHash::SHA384),
            rsa(&RSA_PKCS1_SHA256, KernelHash::SHA256),
            rsa(&RSA_PKCS1_SHA512, KernelHash::SHA512),
        ],
    );
    let certificates = signers.iter().map(|signer| STANDARD.encode(&signer.certificate)).collect();
    let reference = compile(&ReferenceSet { certificates, ..ReferenceSet::default() });
    let none = compile(&ReferenceSet::default());
    for signer in &signers {
        let mut list = Synthetic::default();
        let good = signer.xattr(b"contents");
        signer.entry(&mut list, b"contents", &good);
        // fs-verity: the kind, the hash and the digest are what is signed.
        let signed = [&[6, signer.hash.id()], &signer.digest(b"descriptor")[..]].concat();
        let verity = signer.header(6, 3, &(signer.sign)(&signed));
        let d_ngv2 = [b"verity:", &d_ng(signer.hash.name(), &signer.digest(b"descriptor"))[..]].concat();
        list.push("ima-sigv2", &[&d_ngv2, &n_ng("/bin/verity"), &verity]);
        let state = judged(&list, Some(&reference));
        assert_eq!((state.tally.signed, state.tally.unknown), (2, 0), "{:?}", state.findings);
        assert_eq!(judged(&list, Some(&none)).tally.unknown, 2);

        let mut bad = Synthetic::default();
        signer.entry(&mut bad, b"other contents", &good); // 0
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        signer.entry(&mut bad, b"contents", &flipped); // 1
        signer.entry(&mut bad, b"contents", &signer.header(3, 1, &(signer.sign)(b"contents"))); // 2
        bad.push("ima-sigv2", &[&d_ngv2, &n_ng("/bin/verity"), &good]); // 3
        let file = [b"ima:", &d_ng(signer.hash.name(), &signer.digest(b"descriptor"))[..]].concat();
        bad.push("ima-sigv2", &[&file, &n_ng("/bin/verity"), &verity]); // 4
        signer.entry(&mut bad, b"contents", &stranger.xattr(b"contents")); // 5
        bad.push("ima-sig", &[&d_ng("sha1", &[1; 20]), &n_ng("/sha1"), &good]); // 6
        let mut sha1 = good.clone();
        sha1[2] = KernelHash::SHA1.id();
        bad.push("ima-sig", &[&d_ng("sha1", &[1; 20]), &n_ng("/sha1"), &sha1]); // 7
        signer.entry(&mut bad, b"contents", b"\x03\x02"); // 8
        let state = judged(&bad, Some(&reference));
        assert_eq!((state.tally.signed, state.tally.unknown), (0, 9), "{:?}", state.findings);
        let reasons = reasons(&state, FindingKind::Unknown);
        let wanted = [
            "the signature does not verify",
            "the signature does not verify",
            "a signature header of version 1",
            "over another kind of digest",
            "over another kind of digest",
            if signer.hash == stranger.hash { "is in no keyring" } else { "the signature is over a sha256 digest" },
            "digest, the list has sha1",
            "sha1 signatures are not accepted",
            "truncated",
        ];
        for ((entry, _, reason), want) in reasons.iter().zip(wanted) {
            assert!(reason.contains(want), "entry {entry}: {reason}");
        }
    }
}

/// Appended signatures as `openssl cms` makes them (`fixtures/modsig`).
#[test]
fn appended_signatures() {
    const CONTENT: &[u8] = b"a kernel module";
    let read = |name: &str| std::fs::read(format!("../fixtures/modsig/{name}")).unwrap();
    let certificates = |names: &[&str]| names.iter().map(|name| STANDARD.encode(read(name))).collect();
    let set = |names: &[&str]| compile(&ReferenceSet { certificates: certificates(names), ..ReferenceSet::default() });
    let reference = set(&["rsa.crt", "p384.crt"]);
    let entry = |hash: HashAlg, content: &[u8], appended: &[u8]| {
        let mut list = Synthetic::default();
        let d_modsig = d_ng(hash.name(), hash.digest(&[content]).as_bytes());
        let whole = d_ng("sha256", &sha256(&[content, appended].concat()));
        list.push("ima-modsig", &[&whole, &n_ng("/lib/modules/a.ko"), b"", &d_modsig, appended]);
        list
    };
    let signed = [
        ("rsa-sha512.p7s", HashAlg::Sha512),
        ("rsa-keyid.p7s", HashAlg::Sha256),
        ("rsa-attributes.p7s", HashAlg::Sha256),
        ("p384-noattr.p7s", HashAlg::Sha384),
        ("p384-attributes.p7s", HashAlg::Sha384),
    ];
    for (name, hash) in signed {
        let appended = read(name);
        let state = judged(&entry(hash, CONTENT, &appended), Some(&reference));
        assert_eq!((state.tally.signed, state.tally.unknown), (1, 0), "{name}: {:?}", state.findings);
        // Another file, another key, another hash than the list's, no digest, a damaged or a longer signature.
        let other_key = set(&[if name.starts_with("rsa") { "p384.crt" } else { "rsa.crt" }]);
        let wrong = if hash == HashAlg::Sha256 { HashAlg::Sha512 } else { HashAlg::Sha256 };
        let mut flipped = appended.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut no_digest = Synthetic::default();
        no_digest.push("ima-modsig", &[&d_ng("sha256", &[1; 32]), &n_ng("/a"), b"", b"", &appended]);
        let bad = [
            (entry(hash, b"another module", &appended), &reference, ["does not verify", "over another file"]),
            (entry(hash, CONTENT, &appended), &other_key, ["is in no keyring"; 2]),
            (entry(wrong, CONTENT, &appended), &reference, ["digest, the list has"; 2]),
            (no_digest, &reference, ["no digest of the file"; 2]),
            (entry(hash, CONTENT, &flipped), &reference, ["does not verify"; 2]),
            (entry(hash, CONTENT, &[&appended[..], &[0]].concat()), &reference, ["bytes behind it"; 2]),
        ];
        for (list, reference, [one, two]) in bad {
            let state = judged(&list, Some(reference));
            let found = reasons(&state, FindingKind::Unknown);
            assert_eq!((state.tally.signed, found.len()), (0, 1), "{name}: {one}");
            assert!(found[0].2.contains(one) || found[0].2.contains(two), "{name}: {}, wanted {one}", found[0].2);
        }
        for end in 0..appended.len() {
            assert_eq!(
                judged(&entry(hash, CONTENT, &appended[..end]), Some(&reference)).tally.signed,
                0,
                "{name} {end}"
            );
        }
    }
    // A signature of the file's own that nobody knows does not stand in the way of an appended one, and is told of where that fails too.
    let both = |content: &[u8], key: [u8; 4]| {
        let mut list = Synthetic::default();
        let appended = read("rsa-keyid.p7s");
        // Version 2, SHA-256.
        let own = [&[3, 2, 4][..], &key, &[1, 0], &[7; 256]].concat();
        let d_modsig = d_ng("sha256", HashAlg::Sha256.digest(&[content]).as_bytes());
        let whole = d_ng("sha256", &sha256(&[content, &appended[..]].concat()));
        list.push("ima-modsig", &[&whole, &n_ng("/lib/modules/a.ko"), &own, &d_modsig, &appended]);
        judged(&list, Some(&reference))
    };
    const NOBODY: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];
    assert_eq!(both(CONTENT, NOBODY).tally.signed, 1);
    let neither = both(b"another module", NOBODY);
    let reason = &reasons(&neither, FindingKind::Unknown)[0].2;
    assert!(
        reason.contains("key deadbeef") && reason.contains("; appended: the signature does not verify"),
        "{reason}"
    );
    for (name, hash, want) in [
        ("rsa-sha1.p7s", HashAlg::Sha1, "is not accepted"),
        ("two-signers.p7s", HashAlg::Sha256, "more than one signer"),
    ] {
        let state = judged(&entry(hash, CONTENT, &read(name)), Some(&reference));
        assert!(reasons(&state, FindingKind::Unknown)[0].2.contains(want), "{name}: {:?}", state.findings);
    }
}

#[test]
fn keys_are_learned_only_where_a_set_allows_it() {
    let signer = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, KernelHash::SHA256);
    let key = |list: &mut Synthetic, keyring: &str, digest: &[u8]| {
        list.push("ima-buf", &[&d_ng("sha256", digest), &n_ng(keyring), &signer.certificate]);
    };
    let good = sha256(&signer.certificate);
    let mut list = Synthetic::default();
    signer.entry(&mut list, b"before", &signer.xattr(b"before"));
    key(&mut list, ".platform", &good);
    key(&mut list, ".ima", &[0; 32]);
    key(&mut list, ".ima", &good);
    key(&mut list, ".ima", &good);
    signer.entry(&mut list, b"after", &signer.xattr(b"after"));
    let allowed = ReferenceSet { learn_keys_from: vec![".ima".into()], ..ReferenceSet::default() };
    let state = judged(&list, Some(&compile(&allowed)));
    assert_eq!((state.tally.keys, state.tally.signed, state.tally.unknown), (2, 1, 3), "{:?}", state.findings);
    assert_eq!(state.keys.len(), 1);
    let state = judged(&list, Some(&compile(&ReferenceSet::default())));
    assert_eq!((state.tally.keys, state.tally.signed, state.tally.unknown), (0, 0, 6));
    // A later part knows the keys of an earlier one.
    let mut part = Synthetic::default();
    signer.entry(&mut part, b"later", &signer.xattr(b"later"));
    let mut kept = judged(&list, Some(&compile(&allowed)));
    judge(&part.bytes, 1, Some(&compile(&allowed)), &mut kept).unwrap();
    assert_eq!(kept.tally.signed, 2);
}

#[test]
fn certificates_of_other_keys_are_refused() {
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let der = rcgen::CertificateParams::default().self_signed(&ed25519).unwrap().der().to_vec();
    assert!(Key::from_certificate(&der).unwrap_err().to_string().contains("only RSA"));
    assert!(Key::from_certificate(b"nothing").is_err());
    assert!(Key::from_certificate(&[0x30; 10_000]).is_err());
    let set = ReferenceSet { certificates: vec![STANDARD.encode(&der)], ..ReferenceSet::default() };
    let error = Reference::compile([set.to_json().unwrap().as_slice()]).unwrap_err();
    assert!(error.to_string().starts_with("certificate 0: "), "{error}");
}

/// A set that accepts the files of [`synthetic::list`].
fn synthetic_set(files: u32) -> ReferenceSet {
    let mut origin = Origin::new("manual", "synthetic");
    origin.files = (0..files).map(|n| file(synthetic::digest(n).as_bytes(), Some(&synthetic::path(n)))).collect();
    ReferenceSet { origins: vec![origin], ..ReferenceSet::default() }
}

#[test]
fn a_hundred_thousand_files_in_little_memory_and_loaded_once() {
    let json = synthetic_set(100_000).to_json().unwrap();
    let reference = remember(Reference::compile([json.as_slice()]).unwrap());
    assert_eq!(reference.digests(), 100_000);
    let list = synthetic::list(100_000);
    // The list, and everything that is shared between hosts.
    assert!(reference.bytes() + list.bytes.len() < 64 << 20, "{} + {}", reference.bytes(), list.bytes.len());
    assert!(reference.bytes() < 24 << 20, "{}", reference.bytes());
    let zero = Digest::filled(HashAlg::Sha256, 0);
    let mut state = ImaState::default();
    let prefix = appraise(&list.bytes, &[zero], &[list.pcr(zero)], Some(&reference), &mut state).unwrap();
    assert_eq!((prefix.entries, state.entries), (100_001, 100_001));
    assert_eq!(state.tally, Tally { accepted: 100_000, ..Tally::default() });
    assert_eq!(state, judged(&list, Some(&reference)));
    // A list that does not lead to the quoted value leaves nothing.
    let before = state.clone();
    assert!(appraise(&list.bytes, &[zero], &[zero.extend(&[1])], Some(&reference), &mut state).is_err());
    assert_eq!(state, before);
    // Whoever asks for these sets gets the same tables.
    let digest = sha2::Sha256::digest(&json).into();
    assert_eq!(reference.identity(), &identity(&[digest]));
    assert!(Arc::ptr_eq(&loaded(&identity(&[digest])).unwrap(), &reference));
    assert!(loaded(&identity(&[[0; 32]])).is_none());
}
