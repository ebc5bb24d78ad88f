//! What the fuzz targets call, one function for each parser of the project. `cargo test` calls the same functions on the files in `regressions/`.
//!
//! A function takes any bytes. It panics when a parser breaks a promise: that what it read is written as it was, that two ways to read the
//! same thing agree, that a limit holds.

mod files;
mod ima;
mod logs;
mod oci;
mod programs;
mod tpm;
mod wire;

/// A target's function.
pub type Target = fn(&[u8]);

/// All targets by name: each has a file in `fuzz_targets/` and a folder in `regressions/`.
pub const TARGETS: [(&str, Target); 34] = [
    ("attest", tpm::attest),
    ("boot_diff", logs::boot_diff),
    ("ccel", logs::ccel),
    ("cel", logs::cel),
    ("dsse", wire::dsse),
    ("ek_certificate", tpm::ek_certificate),
    ("event_stream", wire::event_stream),
    ("eventlog", logs::eventlog),
    ("evidence", wire::evidence),
    ("explanation", wire::explanation),
    ("finding", wire::finding),
    ("ima_ascii", ima::ascii),
    ("ima_binary", ima::binary),
    ("ima_certificate", ima::certificate),
    ("ima_modsig", ima::modsig),
    ("ima_signature", ima::signature),
    ("join_token", programs::join_token),
    ("learn_deb", programs::learn_deb),
    ("learn_initrd", programs::learn_initrd),
    ("learn_rpm", programs::learn_rpm),
    ("learn_sif", programs::learn_sif),
    ("messages", wire::messages),
    ("oci", oci::oci),
    ("pcr_selection", tpm::pcr_selection),
    ("pcrs_json", programs::pcrs_json),
    ("policy_bundle", files::policy_bundle),
    ("public", tpm::public),
    ("reference_set", wire::reference_set),
    ("run_log", wire::run_log),
    ("sif", files::sif),
    ("sif_binding", files::sif_binding),
    ("signature", tpm::signature),
    ("systemd_log", logs::systemd_log),
    ("variable", logs::variable),
];

/// Runs a target.
///
/// # Panics
/// There is none of that name, or the target found something.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1(data);
}
