//! The release protocol on a real swtpm, with both kinds of EK; the test plays the verifier.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use countersign_attest::endorsement::{Ak, AkBlob, Ek, EndorsementAuth, find_certificates};
use countersign_attest::random::system_rng;
use countersign_attest::tpm::{Tpm, TpmError};
use countersign_attest::unseal::{UnsealError, Waiting};
use countersign_tpm::ak;
use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::Quote;
use countersign_tpm::credential::make_credential;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert::certified_key;
use countersign_tpm::pcr::{PcrSelection, pcr_digest};
use countersign_tpm::policy::{Comparison, OFFSET_CLOCK, OFFSET_COUNTERS};
use countersign_tpm::signature::Signature;
use countersign_tpm_sim::Sim;
use countersign_wire::answer::Release;
use countersign_wire::id::{HostId, WorkloadId};
use countersign_wire::release::{approval_hash, policy_ref, unseal_cp_hash, verdict_hash};
use p256::ecdsa::Signature as EcdsaSignature;
use support::authority::{Broker, SECRET};
use support::sim;

fn connect(sim: &Sim) -> Tpm {
    Tpm::connect(&sim.tpm_arg().parse().unwrap()).unwrap()
}

fn code(error: &UnsealError) -> u32 {
    match error {
        UnsealError::Tpm(TpmError::Refused { code, .. }) => code.0,
        UnsealError::Tpm(_) | UnsealError::Release(_) => panic!("{error}"),
    }
}

#[test]
fn released_with_every_kind_of_ek_and_within_the_command_budget() {
    let Some((_dir, sim)) = sim() else { return };
    for (template, budget) in [(Template::Rsa2048, 22), (Template::P256, 22), (Template::P384, 25)] {
        let mut tpm = connect(&sim);
        let mut stage = Broker::new(&mut tpm, template);
        // swtpm has no persistent P-256 EK.
        assert!(stage.ek.make_persistent(&mut tpm));
        let approved = stage.approved(&mut tpm);
        let blob = AkBlob::create(&mut tpm, &stage.ek).unwrap();
        let before = tpm.commands();
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
        let private = waiting.private.clone();
        let ak = Ak::load(&mut tpm, &stage.ek, &blob).unwrap();
        tpm.quote(&ak.key.object, &[1; 32], &approved.selection).unwrap();
        ak.close(&mut tpm).unwrap();
        let release = stage.release(&waiting, &approved, 30);
        let secret = waiting.unseal(&mut tpm, &release).unwrap();
        assert_eq!(secret.as_slice(), SECRET);
        // One more than the budget: the sealed object is flushed when the secret is out.
        assert_eq!(tpm.commands() - before, budget + 1, "{template:?}");

        // Later starts load what Import returned; what no longer loads is imported again.
        for (private, cheaper) in [(private, true), (vec![7; 126], false)] {
            let before = tpm.commands();
            let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, Some(&private)).unwrap();
            let release = stage.release(&waiting, &approved, 30);
            assert_eq!(waiting.unseal(&mut tpm, &release).unwrap().as_slice(), SECRET);
            assert_eq!(tpm.commands() - before < budget - 5, cheaper);
        }
        assert_eq!(left(&mut tpm), 0);
    }
}

/// Objects and sessions in the TPM.
fn left(tpm: &mut Tpm) -> usize {
    [0x8000_0000, 0x0200_0000, 0x0300_0000].into_iter().map(|first| tpm.handles(first).unwrap().len()).sum()
}

#[test]
fn looser_or_foreign_signatures_are_refused_by_the_tpm() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Broker::new(&mut tpm, Template::Rsa2048);
    let approved = stage.approved(&mut tpm);
    type Change = fn(&Broker, &Waiting, &mut Release);
    let changes: [(&str, u32, Change); 7] = [
        ("a verdict for another session", 0x5db, |s, w, r| {
            let cp_hash = unseal_cp_hash(w.object_name());
            r.verdict = s.verdict.sign(&verdict_hash(&[7; 32], 30, &cp_hash, &s.reference));
        }),
        ("a verdict for another object", 0x5db, |s, w, r| {
            let nonce = w.nonce_tpm().try_into().unwrap();
            r.verdict = s.verdict.sign(&verdict_hash(&nonce, 30, &unseal_cp_hash(b"other"), &s.reference));
        }),
        ("a raised expiration", 0x5db, |_, _, r| r.expiration = 300),
        ("a verdict by the approval key", 0x5db, |s, w, r| {
            let nonce = w.nonce_tpm().try_into().unwrap();
            let hash = verdict_hash(&nonce, 30, &unseal_cp_hash(w.object_name()), &s.reference);
            r.verdict = s.approval.sign(&hash);
        }),
        ("an approval for another boot", 0x2db, |_, _, r| r.restart_count += 1),
        ("a later clock limit", 0x2db, |_, _, r| r.clock_limit += 1),
        ("another workload's reference", 0x2db, |_, _, r| {
            r.policy_ref = policy_ref(&WorkloadId([9; 32]), &HostId([2; 32]), b"an AK's Name");
        }),
    ];
    for (what, expected, change) in changes {
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
        let mut release = stage.release(&waiting, &approved, 30);
        change(&stage, &waiting, &mut release);
        let error = waiting.unseal(&mut tpm, &release).unwrap_err();
        assert_eq!(code(&error), expected, "{what}: {error}");
        assert_eq!(left(&mut tpm), 0, "{what}");
    }
}

#[test]
fn changed_pcrs_and_resets_void_an_approval() {
    let Some((_dir, mut sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Broker::new(&mut tpm, Template::P384);
    let approved = stage.approved(&mut tpm);

    let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
    let release = stage.release(&waiting, &approved, 30);
    tpm.extend(7, &[HashAlg::Sha256.digest(&[b"another boot loader"])]).unwrap();
    let error = waiting.unseal(&mut tpm, &release).unwrap_err();
    assert_eq!(code(&error), 0x1c4, "{error}");
    drop(tpm);

    sim.reset().unwrap();
    let mut tpm = connect(&sim);
    let ek = Ek::open(&mut tpm, Template::P384, Some(&stage.ek.key.public), &EndorsementAuth::default()).unwrap();
    let waiting = Waiting::open(&mut tpm, &ek, &stage.import, None).unwrap();
    // The old approval, with a fresh verdict: PolicyCounterTimer says no.
    let fresh = stage.release(&waiting, &approved, 30);
    let error = waiting.unseal(&mut tpm, &fresh).unwrap_err();
    assert_eq!(code(&error), 0x126, "{error}");
}

#[test]
fn each_signature_alone_is_not_enough() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Broker::new(&mut tpm, Template::Rsa2048);
    let approved = stage.approved(&mut tpm);
    for with_approval in [true, false] {
        let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
        let release = stage.release(&waiting, &approved, 30);
        let (object, mut session) = waiting.into_parts();
        if with_approval {
            let key = tpm.load_external(&stage.approval.public()).unwrap();
            let digest = approval_hash(&approved.digest(), &stage.reference);
            let ticket = tpm.verify_signature(&key, &digest, &release.approval).unwrap();
            let counters = approved.counters();
            tpm.policy_counter_timer(&session, &counters, OFFSET_COUNTERS, Comparison::Equal).unwrap();
            let limit = approved.clock_limit.to_be_bytes();
            tpm.policy_counter_timer(&session, &limit, OFFSET_CLOCK, Comparison::AtMost).unwrap();
            tpm.policy_pcr(&session, &approved.pcr_digest, &approved.selection).unwrap();
            tpm.policy_authorize(&session, &approved.digest(), &stage.reference, &key.name, &ticket).unwrap();
        } else {
            let key = tpm.load_external(&stage.verdict.public()).unwrap();
            let (nonce, cp_hash) = (session.nonce_tpm().to_vec(), unseal_cp_hash(object.name.as_bytes()));
            tpm.policy_signed(&session, &key, &nonce, &cp_hash, &stage.reference, 30, &release.verdict).unwrap();
        }
        let error = tpm.unseal(&object, &mut session).unwrap_err();
        assert_eq!(error.code().unwrap().0, 0x99d, "{error}");
        tpm.flush_leftovers().unwrap();
    }
}

#[test]
fn a_verdict_expires() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let stage = Broker::new(&mut tpm, Template::Rsa2048);
    let approved = stage.approved(&mut tpm);
    let waiting = Waiting::open(&mut tpm, &stage.ek, &stage.import, None).unwrap();
    let release = stage.release(&waiting, &approved, 1);
    // The TPM's own clock decides, from StartAuthSession on.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let error = waiting.unseal(&mut tpm, &release).unwrap_err();
    assert_eq!(code(&error), 0x4e3, "{error}");
    assert!(error.to_string().contains("the verdict has expired"), "{error}");
}

#[test]
fn an_endorsement_password_is_proved_without_being_sent() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    // No EK is persistent afterwards: CreatePrimary needs the password too.
    tpm.clear().unwrap();
    let secret = EndorsementAuth::new(b"a password\0\0");
    // TPM2_HierarchyChangeAuth(endorsement).
    let body = [&[0, 0, 1, 0x29, 0x40, 0, 0, 0x0B, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10][..], b"a password"]
        .concat();
    let size = u32::try_from(body.len() + 6).unwrap();
    let command = [&[0x80, 0x02][..], &size.to_be_bytes(), &body].concat();
    assert_eq!(tpm.transmit(&command).unwrap()[6..10], [0; 4]);
    drop(tpm);
    let (proxied, seen) = support::proxy::unix(sim.home(), &sim.socket(), support::proxy::Everything::default());
    for template in Template::ALL {
        let mut tpm = Tpm::connect(&proxied.parse().unwrap()).unwrap();
        for wrong in [EndorsementAuth::default(), EndorsementAuth::new(b"another")] {
            let error = Ek::open(&mut tpm, template, None, &wrong).unwrap_err();
            assert_eq!(error.code().unwrap().base(), 0x0A2, "{error}");
        }
        let ek = Ek::open(&mut tpm, template, None, &secret).unwrap();
        let blob = AkBlob::create(&mut tpm, &ek).unwrap();
        let ak = Ak::load(&mut tpm, &ek, &blob).unwrap();
        ak.close(&mut tpm).unwrap();
        ek.close(&mut tpm).unwrap();
        assert_eq!(left(&mut tpm), 0);
    }
    assert!(!seen.lock().unwrap().holds(b"a password"));
}

#[test]
fn credential_and_quote() {
    let Some((_dir, sim)) = sim() else { return };
    let mut tpm = connect(&sim);
    let (certificates, _) = find_certificates(&mut tpm).unwrap();
    let templates: Vec<Template> = certificates.iter().map(|found| found.template).collect();
    assert_eq!(templates, [Template::Rsa2048, Template::P384]);
    for found in certificates {
        let (_, rebuilt) = Template::rebuild(&certified_key(&found.der).unwrap()).unwrap();
        let mut ek = Ek::open(&mut tpm, found.template, Some(&rebuilt), &EndorsementAuth::default()).unwrap();
        assert!(ek.make_persistent(&mut tpm));
        let blob = AkBlob::create(&mut tpm, &ek).unwrap();
        ak::check(&blob.public).unwrap();
        let mut ak = Ak::load(&mut tpm, &ek, &blob).unwrap();
        let credential = make_credential(&rebuilt, &blob.public.name(), b"32 bytes", &mut system_rng()).unwrap();
        let opened = ak.activate(&mut tpm, &ek, &credential.blob, &credential.secret).unwrap();
        assert_eq!(opened.as_slice(), b"32 bytes");
        let other = make_credential(&rebuilt, &rebuilt.name(), b"32 bytes", &mut system_rng()).unwrap();
        assert!(ak.activate(&mut tpm, &ek, &other.blob, &other.secret).is_err(), "a credential for another key");
        tpm.flush_leftovers_but(&[ak.key.object.handle]).unwrap();

        assert!(ak.make_persistent(&mut tpm));
        let ak = Ak::open(&mut tpm, &ek, &blob).unwrap();
        let selection = PcrSelection::single(HashAlg::Sha256, &(0..15).collect::<Vec<_>>());
        let (quoted, signature) = tpm.quote(&ak.key.object, &[3; 32], &selection).unwrap();
        let quote = Quote::parse(&quoted).unwrap();
        let qualified = ak::qualified_name(&rebuilt.name(), &blob.public.name()).unwrap();
        assert_eq!(quote.qualified_signer, qualified.as_bytes());
        assert_eq!(quote.extra_data, [3; 32]);
        let values: Vec<Digest> = tpm.read_pcrs(&selection).unwrap().into_iter().map(|(_, _, value)| value).collect();
        assert_eq!(quote.pcr_digest, pcr_digest(HashAlg::Sha256, &values).as_bytes());
        let fixed = Signature::parse(&signature).unwrap().to_fixed(32).unwrap();
        let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&blob.public.ecc_point().unwrap()).unwrap();
        let fixed = EcdsaSignature::from_slice(&fixed).unwrap();
        p256::ecdsa::signature::Verifier::verify(&key, &quoted, &fixed).unwrap();
    }
}
