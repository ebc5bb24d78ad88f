//! Where an image's blobs are: a layout's folder, or an uncompressed archive of it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::digest::{Algorithm, Context, SHA256, SHA512};
use serde::{Deserialize, Deserializer};

use super::layer::{self, Kind};
use super::{JSON, MEMBERS, bad};
use crate::error::SifError;

/// `sha256:...` or `sha512:...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Digest {
    algorithm: Hasher,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hasher {
    Sha256,
    Sha512,
}

impl Digest {
    fn parse(text: &str) -> Option<Self> {
        let (name, hex) = text.split_once(':')?;
        let (algorithm, length) = match name {
            "sha256" => (Hasher::Sha256, 64),
            "sha512" => (Hasher::Sha512, 128),
            _ => return None,
        };
        let good = hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self { algorithm, hex: hex.to_owned() })
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.to_string().replace(':', "/"))
    }

    pub(super) const fn algorithm(&self) -> &'static Algorithm {
        match self.algorithm {
            Hasher::Sha256 => &SHA256,
            Hasher::Sha512 => &SHA512,
        }
    }

    /// Whether this is the digest of what was hashed.
    pub(super) fn is(&self, hashed: Context) -> bool {
        hex::encode(hashed.finish()) == self.hex
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.algorithm {
            Hasher::Sha256 => "sha256",
            Hasher::Sha512 => "sha512",
        };
        write!(f, "{name}:{}", self.hex)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no sha256 or sha512 digest"))
    }
}

/// An image's blobs.
#[derive(Debug)]
pub(super) enum Store {
    Folder(PathBuf),
    /// Offset and length of each file in it.
    Archive(File, HashMap<Vec<u8>, (u64, u64)>),
}

/// A span of an archive, or a whole file.
#[derive(Debug)]
pub(super) struct Span {
    file: File,
    offset: u64,
    left: u64,
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), self.offset)?;
        let read = u64::try_from(n).unwrap_or(0);
        self.offset = self.offset.saturating_add(read);
        self.left = self.left.saturating_sub(read);
        Ok(n)
    }
}

impl Span {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.offset = self.offset.saturating_add(bytes);
        Ok(())
    }
}

/// A blob, hashed while it is read.
pub(super) struct Blob<'a> {
    digest: &'a Digest,
    hash: Context,
    span: Span,
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.span.read(buffer)?;
        self.hash.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl Blob<'_> {
    /// Reads what is left; the digest must be the one that was asked for.
    pub(super) fn check(mut self) -> Result<(), SifError> {
        io::copy(&mut self, &mut io::sink())?;
        if self.digest.is(self.hash) { Ok(()) } else { Err(bad(format!("blob {} has another digest", self.digest))) }
    }
}

impl Store {
    /// A layout that lacks a part is a broken layout, no root folder.
    pub(super) fn looks_like(input: &Path) -> bool {
        if input.is_dir() {
            return input.join("oci-layout").exists();
        }
        let mut magic = [0; 5];
        File::open(input).and_then(|file| file.read_exact_at(&mut magic, 257)).is_ok() && &magic == b"ustar"
    }

    pub(super) fn open(input: &Path) -> Result<Self, SifError> {
        let store = if input.is_dir() { Self::Folder(input.to_owned()) } else { Self::index(File::open(input)?)? };
        #[derive(Deserialize)]
        struct Layout {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let layout: Layout = store.json("oci-layout")?;
        if !layout.version.starts_with("1.") {
            return Err(bad(format!("layout version {:?}", layout.version)));
        }
        Ok(store)
    }

    fn index(file: File) -> Result<Self, SifError> {
        let mut files = HashMap::new();
        let mut span = Span { left: file.metadata()?.len(), file: file.try_clone()?, offset: 0 };
        let mut count: u64 = 0;
        let indexed = layer::members(&mut span, Span::skip, |member, body| {
            count = count.saturating_add(1);
            if count > MEMBERS {
                return Err(bad(format!("more than {MEMBERS} files")));
            }
            if member.kind == Kind::File {
                let name = member.path.strip_prefix(b"./").unwrap_or(&member.path).to_vec();
                files.insert(name, (body.get_ref().offset, member.size));
            }
            Ok(())
        });
        if let Err(SifError::Io(e)) = indexed {
            return Err(bad(format!("the archive ends or breaks behind {count} members: {e}")));
        }
        indexed?;
        if !files.contains_key(b"oci-layout".as_slice()) {
            return Err(bad(
                "the archive holds no oci-layout; skopeo copy docker-archive:IN oci-archive:OUT makes one",
            ));
        }
        Ok(Self::Archive(file, files))
    }

    fn span(&self, name: &str) -> Result<Span, SifError> {
        match self {
            Self::Folder(folder) => {
                // A FIFO in its place must not block.
                let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
                let open = OpenOptions::new().read(true).custom_flags(flags).open(folder.join(name));
                let file = open.map_err(|e| bad(format!("{name}: {e}")))?;
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(bad(format!("{name} is no file")));
                }
                Ok(Span { file, offset: 0, left: metadata.len() })
            }
            Self::Archive(file, files) => {
                let found = files.get(name.as_bytes()).ok_or_else(|| bad(format!("{name} is not in the archive")))?;
                Ok(Span { file: file.try_clone()?, offset: found.0, left: found.1 })
            }
        }
    }

    /// A file that no digest names.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, SifError> {
        let mut text = Vec::new();
        self.span(name)?.take(JSON.saturating_add(1)).read_to_end(&mut text)?;
        parse(name, &text)
    }

    /// A blob that is read piece by piece; it must have the length that its descriptor says.
    pub(super) fn blob<'a>(&self, digest: &'a Digest, size: u64) -> Result<Blob<'a>, SifError> {
        let span = self.span(&digest.path())?;
        if span.left != size {
            return Err(bad(format!("blob {digest} has {} bytes, its descriptor says {size}", span.left)));
        }
        Ok(Blob { digest, hash: Context::new(digest.algorithm()), span })
    }

    /// A blob of JSON.
    pub(super) fn json_blob<T: for<'de> Deserialize<'de>>(&self, digest: &Digest, size: u64) -> Result<T, SifError> {
        if size > JSON {
            return Err(bad(format!("{digest} has {size} bytes, at most {JSON}")));
        }
        let mut blob = self.blob(digest, size)?;
        let mut text = Vec::new();
        blob.read_to_end(&mut text)?;
        blob.check()?;
        parse(&digest.to_string(), &text)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, text: &[u8]) -> Result<T, SifError> {
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > JSON {
        return Err(bad(format!("{name} has more than {JSON} bytes")));
    }
    serde_json::from_slice(text).map_err(|e| bad(format!("{name}: {e}")))
}
