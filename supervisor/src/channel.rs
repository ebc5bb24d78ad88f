//! Messages between the processes of one run: JSON and descriptors over a Unix socket that keeps message boundaries.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon::BINDS;

/// Longest message.
const MAX: usize = 128 * 1024;
/// Most descriptors in a message: a client's image, streams, status and binds.
const FDS: usize = 5 + BINDS;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl Channel {
    /// Both ends of a new one.
    ///
    /// # Errors
    /// The system call fails.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// The end that was handed to this process as its standard input.
    ///
    /// # Errors
    /// The system call fails.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        Ok(Self(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// A new one to whoever listens at a path.
    ///
    /// # Errors
    /// Nobody does, or it is not to be reached.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// To be handed to a child as its standard input.
    #[must_use]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The descriptor, to wait on.
    #[must_use]
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Another handle on the same end.
    ///
    /// # Errors
    /// The system call fails.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// The other end is gone, or the message is too long.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(message, fds, SendFlags::NOSIGNAL)
    }

    /// Sends a message, unless the other end has so much unread that one would have to wait.
    ///
    /// # Errors
    /// As [`Self::send`], and [`io::ErrorKind::WouldBlock`].
    pub(crate) fn offer<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.send_with(message, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX {
            let words = format!("{} bytes as it is handed on, {MAX} at most", bytes.len());
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, words));
        }
        if fds.len() > FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Receives a message and its descriptors; `None` when the other end is gone.
    ///
    /// # Errors
    /// A message that is not the one expected, is too long, or has too many descriptors.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                // The other end is gone and has left something unread: said once, before what it has sent itself.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        // The kernel rounds the room for descriptors up.
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > FDS {
            let what = format!("a message of more than {MAX} bytes or {FDS} descriptors");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?, fds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&"why", &[]).unwrap();
        ours.send(&"never read", &[]).unwrap();
        drop(theirs);
        let (words, _) = ours.receive::<String>().unwrap().unwrap();
        assert_eq!(words, "why");
        assert!(ours.receive::<String>().unwrap().is_none());
        assert_eq!(ours.send(&"nobody there", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read() {
        let (ours, theirs) = Channel::pair().unwrap();
        let full = std::iter::repeat_with(|| ours.offer(&"word")).take(100_000).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(theirs.receive::<String>().unwrap().unwrap().0, "word");
    }

    #[test]
    fn nobody_is_there_any_more() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&"never read", &[]).unwrap();
        drop(theirs);
        assert!(ours.send(&"a second time", &[]).is_err());
        assert!(ours.receive::<String>().unwrap().is_none());
    }
}
