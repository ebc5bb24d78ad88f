//! What the tests share: a host with a recorded boot, a real verifier that knows it, an owner's keys and image, and the program.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod host;
pub(crate) mod processes;
pub(crate) mod secrets;
pub(crate) mod stalling;
pub(crate) mod watched;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_attest::{Config, Host, Overrides, token};
use countersign_sif::escrow::EscrowKey;
use countersign_sif::xts::VolumeKey;
use countersign_sif::{Image, dsse::SignerKey};
use countersign_tpm_sim::{Error, Options, Sim};
use countersign_verifier::admin::{self, Request};
use countersign_verifier::service::Service;
use countersign_verifier::store::Store;
use countersign_verifier::{config, keys, server};
use countersign_wire::runlog::{Event, RunLog};
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const BOOT: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/binary_bios_measurements");
pub(crate) const IMA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ima_binary");
pub(crate) const SECRET: &str = "the seventh secret\n";
pub(crate) const SUPERVISOR: &str = env!("CARGO_BIN_EXE_supervisor");

/// A workload policy that demands every flag of the runtime.
pub(crate) const DEMANDS_ALL: &str = r#"package countersign.workload

default verdict := {
	"allow": true,
	"reasons": [],
	"obligations": {"runtime_flags": ["net-none", "pid", "containall", "no-privs"]},
}
"#;

/// A shell's command that names the network interfaces.
pub(crate) const INTERFACES: &str =
    "while read name rest; do case $name in *:*) echo ${name%%:*};; esac; done < /proc/net/dev";

/// Whether containers can be started here; says aloud why not.
pub(crate) fn can_run() -> bool {
    let missing = ["swtpm", "squashfuse", "bwrap", "mksquashfs", "busybox"].into_iter().find(|name| !installed(name));
    if let Some(name) = missing {
        println!("skipped: {name} is not installed");
        return false;
    }
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        println!("skipped: /dev/fuse: {e}");
        return false;
    }
    if !Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: no user namespaces");
        return false;
    }
    true
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}

/// A program that runs a real Apptainer (`scripts/apptainer.sh build` makes one); `None`, said aloud, where there is none.
pub(crate) fn apptainer() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/apptainer.sh");
    let given = std::env::var_os("COUNTERSIGN_APPTAINER").map(PathBuf::from);
    let made = || {
        let out = Command::new(script).arg("path").output().ok()?;
        out.status.success().then(|| PathBuf::from(stdout(&out).trim()))
    };
    let found = given.or_else(made);
    if found.is_none() {
        println!("skipped: no Apptainer: scripts/apptainer.sh build");
    }
    found
}

/// A command as a user that does not exist.
pub(crate) fn as_nobody(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "--"]).arg(program);
    command
}

fn installed(name: &str) -> bool {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(name).exists())
}

/// A verifier in a thread of this process.
pub(crate) struct Verifier {
    pub(crate) dir: PathBuf,
    pub(crate) url: String,
    service: Service,
    runtime: tokio::runtime::Runtime,
}

impl Verifier {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        keys::create(dir).unwrap();
        let text = config::EXAMPLE
            .replace("https://127.0.0.1:7448", "https://127.0.0.1:0")
            .replace("dangerous_allow_simulated_hosts = false", "dangerous_allow_simulated_hosts = true");
        std::fs::write(dir.join("verifier.toml"), text).unwrap();
        keys::write_secret(&dir.join("operator.token"), b"operator\n").unwrap();
        let runtime = Self::runtime();
        runtime.block_on(Store::open(dir, true)).unwrap();
        Self::serve(dir, runtime)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    /// Serves a state folder that is there.
    fn serve(dir: &Path, runtime: tokio::runtime::Runtime) -> Self {
        let service = runtime.block_on(Service::open(dir)).unwrap();
        let (ready, announced) = mpsc::channel();
        let served = service.clone();
        runtime.spawn(async move {
            server::serve(served, |url| ready.send(url.to_owned()).unwrap()).await.unwrap();
        });
        let url = announced.recv_timeout(Duration::from_secs(120)).unwrap();
        Self { dir: dir.to_owned(), url, service, runtime }
    }

    pub(crate) fn ask(&self, request: Request) -> Value {
        self.runtime.block_on(admin::perform(&self.service, request, "test")).unwrap()
    }

    /// As [`Verifier::ask`]; what it refuses, in words.
    pub(crate) fn try_ask(&self, request: Request) -> Result<Value, String> {
        self.runtime.block_on(admin::perform(&self.service, request, "test")).map_err(|e| e.to_string())
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

/// An owner's keys and image, in a folder.
pub(crate) struct Owner {
    pub(crate) dir: PathBuf,
}

impl Owner {
    fn new(dir: PathBuf) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let signing = PKey::generate_ed25519().unwrap();
        let escrow = Rsa::generate(2048).unwrap();
        let owner = Self { dir };
        std::fs::write(owner.path("owner.pem"), signing.private_key_to_pem_pkcs8().unwrap()).unwrap();
        std::fs::write(owner.path("owner.pub.pem"), signing.public_key_to_pem().unwrap()).unwrap();
        std::fs::write(owner.path("escrow.pem"), escrow.private_key_to_pem().unwrap()).unwrap();
        std::fs::write(owner.path("escrow.pub.pem"), escrow.public_key_to_pem_pkcs1().unwrap()).unwrap();
        owner.make_rootfs();
        owner
    }

    /// Keys, a small root file system, and `app.sif` of it.
    pub(crate) fn with_image(dir: PathBuf) -> Self {
        let owner = Self::new(dir);
        let out = owner.protect(&owner.path("rootfs"), "app.sif", &[]);
        assert!(out.status.success(), "{}", stderr(&out));
        owner
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make_rootfs(&self) {
        let root = self.path("rootfs");
        for sub in ["bin", "dev", "proc", "tmp", "etc", "sys", "var/tmp", "data", "home", "root"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.exists()).unwrap();
        std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
        std::fs::set_permissions(root.join("bin/busybox"), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in [
            "sh", "cat", "ls", "sleep", "echo", "id", "touch", "grep", "mount", "ps", "readlink", "setsid", "env",
            "pwd", "kill", "hostname", "stty", "cp",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::write(root.join("secret.txt"), SECRET).unwrap();
        for name in ["passwd", "group"] {
            std::fs::write(root.join("etc").join(name), "").unwrap();
        }
        // Much that does not compress, read by nobody at the start.
        let mut big = vec![0; 4 << 20];
        openssl::rand::rand_bytes(&mut big).unwrap();
        std::fs::write(root.join("big"), big).unwrap();
    }

    pub(crate) fn protect(&self, input: &Path, output: &str, more: &[&str]) -> Output {
        let mut command = Command::new(SUPERVISOR);
        command.arg("protect").arg(input).arg("--sign").arg(self.path("owner.pem"));
        command.arg("--escrow").arg(self.path("escrow.pub.pem")).arg("-o").arg(self.path(output)).args(more);
        command.stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn register_command(&self, verifier: &Verifier, image: &str) -> Command {
        let mut command = self.register_by(verifier, image);
        command.arg("--escrow-key").arg(self.path("escrow.pem"));
        command
    }

    /// As [`Owner::register_command`], without saying what opens the escrow.
    fn register_by(&self, verifier: &Verifier, image: &str) -> Command {
        let mut command = Command::new(SUPERVISOR);
        command.arg("register").arg(self.path(image)).arg("--signer").arg(self.path("owner.pub.pem"));
        command.args(["--url", &verifier.url]);
        command
            .arg("--token-file")
            .arg(verifier.dir.join("operator.token"))
            .arg("--ca")
            .arg(verifier.dir.join("ca.pem"));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn register(&self, verifier: &Verifier, image: &str) {
        let out = self.register_command(verifier, image).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
    }

    pub(crate) fn image(&self, name: &str) -> Image {
        let signer = SignerKey::from_pem(&std::fs::read(self.path("owner.pub.pem")).unwrap()).unwrap();
        Image::open(&self.path(name), &[signer]).unwrap()
    }

    /// The volume key behind an escrow with a passphrase.
    pub(crate) fn volume_key_by(&self, name: &str, passphrase: &str) -> VolumeKey {
        let key = EscrowKey::Passphrase(passphrase.as_bytes().to_vec().into());
        self.image(name).open_escrow(&key).unwrap()
    }

    /// The volume key behind the escrow.
    pub(crate) fn volume_key(&self, name: &str) -> VolumeKey {
        let key = EscrowKey::from_pem(&std::fs::read(self.path("escrow.pem")).unwrap()).unwrap();
        self.image(name).open_escrow(&key).unwrap()
    }

    /// Where the encrypted file system is in an image, bytes.
    pub(crate) fn payload(&self, name: &str) -> std::ops::Range<u64> {
        let image = self.image(name);
        let payload = &image.binding().payload;
        image.partition_offset() + payload.payload_offset..image.partition_offset() + payload.partition_length
    }
}

/// A host with a TPM, a verifier that admitted it, an owner's registered image.
pub(crate) struct Scene {
    pub(crate) sim: Sim,
    pub(crate) verifier: Verifier,
    pub(crate) owner: Owner,
    pub(crate) dir: TempDir,
}

impl Scene {
    /// `None`, said aloud, where something that is needed is missing.
    pub(crate) fn new() -> Option<Self> {
        if !can_run() {
            return None;
        }
        let dir = TempDir::new().unwrap();
        let mut sim = match Sim::create(dir.path().join("tpm"), &Options::named("node-1")) {
            Err(Error::MissingTool(tool)) => {
                println!("skipped: {tool} is not installed");
                return None;
            }
            other => other.unwrap(),
        };
        sim.start().unwrap();
        sim.replay(BOOT, IMA).unwrap();
        std::fs::write(dir.path().join("boot"), BOOT).unwrap();
        std::fs::write(dir.path().join("ima"), IMA).unwrap();
        let verifier = Verifier::start(&dir.path().join("verifier"));
        let root = std::fs::read_to_string(sim.ca_pem().unwrap()).unwrap();
        let certificates: Vec<String> = root
            .split("-----BEGIN CERTIFICATE-----")
            .skip(1)
            .map(|pem| pem.split("-----END").next().unwrap().split_whitespace().collect())
            .collect();
        verifier.ask(Request::EkRootAdd { certificates, development: true });
        let eventlog = STANDARD.encode(BOOT);
        verifier.ask(Request::ReferenceAdd { name: "recorded".into(), eventlog, pcrs: Vec::new() });
        let owner = Owner::with_image(dir.path().join("owner"));
        owner.register(&verifier, "app.sif");
        let scene = Self { sim, verifier, owner, dir };
        scene.write_config("");
        let token = scene.verifier.ask(Request::TokenNew { uses: 1, ttl_s: 600, host: None });
        let token = token::parse(token["token"].as_str().unwrap()).unwrap();
        let config = Config::load(Some(&scene.path("attest.toml")), Overrides::default()).unwrap();
        Host::open(config).unwrap().enroll(&token, "node-1").unwrap();
        Some(scene)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The host's configuration, with more lines.
    pub(crate) fn write_config(&self, more: &str) {
        let text = format!(
            "tpm = {:?}\nstate_dir = {:?}\nevent_log = {:?}\nima_log = {:?}\nsystemd_log = \"\"\n",
            self.sim.tpm_arg(),
            self.path("host"),
            self.path("boot"),
            self.path("ima")
        );
        // A machine that runs all tests at once is slow.
        let deadline = if more.contains("deadline_s") { "" } else { "deadline_s = 120\n" };
        std::fs::write(self.path("attest.toml"), format!("{text}{deadline}{more}")).unwrap();
    }

    /// A registered image of the same files with this workload policy.
    pub(crate) fn with_policy(&self, name: &str, policy: &str) -> PathBuf {
        let folder = self.path(&format!("policy-{name}"));
        std::fs::create_dir_all(folder.join("countersign/workload")).unwrap();
        std::fs::write(folder.join("countersign/workload/workload.rego"), policy).unwrap();
        let (image, folder) = (format!("{name}.sif"), folder.display().to_string());
        let out = self.owner.protect(&self.owner.path("rootfs"), &image, &["--policy", &folder]);
        assert!(out.status.success(), "{}", stderr(&out));
        self.owner.register(&self.verifier, &image);
        self.owner.path(&image)
    }

    /// A registered image of the same files with this workload policy, whose escrow is a passphrase; and that one.
    pub(crate) fn with_passphrase(&self, image: &str, policy: &str) -> (PathBuf, String) {
        let passphrase = format!("correct horse {} battery staple", std::process::id());
        let (file, folder) = (self.owner.path("passphrase"), self.path("policy-passphrase"));
        std::fs::write(&file, &passphrase).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::create_dir_all(folder.join("countersign/workload")).unwrap();
        std::fs::write(folder.join("countersign/workload/workload.rego"), policy).unwrap();
        let mut command = Command::new(SUPERVISOR);
        command.arg("protect").arg(self.owner.path("rootfs")).arg("--sign").arg(self.owner.path("owner.pem"));
        command.arg("--escrow-passphrase-file").arg(&file).arg("--policy").arg(folder);
        let out = command.arg("-o").arg(self.owner.path(image)).stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        let mut command = self.owner.register_by(&self.verifier, image);
        let out = command.arg("--escrow-passphrase-file").arg(&file).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        (self.owner.path(image), passphrase)
    }

    /// As root: the same command by a user that does not exist, to whom everything of this scene is given.
    pub(crate) fn given_away(&self, command: &Command) -> Command {
        // The program where that user can get at it.
        let program = self.path("supervisor");
        std::fs::copy(SUPERVISOR, &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let chown = |options: &[&str], path: &Path| {
            assert!(Command::new("chown").args(options).arg("54321:54321").arg(path).status().unwrap().success());
        };
        chown(&["-R"], self.dir.path());
        self.sim.socket().ancestors().take(2).for_each(|path| chown(&[], path));
        let mut theirs = as_nobody(&program);
        theirs.args(command.get_args()).env("COUNTERSIGN_RUNTIME", "builtin");
        theirs.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        theirs
    }

    /// Ends the verifier and starts it again on its state folder, with the keys that are there now.
    pub(crate) fn restart_verifier(&mut self) {
        let again = Verifier::serve(&self.verifier.dir, Verifier::runtime());
        std::mem::replace(&mut self.verifier, again).stop();
        self.write_config(&format!("verifier = {:?}\n", self.verifier.url));
    }

    /// Another boot: the TPM was reset, nothing was measured.
    pub(crate) fn reset(&mut self) {
        self.sim.reset().unwrap();
    }

    /// A verb of the supervisor on an image, not started yet.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        verb: &str,
        options: &[&str],
        image: &Path,
        arguments: &[S],
    ) -> Command {
        let mut command = Command::new(SUPERVISOR);
        command.arg(verb).arg("--config").arg(self.path("attest.toml"));
        command.arg("--signer").arg(self.owner.path("owner.pub.pem")).args(options).arg(image).args(arguments);
        // Whatever else is installed here.
        command.env("COUNTERSIGN_RUNTIME", "builtin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command line in the image to its end.
    pub(crate) fn exec(&self, arguments: &[&str]) -> Output {
        self.command("exec", &[], &self.owner.path("app.sif"), arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// As [`Scene::exec`], with options.
    pub(crate) fn exec_with(&self, options: &[&str], arguments: &[&str]) -> Output {
        let image = self.owner.path("app.sif");
        self.command("exec", options, &image, arguments).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn shell(&self, script: &str) -> Output {
        self.exec(&["sh", "-c", script])
    }

    /// Starts a shell script that says `ready`, and waits until it has.
    pub(crate) fn started(&self, script: &str) -> Started {
        self.started_with(&[], script)
    }

    pub(crate) fn started_with(&self, options: &[&str], script: &str) -> Started {
        Started::new(self.command("exec", options, &self.owner.path("app.sif"), &["sh", "-c", script]))
    }

    /// What the host's run log says of runs, without their ids.
    pub(crate) fn runs(&self) -> Vec<String> {
        let log = RunLog::parse(&std::fs::read(self.path("host/run.log")).unwrap_or_default()).unwrap();
        let say = |event: &Event| match event {
            Event::Start { .. } => Some("start".to_owned()),
            Event::End { status, .. } => Some(status.clone()),
            Event::Receipt { .. }
            | Event::Finding { .. }
            | Event::Reaction { .. }
            | Event::Resume {}
            | Event::Other { .. } => None,
        };
        log.entries.iter().filter_map(|entry| say(&entry.event)).collect()
    }
}

/// A supervisor whose workload runs.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) stdout: BufReader<std::process::ChildStdout>,
}

impl Started {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut words = String::new();
            child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
            panic!("the workload did not start: {line}{words}");
        }
        Self { child, stdout }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// A line for the workload's standard input, which stays open.
    pub(crate) fn say(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for its end: exit code, further output, standard error.
    pub(crate) fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub(crate) fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Sends a message of one of the supervisor's processes, with descriptors.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let parts = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// The next message; nothing when the other end has closed.
pub(crate) fn receive(socket: &OwnedFd) -> Option<Value> {
    let mut bytes = vec![0; 1 << 17];
    let (n, _) = rustix::net::recv(socket, bytes.as_mut_slice(), rustix::net::RecvFlags::empty()).ok()?;
    (n > 0).then(|| serde_json::from_slice(&bytes[..n]).unwrap())
}

/// Exit code and words of a failure.
#[track_caller]
pub(crate) fn failed(out: &Output, code: i32, words: &[&str]) {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: ") || text.contains("\nerror: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

/// A shell with job control above a program (`"$@"` in its script), at a terminal of its own.
pub(crate) struct Desk {
    pub(crate) keyboard: File,
    lines: mpsc::Receiver<String>,
    child: Child,
}

impl Desk {
    /// `before` is what comes between the terminal's session and the shell: a change of user, for example.
    pub(crate) fn new(before: &[&str], script: &str, program: &Command) -> Self {
        let (keyboard, terminal) = terminal();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).args(before).args(["bash", "-mc", script, "bash"]);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            value.map(|value| command.env(name, value));
        }
        let again = || terminal.try_clone().unwrap();
        let child = command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
        let screen = BufReader::new(keyboard.try_clone().unwrap());
        let (shown, lines) = mpsc::channel();
        std::thread::spawn(move || {
            screen.lines().map_while(Result::ok).map_while(|line| shown.send(line).ok()).for_each(drop);
        });
        Self { keyboard, lines, child }
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for a line with these words. What is typed is echoed.
    #[track_caller]
    pub(crate) fn shows(&mut self, words: &str) {
        self.until(words);
    }

    /// As [`Desk::shows`]; all that is shown until then.
    #[track_caller]
    pub(crate) fn until(&mut self, words: &str) -> String {
        let mut seen = String::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(60)) {
            seen.push_str(&line);
            seen.push('\n');
            if line.contains(words) {
                return seen;
            }
        }
        panic!("{words:?} is not among\n{seen}");
    }

    /// All that is shown until the shell has ended.
    pub(crate) fn rest(mut self) -> String {
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.lines.recv_timeout(Duration::from_secs(1)).ok()).collect()
    }

    /// The supervisor that the shell has started.
    pub(crate) fn supervisor(&self) -> processes::Process {
        let family = processes::Family::of(i32::try_from(self.child.id()).unwrap());
        let named = |process: &processes::Process| {
            let program = process.command.split(' ').next().unwrap_or_default();
            program.ends_with("supervisor")
        };
        family.0.into_iter().find(named).unwrap()
    }

    /// Whether the terminal makes signals of keys itself.
    pub(crate) fn is_cooked(&self) -> bool {
        use rustix::termios::{LocalModes, tcgetattr};
        tcgetattr(&self.keyboard).unwrap().local_modes.contains(LocalModes::ISIG)
    }

    /// Waits until the shell has ended.
    pub(crate) fn end(mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let family = processes::Family::of(i32::try_from(self.child.id()).unwrap());
        let _ = self.child.kill();
        family.0.iter().for_each(processes::Process::kill_if_there);
        let _ = self.child.wait();
    }
}

/// A terminal of its own: what types at it and reads its screen, and the end for programs.
pub(crate) fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let keyboard = openpt(flags).unwrap();
    unlockpt(&keyboard).unwrap();
    let terminal = ioctl_tiocgptpeer(&keyboard, flags).unwrap();
    (File::from(keyboard), terminal)
}

/// Runs a command at a terminal of its own, where each question gets its answer; exit code, and what was on the screen.
pub(crate) fn typed(command: &Command, answers: &[(&str, &str)]) -> (Option<i32>, String) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
    let (mut keyboard, terminal) = terminal();
    tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let modes = || {
        let modes = tcgetattr(&terminal).unwrap();
        (modes.local_modes, modes.special_codes[SpecialCodeIndex::VEOL])
    };
    let before = modes();
    let mut all = Command::new("setsid");
    all.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
    all.env("NO_COLOR", "1").env("TERM", "xterm");
    let again = || terminal.try_clone().unwrap();
    let mut child = all.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    let mut screen = String::new();
    let mut part = [0; 4096];
    let mut answers = answers.iter().peekable();
    let (mut seen, mut ended) = (0, false);
    loop {
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if poll(&mut [PollFd::new(&keyboard, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
            let n = keyboard.read(&mut part).unwrap();
            screen.push_str(&String::from_utf8_lossy(&part[..n]));
        } else if ended {
            break;
        } else {
            // Its last words may have come since.
            ended = child.try_wait().unwrap().is_some();
        }
        if let Some((question, answer)) = answers.peek()
            && let Some(at) = screen[seen..].find(&format!("{question}: "))
        {
            seen += at + question.len();
            keyboard.write_all(answer.as_bytes()).unwrap();
            answers.next();
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(answers.next(), None, "not asked: {screen}");
    assert_eq!(modes(), before, "the terminal is as it was: {screen}");
    (status.code(), screen)
}
