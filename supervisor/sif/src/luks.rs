//! LUKS2 headers, made and read by cryptsetup as an ordinary user. Keys go through pipes only.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::error::SifError;
use crate::xts::{KEY, VolumeKey};

/// Bytes of the header, and where the payload begins: cryptsetup's default, which stock runtimes expect.
pub const HEADER: u64 = 16 * 1024 * 1024;

/// How the keyslot protects the volume key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pbkdf {
    /// PBKDF2 with 1000 iterations: for a passphrase of 512 random bits.
    Random,
    /// argon2id with cryptsetup's defaults: for a typed passphrase.
    Typed,
}

fn cryptsetup() -> Command {
    let found = ["/usr/sbin/cryptsetup", "/sbin/cryptsetup"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(found.unwrap_or("cryptsetup"));
    command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn failed(reason: impl Into<String>) -> SifError {
    SifError::Program { program: "cryptsetup", reason: reason.into() }
}

/// Runs cryptsetup with a secret on standard input; its standard output.
fn run(mut command: Command, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, SifError> {
    let mut child = command.spawn().map_err(|e| failed(format!("cannot be started: {e} (package cryptsetup-bin)")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(secret)?;
    }
    let mut out = Zeroizing::new(Vec::new());
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut out)?;
    }
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words)?;
    }
    if !child.wait()?.success() {
        return Err(failed(words.trim().to_owned()));
    }
    Ok(out)
}

/// Makes a header whose only keyslot opens with `passphrase`. `folder` takes a file without secrets while cryptsetup works.
///
/// # Errors
/// [`SifError::Program`].
pub fn make_header(key: &VolumeKey, passphrase: &[u8], pbkdf: Pbkdf, folder: &Path) -> Result<Vec<u8>, SifError> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    file.as_file().set_len(HEADER.saturating_add(4096))?;
    // The volume key comes through a pipe that cryptsetup inherits: 64 bytes, which fit, and are gone once read.
    let (reader, writer) = rustix::pipe::pipe().map_err(std::io::Error::from)?;
    let mut writer = File::from(writer);
    writer.write_all(key.as_slice())?;
    drop(writer);
    let mut command = cryptsetup();
    command.args(["luksFormat", "--batch-mode", "--type", "luks2", "--key-file", "-", "--key-size", "512"]);
    command.args(["--cipher", "aes-xts-plain64", "--sector-size", "512"]);
    command.arg("--volume-key-file").arg(format!("/dev/fd/{}", reader.as_raw_fd()));
    if pbkdf == Pbkdf::Random {
        command.args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    }
    command.arg(file.path());
    run(command, passphrase)?;
    drop(reader);
    let mut header = vec![0; usize::try_from(HEADER).unwrap_or(0)];
    file.as_file().read_exact_at(&mut header, 0)?;
    Ok(header)
}

/// The volume key behind a header's keyslot, on its owner's machine.
///
/// # Errors
/// [`SifError::Program`]: wrong passphrase, among others.
pub fn open_header(header: &[u8], passphrase: &[u8], folder: &Path) -> Result<VolumeKey, SifError> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(header)?;
    let mut command = cryptsetup();
    command.args(["luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-"]).arg(file.path());
    let out = run(command, passphrase)?;
    let text = std::str::from_utf8(&out).map_err(|_| failed("its output is not text"))?;
    let after = text.split("MK dump:").nth(1).or_else(|| text.split("Volume Key:").nth(1));
    let after = after.ok_or_else(|| failed("its output holds no volume key"))?;
    let digits: Zeroizing<String> = Zeroizing::new(after.chars().filter(char::is_ascii_hexdigit).take(2 * KEY).collect());
    let mut key = VolumeKey::new([0; KEY]);
    hex::decode_to_slice(digits.as_bytes(), key.as_mut_slice()).map_err(|_| failed("its output holds no 64-byte key"))?;
    Ok(key)
}
