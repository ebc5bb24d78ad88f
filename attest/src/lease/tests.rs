use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn folder() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::TempDir::new().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    state.write("tls.key", b"a key").unwrap();
    (dir, state)
}

fn terms(lease_s: u32, reattest_s: u32) -> Obligations {
    Obligations { lease_s: Some(lease_s), reattest_s: Some(reattest_s), ..Obligations::default() }
}

fn ago(seconds: u64) -> Duration {
    boot_time().saturating_sub(Duration::from_secs(seconds))
}

fn accepted(at: Duration, terms: Obligations) -> Accepted {
    Accepted { verdict: VerdictId([1; 16]), at: Duration::from_millis(u64::try_from(at.as_millis()).unwrap()), terms }
}

const RUN: RunId = RunId([1; 16]);
const WORKLOAD: WorkloadId = WorkloadId([2; 32]);

#[test]
fn kept_privately_and_read_again() {
    let (dir, state) = folder();
    let mut leases = Leases::read(&state).unwrap();
    leases.accept(accepted(ago(1), terms(100, 50)));
    leases.release(RUN, WORKLOAD, accepted(ago(2), terms(60, 40)));
    leases.write(&state).unwrap();
    assert_eq!(Leases::read(&state).unwrap(), leases);
    let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_changed_cut_or_foreign_file_is_no_lease() {
    let (dir, state) = folder();
    let mut leases = Leases::read(&state).unwrap();
    let none = leases.clone();
    leases.accept(accepted(ago(1), terms(100, 50)));
    leases.write(&state).unwrap();
    let file = std::fs::read(dir.path().join(FILE)).unwrap();
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1;
        std::fs::write(dir.path().join(FILE), &changed).unwrap();
        // The case of a hex digit is no change.
        if !changed.eq_ignore_ascii_case(&file) {
            assert_eq!(Leases::read(&state).unwrap(), none, "byte {at}");
        }
        std::fs::write(dir.path().join(FILE), &file[..at]).unwrap();
        assert_eq!(Leases::read(&state).unwrap(), none, "cut at {at}");
    }
    std::fs::write(dir.path().join(FILE), &file).unwrap();
    assert_eq!(Leases::read(&state).unwrap(), leases);
    state.write("tls.key", b"of another host").unwrap();
    assert_eq!(Leases::read(&state).unwrap(), none);
}

#[test]
fn another_boot_is_no_lease() {
    let (_dir, state) = folder();
    let mut leases = Leases { boot: "another".into(), ..Leases::default() };
    leases.accept(accepted(ago(1), terms(100, 50)));
    leases.write(&state).unwrap();
    let read = Leases::read(&state).unwrap();
    assert_eq!((read.accepted, read.boot), (None, boot_id().unwrap()));
}

#[test]
fn one_attestation_renews_all() {
    let (_dir, state) = folder();
    let mut leases = Leases::read(&state).unwrap();
    leases.release(RUN, WORKLOAD, accepted(ago(50), terms(60, 20)));
    let old = leases.of(RUN).unwrap();
    let renewed = accepted(ago(0), terms(100, 90));
    leases.accept(renewed.clone());
    let new = leases.of(RUN).unwrap();
    assert!(new.until > old.until);
    assert_eq!(new.until, renewed.at + Duration::from_secs(60), "the run's own lease is shorter than the host's");
    assert!(new.next <= renewed.at + Duration::from_secs(20) && new.next >= renewed.at + Duration::from_secs(16));
    leases.write(&state).unwrap();
    assert!(leases.end(RUN) && !leases.end(RUN));
    assert_eq!(leases.of(RUN), None);
}

#[test]
fn shared_at_the_shortest_interval_asked_for() {
    let mut leases = Leases::default();
    assert_eq!(leases.shared(Duration::ZERO), None);
    leases.accept(accepted(ago(30), terms(600, 100)));
    assert!(matches!(leases.shared(Duration::ZERO), Some(Renewal::Accepted(_))));
    assert_eq!(leases.shared(ago(10)), None, "an event came since");
    leases.release(RUN, WORKLOAD, accepted(ago(60), terms(600, 20)));
    assert_eq!(leases.shared(Duration::ZERO), None, "a run asks for more");
    leases.end(RUN);
    let reason = Denial::read(b"{");
    leases.deny(Denied { at: ago(5), denial: Box::new(reason) });
    assert!(matches!(leases.shared(Duration::ZERO), Some(Renewal::Denied(_))));
    leases.accept(accepted(ago(0), terms(600, 100)));
    assert!(matches!(leases.shared(Duration::ZERO), Some(Renewal::Accepted(_))));
    // Nothing of the future is believed.
    leases.accept(accepted(boot_time() + Duration::from_secs(100), terms(600, 100)));
    assert_eq!(leases.shared(Duration::ZERO), None);
}

#[test]
fn ended_leases_are_forgotten_and_their_number_is_bounded() {
    let (_dir, state) = folder();
    let mut leases = Leases::read(&state).unwrap();
    leases.release(RUN, WORKLOAD, accepted(ago(61), terms(60, 20)));
    leases.write(&state).unwrap();
    assert_eq!(leases.of(RUN), None);
    for n in 0..=u16::try_from(RUNS).unwrap() {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        leases.release(RunId(id), WORKLOAD, accepted(ago(0), terms(60 + u32::from(n), 20)));
    }
    leases.write(&state).unwrap();
    assert_eq!(leases.runs.len(), RUNS);
    assert_eq!(leases.of(RunId([0; 16])), None, "the one that ends first");
    assert_eq!(Leases::read(&state).unwrap(), leases);
}

#[test]
fn a_denial_of_any_length_leaves_the_leases_where_they_are() {
    let (_dir, state) = folder();
    let mut leases = Leases::read(&state).unwrap();
    leases.release(RUN, WORKLOAD, accepted(ago(1), terms(60, 20)));
    let mut denial = Denial::read(b"{");
    let mut reason = denial.reasons[0].clone();
    reason.message = "x".repeat(10_000);
    denial.reasons = vec![reason; 2000];
    let explanation = serde_json::json!({
        "verdict": denial.id, "host": "h", "purpose": "attest", "time_ms": 1, "allow": false, "failed": [], "findings": [],
        "also": [], "more": 0, "since": {"state": "no-earlier-boot"}, "commands": ["x"], "notes": []
    });
    denial.explanation = Some(serde_json::from_value(explanation).unwrap());
    leases.deny(Denied { at: Duration::from_millis(1), denial: Box::new(denial) });
    leases.write(&state).unwrap();
    let read = Leases::read(&state).unwrap();
    assert!(read.of(RUN).is_some());
    let Some(Renewal::Denied(denied)) = read.last() else { panic!("accepted") };
    assert!((1..7).contains(&denied.denial.reasons.len()));
    // Whoever did not ask himself is told as much.
    assert_eq!(denied.denial.explanation.unwrap().commands, ["x"]);
}
