use super::*;
use crate::eventlog::{EventLog, PcrSet, Registers};
use countersign_tpm::alg::HashAlg;

const GRUB: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const GRUB_OFF: &[u8] = include_bytes!("../../../../fixtures/nosb-shim-grub212/binary_bios_measurements");
const DIRECT: &[u8] = include_bytes!("../../../../fixtures/nosb-direct-k6.1-sha384-imapad/binary_bios_measurements");
const UKI: &[u8] = include_bytes!("../../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/binary_bios_measurements");
const UKI_SYSTEMD: &[u8] = include_bytes!("../../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/tpm2-measure.log");

const ADDON: &[u8] = include_bytes!("../../../../fixtures/sb-snakeoil-systemdboot-uki/binary_bios_measurements");

const ALL: [(HashAlg, PcrSet); 1] = [(HashAlg::Sha256, PcrSet::ALL)];

fn facts(log: &[u8], systemd: &[u8]) -> Facts {
    let log = EventLog::parse(log).unwrap();
    let examined = log.examine(&ALL, Registers::Tpm).unwrap();
    Facts::of(&examined, &systemd_log::parse(systemd).unwrap())
}

fn loaders(facts: &Facts) -> Vec<(Loader, Strength)> {
    facts.loaders.iter().map(|fact| (fact.value, fact.strength)).collect()
}

#[test]
fn shim_and_grub() {
    let facts = facts(GRUB, b"");
    let on = facts.secure_boot.as_ref().unwrap();
    assert_eq!((on.value, on.strength, on.events.as_slice()), (true, Strength::Authenticated, &[4][..]));
    let names: Vec<&str> = facts.databases.iter().map(|fact| fact.value.name.as_str()).collect();
    assert_eq!(names, ["PK", "KEK", "db", "dbx"]);
    let db = &facts.databases[2].value;
    assert_eq!((db.certificates.len(), db.hashes, db.other), (2, 0, 0));
    assert!(db.certificates[1].subject().starts_with("CN=Microsoft Corporation UEFI CA 2011"), "{:?}", db.certificates);
    assert_eq!(db.certificates[1].sha256(), "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507");
    assert_eq!(facts.databases[3].value.hashes, 1);
    let sources: Vec<&str> = facts.authorities.iter().map(|fact| fact.value.source.as_str()).collect();
    assert_eq!(sources, ["db", "MokListRT"]);
    let shim = facts.shim.as_ref().unwrap();
    assert!(shim.sbat_level.as_ref().unwrap().value.starts_with("sbat,1,2025"));
    assert_eq!(shim.lists.len(), 3);
    assert_eq!(loaders(&facts), [(Loader::Shim, Strength::Authenticated), (Loader::Grub, Strength::Named)]);
    let paths: Vec<Option<&str>> = facts.applications.iter().map(|fact| fact.value.path.as_deref()).collect();
    assert_eq!(paths.len(), 3);
    assert!(paths[1].unwrap().to_lowercase().contains("grub"), "{paths:?}");
    assert_eq!(facts.kernels.len(), 1);
    assert_eq!(facts.kernels[0].value.name, "/vmlinuz");
    let initrds: Vec<&str> = facts.initrds.iter().map(|fact| fact.value.name.as_str()).collect();
    assert_eq!(initrds, ["Linux initrd", "/initrd.gz"]);
    assert!(facts.command_lines[0].value.text.starts_with("/vmlinuz console=ttyS0"));
    assert!(facts.exit_boot_services.as_ref().unwrap().value);
    assert!(!facts.debug_mode.as_ref().unwrap().value);
    assert!(!facts.dma_protection_disabled.as_ref().unwrap().value);
    assert_eq!(facts.boot_options.len(), 3);
    assert_eq!(facts.boot_options[0].strength, Strength::Named, "OVMF measures the contents only");
}

#[test]
fn direct_kernel() {
    let facts = facts(DIRECT, b"");
    assert_eq!(loaders(&facts), [(Loader::DirectKernel, Strength::Named)]);
    assert!(!facts.secure_boot.as_ref().unwrap().value);
    assert_eq!(facts.initrds.len(), 1);
    assert!(facts.shim.is_none() && facts.sections.is_empty());
}

#[test]
fn unified_kernel_image_and_systemd() {
    let facts = facts(UKI, UKI_SYSTEMD);
    assert!(facts.secure_boot.as_ref().unwrap().value);
    assert!(loaders(&facts).contains(&(Loader::SystemdStub, Strength::Authenticated)), "{:?}", loaders(&facts));
    let names: Vec<&str> = facts.sections.iter().map(|fact| fact.value.name.as_str()).collect();
    assert!(names.starts_with(&[".linux", ".osrel", ".cmdline", ".initrd"]), "{names:?}");
    assert!(
        facts.sections.iter().all(|fact| fact.strength == Strength::Authenticated && fact.events.as_slice().len() == 2)
    );
    assert_eq!(facts.kernels[0].value, facts.sections[0].value);
    let phases: Vec<&str> = facts.phases.iter().map(|fact| fact.value.as_str()).collect();
    assert_eq!(phases, ["sysinit", "ready"]);
    assert_eq!(facts.machine_id.as_ref().unwrap().value, "8a10c76c9d28427bb62c72d4bb0662f4");
    assert_eq!(facts.file_systems[0].log, Log::Systemd);
}

#[test]
fn systemd_boot_and_an_addon() {
    let facts = facts(ADDON, b"");
    assert!(facts.secure_boot.as_ref().unwrap().value);
    let addon = &facts.addons[0];
    assert_eq!((addon.value.name.as_str(), addon.strength), ("addon.param=1", Strength::Authenticated));
    assert_eq!(facts.command_lines[0].value, CommandLine { by: Loader::SystemdStub, text: "addon.param=1".into() });
    assert!(facts.sections.iter().any(|section| section.value.name == ".cmdline"));
    assert_eq!(facts.authorities[0].value.source, "db");
    assert!(facts.authorities[0].value.certificate.is_some());
}

#[test]
fn nothing_is_believed_of_pcrs_that_nobody_vouches_for() {
    let log = EventLog::parse(GRUB).unwrap();
    let some: PcrSet = [0, 4].into_iter().collect();
    let examined = log.examine(&[(HashAlg::Sha256, some)], Registers::Tpm).unwrap();
    let facts = Facts::of(&examined, &[]);
    assert_eq!(facts.secure_boot, None);
    assert_eq!(facts.debug_mode, None);
    assert!(facts.databases.is_empty() && facts.command_lines.is_empty() && facts.exit_boot_services.is_none());
    assert_eq!(facts.applications.len(), 3);
    let nothing = log.examine(&[], Registers::Tpm).unwrap();
    assert_eq!(Facts::of(&nothing, &[]), Facts::default());
}

#[test]
fn facts_as_json_and_back() {
    let found = facts(UKI, UKI_SYSTEMD);
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), found);
    assert_eq!(serde_json::from_str::<Facts>("{}").unwrap(), Facts::default());
    assert!(serde_json::from_str::<Facts>("{\"secureboot\": true}").is_err());
}

#[test]
fn in_one_call() {
    let (bank, found) = read_boot(GRUB, HashAlg::Sha256).unwrap();
    assert_eq!(found, facts(GRUB, b""));
    assert_eq!(bank, EventLog::parse(GRUB).unwrap().replay(HashAlg::Sha256).unwrap());
    assert!(read_boot(&GRUB[1..], HashAlg::Sha256).is_err() && read_boot(GRUB, HashAlg::Sha512).is_err());
}

#[test]
fn two_boots() {
    let (on, off) = (EventLog::parse(GRUB).unwrap(), EventLog::parse(GRUB_OFF).unwrap());
    let (on, off) = (on.examine(&ALL, Registers::Tpm).unwrap(), off.examine(&ALL, Registers::Tpm).unwrap());
    let (with, without) = (Facts::of(&on, &[]), Facts::of(&off, &[]));
    assert_eq!(diff((&on, &with), (&on, &with)), Changes::default());
    let changes = diff((&off, &without), (&on, &with));
    let words: Vec<String> = changes.facts.iter().map(Change::words).collect();
    assert_eq!(words[0], "sbat-level: sbat,1,2021030218 -> sbat,1,2025021800");
    assert_eq!(words[1], "secure-boot: off -> on");
    assert!(
        words.iter().any(|line| line.starts_with("dbx: 0 entries") && line.ends_with("(1 new, 0 gone)")),
        "{words:#?}"
    );
    assert!(
        words
            .iter()
            .any(|line| line.starts_with("authority db") && line.contains("Microsoft Corporation UEFI CA 2011"))
    );
    let new = changes.events.iter().filter(|event| event.new).count();
    let gone = changes.events.len() - new;
    assert_eq!(on.events().count() - off.events().count(), new - gone);
    assert!(changes.events.iter().any(|event| event.words().contains("SecureBoot = 01")));
}
