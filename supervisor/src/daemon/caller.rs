//! On whose behalf a run is, under the daemon: what the client has handed over, checked, and what its processes are given of it.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use countersign_sif::dsse::SignerKey;
use countersign_sif::{Image, SifError};
use countersign_wire::id::RunId;
use rustix::fs::{FileType, Mode, OFlags, fchmod, fchown, fcntl_getfl, fstat, fstatfs};
use rustix::process::Uid;

use super::binds::{BINDS, Bound, mounts, too_many};
use super::message::{Answer, Ask, ENVIRONMENT, GIVEN, Reply, Start, Uids, VALUE};
use super::peer::Peer;
use super::rules::Grant;
use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::runtime::{Chosen, Given, Ids, Settings};
use crate::stage::place_of_bind;
use crate::watch::Watch;

/// Most signers' texts, bytes each.
const PEM: usize = 16 * 1024;

/// The client, as its run needs it.
#[derive(Debug)]
pub(crate) struct Caller {
    image: File,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    status: Option<OwnedFd>,
    environment: Vec<(String, String)>,
    peer: Peer,
    settings: Settings,
    binds: Vec<Bound>,
    signers: Vec<String>,
    daemon: Channel,
    /// Given by the daemon with its admission.
    uids: OnceLock<Uids>,
    /// Who relays the terminal that was made for this run in place of its streams.
    relay: Option<Channel>,
}

/// A turn at the TPM; over when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Channel);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(&Ask::Released, &[]);
    }
}

fn usage(what: impl Into<String>) -> Failure {
    Failure::new(Stage::Usage, what, "supervisor run --daemon sends what the daemon takes")
}

pub(super) fn daemon_gone() -> Failure {
    let hint = "systemctl status countersign-supervisor; its journal says why";
    Failure::new(Stage::Unreachable, "the daemon has ended", hint)
}

/// A regular file that the client could read: a name alone (O_PATH), and what can be exchanged or waits for somebody, is none.
fn image(fd: OwnedFd) -> Result<File, Failure> {
    let bad = |what: String| Failure::new(Stage::Image, format!("the image's descriptor: {what}"), "give a file");
    let flags = fcntl_getfl(&fd).map_err(|e| bad(e.to_string()))?;
    if flags.contains(OFlags::PATH) || flags & OFlags::ACCMODE == OFlags::WRONLY {
        return Err(bad("not open for reading".into()));
    }
    let kind = FileType::from_raw_mode(fstat(&fd).map_err(|e| bad(e.to_string()))?.st_mode);
    if kind != FileType::RegularFile {
        return Err(bad(format!("no regular file ({kind:?})")));
    }
    Ok(File::from(fd))
}

/// Something to read from or write to. A folder would lead out of the container.
fn stream(name: &str, fd: OwnedFd) -> Result<OwnedFd, Failure> {
    let bad = |what: String| usage(format!("the descriptor for {name}: {what}"));
    let flags = fcntl_getfl(&fd).map_err(|e| bad(e.to_string()))?;
    if flags.contains(OFlags::PATH) {
        return Err(bad("only a path".into()));
    }
    let kind = FileType::from_raw_mode(fstat(&fd).map_err(|e| bad(e.to_string()))?.st_mode);
    match kind {
        FileType::RegularFile | FileType::Fifo | FileType::Socket | FileType::CharacterDevice => Ok(fd),
        FileType::Directory | FileType::BlockDevice | FileType::Symlink | FileType::Unknown => {
            Err(bad(format!("{kind:?} is refused")))
        }
    }
}

/// Where the kernel's own files are: proc, sysfs, cgroup, cgroup2, securityfs, debugfs, tracefs, bpf, configfs, selinuxfs, efivarfs
/// (linux/magic.h).
const KERNEL: [u64; 11] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0x6265_6570,
    0xf97c_ff8c,
    0xde5e_81e4,
];

/// Something that the session itself, which is root, may write to: no file whose meaning depends on who writes.
fn plain(name: &str, fd: OwnedFd) -> Result<OwnedFd, Failure> {
    let found = fstatfs(&fd).map_err(|e| usage(format!("the descriptor for {name}: {e}")))?;
    let kind = u64::try_from(found.f_type).unwrap_or(u64::MAX);
    if KERNEL.contains(&kind) {
        return Err(usage(format!("the descriptor for {name}: a file of the kernel is refused")));
    }
    Ok(fd)
}

/// A variable that may be passed on.
fn variable(name: &str, value: &str) -> Result<(), Failure> {
    if !ENVIRONMENT.contains(&name) {
        return Err(usage(format!("the environment variable {name:?} is not passed on")));
    }
    if value.len() > VALUE || value.contains('\0') {
        return Err(usage(format!("the value of {name} is too long or no text")));
    }
    Ok(())
}

impl Caller {
    /// Checks what a client has handed over.
    ///
    /// # Errors
    /// [`Stage::Usage`] for what no client of ours sends, [`Stage::Image`], [`Stage::Refused`] for signers that the rule does not take.
    pub(super) fn new(
        peer: &Peer,
        grant: &Grant,
        start: Start,
        fds: Vec<OwnedFd>,
        daemon: Channel,
    ) -> Result<Self, Failure> {
        let wanted = start.settings.binds().count();
        if wanted > BINDS {
            return Err(too_many(wanted));
        }
        if wanted > 0 {
            grant.lends()?;
        }
        start.settings.check()?;
        let (count, wanted) = (fds.len(), GIVEN.saturating_add(wanted));
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| usage(format!("{count} descriptors in place of {wanted}")));
        let (file, stdin, stdout, stderr) = (next()?, next()?, next()?, next()?);
        let bound = start.settings.binds().map(|(source, read_only)| Bound::new(next()?, source, read_only));
        let binds = bound.collect::<Result<_, _>>()?;
        let status = fds.next();
        if fds.next().is_some() {
            return Err(usage(format!("{count} descriptors in place of {wanted}, or one more")));
        }
        for (name, value) in &start.environment {
            variable(name, value)?;
        }
        if start.signers.len() > super::message::SIGNERS || start.signers.iter().any(|pem| pem.len() > PEM) {
            return Err(usage("too many signers"));
        }
        Ok(Self {
            image: image(file)?,
            stdin: stream("standard input", stdin)?,
            stdout: stream("standard output", stdout)?,
            stderr: stream("standard error", stderr)?,
            status: status.map(|fd| plain("the status", stream("the status", fd)?)).transpose()?,
            environment: start.environment,
            peer: peer.clone(),
            settings: start.settings,
            binds,
            signers: grant.trusted(start.signers)?,
            daemon,
            uids: OnceLock::new(),
            relay: None,
        })
    }

    /// A terminal of its own in place of those that are the `client`'s streams; the other end of it.
    ///
    /// # Errors
    /// The system has none left.
    pub(super) fn take_terminal(&mut self, client: Channel) -> Result<OwnedFd, Failure> {
        let other = |e: std::io::Error| Failure::new(Stage::Other, format!("a terminal for the run: {e}"), "");
        let (ours, theirs) = super::terminal::make().map_err(other)?;
        self.stdout = theirs.try_clone().map_err(other)?;
        if self.stderr.is_terminal() {
            self.stderr = theirs.try_clone().map_err(other)?;
        }
        self.stdin = theirs;
        self.relay = Some(client);
        Ok(ours)
    }

    /// Has the client stop, as the run does.
    pub(crate) fn suspend(&self) {
        // One that is gone is heard of elsewhere.
        let _ = self.relay.as_ref().map(|client| client.send(&Answer::Suspend, &[]));
    }

    /// Where the stage mounts its things, in namespaces of its own: a folder that every user reaches, unlike the host's state.
    pub(crate) const FOLDER: &str = "/tmp";

    /// The built-in runtime: others would need the user's own configuration, read by another user.
    pub(crate) fn runtime(&self) -> Chosen {
        let folder = std::path::Path::new(Self::FOLDER);
        Chosen::Builtin(self.settings.clone().bound_from(|n| place_of_bind(folder, n)))
    }

    /// The flags that policy has a say in.
    pub(super) fn flags(&self) -> Vec<Given> {
        self.settings.flags()
    }

    /// What the container is to see of the caller's files, as mounts without a place.
    ///
    /// # Errors
    /// [`Stage::Namespaces`]: a file system cannot be lent; the run was not admitted.
    pub(crate) fn binds(&self) -> Result<Vec<OwnedFd>, Failure> {
        let uids = self.uids.get().ok_or_else(daemon_gone)?;
        mounts(&self.binds, &self.peer, uids.container)
    }

    /// Where the status lines go.
    pub(super) fn status_fd(&self) -> Option<u32> {
        self.status.as_ref().and_then(|fd| u32::try_from(fd.as_raw_fd()).ok())
    }

    /// Trusted signers, with their texts.
    ///
    /// # Errors
    /// [`Stage::Configuration`]: no key.
    pub(crate) fn signers(&self) -> Result<Vec<(SignerKey, String)>, Failure> {
        let key = |pem: &String| {
            let key = SignerKey::from_pem(pem.as_bytes());
            let hint = "--signer takes the owner's public key, PEM";
            let key = key.map_err(|e| Failure::new(Stage::Configuration, format!("a signer: {e}"), hint))?;
            Ok((key, pem.clone()))
        };
        self.signers.iter().map(key).collect()
    }

    /// Reads and checks the image, and asks the daemon whether it may be run.
    ///
    /// # Errors
    /// As [`Image::from_file`]; [`Stage::Refused`].
    pub(crate) fn image(&self, trusted: &[SignerKey]) -> Result<Image, Failure> {
        // The very descriptor: opened anew, root's rights would count, and not the user's.
        let file = self.image.try_clone().map_err(|e| Failure::from(SifError::from(e)))?;
        let image = Image::from_file(file, trusted, false)?;
        self.daemon.send(&Ask::Admit(image.binding().workload), &[]).map_err(|_| daemon_gone())?;
        match self.daemon.receive::<Reply>() {
            Ok(Some((Reply::Admitted(uids), _))) => {
                if self.relay.is_some() {
                    // So that what runs in it can open it by its name, and nobody else can.
                    let owner = Some(Uid::from_raw(uids.container));
                    // In this order: who has given a file away may not change its mode without CAP_FOWNER.
                    let given =
                        fchmod(&self.stdin, Mode::RUSR | Mode::WUSR).and_then(|()| fchown(&self.stdin, owner, None));
                    given.map_err(|e| Failure::new(Stage::Other, format!("the run's terminal: {e}"), ""))?;
                }
                let _ = self.uids.set(uids);
                Ok(image)
            }
            Ok(Some((Reply::Refused(failure), _))) => Err(failure),
            Ok(Some((Reply::Turn | Reply::Runs(..), _)) | None) | Err(_) => Err(daemon_gone()),
        }
    }

    /// Waits for the run's turn at the TPM; `None` when something else is to be heard first.
    ///
    /// # Errors
    /// The daemon is gone.
    pub(crate) fn turn(&self, run: RunId, watch: &Watch) -> Result<Option<Turn<'_>>, Failure> {
        self.daemon.send(&Ask::Turn(run), &[]).map_err(|_| daemon_gone())?;
        if !watch.until(self.daemon.as_fd())? {
            return Ok(None);
        }
        match self.daemon.receive::<Reply>() {
            Ok(Some((Reply::Turn, _))) => Ok(Some(Turn(&self.daemon))),
            _ => Err(daemon_gone()),
        }
    }

    /// The ids that the workload sees: the client's own.
    pub(crate) const fn ids(&self) -> Ids {
        Ids { user: self.peer.uid, group: self.peer.gid }
    }

    /// The client's standard input.
    pub(crate) fn stdin(&self) -> BorrowedFd<'_> {
        self.stdin.as_fd()
    }

    /// The decryptor's user, once the key is there.
    pub(crate) fn decryptor(&self) -> Option<u32> {
        self.uids.get().map(|uids| uids.decryptor)
    }

    /// Has the stage, and so the container, run as the run's own user with the client's output and environment.
    ///
    /// # Errors
    /// The run was not admitted.
    pub(crate) fn dress(&self, command: &mut Command) -> Result<(), Failure> {
        let uids = self.uids.get().ok_or_else(daemon_gone)?;
        let again = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
        let failed = |e: std::io::Error| Failure::new(Stage::Other, e.to_string(), "");
        command.stdout(again(&self.stdout).map_err(failed)?).stderr(again(&self.stderr).map_err(failed)?);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        // The caller's other groups count in his files, for him and against him (mode 0707), and nowhere else in the container.
        let mut groups = if self.binds.is_empty() { Vec::new() } else { self.peer.groups.clone() };
        groups.retain(|group| *group != self.peer.gid);
        countersign_sys::start_as(command, uids.container, uids.container, groups).current_dir("/");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::fs::open;

    use super::*;

    fn opened(path: &std::path::Path, flags: OFlags) -> OwnedFd {
        open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn only_a_readable_regular_file_is_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(image(opened(&file, OFlags::RDONLY)).is_ok());
        assert!(image(opened(&file, OFlags::RDWR)).is_ok());
        for (fd, words) in [
            (opened(&file, OFlags::WRONLY), "not open for reading"),
            (opened(&file, OFlags::PATH), "not open for reading"),
            (opened(&link, OFlags::PATH | OFlags::NOFOLLOW), "not open for reading"),
            (opened(folder.path(), OFlags::RDONLY), "Directory"),
            (opened("/dev/null".as_ref(), OFlags::RDONLY), "CharacterDevice"),
            (std::io::pipe().unwrap().0.into(), "Fifo"),
            (UnixStream::pair().unwrap().0.into(), "Socket"),
        ] {
            let refused = image(fd).unwrap_err();
            assert!(refused.stage == Stage::Image && refused.error.contains(words), "{words}: {refused:?}");
        }
    }

    #[test]
    fn streams_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        for fd in [opened("/dev/null".as_ref(), OFlags::RDWR), std::io::pipe().unwrap().1.into()] {
            assert!(stream("x", fd).is_ok());
        }
        let plain = |fd| plain("x", fd).map(drop).map_err(|failure| failure.error);
        assert!(plain(opened("/dev/null".as_ref(), OFlags::RDWR)).is_ok());
        assert!(plain(std::io::pipe().unwrap().1.into()).is_ok());
        assert!(plain(opened("/proc/self/comm".as_ref(), OFlags::WRONLY)).unwrap_err().contains("of the kernel"));
        assert!(stream("x", opened(folder.path(), OFlags::RDONLY)).unwrap_err().error.contains("Directory"));
        assert!(stream("x", opened("/dev/null".as_ref(), OFlags::PATH)).unwrap_err().error.contains("only a path"));
    }

    #[test]
    fn three_variables_and_no_others() {
        assert!(variable("TERM", "xterm").is_ok());
        assert!(variable("LD_PRELOAD", "x").unwrap_err().error.contains("LD_PRELOAD"));
        assert!(variable("TZ", &"x".repeat(257)).is_err());
        assert!(variable("TZ", "a\0b").is_err());
    }
}
