//! The story itself: each step is a command that a user could type.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::narrate::Narrator;
use super::theft::Tap;
use countersign_supervisor::exit::Stage as Exit;

use crate::process::{Ended, Service, Tools};

/// What the demo is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the programs.
    pub bin_dir: PathBuf,
    /// Folder for everything that the demo makes; emptied first.
    pub dir: PathBuf,
}

/// A host that booted with Secure Boot, Microsoft's keys, shim and GRUB.
const GOOD_LOG: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
const GOOD_IMA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ima_binary");
/// The same machine with Secure Boot off.
const OTHER_LOG: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/binary_bios_measurements");
const OTHER_IMA: &[u8] = include_bytes!("../../../fixtures/nosb-shim-grub212/ima_binary");

const SECRET: &str = "the crown jewels: 7 green diamonds, in the tin behind the flour";
const HOST: &str = "demo-host";

/// TPM_RC_SIGNATURE of PolicySigned's fifth parameter: a verdict for another session.
const SIGNATURE: u32 = 0x5DB;
/// TPM_RC_POLICY of PolicyCounterTimer: an approval for another boot.
const POLICY: u32 = 0x126;

/// Everything that the steps share.
struct Stage {
    tools: Tools,
    dir: PathBuf,
    tell: Narrator,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Runs a command that must succeed, and shows it.
    fn ok(&self, program: &str, args: &[&str]) -> anyhow::Result<Ended> {
        let ended = self.tools.ok(program, args)?;
        self.tell.command(&ended)?;
        Ok(ended)
    }

    fn tpm_sim(&self, args: &[&str]) -> anyhow::Result<Ended> {
        let state = self.arg("tpm");
        let mut all = vec!["--state-dir", &state];
        all.extend(args);
        self.ok("tpm-sim", &all)
    }

    fn verifier(&self, args: &[&str]) -> anyhow::Result<Ended> {
        let state = self.arg("verifier");
        let mut all = vec!["--state-dir", &state];
        all.extend(args);
        self.ok("verifier", &all)
    }

    /// Puts a recorded boot in place: the logs where the host looks for them, the PCRs into its TPM.
    fn boot(&self, log: &[u8], ima: &[u8]) -> anyhow::Result<()> {
        fs::write(self.path("host/binary_bios_measurements"), log)?;
        fs::write(self.path("host/binary_runtime_measurements"), ima)?;
        let log = self.arg("host/binary_bios_measurements");
        let ima = self.arg("host/binary_runtime_measurements");
        self.tpm_sim(&["replay", HOST, "--eventlog", &log, "--ima", &ima])?;
        Ok(())
    }

    fn reboot(&self, log: &[u8], ima: &[u8]) -> anyhow::Result<()> {
        self.tpm_sim(&["reset", HOST])?;
        self.boot(log, ima)
    }

    fn supervisor_run(&self, image: &str, more: &[&str]) -> anyhow::Result<Ended> {
        let config = self.arg("host/attest.toml");
        let image = self.arg(image);
        let signer = self.arg("owner/owner.pub.pem");
        let mut args = vec!["run", "--config", &config, "--signer", &signer];
        args.extend(more);
        args.extend([image.as_str(), "cat", "/secret.txt"]);
        self.tools.run("supervisor", &args)
    }
}

/// Tells the whole story.
///
/// # Errors
/// A step did not end as it must; the error says which command and what it printed.
pub fn tell(options: &Options) -> anyhow::Result<()> {
    fresh_folder(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    let mut stage = Stage { tools: Tools::new(&options.bin_dir)?, tell: Narrator::new(dir.clone()), dir };

    make_host(&mut stage)?;
    // Declared after the TPM exists and dropped before it is destroyed.
    let result = with_host(&mut stage);
    let destroyed = stage.tools.run("tpm-sim", &["--state-dir", &stage.arg("tpm"), "destroy", HOST]);
    result?;
    destroyed?;
    let evidence = [
        ("evidence of the run", stage.arg("run.bundle")),
        ("trust anchor", stage.arg("trust.bundle")),
        ("everything else", stage.dir.display().to_string()),
    ];
    stage.tell.summary(&evidence)
}

fn with_host(stage: &mut Stage) -> anyhow::Result<()> {
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
    stage.tpm_sim(&["create", HOST])?;
    stage.tpm_sim(&["start", HOST])?;
    fs::create_dir(stage.path("host"))?;
    stage.boot(GOOD_LOG, GOOD_IMA)?;
    stage.tell.done("swtpm with EK certificates from a local CA, PCRs of a recorded Secure Boot start")
}

fn start_verifier(stage: &mut Stage) -> anyhow::Result<Service> {
    stage.tell.step("Start a verifier that trusts that CA and that boot")?;
    stage.verifier(&["init", "--dev", "--url", "https://127.0.0.1:0"])?;
    let ca = stage.tools.ok("tpm-sim", &["--state-dir", &stage.arg("tpm"), "ca", HOST])?.stdout;
    stage.verifier(&["ek-root", "add", ca.trim()])?;
    let log = stage.arg("host/binary_bios_measurements");
    stage.verifier(&["reference", "add", "golden", "--eventlog", &log])?;
    let state = stage.arg("verifier");
    let args = ["--state-dir", &state, "serve"];
    let (service, ended) = stage.tools.serve("verifier", &args, &stage.path("verifier.log"))?;
    stage.tell.command(&ended)?;
    stage.tell.done(&ended.stdout)?;
    Ok(service)
}

fn enrol(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Enrol the host")?;
    let token = stage.verifier(&["token", "new"])?.stdout;
    private_file(&stage.path("host/join.token"), token.as_bytes())?;
    let tpm = stage.tools.ok("tpm-sim", &["--state-dir", &stage.arg("tpm"), "start", HOST])?.stdout;
    let config = format!(
        "tpm = {:?}\nstate_dir = {:?}\nevent_log = {:?}\nima_log = {:?}\nsystemd_log = \"\"\n",
        tpm.trim(),
        stage.arg("host/state"),
        stage.arg("host/binary_bios_measurements"),
        stage.arg("host/binary_runtime_measurements"),
    );
    fs::write(stage.path("host/attest.toml"), config)?;
    let config = stage.arg("host/attest.toml");
    let token = stage.arg("host/join.token");
    stage.ok("attest", &["--config", &config, "enroll", "--token", &token])?;
    stage.ok("attest", &["--config", &config, "now"])?;
    stage.tell.done("EK chain checked, AK proved by credential activation, first verdict: allow")
}

fn protect(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Make a root file system and the owner's keys")?;
    make_rootfs(&stage.path("rootfs"))?;
    fs::create_dir(stage.path("owner"))?;
    let key = |name: &str| stage.arg(&format!("owner/{name}"));
    stage.ok("openssl", &["genpkey", "-algorithm", "ed25519", "-out", &key("owner.pem")])?;
    stage.ok("openssl", &["pkey", "-in", &key("owner.pem"), "-pubout", "-out", &key("owner.pub.pem")])?;
    stage.ok("openssl", &["genrsa", "-traditional", "-out", &key("escrow.pem"), "3072"])?;
    stage.ok("openssl", &["rsa", "-in", &key("escrow.pem"), "-RSAPublicKey_out", "-out", &key("escrow.pub.pem")])?;
    for name in ["owner.pem", "escrow.pem"] {
        fs::set_permissions(stage.path(&format!("owner/{name}")), fs::Permissions::from_mode(0o600))?;
    }
    stage.tell.done("busybox and /secret.txt; an Ed25519 signing key, an RSA escrow key")?;

    stage.tell.step("Encrypt it, with its policy inside")?;
    let (rootfs, image) = (stage.arg("rootfs"), stage.arg("app.sif"));
    let (sign, escrow) = (stage.arg("owner/owner.pem"), stage.arg("owner/escrow.pub.pem"));
    stage.ok("supervisor", &["protect", &rootfs, "--sign", &sign, "--escrow", &escrow, "-o", &image])?;
    let encrypted = fs::read(stage.path("app.sif"))?;
    if encrypted.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) {
        bail!("the secret stands in clear text in app.sif");
    }
    stage.tell.done("app.sif: LUKS2 payload, Merkle tree, policy and signature; the secret is not readable in it")?;

    stage.tell.step("Register it with the verifier")?;
    let signer = stage.arg("owner/owner.pub.pem");
    let escrow = stage.arg("owner/escrow.pem");
    let (token, ca) = (stage.arg("verifier/operator.token"), stage.arg("verifier/ca.pem"));
    let url = fs::read_to_string(stage.path("verifier/url")).context("the verifier's address")?;
    let url = url.trim();
    let args = ["register", &image, "--signer", &signer, "--escrow-key", &escrow, "--url", url];
    stage.ok("supervisor", &[&args[..], &["--token-file", &token, "--ca", &ca]].concat())?;
    stage.tell.done("the verifier holds the key, encrypted, and the policy's digest")
}

/// Runs the image; returns the id of the verdict.
fn run(stage: &mut Stage) -> anyhow::Result<String> {
    stage.tell.step("Run it: TPM and policy agree")?;
    let bundle = stage.arg("run.bundle");
    let ended = stage.supervisor_run("app.sif", &["--bundle", &bundle])?;
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
    stage.reboot(OTHER_LOG, OTHER_IMA)?;
    let ended = stage.supervisor_run("app.sif", &[])?;
    stage.tell.denial(&ended, Exit::Denied, &["secure-boot", "error:", "hint:"])?;
    stage.reboot(GOOD_LOG, GOOD_IMA)?;
    let ended = stage.supervisor_run("app.sif", &[])?;
    stage.tell.command(&ended)?;
    if ended.code != Some(0) {
        bail!("the host booted well again, but:\n{}{}", ended.stdout, ended.stderr);
    }
    stage.tell.done("refused; booted as before it runs again")
}

fn denied_by_policy(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: the policy no longer accepts this boot")?;
    stage.verifier(&["reference", "revoke", "golden"])?;
    let ended = stage.supervisor_run("app.sif", &[])?;
    stage.tell.denial(&ended, Exit::Denied, &["reference", "error:", "hint:"])?;
    let log = stage.arg("host/binary_bios_measurements");
    stage.verifier(&["reference", "add", "golden", "--eventlog", &log])?;
    stage.tell.done("refused")
}

fn denied_to_thief(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: a thief replays a stolen import blob, approval and verdict")?;
    let config = stage.path("host/attest.toml");
    let tap = Tap::new(&stage.path("host"), &config)?;
    // What an earlier import left would save the import that the thief wants to see.
    fs::remove_dir_all(stage.path("host/state/imports"))?;
    let ended = stage.supervisor_run("app.sif", &["--tpm", &tap.address])?;
    stage.tell.command(&ended)?;
    let loot = tap.loot().with_context(|| format!("{}{}", ended.stdout, ended.stderr))?;
    stage.tell.say("during this run a thief kept everything that went to the TPM; now he plays it back:")?;
    stage.tell.say(&format!("same boot, a session of his own: {}", loot.replay(&config, SIGNATURE)?))?;
    stage.reboot(GOOD_LOG, GOOD_IMA)?;
    stage.tell.say(&format!("after a TPM reset, same PCRs: {}", loot.replay(&config, POLICY)?))?;
    stage.tell.done("refused by the TPM itself, before and after a reset")
}

fn denied_flipped_byte(stage: &mut Stage) -> anyhow::Result<()> {
    stage.tell.step("Denied: one byte of the image flipped")?;
    let mut image = fs::read(stage.path("app.sif"))?;
    // The partition begins with a LUKS2 header of 16 MiB; what follows is the encrypted file system.
    let at = image.windows(6).position(|w| w == b"LUKS\xBA\xBE").context("no LUKS header")?;
    let at = at.checked_add(16 * 1024 * 1024 + 5).context("offset")?;
    *image.get_mut(at).context("the image is too short")? ^= 1;
    fs::write(stage.path("tampered.sif"), image)?;
    let ended = stage.supervisor_run("tampered.sif", &[])?;
    stage.tell.denial(&ended, Exit::Integrity, &["block", "error:", "hint:"])?;
    stage.tell.done("refused: no tampered block is ever decrypted")
}

fn audit(stage: &mut Stage, bundle: &str) -> anyhow::Result<()> {
    stage.tell.step("Re-check the run offline")?;
    let trust = stage.arg("trust.bundle");
    fs::copy(stage.path("verifier/trust.bundle"), &trust)?;
    let ended = stage.ok("verifier", &["check", "bundle", bundle, "--trust", &trust])?;
    stage.tell.say(&ended.stdout)?;
    stage.tell.done("the same verdict, recomputed without network, TPM or database")
}

/// An empty folder; one that was the demo's is emptied, any other that has content is refused.
fn fresh_folder(dir: &Path) -> anyhow::Result<()> {
    let mark = dir.join(".countersign-demo");
    if dir.exists() && fs::read_dir(dir)?.next().is_some() {
        if !mark.exists() {
            bail!("{} has other files in it", dir.display());
        }
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    fs::write(mark, "made by the demo, and emptied by it\n")?;
    Ok(())
}

fn private_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, content)?;
    Ok(())
}

/// A static busybox with the few names that the demo calls, and a secret.
fn make_rootfs(dir: &Path) -> anyhow::Result<()> {
    for sub in ["bin", "dev", "proc", "tmp", "etc"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.exists());
    fs::copy(busybox.context("busybox is not installed (package busybox-static)")?, dir.join("bin/busybox"))?;
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for name in ["sh", "cat", "ls", "sleep", "echo"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(name))?;
    }
    fs::write(dir.join("secret.txt"), format!("{SECRET}\n"))?;
    Ok(())
}
