//! A TPM's life on a real swtpm: power, counters, PCRs, clones, replays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm_sim::{Error, ImaBanks, Lifetime, Options, Recording, Sim};
use tempfile::TempDir;

/// A folder and a running TPM in it; `None` where swtpm is missing.
fn running() -> Option<(TempDir, Sim)> {
    let dir = TempDir::new().unwrap();
    match Sim::create(dir.path().join("t"), &Options::named("node-1")) {
        Ok(mut sim) => {
            sim.start().unwrap();
            Some((dir, sim))
        }
        Err(Error::MissingTool(tool)) => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Process id of a TPM's swtpm.
fn pid(sim: &Sim) -> String {
    std::fs::read_to_string(sim.home().join("swtpm.pid")).unwrap().trim().to_owned()
}

fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[test]
fn power_and_counters() {
    let Some((_dir, mut sim)) = running() else { return };
    let zero = Some(Digest::filled(HashAlg::Sha256, 0));
    let start = sim.clock().unwrap();
    sim.extend(4, b"boot loader").unwrap();
    let extended = sim.pcr(HashAlg::Sha256, 4).unwrap();
    assert_eq!(extended, zero.map(|zero| zero.extend(HashAlg::Sha256.digest(&[b"boot loader"]).as_bytes())));
    assert_eq!(sim.pcr(HashAlg::Sha512, 4).unwrap(), None, "no SHA-512 bank");

    sim.suspend_resume().unwrap();
    let resumed = sim.clock().unwrap();
    assert_eq!((resumed.reset_count, resumed.restart_count), (start.reset_count, start.restart_count + 1));
    assert_eq!(sim.pcr(HashAlg::Sha256, 4).unwrap(), extended, "a resume keeps PCRs");

    sim.restart().unwrap();
    let restarted = sim.clock().unwrap();
    assert_eq!((restarted.reset_count, restarted.restart_count), (start.reset_count, start.restart_count + 2));
    assert_eq!(sim.pcr(HashAlg::Sha256, 4).unwrap(), zero);

    sim.reset().unwrap();
    let reset = sim.clock().unwrap();
    assert_eq!((reset.reset_count, reset.restart_count), (start.reset_count + 1, 0));
    assert!(reset.safe);

    sim.kill();
    assert!(matches!(sim.clock(), Err(Error::NotRunning)));
    sim.start().unwrap();
    let cut = sim.clock().unwrap();
    assert_eq!(cut.reset_count, start.reset_count + 2);
    assert!(!cut.safe, "the clock is not safe after a power cut");

    sim.stop().unwrap();
    assert!(!sim.is_running());
    assert!(matches!(sim.stop(), Err(Error::NotRunning)));
    sim.start().unwrap();
    assert!(matches!(sim.start(), Err(Error::Running)));
    assert_eq!(sim.clock().unwrap().reset_count, start.reset_count + 3);

    sim.clear().unwrap();
    let cleared = sim.clock().unwrap();
    assert_eq!((cleared.reset_count, cleared.restart_count), (0, 0));
    assert!(cleared.clock < reset.clock || cleared.clock < 1000, "the clock begins again: {cleared:?}");
}

#[test]
fn the_process_ends_with_its_owner() {
    let Some((dir, sim)) = running() else { return };
    let dropped = pid(&sim);
    assert!(alive(&dropped));
    drop(sim);
    assert!(!alive(&dropped), "drop ends it");

    let home = dir.path().join("t");
    let panicked = std::thread::spawn(move || {
        let mut sim = Sim::open(home).unwrap();
        sim.start().unwrap();
        std::panic::panic_any(pid(&sim));
    });
    let pid = *panicked.join().unwrap_err().downcast::<String>().unwrap();
    assert!(!alive(&pid), "a panic ends it");
}

#[test]
fn a_detached_tpm_outlives_its_starter_and_is_found_again() {
    let Some((dir, mut sim)) = running() else { return };
    sim.stop().unwrap();
    sim.start_as(Lifetime::Detached).unwrap();
    let first = pid(&sim);
    drop(sim);
    assert!(alive(&first));
    let mut again = Sim::open(dir.path().join("t")).unwrap();
    assert!(again.is_running());
    let before = again.clock().unwrap().reset_count;
    again.reset().unwrap();
    assert_eq!(again.clock().unwrap().reset_count, before + 1);
    assert_ne!(pid(&again), first);
    again.kill();
    assert!(!Sim::open(dir.path().join("t")).unwrap().is_running());
}

#[test]
fn one_connection_at_a_time_and_a_new_one_after_it() {
    let Some((_dir, sim)) = running() else { return };
    for _ in 0..3 {
        drop(UnixStream::connect(sim.socket()).unwrap());
        sim.clock().unwrap();
    }
}

#[test]
fn a_clone_is_the_same_tpm_twice() {
    let Some((dir, sim)) = running() else { return };
    sim.extend(13, b"receipt 1").unwrap();
    let (value, clock) = (sim.pcr(HashAlg::Sha256, 13).unwrap(), sim.clock().unwrap());
    let mut twin = sim.clone_to(dir.path().join("twin")).unwrap();
    assert!(matches!(sim.clone_to(dir.path().join("twin")), Err(Error::Exists(_))));
    assert!(sim.is_running(), "the original goes on");
    sim.extend(13, b"receipt 2").unwrap();
    twin.start().unwrap();
    assert_eq!(twin.pcr(HashAlg::Sha256, 13).unwrap(), value, "the twin wakes up where the original was");
    let woken = twin.clock().unwrap();
    assert_eq!((woken.reset_count, woken.restart_count), (clock.reset_count, clock.restart_count));
    assert_eq!(twin.ca_pem(), sim.ca_pem());
    twin.reset().unwrap();
    assert_eq!(twin.clock().unwrap().reset_count, clock.reset_count + 1, "the volatile state was used up");

    let mut cold = Sim::open(dir.path().join("twin")).unwrap();
    cold.kill();
    let mut third = cold.clone_to(dir.path().join("third")).unwrap();
    third.start().unwrap();
    assert_ne!(third.pcr(HashAlg::Sha256, 13).unwrap(), value, "a clone of a stopped TPM starts anew");
}

#[test]
fn a_fleet_shares_one_ca() {
    let dir = TempDir::new().unwrap();
    let ca = dir.path().join("fleet-ca");
    let make =
        |n: usize| Sim::create(dir.path().join(format!("n{n}")), &Options::named(format!("n{n}")).shared_ca(&ca));
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || make(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    if let Some(Err(Error::MissingTool(tool))) = made.first() {
        println!("skipped: {tool} is not installed");
        return;
    }
    let roots: Vec<PathBuf> = made.iter().map(|sim| sim.as_ref().unwrap().ca_pem().unwrap()).collect();
    assert!(roots.iter().all(|root| root == &roots[0] && root.is_file()));
    let mut serials = std::collections::BTreeSet::new();
    for sim in made {
        let certificates = sim.unwrap().ek_certificates();
        assert_eq!(certificates.len(), 2, "RSA-2048 and P-384");
        for path in certificates {
            serials.insert(std::fs::read(path).unwrap());
        }
    }
    assert_eq!(serials.len(), 8, "each certificate is another");
}

#[test]
fn a_tpm_without_certificates() {
    let dir = TempDir::new().unwrap();
    let mut sim = match Sim::create(dir.path().join("t"), &Options::named("bare").without_certificates()) {
        Ok(sim) => sim,
        Err(Error::MissingTool(tool)) => return println!("skipped: {tool} is not installed"),
        Err(error) => panic!("{error}"),
    };
    assert_eq!((sim.ca_pem(), sim.ek_certificates()), (None, Vec::new()));
    sim.start().unwrap();
}

#[test]
fn a_deep_folder_gets_its_sockets_elsewhere() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(60)).join("with a space").join("e".repeat(60));
    let mut sim = match Sim::create(&deep, &Options::named("deep").without_certificates()) {
        Ok(sim) => sim,
        Err(Error::MissingTool(tool)) => return println!("skipped: {tool} is not installed"),
        Err(error) => panic!("{error}"),
    };
    sim.start().unwrap();
    sim.clock().unwrap();
    let folder = sim.socket().parent().unwrap().to_owned();
    assert!(folder.is_dir());
    sim.destroy().unwrap();
    assert!(!folder.exists() && !deep.exists());
}

#[test]
fn bad_names_and_paths() {
    let dir = TempDir::new().unwrap();
    let long = "x".repeat(65);
    for name in ["", "a,b", "-a", ".", "a b", "a/b", "ä", long.as_str()] {
        let result = Sim::create(dir.path().join("t"), &Options::named(name));
        assert!(matches!(result, Err(Error::Name(_))), "{name:?}");
    }
    let comma = Sim::create(dir.path().join("a,b"), &Options::default());
    assert!(matches!(comma, Err(Error::Path { .. })));
    assert!(matches!(Sim::create(dir.path().join("t"), &Options::default().banks(&[])), Err(Error::NoBanks)));
    assert!(matches!(Sim::open(dir.path().join("nothing")), Err(Error::NotASim(_))));
    std::fs::write(dir.path().join("sim.json"), r#"{"version":9,"name":"x","banks":[],"ca":null}"#).unwrap();
    assert!(matches!(Sim::open(dir.path()), Err(Error::Record { .. })));
}

fn fixture(name: &str, file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name).join(file)).unwrap()
}

#[test]
fn a_replay_gives_the_recorded_pcrs() {
    let Some((_dir, mut sim)) = running() else { return };
    let boots = [
        ("sb-ms-shim-grub212", ImaBanks::Own, false),
        ("nosb-shim-grub212", ImaBanks::Own, false),
        ("nosb-direct-k6.1-sha384-imapad", ImaBanks::PaddedSha1, false),
        ("sb-snakeoil-uki-systemd-pcrphase-ima", ImaBanks::Own, true),
    ];
    for (name, ima_banks, has_systemd) in boots {
        let want: serde_json::Value = serde_json::from_slice(&fixture(name, "PCRS.json")).unwrap();
        let (boot, ima) = (fixture(name, "binary_bios_measurements"), fixture(name, "ima_binary"));
        let systemd = if has_systemd { fixture(name, "tpm2-measure.log") } else { Vec::new() };
        let recording = Recording { boot: &boot, ima: &ima, systemd: &systemd, ima_banks };
        let done = sim.replay_recording(&recording).unwrap();
        assert!(done.events > 5 && done.ima > 0 && (done.systemd > 0) == has_systemd, "{name} {done:?}");
        for (bank, pcrs) in want.as_object().unwrap() {
            let alg = HashAlg::from_name(bank).unwrap();
            for (pcr, value) in pcrs.as_object().unwrap() {
                let got = sim.pcr(alg, pcr.parse().unwrap()).unwrap().unwrap().to_string();
                assert_eq!(got, value.as_str().unwrap(), "{name} {bank} PCR {pcr}");
            }
        }
        sim.reset().unwrap();
    }
}

#[test]
fn a_boot_at_locality_3_is_replayed_there() {
    let Some((_dir, mut sim)) = running() else { return };
    let log = fixture("nosb-shim-grub212", "binary_bios_measurements");
    let header = 32 + usize::try_from(u32::from_le_bytes(log[28..32].try_into().unwrap())).unwrap();
    let with = |locality: u8| {
        let mut event = [0u32.to_le_bytes(), 3u32.to_le_bytes(), 0u32.to_le_bytes(), 17u32.to_le_bytes()].concat();
        event.extend(b"StartupLocality\0");
        event.push(locality);
        [&log[..header], &event].concat()
    };
    assert_eq!(sim.replay(&with(3), &[]).unwrap().locality, 3);
    assert_eq!(sim.pcr(HashAlg::Sha256, 0).unwrap().unwrap().as_bytes()[31], 3);
    assert!(matches!(sim.replay(&with(4), &[]), Err(Error::Locality(4))));
    assert!(matches!(sim.replay(&log[..log.len() - 1], &[]), Err(Error::Log { .. })));
    assert!(matches!(sim.replay(&[], b"\x0a\0\0\0short"), Err(Error::Log { .. })));
}

#[test]
fn a_killed_process_leaves_no_orphan() {
    // A process that is killed cannot run Drop: the keeper ends swtpm when its pipe closes.
    let Some((dir, mut sim)) = running() else { return };
    sim.stop().unwrap();
    let me = std::env::current_exe().unwrap();
    let mut child = Command::new(me)
        .args(["--exact", "helper_that_is_killed", "--nocapture", "--include-ignored"])
        .env("TPM_SIM_HOME", dir.path().join("t"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let up = dir.path().join("t/up");
    while !up.exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    let pid = pid(&sim);
    child.kill().unwrap();
    child.wait().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while alive(&pid) {
        assert!(std::time::Instant::now() < end, "swtpm {pid} outlived a killed process");
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "a helper of another test"]
fn helper_that_is_killed() {
    let Some(home) = std::env::var_os("TPM_SIM_HOME") else { return };
    let mut sim = Sim::open(home).unwrap();
    sim.start().unwrap();
    std::fs::write(sim.home().join("up"), "").unwrap();
    std::thread::park();
}
