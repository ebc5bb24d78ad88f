//! Bytes to and from a TPM, each exchange under a deadline.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
            TpmAddress::Device(path) => OpenOptions::new().read(true).write(true).open(path).map(Channel::Device),
            TpmAddress::Unix(path) => UnixStream::connect(path).map(Channel::Unix),
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
                // The device takes a command in one write and gives the response in one read.
                file.write_all(command)?;
                wait(file, deadline)?;
                let mut response = vec![0; MAX_RESPONSE];
                let n = file.read(&mut response)?;
                response.truncate(n);
                Ok(response)
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

fn tcp(host: &str, port: u16, timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
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
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the TPM closed the connection"));
            }
            response.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        let size = response.get(2..6).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
        let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        if !(10..=MAX_RESPONSE).contains(&size) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the response has an impossible size"));
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
        Ok(0) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the TPM did not answer in time")),
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::INTR) => wait(channel, deadline),
        Err(e) => Err(e.into()),
    }
}
