//! `verifier policy mutate` on the evidence of real runs: a release, a long IMA list, and the increment after it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use countersign_tests::site::{GOOD_IMA, GOOD_LOG, Site};
use countersign_wire::ima::synthetic::Synthetic;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Ends the TPM whatever happens.
struct Running(Site);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.destroy_host();
    }
}

fn files(range: std::ops::Range<u32>) -> Vec<u8> {
    let mut list = Synthetic::default();
    for number in range {
        let path = format!("/usr/bin/program-{number}");
        list.push_file(&path, &Sha256::digest(&path));
    }
    list.bytes
}

/// Attacks the evidence of a verdict; the names of the attacks by what became of them.
fn mutated(site: &Site, bundle: &str) -> (Value, impl Fn(&str) -> BTreeSet<String> + use<>) {
    let ended = site.verifier(&["--json", "policy", "mutate", "--evidence", bundle]).unwrap();
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let list = report["mutations"].as_array().unwrap().clone();
    let names = move |verdict: &str| {
        let these = list.iter().filter(|mutation| mutation["verdict"] == verdict);
        these.map(|mutation| mutation["name"].as_str().unwrap().to_owned()).collect()
    };
    (report, names)
}

/// The bundle of the newest verdict.
fn newest(site: &Site, name: &str) -> String {
    let ended = site.verifier(&["--json", "verdict", "list", "--limit", "1"]).unwrap();
    let list: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(list["verdicts"][0]["allow"], true, "{list}");
    let file = site.arg(name);
    site.verifier(&["verdict", "bundle", list["verdicts"][0]["id"].as_str().unwrap(), "-o", &file]).unwrap();
    file
}

#[test]
fn the_evidence_of_real_runs_is_attacked_as_the_shipped_one_is() {
    let bin = Path::new(env!("CARGO_BIN_EXE_demo")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let site = Running(Site::new(bin, &folder.path().join("site"), |_, _| Ok(())).unwrap());
    let site = &site.0;
    site.make_host().unwrap();
    site.make_verifier().unwrap();
    let mut service = site.serve().unwrap().0;
    site.enrol().unwrap();
    site.make_owner().unwrap();
    site.protect().unwrap();
    site.register().unwrap();

    // A release, with the supervisor's own bundle.
    let bundle = site.arg("run.bundle");
    let ended = site.supervisor_run("app.sif", &["--bundle", &bundle]).unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (report, names) = mutated(site, &bundle);
    assert_eq!(report["subject"], "recorded evidence, recorded policies");
    assert!(report["mutations"].as_array().unwrap().len() >= 100);
    assert_eq!(names("allow"), BTreeSet::new(), "claimed and accepted");
    assert_eq!(report["accepted"], 0);
    let denied = names("deny");
    for name in [
        "unknown-kernel",
        "secure-boot-off",
        "replayed-quote",
        "swapped-workload",
        "firmware-unmeasured",
        "hidden-kernel",
    ] {
        assert!(denied.contains(name), "{name}");
    }
    assert!(names("not-claimed").contains("unsigned-module"));
    // The list came with the enrolment, there are no file sets, the TPM is a simulated one that never restarted.
    let none = [
        "ima-first-entry-missing",
        "ima-list-hidden",
        "ima-of-another-boot",
        "ima-reference-not-at-hand",
        "ima-reference-of-others",
        "restart-count-back",
        "simulated-tpm",
    ];
    assert_eq!(names("not-applicable"), none.map(str::to_owned).into());

    // A long list, then what comes after it.
    let first = [GOOD_IMA, &files(0..2_000)].concat();
    site.reboot(GOOD_LOG, &first).unwrap();
    let config = site.arg("host/attest.toml");
    site.ok("attest", &["--config", &config, "now"]).unwrap();
    let (report, names) = mutated(site, &newest(site, "long.bundle"));
    assert_eq!((report["accepted"].as_u64(), names("allow")), (Some(0), BTreeSet::new()));
    let long = names("deny");

    let more = files(2_000..2_010);
    let delta = site.arg("delta");
    std::fs::write(&delta, &more).unwrap();
    std::fs::write(site.path("host/binary_runtime_measurements"), [first, more].concat()).unwrap();
    site.ok("tpm-sim", &["--state-dir", &site.arg("tpm"), "replay", "demo-host", "--ima", &delta]).unwrap();
    site.ok("attest", &["--config", &config, "now"]).unwrap();
    let bundle = newest(site, "increment.bundle");
    assert!(
        std::fs::metadata(&bundle).unwrap().len() < std::fs::metadata(site.path("long.bundle")).unwrap().len(),
        "an increment"
    );
    let (report, names) = mutated(site, &bundle);
    assert_eq!((report["accepted"].as_u64(), names("allow")), (Some(0), BTreeSet::new()));
    // Only the first entry is another one's matter now.
    let gone: BTreeSet<String> = long.difference(&names("deny")).cloned().collect();
    assert!(gone.is_subset(&BTreeSet::from(["ima-of-another-boot".to_owned()])), "{gone:?}");
    assert!(names("not-applicable").contains("ima-of-another-boot"));
    service.stop();
}
