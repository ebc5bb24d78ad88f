//! A tap on the way between a host's programs and its TPM: it keeps every command that passes by.

use std::io::{Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use countersign_attest::tpm::TpmAddress;

/// Longest command or response that a TPM has, and more.
pub const MAX: usize = 64 * 1024;

/// Longest path of a Unix socket, in bytes: `sun_path` is 108 with its NUL (unix(7)).
const SOCKET_PATH: usize = 107;

/// A tap in front of a TPM. It ends with this process.
#[derive(Debug)]
pub struct Tap {
    /// What to give to `--tpm`.
    pub address: String,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Where the socket is when the path of its own place is too long; removed with the tap.
    _short: Option<tempfile::TempDir>,
}

impl Tap {
    /// Listens on a socket in `dir`, in front of a TPM on a Unix socket.
    ///
    /// # Errors
    /// The TPM is elsewhere, or the socket cannot be made.
    pub fn new(dir: &Path, tpm: &TpmAddress) -> anyhow::Result<Self> {
        let TpmAddress::Unix(tpm) = tpm.clone() else { bail!("the TPM {tpm} is not on a Unix socket") };
        let mut path = dir.join("tap.sock");
        let short = (path.as_os_str().len() > SOCKET_PATH).then(tempfile::tempdir).transpose()?;
        if let Some(short) = &short {
            path = short.path().join("tap.sock");
        }
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A client that goes away ends its own connection only.
                let _ = relay(client, &tpm, &kept);
            }
        });
        Ok(Self { address: format!("swtpm:unix={}", path.display()), seen, _short: short })
    }

    /// The commands that passed by so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn relay(mut client: UnixStream, tpm: &Path, seen: &Mutex<Vec<Vec<u8>>>) -> std::io::Result<()> {
    let mut tpm = UnixStream::connect(tpm)?;
    loop {
        let command = message(&mut client)?;
        tpm.write_all(&command)?;
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        client.write_all(&message(&mut tpm)?)?;
    }
}

/// A whole command or response: tag, size, code (TPM 2.0 Part 1, 18.1).
fn message(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 10];
    stream.read_exact(&mut bytes)?;
    let size = bytes.get(2..6).and_then(|size| size.try_into().ok()).map_or(0, u32::from_be_bytes);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !(10..=MAX).contains(&size) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    bytes.resize(size, 0);
    stream.read_exact(bytes.get_mut(10..).unwrap_or_default())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_folder_whose_path_is_too_long_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let tpm = dir.path().join("tpm.sock");
        let listener = UnixListener::bind(&tpm).unwrap();
        let tap = Tap::new(&long, &TpmAddress::Unix(tpm)).unwrap();
        let path = tap.address.strip_prefix("swtpm:unix=").unwrap().to_owned();
        let command = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x44];
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&command).unwrap();
        let (mut end, _) = listener.accept().unwrap();
        assert_eq!(message(&mut end).unwrap(), command);
        end.write_all(&command).unwrap();
        assert_eq!(message(&mut client).unwrap(), command);
        assert_eq!(tap.seen(), [command.to_vec()]);
        drop(tap);
        assert!(!Path::new(&path).exists());
    }
}
