//! A host through its life, against a real TPM and a real verifier: what must work, and what must not suspend it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use std::io::Write as _;
use std::time::{Duration, Instant};

use countersign_attest::{HostError, Step};
use countersign_verifier::admin::Request;
use countersign_wire::artefact::Kind;
use countersign_wire::enrol::HostState;
use countersign_wire::id::RunId;
use countersign_wire::runlog::{Event, RunLog};
use support::stage::{Stage, VOLUME_KEY, denied};

const RUN: RunId = RunId([3; 16]);

fn run_log(stage: &Stage) -> RunLog {
    RunLog::parse(&std::fs::read(stage.path("host/run.log")).unwrap_or_default()).unwrap()
}

#[test]
fn enrol_attest_release_and_bundle() {
    let Some(stage) = Stage::enrolled() else { return };
    let mut host = stage.host();
    host.attest().unwrap();
    let workload = stage.register();
    host.log(Event::Start { run: RUN, workload, time_ms: 1 }).unwrap();
    let cold = host.release(workload, RUN).unwrap();
    assert_eq!(*cold.key, VOLUME_KEY);
    assert!(cold.lease_s > 0 && cold.commands <= 22, "{} commands", cold.commands);
    // Later starts load what the import returned.
    let warm = host.release(workload, RUN).unwrap();
    assert_eq!(*warm.key, VOLUME_KEY);
    assert!(warm.commands < cold.commands, "{} and {} commands", warm.commands, cold.commands);
    assert!(warm.tpm_time < warm.total);
    let bundle = host.bundle(cold.verdict_id).unwrap();
    assert_eq!(Kind::of(&bundle), Some(Kind::Bundle));
    assert!(!bundle.windows(64).any(|window| window == VOLUME_KEY));
    assert_eq!(run_log(&stage).receipts().len(), 3);
    assert_eq!(run_log(&stage).entries.len(), 4);
    // A cached blob that is damaged is imported again.
    let cache = stage.path(&format!("host/imports/{workload}"));
    let mut blob = std::fs::read(&cache).unwrap();
    *blob.last_mut().unwrap() ^= 1;
    std::fs::write(&cache, blob).unwrap();
    assert_eq!(*host.release(workload, RUN).unwrap().key, VOLUME_KEY);
}

#[test]
fn a_program_killed_after_any_step_of_an_attestation() {
    let Some(stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    for step in Step::ALL {
        match stage.host_dying_after(step).attest() {
            Err(HostError::Interrupted(at)) => assert_eq!(at, step),
            Ok(_) => assert!(matches!(step, Step::Waiting | Step::Unsealed), "{step:?} was not reached"),
            Err(e) => panic!("{step:?}: {e}"),
        }
        stage.host().attest().unwrap_or_else(|e| panic!("after {step:?}: {e}"));
        assert_eq!(stage.verifier.state(), "active", "after {step:?}");
    }
}

#[test]
fn a_program_killed_after_any_step_and_then_a_reboot() {
    let Some(mut stage) = Stage::enrolled() else { return };
    for step in [Step::Answered, Step::Logged, Step::Extended, Step::Noted] {
        stage.host().attest().unwrap();
        assert!(matches!(stage.host_dying_after(step).attest(), Err(HostError::Interrupted(_))));
        stage.reboot();
        stage.host().attest().unwrap_or_else(|e| panic!("after {step:?}: {e}"));
        assert_eq!(stage.verifier.state(), "active", "after {step:?}");
        assert_eq!(run_log(&stage).entries.len(), 1, "a log of this boot, after {step:?}");
    }
}

#[test]
fn a_program_killed_after_any_step_of_a_release() {
    let Some(stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    for step in Step::ALL {
        match stage.host_dying_after(step).release(workload, RUN) {
            Err(HostError::Interrupted(at)) => assert_eq!(at, step),
            other => panic!("{step:?}: {other:?}"),
        }
        stage.host().release(workload, RUN).unwrap_or_else(|e| panic!("after {step:?}: {e}"));
        assert_eq!(stage.verifier.state(), "active", "after {step:?}");
    }
}

#[test]
fn an_end_entry_that_was_not_extended_is_extended_by_the_next_program() {
    let Some(stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    let mut host = stage.host();
    host.log(Event::Start { run: RUN, workload, time_ms: 1 }).unwrap();
    // The line as the journal writes it, without the extend.
    let before = run_log(&stage);
    let banks: Vec<_> = before.entries[0].digests.iter().map(countersign_tpm::alg::Digest::alg).collect();
    let (line, _) = before.next(13, &banks, Event::End { run: RUN, status: "exit 0".into() }).unwrap();
    let mut bytes = std::fs::read(stage.path("host/run.log")).unwrap();
    bytes.extend(line);
    // Half a line more: the program died while it wrote.
    bytes.extend(b"{\"recnum\":");
    std::fs::write(stage.path("host/run.log"), bytes).unwrap();
    host.attest().unwrap();
    let log = run_log(&stage);
    assert_eq!(log.entries.len(), before.entries.len() + 2, "the end entry, and the receipt");
    host.attest().unwrap();
}

#[test]
fn two_programs_at_once() {
    let Some(stage) = Stage::enrolled() else { return };
    let config = stage.config();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let config = config.clone();
            std::thread::spawn(move || {
                let mut host = countersign_attest::Host::open(config).unwrap();
                for _ in 0..4 {
                    host.attest().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(run_log(&stage).receipts().len(), 8);
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn suspend_resume_restart_reset_and_power_cut() {
    let Some(mut stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    stage.sim.suspend_resume().unwrap();
    stage.host().attest().unwrap();
    let log = run_log(&stage);
    assert_eq!(
        log.entries.iter().map(|entry| entry.event.as_receipt().is_some()).collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(log.entries[1].event, Event::Resume {});
    stage.sim.restart().unwrap();
    stage.sim.replay(support::stage::BOOT, support::stage::IMA).unwrap();
    stage.host().attest().unwrap();
    assert_eq!(run_log(&stage).entries.len(), 1);
    stage.reboot();
    stage.host().attest().unwrap();
    stage.sim.kill();
    stage.sim.start().unwrap();
    stage.sim.replay(support::stage::BOOT, support::stage::IMA).unwrap();
    stage.host().attest().unwrap();
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn a_host_that_booted_something_else_is_denied_in_words() {
    let Some(mut stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    stage.sim.reset().unwrap();
    // The log says the good boot, the TPM does not.
    let error = stage.host().attest().unwrap_err();
    let HostError::Denied(denial) = &error else { panic!("{error}") };
    assert!(denial.words().contains("got") && denial.words().contains("want"), "{}", denial.words());
    // The whole explanation comes along.
    let told = denial.explanation.as_ref().unwrap();
    assert_eq!((&told.verdict, told.allow, told.failed.len()), (&denial.id, false, 1));
    assert!(denial.words().contains("since the last good boot") && denial.words().contains("what to do"));
    assert_eq!(error.exit().code(), 30);
    assert!(!denied(stage.host().release(workload, RUN).unwrap_err()).is_empty());
    assert_eq!(stage.verifier.state(), "active");
    assert!(run_log(&stage).receipts().is_empty());
}

#[test]
fn a_run_pcr_that_others_extended_denies_until_a_reboot() {
    let Some(mut stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    stage.sim.extend(13, b"somebody else").unwrap();
    assert!(matches!(stage.host().attest(), Err(HostError::Denied(_))));
    assert_eq!(stage.verifier.state(), "active");
    stage.reboot();
    stage.host().attest().unwrap();
    // Damaged beyond reading: an error in this boot, set aside in the next.
    std::fs::write(stage.path("host/run.log"), "rubbish\n").unwrap();
    assert!(matches!(stage.host().attest(), Err(HostError::Corrupt(_))));
    stage.reboot();
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn clear_needs_a_token_for_this_host() {
    let Some(mut stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    stage.host().release(workload, RUN).unwrap();
    let host = stage.host().card().unwrap().host.to_string();
    stage.sim.clear().unwrap();
    stage.reboot();
    let error = stage.host().attest().unwrap_err();
    assert_eq!(error.exit().code(), 10, "{error}");
    assert!(error.to_string().contains("the blob was changed, or is for another TPM"), "{error}");
    let token = stage.verifier.token(Some(host));
    stage.host().enroll(&token, "node-1").unwrap();
    stage.host().attest().unwrap();
    assert_eq!(*stage.host().release(workload, RUN).unwrap().key, VOLUME_KEY);
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn enrolling_again_changes_nothing_and_a_lost_answer_is_no_loss() {
    let Some(stage) = Stage::enrolled() else { return };
    let card = stage.host().card().unwrap();
    stage.host().attest().unwrap();
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    assert_eq!(stage.host().card().unwrap(), card);
    stage.host().attest().unwrap();
    // The program died right before it had the answer.
    for file in ["trust.bundle", "verifier.url", "tls.crt"] {
        std::fs::remove_file(stage.path("host").join(file)).unwrap();
    }
    assert!(matches!(stage.host().attest(), Err(HostError::NotEnrolled)));
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    stage.host().attest().unwrap();
    let mut config = stage.config();
    config.run_pcr = 14;
    let error = countersign_attest::Host::open(config).unwrap().enroll(&stage.verifier.token(None), "x").unwrap_err();
    assert!(error.to_string().starts_with("run_pcr: 14 is not the 13"), "{error}");
}

#[test]
fn a_folder_of_another_tpm_is_refused_and_left_alone() {
    let Some(stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let Some((_dir, other)) = support::sim() else { return };
    let mut config = stage.config();
    config.tpm = other.tpm_arg().parse().unwrap();
    let before = std::fs::read(stage.path("host/run.log")).unwrap();
    let mut host = countersign_attest::Host::open(config).unwrap();
    let enrolled_again = host.enroll(&stage.verifier.token(None), "x").map(drop);
    let workload = stage.register();
    let released = host.release(workload, RUN).map(drop);
    for error in [host.attest().map(drop), released, enrolled_again, host.log(Event::Resume {})] {
        let error = error.unwrap_err();
        assert_eq!(error.exit().code(), 7, "{error}");
    }
    assert_eq!(std::fs::read(stage.path("host/run.log")).unwrap(), before);
    stage.host().attest().unwrap();
}

#[test]
fn a_run_pcr_that_systemd_extends_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let log = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/tpm2-measure.log");
    let mut config = stage.config();
    config.systemd_log = Some(log.into());
    config.run_pcr = 11;
    let error = countersign_attest::Host::open(config).unwrap().enroll(&stage.verifier.token(None), "x").unwrap_err();
    assert!(error.to_string().contains("11 is taken: systemd extends it"), "{error}");
}

#[test]
fn a_cleared_tpm_without_a_token_for_it_waits_for_the_operator() {
    let Some(mut stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let host = stage.host().card().unwrap().host.to_string();
    stage.sim.clear().unwrap();
    stage.reboot();
    let enrolled = stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    assert_eq!((enrolled.state, enrolled.certificate), (HostState::Suspended, None));
    assert_eq!(denied(stage.host().attest().unwrap_err()), ["host-suspended"]);
    stage.verifier.ask(Request::HostState { host, state: HostState::Active, reason: "cleared by us".into() });
    // Counters and clock from zero are a new baseline, not a contradiction.
    for _ in 0..2 {
        stage.host().attest().unwrap();
    }
    stage.reboot();
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn a_readmitted_host_may_lose_its_first_answer() {
    let Some(mut stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let host = stage.host().card().unwrap().host.to_string();
    for state in [HostState::Suspended, HostState::Active] {
        stage.verifier.ask(Request::HostState { host: host.clone(), state, reason: "maintenance".into() });
    }
    stage.reboot();
    assert!(matches!(stage.host_dying_after(Step::Answered).attest(), Err(HostError::Interrupted(_))));
    stage.host().attest().unwrap();
    stage.reboot();
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

/// A copy of the host's state folder with everything in it.
fn copied(stage: &Stage) -> std::path::PathBuf {
    let folder = stage.path("host-copy");
    let status = std::process::Command::new("cp").arg("-a").arg(stage.path("host")).arg(&folder).status().unwrap();
    assert!(status.success());
    folder
}

#[test]
fn attestations_of_a_long_boot_cost_no_more() {
    let Some(mut stage) = Stage::enrolled() else { return };
    let attested = |stage: &Stage| {
        let mut host = stage.host();
        let verdict = host.attest().unwrap().verdict_id;
        let bundle = host.bundle(verdict).unwrap();
        let checked = countersign_verifier::check::check_bundle(&bundle, None).unwrap();
        let part = checked.rests_on_the_verifier.iter().any(|line| line.contains("entries of the run log"));
        let shown = stage.verifier.ask(Request::HostShow { host: host.card().unwrap().host.to_string() });
        (bundle.len(), part, shown["receipts"].as_u64().unwrap())
    };
    let all: Vec<_> = (0..6).map(|_| attested(&stage)).collect();
    let lengths: Vec<usize> = all.iter().map(|(length, ..)| *length).collect();
    assert!(lengths[5].abs_diff(lengths[3]) < 200, "{lengths:?}; an entry alone is longer");
    assert!(all[2..].iter().all(|(_, part, _)| *part), "{all:?}");
    assert!(all.iter().all(|(_, _, receipts)| *receipts <= 2), "{all:?}");
    assert_eq!(run_log(&stage).receipts().len(), 6);
    // Another boot, another log: whole at first.
    stage.reboot();
    assert!(!attested(&stage).1);
    attested(&stage);
    assert!(attested(&stage).1);
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn a_copy_that_catches_up_by_resets_is_found() {
    let Some(stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let mut copy = stage.sim.clone_to(stage.path("copy")).unwrap();
    let folder = copied(&stage);
    copy.start().unwrap();
    let mut config = stage.config();
    config.tpm = copy.tpm_arg().parse().unwrap();
    config.state_dir = folder;
    // Each time it is the copy's turn, its counters are ahead of what the verifier saw last.
    let mut found = false;
    for _ in 0..2 {
        for _ in 0..3 {
            copy.reset().unwrap();
        }
        copy.replay(support::stage::BOOT, support::stage::IMA).unwrap();
        found |= countersign_attest::Host::open(config.clone()).unwrap().attest().is_err();
        found |= stage.host().attest().is_err();
    }
    assert!(found);
    assert_eq!(stage.verifier.state(), "suspended");
}

#[test]
fn a_copy_of_a_tpm_and_its_folder_is_found() {
    let Some(stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let mut copy = stage.sim.clone_to(stage.path("copy")).unwrap();
    copy.start().unwrap();
    let folder = copied(&stage);
    let mut config = stage.config();
    config.tpm = copy.tpm_arg().parse().unwrap();
    config.state_dir = folder;
    let mut copy = countersign_attest::Host::open(config).unwrap();
    let mut found = false;
    for _ in 0..2 {
        found |= copy.attest().is_err() | stage.host().attest().is_err();
    }
    assert!(found);
    assert_eq!(stage.verifier.state(), "suspended");
    assert!(denied(stage.host().attest().unwrap_err()).contains(&"host-suspended".to_owned()));
}

#[test]
fn a_verifier_that_is_away_slow_or_another() {
    let Some(stage) = Stage::enrolled() else { return };
    let mut config = stage.config();
    config.deadline = Duration::from_secs(1);
    // Nobody listens.
    config.verifier = Some("https://127.0.0.1:1".into());
    let error = countersign_attest::Host::open(config.clone()).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 20);
    assert!(error.to_string().contains("refused"), "{error}");
    // Somebody accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.verifier = Some(format!("https://{}", silent.local_addr().unwrap()));
    let started = Instant::now();
    let error = countersign_attest::Host::open(config.clone()).unwrap().attest().unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(9), "it is this deadline, and not the one that is usual");
    assert_eq!(error.exit().code(), 20);
    assert!(error.to_string().contains("no answer before the deadline"), "{error}");
    // Another verifier, with another CA.
    config.deadline = Duration::from_secs(60);
    let other = support::stage::Verifier::start(&stage.path("other"));
    config.verifier = Some(other.url.clone());
    let error = countersign_attest::Host::open(config.clone()).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 20);
    assert!(error.to_string().contains("not the pinned verifier"), "{error}");
    // A token that names another trust bundle than the verifier has.
    config.verifier = None;
    let mut token = other.token(None);
    token.trust = [0; 32];
    let error = countersign_attest::Host::open(config.clone()).unwrap().enroll(&token, "x").unwrap_err();
    assert_eq!(error.exit().code(), 21, "{error}");
    // No TLS at all.
    config.verifier = Some("http://127.0.0.1:1".into());
    let error = countersign_attest::Host::open(config).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 3, "{error}");
    // Nothing of this left a trace.
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

#[test]
fn a_token_is_good_once() {
    let Some(stage) = Stage::new() else { return };
    let token = stage.verifier.token(None);
    stage.host().enroll(&token, "node-1").unwrap();
    let Some((_dir, other)) = support::sim() else { return };
    let mut config = stage.config();
    config.tpm = other.tpm_arg().parse().unwrap();
    config.state_dir = stage.path("other-host");
    let error = countersign_attest::Host::open(config.clone()).unwrap().enroll(&token, "node-2").unwrap_err();
    assert_eq!(error.exit().code(), 22, "{error}");
    // An unknown CA: the other TPM has its own.
    let error = countersign_attest::Host::open(config).unwrap().enroll(&stage.verifier.token(None), "x").unwrap_err();
    assert_eq!(error.exit().code(), 22, "{error}");
}

/// Commands with platform authorisation, as a vendor's tool has it: another certificate in an NV index (TPM 2.0 Part 3, 31.3, 31.4, 31.7).
fn replace_nv(stage: &Stage, index: u32, contents: &[u8]) {
    use std::io::Read as _;
    let mut tpm = std::os::unix::net::UnixStream::connect(stage.sim.socket()).unwrap();
    let mut run = |code: u32, index: Option<u32>, parameters: &[u8]| {
        let mut body = vec![0x40, 0, 0, 0x0C];
        body.extend(index.into_iter().flat_map(u32::to_be_bytes));
        body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        body.extend(parameters);
        let size = u32::try_from(10 + body.len()).unwrap();
        tpm.write_all(&[&[0x80, 0x02][..], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat()).unwrap();
        let mut response = [0; 256];
        assert!(tpm.read(&mut response).unwrap() >= 10);
        assert_eq!(response[6..10], [0; 4], "command {code:#x}");
    };
    let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    run(0x122, Some(index), &[]);
    // SHA-256, read by everybody, written and made by the platform.
    let public = [&index.to_be_bytes()[..], &[0, 0x0B, 0x42, 0x07, 0, 1, 0, 0], &two(contents.len())].concat();
    run(0x12A, None, &[&[0, 0][..], &two(public.len()), &public].concat());
    for (part, at) in contents.chunks(512).zip((0..).step_by(512)) {
        run(0x137, Some(index), &[&two(part.len())[..], part, &two(at)].concat());
    }
}

#[test]
fn the_second_ek_certificate_when_the_first_leads_nowhere() {
    use countersign_tpm::ek::Template;
    let Some(stage) = Stage::new() else { return };
    let address = stage.sim.tpm_arg().parse().unwrap();
    let mut tpm = countersign_attest::tpm::Tpm::connect(&address).unwrap();
    let (found, _) = countersign_attest::endorsement::find_certificates(&mut tpm).unwrap();
    drop(tpm);
    assert!(found.len() >= 2, "swtpm has an RSA and an ECC EK");
    // The last byte of the first one's signature.
    let first = &found[0];
    let mut forged = first.der.clone();
    *forged.last_mut().unwrap() ^= 1;
    replace_nv(&stage, first.index, &forged);
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    let card = stage.host().card().unwrap();
    let ek = countersign_tpm::public::Public::parse(&card.ek_public).unwrap();
    assert_eq!(Template::of(&ek), Some(found[1].template));
    stage.host().attest().unwrap();
    let workload = stage.register();
    assert_eq!(*stage.host().release(workload, RUN).unwrap().key, VOLUME_KEY);
    // The vendor fixes the first: the host stays who it is.
    replace_nv(&stage, first.index, &first.der);
    stage.host().enroll(&stage.verifier.token(None), "node-1").unwrap();
    assert_eq!(stage.host().card().unwrap().host, card.host);
    stage.host().attest().unwrap();
    assert_eq!(stage.verifier.state(), "active");
}

/// The genuine verifier, taken over: what it then does with one connection after another, each with its request read. Its address.
fn taken_over(
    stage: &Stage,
    mut answer: impl FnMut(usize, &mut dyn std::io::Write) -> bool + Send + 'static,
) -> (String, std::thread::JoinHandle<()>) {
    use std::io::Read as _;
    let keys = countersign_verifier::keys::Keys::load(&stage.path("verifier")).unwrap();
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let tls = std::sync::Arc::new(countersign_verifier::tls::server_config(&keys, "127.0.0.1", now).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let serve = move || {
        for count in 0.. {
            let (socket, _) = listener.accept().unwrap();
            let connection = rustls::ServerConnection::new(std::sync::Arc::clone(&tls)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, socket);
            let mut request = Vec::new();
            loop {
                let mut part = [0; 4096];
                // A host that has given up meanwhile asks nobody any more.
                let Ok(read @ 1..) = stream.read(&mut part) else { return };
                request.extend_from_slice(&part[..read]);
                let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                if request.len() - end - 4 >= length.parse().unwrap() {
                    break;
                }
            }
            if !answer(count, &mut stream) {
                return;
            }
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    };
    (url, std::thread::spawn(serve))
}

#[test]
fn a_verifier_that_asks_to_come_again() {
    let Some(stage) = Stage::enrolled() else { return };
    let (url, server) = taken_over(&stage, |count, stream| {
        // Busy twice, then an answer that is none; then busy for longer than the host's deadline.
        let answer = match count {
            0 | 1 => "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\n",
            2 => "HTTP/1.1 200 OK\r\n",
            _ => "HTTP/1.1 503 Service Unavailable\r\nretry-after: 3600\r\n",
        };
        write!(stream, "{answer}connection: close\r\ncontent-length: 2\r\n\r\n{{}}").unwrap();
        count < 3
    });
    let mut config = stage.config();
    config.verifier = Some(url);
    let error = countersign_attest::Host::open(config.clone()).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 23, "the third answer is taken, and is none: {error}");
    let error = countersign_attest::Host::open(config).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 22, "an hour is not waited for: {error}");
    server.join().unwrap();
    stage.host().attest().unwrap();
}

#[test]
fn a_verifier_that_trickles() {
    let Some(stage) = Stage::enrolled() else { return };
    // It answers for ever, a byte at a time, each of them in time.
    let trickled = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answers = std::sync::Arc::clone(&trickled);
    let (url, server) = taken_over(&stage, move |_, stream| {
        answers.store(true, std::sync::atomic::Ordering::Relaxed);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n").unwrap();
        while stream.write_all(b"x").and_then(|()| stream.flush()).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    });
    let mut config = stage.config();
    config.verifier = Some(url);
    config.deadline = Duration::from_secs(5);
    let error = countersign_attest::Host::open(config).unwrap().attest().unwrap_err();
    assert_eq!(error.exit().code(), 20, "{error}");
    server.join().unwrap();
    assert!(trickled.load(std::sync::atomic::Ordering::Relaxed), "it was given up before it answered");
    stage.host().attest().unwrap();
}
