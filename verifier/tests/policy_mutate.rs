//! The shipped policies against every named attack.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use countersign_policy::settings::Settings;
use countersign_policy::shipped_host_policy;
use countersign_verifier::policy::mutate::{Subject, mutate, shipped_input, shipped_settings, with_settings};

#[test]
fn the_shipped_policies_accept_no_attack() {
    let done = mutate(&Subject::default()).unwrap();
    let accepted: Vec<&str> =
        done.mutations.iter().filter(|mutation| mutation.verdict != "deny").map(|mutation| mutation.name).collect();
    assert_eq!(accepted, Vec::<&str>::new());
    assert_eq!((done.accepted, done.not_applicable), (0, 0));
    assert!(done.mutations.len() >= 60, "{}", done.mutations.len());
    let names: BTreeSet<&str> = done.mutations.iter().map(|mutation| mutation.name).collect();
    assert_eq!(names.len(), done.mutations.len(), "names are unique");
    assert!(done.mutations.iter().all(|mutation| !mutation.reasons.is_empty()), "each denial has its reason");
}

#[test]
fn each_attack_is_stopped_by_the_check_that_is_meant() {
    let done = mutate(&Subject::default()).unwrap();
    let by = |name: &str| -> Vec<String> {
        let found = done.mutations.iter().find(|mutation| mutation.name == name);
        found.unwrap_or_else(|| panic!("{name}")).reasons.clone()
    };
    let has = |name: &str, id: &str| {
        assert!(by(name).iter().any(|reason| reason == id), "{name}: {:?}, not {id}", by(name));
    };
    has("secure-boot-off", "secure-boot");
    has("secure-boot-off-recorded", "secure-boot");
    has("dbx-rolled-back", "dbx-current");
    has("unknown-kernel", "boot-chain");
    has("unknown-initrd", "boot-chain");
    has("init-shell", "kernel-command-line");
    has("firmware-unmeasured", "boot-complete");
    has("old-tpm-firmware", "tpm-firmware");
    has("ima-violation", "ima-violations");
    has("kexec", "ima-kexec");
    has("unsigned-module", "runtime-modules");
    has("program-in-tmp", "runtime-paths");
    has("denied-program", "ima-files");
    has("many-unknown-programs", "runtime-modules");
    has("attest-replaced", "own-binaries");
    has("no-ima-reference", "ima-files");
    has("ima-reference-of-others", "own-binaries");
    has("ima-of-another-boot", "ima-aggregate");
    has("ima-list-missing", "ima-list");
    has("unseen-resets", "resets-seen");
    has("another-vendor", "ek-root");
    has("another-host", "host-known");
    has("another-payload", "workload-known");
    has("another-workload-policy", "workload-policy-digest");
    has("initrd-unmeasured", "pcr-complete");
    has("no-reference-values", "reference-missing");
    // These never reach a policy: the appraisal stops them.
    has("sha1-only", "pcr-selection");
    has("replayed-clock", "clock");
    has("replayed-quote", "qualifying-data");
    has("another-key", "quote-signature");
    has("another-hierarchy", "qualified-signer");
    has("forged-pcr", "pcr-digest");
    has("hidden-kernel", "pcr-values");
    has("hidden-secure-boot-off", "pcr-values");
    has("variable-twice", "boot-log");
    has("ima-part-unasked", "ima-list");
    has("ima-entry-hidden", "ima-list");
    has("ima-reference-not-at-hand", "ima-list");
    has("swapped-workload", "statement");
    has("cloned-tpm", "receipts");
    has("late-answer", "challenge");
}

/// What the policy that `verifier init` installs leaves open without settings: it says so itself, each with the reason, and nothing else is accepted.
#[test]
fn without_settings_nothing_is_accepted_that_the_policy_claims_to_stop() {
    let done = mutate(&Subject { without_settings: true, ..Subject::default() }).unwrap();
    let with = |verdict: &str| -> Vec<&str> {
        done.mutations.iter().filter(|mutation| mutation.verdict == verdict).map(|mutation| mutation.name).collect()
    };
    assert_eq!((with("allow"), done.accepted), (Vec::new(), 0));
    let open = [
        "ima-violation",
        "kexec",
        "unknown-program",
        "program-in-tmp",
        "unsigned-module",
        "weak-hash",
        "attest-replaced",
        "supervisor-replaced",
        "denied-program",
        "many-unknown-programs",
        "script-in-home",
        "ima-list-missing",
        "ima-of-another-boot",
        "no-ima-reference",
        "ima-reference-of-others",
        "unseen-resets",
        "old-tpm-firmware",
        "another-vendor",
        "another-host",
        "another-payload",
    ];
    assert_eq!(with("not-claimed"), open);
    assert_eq!(done.not_claimed, open.len());
    let excuses = done.mutations.iter().filter(|mutation| mutation.verdict == "not-claimed");
    for excuse in excuses.map(|mutation| mutation.not_claimed.as_ref().unwrap()) {
        assert!(!excuse.why.is_empty() && !excuse.add.is_empty());
    }
}

fn changed(old: &str, new: &str, settings: &Settings) -> Vec<u8> {
    let mut files = countersign_policy::bundle_files(&with_settings(shipped_host_policy(), settings).unwrap()).unwrap();
    let host = files.get_mut("countersign/host/host.rego").unwrap();
    let text = String::from_utf8(std::mem::take(host)).unwrap();
    assert!(text.contains(old), "{old}");
    *host = text.replace(old, new).into_bytes();
    files.remove(".manifest");
    countersign_policy::PolicyBundle::build(files).unwrap()
}

fn accepted(policy: Vec<u8>) -> (Vec<&'static str>, usize) {
    let done = mutate(&Subject { host_policy: Some(policy), ..Subject::default() }).unwrap();
    let accepted: Vec<&str> =
        done.mutations.iter().filter(|mutation| mutation.verdict == "allow").map(|mutation| mutation.name).collect();
    assert_eq!(done.accepted, accepted.len());
    (accepted, done.not_claimed)
}

/// A policy that checks less is shown to accept more, and cannot hide it: what it claims or never said that it does not counts as accepted.
#[test]
fn a_weaker_policy_is_found_out() {
    let mut settings = shipped_settings().unwrap();
    settings
        .required
        .retain(|name| !["runtime-modules", "runtime-paths", "ima-files", "own-binaries"].contains(&name.as_str()));
    let silent = changed("not_claimed[check]", "kept_quiet[check]", &settings);
    let (names, not_claimed) = accepted(silent);
    assert!(names.contains(&"unsigned-module") && names.contains(&"attest-replaced"), "{names:?}");
    assert_eq!(not_claimed, 0);
    // It requires the check by name, and another rule proves it for nothing.
    let required = shipped_settings().unwrap();
    let hollow = changed(
        "passed := union({",
        "passed := union({\n\t{\"ima-files\", \"runtime-modules\", \"runtime-paths\"},",
        &required,
    );
    let (names, not_claimed) = accepted(hollow);
    assert!(names.contains(&"unsigned-module"), "{names:?}");
    assert_eq!(not_claimed, 0, "what is required is claimed");
    // No claim is excused that no optional check stands for.
    let lax = changed("\"boot-chain\", \"boot-log\", \"exit", "\"boot-log\", \"exit", &Settings::default());
    let (names, _) = accepted(lax);
    assert!(names.contains(&"unknown-kernel"), "{names:?}");
}

#[test]
fn the_input_of_the_shipped_evidence_fits_its_schema() {
    let input = serde_json::to_value(shipped_input().unwrap()).unwrap();
    countersign_policy::schema::check(&input, &countersign_policy::schema::input().unwrap()).unwrap();
    let settings = serde_json::to_value(shipped_settings().unwrap()).unwrap();
    countersign_policy::schema::check(&settings, &countersign_policy::schema::settings().unwrap()).unwrap();
}
