//! The daemon's socket: systemd's, or one of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

use crate::exit::{Failure, Stage};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// First descriptor that systemd hands over (sd_listen_fds(3)).
const FIRST: u32 = 3;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    /// Path, and the lock that says that this daemon has it; none for systemd's socket.
    own: Option<(PathBuf, File)>,
}

fn bad(path: &Path, e: impl std::fmt::Display) -> Failure {
    let hint = "supervisor daemon --socket PATH puts it elsewhere";
    Failure::new(Stage::Configuration, format!("the socket {}: {e}", path.display()), hint)
}

impl Listener {
    /// The socket that systemd has passed, if it has; it must be a listening Unix socket that keeps message boundaries.
    ///
    /// # Errors
    /// [`Stage::Configuration`]: more than one, or of another kind.
    pub(super) fn of_systemd() -> Result<Option<Self>, Failure> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(None);
        }
        let kind = |fd: &OwnedFd| -> io::Result<bool> {
            let fd = fd.as_fd();
            Ok(socket_domain(fd)? == AddressFamily::UNIX
                && socket_type(fd)? == SocketType::SEQPACKET
                && socket_acceptconn(fd)?)
        };
        let fd = countersign_sys::inherited_descriptor(FIRST);
        match fd {
            Ok(socket) if number("LISTEN_FDS") == Some(1) && kind(&socket).unwrap_or(false) => {
                Ok(Some(Self { socket, own: None }))
            }
            _ => {
                let hint = "the unit needs one ListenSequentialPacket= and nothing else";
                Err(Failure::new(Stage::Configuration, "systemd has passed something else than one socket", hint))
            }
        }
    }

    /// Makes one at a path; for this group (0660), or for everybody (0666).
    ///
    /// # Errors
    /// [`Stage::Configuration`]: another daemon has it, or the folder cannot be written.
    pub(super) fn at(path: &Path, group: Option<u32>) -> Result<Self, Failure> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(|e| bad(path, e))?;
        let lock = path.with_extension("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let lock = lock.map_err(|e| bad(path, e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| bad(path, "another daemon listens there"))?;
        // Under the lock: whoever left it has ended.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(bad(path, e)),
            _ => {}
        }
        let make = || -> io::Result<OwnedFd> {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            // Nobody connects before it listens, and that is last.
            std::os::unix::fs::chown(path, None, group)?;
            let mode = if group.is_some() { 0o660 } else { 0o666 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = make().map_err(|e| bad(path, e))?;
        Ok(Self { socket, own: Some((path.to_owned(), lock)) })
    }

    /// To wait on.
    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next connection.
    ///
    /// # Errors
    /// It is gone already, or this process has too many descriptors.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(accept_with(&self.socket, SocketFlags::CLOEXEC)?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, _lock)) = &self.own {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;

    #[test]
    fn one_daemon_at_a_path_and_a_dead_ones_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/supervisor.sock");
        let first = Listener::at(&path, None).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o666);
        let client = Channel::connect(&path).unwrap();
        assert!(first.accept().is_ok());
        assert!(Listener::at(&path, None).unwrap_err().error.contains("another daemon"));
        drop((client, first));
        assert!(!path.exists());
        // What a killed one leaves.
        std::fs::write(&path, "").unwrap();
        let group = rustix::process::getegid().as_raw();
        let _second = Listener::at(&path, Some(group)).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(Channel::connect(&path).is_ok());
    }
}
