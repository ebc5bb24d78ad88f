//! PGP signatures, as `apptainer sign` and `singularity sign` make them by default: the signed JSON in an OpenPGP clear-signed text
//! (sif-format, section 7a). GnuPG's `gpgv` verifies them, against a keyring of its own and nothing else of this machine (decision 0016).

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::SifError;

/// Longest keyring read, bytes.
const KEYRING: usize = 16 << 20;
/// Longest output of gpgv that is read, bytes: the signed text is no longer than the signature object.
const OUTPUT: u64 = 2 << 20;
/// What a clear-signed text begins with (RFC 9580, section 7).
const CLEAR: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
const ARMOUR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const ARMOUR_END: &str = "-----END PGP PUBLIC KEY BLOCK-----";
/// Hash algorithms that are accepted, by their numbers (RFC 9580, section 9.5): SHA-256, SHA-384, SHA-512, SHA-224.
const HASHES: [&str; 4] = ["8", "9", "10", "11"];

/// Whether a signature object is a clear-signed text.
pub(crate) fn is_clear_signed(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(CLEAR)
}

/// Public keys that are trusted, as binary OpenPGP packets.
#[derive(Debug, Clone)]
pub struct Keyring(Vec<u8>);

fn bad(why: impl std::fmt::Display) -> SifError {
    SifError::Signature(format!("PGP: {why}"))
}

impl Keyring {
    /// Takes exported public keys, armoured or binary.
    ///
    /// # Errors
    /// [`SifError::Key`]: no public keys.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SifError> {
        let no_keys = || SifError::Key("no exported PGP public keys".into());
        if bytes.len() > KEYRING {
            return Err(no_keys());
        }
        let armoured = std::str::from_utf8(bytes).ok().filter(|text| text.contains(ARMOUR));
        let packets = match armoured {
            Some(text) => dearmoured(text).ok_or_else(no_keys)?,
            None => bytes.to_vec(),
        };
        // Packet 6, in the old form with any length, or in the new form (RFC 9580, section 4.2).
        if matches!(packets.first(), Some(0x98..=0x9b | 0xc6)) { Ok(Self(packets)) } else { Err(no_keys()) }
    }

    /// The text that is signed, without its last line's end, and the fingerprint of the primary key of whoever signed it.
    pub(crate) fn verify(&self, message: &[u8]) -> Result<(Vec<u8>, String), SifError> {
        let missing = |source| SifError::Missing { program: "gpgv", package: "gpgv", source };
        let home = tempfile::Builder::new().prefix("countersign-").tempdir()?;
        let keyring = home.path().join("keyring.gpg");
        std::fs::write(&keyring, &self.0)?;
        let mut command = Command::new("gpgv");
        command.arg("--homedir").arg(home.path()).arg("--keyring").arg(&keyring);
        command.args(["--status-fd", "2", "--weak-digest", "SHA1", "--weak-digest", "RIPEMD160", "--output", "-"]);
        command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(missing)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (text, status) = std::thread::scope(|scope| {
            // What it leaves unread is no text of ours; its status says why.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(message)));
            let status = scope.spawn(move || {
                let mut status = Vec::new();
                stderr.map_or(Ok(0), |stderr| stderr.take(OUTPUT).read_to_end(&mut status)).map(|_| status)
            });
            let mut text = Vec::new();
            let read = stdout.map_or(Ok(0), |stdout| stdout.take(OUTPUT).read_to_end(&mut text));
            let status = status.join().unwrap_or_else(|_| Ok(Vec::new()));
            read.and(status).map(|status| (text, status))
        })?;
        let good = child.wait()?.success();
        let signer = signer(&String::from_utf8_lossy(&status), good)?;
        let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last.saturating_add(1));
        Ok((text.get(..end).unwrap_or_default().to_vec(), signer))
    }
}

/// The fingerprint in what gpgv reports: exactly one signature, good, by a key that is neither revoked nor expired, which does not expire itself
/// (GnuPG, doc/DETAILS).
fn signer(status: &str, good: bool) -> Result<String, SifError> {
    let lines = status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
    let (mut valid, mut counted, mut reason) = (None, 0usize, None);
    for line in lines {
        let mut words = line.split(' ');
        match words.next().unwrap_or_default() {
            "GOODSIG" => counted = counted.saturating_add(1),
            "BADSIG" => reason = Some("the signature does not hold".to_owned()),
            "NO_PUBKEY" => {
                reason = Some(format!("not by a trusted key (it names {})", words.next().unwrap_or_default()));
            }
            "REVKEYSIG" => reason = Some("by a revoked key".to_owned()),
            "EXPKEYSIG" => reason = Some("by a key that has expired".to_owned()),
            "EXPSIG" => reason = Some("the signature has expired".to_owned()),
            "ERRSIG" if reason.is_none() => reason = Some("the signature cannot be checked".to_owned()),
            "VALIDSIG" => valid = Some(words.map(str::to_owned).collect::<Vec<_>>()),
            _ => {}
        }
    }
    if let Some(reason) = reason {
        return Err(bad(reason));
    }
    let valid = valid.filter(|_| good && counted == 1).ok_or_else(|| bad("no good signature in the text"))?;
    let field = |at: usize| valid.get(at).map(String::as_str).unwrap_or_default();
    if !HASHES.contains(&field(7)) {
        return Err(bad("a hash algorithm that is not accepted"));
    }
    if field(3) != "0" {
        return Err(bad("a signature that expires"));
    }
    Ok(field(9).to_owned())
}

/// The packets in armoured blocks, one after the other. Checksums are left to who reads the packets.
fn dearmoured(text: &str) -> Option<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once(ARMOUR) {
        let (block, behind) = block.split_once(ARMOUR_END)?;
        rest = behind;
        // Header lines, an empty line, base64, and a checksum that begins with "=".
        let lines = block.lines().skip(1).skip_while(|line| !line.trim().is_empty()).skip(1);
        let body: String = lines.map(str::trim).take_while(|line| !line.starts_with('=')).collect();
        packets.extend(STANDARD.decode(body).ok()?);
    }
    Some(packets)
}
