//! The shipped policies as a project: their tests, their schemas, their traps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use countersign_policy::lint::lint;
use countersign_policy::schema;
use countersign_policy::settings::learn;
use countersign_policy::testing::run_tests;
use countersign_policy::{
    Compiled, PolicyBundle, ReferenceData, Role, library, shipped_host_policy, shipped_workload_policy,
};
use countersign_wire::facts::Strength;
use serde_json::{Map, Value, json};

fn modules() -> BTreeMap<String, String> {
    library().into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect()
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

#[test]
fn every_shipped_file_is_embedded_and_stands_where_its_package_says() {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder("countersign")];
    while let Some(dir) = folders.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder("")).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert_eq!(found, modules(), "policies/engine/src/shipped.rs lists every file below policies/countersign");
    for (path, text) in &found {
        let package = text.lines().find_map(|line| line.strip_prefix("package ")).unwrap().replace('.', "/");
        let (dir, name) = path.rsplit_once('/').unwrap();
        let test = name.ends_with("_test.rego");
        assert_eq!(package, if test { format!("{dir}_test") } else { dir.to_owned() }, "{path}");
        assert!(test || found.contains_key(&path.replace(".rego", "_test.rego")), "{path} has no test beside it");
    }
}

#[test]
fn all_rego_tests_pass_in_both_embedded_engines() {
    let report = run_tests(&modules(), &Map::new()).unwrap();
    for test in &report.tests {
        println!("{} {:?}", test.name, test.outcome);
    }
    println!("{} values compared, {} % of the lines", report.compared, report.percent());
    for file in &report.coverage {
        println!("{} lines {} missed {:?}", file.file, file.lines, file.missed);
    }
    assert!(report.disagreements.is_empty(), "{:#?}", report.disagreements.first());
    assert!(report.passed());
    assert!(report.tests.len() >= 60, "{}", report.tests.len());
    assert!(report.compared > 500, "{}", report.compared);
    assert!(report.percent() >= 90, "{}", report.percent());
}

#[test]
fn a_test_that_fails_shows_the_statement_and_both_sides() {
    let modules = BTreeMap::from([
        ("p.rego".to_owned(), "package p\n\nsum := {\"a\": input.x + 1, \"b\": 2}\n".to_owned()),
        (
            "p_test.rego".to_owned(),
            "package p_test\n\nimport data.p\n\ntest_sum if {\n\tx := {\"x\": 1}\n\tp.sum == {\"a\": 3, \"b\": 2} with input as x\n}\n"
                .to_owned(),
        ),
    ]);
    let report = run_tests(&modules, &Map::new()).unwrap();
    assert!(!report.passed());
    let shown = serde_json::to_value(&report.tests[0]).unwrap();
    assert_eq!(shown["result"], "fail");
    assert_eq!(shown["line"], 7);
    assert_eq!(shown["diff"], json!(["  {", "-   \"a\": 2,", "+   \"a\": 3,", "    \"b\": 2", "  }"]));
    assert_eq!(report.compared, 1, "the document in place of input was also given to the virtual machine");
}

#[test]
fn published_schemas_are_those_of_the_types() {
    let made = schema::all().unwrap();
    for (name, schema) in &made {
        let path = folder("schema").join(name);
        let text = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
        if std::env::var_os("COUNTERSIGN_UPDATE").is_some() {
            std::fs::create_dir_all(folder("schema")).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(published, text, "{name} is stale: run these tests with COUNTERSIGN_UPDATE=1");
    }
    assert_eq!(std::fs::read_dir(folder("schema")).unwrap().count(), made.len());
}

#[test]
fn the_reference_is_that_of_the_metadata() {
    let made = countersign_policy::docs::reference().unwrap();
    let path = folder("../docs/policy-reference.md");
    if std::env::var_os("COUNTERSIGN_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), made, "run these tests with COUNTERSIGN_UPDATE=1");
    // Every check that a rule proves has a row.
    for (path, text) in modules().iter().filter(|(path, _)| !path.ends_with("_test.rego")) {
        for line in text.lines().filter_map(|line| line.strip_prefix("passed contains \"")) {
            let check = line.split('"').next().unwrap();
            assert!(made.contains(&format!("| `{check}` |")), "{path}: {check}");
        }
    }
}

#[test]
fn schemas_accept_what_the_types_write_and_nothing_more() {
    let schema = schema::input().unwrap();
    let whole = serde_json::to_value(support::input()).unwrap();
    schema::check(&whole, &schema).unwrap();
    let mut fields = 0;
    for path in support::paths(&whole) {
        let mut odd = whole.clone();
        *odd.pointer_mut(&path).unwrap() = json!([[["odd"]]]);
        assert!(schema::check(&odd, &schema).is_err(), "{path} may be anything");
        let Some((parent, _)) = path.rsplit_once('/') else { continue };
        let mut more = whole.clone();
        if let Some(Value::Object(map)) = more.pointer_mut(parent)
            && !parent.contains("digests")
            && !parent.contains("pcrs")
            && !parent.ends_with("/tpm")
        {
            map.insert("unheard-of".into(), json!(1));
            assert!(schema::check(&more, &schema).is_err(), "{parent} may have unknown keys");
            fields += 1;
        }
    }
    assert!(fields > 20);
    let reference = schema::reference().unwrap();
    schema::check(&support::reference(), &reference).unwrap();
    assert!(schema::check(&json!({"revision": 1}), &reference).is_err());
    let settings = schema::settings().unwrap();
    let every = json!({
        "required": ["ima-list"], "obligations": {"lease_s": 60, "on_violation": "kill", "runtime_flags": ["net-none"]},
        "binaries": ["os"], "clock": {"max_skipped_resets": 0, "not_before_ms": 0, "not_after_ms": 1},
        "dbx": {"digests": ["00"], "min_entries": 1}, "firmware": {"versions": ["1"]}, "hosts": ["00"],
        "kernel": {"command_lines": ["x"], "words": ["ro"], "required_words": ["ro"]},
        "runtime": {"path_prefixes": ["/usr/"], "modules": []}, "tpm": {"firmware": {"id": "0"}, "ek_roots": ["CN"]},
        "workloads": {"00": {"payload_root": "1", "policy": "2"}}
    });
    schema::check(&every, &settings).unwrap();
    serde_json::from_value::<countersign_policy::settings::Settings>(every).unwrap();
    assert!(schema::check(&json!({"requires": []}), &settings).is_err());
}

#[test]
fn shipped_policies_have_no_traps() {
    let findings = lint(&modules()).unwrap();
    assert_eq!(findings, [], "{findings:#?}");
}

#[test]
fn each_trap_is_found_on_its_line() {
    let text = "package countersign.host\n\
        \n\
        deny contains \"x\" if input.bad == true\n\
        \n\
        default allow := true\n\
        \n\
        allow if count(deny) == 0\n\
        \n\
        verdict := {\"allow\": true, \"reasons\": [], \"obligations\": {}}\n\
        \n\
        free if not startswith(input.name, \"x\")\n\
        \n\
        bound if {\n\tname := input.name\n\tnot startswith(name, \"x\")\n\tnot input.bad\n}\n\
        \n\
        late if time.now_ns() > 0\n\
        \n\
        passed contains \"x\" if input.x == true\n\
        \n\
        owners[k] contains \"x\" if some k in input.names\n";
    let findings = lint(&BTreeMap::from([("h.rego".to_owned(), text.to_owned())])).unwrap();
    let found: Vec<(u32, &str)> = findings.iter().map(|finding| (finding.line, finding.id)).collect();
    let want = [
        (5, "allow-unchecked"),
        (7, "allow-unchecked"),
        (7, "count-zero"),
        (9, "allow-unconditional"),
        (11, "not-unbound"),
        (19, "builtin"),
        (21, "no-metadata"),
        (23, "head"),
    ];
    assert_eq!(found, want);
}

/// Takes each node of the input away, and puts something else in its place: no such change may turn a deny into an allow, nor keep the allow
/// where a required check reads it.
#[test]
fn no_missing_field_turns_a_deny_into_an_allow() {
    let settings = json!({"required": [
        "clock-safe", "dbx-current", "dbx-entries", "ek-root", "firmware-version", "host-known", "ima-aggregate", "ima-files", "ima-kexec",
        "ima-list", "ima-strong-hash", "ima-violations", "kernel-command-line", "own-binaries", "resets-seen", "runtime-modules", "runtime-paths", "time-window", "tpm-firmware",
        "workload-known"]});
    let cases = [
        (Role::Host, shipped_host_policy(), Some(settings)),
        (Role::Host, shipped_host_policy(), None),
        (Role::Workload, shipped_workload_policy(), None),
    ];
    let reference = ReferenceData::new(&support::reference());
    for (role, bytes, settings) in cases {
        let bundle = match &settings {
            None => PolicyBundle::parse(bytes).unwrap(),
            Some(required) => {
                let mut whole = support::settings();
                whole["required"] = required["required"].clone();
                support::with_settings(bytes, &whole)
            }
        };
        let policy = Compiled::new(&bundle, role).unwrap().ready(&reference);
        let good = serde_json::to_value(support::input()).unwrap();
        let decision = policy.decide_json(good.clone());
        assert!(decision.allow, "{:#?}", decision.reasons);
        let mut bad = good.clone();
        bad["boot"]["secure_boot"] = json!(false);
        assert!(!policy.decide_json(bad.clone()).allow);
        for path in support::paths(&bad) {
            if path == "/boot/secure_boot" || path == "/boot" {
                continue;
            }
            let mut without = bad.clone();
            support::remove(&mut without, &path);
            assert!(!policy.decide_json(without).allow, "{path} taken away");
        }
        if settings.is_some() {
            // With everything required, these are all that may be missing without a denial.
            let mut free = Vec::new();
            for path in support::paths(&good) {
                let mut without = good.clone();
                support::remove(&mut without, &path);
                if policy.decide_json(without).allow {
                    free.push(path);
                }
            }
            let read = |path: &String| {
                [
                    "/version",
                    "/time",
                    "/quote/reset_count",
                    "/quote/restart_count",
                    "/quote/clock_ms",
                    "/quote/first",
                    "/host/name",
                    "/host/ak_name",
                    "/host/simulated",
                    "/purpose",
                    "/workload/name",
                    "/host/tpm/model",
                    "/ima/from",
                    "/ima/violating_files",
                    "/ima/appraisal/reference",
                    "/ima/appraisal/excluded",
                    "/ima/appraisal/keys",
                    "/ima/appraisal/denied_files",
                ]
                .contains(&path.as_str())
                    || path.starts_with("/pcrs/sha256/")
                    || path.starts_with("/boot/events/")
                    || path.starts_with("/boot/facts")
            };
            assert_eq!(free.into_iter().filter(|path| !read(path)).collect::<Vec<_>>(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_thousand_policies_share_the_reference_values() {
    let reference = ReferenceData::new(&support::reference());
    let policy = Compiled::new(&PolicyBundle::parse(shipped_host_policy()).unwrap(), Role::Host).unwrap();
    let ready: Vec<_> = (0..1000).map(|_| policy.ready(&reference)).collect();
    let input = support::input();
    assert!(ready.iter().take(10).all(|policy| policy.decide(&input).allow));
}

/// What a host teaches is required of it; a fact that is only named teaches nothing and proves nothing.
#[test]
fn learned_settings_accept_their_host_and_take_nothing_from_names() {
    let mut input = support::input();
    let settings = learn(&input);
    let resting_on_facts = ["dbx-entries", "firmware-version", "kernel-command-line"];
    let resting_on_ima = ["ima-aggregate", "ima-files", "ima-kexec", "ima-list", "own-binaries", "runtime-modules"];
    for name in resting_on_facts.iter().chain(&resting_on_ima) {
        assert!(settings.required.contains(&(*name).to_owned()), "{name}");
    }
    let bundle = support::with_settings(&[], &serde_json::to_value(&settings).unwrap());
    let policy = Compiled::new(&bundle, Role::Host).unwrap().ready(&ReferenceData::new(&support::reference()));
    let decision = policy.decide(&input);
    assert!(decision.allow, "{:#?}", decision.reasons);

    let boot = input.boot.as_mut().unwrap();
    boot.events.retain(|event| event.pcr != 8 && event.pcr != 0);
    boot.facts.databases[0].strength = Strength::Named;
    boot.facts.command_lines[0].strength = Strength::Named;
    boot.facts.firmware_version.as_mut().unwrap().strength = Strength::Named;
    let ids: Vec<String> = policy.decide(&input).reasons.into_iter().map(|reason| reason.id).collect();
    assert_eq!(ids, resting_on_facts);
    let learned = learn(&input);
    assert!(resting_on_facts.iter().all(|name| !learned.required.contains(&(*name).to_owned())), "{learned:?}");

    let mut unknown = support::input();
    unknown.ima.as_mut().unwrap().appraisal.as_mut().unwrap().unknown = 1;
    let learned = learn(&unknown);
    assert!(
        ["ima-files", "own-binaries", "runtime-modules"]
            .iter()
            .all(|name| !learned.required.contains(&(*name).to_owned()))
    );
}
