//! Sockets that hear others: /proc/PID/net/{tcp,tcp6,udp,udp6} (proc_pid_net(5)).

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::process::Process;
use crate::stat::if_there;

/// A TCP socket that listens; a UDP socket that is bound and not connected. The numbers are the kernel's (include/net/tcp_states.h).
const TABLES: [(&str, &str, &str); 4] =
    [("tcp", "tcp", "0A"), ("tcp6", "tcp", "0A"), ("udp", "udp", "07"), ("udp6", "udp", "07")];

/// One that hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listening {
    /// `tcp` or `udp`.
    pub(super) protocol: &'static str,
    /// Where it hears.
    pub(super) address: SocketAddr,
    /// The socket's number.
    pub(super) socket: u64,
}

/// All in the network namespace of a process, whoever has them; `None` when it has ended meanwhile.
///
/// # Errors
/// A table cannot be read. One that is not there is that of a protocol which the kernel does not have.
pub(super) fn listening(process: Process) -> io::Result<Option<Vec<Listening>>> {
    let mut found = Vec::new();
    for (table, protocol, state) in TABLES {
        let Some(file) = if_there(File::open(process.file(&format!("net/{table}"))))? else { continue };
        // Line by line: on a busy host there are many.
        for line in BufReader::new(file).lines().skip(1) {
            found.extend(entry(&line?, protocol, state));
        }
    }
    Ok(process.lives().then_some(found))
}

/// `sl local rem st tx:rx tr:tm retrnsmt uid timeout inode ...`
fn entry(line: &str, protocol: &'static str, state: &str) -> Option<Listening> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != state {
        return None;
    }
    let socket = fields.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, in the machine's order.
    let words: Option<Vec<u8>> = (0..address.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(address.get(at..at.checked_add(8)?)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let address = match words?.as_slice() {
        bytes if bytes.len() == 4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        bytes => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(Listening { protocol, address: SocketAddr::new(address, port), socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_test() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp6 = std::net::TcpListener::bind("[::1]:0");
        let connected = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let found = listening(Process::of(std::process::id()).unwrap().unwrap()).unwrap().unwrap();
        let has = |protocol: &str, address: SocketAddr| {
            found.iter().any(|socket| socket.protocol == protocol && socket.address == address)
        };
        assert!(has("tcp", tcp.local_addr().unwrap()));
        assert!(has("udp", udp.local_addr().unwrap()));
        assert!(!has("tcp", connected.local_addr().unwrap()), "it is connected and hears nobody else");
        match tcp6 {
            Ok(tcp6) => assert!(has("tcp", tcp6.local_addr().unwrap())),
            Err(e) => println!("skipped: IPv6: {e}"),
        }
    }
}
