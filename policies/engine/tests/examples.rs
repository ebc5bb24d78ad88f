//! The worked examples: each accepts its own case, and nothing less.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use countersign_policy::lint::lint;
use countersign_policy::settings::Settings;
use countersign_policy::{
    Compiled, PolicyBundle, ReferenceData, Role, input::Reference, library, malformed, reference_document, schema,
};
use serde_json::Value;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn examples() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn each_example_accepts_its_case_and_nothing_less() {
    let examples = examples();
    assert_eq!(examples.len(), 5);
    for dir in examples {
        let mut files: BTreeMap<String, Vec<u8>> = library()
            .into_iter()
            .filter(|(path, _)| !path.ends_with("_test.rego") && !path.contains("/workload/"))
            .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
            .collect();
        for inner in ["countersign/settings/data.json", "countersign/host/host.rego"] {
            if let Ok(bytes) = std::fs::read(dir.join(inner)) {
                files.insert(inner.to_owned(), bytes);
            }
        }
        let document = read(&dir.join("countersign/settings/data.json"));
        schema::check(&document, &schema::settings().unwrap()).unwrap();
        let settings: Settings = serde_json::from_value(document).unwrap();
        let bundle = PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap();
        assert_eq!(lint(bundle.modules()).unwrap(), [], "{}", dir.display());
        let reference: Reference = serde_json::from_value(read(&dir.join("case/reference.json"))).unwrap();
        let reference = ReferenceData::new(&reference_document(&reference));
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
