//! tss-esapi 7.7.0 knows swtpm by TCP address only, and our swtpm listens on Unix sockets: this stands between.
//!
//! tpm2-tss expects the control channel at the next port. The data side connects to swtpm for each command, so that the oracle
//! does not keep swtpm's only connection.

use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Pairs of ports that are tried.
const TRIES: usize = 64;
/// Bytes of a TPM command or response header.
const HEADER: usize = 10;
/// Bytes of a command or response (TPM_PT_MAX_COMMAND_SIZE of swtpm is 4096).
const MESSAGE: usize = 8192;

/// Two listening ports, and the threads behind them.
pub(super) struct Relay {
    port: u16,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    pub(super) fn start(data: PathBuf, control: PathBuf) -> io::Result<Self> {
        let (first, second, port) = pair()?;
        let stop = Arc::new(AtomicBool::new(false));
        let serve = |listener: TcpListener, socket: PathBuf, relay: fn(TcpStream, &Path) -> io::Result<()>| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                for client in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let socket = socket.clone();
                    // A connection that fails is closed; tpm2-tss reports it.
                    std::thread::spawn(move || client.and_then(|client| relay(client, &socket)));
                }
            })
        };
        let threads = vec![serve(first, data, relay_commands), serve(second, control, relay_bytes)];
        Ok(Self { port, stop, threads })
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for port in [self.port, self.port.saturating_add(1)] {
            // Wakes the listener, which then sees the flag.
            drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        }
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// Two listeners on neighbouring ports of the loopback interface.
fn pair() -> io::Result<(TcpListener, TcpListener, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for _ in 0..TRIES {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = first.local_addr()?.port();
        let Some(next) = port.checked_add(1) else { continue };
        match TcpListener::bind((Ipv4Addr::LOCALHOST, next)) {
            Ok(second) => return Ok((first, second, port)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whole commands, one connection to swtpm each.
fn relay_commands(mut client: TcpStream, socket: &Path) -> io::Result<()> {
    client.set_nodelay(true)?;
    while let Some(command) = message(&mut client)? {
        let mut tpm = UnixStream::connect(socket)?;
        tpm.write_all(&command)?;
        let answer = message(&mut tpm)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        client.write_all(&answer)?;
    }
    Ok(())
}

/// A command or response: tag, size of all, code, and the rest. `None` at the end.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; HEADER];
    match from.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let size = bytes.get(2..6).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes);
    let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| (HEADER..=MESSAGE).contains(size));
    bytes.resize(size.ok_or(io::ErrorKind::InvalidData)?, 0);
    from.read_exact(bytes.get_mut(HEADER..).unwrap_or_default())?;
    Ok(Some(bytes))
}

/// Bytes both ways, until one side closes.
fn relay_bytes(client: TcpStream, socket: &Path) -> io::Result<()> {
    let tpm = UnixStream::connect(socket)?;
    let (mut from_client, mut to_client) = (client.try_clone()?, client);
    let (mut from_tpm, mut to_tpm) = (tpm.try_clone()?, tpm);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _copied = io::copy(&mut from_tpm, &mut to_client);
            let _closed = to_client.shutdown(Shutdown::Both);
        });
        let _copied = io::copy(&mut from_client, &mut to_tpm);
        let _closed = to_tpm.shutdown(Shutdown::Both);
    });
    Ok(())
}
