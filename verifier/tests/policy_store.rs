//! Signed bundles and the host policy in a state folder, with the real programs: the verifier's own, and OPA where it was built.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use countersign_policy::{PolicyBundle, bundle_files, library};
use countersign_verifier::policy::sandbox::Trial;
use countersign_verifier::policy::{signed, store};
use serde_json::{Value, json};

const DAY: i64 = 86_400_000;

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    /// A state folder, a key pair of OpenSSL's, and the shipped host policy as a folder.
    fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["ops", "other"] {
            let key = desk.path(&format!("{name}.key"));
            let made = Command::new("openssl")
                .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
                .arg(&key)
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
            let made = Command::new("openssl")
                .args(["pkey", "-pubout", "-in"])
                .arg(&key)
                .arg("-out")
                .arg(desk.path(&format!("{name}.pem")))
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
        }
        for (path, text) in library() {
            if !path.ends_with("_test.rego") && !path.contains("/workload/") {
                desk.write(&format!("policy/{path}"), text);
            }
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn build(&self, revision: u64, expires_ms: i64) -> Vec<u8> {
        store::build(&self.path("policy"), revision, expires_ms).unwrap()
    }

    fn key(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn signed(&self, revision: u64) -> Vec<u8> {
        store::sign(&self.build(revision, store::now_ms() + DAY), &self.key("ops.key"), "ops").unwrap()
    }

    fn load(&self, bundle: &[u8]) -> Result<store::About, String> {
        let trial = Trial::Process(env!("CARGO_BIN_EXE_verifier").into());
        store::load(&self.state(), bundle, &trial).map_err(|e| e.to_string())
    }

    fn verifier(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.arg("--state-dir").arg(self.state()).arg("--json").args(args).current_dir(self.dir.path());
        command.output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let done = self.verifier(args);
        assert!(done.status.success(), "{args:?} {done:?}");
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

/// The bundle with its files changed, packed again.
fn changed(bundle: &[u8], change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> Vec<u8> {
    let mut files = bundle_files(bundle).unwrap();
    change(&mut files);
    PolicyBundle::build(files).unwrap()
}

#[test]
fn from_a_folder_to_a_policy_in_force_and_back() {
    let desk = Desk::new();
    assert_eq!(desk.json(&["policy", "trust", "ops.pem"]), json!({"keyid": "ops"}));
    let build = |revision: &str, out: &str| {
        desk.json(&[
            "policy",
            "build",
            "policy",
            "-o",
            out,
            "--revision",
            revision,
            "--key",
            "ops.key",
            "--keyid",
            "ops",
        ])
    };
    let first = build("1", "1.tar.gz");
    desk.write("policy/countersign/settings/data.json", "{\"required\": [\"clock-safe\"]}");
    let second = build("2", "2.tar.gz");
    assert_eq!(
        desk.json(&["policy", "verify", "1.tar.gz", "--key", "ops.pem", "--keyid", "ops"])["digest"],
        first["digest"]
    );
    assert_eq!(desk.json(&["policy", "load", "1.tar.gz"])["revision"], 1);
    assert_eq!(desk.json(&["policy", "load", "2.tar.gz"])["digest"], second["digest"]);
    let status = desk.json(&["policy", "status"]);
    assert_eq!((&status["current"]["revision"], &status["previous"]["revision"]), (&json!(2), &json!(1)));
    let again = desk.verifier(&["policy", "load", "1.tar.gz"]);
    assert_eq!(again.status.code(), Some(20));
    assert!(String::from_utf8_lossy(&again.stderr).contains("revision 1 is not above 2"), "{again:?}");
    assert_eq!(desk.json(&["policy", "rollback"])["digest"], first["digest"]);
    let active = store::active(&desk.state()).unwrap().unwrap();
    assert_eq!(hex::encode(PolicyBundle::parse(&active).unwrap().digest()), first["digest"].as_str().unwrap());
    assert_eq!(desk.json(&["policy", "status"])["highest"], 2, "a rollback does not let an old bundle in again");
    let audit = std::fs::read_to_string(desk.path("state/policy/audit.jsonl")).unwrap();
    let actions: Vec<String> = audit
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, ["trust", "load", "load", "refuse", "rollback"]);
}

#[test]
fn a_bad_bundle_never_displaces_a_good_one() {
    let desk = Desk::new();
    store::trust(&desk.state(), &desk.path("ops.pem"), &desk.key("ops.pem")).unwrap();
    let good = desk.signed(5);
    desk.load(&good).unwrap();
    let in_force = store::active(&desk.state()).unwrap();
    let unsigned = desk.build(6, store::now_ms() + DAY);
    let sign = |bundle: &[u8]| store::sign(bundle, &desk.key("ops.key"), "ops").unwrap();
    let newer = desk.signed(6);
    let token = |bundle: &[u8], change: &dyn Fn(&mut Value)| {
        changed(bundle, |files| {
            let mut document: Value = serde_json::from_slice(&files[".signatures.json"]).unwrap();
            change(&mut document);
            files.insert(".signatures.json".into(), serde_json::to_vec(&document).unwrap());
        })
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("unsigned", unsigned.clone(), "not signed"),
        ("unknown key", store::sign(&unsigned, &desk.key("other.key"), "other").unwrap(), "not trusted"),
        (
            "another key under a known id",
            store::sign(&unsigned, &desk.key("other.key"), "ops").unwrap(),
            "does not verify",
        ),
        ("rolled back", desk.signed(4), "revision 4 is not above 5"),
        ("the same again", good.clone(), "revision 5 is not above 5"),
        ("expired", sign(&desk.build(6, store::now_ms() - 1)), "expired"),
        (
            "tampered",
            changed(&newer, |files| {
                let rego = files.get_mut("countersign/host/host.rego").unwrap();
                rego.extend(b"\n# changed\n");
            }),
            "its digest is",
        ),
        (
            "extra file",
            changed(&newer, |files| {
                files.insert("countersign/host/x.rego".into(), b"package countersign.host\n".to_vec());
            }),
            "not signed",
        ),
        (
            "missing file",
            changed(&newer, |files| {
                files.remove("countersign/lib/uki/uki.rego");
            }),
            "not in the bundle",
        ),
        (
            "changed manifest",
            changed(&newer, |files| {
                let mut manifest: Value = serde_json::from_slice(&files[".manifest"]).unwrap();
                manifest["metadata"]["countersign"]["revision"] = json!(99);
                files.insert(".manifest".into(), serde_json::to_vec(&manifest).unwrap());
            }),
            ".manifest: its digest is",
        ),
        (
            "two signatures",
            token(&newer, &|document| {
                let one = document["signatures"][0].clone();
                document["signatures"].as_array_mut().unwrap().push(one);
            }),
            "2 signatures",
        ),
        ("a plug-in's signature", token(&newer, &|document| document["plugin"] = json!("mine")), "plug-in"),
        ("not gzip", b"x".repeat(100), "gzip"),
        ("empty", Vec::new(), "gzip"),
    ];
    for (what, bundle, words) in cases {
        let refused = desk.load(&bundle).unwrap_err();
        assert!(refused.contains(words), "{what}: {refused}");
        assert_eq!(store::active(&desk.state()).unwrap(), in_force, "{what}");
        assert_eq!(store::status(&desk.state()).unwrap().highest, 5, "{what}");
    }
    desk.load(&newer).unwrap();
}

#[test]
fn a_load_that_was_interrupted_is_done_again() {
    let desk = Desk::new();
    store::trust(&desk.state(), &desk.path("ops.pem"), &desk.key("ops.pem")).unwrap();
    let file = |name: &str| desk.state().join("policy").join(name);
    let (four, five) = (desk.signed(4), desk.signed(5));
    desk.load(&four).unwrap();
    let old = std::fs::read(file("current")).unwrap();
    desk.load(&five).unwrap();
    let new = std::fs::read(file("current")).unwrap();
    // A crash after each of the three writes: the revision, the previous bundle, the current one.
    std::fs::remove_file(file("previous")).unwrap();
    for previous in [None, Some(&old)] {
        std::fs::write(file("current"), &old).unwrap();
        if let Some(bytes) = previous {
            std::fs::write(file("previous"), bytes).unwrap();
        }
        assert!(desk.load(&four).unwrap_err().contains("not above 5"));
        assert_eq!(desk.load(&five).unwrap().revision, 5);
        assert_eq!(store::active(&desk.state()).unwrap().unwrap(), new);
    }
    assert!(desk.load(&five).unwrap_err().contains("not above 5"), "it is in force");
    desk.write("policy/countersign/settings/data.json", "{\"required\": [\"clock-safe\"]}");
    let another = desk.signed(5);
    assert!(desk.load(&another).unwrap_err().contains("not above 5"), "the revision is taken");
    store::rollback(&desk.state()).unwrap();
    assert!(desk.load(&five).unwrap_err().contains("not above 5"), "an operator rolled it back");
    // What was in force is gone: the newest may come again, an older one not.
    std::fs::remove_file(file("current")).unwrap();
    assert!(desk.verifier(&["policy", "status"]).status.success());
    assert!(desk.load(&four).unwrap_err().contains("not above 5"));
    desk.load(&five).unwrap();
}

#[test]
fn one_gigabyte_when_unpacked_is_refused_before_it_is_there() {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut packer, &zeros).unwrap();
    }
    let bomb = packer.finish().unwrap();
    let refused = signed::verify(&bomb, &BTreeMap::new()).unwrap_err();
    assert!(refused.contains("more than the limit"), "{refused}");
}

#[test]
fn a_policy_that_breaks_its_trial_is_refused_with_line_and_reason() {
    let desk = Desk::new();
    store::trust(&desk.state(), &desk.path("ops.pem"), &desk.key("ops.pem")).unwrap();
    let cases = [
        ("verdict := {\"allow\": true}", "of which nothing is known"),
        ("verdict := {", "host.rego:4"),
        ("f(x) := f(x + 1)\nverdict := {\"allow\": f(1) == 2}", "recurs"),
        ("verdict := {\"allow\": time.now_ns() > 0}", "time.now_ns"),
        ("verdict := {\"allow\": http.send({\"method\": \"get\", \"url\": \"x\"}).ok}", "http.send"),
        ("x := 1\n\nverdict := {\"allow\": count(numbers.range(1, 1000000000)) > 0}", "host.rego:5"),
        (
            "xs := [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30]\n\
             verdict := {\"allow\": count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs]) == 0}",
            "policy-timeout",
        ),
        ("verdict := {\"allow\": false, \"obligations\": {\"teleport\": 1}}", "obligation-unknown"),
    ];
    for (number, (text, words)) in cases.iter().enumerate() {
        std::fs::remove_dir_all(desk.path("policy")).unwrap();
        desk.write("policy/countersign/host/host.rego", &format!("package countersign.host\n\n{text}\n"));
        let bundle = desk.signed(u64::try_from(number).unwrap() + 1);
        let refused = desk.load(&bundle).unwrap_err();
        assert!(refused.contains(words), "{text}: {refused}");
        assert_eq!(store::active(&desk.state()).unwrap(), None);
    }
}

#[test]
fn opa_and_we_verify_each_other() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/opa.sh");
    let found = Command::new(script).arg("path").output().unwrap();
    let opa = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if opa.is_empty() {
        println!("skipped: no OPA (scripts/opa.sh build makes one)");
        return;
    }
    let desk = Desk::new();
    let keys = BTreeMap::from([("ops".to_owned(), desk.key("ops.pem"))]);
    // Theirs, verified here.
    let metadata = json!({
        "revision": "7", "rego_version": 1, "roots": ["countersign/host", "countersign/lib"],
        "metadata": {"countersign": {"revision": 7, "expires_ms": store::now_ms() + DAY}}
    });
    desk.write("policy/.manifest", &metadata.to_string());
    desk.write("claims.json", "{\"keyid\": \"ops\"}");
    let made = Command::new(&opa)
        .args([
            "build",
            "-b",
            "policy",
            "-o",
            "theirs.tar.gz",
            "--signing-alg",
            "ES256",
            "--signing-key",
            "ops.key",
            "--claims-file",
            "claims.json",
        ])
        .current_dir(desk.dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let verified = store::verify(&desk.key("theirs.tar.gz"), &keys).unwrap();
    assert_eq!((verified.about.revision, verified.about.keyid.as_str()), (7, "ops"));
    store::trust(&desk.state(), &desk.path("ops.pem"), &desk.key("ops.pem")).unwrap();
    assert_eq!(desk.load(&desk.key("theirs.tar.gz")).unwrap().revision, 7);
    // Ours, verified there: opa build reads a signed bundle only when its signature holds.
    std::fs::remove_file(desk.path("policy/.manifest")).unwrap();
    for (name, public, good) in [("ours.tar.gz", "ops.pem", true), ("ours.tar.gz", "other.pem", false)] {
        std::fs::write(desk.path(name), desk.signed(8)).unwrap();
        let read = Command::new(&opa)
            .args([
                "build",
                "-b",
                name,
                "-o",
                "out.tar.gz",
                "--signing-alg",
                "ES256",
                "--verification-key",
                public,
                "--verification-key-id",
                "ops",
            ])
            .current_dir(desk.dir.path())
            .output()
            .unwrap();
        assert_eq!(read.status.success(), good, "{public} {read:?}");
    }
}
