//! The embedded engine against a real Open Policy Agent, and an OPA that misbehaves.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use countersign_policy::verdict::Decision;
use countersign_policy::{
    Compiled, PolicyBundle, PolicyEngine, ReferenceData, Role, bundle_files, reason, reference_document,
    shipped_host_policy, shipped_workload_policy,
};
use countersign_verifier::policy::mutate::{shipped_input, shipped_reference, shipped_settings, with_settings};
use countersign_verifier::policy::opa::{self, Opa, Options};
use serde_json::{Value, json};

fn options(address: String) -> Options {
    Options {
        address,
        token: None,
        ca: None,
        deadline: Duration::from_secs(10),
        bundle: None,
        decision_id: false,
        dangerous_allow_old_opa: true,
    }
}

fn ids(decision: &Decision) -> Vec<String> {
    let mut ids: Vec<String> = decision.reasons.iter().map(|reason| reason.id.clone()).collect();
    ids.dedup();
    ids
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// OPA as scripts/opa.sh built it, serving a bundle on a socket.
fn serve(dir: &std::path::Path, bundle: &[u8]) -> Option<(Server, String)> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/opa.sh");
    let found = Command::new(script).arg("path").output().unwrap();
    let program = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if program.is_empty() {
        println!("skipped: no OPA (scripts/opa.sh build makes one)");
        return None;
    }
    let (file, socket) = (dir.join("bundle.tar.gz"), dir.join("opa.sock"));
    std::fs::write(&file, bundle).unwrap();
    let address = format!("unix://{}", socket.display());
    let child = Command::new(program)
        .args(["run", "--server", "--disable-telemetry", "--log-level=error", "--addr", &address, "-b"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(child);
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "OPA does not listen");
        std::thread::yield_now();
    }
    Some((server, format!("unix:{}", socket.display())))
}

/// Each node taken away, or replaced by something of another type; the hand-written ones in front.
fn cases(good: &Value) -> Vec<Value> {
    let mut cases = vec![good.clone(), json!({}), json!([]), json!(null), json!("x"), json!(1)];
    let mut paths = Vec::new();
    let mut left = vec![(String::new(), good)];
    while let Some((path, value)) = left.pop() {
        match value {
            Value::Object(map) => left.extend(map.iter().map(|(key, inner)| (format!("{path}/{key}"), inner))),
            Value::Array(list) => {
                left.extend(list.iter().enumerate().take(12).map(|(at, inner)| (format!("{path}/{at}"), inner)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        if !path.is_empty() {
            paths.push(path);
        }
    }
    paths.sort();
    let odd =
        [json!(null), json!(true), json!(false), json!(-1), json!(1.5), json!(""), json!("x"), json!([]), json!({})];
    for (number, path) in paths.iter().enumerate() {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let mut without = good.clone();
        match without.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.remove(key)),
            Value::Array(list) => drop(list.remove(key.parse::<usize>().unwrap())),
            other => panic!("{other}"),
        }
        cases.push(without);
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = odd[number % odd.len()].clone();
        cases.push(changed);
        // And another value of the same type.
        let mut other = good.clone();
        let place = other.pointer_mut(path).unwrap();
        *place = match &*place {
            Value::String(text) => json!(if number % 2 == 0 { text.chars().rev().collect() } else { String::new() }),
            Value::Number(_) => json!(number % 24),
            Value::Bool(value) => json!(!value),
            Value::Array(list) => Value::Array(list.iter().rev().skip(number % 3).cloned().collect()),
            Value::Null | Value::Object(_) => continue,
        };
        cases.push(other);
    }
    cases
}

/// Asks both engines about every case; false when there is no OPA.
fn agree(what: &str, role: Role, bundle: &[u8], reference: &Value, good: &Value) -> bool {
    let cases = cases(good);
    assert!(cases.len() >= 200, "{what}: {}", cases.len());
    let dir = tempfile::tempdir().unwrap();
    let Some((_server, address)) = serve(dir.path(), bundle) else { return false };
    let opa = Opa::new(options(address), role).unwrap();
    opa.put_reference(reference).unwrap();
    let own = Compiled::new(&PolicyBundle::parse(bundle).unwrap(), role).unwrap();
    let own = own.ready(&ReferenceData::new(reference));
    let (mut allowed, mut differences) = (0, Vec::new());
    for case in &cases {
        let (here, there) = (PolicyEngine::decide(&own, case), opa.decide(case));
        allowed += usize::from(here.allow);
        if here.allow != there.allow || ids(&here) != ids(&there) || here.obligations != there.obligations {
            differences
                .push(format!("{:?} {:?} for {case}", ids(&here), ids(&there)).chars().take(600).collect::<String>());
        }
    }
    println!("{what}: {} cases, {allowed} allowed, {} differences, {}", cases.len(), differences.len(), opa.engine());
    assert!(PolicyEngine::decide(&own, good).allow, "{what}: the good case is allowed");
    assert_eq!(differences.len(), 0, "{what}: {:#?}", differences.first());
    // The same server is refused when its version matters.
    let strict = Options {
        dangerous_allow_old_opa: false,
        ..options(format!("unix:{}", dir.path().join("opa.sock").display()))
    };
    assert_eq!(ids(&Opa::new(strict, role).unwrap().decide(good)), [opa::VERSION]);
    true
}

#[test]
fn both_engines_agree_on_every_case() {
    let settings = shipped_settings().unwrap();
    let strict = with_settings(shipped_host_policy(), &settings).unwrap();
    let reference = reference_document(&shipped_reference().unwrap());
    let good = serde_json::to_value(shipped_input().unwrap()).unwrap();
    let mut run = good.clone();
    run["purpose"] = json!("run");
    run["run"] = json!({"total": 2, "findings": [
        {"kind": "listening-socket", "what": "127.0.0.1:80", "where": "/", "pid": 7, "executable": "/usr/bin/x"},
        {"kind": "time-jump", "what": "-5 s", "where": "clock"}
    ]});
    for (what, role, bundle, good) in [
        ("every check required", Role::Host, strict, &good),
        ("the default", Role::Host, shipped_host_policy().to_vec(), &good),
        ("a workload", Role::Workload, shipped_workload_policy().to_vec(), &good),
        ("a workload that runs", Role::Workload, shipped_workload_policy().to_vec(), &run),
    ] {
        if !agree(what, role, &bundle, &reference, good) {
            return;
        }
    }
}

#[test]
fn both_engines_agree_on_every_example() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    let mut done = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let dir = entry.unwrap().path();
        let read = |inner: &str| serde_json::from_slice::<Value>(&std::fs::read(dir.join(inner)).unwrap()).unwrap();
        let settings = serde_json::from_value(read("countersign/settings/data.json")).unwrap();
        let mut files = bundle_files(&with_settings(shipped_host_policy(), &settings).unwrap()).unwrap();
        if let Ok(host) = std::fs::read(dir.join("countersign/host/host.rego")) {
            files.insert("countersign/host/host.rego".into(), host);
        }
        files.remove(".manifest");
        let bundle = PolicyBundle::build(files).unwrap();
        let reference = reference_document(&serde_json::from_value(read("case/reference.json")).unwrap());
        let what = dir.file_name().unwrap().to_string_lossy().into_owned();
        if !agree(&what, Role::Host, &bundle, &reference, &read("case/input.json")) {
            return;
        }
        done += 1;
    }
    assert_eq!(done, 5);
}

/// Answers each connection with fixed bytes, or with nothing until it is dropped.
fn pretend(answer: Option<String>) -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    if let Some(answer) = answer {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut buffer = [0; 65_536];
                let _ = stream.read(&mut buffer);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    }
    (address, listener)
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn an_opa_that_misbehaves_denies_with_its_reason() {
    let new = r#""provenance": {"version": "1.21.3", "bundles": {"host": {"revision": "7"}}}"#;
    let allow = r#""result": {"allow": true, "reasons": [], "obligations": {}}"#;
    let whole = |rest: &str| http("200 OK", &format!("{{{rest}}}"));
    let input = serde_json::to_value(shipped_input().unwrap()).unwrap();
    let cases: Vec<(&str, Option<String>, &str)> = vec![
        ("200 {}", Some(whole("")), opa::VERSION),
        ("undefined", Some(whole(new)), reason::UNDEFINED),
        ("non-boolean", Some(whole(&format!(r#"{new}, "result": {{"allow": "true"}}"#))), reason::TYPE),
        ("no object", Some(whole(&format!(r#"{new}, "result": true"#))), reason::TYPE),
        (
            "unknown obligation",
            Some(whole(&format!(r#"{new}, "result": {{"allow": true, "obligations": {{"x": 1}}}}"#))),
            reason::OBLIGATION,
        ),
        ("old version", Some(whole(&format!(r#""provenance": {{"version": "1.21.2"}}, {allow}"#))), opa::VERSION),
        ("no version", Some(whole(allow)), opa::VERSION),
        (
            "another revision",
            Some(whole(&format!(
                r#""provenance": {{"version": "1.22.0", "bundles": {{"host": {{"revision": "6"}}}}}}, {allow}"#
            ))),
            opa::PROVENANCE,
        ),
        ("no bundle", Some(whole(&format!(r#""provenance": {{"version": "1.22.0"}}, {allow}"#))), opa::PROVENANCE),
        ("no decision id", Some(whole(&format!("{new}, {allow}"))), opa::PROVENANCE),
        ("evaluation error", Some(http("500 Internal Server Error", "{\"code\": \"internal_error\"}")), reason::ERROR),
        ("unauthorized", Some(http("401 Unauthorized", "{}")), opa::UNREACHABLE),
        ("redirect", Some(http("302 Found", "")), opa::UNREACHABLE),
        (
            "restarted mid-request",
            Some("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"result\": {\"al".into()),
            opa::UNREACHABLE,
        ),
        ("no JSON", Some(http("200 OK", "<html>")), opa::UNREACHABLE),
        ("slow", None, opa::DEADLINE),
    ];
    for (what, answer, id) in cases {
        let (address, _listener) = pretend(answer);
        let options = Options {
            deadline: Duration::from_millis(if what == "slow" { 200 } else { 10_000 }),
            bundle: Some(("host".into(), "7".into())),
            decision_id: what == "no decision id",
            dangerous_allow_old_opa: false,
            ..options(address)
        };
        let decision = Opa::new(options, Role::Host).unwrap().decide(&input);
        assert!(!decision.allow, "{what}");
        assert_eq!(ids(&decision), [id], "{what}: {decision:?}");
    }
    let (address, _listener) = pretend(Some(whole(&format!(r#"{new}, {allow}, "decision_id": "x""#))));
    let options = Options {
        bundle: Some(("host".into(), "7".into())),
        decision_id: true,
        dangerous_allow_old_opa: false,
        ..options(address)
    };
    let good = Opa::new(options, Role::Host).unwrap();
    assert!(good.decide(&input).allow);
    assert_eq!(good.engine(), "opa 1.21.3");
    let (address, listener) = pretend(None);
    drop(listener);
    assert_eq!(ids(&Opa::new(self::options(address), Role::Host).unwrap().decide(&input)), [opa::UNREACHABLE]);
}

#[test]
fn a_token_never_travels_in_the_clear() {
    let with = |address: &str| Options { token: Some("secret".into()), ..options(address.to_owned()) };
    assert!(Opa::new(with("http://127.0.0.1:1"), Role::Host).is_err());
    assert!(Opa::new(with("https://127.0.0.1:1"), Role::Host).is_err(), "https without its CA");
    assert!(Opa::new(with("unix:/run/opa.sock"), Role::Host).is_ok());
    assert!(Opa::new(with("ftp://x"), Role::Host).is_err());
}
