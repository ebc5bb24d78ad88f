//! A host with a daemon and several users, who exist as numbers only.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::processes::{Family, signal};
use super::{SUPERVISOR, Scene, Started, is_root, stderr};

/// Users of the tests, who exist nowhere.
pub(crate) const ALICE: u32 = 54_331;
pub(crate) const BOB: u32 = 54_332;

static RANGES: AtomicU32 = AtomicU32::new(0);

/// A host with a daemon, and a folder that every user can read.
pub(crate) struct Host {
    pub(crate) scene: Scene,
    pub(crate) public: TempDir,
    pub(crate) uids: (u32, u32),
    pub(crate) daemon: Option<Daemon>,
}

pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) stderr: BufReader<ChildStderr>,
}

impl Daemon {
    /// Waits for a line of its log that has these words.
    pub(crate) fn says(&mut self, words: &str) -> String {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "the daemon has not said {words:?}");
        }
        line
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Host {
    /// `None`, said aloud, where it cannot be had.
    pub(crate) fn new(rules: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let scene = Scene::new()?;
        let public = TempDir::new().unwrap();
        fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let first = 2_000_000_000 + std::process::id() % 70_000 * 2000 + RANGES.fetch_add(1, Ordering::Relaxed) * 100;
        let host = Self { scene, public, uids: (first, first + 99), daemon: None };
        fs::copy(SUPERVISOR, host.path("supervisor")).unwrap();
        fs::set_permissions(host.path("supervisor"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(host.scene.owner.path("owner.pub.pem"), host.path("owner.pub.pem")).unwrap();
        host.image_of(ALICE, &host.scene.owner.path("app.sif"), "alice.sif");
        host.image_of(BOB, &host.scene.owner.path("app.sif"), "bob.sif");
        host.write_rules(rules);
        let mut host = host;
        host.start();
        Some(host)
    }

    /// With a rule for Alice that trusts the owner.
    pub(crate) fn of_alice() -> Option<Self> {
        Self::new(&rule("alice", ALICE, "runs = 4"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.public.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/supervisor.sock")
    }

    /// A copy that this user alone can read.
    pub(crate) fn image_of(&self, user: u32, from: &Path, name: &str) {
        fs::copy(from, self.path(name)).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::chown(self.path(name), Some(user), Some(user)).unwrap();
    }

    /// The rules' file; SIGNER stands for the owner's key.
    pub(crate) fn write_rules(&self, rules: &str) {
        let signer = self.path("owner.pub.pem").display().to_string();
        let text = format!(
            "[daemon]\nsocket = {:?}\nuids = \"{}-{}\"\n{}\n",
            self.socket(),
            self.uids.0,
            self.uids.1,
            rules.replace("SIGNER", &signer)
        );
        fs::write(self.path("supervisor.toml"), text).unwrap();
    }

    pub(crate) fn daemon_command(&self) -> Command {
        let mut command = Command::new(SUPERVISOR);
        command.arg("daemon").arg("--config").arg(self.scene.path("attest.toml"));
        command.arg("--rules").arg(self.path("supervisor.toml"));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&mut self) {
        let command = self.daemon_command();
        self.start_by(command);
    }

    /// As the packaged unit starts it, as far as it matters here: capabilities, and a mount namespace of its own.
    pub(crate) fn start_as_service(&mut self) {
        let unit = include_str!("../../../packaging/systemd/countersign-supervisor.service");
        let kept = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        let kept: String = kept.split(' ').map(|name| format!(",+{}", &name.to_lowercase()[4..])).collect();
        assert!(unit.contains("\nProtectSystem=") && unit.contains("\nNoNewPrivileges=yes\n"));
        let plain = self.daemon_command();
        let mut command = Command::new("unshare");
        command.args(["--mount", "setpriv", "--no-new-privs", "--bounding-set", &format!("-all{kept}"), "--"]);
        command.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null()).stderr(Stdio::piped());
        self.start_by(command);
    }

    fn start_by(&mut self, mut command: Command) {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Daemon { child, stderr };
        daemon.says("listening on");
        self.daemon = Some(daemon);
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }

    pub(crate) fn reload(&mut self, rules: &str) {
        self.write_rules(rules);
        signal(self.daemon().pid(), Signal::HUP);
        self.daemon().says("rules read again");
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.daemon.as_ref().unwrap().pid())
    }

    /// The same, once somebody runs this program.
    pub(crate) fn family_with(&self, program: &str) -> Family {
        Family::with(self.daemon.as_ref().unwrap().pid(), program)
    }

    /// The supervisor as a user, who has no group but his own.
    pub(crate) fn command(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = as_user(user, self.path("supervisor"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn exec_command(&self, user: u32, image: &str, options: &[&str], command_line: &[&str]) -> Command {
        let daemon = format!("--daemon={}", self.socket().display());
        let mut command = self.command(user, &["exec", &daemon]);
        command.args(options).arg(self.path(image)).args(command_line);
        command
    }

    pub(crate) fn exec(&self, user: u32, image: &str, options: &[&str], command_line: &[&str]) -> Output {
        self.exec_command(user, image, options, command_line).output().unwrap()
    }

    /// A shell script of Alice's that says `ready`, once it has.
    pub(crate) fn started(&self, script: &str) -> Started {
        let mut command = self.exec_command(ALICE, "alice.sif", &[], &["sh", "-c", script]);
        command.stdin(Stdio::piped());
        Started::new(command)
    }

    pub(crate) fn ps(&self, user: u32) -> Vec<Value> {
        let socket = self.socket().display().to_string();
        let out = self.command(user, &["--json", "ps", "--daemon", &socket]).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        let list: Value = serde_json::from_slice(&out.stdout).unwrap();
        list["runs"].as_array().unwrap().clone()
    }
}

pub(crate) fn rule(name: &str, user: u32, more: &str) -> String {
    format!("[[daemon.rule]]\nname = \"{name}\"\nusers = [\"{user}\"]\nsigners = [\"SIGNER\"]\n{more}\n")
}

pub(crate) fn as_user(user: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    let user = user.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]).arg(program).env("LC_ALL", "C");
    command
}

/// A policy that reacts to every finding in one way.
pub(crate) fn reacts(reaction: &str) -> String {
    format!(
        r#"package countersign.workload

default verdict := {{
	"allow": false,
	"reasons": [{{"id": "not-accepted", "message": "this is no business of the workload"}}],
	"obligations": {{"on_violation": "{reaction}"}},
}}

verdict := {{"allow": true, "reasons": [], "obligations": {{}}}} if input.purpose == "release"
"#
    )
}

/// No flags of the runtime.
pub(crate) fn settings() -> Value {
    json!({"binds": [], "scratch": [], "variables": [], "directory": null, "hostname": null, "shell": null, "no_network": false})
}

/// A connection as this user: the thread that makes it is one of his.
pub(crate) fn connect(socket: &Path, user: u32) -> OwnedFd {
    let socket = socket.to_owned();
    let connected = std::thread::spawn(move || {
        use rustix::process::{Gid, Uid};
        rustix::thread::set_thread_groups(&[]).unwrap();
        let gid = Gid::from_raw(user);
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        let uid = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let fd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::connect(&fd, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
        fd
    });
    connected.join().unwrap()
}
