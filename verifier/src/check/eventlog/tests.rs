use super::*;

const LOG: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const PCRS: &str = include_str!("../../../../fixtures/sb-ms-shim-grub212/PCRS.json");
const IMA: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/ima_binary");

fn check(log: &[u8], pcrs: &str) -> Result<CheckedLog, CheckError> {
    check_eventlog(LogFiles { log, pcrs: pcrs.as_bytes(), ima: Some(IMA), ..LogFiles::default() })
}

/// PCRS.json with some of its entries.
fn only(keep: &[(&str, &[&str])]) -> String {
    let all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(PCRS).unwrap();
    let kept: BTreeMap<&str, BTreeMap<&str, &str>> = keep
        .iter()
        .map(|(bank, pcrs)| (*bank, pcrs.iter().map(|pcr| (*pcr, all[*bank][*pcr].as_str())).collect()))
        .collect();
    serde_json::to_string(&kept).unwrap()
}

#[test]
fn a_recorded_boot() {
    let checked = check(LOG, PCRS).unwrap();
    assert_eq!((checked.events, checked.secure_boot), (49, Some(true)));
    assert_eq!(serde_json::to_value(&checked.pcrs).unwrap(), serde_json::from_str::<serde_json::Value>(PCRS).unwrap());
    assert!(checked.facts.exit_boot_services.is_some());
    // Nothing is said of a PCR that was not listed.
    let some = check(LOG, &only(&[("sha256", &["0", "4"])])).unwrap();
    assert_eq!((some.secure_boot, some.facts.databases.len(), some.facts.applications.len()), (None, 0, 3));
    // The same log as canonical event log.
    let text = cel::write(&EventLog::parse(LOG).unwrap(), &[]);
    assert_eq!(check(text.as_bytes(), PCRS).unwrap(), checked);
}

#[test]
fn refusals_name_check_event_and_both_values() {
    let mut lie = LOG.to_vec();
    let name: Vec<u8> = "SecureBoot".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let at = lie.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    lie[at] = 0;
    let error = check(&lie, PCRS).unwrap_err();
    assert_eq!((error.code, error.check.as_str()), (code::LIE, "data"));
    assert_eq!(error.event.as_deref(), Some("event 4 (PCR 7, EV_EFI_VARIABLE_DRIVER_CONFIG)"));
    assert_eq!(error.want, "data that hashes to the event's digest");

    let error = check(LOG, &PCRS.replacen("\"0\"", "\"23\"", 1).replacen("\"23\"", "\"0\"", 2)).unwrap_err();
    assert_eq!(error.code, code::INPUT, "a PCR twice: {error:?}");

    let error = check(&LOG[..LOG.len() - 1], PCRS).unwrap_err();
    assert_eq!((error.code, error.check.as_str(), error.event.as_deref()), (code::FORMAT, "format", Some("event 48")));

    let log = EventLog::parse(LOG).unwrap();
    let error = check(&LOG[..log.events[40].offset], PCRS).unwrap_err();
    assert_eq!((error.code, error.check.as_str()), (code::REPLAY, "pcr"));
    assert!(error.event.unwrap().starts_with("PCR "));

    let error = check(LOG, "{\"sha512\": {\"0\": \"00\"}}").unwrap_err();
    assert_eq!(error.code, code::INPUT);
    let sha512 = format!("{{\"sha512\": {{\"0\": \"{}\"}}}}", "00".repeat(64));
    let error = check(LOG, &sha512).unwrap_err();
    assert_eq!((error.code, error.check.as_str()), (code::REPLAY, "bank"));
}

#[test]
fn registers_of_a_tdx_guest() {
    let rtmrs = |text: &str| Pcrs::parse(text.as_bytes()).map(|pcrs| (pcrs.rtmrs, pcrs.banks.len()));
    let zero = "00".repeat(48);
    assert_eq!(rtmrs(&format!("{{\"sha384\": {{\"rtmr0\": \"{zero}\", \"2\": \"{zero}\"}}}}")).unwrap(), (true, 1));
    assert!(
        rtmrs(&format!("{{\"sha384\": {{\"rtmr0\": \"{zero}\", \"1\": \"{zero}\"}}}}")).is_err(),
        "one register twice"
    );
    assert!(rtmrs(&format!("{{\"sha384\": {{\"rtmr4\": \"{zero}\"}}}}")).is_err());
    assert!(rtmrs(&format!("{{\"sha256\": {{\"rtmr0\": \"{}\"}}}}", "00".repeat(32))).is_err());
    let files = LogFiles { log: LOG, pcrs: PCRS.as_bytes(), ccel: Some(b"CCEL"), ..LogFiles::default() };
    let error = check_eventlog(files).unwrap_err();
    assert_eq!((error.code, error.check.as_str()), (code::FORMAT, "ccel"));
}
