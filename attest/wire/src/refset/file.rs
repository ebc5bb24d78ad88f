//! `ALGORITHM:HEX PATH`.

use crate::ima::KernelHash;

/// A file of a reference set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Algorithm of the digest.
    pub alg: KernelHash,
    /// The digest.
    pub digest: Vec<u8>,
    /// Where it is good; none: everywhere.
    pub path: Option<Vec<u8>>,
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct BadFile {
    /// The text, cut off after 200 characters.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl FileDigest {
    /// Reads `ALGORITHM:HEX PATH` or `ALGORITHM:HEX`.
    ///
    /// # Errors
    /// [`BadFile`].
    pub fn parse(text: &str) -> Result<Self, BadFile> {
        let bad = |reason| BadFile { text: text.chars().take(200).collect(), reason };
        let (digest, path) = text.split_once(' ').map_or((text, None), |(digest, path)| (digest, Some(path)));
        let (alg, hex_digest) =
            digest.rsplit_once(':').ok_or_else(|| bad("no \"algorithm:\" in front of the digest"))?;
        let alg =
            KernelHash::from_name(alg.as_bytes()).ok_or_else(|| bad("an algorithm that the kernel does not have"))?;
        let digest = hex::decode(hex_digest).map_err(|_| bad("the digest is not hex"))?;
        if digest.len() != alg.size() {
            return Err(bad("a digest of another length than its algorithm's"));
        }
        if hex_digest.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(bad("hex digits are lower case"));
        }
        let path = path.map(unescape).transpose().map_err(bad)?;
        if path.as_ref().is_some_and(Vec::is_empty) {
            return Err(bad("an empty path"));
        }
        Ok(Self { alg, digest, path })
    }

    /// The algorithm and digest, as IMA shows them.
    #[must_use]
    pub fn digest_text(&self) -> String {
        format!("{}:{}", self.alg.name(), hex::encode(&self.digest))
    }
}

impl std::fmt::Display for FileDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.digest_text())?;
        match &self.path {
            Some(path) => write!(f, " {}", escape(path)),
            None => Ok(()),
        }
    }
}

/// Printable UTF-8 as it is, `\` twice, any other byte as `\xNN`.
#[must_use]
pub(crate) fn escape(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    c.encode_utf8(&mut buffer).bytes().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
                }
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

fn unescape(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        match (*byte, behind) {
            (b'\\', [b'\\', more @ ..]) => {
                out.push(b'\\');
                rest = more;
            }
            (b'\\', [b'x', high, low, more @ ..]) => {
                let byte = hex::decode([*high, *low]).map_err(|_| "\\x without two hex digits in the path")?;
                out.extend(byte);
                rest = more;
            }
            (b'\\', _) => return Err("a \\ in the path that is neither \\\\ nor \\xNN"),
            (0, _) => return Err("a NUL in the path"),
            (byte, _) => out.push(byte),
        }
    }
    Ok(out)
}
