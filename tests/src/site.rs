//! One host with a software TPM, one verifier, one image owner: what the demo shows and the benches measure, set up with the real programs
//! as a user would.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::process::{Ended, Service, Tools};

/// A host that booted with Secure Boot, Microsoft's keys, shim and GRUB.
pub const GOOD_LOG: &[u8] = include_bytes!("../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
/// Its IMA list.
pub const GOOD_IMA: &[u8] = include_bytes!("../../fixtures/sb-ms-shim-grub212/ima_binary");

/// What `/secret.txt` in the image says.
pub const SECRET: &str = "the crown jewels: 7 green diamonds, in the tin behind the flour";

const HOST: &str = "demo-host";

/// Is told of every command that a site ran: the site's folder and how the command ended.
pub type Watcher = fn(&Path, &Ended) -> anyhow::Result<()>;

/// A folder with a TPM, a verifier, an owner's keys and an image in it, and the programs that act on them.
#[derive(Debug)]
pub struct Site {
    tools: Tools,
    dir: PathBuf,
    watcher: Watcher,
    signals: Option<OwnedFd>,
}

impl Site {
    /// A site in an empty folder; one that was a site's is emptied, any other that has content is refused.
    ///
    /// # Errors
    /// There are no programs in `bin_dir`, or the folder cannot be made.
    pub fn new(bin_dir: &Path, dir: &Path, watcher: Watcher) -> anyhow::Result<Self> {
        fresh_folder(dir)?;
        Ok(Self { tools: Tools::new(bin_dir)?, dir: dir.canonicalize()?, watcher, signals: None })
    }

    /// From here on SIGHUP, SIGINT and SIGTERM end nothing at once: the next command is refused instead, so that whoever started something
    /// gets to end it. Once in a process.
    ///
    /// # Errors
    /// The handlers cannot be set.
    pub fn end_in_order(mut self) -> anyhow::Result<Self> {
        self.signals = Some(countersign_sys::signals(&[1, 2, 15])?);
        Ok(self)
    }

    /// Refuses to go on after a signal.
    fn go_on(&self) -> anyhow::Result<()> {
        let mut number = [0];
        let Some(signals) = &self.signals else { return Ok(()) };
        if rustix::io::read(signals, &mut number).is_ok_and(|n| n > 0) {
            bail!("ended by signal {}", number[0]);
        }
        Ok(())
    }

    /// The programs.
    #[must_use]
    pub const fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The site's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of the site.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// As [`Site::path`], for a command line.
    #[must_use]
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// It did not.
    pub fn ok(&self, program: &str, args: &[&str]) -> anyhow::Result<Ended> {
        self.go_on()?;
        let ended = self.tools.ok(program, args);
        // A terminal's signal has ended the command too: that is why it failed.
        self.go_on()?;
        let ended = ended?;
        (self.watcher)(&self.dir, &ended)?;
        Ok(ended)
    }

    fn tpm_sim(&self, args: &[&str]) -> anyhow::Result<Ended> {
        let state = self.arg("tpm");
        let mut all = vec!["--state-dir", &state];
        all.extend(args);
        self.ok("tpm-sim", &all)
    }

    /// Runs a command of the verifier's operator.
    ///
    /// # Errors
    /// It did not succeed.
    pub fn verifier(&self, args: &[&str]) -> anyhow::Result<Ended> {
        let state = self.arg("verifier");
        let mut all = vec!["--state-dir", &state];
        all.extend(args);
        self.ok("verifier", &all)
    }

    /// A new TPM with the recorded boot in its PCRs.
    ///
    /// # Errors
    /// A command failed.
    pub fn make_host(&self) -> anyhow::Result<()> {
        self.tpm_sim(&["create", HOST])?;
        self.tpm_sim(&["start", HOST])?;
        fs::create_dir(self.path("host"))?;
        self.boot(GOOD_LOG, GOOD_IMA)
    }

    /// Ends the TPM and removes it; nothing happens where there is none.
    ///
    /// # Errors
    /// The command could not be started.
    pub fn destroy_host(&self) -> anyhow::Result<()> {
        self.tools.run("tpm-sim", &["--state-dir", &self.arg("tpm"), "destroy", HOST])?;
        Ok(())
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

    /// Resets the TPM and boots what this log recorded.
    ///
    /// # Errors
    /// A command failed.
    pub fn reboot(&self, log: &[u8], ima: &[u8]) -> anyhow::Result<()> {
        self.tpm_sim(&["reset", HOST])?;
        self.boot(log, ima)
    }

    /// Makes a verifier that trusts the TPM's CA and the recorded boot, on a free port of the loopback.
    ///
    /// # Errors
    /// A command failed.
    pub fn make_verifier(&self) -> anyhow::Result<()> {
        self.verifier(&["init", "--dev", "--url", "https://127.0.0.1:0"])?;
        let ca = self.tools.ok("tpm-sim", &["--state-dir", &self.arg("tpm"), "ca", HOST])?.stdout;
        self.verifier(&["ek-root", "add", ca.trim()])?;
        let log = self.arg("host/binary_bios_measurements");
        self.verifier(&["reference", "add", "golden", "--eventlog", &log])?;
        Ok(())
    }

    /// Starts the verifier; it is ready then.
    ///
    /// # Errors
    /// It did not become ready.
    pub fn serve(&self) -> anyhow::Result<(Service, Ended)> {
        let state = self.arg("verifier");
        let args = ["--state-dir", &state, "serve"];
        let (service, ended) = self.tools.serve("verifier", &args, &self.path("verifier.log"))?;
        (self.watcher)(&self.dir, &ended)?;
        Ok((service, ended))
    }

    /// Enrols the host with a join token, and attests once.
    ///
    /// # Errors
    /// A command failed.
    pub fn enrol(&self) -> anyhow::Result<()> {
        let token = self.verifier(&["token", "new"])?.stdout;
        private_file(&self.path("host/join.token"), token.as_bytes())?;
        let tpm = self.tools.ok("tpm-sim", &["--state-dir", &self.arg("tpm"), "start", HOST])?.stdout;
        let config = format!(
            "tpm = {:?}\nstate_dir = {:?}\nevent_log = {:?}\nima_log = {:?}\nsystemd_log = \"\"\n",
            tpm.trim(),
            self.arg("host/state"),
            self.arg("host/binary_bios_measurements"),
            self.arg("host/binary_runtime_measurements"),
        );
        fs::write(self.path("host/attest.toml"), config)?;
        let config = self.arg("host/attest.toml");
        let token = self.arg("host/join.token");
        self.ok("attest", &["--config", &config, "enroll", "--token", &token])?;
        self.ok("attest", &["--config", &config, "now"])?;
        Ok(())
    }

    /// A root file system with a secret in it, and the owner's keys.
    ///
    /// # Errors
    /// A command failed, or there is no busybox.
    pub fn make_owner(&self) -> anyhow::Result<()> {
        make_rootfs(&self.path("rootfs"))?;
        fs::create_dir(self.path("owner"))?;
        let key = |name: &str| self.arg(&format!("owner/{name}"));
        self.ok("openssl", &["genpkey", "-algorithm", "ed25519", "-out", &key("owner.pem")])?;
        self.ok("openssl", &["pkey", "-in", &key("owner.pem"), "-pubout", "-out", &key("owner.pub.pem")])?;
        self.ok("openssl", &["genrsa", "-traditional", "-out", &key("escrow.pem"), "3072"])?;
        self.ok("openssl", &["rsa", "-in", &key("escrow.pem"), "-RSAPublicKey_out", "-out", &key("escrow.pub.pem")])?;
        for name in ["owner.pem", "escrow.pem"] {
            fs::set_permissions(self.path(&format!("owner/{name}")), fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// Protects the root file system as `app.sif`.
    ///
    /// # Errors
    /// The command failed, or left the secret readable.
    pub fn protect(&self) -> anyhow::Result<()> {
        let (rootfs, image) = (self.arg("rootfs"), self.arg("app.sif"));
        let (sign, escrow) = (self.arg("owner/owner.pem"), self.arg("owner/escrow.pub.pem"));
        self.ok("supervisor", &["protect", &rootfs, "--sign", &sign, "--escrow", &escrow, "-o", &image])?;
        let encrypted = fs::read(self.path("app.sif"))?;
        if encrypted.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) {
            bail!("the secret stands in clear text in app.sif");
        }
        Ok(())
    }

    /// Registers `app.sif` with the verifier.
    ///
    /// # Errors
    /// The command failed.
    pub fn register(&self) -> anyhow::Result<()> {
        self.register_image(&self.arg("app.sif"))
    }

    fn register_image(&self, image: &str) -> anyhow::Result<()> {
        let (signer, escrow) = (self.arg("owner/owner.pub.pem"), self.arg("owner/escrow.pem"));
        let (token, ca) = (self.arg("verifier/operator.token"), self.arg("verifier/ca.pem"));
        let url = fs::read_to_string(self.path("verifier/url")).context("the verifier's address")?;
        let url = url.trim();
        let args = ["register", image, "--signer", &signer, "--escrow-key", &escrow, "--url", url];
        self.ok("supervisor", &[&args[..], &["--token-file", &token, "--ca", &ca]].concat())?;
        Ok(())
    }

    /// Makes and registers another image of the same files, with the workload policy of a folder.
    ///
    /// # Errors
    /// A command failed.
    pub fn protect_as(&self, image: &str, policy: &str) -> anyhow::Result<()> {
        let (rootfs, sign, escrow) =
            (self.arg("rootfs"), self.arg("owner/owner.pem"), self.arg("owner/escrow.pub.pem"));
        let args =
            ["protect", &rootfs, "--sign", &sign, "--escrow", &escrow, "--policy", policy, "-o", image, "--force"];
        self.ok("supervisor", &args)?;
        self.register_image(image)
    }

    /// Protects a squashfs as an image, both anywhere, and registers it.
    ///
    /// # Errors
    /// A command failed.
    pub fn protect_from(&self, squashfs: &str, image: &str) -> anyhow::Result<()> {
        let (sign, escrow) = (self.arg("owner/owner.pem"), self.arg("owner/escrow.pub.pem"));
        self.ok("supervisor", &["protect", squashfs, "--sign", &sign, "--escrow", &escrow, "-o", image, "--force"])?;
        self.register_image(image)
    }

    /// Arguments of `supervisor` that run an image of the site, `cat /secret.txt` in it.
    #[must_use]
    pub fn run_arguments(&self, image: &str, more: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = ["run", "--config"].map(str::to_owned).to_vec();
        args.extend([self.arg("host/attest.toml"), "--signer".to_owned(), self.arg("owner/owner.pub.pem")]);
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args.extend([self.arg(image), "cat".to_owned(), "/secret.txt".to_owned()]);
        args
    }

    /// Runs an image; the watcher is not told.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn supervisor_run(&self, image: &str, more: &[&str]) -> anyhow::Result<Ended> {
        self.go_on()?;
        self.tools.run("supervisor", &self.run_arguments(image, more))
    }
}

/// An empty folder; one that was a site's is emptied, any other that has content is refused.
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
    fs::write(mark, "made by the demo or the benches, and emptied by them\n")?;
    Ok(())
}

fn private_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, content)?;
    Ok(())
}

/// A static busybox with the few names that are called, and a secret.
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
