//! Who a host is: every kind of AK, several EKs of one TPM, EKs without a certificate. Real TPM, real verifier.
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

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::{Host, HostError};
use countersign_tpm::ak::Kind;
use countersign_tpm::ek::Template;
use countersign_tpm::public::Public;
use countersign_tpm_sim::oracle::Oracle;
use countersign_verifier::admin::Request;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{HostId, RunId};
use support::stage::{Stage, VOLUME_KEY};

const RUN: RunId = RunId([3; 16]);

fn refused(result: Result<countersign_wire::enrol::Enrolled, HostError>) -> String {
    let error = result.unwrap_err();
    let HostError::Refused { problem, .. } = error else { panic!("{error}") };
    problem.id
}

#[test]
fn every_kind_of_ak_attests_and_unseals() {
    let Some(stage) = Stage::new() else { return };
    let workload = stage.register();
    let mut of_host = None;
    for kind in Kind::ALL {
        let mut host = stage.host();
        host.want_ak(kind);
        let token = stage.verifier.token(of_host.clone());
        let enrolled = host.enroll(&token, "node-1").unwrap();
        assert_eq!(enrolled.state, HostState::Active, "{kind:?}");
        of_host = Some(enrolled.host.to_string());
        let ak = Public::parse(&host.card().unwrap().ak_public).unwrap();
        assert_eq!(Kind::of(&ak), Some(kind));
        host.attest().unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        assert_eq!(*host.release(workload, RUN).unwrap().key, VOLUME_KEY);
        // Without a wish the kept one stays.
        stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
        assert_eq!(stage.host().card().unwrap().ak_public, host.card().unwrap().ak_public);
    }
    // Another kind without a token for this host: a new AK on a known EK waits for the operator.
    let mut host = stage.host();
    host.want_ak(Kind::P256);
    assert_eq!(host.enroll(&stage.verifier.token(None), "node-1").unwrap().state, HostState::Suspended);
}

/// A state folder that knows nothing, on the same TPM.
fn fresh(stage: &Stage, name: &str) -> Host {
    let mut config = stage.config();
    config.state_dir = stage.path(name);
    Host::open(config).unwrap()
}

#[test]
fn all_eks_of_a_tpm_are_one_identity() {
    let Some(stage) = Stage::new() else { return };
    let der = Oracle::connect(&stage.sim).unwrap().certify_p256_ek(&stage.sim).unwrap();
    let mut host = stage.host();
    let enrolled = host.enroll(&stage.verifier.token(None), "node-1").unwrap();
    assert_eq!(enrolled.state, HostState::Active);
    host.attest().unwrap();
    let card = host.card().unwrap();
    let indices: Vec<u32> = card.ek_certificates.iter().map(|certificate| certificate.nv_index).collect();
    assert_eq!(indices, [0x01c0_0002, 0x01c0_000a, 0x01c0_0016]);
    assert_eq!(card.ek_certificates[1].der, der);
    let shown = stage.verifier.ask(Request::HostShow { host: "node-1".into() });
    let mut want: Vec<String> = card
        .ek_certificates
        .iter()
        .map(|certificate| {
            let key = countersign_tpm::ekcert::certified_key(&certificate.der).unwrap();
            let (_, public) = Template::rebuild(&key).unwrap();
            HostId::of_ek_spki(&public.spki().unwrap()).to_string()
        })
        .collect();
    want.sort();
    let got: Vec<String> = shown["eks"].as_array().unwrap().iter().map(|ek| ek.as_str().unwrap().to_owned()).collect();
    assert_eq!(got, want);

    // The same TPM under another of its EKs, as after a reinstall that shows that one alone.
    let show_only = |name: &str, template: Template| {
        let mut host = fresh(&stage, name);
        host.show_only(template);
        host
    };
    let token = || stage.verifier.token(None);
    for (name, template) in [("p256", Template::P256), ("p384", Template::P384)] {
        assert_eq!(refused(show_only(name, template).enroll(&token(), "x")), "ek-linked", "{name}");
    }
    // Revoked by one, revoked by all.
    stage.verifier.ask(Request::HostState {
        host: enrolled.host.to_string(),
        state: HostState::Revoked,
        reason: "stolen".into(),
    });
    for (name, template) in [("again", Template::Rsa2048), ("p256", Template::P256), ("p384", Template::P384)] {
        assert_eq!(refused(show_only(name, template).enroll(&token(), "x")), "host-revoked", "{name}");
    }
}

#[test]
fn a_p256_ek_alone_enrols_attests_and_unseals() {
    let Some(stage) = Stage::new() else { return };
    Oracle::connect(&stage.sim).unwrap().certify_p256_ek(&stage.sim).unwrap();
    let workload = stage.register();
    let mut host = stage.host();
    host.show_only(Template::P256);
    assert_eq!(host.enroll(&stage.verifier.token(None), "node-1").unwrap().state, HostState::Active);
    assert_eq!(Template::of(&Public::parse(&host.card().unwrap().ek_public).unwrap()), Some(Template::P256));
    host.attest().unwrap();
    assert_eq!(*host.release(workload, RUN).unwrap().key, VOLUME_KEY);
    // Shown with all its EKs later, it is the same host.
    let enrolled = stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    assert_eq!(enrolled.host, host.card().unwrap().host);
    let shown = stage.verifier.ask(Request::HostShow { host: "node-1".into() });
    assert_eq!(shown["eks"].as_array().unwrap().len(), 3);
}

#[test]
fn an_ek_without_certificate_needs_the_operators_list() {
    let Some(stage) = Stage::without_certificates() else { return };
    let mut host = stage.host();
    assert_eq!(refused(host.enroll(&stage.verifier.token(None), "bare")), "ek-certificate", "no trust on first use");
    let ek = host.endorsement_key().unwrap().to_bytes();
    let allow = |ek: &[u8]| {
        stage.verifier.try_ask(Request::EkAllow { ek: STANDARD.encode(ek), name: "bare".into(), development: true })
    };
    // Not an EK: neither an AK nor rubbish.
    assert!(allow(&countersign_tpm::ak::template().to_bytes()).is_err());
    assert!(allow(b"rubbish").is_err());
    // As attest writes it, as other TPM tools do, and as a plain public key: one EK.
    let spki = Public::parse(&ek).unwrap().spki().unwrap();
    assert!(allow(&spki[..spki.len() - 1]).is_err());
    let sized = [&u16::try_from(ek.len()).unwrap().to_be_bytes()[..], &ek].concat();
    for form in [&ek, &sized, &spki] {
        allow(form).unwrap();
        assert_eq!(stage.verifier.ask(Request::EkList {})["eks"].as_array().unwrap().len(), 1);
    }
    let enrolled = host.enroll(&stage.verifier.token(None), "bare").unwrap();
    assert_eq!(enrolled.state, HostState::Active);
    host.attest().unwrap();
    let shown = stage.verifier.ask(Request::HostShow { host: "bare".into() });
    assert_eq!((shown["ek_root"].as_str(), shown["simulated"].as_bool()), (Some("allow-list"), Some(true)));
    // An auditor is told that nobody certified this EK, and finds the rest in order.
    let attested = host.attest().unwrap();
    let bundle = host.bundle(attested.verdict_id).unwrap();
    countersign_verifier::check::check_bundle(&bundle, None).unwrap();
    let listed = stage.verifier.ask(Request::EkList {});
    assert_eq!(listed["eks"][0]["ek"], enrolled.host.to_string());
    stage.verifier.ask(Request::EkRemove { ek: enrolled.host.to_string()[..8].into() });
    assert_eq!(refused(fresh(&stage, "other").enroll(&stage.verifier.token(None), "bare")), "ek-certificate");
}
