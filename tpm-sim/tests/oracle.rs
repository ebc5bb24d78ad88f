//! Our TPM structures held against tpm2-tss and a real swtpm: what both say the same is not a bug of one of them.
//!
//! Missing in tss-esapi 7.7.0: PolicyCounterTimer, which is sent here as plain bytes, and a session's nonceTPM, so that PolicySigned
//! is seen here in its loose form only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, Weak};

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::codec::Writer;
use countersign_tpm::credential::{Credential, make_credential};
use countersign_tpm::ek::{STORAGE, Template};
use countersign_tpm::import::wrap_sealed;
use countersign_tpm::pcr::{BankSelection, PcrSelection, pcr_digest};
use countersign_tpm::policy::{
    Approved, Comparison, OFFSET_CLOCK, OFFSET_COUNTERS, Policy, RH_ENDORSEMENT, sealed_policy,
};
use countersign_tpm::public::{Curve, Key, Name, Public, Scheme, attributes};
use countersign_tpm::signature::Signature;
use countersign_tpm::{ak, ekcert};
use countersign_tpm_sim::oracle::{EcdsaSignature, Ek, Loaded, Oracle, PolicyOracle};
use countersign_tpm_sim::{Error, Options, Sim};
use ring::rand::SystemRandom;
use ring::signature as rs;
use ring::signature::KeyPair as _;
use tempfile::TempDir;

/// One manufactured TPM, of which every test runs a clone: manufacture takes most of the time. It goes with the last test that
/// uses it.
static PRISTINE: Mutex<Weak<(Sim, TempDir)>> = Mutex::new(Weak::new());

fn pristine() -> Option<Arc<(Sim, TempDir)>> {
    let mut shared = PRISTINE.lock().unwrap();
    if let Some(pristine) = shared.upgrade() {
        return Some(pristine);
    }
    let dir = TempDir::new().unwrap();
    match Sim::create(dir.path().join("pristine"), &Options::named("oracle")) {
        Ok(sim) => {
            let pristine = Arc::new((sim, dir));
            *shared = Arc::downgrade(&pristine);
            Some(pristine)
        }
        Err(Error::MissingTool(tool)) => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

struct Bench {
    // Dropped in this order.
    oracle: Oracle,
    sim: Sim,
    _dir: TempDir,
    _pristine: Arc<(Sim, TempDir)>,
}

fn bench() -> Option<Bench> {
    let pristine = pristine()?;
    let dir = TempDir::new().unwrap();
    let mut sim = pristine.0.clone_to(dir.path().join("t")).unwrap();
    sim.start().unwrap();
    let oracle = Oracle::connect(&sim).unwrap();
    Some(Bench { oracle, sim, _dir: dir, _pristine: pristine })
}

fn rng() -> impl rand_core::CryptoRng {
    rand_core::UnwrapErr(getrandom::SysRng)
}

impl Bench {
    /// The EK of a template: swtpm has no P-256 one, so that is made from our template.
    fn ek(&mut self, template: Template) -> Ek {
        match template {
            Template::P256 => self.oracle.create_ek(template).unwrap(),
            Template::Rsa2048 | Template::P384 => self.oracle.ek(template).unwrap(),
        }
    }
}

fn name(loaded: &Loaded) -> Name {
    Name::parse(&loaded.name).unwrap()
}

/// An AK template with another key.
fn ak_template(key: Key) -> Public {
    Public { name_alg: HashAlg::Sha256, attributes: ak::ATTRIBUTES, auth_policy: Vec::new(), key }
}

fn rsa_ak(scheme: Scheme) -> Public {
    ak_template(Key::Rsa { symmetric: None, scheme, bits: 2048, exponent: 0, modulus: Vec::new() })
}

fn p384_ak() -> Public {
    let (scheme, curve) = (Scheme::Ecdsa(HashAlg::Sha384), Curve::P384);
    ak_template(Key::Ecc { symmetric: None, scheme, curve, x: Vec::new(), y: Vec::new() })
}

#[test]
fn public_areas_and_names() {
    let Some(mut bench) = bench() else { return };
    for template in Template::ALL {
        let ek = bench.ek(template);
        let ours = Public::parse(&ek.key.public).unwrap();
        assert_eq!(ours.to_bytes(), ek.key.public, "{template:?}");
        assert_eq!(ours.name().as_bytes(), ek.key.name, "{template:?}");
        assert_eq!(Template::of(&ours), Some(template));
        assert_eq!(ours.attributes & STORAGE, STORAGE);
        // The template makes the manufacturer's key again.
        let again = bench.oracle.create_ek(template).unwrap();
        assert_eq!(again.key.name, ek.key.name, "{template:?}");
        bench.oracle.flush(&again.key).unwrap();

        for public in [ak::template(), rsa_ak(Scheme::Rsassa(HashAlg::Sha256)), p384_ak()] {
            let made = bench.oracle.create(&ek, &public).unwrap();
            let ours = Public::parse(&made.public).unwrap();
            assert_eq!(ours.to_bytes(), made.public);
            assert_eq!(ours.name().as_bytes(), made.name);
            ak::check(&ours).unwrap();
            let qualified = ak::qualified_name(&name(&ek.key), &name(&made)).unwrap();
            assert_eq!(qualified.as_bytes(), made.qualified_name, "{template:?}");
            assert!(ours.spki().is_some());
            bench.oracle.flush(&made).unwrap();
        }
        if template == Template::P256 {
            bench.oracle.flush(&ek.key).unwrap();
        }
    }
}

#[test]
fn ek_certificates() {
    let Some(mut bench) = bench() else { return };
    let pem = std::fs::read_to_string(bench.sim.ca_pem().unwrap()).unwrap();
    let both: Vec<Vec<u8>> = pem.split_inclusive("-----END CERTIFICATE-----").filter_map(pem_der).collect();
    let [issuer, root] = both.as_slice() else { panic!("{} certificates", both.len()) };
    let (chain, roots) = (std::slice::from_ref(issuer), std::slice::from_ref(root));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (template, file) in [Template::Rsa2048, Template::P384].into_iter().zip(bench.sim.ek_certificates()) {
        let nv = bench.oracle.read_nv(template.certificate_index()).unwrap();
        let der = ekcert::from_nv(&nv).unwrap();
        assert_eq!(der, std::fs::read(file).unwrap());
        let checked = ekcert::check(der, chain, roots, now).unwrap();
        assert_eq!(checked.template, template);
        // Rebuilt from the certificate alone, it is the key that the TPM has.
        assert_eq!(checked.public.to_bytes(), bench.ek(template).key.public);
        assert!(ekcert::check(der, chain, &[], now).is_err());
        assert!(ekcert::check(der, &[], roots, now).is_err());
        assert!(ekcert::check(der, &[], &both, now).is_ok(), "every curated certificate is an anchor");
    }
}

fn pem_der(text: &str) -> Option<Vec<u8>> {
    let body = text.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END").next()?;
    let bits = body.bytes().filter(|byte| !byte.is_ascii_whitespace()).take_while(|byte| *byte != b'=').map(|byte| {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        u32::try_from(alphabet.iter().position(|known| *known == byte).unwrap()).unwrap()
    });
    let bits: Vec<u32> = bits.collect();
    let bytes = bits.chunks(4).flat_map(|chunk| {
        let value = chunk.iter().fold(0u32, |value, bits| value << 6 | bits) << (6 * (4 - chunk.len()));
        value.to_be_bytes()[1..chunk.len()].to_vec()
    });
    Some(bytes.collect())
}

#[test]
fn credentials_both_ways() {
    let Some(mut bench) = bench() else { return };
    let secret = [0x5a; 32];
    for template in Template::ALL {
        let ek = bench.ek(template);
        let public = Public::parse(&ek.key.public).unwrap();
        let ak = bench.oracle.create(&ek, &ak::template()).unwrap();
        // Ours, opened by the TPM.
        for length in [1, 16, 32] {
            let ours = make_credential(&public, &name(&ak), &secret[..length], &mut rng()).unwrap();
            assert_eq!(bench.oracle.activate_credential(&ek, &ak, &ours).unwrap(), secret[..length], "{template:?}");
        }
        // The TPM's has the same shape as ours.
        let theirs = bench.oracle.make_credential(&ek, &ak.name, &secret).unwrap();
        let ours = make_credential(&public, &name(&ak), &secret, &mut rng()).unwrap();
        let shape = |credential: &Credential| (credential.blob.len(), credential.secret.len());
        assert_eq!(shape(&ours), shape(&theirs), "{template:?}");
        assert_eq!(bench.oracle.activate_credential(&ek, &ak, &theirs).unwrap(), secret);

        // For another object, another EK, or changed by a bit: refused.
        let other = bench.oracle.create(&ek, &ak::template()).unwrap();
        assert!(bench.oracle.activate_credential(&ek, &other, &ours).is_err(), "{template:?}");
        bench.oracle.flush(&other).unwrap();
        for at in (0..ours.blob.len()).step_by(13) {
            let mut changed = ours.clone();
            changed.blob[at] ^= 1;
            assert!(bench.oracle.activate_credential(&ek, &ak, &changed).is_err(), "{template:?} byte {at}");
        }
        bench.oracle.flush(&ak).unwrap();
        if template == Template::P256 {
            bench.oracle.flush(&ek.key).unwrap();
        }
    }
}

#[test]
fn a_credential_is_for_one_ek() {
    let Some(mut bench) = bench() else { return };
    let (rsa, p384) = (bench.ek(Template::Rsa2048), bench.ek(Template::P384));
    let ak = bench.oracle.create(&rsa, &ak::template()).unwrap();
    let public = Public::parse(&rsa.key.public).unwrap();
    let credential = make_credential(&public, &name(&ak), b"secret", &mut rng()).unwrap();
    assert!(bench.oracle.activate_credential(&p384, &ak, &credential).is_err());
    // One AK can be activated against each EK that a host shows.
    let public = Public::parse(&p384.key.public).unwrap();
    let credential = make_credential(&public, &name(&ak), b"secret", &mut rng()).unwrap();
    assert_eq!(bench.oracle.activate_credential(&p384, &ak, &credential).unwrap(), b"secret");
}

/// A signing key whose public half a TPM can load: an approval or verdict key.
struct Authority {
    pair: rs::EcdsaKeyPair,
}

impl Authority {
    fn new() -> Self {
        let random = SystemRandom::new();
        let alg = &rs::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = rs::EcdsaKeyPair::generate_pkcs8(alg, &random).unwrap();
        Self { pair: rs::EcdsaKeyPair::from_pkcs8(alg, pkcs8.as_ref(), &random).unwrap() }
    }

    fn public(&self) -> Public {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (point[1..33].to_vec(), point[33..].to_vec());
        Public {
            name_alg: HashAlg::Sha256,
            attributes: attributes::SIGN | attributes::USER_WITH_AUTH,
            auth_policy: Vec::new(),
            key: Key::Ecc { symmetric: None, scheme: Scheme::Null, curve: Curve::P256, x, y },
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}

fn rs_of(signature: &[u8]) -> EcdsaSignature<'_> {
    EcdsaSignature { r: &signature[..32], s: &signature[32..] }
}

/// PCRs of the SHA-256 bank and the digest of their values, by `alg`.
fn pcrs(sim: &Sim, alg: HashAlg, pcrs: &[u8]) -> (PcrSelection, Digest) {
    let values: Vec<Digest> = pcrs.iter().map(|pcr| sim.pcr(HashAlg::Sha256, *pcr).unwrap().unwrap()).collect();
    (PcrSelection::single(HashAlg::Sha256, pcrs), pcr_digest(alg, &values))
}

#[test]
fn policy_digests() {
    let Some(mut bench) = bench() else { return };
    bench.sim.extend(4, b"boot loader").unwrap();
    for alg in [HashAlg::Sha256, HashAlg::Sha384] {
        let check = |what: &str, session: PolicyOracle, ours: Policy, oracle: &mut Oracle| {
            assert_eq!(session.digest(oracle).unwrap(), ours.digest().as_bytes(), "{what} {alg}");
            session.end(oracle).unwrap();
        };
        let Bench { oracle, sim, .. } = &mut bench;

        let trial = oracle.trial(alg).unwrap();
        trial.secret_endorsement(oracle).unwrap();
        let secret = Policy::new(alg).secret(&Name::of_handle(RH_ENDORSEMENT), &[]);
        check("PolicySecret", trial, secret, oracle);

        let branches = [secret.digest().as_bytes().to_vec(), vec![7; alg.size()], vec![9; alg.size()]];
        let refs: Vec<&[u8]> = branches.iter().map(Vec::as_slice).collect();
        let trial = oracle.trial(alg).unwrap();
        trial.or(oracle, &branches).unwrap();
        check("PolicyOR", trial, Policy::new(alg).or(&refs), oracle);
        let session = oracle.policy(alg).unwrap();
        assert!(session.or(oracle, &branches[1..]).is_err(), "the session's digest is no branch");
        session.secret_endorsement(oracle).unwrap();
        session.or(oracle, &branches).unwrap();
        check("PolicySecret, PolicyOR", session, secret.or(&refs), oracle);

        let (selection, digest) = pcrs(sim, alg, &[0, 4, 7, 14, 23]);
        let approved = Policy::new(alg).pcr(&selection, digest.as_bytes());
        let session = oracle.policy(alg).unwrap();
        session.pcr(oracle, &selection, &[]).unwrap();
        check("PolicyPCR", session, approved, oracle);
        let both = PcrSelection(vec![
            BankSelection::new(HashAlg::Sha1, &[1, 2]),
            BankSelection::new(HashAlg::Sha256, &[0, 8, 16]),
        ]);
        let trial = oracle.trial(alg).unwrap();
        trial.pcr(oracle, &both, digest.as_bytes()).unwrap();
        check("PolicyPCR, two banks", trial, Policy::new(alg).pcr(&both, digest.as_bytes()), oracle);

        // The authority's Name and the policyRef take part; what came before is replaced.
        let (approval, verdict) = (Authority::new(), Authority::new());
        let (approver, judge) =
            (oracle.load_external(&approval.public()).unwrap(), oracle.load_external(&verdict.public()).unwrap());
        assert_eq!(approver.name, approval.public().name().as_bytes());
        let policy_ref = [0x33; 32];
        if alg == HashAlg::Sha256 {
            let session = oracle.policy(alg).unwrap();
            session.pcr(oracle, &selection, &[]).unwrap();
            let approved = approved.digest();
            let signature = approval.sign(&[approved.as_bytes(), &policy_ref].concat());
            session.authorize(oracle, &approver, approved.as_bytes(), &policy_ref, rs_of(&signature)).unwrap();
            let ours = Policy::new(alg).authorize(&name(&approver), &policy_ref);
            assert_eq!(session.digest(oracle).unwrap(), ours.digest().as_bytes());
            let signature = verdict.sign(&[&[0; 4], policy_ref.as_slice()].concat());
            session.signed_loosely(oracle, &judge, &policy_ref, rs_of(&signature)).unwrap();
            let sealed = sealed_policy(&name(&approver), &name(&judge), &policy_ref);
            assert_eq!(ours.signed(&name(&judge), &policy_ref).digest().as_bytes(), sealed);
            assert_eq!(session.digest(oracle).unwrap(), sealed);
            session.end(oracle).unwrap();
        } else {
            let trial = oracle.trial(alg).unwrap();
            let signature = verdict.sign(&[&[0; 4], policy_ref.as_slice()].concat());
            trial.signed_loosely(oracle, &judge, &policy_ref, rs_of(&signature)).unwrap();
            check("PolicySigned", trial, Policy::new(alg).signed(&name(&judge), &policy_ref), oracle);
        }
        oracle.flush(&approver).unwrap();
        oracle.flush(&judge).unwrap();
    }
}

/// A command without sessions, as plain bytes; the answer's parameters.
fn command(sim: &Sim, code: u32, body: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(sim.socket()).unwrap();
    let size = u32::try_from(body.len() + 10).unwrap();
    stream.write_all(&Writer::new().u16_be(0x8001).u32_be(size).u32_be(code).raw(body).done()).unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[6..], [0; 4], "command {code:#x}");
    let size = usize::try_from(u32::from_be_bytes(header[2..6].try_into().unwrap())).unwrap();
    let mut rest = vec![0; size - 10];
    stream.read_exact(&mut rest).unwrap();
    rest
}

#[test]
fn an_approval_is_what_a_trial_session_computes() {
    let Some(bench) = bench() else { return };
    let sim = &bench.sim;
    // StartAuthSession: unsalted, unbound, trial, no cipher, SHA-256.
    let null = 0x4000_0007;
    let start = Writer::new().u32_be(null).u32_be(null).tpm2b(&[1; 16]).tpm2b(&[]).u8(3).u16_be(0x10).u16_be(0xB);
    let session: [u8; 4] = command(sim, 0x176, &start.done())[..4].try_into().unwrap();
    let (clock, pcrs) = (sim.clock().unwrap(), pcrs(sim, HashAlg::Sha256, &[0, 4, 7, 14]));
    let approved = Approved {
        reset_count: clock.reset_count,
        restart_count: clock.restart_count,
        clock_limit: clock.clock + 600_000,
        selection: pcrs.0,
        pcr_digest: pcrs.1.as_bytes().try_into().unwrap(),
    };
    let timer = |operand: &[u8], offset: u16, comparison: Comparison| {
        let body = Writer::new().raw(&session).tpm2b(operand).u16_be(offset).u16_be(comparison.id());
        command(sim, 0x16D, &body.done())
    };
    timer(&approved.counters(), OFFSET_COUNTERS, Comparison::Equal);
    timer(&approved.clock_limit.to_be_bytes(), OFFSET_CLOCK, Comparison::AtMost);
    let body = Writer::new().raw(&session).tpm2b(&approved.pcr_digest);
    command(sim, 0x17F, &approved.selection.write(body).done());
    assert_eq!(command(sim, 0x189, &session)[2..], approved.digest());
    command(sim, 0x165, &session);
}

#[test]
fn import_blobs_open_only_with_both_signatures() {
    let Some(mut bench) = bench() else { return };
    let secret: Vec<u8> = (0..64).collect();
    let (approval, verdict) = (Authority::new(), Authority::new());
    let policy_ref = [0x44; 32];
    let policy = sealed_policy(&approval.public().name(), &verdict.public().name(), &policy_ref);
    for template in Template::ALL {
        let ek = bench.ek(template);
        let public = Public::parse(&ek.key.public).unwrap();
        let import = wrap_sealed(&public, &policy, &secret, &mut rng()).unwrap();
        let sealed = bench.oracle.import(&ek, &import).unwrap();
        assert_eq!(sealed.name, import.public.name().as_bytes());
        assert_eq!(sealed.public, import.public.to_bytes());
        let (selection, digest) = pcrs(&bench.sim, HashAlg::Sha256, &[0, 4, 7]);
        let Bench { oracle, .. } = &mut bench;

        // Without a policy session it does not open at all.
        let empty = oracle.policy(HashAlg::Sha256).unwrap();
        assert!(oracle.unseal(&sealed, &empty).is_err());
        empty.end(oracle).unwrap();

        let approved = Policy::new(HashAlg::Sha256).pcr(&selection, digest.as_bytes()).digest();
        let approve = approval.sign(&[approved.as_bytes(), &policy_ref].concat());
        let judge = verdict.sign(&[&[0; 4], policy_ref.as_slice()].concat());
        let one = |with_approval: bool, with_verdict: bool, oracle: &mut Oracle| {
            let session = oracle.policy(HashAlg::Sha256).unwrap();
            session.pcr(oracle, &selection, digest.as_bytes()).unwrap();
            if with_approval {
                let key = oracle.load_external(&approval.public()).unwrap();
                session.authorize(oracle, &key, approved.as_bytes(), &policy_ref, rs_of(&approve)).unwrap();
                oracle.flush(&key).unwrap();
            }
            if with_verdict {
                let key = oracle.load_external(&verdict.public()).unwrap();
                session.signed_loosely(oracle, &key, &policy_ref, rs_of(&judge)).unwrap();
                oracle.flush(&key).unwrap();
            }
            let opened = oracle.unseal(&sealed, &session);
            session.end(oracle).ok();
            opened
        };
        assert!(one(false, false, oracle).is_err());
        assert!(one(true, false, oracle).is_err());
        assert!(one(false, true, oracle).is_err());
        assert_eq!(one(true, true, oracle).unwrap(), secret, "{template:?}");
        oracle.flush(&sealed).unwrap();

        // Another policy in the public area, a set fixedTPM, a changed byte, another TPM's EK: refused at import.
        let mut other_policy = import.clone();
        other_policy.public.auth_policy = vec![0; 32];
        assert!(oracle.import(&ek, &other_policy).is_err());
        let mut fixed = import.clone();
        fixed.public.attributes |= attributes::FIXED_TPM;
        assert!(oracle.import(&ek, &fixed).is_err());
        for at in [0, 2, import.duplicate.len() / 2, import.duplicate.len() - 1] {
            let mut changed = import.clone();
            changed.duplicate[at] ^= 1;
            assert!(oracle.import(&ek, &changed).is_err(), "{template:?} byte {at}");
        }
        if template == Template::P256 {
            oracle.flush(&ek.key).unwrap();
        }
    }
}

#[test]
fn an_import_blob_is_for_one_ek() {
    let Some(mut bench) = bench() else { return };
    let (rsa, p384) = (bench.ek(Template::Rsa2048), bench.ek(Template::P384));
    for (own, other) in [(&rsa, &p384), (&p384, &rsa)] {
        let public = Public::parse(&own.key.public).unwrap();
        let import = wrap_sealed(&public, &[1; 32], b"key", &mut rng()).unwrap();
        assert!(bench.oracle.import(other, &import).is_err());
        let sealed = bench.oracle.import(own, &import).unwrap();
        bench.oracle.flush(&sealed).unwrap();
    }
}

/// Verifies a signature over a quote with ring.
fn verify(public: &Public, message: &[u8], signature: &[u8]) -> bool {
    let signature = Signature::parse(signature).unwrap();
    match (&public.key, signature) {
        (Key::Ecc { curve, .. }, Signature::Ecdsa { hash, .. }) => {
            let alg: &dyn rs::VerificationAlgorithm = match (curve, hash) {
                (Curve::P256, HashAlg::Sha256) => &rs::ECDSA_P256_SHA256_FIXED,
                (Curve::P384, HashAlg::Sha384) => &rs::ECDSA_P384_SHA384_FIXED,
                other => panic!("{other:?}"),
            };
            let fixed = signature.to_fixed(curve.size()).unwrap();
            rs::UnparsedPublicKey::new(alg, public.ecc_point().unwrap()).verify(message, &fixed).is_ok()
        }
        (Key::Rsa { modulus, .. }, Signature::Rsassa { signature, .. }) => {
            let key = rs::RsaPublicKeyComponents { n: modulus.as_slice(), e: [1u8, 0, 1].as_slice() };
            key.verify(&rs::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
        }
        (Key::Rsa { modulus, .. }, Signature::Rsapss { signature, .. }) => {
            let key = rs::RsaPublicKeyComponents { n: modulus.as_slice(), e: [1u8, 0, 1].as_slice() };
            key.verify(&rs::RSA_PSS_2048_8192_SHA256, message, signature).is_ok()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn quotes() {
    let Some(mut bench) = bench() else { return };
    for pcr in [0, 4, 7, 10, 13] {
        bench.sim.extend(pcr, b"event").unwrap();
    }
    bench.sim.suspend_resume().unwrap();
    bench.oracle = Oracle::connect(&bench.sim).unwrap();
    let ek = bench.ek(Template::Rsa2048);
    let aks = [
        (ak::template(), HashAlg::Sha256),
        (p384_ak(), HashAlg::Sha384),
        (rsa_ak(Scheme::Rsassa(HashAlg::Sha256)), HashAlg::Sha256),
        (rsa_ak(Scheme::Rsapss(HashAlg::Sha256)), HashAlg::Sha256),
    ];
    for (template, hash) in aks {
        let ak = bench.oracle.create(&ek, &template).unwrap();
        let public = Public::parse(&ak.public).unwrap();
        for (list, nonce) in [((0..15).collect::<Vec<u8>>(), vec![0xab; 32]), (vec![0, 7, 23], vec![1])] {
            let (selection, digest) = pcrs(&bench.sim, hash, &list);
            let before = bench.sim.clock().unwrap();
            let quoted = bench.oracle.quote(&ak, &nonce, &selection).unwrap();
            let quote = Quote::parse(&quoted.attest).unwrap();
            assert_eq!(quote.to_bytes(), quoted.attest);
            assert_eq!(quote.extra_data, nonce);
            assert_eq!(quote.selection, selection);
            assert_eq!(quote.digest(hash), Some(digest));
            let qualified = ak::qualified_name(&name(&ek.key), &name(&ak)).unwrap();
            assert_eq!(quote.qualified_signer, qualified.as_bytes());
            // An AK below the EK quotes the counters as they are.
            assert_eq!(
                (quote.clock.reset_count, quote.clock.restart_count),
                (before.reset_count, before.restart_count)
            );
            assert!(quote.clock.clock >= before.clock);

            assert_eq!(Signature::parse(&quoted.signature).unwrap().to_bytes(), quoted.signature);
            assert!(verify(&public, &quoted.attest, &quoted.signature));
            let mut changed = quoted.attest.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert!(!verify(&public, &changed, &quoted.signature));
        }
        bench.oracle.flush(&ak).unwrap();
    }
}

#[test]
fn others_can_use_the_tpm_meanwhile() {
    let Some(mut bench) = bench() else { return };
    let ek = bench.ek(Template::P384);
    bench.sim.extend(16, b"between two commands of the oracle").unwrap();
    let mut second = Oracle::connect(&bench.sim).unwrap();
    assert_eq!(second.ek(Template::P384).unwrap().key.name, ek.key.name);
}
