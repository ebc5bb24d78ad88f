//! Something between the client and its TPM: it watches, changes, delays and adds messages.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What happens to a command.
pub(crate) enum Fate {
    /// It reaches the TPM.
    Pass,
    /// This is the response; the TPM never sees the command.
    Answer(Vec<u8>),
    /// The TPM gets this command first; nobody learns its response.
    After(Vec<u8>),
    /// There is no response.
    Silence,
}

/// What a proxy does, and what it saw.
pub(crate) trait Script: Send {
    /// A command arrived.
    fn command(&mut self, code: u32, bytes: &[u8]) -> Fate;
    /// The TPM answered it.
    fn response(&mut self, _code: u32, _bytes: &mut Vec<u8>) {}
}

pub(crate) type Shared<S> = Arc<Mutex<S>>;

/// A proxy on a Unix socket in `dir` to the TPM's socket; it ends with the process.
pub(crate) fn unix<S: Script + 'static>(dir: &Path, tpm: &Path, script: S) -> (String, Shared<S>) {
    let path = dir.join("p.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let script = Arc::new(Mutex::new(script));
    let (tpm, shared) = (tpm.to_owned(), Arc::clone(&script));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            serve(client.unwrap(), &tpm, &shared);
        }
    });
    (format!("swtpm:unix={}", path.display()), script)
}

/// As [`unix`], on a TCP port of the loopback.
pub(crate) fn tcp<S: Script + 'static>(tpm: &Path, script: S) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tpm, shared): (PathBuf, Shared<S>) = (tpm.to_owned(), Arc::new(Mutex::new(script)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            serve(client.unwrap(), &tpm, &shared);
        }
    });
    format!("swtpm:host=127.0.0.1,port={port}")
}

/// Serves one client until it goes.
pub(crate) fn serve<S: Script>(mut client: impl Read + Write, tpm: &Path, script: &Mutex<S>) {
    let mut tpm = UnixStream::connect(tpm).unwrap();
    while let Some(command) = message(&mut client) {
        let code = u32::from_be_bytes(command[6..10].try_into().unwrap());
        let fate = script.lock().unwrap().command(code, &command);
        let mut response = match fate {
            Fate::Silence => continue,
            Fate::Answer(response) => response,
            Fate::After(first) => {
                exchange(&mut tpm, &first);
                exchange(&mut tpm, &command)
            }
            Fate::Pass => exchange(&mut tpm, &command),
        };
        script.lock().unwrap().response(code, &mut response);
        if client.write_all(&response).is_err() {
            return;
        }
    }
}

fn exchange(tpm: &mut UnixStream, command: &[u8]) -> Vec<u8> {
    tpm.write_all(command).unwrap();
    message(tpm).unwrap()
}

/// A whole command or response: its header says how long it is.
fn message(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut header = [0; 10];
    stream.read_exact(&mut header).ok()?;
    let size = u32::from_be_bytes(header[2..6].try_into().unwrap());
    let mut rest = vec![0; usize::try_from(size).unwrap() - 10];
    stream.read_exact(&mut rest).ok()?;
    Some([header.to_vec(), rest].concat())
}

/// Keeps every byte.
#[derive(Default)]
pub(crate) struct Everything(Vec<u8>);

impl Everything {
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }
}

impl Script for Everything {
    fn command(&mut self, _code: u32, bytes: &[u8]) -> Fate {
        self.0.extend(bytes);
        Fate::Pass
    }

    fn response(&mut self, _code: u32, bytes: &mut Vec<u8>) {
        self.0.extend(bytes.iter());
    }
}

/// A response that is nothing but a code.
pub(crate) fn refusal(code: u32) -> Vec<u8> {
    [&[0x80, 0x01][..], &10u32.to_be_bytes(), &code.to_be_bytes()].concat()
}
