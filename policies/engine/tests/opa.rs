//! The project in a real Open Policy Agent: format, strict checks under the shared capabilities, tests; and those capabilities themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_policy::testing::run_tests;
use countersign_policy::{Compiled, PolicyBundle, Role, library, limits};
use serde_json::{Map, Value, json};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Operators: infix builtins are instructions of the virtual machine, not on the list of functions.
fn operator(builtin: &Value) -> bool {
    builtin.get("infix").is_some()
}

fn run(opa: &str, arguments: &[&str]) -> Output {
    Command::new(opa).args(arguments).output().unwrap()
}

#[track_caller]
fn passes(opa: &str, arguments: &[&str]) -> Vec<u8> {
    let done = run(opa, arguments);
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "opa {arguments:?}: {}{}", words(&done.stdout), words(&done.stderr));
    done.stdout
}

fn capabilities() -> Value {
    serde_json::from_slice(&std::fs::read(folder("capabilities.json")).unwrap()).unwrap()
}

/// The library as one of the examples changes it.
fn example(dir: &Path, into: &Path) {
    let mut files: BTreeMap<String, Vec<u8>> =
        library().into_iter().map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).collect();
    for inner in ["countersign/settings/data.json", "countersign/host/host.rego"] {
        if let Ok(bytes) = std::fs::read(dir.join(inner)) {
            files.insert(inner.to_owned(), bytes);
        }
    }
    // The library's own tests are of its own host policy and settings.
    files.retain(|path, _| !path.ends_with("_test.rego"));
    for (path, bytes) in files {
        let path = into.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn opa_formats_checks_and_tests_the_project() {
    let Some(opa) = support::opa() else { return };
    let tree = folder("countersign");
    let (tree, capabilities) = (tree.to_str().unwrap(), folder("capabilities.json"));
    let capabilities = capabilities.to_str().unwrap();
    passes(&opa, &["fmt", "--fail", "--list", tree, folder("examples").to_str().unwrap()]);
    passes(&opa, &["check", "--strict", "--capabilities", capabilities, tree]);
    let report = passes(&opa, &["test", "--format", "json", tree]);
    let tests: Vec<Value> = serde_json::from_slice(&report).unwrap();
    let theirs: BTreeSet<String> = tests
        .iter()
        .map(|test| {
            format!(
                "{}.{}",
                test["package"].as_str().unwrap().trim_start_matches("data."),
                test["name"].as_str().unwrap()
            )
        })
        .collect();
    let modules = library().into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    let own = run_tests(&modules, &Map::new()).unwrap();
    assert!(own.passed());
    assert_eq!(own.tests.into_iter().map(|test| test.name).collect::<BTreeSet<_>>(), theirs, "both run the same tests");
    for dir in support::examples() {
        let place = tempfile::tempdir().unwrap();
        example(&dir, place.path());
        passes(&opa, &["check", "--strict", "--capabilities", capabilities, place.path().to_str().unwrap()]);
    }
    // It is the check that finds what is not shared, too.
    let place = tempfile::tempdir().unwrap();
    for call in ["time.now_ns() > 0", "http.send({}).ok", "crypto.sha256(\"x\") == \"\"", "io.jwt.decode(\"x\")[0].x"] {
        std::fs::write(place.path().join("p.rego"), format!("package p\n\nx if {call}\n")).unwrap();
        let check = run(&opa, &["check", "--capabilities", capabilities, place.path().to_str().unwrap()]);
        assert!(!check.status.success(), "{call}");
    }
}

/// `policies/capabilities.json` is made from both engines: what this OPA declares, of the builtins on our list, and the operators.
#[test]
fn the_capabilities_are_the_intersection_of_both_engines() {
    let Some(opa) = support::opa() else { return };
    let theirs: Value = serde_json::from_slice(&passes(&opa, &["capabilities", "--current"])).unwrap();
    let mut shared: Vec<Value> = theirs["builtins"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|builtin| operator(builtin) || limits::BUILTINS.contains(&builtin["name"].as_str().unwrap()))
        .map(|builtin| {
            // Words in them change with every version.
            let mut declared = builtin["decl"].clone();
            strip(&mut declared);
            let mut kept = json!({"name": builtin["name"], "decl": declared});
            if let Some(infix) = builtin.get("infix") {
                kept["infix"] = infix.clone();
            }
            kept
        })
        .collect();
    shared.sort_by_key(|builtin| builtin["name"].as_str().unwrap().to_owned());
    let made = json!({"builtins": shared, "features": ["rego_v1"], "allow_net": []});
    if std::env::var_os("COUNTERSIGN_UPDATE").is_some() {
        std::fs::write(folder("capabilities.json"), format!("{}\n", serde_json::to_string_pretty(&made).unwrap()))
            .unwrap();
    }
    assert_eq!(capabilities(), made, "run this test with COUNTERSIGN_UPDATE=1");
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| key != "description" && key != "name");
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Each of them is there in the embedded engine, and none of them looks at the clock, the network or chance.
#[test]
fn the_embedded_engine_has_every_shared_builtin() {
    let shared = capabilities();
    assert_eq!(shared["allow_net"], json!([]));
    let mut functions = 0;
    for builtin in shared["builtins"].as_array().unwrap().iter().filter(|builtin| !operator(builtin)) {
        let name = builtin["name"].as_str().unwrap();
        for family in ["time.", "http.", "net.", "rand.", "uuid.", "opa.", "io.", "crypto.", "rego."] {
            assert!(!name.starts_with(family), "{name}");
        }
        let count = builtin["decl"]["args"].as_array().unwrap().len();
        let arguments: Vec<String> = (0..count).map(|at| format!("input.x{at}")).collect();
        let text = format!(
            "package countersign.host\n\nverdict := {{\"allow\": {name}({}) == 1, \"obligations\": {{}}}}\n",
            arguments.join(", ")
        );
        let files = BTreeMap::from([("p.rego".to_owned(), text.into_bytes())]);
        let bundle = PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap();
        if let Err(e) = Compiled::new(&bundle, Role::Host) {
            panic!("{name}: {e}");
        }
        functions += 1;
    }
    assert!(functions >= 60, "{functions}");
    // Every name of the list is a function that OPA has, or the form that regorus gives to a set operator.
    let names: BTreeSet<&str> =
        shared["builtins"].as_array().unwrap().iter().map(|builtin| builtin["name"].as_str().unwrap()).collect();
    let odd: Vec<&&str> = limits::BUILTINS.iter().filter(|name| !names.contains(*name)).collect();
    assert_eq!(odd, [&"__builtin_sets.intersection", &"__builtin_sets.union"]);
}

/// Rules, and an expression that is true of them in Rego; whether the embedded engine takes them for what they are.
const HEADS: [(&str, &str, bool); 14] = [
    ("default owners := 1", "owners == 1", true),
    ("default owners.a := 1", "owners == {\"a\": 1}", false),
    ("owners contains v if some v in [1, 2]", "owners == {1, 2}", true),
    ("owners[k] := v if some k, v in {\"a\": 1, \"b\": 2}", "owners == {\"a\": 1, \"b\": 2}", true),
    ("owners[k] if some k in [\"a\"]", "owners == {\"a\": true}", true),
    ("owners.a contains v if some v in [1, 2]", "owners == {\"a\": {1, 2}}", false),
    ("owners.a := 1\n\nowners.b := 2", "owners == {\"a\": 1, \"b\": 2}", false),
    ("owners.a[k] := v if some k, v in {\"x\": 1}", "owners == {\"a\": {\"x\": 1}}", false),
    ("owners[k] contains v if some k, v in {\"a\": 1, \"b\": 2}", "owners == {\"a\": {1}, \"b\": {2}}", false),
    ("owners.a[k] contains v if some k, v in {\"x\": 1}", "owners == {\"a\": {\"x\": {1}}}", false),
    ("owners[k].rank := v if some k, v in {\"a\": 1}", "owners == {\"a\": {\"rank\": 1}}", false),
    ("owners[k].all contains v if some k, v in {\"a\": 1}", "owners == {\"a\": {\"all\": {1}}}", false),
    ("owners[k][v] := 1 if some k, v in {\"a\": \"b\"}", "owners == {\"a\": {\"b\": 1}}", false),
    ("owners[k][v] if some k, v in {\"a\": \"b\"}", "owners == {\"a\": {\"b\": true}}", false),
];

/// A head that the embedded engine would misread is refused; every other one means the same in both engines.
#[test]
fn heads_mean_the_same_in_both_engines_or_are_refused() {
    let opa = support::opa();
    let input = support::input();
    let mut wrong = Vec::new();
    for (rules, fact, known) in HEADS {
        let text = format!(
            "package countersign.host\n\n{rules}\n\nverdict := {{\"allow\": true, \"obligations\": {{}}, \"reasons\": []}} if {fact}\n"
        );
        if let Some(opa) = &opa {
            let place = tempfile::tempdir().unwrap();
            std::fs::write(place.path().join("p.rego"), &text).unwrap();
            let place = place.path().to_str().unwrap();
            let theirs = passes(opa, &["eval", "--format", "raw", "-d", place, "data.countersign.host.verdict.allow"]);
            assert_eq!(String::from_utf8_lossy(&theirs).trim(), "true", "{rules}");
        }
        let files = BTreeMap::from([("p.rego".to_owned(), text.into_bytes())]);
        let bundle = PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap();
        let came = Compiled::new(&bundle, Role::Host).map(|policy| policy.decide(&input, &json!({})).allow);
        let as_told = match &came {
            Ok(same) => known && *same,
            Err(e) => !known && e.to_string().contains("p.rego:3: owners"),
        };
        if !as_told {
            wrong.push(format!("{rules}: {came:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
