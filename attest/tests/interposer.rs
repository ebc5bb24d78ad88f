//! The client with something between it and the TPM, and over each kind of transport.
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

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use countersign_attest::tpm::{Tpm, TpmError};
use countersign_attest::unseal::{UnsealError, Waiting};
use countersign_tpm::alg::HashAlg;
use countersign_tpm::ek::Template;
use support::authority::{Broker, SECRET};
use support::proxy::{self, Everything, Fate, Script, refusal};
use support::sim;

const POLICY_AUTHORIZE: u32 = 0x16A;
const READ_CLOCK: u32 = 0x181;
const UNSEAL: u32 = 0x15E;

/// TPM2_PCR_Extend of PCR 10 in the SHA-256 bank, as the kernel's IMA does it at any moment.
fn ima_extends() -> Vec<u8> {
    let body = [
        &[0, 0, 1, 0x82, 0, 0, 0, 10, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0][..],
        &[0, 0, 0, 1, 0, 0x0B],
        HashAlg::Sha256.digest(&[b"a file"]).as_bytes(),
    ]
    .concat();
    [&[0x80, 0x02][..], &u32::try_from(body.len() + 6).unwrap().to_be_bytes(), &body].concat()
}

/// A release through a proxy.
fn release(script: impl Script + 'static) -> Option<Result<u64, UnsealError>> {
    let (_dir, sim) = sim()?;
    let (address, _) = proxy::unix(sim.home(), &sim.socket(), script);
    let mut tpm = Tpm::connect(&address.parse().unwrap()).unwrap();
    let broker = Broker::new(&mut tpm, Template::P384);
    let approved = broker.approved(&mut tpm);
    let before = tpm.commands();
    let waiting = Waiting::open(&mut tpm, &broker.ek, &broker.import, None).unwrap();
    let release = broker.release(&waiting, &approved, 30);
    Some(waiting.unseal(&mut tpm, &release).map(|secret| {
        assert_eq!(*secret, SECRET);
        tpm.commands() - before
    }))
}

#[test]
fn the_secret_never_crosses_the_bus_in_clear() {
    let Some((_dir, sim)) = sim() else { return };
    for template in [Template::Rsa2048, Template::P384] {
        let home = tempfile::TempDir::new().unwrap();
        let (address, seen) = proxy::unix(home.path(), &sim.socket(), Everything::default());
        let mut tpm = Tpm::connect(&address.parse().unwrap()).unwrap();
        let broker = Broker::new(&mut tpm, template);
        let approved = broker.approved(&mut tpm);
        let waiting = Waiting::open(&mut tpm, &broker.ek, &broker.import, None).unwrap();
        let release = broker.release(&waiting, &approved, 30);
        assert_eq!(*waiting.unseal(&mut tpm, &release).unwrap(), SECRET);
        assert!(seen.lock().unwrap().holds(&release.verdict), "the proxy sees everything else");
        assert!(!seen.lock().unwrap().holds(&SECRET[..8]));
    }
}

struct Storm(u32);

impl Script for Storm {
    fn command(&mut self, code: u32, _bytes: &[u8]) -> Fate {
        if code != POLICY_AUTHORIZE || self.0 == 0 {
            return Fate::Pass;
        }
        self.0 -= 1;
        Fate::After(ima_extends())
    }
}

#[test]
fn pcrs_that_change_during_the_policy_only_cost_another_round() {
    let Some(quiet) = release(Storm(0)) else { return };
    let quiet = quiet.unwrap();
    // One round: PolicyRestart, three conditions, PolicyAuthorize, PolicySigned, Unseal.
    assert_eq!(release(Storm(1)).unwrap().unwrap(), quiet + 7);
    assert_eq!(release(Storm(3)).unwrap().unwrap(), quiet + 21);
    let error = release(Storm(u32::MAX)).unwrap().unwrap_err();
    assert!(error.to_string().contains("TPM_RC_PCR_CHANGED"), "{error}");
    assert!(error.is_stale());
}

struct Flip {
    code: u32,
    from_end: usize,
}

impl Script for Flip {
    fn command(&mut self, _code: u32, _bytes: &[u8]) -> Fate {
        Fate::Pass
    }

    fn response(&mut self, code: u32, bytes: &mut Vec<u8>) {
        if code == self.code {
            let at = bytes.len() - self.from_end;
            bytes[at] ^= 1;
        }
    }
}

#[test]
fn a_changed_response_is_noticed() {
    // The HMAC is last; before it come its size, the session's attributes and its nonce; before those the encrypted secret.
    for from_end in [1, 32, 35, 36, 60, 100] {
        let Some(outcome) = release(Flip { code: UNSEAL, from_end }) else { return };
        let error = outcome.unwrap_err();
        assert!(matches!(error, UnsealError::Tpm(TpmError::NotAuthentic("TPM2_Unseal"))), "{from_end}: {error}");
    }
}

struct Busy {
    code: u32,
    answers: Vec<u32>,
}

impl Script for Busy {
    fn command(&mut self, code: u32, _bytes: &[u8]) -> Fate {
        if code != self.code {
            return Fate::Pass;
        }
        self.answers.pop().map_or(Fate::Pass, |answer| Fate::Answer(refusal(answer)))
    }
}

#[test]
fn a_busy_tpm_is_asked_again() {
    let Some(quiet) = release(Storm(0)) else { return };
    for code in [UNSEAL, POLICY_AUTHORIZE, 0x156] {
        let script = Busy { code, answers: vec![0x922, 0x908, 0x90A] };
        assert_eq!(release(script).unwrap().unwrap(), *quiet.as_ref().unwrap() + 3);
    }
    // Other codes are not.
    let error = release(Busy { code: UNSEAL, answers: vec![0x921] }).unwrap().unwrap_err();
    assert!(error.to_string().contains("TPM_RC_LOCKOUT"), "{error}");
}

struct Mute;

impl Script for Mute {
    fn command(&mut self, code: u32, _bytes: &[u8]) -> Fate {
        if code == READ_CLOCK { Fate::Silence } else { Fate::Pass }
    }
}

#[test]
fn a_tpm_that_does_not_answer_is_given_up_at_the_deadline() {
    let Some((_dir, sim)) = sim() else { return };
    let unix = proxy::unix(sim.home(), &sim.socket(), Mute).0;
    for address in [unix, proxy::tcp(&sim.socket(), Mute)] {
        let mut tpm = Tpm::connect_within(&address.parse().unwrap(), Duration::from_millis(200)).unwrap();
        let started = Instant::now();
        let error = tpm.read_clock().unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(15), "it is this deadline, and not the one that is usual");
        assert!(error.to_string().contains("did not answer in time"), "{error}");
    }
}

struct Say(Vec<u8>);

impl Script for Say {
    fn command(&mut self, _code: u32, _bytes: &[u8]) -> Fate {
        Fate::Answer(self.0.clone())
    }
}

#[test]
fn nonsense_from_the_tpm_is_an_error() {
    let Some((_dir, sim)) = sim() else { return };
    let header = |tag: u16, size: u32| [&tag.to_be_bytes()[..], &size.to_be_bytes(), &[0; 4]].concat();
    let mut answers = vec![header(0x8001, 9), header(0x8001, 10), header(0x8002, 10), header(0x8001, 100_000)];
    answers.push([header(0x8001, 12), vec![0; 2]].concat());
    for answer in answers {
        let home = tempfile::TempDir::new().unwrap();
        let (address, _) = proxy::unix(home.path(), &sim.socket(), Say(answer.clone()));
        let mut tpm = Tpm::connect_within(&address.parse().unwrap(), Duration::from_millis(300)).unwrap();
        assert!(tpm.read_clock().is_err(), "{answer:02x?}");
        assert!(tpm.banks().is_err(), "{answer:02x?}");
    }
}

#[test]
fn every_transport() {
    let Some((dir, sim)) = sim() else { return };
    let tcp = proxy::tcp(&sim.socket(), Storm(0));
    let mut tpm = Tpm::connect(&tcp.parse().unwrap()).unwrap();
    assert!(tpm.banks().unwrap().contains(&HashAlg::Sha256));
    drop(tpm);
    // A terminal without line discipline is the nearest thing to a character device that a test can make.
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let raw = Command::new("stty").args(["-F", &name, "raw", "-echo"]).status();
    if !raw.is_ok_and(|status| status.success()) {
        println!("skipped: stty cannot make a raw terminal");
        return;
    }
    let mut tpm = Tpm::connect_within(&format!("device:{name}").parse().unwrap(), Duration::from_secs(5)).unwrap();
    let socket = sim.socket();
    let end = master.as_fd().try_clone_to_owned().unwrap();
    std::thread::spawn(move || proxy::serve(File::from(end), &socket, &Mutex::new(Storm(0))));
    assert!(tpm.banks().unwrap().contains(&HashAlg::Sha256));
    tpm.read_clock().unwrap();
    drop(dir);
    let nowhere = Tpm::connect(&"device:/nowhere".parse().unwrap()).unwrap_err();
    assert!(nowhere.to_string().starts_with("TPM at device:/nowhere: No such file"), "{nowhere}");
}

#[test]
fn a_socket_that_another_program_keeps() {
    let Some((_dir, sim)) = sim() else { return };
    let address = sim.tpm_arg().parse().unwrap();
    // swtpm serves one client: the second waits for its first answer, then gives up.
    let mut first = Tpm::connect(&address).unwrap();
    first.read_clock().unwrap();
    let second = Tpm::connect_within(&address, Duration::from_millis(200)).and_then(|mut tpm| tpm.read_clock());
    assert!(matches!(second, Err(TpmError::Transport { .. })));
    drop(first);
    Tpm::connect(&address).unwrap().read_clock().unwrap();
}
