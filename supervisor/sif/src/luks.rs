//! LUKS2 headers, made and read by cryptsetup as an ordinary user. Keys go through pipes only: never on a disk, never in an argument.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use zeroize::Zeroizing;

use crate::binding::CIPHER;
use crate::error::SifError;
use crate::xts::{KEY, SECTOR, VolumeKey};

/// Bytes of the header, and where the payload begins: cryptsetup's default, which stock runtimes expect.
pub const HEADER: u64 = 16 * 1024 * 1024;
/// Where the JSON area of the first header begins (LUKS2 on-disk format 1.1, section 2.1).
const JSON: usize = 4096;
/// Longest passphrase: cryptsetup's own limit for an interactive one.
const PASSPHRASE: usize = 512;

/// How the keyslot protects the volume key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pbkdf {
    /// PBKDF2 with 1000 iterations: for a passphrase of 512 random bits.
    Random,
    /// argon2id with cryptsetup's defaults: for a typed passphrase.
    Typed,
}

fn cryptsetup() -> Command {
    // /usr/sbin is not on an ordinary user's PATH.
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
    let missing = |source| SifError::Missing { program: "cryptsetup", package: "cryptsetup-bin", source };
    let mut child = command.spawn().map_err(missing)?;
    drop(command);
    // If it ended before it read the secret, its own words say more than the broken pipe.
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(secret));
    // A volume key is 64 bytes in hex and a few words; one allocation, so that no copy of it stays behind.
    let mut out = Zeroizing::new(Vec::with_capacity(64 * 1024));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64 * 1024).read_to_end(&mut out)?;
    }
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(64 * 1024).read_to_end(&mut words)?;
    }
    if !child.wait()?.success() {
        return Err(failed(String::from_utf8_lossy(&words).trim()));
    }
    fed?;
    Ok(out)
}

fn usable(passphrase: &[u8]) -> Result<(), SifError> {
    if passphrase.is_empty() || passphrase.len() > PASSPHRASE {
        return Err(SifError::Key(format!(
            "the escrow passphrase has {} bytes, not 1 to {PASSPHRASE}",
            passphrase.len()
        )));
    }
    Ok(())
}

/// Makes a header whose only keyslot opens with `passphrase`. `folder` takes a file without secrets while cryptsetup works.
///
/// # Errors
/// [`SifError::Program`], or [`SifError::Key`] for an empty or overlong passphrase.
pub fn make_header(key: &VolumeKey, passphrase: &[u8], pbkdf: Pbkdf, folder: &Path) -> Result<Vec<u8>, SifError> {
    usable(passphrase)?;
    let file = tempfile::Builder::new().prefix(".countersign-").tempfile_in(folder)?;
    file.as_file().set_len(HEADER.saturating_add(4096))?;
    // Passphrase on descriptor 0, volume key on descriptor 1 (in batch mode nothing is written there): both pipes are close-on-exec here,
    // so no other child of this process can inherit them. 64 bytes fit into a pipe, and are gone once read.
    let (reader, writer) = std::io::pipe()?;
    { writer }.write_all(key.as_slice())?;
    let mut command = cryptsetup();
    command.args(["luksFormat", "--batch-mode", "--type", "luks2", "--key-file", "-", "--key-size", "512"]);
    command.args(["--cipher", CIPHER, "--sector-size", "512", "--offset", "32768"]);
    command.args(["--volume-key-file", "/dev/fd/1"]).stdout(reader);
    if pbkdf == Pbkdf::Random {
        command.args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    }
    command.arg(std::path::absolute(file.path())?);
    run(command, passphrase)?;
    let mut header = vec![0; usize::try_from(HEADER).unwrap_or(0)];
    // Opened anew: cryptsetup might have replaced the file.
    File::open(file.path())?.read_exact_at(&mut header, 0)?;
    check(&header)?;
    Ok(header)
}

/// Checks that a header of our own making says what our images say: one keyslot, one segment from [`HEADER`] on, [`CIPHER`] in 512-byte sectors.
///
/// # Errors
/// [`SifError::Program`]: this cryptsetup made something else.
fn check(header: &[u8]) -> Result<(), SifError> {
    let other = |what: &str| failed(format!("made a header that is not as asked for: {what}"));
    if header.first_chunk::<8>() != Some(b"LUKS\xba\xbe\x00\x02") {
        return Err(other("magic number or version"));
    }
    let size = header.get(8..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |size| u64::from_be_bytes(*size));
    let json = usize::try_from(size).ok().and_then(|size| header.get(JSON..size)).ok_or_else(|| other("its size"))?;
    let json = json.split(|&byte| byte == 0).next().unwrap_or_default();
    let json: Value = serde_json::from_slice(json).map_err(|_| other("its JSON"))?;
    let count = |name: &str| json.get(name).and_then(Value::as_object).map_or(0, serde_json::Map::len);
    let segment = |name: &str| json.pointer(&format!("/segments/0/{name}"));
    let text = |name: &str| segment(name).and_then(Value::as_str);
    if count("keyslots") != 1 || count("segments") != 1 {
        return Err(other("keyslots or segments"));
    }
    if text("offset") != Some(HEADER.to_string().as_str())
        || text("iv_tweak") != Some("0")
        || text("size") != Some("dynamic")
    {
        return Err(other("where the payload lies"));
    }
    let sector = segment("sector_size").and_then(Value::as_u64);
    if text("encryption") != Some(CIPHER) || sector != u64::try_from(SECTOR).ok() {
        return Err(other("cipher or sector size"));
    }
    Ok(())
}

/// The volume key behind a header's keyslot, on its owner's machine.
///
/// # Errors
/// [`SifError::Program`]: wrong passphrase, among others.
pub fn open_header(header: &[u8], passphrase: &[u8], folder: &Path) -> Result<VolumeKey, SifError> {
    usable(passphrase)?;
    let mut file = tempfile::Builder::new().prefix(".countersign-").tempfile_in(folder)?;
    file.write_all(header)?;
    // cryptsetup wants to see the beginning of a payload behind the header.
    file.as_file().set_len(u64::try_from(header.len()).unwrap_or(0).saturating_add(4096))?;
    let mut command = cryptsetup();
    command
        .args(["luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-"])
        .arg(std::path::absolute(file.path())?);
    let out = run(command, passphrase)?;
    let text = std::str::from_utf8(&out).map_err(|_| failed("its output is not text"))?;
    let after = text.split("MK dump:").nth(1).or_else(|| text.split("Volume Key:").nth(1));
    let after = after.ok_or_else(|| failed("its output holds no volume key"))?;
    let mut digits = Zeroizing::new(String::with_capacity(4 * KEY));
    digits.extend(after.chars().filter(char::is_ascii_hexdigit).take(2 * KEY + 1));
    let mut key = VolumeKey::new([0; KEY]);
    hex::decode_to_slice(digits.as_bytes(), key.as_mut_slice())
        .map_err(|_| failed("its output holds no 64-byte key"))?;
    Ok(key)
}
