//! A good host for tests.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use countersign_policy::input::{
    Boot, Event, Host, Ima, ImaAppraisal, Input, Quote, Reference, ReferenceValue, Workload,
};
use countersign_policy::{PolicyBundle, library, reference_document};
use serde_json::{Value, json};

pub(crate) fn event(index: u32, pcr: u8, kind: &str, digest: &str, text: Option<&str>) -> Event {
    let digests = BTreeMap::from([("sha256".to_owned(), digest.to_owned())]);
    let authentic = text.is_some();
    Event { index, pcr, kind: kind.to_owned(), digests, authentic, text: text.map(str::to_owned) }
}

/// A host with everything that the library looks at.
pub(crate) fn input() -> Input {
    let events = vec![
        event(1, 0, "EV_S_CRTM_VERSION", "01", Some("1.2")),
        event(2, 4, "EV_EFI_BOOT_SERVICES_APPLICATION", "aa", None),
        event(3, 5, "EV_EFI_ACTION", "bb", Some("Exit Boot Services Returned with Success")),
        event(4, 7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "dd", Some("dbx = 00 (76 bytes)")),
        event(5, 8, "EV_IPL", "ee", Some("linux /vmlinuz ro quiet")),
    ];
    let fact = |value: Value| json!({"value": value, "strength": "authenticated", "log": "firmware", "events": [4]});
    let hash = format!("sha256:{}", "dd".repeat(32));
    let dbx = json!({"name": "dbx", "certificates": [{"subject": "CN=old", "sha256": "00"}], "hashes": 2, "other": 0, "digest": hash});
    let facts = json!({
        "databases": [fact(dbx)], "command_lines": [fact(json!({"by": "grub", "text": "/vmlinuz ro quiet"}))],
        "firmware_version": fact(json!("1.2"))
    });
    Input {
        version: 1,
        purpose: "release".into(),
        time_ms: 1_500,
        time: "1970-01-01T00:00:01.500Z".into(),
        host: Host {
            id: "00".into(),
            name: "node".into(),
            simulated: false,
            ak_name: "000b".into(),
            ek_root: "CN=root".into(),
            tpm: BTreeMap::from([
                ("manufacturer".to_owned(), "id:4E544300".to_owned()),
                ("model".to_owned(), "NPCT75x".to_owned()),
            ]),
        },
        quote: Quote {
            firmware_version: "0007000200010000".into(),
            reset_count: 1,
            restart_count: 0,
            clock_ms: 1,
            safe: true,
            skipped_resets: 0,
            first: true,
        },
        pcrs: BTreeMap::from([("sha256".to_owned(), BTreeMap::from([("0".to_owned(), "00".to_owned())]))]),
        boot: Some(Boot {
            secure_boot: Some(true),
            exit_boot_services: true,
            facts: serde_json::from_value(facts).unwrap(),
            events,
        }),
        ima: Some(Ima {
            entries: 3,
            from: 0,
            violations: 0,
            violating_files: Vec::new(),
            boot_aggregate: Some(true),
            kexecs: 0,
            strong: true,
            appraisal: Some(ImaAppraisal {
                reference: "00".into(),
                sets: vec!["os".into()],
                accepted: 2,
                excluded: 0,
                signed: 0,
                keys: 0,
                unknown: 0,
                denied: 0,
                unknown_files: Vec::new(),
                denied_files: Vec::new(),
            }),
        }),
        workload: Some(Workload {
            id: "11".into(),
            payload_root: "22".into(),
            policy: "33".into(),
            name: "app".into(),
        }),
        run: None,
    }
}

/// Settings that [`input`] satisfies in every check.
pub(crate) fn settings() -> Value {
    json!({
        "required": [],
        "binaries": ["os"],
        "clock": {"max_skipped_resets": 0, "not_before_ms": 1000, "not_after_ms": 2000},
        "dbx": {"digests": ["dd"], "min_entries": 3},
        "firmware": {"versions": ["1.2"]},
        "hosts": ["00"],
        "kernel": {"words": ["/vmlinuz*", "ro", "quiet"], "required_words": ["ro"]},
        "runtime": {"path_prefixes": [], "modules": []},
        "tpm": {"firmware": {"id:4E544300": "0007000200000000"}, "ek_roots": ["CN=root"]},
        "workloads": {"11": {"payload_root": "22", "policy": "33"}}
    })
}

pub(crate) fn reference() -> Value {
    let value = |pcr, kind: &str, digest: &str| ReferenceValue {
        name: "golden".into(),
        bank: "sha256".into(),
        pcr,
        kind: kind.into(),
        digest: digest.into(),
        content: None,
    };
    reference_document(&Reference {
        revision: 1,
        values: vec![
            value(4, "EV_EFI_BOOT_SERVICES_APPLICATION", "aa"),
            value(7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "dd"),
        ],
    })
}

/// The library's host policy with settings.
pub(crate) fn with_settings(_: &[u8], settings: &Value) -> PolicyBundle {
    let mut files: BTreeMap<String, Vec<u8>> = library()
        .into_iter()
        .filter(|(path, _)| !path.ends_with("_test.rego") && !path.contains("/workload/"))
        .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
        .collect();
    files.insert("countersign/settings/data.json".into(), serde_json::to_vec(settings).unwrap());
    PolicyBundle::parse(&PolicyBundle::build(files).unwrap()).unwrap()
}

/// JSON Pointers to every node below the root.
pub(crate) fn paths(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![(String::new(), value)];
    while let Some((path, value)) = left.pop() {
        match value {
            Value::Object(map) => left.extend(map.iter().map(|(key, inner)| (format!("{path}/{key}"), inner))),
            Value::Array(list) => {
                left.extend(list.iter().enumerate().map(|(at, inner)| (format!("{path}/{at}"), inner)))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        if !path.is_empty() {
            found.push(path);
        }
    }
    found.sort();
    found
}

pub(crate) fn remove(document: &mut Value, path: &str) {
    let (parent, key) = path.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.remove(key)),
        Value::Array(list) => drop(list.remove(key.parse::<usize>().unwrap())),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => panic!("{other}"),
    }
}

/// The real OPA that scripts/opa.sh built, or none.
pub(crate) fn opa() -> Option<String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/opa.sh");
    let found = std::process::Command::new(script).arg("path").output().unwrap();
    let program = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if program.is_empty() {
        println!("skipped: no OPA (scripts/opa.sh build makes one)");
        return None;
    }
    Some(program)
}

/// Folders of the worked examples.
pub(crate) fn examples() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found.len(), 5);
    found
}
