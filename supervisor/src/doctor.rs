//! `supervisor doctor`: whether this host can run protected images, and what to do where it cannot.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use countersign_attest::tpm::{Tpm, TpmAddress};
use countersign_attest::{Config, Host};
use serde::Serialize;

use crate::stage::Program;
use crate::{daemon, runtime};

/// How long the verifier may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// What a decryptor's heap takes at most, bytes.
const HEAP: u64 = 4 << 20;
/// A clock before this (2025, seconds since 1970) is wrong.
const EPOCH: u64 = 1_735_689_600;
/// How far this clock and the verifier's may be apart.
const APART: Duration = Duration::from_secs(60);

/// An ordinary user's ids: those of nobody.
const NOBODY: u32 = 65_534;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it must be.
    Good,
    /// Runs work, something is less good than it could be.
    Warning,
    /// Runs do not work.
    Problem,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// In words.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub fix: String,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Good, found: found.into(), fix: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warning, found: found.into(), fix: fix.into() }
    }

    fn problem(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Problem, found: found.into(), fix: fix.into() }
    }
}

/// Looks at everything that a run needs, in the order in which a run needs it; `chosen` is the runtime, as of `--runtime`.
#[must_use]
pub fn examine(config: &Config, chosen: &Path) -> Vec<Finding> {
    let mut findings = vec![tpm(&config.tpm), boot_log(config), ima_log(config)];
    let host = Host::open(config.clone());
    findings.push(state(config, &host));
    findings.push(enrolment(&host));
    let (reached, its_time) = verifier(config, host.as_ref().ok());
    findings.push(reached);
    findings.push(clock(SystemTime::now(), its_time));
    findings.extend([Program::Squashfuse, Program::Bubblewrap].map(program));
    findings.push(runtime(chosen));
    findings.extend([fuse(), user_namespaces(), memlock(), cgroups(), swap()]);
    findings
}

fn tpm(address: &TpmAddress) -> Finding {
    const CHECK: &str = "TPM";
    let at = match address {
        TpmAddress::Device(path) => {
            if let Err(e) = OpenOptions::new().read(true).write(true).open(path) {
                let fix = if e.kind() == std::io::ErrorKind::NotFound {
                    "switch the TPM on in the firmware's set-up, or name another with --tpm"
                } else if e.kind() == std::io::ErrorKind::PermissionDenied && Path::new(daemon::SOCKET).exists() {
                    "take this host's daemon: supervisor run --daemon ..."
                } else if e.kind() == std::io::ErrorKind::PermissionDenied {
                    "usermod -aG tss USER, and log in again"
                } else {
                    "end the program that keeps it; use /dev/tpmrm0, which several can share"
                };
                return Finding::problem(CHECK, format!("{}: {e}", path.display()), fix);
            }
            path.display().to_string()
        }
        TpmAddress::Unix(path) => path.display().to_string(),
        TpmAddress::Tcp { host, port } => format!("{host}:{port}"),
    };
    let banks = Tpm::connect(address).and_then(|mut tpm| tpm.banks());
    match banks {
        Ok(banks) if banks.is_empty() => Finding::problem(
            CHECK,
            format!("{at}: no PCR bank"),
            "allocate the SHA-256 bank: tpm2_pcrallocate sha256:all",
        ),
        Ok(banks) => {
            let names: Vec<&str> = banks.iter().map(|bank| bank.name()).collect();
            Finding::good(CHECK, format!("{at} answers; banks {}", names.join(", ")))
        }
        Err(e) => Finding::problem(CHECK, format!("{at}: {e}"), "check --tpm, and that the TPM is running"),
    }
}

fn boot_log(config: &Config) -> Finding {
    const CHECK: &str = "boot log";
    let Some(path) = &config.event_log else {
        return Finding::warning(CHECK, "none is configured", "set event_log, unless the policy needs no boot log");
    };
    match OpenOptions::new().read(true).open(path) {
        Ok(_) => Finding::good(CHECK, path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let fix = "let the group that runs images read it, or run as root";
            Finding::problem(CHECK, format!("{}: {e}", path.display()), fix)
        }
        Err(e) => {
            let fix = "boot by UEFI with a TPM, and mount securityfs";
            Finding::problem(CHECK, format!("{}: {e}", path.display()), fix)
        }
    }
}

fn ima_log(config: &Config) -> Finding {
    const CHECK: &str = "IMA list";
    let Some(path) = &config.ima_log else {
        return Finding::good(CHECK, "none is configured; a policy that asks for one denies");
    };
    match OpenOptions::new().read(true).open(path) {
        Ok(_) => Finding::good(CHECK, path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let fix = "boot with ima_policy=tcb if the policy asks for IMA, or set ima_log = \"\"";
            Finding::warning(CHECK, format!("{}: {e}", path.display()), fix)
        }
        Err(e) => {
            let fix = "let the group that runs images read it, or run as root";
            Finding::problem(CHECK, format!("{}: {e}", path.display()), fix)
        }
    }
}

fn state(config: &Config, host: &Result<Host, countersign_attest::HostError>) -> Finding {
    const CHECK: &str = "state folder";
    let path = config.state_dir.display();
    let fix = format!("chown it to the user who runs images, mode 0700: {path}");
    if let Err(e) = host {
        return Finding::problem(CHECK, e.to_string(), fix);
    }
    match OpenOptions::new().write(true).create(true).truncate(false).open(config.state_dir.join("lock")) {
        Ok(_) => Finding::good(CHECK, path.to_string()),
        Err(e) => Finding::problem(CHECK, format!("{path}: {e}"), fix),
    }
}

fn enrolment(host: &Result<Host, countersign_attest::HostError>) -> Finding {
    const CHECK: &str = "enrolment";
    match host.as_ref().map(Host::card) {
        Ok(Ok(card)) => Finding::good(CHECK, format!("host {}", card.host)),
        Ok(Err(e)) => Finding::problem(CHECK, e.to_string(), e.hint()),
        Err(_) => Finding::problem(CHECK, "no state folder", "see above"),
    }
}

/// The verifier that this host has pinned answers, and says what time it is; before enrolment, something accepts connections.
fn verifier(config: &Config, host: Option<&Host>) -> (Finding, Option<SystemTime>) {
    const CHECK: &str = "verifier";
    let asked = host.filter(|host| host.trust().is_ok());
    match asked.map(Host::reach) {
        Some(Ok(time)) => (Finding::good(CHECK, "it answers, and is the one that this host pinned"), time),
        Some(Err(e)) => (Finding::problem(CHECK, e.to_string(), e.hint()), None),
        None => (listens(config), None),
    }
}

fn listens(config: &Config) -> Finding {
    const CHECK: &str = "verifier";
    let noted = || std::fs::read_to_string(config.state_dir.join("verifier.url")).ok();
    let Some(url) = config.verifier.clone().or_else(noted) else {
        return Finding::problem(CHECK, "its address is not known", "attest enroll --token FILE");
    };
    let url = url.trim().to_owned();
    let rest = url.strip_prefix("https://").unwrap_or(&url).split('/').next().unwrap_or_default();
    let address = if rest.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        rest.to_owned()
    } else {
        format!("{rest}:443")
    };
    let connected = address.to_socket_addrs().and_then(|addresses| {
        let mut last = std::io::ErrorKind::NotFound.into();
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(_) => return Ok(()),
                Err(e) => last = e,
            }
        }
        Err(last)
    });
    match connected {
        Ok(()) => Finding::good(CHECK, format!("{url} accepts connections")),
        Err(e) => {
            Finding::problem(CHECK, format!("{url}: {e}"), "start it, open the firewall for it, or correct `verifier`")
        }
    }
}

fn clock(now: SystemTime, its_time: Option<SystemTime>) -> Finding {
    const CHECK: &str = "clock";
    let fix = "set it (timedatectl set-ntp true); verdicts and leases do not need it, the run log's times do";
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if since < EPOCH {
        return Finding::warning(CHECK, format!("{since} s since 1970 lies in the past"), fix);
    }
    let Some(its_time) = its_time else { return Finding::good(CHECK, "set") };
    let apart = now.duration_since(its_time).unwrap_or_else(|e| e.duration());
    if apart > APART {
        return Finding::warning(CHECK, format!("{} s from the verifier's", apart.as_secs()), fix);
    }
    Finding::good(CHECK, "as the verifier's")
}

fn program(program: Program) -> Finding {
    const CHECK: &str = "program";
    match program.find() {
        Ok(path) => Finding::good(CHECK, path.display().to_string()),
        Err(failure) => Finding::problem(CHECK, failure.error, failure.hint),
    }
}

fn runtime(chosen: &Path) -> Finding {
    const CHECK: &str = "container runtime";
    match runtime::find(chosen, None).and_then(|found| found.with(&[])) {
        Ok(found) => Finding::good(CHECK, found.described()),
        Err(failure) => Finding::problem(CHECK, failure.error, failure.hint),
    }
}

fn fuse() -> Finding {
    const CHECK: &str = "FUSE";
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::good(CHECK, "/dev/fuse"),
        Err(e) => Finding::problem(CHECK, format!("/dev/fuse: {e}"), "modprobe fuse; chmod 0666 /dev/fuse"),
    }
}

/// A namespace is really made, by a process of its own: of an ordinary user, also where root asks, whose daemon needs just that.
fn user_namespaces() -> Finding {
    const CHECK: &str = "user namespaces";
    let mut command = Command::new("/proc/self/exe");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.arg("namespace-process").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let made = countersign_sys::end_with_parent(&mut command).output();
    match made {
        Ok(out) if out.status.success() => Finding::good(CHECK, "an ordinary user may make them"),
        Ok(out) => {
            let fix = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 (Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)";
            Finding::problem(CHECK, String::from_utf8_lossy(&out.stderr).trim().to_owned(), fix)
        }
        Err(e) => {
            let fix = "see whether this program may be executed, and how many processes there may be (ulimit -u)";
            Finding::problem(CHECK, e.to_string(), fix)
        }
    }
}

/// The process of [`user_namespaces`].
pub(crate) fn namespace_process() -> u8 {
    match countersign_sys::enter_private_namespaces() {
        Ok(()) => 0,
        Err(e) => {
            let _ = writeln!(anstream::stderr(), "{e}");
            1
        }
    }
}

fn memlock() -> Finding {
    const CHECK: &str = "locked memory";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
    match limit {
        None => Finding::good(CHECK, "no limit"),
        Some(_) if rustix::process::geteuid().is_root() => Finding::good(CHECK, "no limit for root"),
        Some(bytes) if bytes >= HEAP => Finding::good(
            CHECK,
            format!("limit {} KiB: key and cipher contexts are locked, the rest is not", bytes / 1024),
        ),
        Some(bytes) => {
            let fix = "raise it (ulimit -l; LimitMEMLOCK= in a unit; limits.conf: memlock), or have no swap";
            Finding::warning(CHECK, format!("limit {} KiB: the key's memory could be swapped out", bytes / 1024), fix)
        }
    }
}

fn swap() -> Finding {
    const CHECK: &str = "swap";
    let mut text = String::new();
    let read =
        OpenOptions::new().read(true).open("/proc/swaps").and_then(|file| file.take(65_536).read_to_string(&mut text));
    match (read, text.lines().count()) {
        (Ok(_), 0 | 1) => Finding::good(CHECK, "none"),
        (Ok(_), _) => {
            let fix = "encrypt swap with a random key, or swapoff: a workload's own memory can be written there";
            Finding::warning(CHECK, "in use", fix)
        }
        (Err(e), _) => {
            Finding::warning(CHECK, format!("/proc/swaps: {e}"), "mount /proc: whether there is swap is not known")
        }
    }
}

fn cgroups() -> Finding {
    const CHECK: &str = "cgroup v2";
    match crate::group::probe() {
        Ok(place) => Finding::good(CHECK, format!("each run gets one below {place}")),
        Err(why) => {
            let fix = "start runs below a delegated cgroup (systemd-run --user --scope -p Delegate=yes supervisor ...) or as root; until then a run is frozen and ended process by process";
            Finding::warning(CHECK, format!("none can be made: {why}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let outcome = |now: u64, its: Option<u64>| clock(at(now), its.map(at)).outcome;
        assert_eq!(outcome(EPOCH, None), Outcome::Good);
        assert_eq!(outcome(EPOCH - 1, Some(EPOCH)), Outcome::Warning);
        assert_eq!(outcome(EPOCH + 60, Some(EPOCH)), Outcome::Good);
        assert_eq!(outcome(EPOCH + 61, Some(EPOCH)), Outcome::Warning);
        assert_eq!(outcome(EPOCH, Some(EPOCH + 3600)), Outcome::Warning);
    }
}
