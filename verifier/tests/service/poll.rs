//! Host policies from a server of signed bundles.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use countersign_policy::{PolicyBundle, bundle_files, shipped_host_policy};
use countersign_verifier::policy::poll::{Polled, polled};
use countersign_verifier::policy::store;
use serde_json::json;

use crate::kill::Process;
use crate::lab::{Lab, denied};
use crate::policies::{DAY, Signer, released, until};
use crate::web::{Asked, Web, reply};

type Files = BTreeMap<String, Vec<u8>>;

/// A server whose answer a test changes: status line, ETag, body.
struct Shelf {
    web: Web,
    now: Arc<Mutex<(String, String, Vec<u8>)>>,
}

impl Shelf {
    fn new(bundle: Vec<u8>, etag: &str) -> Self {
        let now = Arc::new(Mutex::new(("200 OK".to_owned(), etag.to_owned(), bundle)));
        let held = Arc::clone(&now);
        let web = Web::tcp(move |asked: &Asked, out: &mut dyn Write| {
            let (status, etag, bundle) = held.lock().unwrap().clone();
            let known = !etag.is_empty() && asked.header("if-none-match") == Some(&etag);
            let quoted = [("etag", etag.as_str()), ("location", "/elsewhere")];
            let answer = if known { reply("304 Not Modified", &quoted, b"") } else { reply(&status, &quoted, &bundle) };
            let _ = out.write_all(&answer);
        });
        Self { web, now }
    }

    fn put(&self, status: &str, etag: &str, bundle: &[u8]) {
        *self.now.lock().unwrap() = (status.to_owned(), etag.to_owned(), bundle.to_vec());
    }
}

fn configure(lab: &mut Lab, shelf: &Shelf, more: &str) {
    lab.configure(&format!("[policy.bundle]\nurl = \"{}/x.tar.gz\"\ninterval_s = 1\n{more}", shelf.web.address));
}

/// What came of a question that is asked from now on.
#[track_caller]
fn said(lab: &Lab) -> Polled {
    let now = store::now_ms();
    until("a question", || polled(lab.path()).filter(|polled| polled.asked_ms > now))
}

#[test]
fn bundles_are_fetched_and_a_bad_one_never_displaces_a_good_one() {
    let (mut lab, mut machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    let good = signer.good(5);
    let shelf = Shelf::new(good.clone(), "\"five\"");
    configure(&mut lab, &shelf, "");
    let _process = Process::start(&lab);
    let first = until("the first bundle", || polled(lab.path()).filter(|polled| polled.good_ms > 0));
    // The next poll may have been quicker.
    assert!(["loaded: revision 5", "not modified"].contains(&first.outcome.as_str()), "{}", first.outcome);
    let again = said(&lab);
    assert_eq!((again.outcome.as_str(), again.failures), ("not modified", 0));
    assert_eq!(shelf.web.asked().last().unwrap().header("if-none-match"), Some("\"five\""));
    assert!(machine.attest(&lab).allow);
    let in_force = store::active(lab.path()).unwrap().unwrap();

    let other = Signer(rcgen::KeyPair::generate().unwrap());
    let unsigned = released(shipped_host_policy(), 6, store::now_ms() + DAY);
    let changed = |change: &dyn Fn(&mut Files)| {
        let mut files = bundle_files(&signer.good(6)).unwrap();
        change(&mut files);
        PolicyBundle::build(files).unwrap()
    };
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..1024 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let twice = twice(&signer.good(6));
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("unsigned", "200 OK", unsigned.clone(), "not signed"),
        (
            "an unknown key",
            "200 OK",
            store::sign(&unsigned, other.0.serialize_pem().as_bytes(), "other").unwrap(),
            "not trusted",
        ),
        ("another key under the id", "200 OK", other.sign(&unsigned), "does not verify"),
        ("rolled back", "200 OK", signer.good(4), "revision 4 is not above 5"),
        ("expired", "200 OK", signer.sign(&released(shipped_host_policy(), 6, store::now_ms() - 1)), "expired"),
        (
            "tampered",
            "200 OK",
            changed(&|files| files.get_mut("countersign/host/host.rego").unwrap().extend(b"\n#\n")),
            "its digest is",
        ),
        (
            "an extra file",
            "200 OK",
            changed(&|files| {
                drop(files.insert("countersign/host/x.rego".into(), b"package countersign.host\n".into()))
            }),
            "not signed",
        ),
        (
            "a missing file",
            "200 OK",
            changed(&|files| drop(files.remove("countersign/lib/uki/uki.rego"))),
            "not in the bundle",
        ),
        ("a file twice", "200 OK", twice, "twice"),
        ("one gigabyte", "200 OK", bomb, "more than the limit"),
        ("too large as it comes", "200 OK", vec![0; (1 << 20) + 1], "more than 1048576 bytes"),
        ("a redirect", "302 Found", signer.good(6), "redirect"),
        ("an error", "500 Oh", signer.good(6), "500"),
    ];
    for (what, status, bundle, words) in cases {
        shelf.put(status, "\"bad\"", &bundle);
        let polled = said(&lab);
        assert!(polled.outcome.contains(words) && polled.failures > 0, "{what}: {polled:?}");
        assert_eq!(store::active(lab.path()).unwrap().unwrap(), in_force, "{what}");
        assert_eq!(store::status(lab.path()).unwrap().highest, 5, "{what}");
    }
    assert!(machine.attest(&lab).allow);
    let tries = std::fs::read_to_string(lab.path().join("policy/audit.jsonl")).unwrap();
    assert!(tries.lines().filter(|line| line.contains("\"refuse\"")).count() <= 16, "each is tried once: {tries}");

    shelf.put("200 OK", "\"seven\"", &signer.strict(7));
    let loaded = until("the next bundle", || polled(lab.path()).filter(|polled| polled.failures == 0));
    assert!(loaded.outcome == "loaded: revision 7" || loaded.outcome == "not modified", "{loaded:?}");
    assert_eq!(denied(&machine.attest(&lab)), ["unheard-of"]);
    assert_eq!(store::status(lab.path()).unwrap().polled.unwrap().etag.unwrap(), "\"seven\"");
    // An operator's rollback is not undone by the server.
    store::rollback(lab.path()).unwrap();
    shelf.put("200 OK", "\"seven again\"", &std::fs::read(lab.path().join("policy/previous")).unwrap());
    assert!(said(&lab).outcome.contains("rolled back here") || machine.attest(&lab).allow);
    assert_eq!(store::active(lab.path()).unwrap().unwrap(), in_force);
}

#[test]
fn not_modified_is_no_answer_to_who_has_nothing() {
    let mut lab = Lab::new();
    Signer::trusted(&lab);
    let shelf = Shelf::new(Vec::new(), "");
    shelf.put("304 Not Modified", "", b"");
    configure(&mut lab, &shelf, "");
    let _process = Process::start(&lab);
    let polled = said(&lab);
    assert!(polled.outcome.contains("304") && polled.failures > 0 && polled.good_ms == 0, "{polled:?}");
}

#[test]
fn a_load_that_broke_off_is_tried_again() {
    let (mut lab, _machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    store::load(lab.path(), &signer.good(1), &lab.service.trial).unwrap();
    let shelf = Shelf::new(signer.good(2), "\"two\"");
    configure(&mut lab, &shelf, "");
    // A folder where a file is to be: the revision is written down, and then nothing more.
    let previous = lab.path().join("policy/previous");
    std::fs::create_dir(&previous).unwrap();
    let _process = Process::start(&lab);
    let polled = said(&lab);
    assert!(polled.outcome.starts_with("not loaded") && polled.failures > 0 && polled.good_ms == 0, "{polled:?}");
    assert_eq!(polled.refused, None);
    let status = |what: &str| json!(store::status(lab.path()).unwrap())[what].clone();
    assert_eq!((&status("highest"), &status("current")["revision"]), (&json!(2), &json!(1)));
    std::fs::remove_dir(&previous).unwrap();
    until("the newest bundle", || Some(()).filter(|()| status("current")["revision"] == 2));
}

#[test]
fn without_its_bundle_no_other_policy_decides() {
    let (mut lab, mut machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    assert!(machine.attest(&lab).allow, "no bundle was ever meant to be there");
    store::load(lab.path(), &signer.good(1), &lab.service.trial).unwrap();
    assert!(machine.attest(&lab).allow);
    std::fs::remove_file(lab.path().join("policy/current")).unwrap();
    assert_eq!(denied(&machine.attest(&lab)), ["stale-bundle"]);
    std::fs::remove_dir_all(lab.path().join("policy")).unwrap();
    assert!(machine.attest(&lab).allow);
    configure(&mut lab, &Shelf::new(Vec::new(), ""), "");
    assert_eq!(denied(&machine.attest(&lab)), ["stale-bundle"], "its server was not heard yet");
}

/// The archive with its first file once more at the end.
fn twice(bundle: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut archive = Vec::new();
    flate2::read::GzDecoder::new(bundle).read_to_end(&mut archive).unwrap();
    let size = std::str::from_utf8(&archive[124..135]).unwrap().trim_matches(['\0', ' ']);
    let blocks = usize::from_str_radix(size, 8).unwrap().div_ceil(512) + 1;
    let first = archive[..blocks * 512].to_vec();
    let packed = [first, archive].concat();
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&packed).unwrap();
    packer.finish().unwrap()
}

#[test]
fn a_bundle_whose_server_is_silent_for_too_long_denies() {
    let (mut lab, mut machine) = Lab::enrolled();
    let signer = Signer::trusted(&lab);
    let shelf = Shelf::new(signer.good(1), "\"one\"");
    configure(&mut lab, &shelf, "max_age_s = 2");
    assert_eq!(denied(&machine.attest(&lab)), ["stale-bundle"], "never heard of");
    let process = Process::start(&lab);
    until("an allow", || Some(machine.attest(&lab)).filter(|answer| answer.allow));
    // It answers, but nothing good.
    shelf.put("200 OK", "\"bad\"", b"nonsense");
    let stale = until("staleness", || Some(machine.attest(&lab)).filter(|answer| !answer.allow));
    assert_eq!(denied(&stale), ["stale-bundle"]);
    let file = lab.run(lab.service.bundle(&stale.verdict_id, None)).unwrap();
    let trust = countersign_wire::trust::TrustBundle::digest(&lab.service.keys.trust);
    let checked = countersign_verifier::check::check_bundle(&file, Some(trust)).unwrap();
    assert!(checked.rests_on_the_verifier.iter().any(|rests| rests.contains("stale")), "{checked:?}");
    // And again when it is back.
    shelf.put("200 OK", "\"one\"", &signer.good(2));
    until("an allow again", || Some(machine.attest(&lab)).filter(|answer| answer.allow));
    drop(process);
    assert_eq!(json!(store::status(lab.path()).unwrap())["polled"]["failures"], 0);
}
