//! Bytes to and from a TPM, each exchange under a deadline.

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{TpmAddress, TpmError};

/// Longest response (TPM 2.0 Part 2, MAX_RESPONSE_SIZE; 4096 on every TPM seen).
const MAX_RESPONSE: usize = 8192;

#[derive(Debug)]
enum Channel {
    Device(File),
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// An open channel.
#[derive(Debug)]
pub(super) struct Transport {
    channel: Channel,
    address: String,
    timeout: Duration,
}

impl Transport {
    pub(super) fn open(address: &TpmAddress, timeout: Duration) -> Result<Self, TpmError> {
        let channel = match address {
            TpmAddress::Device(path) => device(path).map(Channel::Device),
            TpmAddress::Unix(path) => unix(path, timeout).map(Channel::Unix),
            TpmAddress::Tcp { host, port } => tcp(host, *port, timeout).map(Channel::Tcp),
        };
        let channel = channel.map_err(|source| TpmError::Transport { address: address.to_string(), source })?;
        Ok(Self { channel, address: address.to_string(), timeout })
    }

    /// Sends a command and reads its response.
    pub(super) fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        let deadline = Instant::now().checked_add(self.timeout);
        self.try_exchange(command, deadline)
            .map_err(|source| TpmError::Transport { address: self.address.clone(), source })
    }

    fn try_exchange(&mut self, command: &[u8], deadline: Option<Instant>) -> std::io::Result<Vec<u8>> {
        match &mut self.channel {
            Channel::Device(file) => {
                // The device takes a command in one write and gives the response in one read. Some kernels say "readable" while
                // the command still runs, and the read then gives nothing.
                file.write_all(command)?;
                let mut response = vec![0; MAX_RESPONSE];
                loop {
                    wait(file, deadline)?;
                    match file.read(&mut response) {
                        Ok(0) => std::thread::sleep(Duration::from_millis(1)),
                        Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                        Err(e) => return Err(e),
                        Ok(n) => {
                            response.truncate(n);
                            return Ok(response);
                        }
                    }
                }
            }
            Channel::Unix(stream) => {
                stream.write_all(command)?;
                framed(stream, deadline)
            }
            Channel::Tcp(stream) => {
                stream.write_all(command)?;
                framed(stream, deadline)
            }
        }
    }
}

/// The kernel's device, not blocking: only so can a deadline hold.
fn device(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// A Unix socket. swtpm serves one client at a time; when its queue is full, connecting is tried until the time is over.
fn unix(path: &Path, timeout: Duration) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let started = Instant::now();
    loop {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(rustix::io::Errno::AGAIN) if started.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::AGAIN) => {
                return Err(Error::new(ErrorKind::TimedOut, "another program keeps the TPM's socket"));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn tcp(host: &str, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = Error::new(ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A response on a stream: its header says how long it is.
fn framed<S: std::io::Read + std::os::fd::AsFd>(stream: &mut S, deadline: Option<Instant>) -> std::io::Result<Vec<u8>> {
    let mut response = Vec::with_capacity(512);
    let mut wanted: usize = 10;
    let mut buffer = [0; 4096];
    loop {
        while response.len() < wanted {
            wait(stream, deadline)?;
            let missing = wanted.saturating_sub(response.len()).min(buffer.len());
            let n = stream.read(buffer.get_mut(..missing).unwrap_or_default())?;
            if n == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the TPM closed the connection"));
            }
            response.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        let size = response.get(2..6).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
        let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        if !(10..=MAX_RESPONSE).contains(&size) {
            return Err(Error::new(ErrorKind::InvalidData, "the response has an impossible size"));
        }
        if response.len() >= size {
            return Ok(response);
        }
        wanted = size;
    }
}

/// Waits until something can be read.
fn wait<F: std::os::fd::AsFd>(channel: &F, deadline: Option<Instant>) -> std::io::Result<()> {
    let left = deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout =
        Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
    let mut fds = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(Error::new(ErrorKind::TimedOut, "the TPM did not answer in time")),
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::INTR) => wait(channel, deadline),
        Err(e) => Err(e.into()),
    }
}
