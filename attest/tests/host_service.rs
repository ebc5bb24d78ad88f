//! A host over time: leases, the verifier's events, `attest serve`, and what the verifier knows of runs. Real TPM, real verifier.
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

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_attest::events::{Notice, Subscription};
use countersign_attest::lease::{Renewal, boot_time};
use countersign_attest::{Host, HostError};
use countersign_verifier::admin::{Request, RunOrder};
use countersign_wire::enrol::HostState;
use countersign_wire::event::HostEvent;
use countersign_wire::id::RunId;
use countersign_wire::runlog::RunLog;
use serde_json::Value;
use support::stage::Stage;

const RUN: RunId = RunId([3; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

fn receipts(stage: &Stage) -> usize {
    RunLog::parse(&std::fs::read(stage.path("host/run.log")).unwrap_or_default()).unwrap().receipts().len()
}

fn set(stage: &Stage, state: HostState) {
    let host = stage.host().card().unwrap().host.to_string();
    stage.verifier.ask(Request::HostState { host, state, reason: "a test".into() });
}

#[test]
fn one_attestation_renews_every_lease() {
    let Some(stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    let mut host = stage.host();
    let released = host.release(workload, RUN).unwrap();
    let lease = host.lease(RUN).unwrap().unwrap();
    assert_eq!(lease.verdict, released.verdict_id);
    assert!(lease.next < lease.until && lease.until > boot_time());
    let running = host.start_run(RUN, workload, 1).unwrap();

    let Renewal::Accepted(first) = host.renew().unwrap() else { panic!("denied") };
    let renewed = host.lease(RUN).unwrap().unwrap();
    assert!(renewed.until > lease.until && renewed.verdict == first.verdict);
    // Fresh enough for everybody: another program shares it, and asks nobody.
    let before = receipts(&stage);
    assert_eq!(stage.host().renew().unwrap(), Renewal::Accepted(first.clone()));
    assert_eq!(receipts(&stage), before);
    // After an event it is not.
    let Renewal::Accepted(second) = stage.host().renew_since(boot_time()).unwrap() else { panic!("denied") };
    assert!(second.verdict != first.verdict && second.at > first.at);
    assert_eq!(receipts(&stage), before + 1);

    // Denied: told to everybody, and what runs keeps the lease that it has.
    set(&stage, HostState::Suspended);
    let lease = host.lease(RUN).unwrap().unwrap();
    let Renewal::Denied(denied) = host.renew_since(boot_time()).unwrap() else { panic!("accepted") };
    assert_eq!(denied.denial.reasons[0].id, "host-suspended");
    assert_eq!(stage.host().renew().unwrap(), Renewal::Denied(denied));
    assert_eq!(host.lease(RUN).unwrap().unwrap().until, lease.until);
    set(&stage, HostState::Active);
    assert!(matches!(host.renew_since(boot_time()).unwrap(), Renewal::Accepted(_)));

    // Away: an error, and the lease stands.
    let lease = host.lease(RUN).unwrap().unwrap();
    let mut config = stage.config();
    config.verifier = Some("https://127.0.0.1:1".into());
    let away = Host::open(config).unwrap().renew_since(boot_time());
    assert!(matches!(away, Err(HostError::Unreachable { .. })), "{away:?}");
    assert_eq!(host.lease(RUN).unwrap().unwrap().until, lease.until);

    // Changed: no lease, and the next attestation makes none of it.
    let file = stage.path("host/leases");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"lease_s\":3600", "\"lease_s\":360000");
    std::fs::write(&file, text).unwrap();
    assert_eq!(host.lease(RUN).unwrap(), None);
    assert!(matches!(host.renew().unwrap(), Renewal::Accepted(_)));
    assert_eq!(host.lease(RUN).unwrap(), None);
    host.end_run(running, "exit 0".into()).unwrap();
}

#[test]
fn programs_that_ask_at_once_attest_once() {
    let Some(stage) = Stage::enrolled() else { return };
    stage.host().attest().unwrap();
    let since = boot_time();
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let config = stage.config();
            std::thread::spawn(move || Host::open(config).unwrap().renew_since(since).unwrap())
        })
        .collect();
    let outcomes: Vec<Renewal> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(matches!(outcomes[0], Renewal::Accepted(_)));
    assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(receipts(&stage), 2);
}

#[test]
fn the_verifier_knows_what_ran() {
    let Some(mut stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    let mut host = stage.host();
    let released = host.release(workload, RUN).unwrap();
    let runs = || stage.verifier.ask(Request::RunList { host: Some("node-1".into()), limit: 10 })["runs"].clone();
    let run = runs()[0].clone();
    assert_eq!((run["state"].as_str(), run["started_ms"].as_i64()), (Some("released"), None));
    assert_eq!(run["verdict"], released.verdict_id.to_string());
    assert_eq!(run["workload"], workload.to_string());
    assert_eq!((run["host_policy"].as_str().unwrap().len(), run["workload_policy"].as_str().unwrap().len()), (64, 64));
    let running = host.start_run(RUN, workload, 77).unwrap();
    host.attest().unwrap();
    assert_eq!((runs()[0]["state"].as_str(), runs()[0]["started_ms"].as_i64()), (Some("running"), Some(77)));
    // A start that the verifier never allowed is in the list without a verdict.
    let other = host.start_run(RunId([9; 16]), workload, 78).unwrap();
    host.end_run(running, "exit 3".into()).unwrap();
    host.attest().unwrap();
    let all = runs();
    let find = |all: &Value, id: RunId| {
        all.as_array().unwrap().iter().find(|run| run["run"] == id.to_string()).cloned().unwrap()
    };
    let ended = find(&all, RUN);
    assert_eq!((ended["state"].as_str(), ended["status"].as_str()), (Some("ended"), Some("exit 3")));
    assert!(ended["ended_ms"].as_i64().unwrap() >= ended["released_ms"].as_i64().unwrap());
    assert_eq!(find(&all, RunId([9; 16]))["verdict"], Value::Null);
    let order = |run: RunId| {
        stage.verifier.try_ask(Request::RunOrder { run: run.to_string(), order: RunOrder::Stop, reason: "r".into() })
    };
    assert!(order(RUN).unwrap_err().to_string().contains("has ended"));
    assert!(order(RunId([4; 16])).unwrap_err().to_string().contains("there is no run"));
    order(RunId([9; 16])).unwrap();
    assert_eq!(find(&runs(), RunId([9; 16]))["state"], "stopping by order");
    drop(other);
    // After a reset nothing of before runs, whatever its log did not say.
    stage.reboot();
    stage.host().attest().unwrap();
    let runs = stage.verifier.ask(Request::RunList { host: None, limit: 10 })["runs"].clone();
    assert!(find(&runs, RunId([9; 16]))["status"].as_str().unwrap().starts_with("lost: the host was reset"));
}

/// Forwards connections to the verifier until it is told to cut them.
struct Line {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = url.strip_prefix("https://").unwrap().to_owned();
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let kept = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&to).unwrap());
                kept.lock().unwrap().push(near.try_clone().unwrap());
                let copy = |mut from: TcpStream, mut to: TcpStream| {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                };
                copy(near.try_clone().unwrap(), far.try_clone().unwrap());
                copy(far, near);
            }
        });
        Self { port, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[track_caller]
fn event(subscription: &Subscription) -> HostEvent {
    loop {
        match subscription.wait(PATIENCE) {
            Some(Notice::Event(event)) => return event,
            Some(Notice::Connected | Notice::Lost { .. }) => {}
            None => panic!("no event"),
        }
    }
}

#[test]
fn events_come_once_and_none_is_lost() {
    let Some(stage) = Stage::enrolled() else { return };
    let workload = stage.register();
    let mut host = stage.host();
    host.release(workload, RUN).unwrap();
    let _running = host.start_run(RUN, workload, 1).unwrap();
    let line = Line::to(&stage.verifier.url);
    let mut config = stage.config();
    config.verifier = Some(format!("https://127.0.0.1:{}", line.port));
    let subscription = Subscription::start(&Host::open(config).unwrap()).unwrap();
    assert_eq!(subscription.wait(PATIENCE), Some(Notice::Connected));
    assert_eq!(subscription.next(), None);
    let reason = || "by night".to_owned();
    let order = |order| stage.verifier.ask(Request::RunOrder { run: RUN.to_string(), order, reason: reason() });
    order(RunOrder::Freeze);
    assert_eq!(event(&subscription), HostEvent::Freeze { run: RUN, reason: reason() });
    // While nobody listens:
    line.cut();
    order(RunOrder::Thaw);
    set(&stage, HostState::Suspended);
    set(&stage, HostState::Active);
    stage.verifier.ask(Request::WorkloadWithdraw { workload });
    let admin = || "a test".to_owned();
    assert_eq!(event(&subscription), HostEvent::Thaw { run: RUN, reason: reason() });
    assert_eq!(event(&subscription), HostEvent::Suspended { reason: admin() });
    assert_eq!(event(&subscription), HostEvent::Admitted { reason: admin() });
    assert_eq!(event(&subscription), HostEvent::WorkloadWithdrawn { workload });
    // Who comes later is told how things stand.
    order(RunOrder::Stop);
    assert_eq!(event(&subscription), HostEvent::Stop { run: RUN, reason: reason() });
    set(&stage, HostState::Suspended);
    assert_eq!(event(&subscription), HostEvent::Suspended { reason: admin() });
    let late = Subscription::start(&stage.host()).unwrap();
    assert_eq!(event(&late), HostEvent::Suspended { reason: admin() });
    assert_eq!(event(&late), HostEvent::Stop { run: RUN, reason: reason() });
    assert_eq!(event(&late), HostEvent::WorkloadWithdrawn { workload });
    // Revoked: both are told, and so is who asks again.
    set(&stage, HostState::Revoked);
    for subscription in [&subscription, &late, &Subscription::start(&stage.host()).unwrap()] {
        assert!(matches!(event(subscription), HostEvent::Revoked { .. }));
    }
    assert_eq!(subscription.ignored(), 0);
}

#[test]
fn events_are_for_hosts_only() {
    let Some(stage) = Stage::enrolled() else { return };
    let (key, certificate) = (stage.path("host/tls.key"), stage.path("host/tls.crt"));
    // A certificate that this verifier did not issue ends the handshake.
    let foreign = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    let (good_key, good) = (std::fs::read(&key).unwrap(), std::fs::read(&certificate).unwrap());
    std::fs::write(&key, foreign.signing_key.serialize_der()).unwrap();
    std::fs::write(&certificate, foreign.cert.der()).unwrap();
    let subscription = Subscription::start(&stage.host()).unwrap();
    let Some(Notice::Lost { reason, .. }) = subscription.wait(PATIENCE) else { panic!("heard") };
    assert!(!reason.is_empty());
    // The host's own again: the same subscription comes through.
    std::fs::write(&key, good_key).unwrap();
    std::fs::write(&certificate, good).unwrap();
    loop {
        match subscription.wait(PATIENCE).unwrap() {
            Notice::Connected => break,
            Notice::Lost { .. } => {}
            Notice::Event(event) => panic!("{event:?}"),
        }
    }
}

#[test]
fn serve_attests_follows_events_and_ends_in_order() {
    let Some(stage) = Stage::enrolled() else { return };
    let config = stage.path("attest.toml");
    let text = format!("event_log = {:?}\nima_log = {:?}\nsystemd_log = \"\"\n", stage.path("boot"), stage.path("ima"));
    std::fs::write(&config, text).unwrap();
    let socket = stage.path("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = std::thread::spawn(move || {
        let (mut told, mut buffer): (Vec<String>, _) = (Vec::new(), [0; 1024]);
        while told.last().is_none_or(|said| said != "STOPPING=1") {
            let length = systemd.recv(&mut buffer).unwrap();
            told.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        told
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_attest"));
    command.arg("--config").arg(&config).arg("--state-dir").arg(stage.path("host")).args(["--json", "serve"]);
    command.env("COUNTERSIGN_TPM", stage.sim.tpm_arg()).env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "60000000");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut until = |what: &str| {
        lines.find(|line| line["what"] == what || line["kind"] == what).unwrap_or_else(|| panic!("no {what}"))
    };
    until("started");
    let first = until("accepted");
    assert!(first["next_s"].as_u64().unwrap() > 0);
    until("connected");
    // Policy data changed: it attests at once, not when the interval is over.
    stage.verifier.ask(Request::ReferenceAdd {
        name: "other".into(),
        eventlog: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, support::stage::BOOT),
        pcrs: vec![7],
    });
    stage.verifier.ask(Request::ReferenceRevoke { name: "other".into() });
    until("attest");
    let second = until("accepted");
    assert_ne!(first["verdict"], second["verdict"]);
    set(&stage, HostState::Suspended);
    until("suspended");
    set(&stage, HostState::Active);
    until("admitted");
    until("accepted");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("stopped");
    assert!(child.wait().unwrap().success());
    let told = told.join().unwrap();
    assert!(told.iter().any(|said| said == "READY=1") && told.iter().any(|said| said == "WATCHDOG=1"), "{told:?}");
}
