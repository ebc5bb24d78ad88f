//! The story itself: each step is a command that a user could type.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::narrate::{self, Narrator};
use super::theft::{self, Loot};
use countersign_supervisor::exit::Stage as Exit;

use crate::process::Service;
use crate::site::{GOOD_IMA, GOOD_LOG, SECRET, Site};
use crate::tap::Tap;

/// What the demo is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the programs.
    pub bin_dir: PathBuf,
    /// Folder for everything that the demo makes; emptied first.
    pub dir: PathBuf,
}

/// The recorded machine with Secure Boot off.
const OTHER_LOG: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/binary_bios_measurements");
const OTHER_IMA: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/ima_binary");

/// TPM_RC_SIGNATURE of PolicySigned's fifth parameter: a verdict for another session.
const SIGNATURE: u32 = 0x5DB;
/// TPM_RC_POLICY of PolicyCounterTimer: an approval for another boot.
const POLICY: u32 = 0x126;

/// Everything that the steps share.
struct Stage {
    site: Site,
    tell: Narrator,
}

/// Tells the whole story.
///
/// # Errors
/// A step did not end as it must; the error says which command and what it printed.
pub fn tell(options: &Options) -> anyhow::Result<()> {
    let site = Site::new(&options.bin_dir, &options.dir, narrate::command)?.end_in_order()?;
    let mut stage = Stage { tell: Narrator::new(site.dir().to_owned()), site };

    // Whatever ends the story, the TPM is ended last.
    let result = with_host(&mut stage);
    let destroyed = stage.site.destroy_host();
    result?;
    destroyed?;
    let evidence = [
        ("evidence of the run", stage.site.arg("run.bundle")),
        ("trust anchor", stage.site.arg("trust.bundle")),
        ("everything else", stage.site.dir().display().to_string()),
    ];
    stage.tell.summary(&evidence)
}

fn with_host(stage: &mut Stage) -> anyhow::Result<()> {
    make_host(stage)?;
    let mut service = start_verifier(stage)?;
    enrol(stage)?;
    protect(stage)?;
    let verdict = run(stage)?;
    denied_other_boot(stage)?;
    denied_by_policy(stage)?;
    denied_to_thief(stage)?;
    denied_flipped_byte(stage)?;
    audit(stage, &verdict)?;
    service.stop();
    Ok(())
}

fn make_host(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Make a TPM and boot it")?;
    stage.site.make_host()?;
    stage.tell.done("swtpm with EK certificates from a local CA, PCRs of a recorded Secure Boot start")
}

fn start_verifier(stage: &mut Stage) -> anyhow::Result<Service> {
    stage.tell.step("Start a verifier that trusts that CA and that boot")?;
    stage.site.make_verifier()?;
    let (service, ended) = stage.site.serve()?;
    stage.tell.done(&ended.stdout)?;
    Ok(service)
}

fn enrol(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Enrol the host")?;
    stage.site.enrol()?;
    stage.tell.done("EK chain checked, AK proved by credential activation, first verdict: allow")
}

fn protect(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Make a root file system and the owner's keys")?;
    stage.site.make_owner()?;
    stage.tell.done("busybox and /secret.txt; an Ed25519 signing key, an RSA escrow key")?;

    stage.tell.step("Encrypt it, with its policy inside")?;
    stage.site.protect()?;
    stage.tell.done("app.sif: LUKS2 payload, Merkle tree, policy and signature; the secret is not readable in it")?;

    stage.tell.step("Register it with the verifier")?;
    stage.site.register()?;
    stage.tell.done("the verifier holds the key, encrypted, and the policy's digest")
}

/// Runs the image; returns the id of the verdict.
fn run(stage: &mut Stage) -> anyhow::Result<String> {
    stage.tell.step("Run it: TPM and policy agree")?;
    let bundle = stage.site.arg("run.bundle");
    let ended = stage.site.supervisor_run("app.sif", &["--bundle", &bundle])?;
    stage.tell.command(&ended)?;
    if ended.code != Some(0) || ended.stdout.trim() != SECRET {
        bail!("`{}` ended with {:?}:\n{}{}", ended.line, ended.code, ended.stdout, ended.stderr);
    }
    stage.tell.say(ended.stdout.trim())?;
    stage.tell.done("the TPM unsealed the key, the workload printed the secret")?;
    Ok(bundle)
}

fn denied_other_boot(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: the host booted with Secure Boot off")?;
    stage.site.reboot(OTHER_LOG, OTHER_IMA)?;
    let ended = stage.site.supervisor_run("app.sif", &[])?;
    stage.tell.denial(&ended, Exit::Denied, &["secure-boot", "error:", "hint:"])?;
    stage.site.reboot(GOOD_LOG, GOOD_IMA)?;
    let ended = stage.site.supervisor_run("app.sif", &[])?;
    stage.tell.command(&ended)?;
    if ended.code != Some(0) {
        bail!("the host booted well again, but:\n{}{}", ended.stdout, ended.stderr);
    }
    stage.tell.done("refused; booted as before it runs again")
}

fn denied_by_policy(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: the policy no longer accepts this boot")?;
    // Another set stays: the denial then names what was measured and what would be accepted.
    let other = stage.site.arg("other.eventlog");
    fs::write(&other, OTHER_LOG)?;
    stage.site.verifier(&["reference", "add", "other", "--eventlog", &other])?;
    stage.site.verifier(&["reference", "revoke", "golden"])?;
    let ended = stage.site.supervisor_run("app.sif", &[])?;
    stage.tell.denial(&ended, Exit::Denied, &["boot-chain", "where", "measured", "accepted", "error:", "hint:"])?;
    let log = stage.site.arg("host/binary_bios_measurements");
    stage.site.verifier(&["reference", "add", "golden", "--eventlog", &log])?;
    stage.site.verifier(&["reference", "revoke", "other"])?;
    stage.tell.done("refused")
}

fn denied_to_thief(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: a thief replays a stolen import blob, approval and verdict")?;
    let config = stage.site.path("host/attest.toml");
    let tap = Tap::new(&stage.site.path("host"), &theft::load(&config)?.tpm)?;
    // What an earlier import left would save the import that the thief wants to see.
    fs::remove_dir_all(stage.site.path("host/state/imports"))?;
    let ended = stage.site.supervisor_run("app.sif", &["--tpm", &tap.address])?;
    stage.tell.command(&ended)?;
    let loot = Loot::of(&tap.seen()).with_context(|| format!("{}{}", ended.stdout, ended.stderr))?;
    stage.tell.say("during this run a thief kept everything that went to the TPM; now he plays it back:")?;
    stage.tell.say(&format!("same boot, a session of his own: {}", loot.replay(&config, SIGNATURE)?))?;
    stage.site.reboot(GOOD_LOG, GOOD_IMA)?;
    stage.tell.say(&format!("after a TPM reset, same PCRs: {}", loot.replay(&config, POLICY)?))?;
    stage.tell.done("refused by the TPM itself, before and after a reset")
}

fn denied_flipped_byte(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: one byte of the image flipped")?;
    let mut image = fs::read(stage.site.path("app.sif"))?;
    // The partition begins with a LUKS2 header of 16 MiB; what follows is the encrypted file system.
    let at = image.windows(6).position(|w| w == b"LUKS\xBA\xBE").context("no LUKS header")?;
    let at = at.checked_add(16 * 1024 * 1024 + 5).context("offset")?;
    *image.get_mut(at).context("the image is too short")? ^= 1;
    fs::write(stage.site.path("tampered.sif"), image)?;
    let ended = stage.site.supervisor_run("tampered.sif", &[])?;
    stage.tell.denial(&ended, Exit::Integrity, &["block", "error:", "hint:"])?;
    stage.tell.done("refused: no tampered block is ever decrypted")
}

fn audit(stage: &mut Stage, bundle: &str) -> anyhow::Result<()> {
    stage.tell.step("Re-check the run offline")?;
    let trust = stage.site.arg("trust.bundle");
    fs::copy(stage.site.path("verifier/trust.bundle"), &trust)?;
    let ended = stage.site.ok("verifier", &["check", "bundle", bundle, "--trust", &trust])?;
    stage.tell.say(&ended.stdout)?;
    stage.tell.done("the same verdict, recomputed without network, TPM or database")
}
