//! A tap on the way between a host's programs and its TPM: it keeps every command that passes by.

use std::io::{Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use countersign_attest::tpm::TpmAddress;

/// Longest command or response that a TPM has, and more.
pub const MAX: usize = 64 * 1024;

/// A tap in front of a TPM. It ends with this process.
#[derive(Debug)]
pub struct Tap {
    /// What to give to `--tpm`.
    pub address: String,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    /// Listens on a socket in `dir`, in front of a TPM on a Unix socket.
    ///
    /// # Errors
    /// The TPM is elsewhere, or the socket cannot be made.
    pub fn new(dir: &Path, tpm: &TpmAddress) -> anyhow::Result<Self> {
        let TpmAddress::Unix(tpm) = tpm.clone() else { bail!("the TPM {tpm} is not on a Unix socket") };
        let path = dir.join("tap.sock");
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A client that goes away ends its own connection only.
                let _ = relay(client, &tpm, &kept);
            }
        });
        Ok(Self { address: format!("swtpm:unix={}", path.display()), seen })
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
