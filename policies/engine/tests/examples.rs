//! The worked examples: each accepts its own case, and nothing less.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use countersign_policy::lint::lint;
use countersign_policy::settings::Settings;
use countersign_policy::{
    Compiled, PolicyBundle, ReferenceData, Role, input::Reference, library, malformed, reference_document, schema,
};
use serde_json::Value;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The library's host policy as an example changes it.
fn bundle(dir: &Path) -> PolicyBundle {
    let mut files = library_files();
    for inner in ["countersign/settings/data.json", "countersign/host/host.rego"] {
        if let Ok(bytes) = std::fs::read(dir.join(inner)) {
            files.insert(inner.to_owned(), bytes);
        }
    }
    PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap()
}

fn reference(dir: &Path) -> Reference {
    serde_json::from_value(read(&dir.join("case/reference.json"))).unwrap()
}

#[test]
fn each_example_accepts_its_case_and_nothing_less() {
    for dir in support::examples() {
        let document = read(&dir.join("countersign/settings/data.json"));
        schema::check(&document, &schema::settings().unwrap()).unwrap();
        let settings: Settings = serde_json::from_value(document).unwrap();
        let bundle = bundle(&dir);
        assert_eq!(lint(bundle.modules()).unwrap(), [], "{}", dir.display());
        let reference = ReferenceData::new(&reference_document(&reference(&dir)));
        let policy = Compiled::new(&bundle, Role::Host).unwrap().ready(&reference);
        let good = read(&dir.join("case/input.json"));
        assert_eq!(malformed(&good, Role::Host.source()), None, "{}", dir.display());
        let decision = policy.decide_json(good.clone());
        assert!(decision.allow, "{} {:#?}", dir.display(), decision.reasons);
        assert_eq!(decision.obligations.lease_s, settings.obligations.map_or(Some(3600), |wanted| wanted.lease_s));
        let empty = policy.decide_json(serde_json::json!({"time_ms": 1}));
        let ids: Vec<&str> = empty.reasons.iter().map(|reason| reason.id.as_str()).collect();
        for required in &settings.required {
            assert!(ids.contains(&required.as_str()), "{}: {required} is not asked for", dir.display());
        }
        // Everything that the policy looks at: without it, or with the boot of another machine, it denies.
        for path in ["/boot", "/boot/events", "/boot/events/1", "/boot/exit_boot_services", "/pcrs"] {
            let mut without = good.clone();
            support::remove(&mut without, path);
            let complete = settings.required.iter().any(|name| name == "boot-complete");
            if path != "/boot/events/1" || complete {
                assert!(!policy.decide_json(without).allow, "{} without {path}", dir.display());
            }
        }
        let mut other = good.clone();
        other["boot"]["events"][3]["digests"]["sha256"] = Value::String("ff".repeat(32));
        assert!(!policy.decide_json(other).allow, "{}", dir.display());
    }
}

/// A node taken away, or replaced by something of another type.
fn without(document: &Value, path: &str) -> [Value; 3] {
    let mut removed = document.clone();
    support::remove(&mut removed, path);
    let mut null = document.clone();
    *null.pointer_mut(path).unwrap() = Value::Null;
    let mut odd = document.clone();
    let place = odd.pointer_mut(path).unwrap();
    *place = if place.is_string() { Value::from(7) } else { Value::from("odd") };
    [removed, null, odd]
}

/// The input with one leaf changed to another value of its type.
fn changed(document: &Value, path: &str) -> Option<Value> {
    let mut other = document.clone();
    let place = other.pointer_mut(path)?;
    *place = match &*place {
        Value::String(text) => Value::from(format!("{text}0")),
        Value::Number(number) => Value::from(number.as_u64()?.checked_add(7)?),
        Value::Bool(value) => Value::from(!value),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    Some(other)
}

/// Whatever an example refuses stays refused when any other field of it is missing or odd: each refusal that one changed leaf causes, once per set
/// of reasons, against every node of the input.
#[test]
fn no_missing_or_odd_field_turns_a_deny_of_an_example_into_an_allow() {
    for dir in support::examples() {
        let reference = ReferenceData::new(&reference_document(&reference(&dir)));
        let policy = Compiled::new(&bundle(&dir), Role::Host).unwrap().ready(&reference);
        let good = read(&dir.join("case/input.json"));
        let paths = support::paths(&good);
        let mut refused: BTreeMap<Vec<String>, (String, Value)> = BTreeMap::new();
        for path in &paths {
            let Some(bad) = changed(&good, path) else { continue };
            let decision = policy.decide_json(bad.clone());
            if !decision.allow {
                let ids = decision.reasons.into_iter().map(|reason| reason.id).collect();
                refused.entry(ids).or_insert_with(|| (path.clone(), bad));
            }
        }
        assert!(refused.len() >= 3, "{}: {:?}", dir.display(), refused.keys());
        let mut tried = 0;
        for (ids, (changed, bad)) in &refused {
            // The changed leaf itself, and what it lies in, may become good again: an input without it is another input.
            for path in paths.iter().filter(|path| !changed.starts_with(path.as_str()) && !path.starts_with(changed)) {
                for document in without(bad, path) {
                    assert!(!policy.decide_json(document).allow, "{}: {ids:?}, and {path} is odd", dir.display());
                    tried += 1;
                }
            }
        }
        println!("{}: {} refusals, {tried} documents", dir.display(), refused.len());
    }
}

/// Reference values and settings that are empty, or not there, accept nothing.
#[test]
fn without_reference_values_or_settings_nothing_is_accepted() {
    for dir in support::examples() {
        let policy = Compiled::new(&bundle(&dir), Role::Host).unwrap();
        let good = read(&dir.join("case/input.json"));
        let empty = reference_document(&Reference::default());
        for none in [
            empty,
            serde_json::json!({}),
            Value::Null,
            serde_json::json!({"accepted": {}}),
            serde_json::json!({"accepted": null}),
        ] {
            let decision = policy.ready(&ReferenceData::new(&none)).decide_json(good.clone());
            assert!(!decision.allow, "{} with {none}", dir.display());
            assert!(!decision.reasons.is_empty());
        }
        let reference = ReferenceData::new(&reference_document(&reference(&dir)));
        let wanted: Settings = serde_json::from_value(read(&dir.join("countersign/settings/data.json"))).unwrap();
        if wanted.required.is_empty() {
            continue;
        }
        let mut bare = Settings { required: wanted.required, ..Settings::default() };
        bare.required.retain(|name| name != "boot-complete");
        let mut files = library_files();
        files.insert("countersign/settings/data.json".into(), serde_json::to_vec(&bare).unwrap());
        let bare_policy = PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap();
        let decision = Compiled::new(&bare_policy, Role::Host).unwrap().ready(&reference).decide_json(good);
        let ids: Vec<String> = decision.reasons.into_iter().map(|reason| reason.id).collect();
        assert!(!decision.allow, "{} without its settings", dir.display());
        // A check that looks at settings is not proved without them.
        for name in [
            "dbx-current",
            "ek-root",
            "firmware-version",
            "host-known",
            "kernel-command-line",
            "own-binaries",
            "workload-known",
        ] {
            if bare.required.iter().any(|required| required == name) {
                assert!(ids.iter().any(|id| id == name), "{}: {name} in {ids:?}", dir.display());
            }
        }
    }
}

fn library_files() -> BTreeMap<String, Vec<u8>> {
    library()
        .into_iter()
        .filter(|(path, _)| !path.ends_with("_test.rego") && !path.contains("/workload/"))
        .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
        .collect()
}
