//! An Open Policy Agent beside the embedded engine: a real one, and ones that misbehave.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use countersign_policy::reason;
use countersign_verifier::appraise::DISAGREES;
use countersign_verifier::check::check_bundle;
use countersign_verifier::policy::{opa, store};
use countersign_verifier::{keys, tls};
use countersign_wire::statement::Purpose;
use countersign_wire::trust::TrustBundle;
use serde_json::{Value, json};

use crate::lab::{Lab, Machine, denied};
use crate::policies::{Signer, until};
use crate::web::{Asked, Web, reply};

/// A lab whose host policy is a loaded one, with a machine.
fn lab() -> (Lab, Machine, Signer) {
    let (lab, machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    store::load(lab.path(), &signer.good(1), &lab.service.trial).unwrap();
    (lab, machine, signer)
}

fn json_reply(body: &Value) -> Vec<u8> {
    reply("200 OK", &[("content-type", "application/json")], body.to_string().as_bytes())
}

fn allowed() -> Value {
    json!({
        "result": {"allow": true, "reasons": [], "obligations": {"lease_s": 60}},
        "decision_id": "an id",
        "provenance": {"version": "1.21.3", "bundles": {"countersign": {"revision": "1"}}},
    })
}

/// An OPA on a socket.
fn pretend(lab: &Lab, verdict: impl FnMut(&mut dyn Write) + Send + 'static) -> Web {
    Web::unix(&lab.path().join("opa.sock"), answering(verdict))
}

/// Takes reference values, and answers questions about hosts as told.
fn answering(
    mut verdict: impl FnMut(&mut dyn Write) + Send + 'static,
) -> impl FnMut(&Asked, &mut dyn Write) + Send + 'static {
    let mut held = json!({});
    move |asked, out| {
        if asked.line.contains("/host/verdict") {
            verdict(out);
        } else if asked.line.starts_with("PUT /v1/data/countersign/verifier") {
            held = json!({"result": serde_json::from_slice::<Value>(&asked.body).unwrap()});
            let _ = out.write_all(&reply("204 No Content", &[], b""));
        } else if asked.line.starts_with("PUT") {
            let _ = out.write_all(&reply("204 No Content", &[], b""));
        } else {
            let _ = out.write_all(&json_reply(&held));
        }
    }
}

fn with_opa(lab: &mut Lab, more: &str) {
    let url = lab.path().join("opa.sock");
    lab.configure(&format!("[engine]\nkind = \"opa\"\nurl = \"unix:{}\"\n{more}\n", url.display()));
}

#[test]
fn an_opa_that_agrees_is_named_in_the_verdict_and_in_the_bundle() {
    let (mut lab, mut machine, _) = lab();
    let web = pretend(&lab, |out| out.write_all(&json_reply(&allowed())).unwrap());
    with_opa(&mut lab, "");
    for _ in 0..2 {
        let answer = machine.attest(&lab);
        let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
        assert_eq!(
            verdict["basis"]["remote"],
            json!({"engine": "opa 1.21.3", "bundle": "countersign", "revision": "1", "decision_id": "an id"})
        );
        assert!(verdict["basis"]["engine"].as_str().unwrap().starts_with("regorus "), "which decided the same");
        assert_eq!(verdict["obligations"]["lease_s"], 60, "the stricter of both");
        let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
        let checked = check_bundle(&file, Some(TrustBundle::digest(&lab.service.keys.trust))).unwrap();
        assert!(checked.allow);
        assert!(
            checked.rests_on_the_verifier.iter().any(|rests| rests.contains("opa 1.21.3 decided so")),
            "{checked:?}"
        );
    }
    let puts = web.asked().iter().filter(|asked| asked.line.starts_with("PUT")).count();
    assert_eq!(puts, 2, "the reference values and their digest, once");
}

#[test]
fn an_opa_that_misbehaves_denies_with_its_reason() {
    let (mut lab, mut machine, _) = lab();
    let answers = |body: Value| move |out: &mut dyn Write| drop(out.write_all(&json_reply(&body)));
    let with = |pointer: &str, value: Value| {
        let mut body = allowed();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    type Says = Box<dyn FnMut(&mut dyn Write) + Send>;
    let cases: Vec<(&str, Says, &str)> = vec![
        ("200 {}", Box::new(answers(json!({}))), reason::UNDEFINED),
        ("a non-boolean", Box::new(answers(with("/result/allow", json!("true")))), reason::TYPE),
        ("no object", Box::new(answers(with("/result", json!(true)))), reason::TYPE),
        ("an unknown obligation", Box::new(answers(with("/result/obligations", json!({"x": 1})))), reason::OBLIGATION),
        ("an old version", Box::new(answers(with("/provenance/version", json!("1.4.2")))), opa::VERSION),
        (
            "a wrong revision",
            Box::new(answers(with("/provenance/bundles/countersign/revision", json!("2")))),
            opa::PROVENANCE,
        ),
        (
            "an error",
            Box::new(|out| drop(out.write_all(&reply("500 Internal Server Error", &[], b"{\"code\": \"x\"}")))),
            reason::ERROR,
        ),
        ("no permission", Box::new(|out| drop(out.write_all(&reply("401 Unauthorized", &[], b"")))), opa::ANSWER),
        (
            "restarted mid-request",
            Box::new(|out| drop(out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"result\": {\"al"))),
            opa::ANSWER,
        ),
        ("gone before it answered", Box::new(|_| {}), opa::UNREACHABLE),
        (
            "a huge answer",
            Box::new(|out| {
                let _ = out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
                while out.write_all(&[b' '; 65_536]).is_ok() {}
            }),
            opa::ANSWER,
        ),
        (
            "a drop at a time",
            Box::new(|out| {
                let _ = out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
                while out.write_all(b" ").and_then(|()| out.flush()).is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }),
            opa::DEADLINE,
        ),
        (
            "another mind",
            Box::new(answers(with("/result", json!({"allow": false, "reasons": [{"id": "no", "message": "no"}]})))),
            DISAGREES,
        ),
    ];
    for (what, says, id) in cases {
        // Whose answer takes for ever is not to take as long here.
        with_opa(&mut lab, if id == opa::DEADLINE { "timeout_ms = 700" } else { "timeout_ms = 60000" });
        let web = pretend(&lab, says);
        let answer = machine.attest(&lab);
        assert_eq!(denied(&answer)[0], id, "{what}");
        let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
        let checked = check_bundle(&file, Some(TrustBundle::digest(&lab.service.keys.trust))).unwrap();
        assert!(!checked.allow, "{what}");
        assert!(checked.rests_on_the_verifier.iter().any(|rests| rests.contains("opa ")), "{what}: {checked:?}");
        drop(web);
        std::fs::remove_file(lab.path().join("opa.sock")).unwrap();
    }
    assert_eq!(denied(&machine.attest(&lab)), [opa::UNREACHABLE], "down");
    // OPA's allow alone is nothing: the embedded engine says no.
    lab.ask(countersign_verifier::admin::Request::ReferenceRevoke { name: "recorded".into() }).unwrap();
    let _web = pretend(&lab, answers(allowed()));
    assert_eq!(denied(&machine.attest(&lab))[0], DISAGREES);
}

#[test]
fn over_https_its_ca_alone_is_trusted_and_the_token_is_shown() {
    let (mut lab, mut machine, _) = lab();
    keys::write_secret(&lab.path().join("opa.token"), b"secret\n").unwrap();
    let config = tls::server_config(&lab.service.keys, "127.0.0.1", store::now_ms()).unwrap();
    let web = Web::tls(config, answering(|out| drop(out.write_all(&json_reply(&allowed())))));
    let engine = |ca: &str| {
        let url = &web.address;
        format!("[engine]\nkind = \"opa\"\nurl = \"{url}\"\nca = \"{ca}\"\ntoken_file = \"opa.token\"")
    };
    lab.configure(&engine("ca.pem"));
    assert!(machine.attest(&lab).allow);
    assert!(web.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    let asked = web.asked().len();
    std::fs::copy(Lab::new().path().join("ca.pem"), lab.path().join("other.pem")).unwrap();
    lab.configure(&engine("other.pem"));
    assert_eq!(denied(&machine.attest(&lab)), [opa::UNREACHABLE]);
    assert_eq!(web.asked().len(), asked, "no token for a stranger");
}

#[test]
fn while_opa_is_waited_for_the_verifier_goes_on() {
    let (mut lab, mut machine, _) = lab();
    let (asked, is_asked) = mpsc::channel();
    let (go, on) = mpsc::channel::<()>();
    let _web = pretend(&lab, move |out| {
        asked.send(()).unwrap();
        on.recv().unwrap();
        let _ = out.write_all(&json_reply(&allowed()));
    });
    with_opa(&mut lab, "timeout_ms = 60000");
    let challenge = lab.challenge(&machine, None).unwrap();
    let evidence = machine.evidence(&challenge, None);
    let (done, answer) = mpsc::channel();
    let service = lab.service.clone();
    lab.spawn(async move { done.send(service.answer(evidence, Purpose::Attest).await.is_ok()).unwrap() });
    is_asked.recv().unwrap();
    // Reads and writes of the database, and more of them than there are workers of the runtime.
    let other = lab.vendor.machine();
    other.enrol(&lab, Some(&lab.token(None))).unwrap();
    for _ in 0..5 {
        lab.challenge(&other, None).unwrap();
    }
    assert!(answer.try_recv().is_err(), "it waits still");
    go.send(()).unwrap();
    assert!(answer.recv().unwrap());
}

#[test]
fn what_a_replaced_policy_accepted_is_decided_again() {
    let (mut lab, mut machine, signer) = lab();
    let (dir, trial, strict) = (lab.path().to_owned(), lab.service.trial.clone(), signer.strict(2));
    let mut revision = 1;
    let web = pretend(&lab, move |out| {
        let mut answer = allowed();
        answer["provenance"]["bundles"]["countersign"]["revision"] = json!(revision.to_string());
        if revision == 1 {
            // While this decision is made.
            store::load(&dir, &strict, &trial).unwrap();
            revision = 2;
        }
        let _ = out.write_all(&json_reply(&answer));
    });
    with_opa(&mut lab, "timeout_ms = 60000");
    // The new policy accepts nobody, and this OPA accepts everybody.
    assert_eq!(denied(&machine.attest(&lab)), [DISAGREES]);
    assert_eq!(web.asked().iter().filter(|asked| asked.line.contains("/host/verdict")).count(), 2);
    assert_eq!(lab.verdicts().len(), 1, "the one that was overtaken is nowhere");
    assert_eq!(denied(&machine.attest(&lab)), [DISAGREES]);
}

#[test]
fn what_the_configuration_refuses() {
    let (mut lab, _, _) = lab();
    std::fs::write(lab.path().join("token"), "x").unwrap();
    Command::new("chmod").arg("644").arg(lab.path().join("token")).status().unwrap();
    for (text, words) in [
        ("[engine]\nkind = \"opa\"", "needs it"),
        ("[engine]\nkind = \"opa\"\nurl = \"http://127.0.0.1:8181\"", "https:// or unix:PATH"),
        ("[engine]\nkind = \"opa\"\nurl = \"https://127.0.0.1:8181\"", "needs the CA"),
        ("[engine]\nkind = \"opa\"\nurl = \"unix:/x\"\ntoken_file = \"token\"", "chmod 600"),
        ("[engine]\nkind = \"opa\"\nurl = \"unix:/x\"\ntimeout_ms = 0", "10 to 60000"),
        ("[engine]\nkind = \"opa\"\nurl = \"unix:/x\"\nmax_bundle_age_s = 0", "at least 1"),
        ("[engine]\nkind = \"opal\"\nurl = \"unix:/x\"", "opal"),
        ("[engine]\nurl = \"unix:/x\"", "embedded"),
        ("[engine]\nkind = \"opa\"\nurl = \"unix:/x\"\ntimeout = 5", "timeout"),
        ("[policy.bundle]\nurl = \"http://x\"\ntoken_file = \"ops.pem\"", "chmod 600"),
        ("[policy.log]\nurl = \"http://x\"", "https:// or unix:PATH"),
        ("[policy.log]\nurl = \"unix:/x\"\nmask = [\"/decision_id\"]", "/input/"),
        ("host_policy = \"nothing-here\"", "nothing-here"),
    ] {
        let refused = lab.try_configure(text).unwrap_err().to_string();
        assert!(refused.contains(words), "{text}: {refused}");
    }
}

struct Real {
    child: Child,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// OPA as scripts/opa.sh built it, with a bundle server, on the lab's socket.
    fn start(program: &Path, lab: &Lab, bundles: &Web, signer: &Signer) -> Self {
        let socket = lab.path().join("opa.sock");
        let _ = std::fs::remove_file(&socket);
        let config = json!({
            "services": {"here": {"url": bundles.address}},
            "keys": {"ops": {"algorithm": "ES256", "key": signer.public()}},
            "bundles": {"countersign": {
                "service": "here", "resource": "/host.tar.gz", "signing": {"keyid": "ops"},
                "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1},
            }},
            "decision_logs": {"console": true},
            "status": {"console": true},
        });
        std::fs::write(lab.path().join("opa.json"), config.to_string()).unwrap();
        let child = Command::new(program)
            .args(["run", "--server", "--disable-telemetry", "--log-level=error", "--addr"])
            .arg(format!("unix://{}", socket.display()))
            .arg("--config-file")
            .arg(lab.path().join("opa.json"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }
}

fn program() -> Option<PathBuf> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/opa.sh");
    let found = Command::new(script).arg("path").output().unwrap();
    let program = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    (!program.is_empty()).then(|| program.into())
}

#[test]
#[allow(clippy::print_stdout, reason = "a skipped test says so")]
fn a_real_opa_decides_beside_the_embedded_engine() {
    let Some(program) = program() else {
        println!("skipped: no OPA (scripts/opa.sh build makes one)");
        return;
    };
    let (mut lab, mut machine, signer) = lab();
    let serve =
        |bundle: Vec<u8>| move |_: &Asked, out: &mut dyn Write| drop(out.write_all(&reply("200 OK", &[], &bundle)));
    let bundles = Web::tcp(serve(signer.good(1)));
    let opa = Real::start(&program, &lab, &bundles, &signer);
    with_opa(
        &mut lab,
        "timeout_ms = 60000\ndangerous_allow_old_opa = true\nrequire_decision_id = true\nmax_bundle_age_s = 3600",
    );
    let answer = until("a decision", || Some(machine.attest(&lab)).filter(|answer| answer.allow));
    let verdict: Value = serde_json::from_slice(&answer.verdict).unwrap();
    let remote = &verdict["basis"]["remote"];
    assert!(remote["engine"].as_str().unwrap().starts_with("opa 1."), "{remote}");
    assert_eq!(remote["revision"], "1");
    assert!(remote["decision_id"].as_str().unwrap().len() > 10, "{remote}");
    let file = lab.run(lab.service.bundle(&answer.verdict_id, None)).unwrap();
    assert!(check_bundle(&file, Some(TrustBundle::digest(&lab.service.keys.trust))).unwrap().allow);
    // A denial of both, with the same ids.
    lab.ask(countersign_verifier::admin::Request::ReferenceRevoke { name: "recorded".into() }).unwrap();
    let ids = denied(&machine.attest(&lab));
    assert!(ids.contains(&"reference-missing".to_owned()) && !ids.contains(&DISAGREES.to_owned()), "{ids:?}");
    lab.ask(countersign_verifier::admin::Request::ReferenceAdd {
        name: "recorded".into(),
        eventlog: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, crate::support::boot::LOG),
        pcrs: Vec::new(),
    })
    .unwrap();
    assert!(machine.attest(&lab).allow, "new reference values reach OPA");
    // Another revision here than there, until OPA has it too.
    let two = signer.good(2);
    store::load(lab.path(), &two, &lab.service.trial).unwrap();
    assert_eq!(denied(&machine.attest(&lab)), [opa::PROVENANCE]);
    bundles.answers(serve(two.clone()));
    until("revision 2 in OPA", || Some(machine.attest(&lab)).filter(|answer| answer.allow));
    // Its version counts.
    with_opa(&mut lab, "timeout_ms = 60000");
    assert_eq!(denied(&machine.attest(&lab)), [opa::VERSION]);
    // Its bundle server is gone: OPA goes on deciding, and is not believed.
    with_opa(&mut lab, "timeout_ms = 60000\ndangerous_allow_old_opa = true\nmax_bundle_age_s = 2");
    drop(bundles);
    let stale = || Some(machine.attest(&lab)).filter(|answer| !answer.allow);
    assert_eq!(denied(&until("a stale bundle", stale)), [opa::STALE]);
    // Down, and up again without its reference values.
    drop(opa);
    assert_eq!(denied(&machine.attest(&lab)), [opa::UNREACHABLE]);
    let bundles = Web::tcp(serve(two));
    let _opa = Real::start(&program, &lab, &bundles, &signer);
    until("OPA again", || Some(machine.attest(&lab)).filter(|answer| answer.allow));
}
