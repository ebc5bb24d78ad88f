//! Decompression, told by the first bytes.

use std::io::{self, BufRead, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Gzip,
    Zstd,
    Xz,
    /// Known, and not read here.
    Other(&'static str),
}

impl Format {
    /// By the first bytes.
    pub(super) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x02, 0x21, 0x4c, 0x18, ..] | [0x04, 0x22, 0x4d, 0x18, ..] => Self::Other("lz4"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            [0x5d, 0, 0, ..] => Self::Other("lzma"),
            [0x89, b'L', b'Z', b'O', ..] => Self::Other("lzo"),
            _ => Self::Plain,
        }
    }
}

/// The decompressed stream of a whole reader.
pub(super) fn reader<'a>(format: Format, source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match format {
        Format::Plain => Box::new(source),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Format::Zstd => Box::new(zstd::Decoder::with_buffer(source)?),
        Format::Xz => Box::new(Xz::start(source)?),
        Format::Other(name) => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{name} is not read here: decompress it first"),
            ));
        }
    })
}

/// `xz -dc`, whose input is written to a temporary file first: two pipes at once could wait for each other.
struct Xz {
    child: Child,
    output: ChildStdout,
    ended: bool,
}

impl Xz {
    fn start(mut source: impl Read) -> io::Result<Self> {
        let mut input = tempfile::tempfile()?;
        io::copy(&mut source, &mut input)?;
        io::Seek::rewind(&mut input)?;
        let spawned = Command::new("xz")
            .args(["-dc", "--single-stream"])
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = spawned.map_err(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                return io::Error::new(io::ErrorKind::NotFound, "xz is not installed: it is needed to read .xz");
            }
            e
        })?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("xz has no output"))?;
        Ok(Self { child, output, ended: false })
    }
}

impl Read for Xz {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.output.read(buffer)?;
        if n == 0 && !buffer.is_empty() && !self.ended {
            self.ended = true;
            if !self.child.wait()?.success() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "xz says that the data is damaged"));
            }
        }
        Ok(n)
    }
}

impl Drop for Xz {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
