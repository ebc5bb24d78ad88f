//! From RPM packages (RPM package format V4, docs/manual/format_header.md).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_tpm::codec::Reader;
use countersign_wire::ima::KernelHash;
use countersign_wire::refset::{FileDigest, Origin};

use super::hashing::places;
use super::{LearnError, about, missing};

/// Bytes of the lead.
const LEAD: usize = 96;
/// Most tags of a header, and most bytes of its data (rpm: hdrchkTags, hdrchkData).
const TAGS: u32 = 65_536;
const DATA: u32 = 256 * 1024 * 1024;

/// Tags (rpmtag.h).
mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const FILE_DIGESTS: u32 = 1035;
    pub(super) const DIR_INDEXES: u32 = 1116;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIR_NAMES: u32 = 1118;
    pub(super) const FILE_DIGEST_ALGORITHM: u32 = 5011;
}

/// A header: its index, and the data that the index points into.
struct Header {
    /// Tag, type, offset, count.
    index: Vec<[u32; 4]>,
    data: Vec<u8>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Header {
    fn read(source: &mut impl Read) -> io::Result<Self> {
        let mut intro = [0; 16];
        source.read_exact(&mut intro)?;
        let mut reader = Reader::new(&intro);
        if reader.take(4, "magic").ok() != Some(&[0x8e, 0xad, 0xe8, 0x01]) {
            return Err(invalid("an RPM header without its magic"));
        }
        let mut number = |skip| {
            reader.take(skip, "reserved").and_then(|_| reader.u32_be("count")).map_err(|e| invalid(e.to_string()))
        };
        let (tags, bytes) = (number(4)?, number(0)?);
        if tags > TAGS || bytes > DATA {
            return Err(invalid(format!("an RPM header of {tags} tags and {bytes} bytes: at most {TAGS} and {DATA}")));
        }
        let take = |source: &mut dyn Read, length: u64| {
            let mut out = Vec::new();
            source.take(length).read_to_end(&mut out)?;
            if u64::try_from(out.len()).unwrap_or(0) == length {
                Ok::<_, io::Error>(out)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        };
        let raw = take(source, u64::from(tags).saturating_mul(16))?;
        let data = take(source, bytes.into())?;
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
        let entry = |entry: &[u8]| {
            let mut words = entry.chunks(4).map(word);
            [(); 4].map(|()| words.next().unwrap_or(0))
        };
        Ok(Self { index: raw.chunks_exact(16).map(entry).collect(), data })
    }

    fn find(&self, tag: u32, kinds: &[u32]) -> Option<(&[u8], usize)> {
        let [_, _, offset, count] =
            self.index.iter().find(|[found, kind, ..]| *found == tag && kinds.contains(kind))?;
        Some((self.data.get(usize::try_from(*offset).ok()?..)?, usize::try_from(*count).ok()?))
    }

    /// STRING, STRING_ARRAY or I18NSTRING.
    fn strings(&self, tag: u32) -> Option<impl Iterator<Item = &[u8]>> {
        let (data, count) = self.find(tag, &[6, 8, 9])?;
        Some(data.split(|byte| *byte == 0).take(count))
    }

    fn string(&self, tag: u32) -> String {
        let first = self.strings(tag).and_then(|mut strings| strings.next());
        String::from_utf8_lossy(first.unwrap_or_default()).into_owned()
    }

    /// INT32.
    fn numbers(&self, tag: u32) -> Option<impl Iterator<Item = u32>> {
        let (data, count) = self.find(tag, &[4])?;
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
        Some(data.chunks_exact(4).take(count).map(word))
    }
}

/// The kernel's name of an OpenPGP hash algorithm (RFC 9580, 9.5).
fn algorithm(number: u32) -> io::Result<KernelHash> {
    match number {
        8 => Ok(KernelHash::SHA256),
        9 => Ok(KernelHash::SHA384),
        10 => Ok(KernelHash::SHA512),
        other => {
            Err(invalid(format!("its file digests have OpenPGP algorithm {other}: only SHA-256 and longer are taken")))
        }
    }
}

/// A package file: the digests in its header. Whether its signature is good, `rpm --checksig` tells.
///
/// # Errors
/// It is no package, or its digests are MD5 or SHA-1.
pub fn rpm_file(path: &Path) -> Result<Origin, LearnError> {
    let read = || {
        let mut source = BufReader::new(File::open(path)?);
        read_rpm(&mut source)
    };
    read().map_err(about(path))
}

fn read_rpm(source: &mut impl Read) -> io::Result<Origin> {
    let mut lead = [0; LEAD];
    source.read_exact(&mut lead)?;
    if !lead.starts_with(&[0xed, 0xab, 0xee, 0xdb]) {
        return Err(invalid("no RPM package"));
    }
    // The signature header ends at a multiple of eight bytes.
    let signature = Header::read(source)?;
    let padding = signature.data.len().wrapping_neg() % 8;
    io::copy(&mut source.take(u64::try_from(padding).unwrap_or(0)), &mut io::sink())?;
    let header = Header::read(source)?;
    let mut origin = Origin::new("rpm", header.string(tag::NAME));
    origin.version = format!("{}-{}", header.string(tag::VERSION), header.string(tag::RELEASE));
    origin.arch = header.string(tag::ARCH);
    let Some(names) = header.strings(tag::BASE_NAMES) else { return Ok(origin) };
    let alg = algorithm(header.numbers(tag::FILE_DIGEST_ALGORITHM).and_then(|mut all| all.next()).unwrap_or(1))?;
    let dirs: Vec<&[u8]> = header.strings(tag::DIR_NAMES).into_iter().flatten().collect();
    let digests = header.strings(tag::FILE_DIGESTS).into_iter().flatten();
    let indexes = header.numbers(tag::DIR_INDEXES).into_iter().flatten();
    for ((name, dir), digest) in names.zip(indexes).zip(digests) {
        // Folders, links and devices have none.
        if digest.is_empty() {
            continue;
        }
        let dir = dirs.get(usize::try_from(dir).unwrap_or(usize::MAX)).ok_or_else(|| invalid("a file in no folder"))?;
        origin.files.extend(file(alg, digest, &[dir, name].concat())?);
    }
    Ok(origin)
}

/// A file, at each place where it can lie.
fn file(alg: KernelHash, digest: &[u8], path: &[u8]) -> io::Result<impl Iterator<Item = String>> {
    let digest = hex::decode(digest).ok().filter(|digest| digest.len() == alg.size());
    let digest =
        digest.ok_or_else(|| invalid(format!("{}: no {} digest", String::from_utf8_lossy(path), alg.name())))?;
    Ok(places(path).map(move |path| FileDigest { alg, digest: digest.clone(), path: Some(path) }.to_string()))
}

/// What `rpm` prints: a line a package, then a line a file.
const QUERY: &str =
    "P\t%{NAME}\t%{VERSION}-%{RELEASE}\t%{ARCH}\t%{FILEDIGESTALGO}\n[F\t%{FILEDIGESTS}\t%{FILENAMES}\n]";

/// Installed packages, all or the named ones, of the system at `root`, by its RPM database.
///
/// # Errors
/// `rpm` is missing or fails, or a named package is not installed.
pub fn rpm_installed(root: &Path, packages: &[String]) -> Result<Vec<Origin>, LearnError> {
    let mut command = Command::new("rpm");
    command.arg("--root").arg(root).args(["--query", "--queryformat", QUERY]);
    if packages.is_empty() {
        command.arg("--all");
    } else {
        command.arg("--").args(packages);
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| missing(&e, "rpm", "the database of installed RPM packages"))?;
    let failed = |reason: String| LearnError::Failed { tool: "rpm", reason };
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        return Err(failed(String::from_utf8_lossy(&said).trim().to_owned()));
    }
    listed(&output.stdout).map_err(|e| failed(e.to_string()))
}

fn listed(text: &[u8]) -> io::Result<Vec<Origin>> {
    let mut origins: Vec<(Origin, u32)> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let words: Vec<&[u8]> = line.splitn(5, |byte| *byte == b'\t').collect();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match (words.as_slice(), origins.last_mut()) {
            ([b"P", name, version, arch, alg], _) => {
                let origin = Origin { version: text(version), arch: text(arch), ..Origin::new("rpm", text(name)) };
                // `(none)` of packages without files.
                origins.push((origin, text(alg).parse().unwrap_or(1)));
            }
            ([b"F", digest, path @ ..], Some((origin, alg))) if !digest.is_empty() => {
                let named = |e: io::Error| invalid(format!("package {}: {e}", origin.name));
                let alg = algorithm(*alg).map_err(named)?;
                origin.files.extend(file(alg, digest, &path.join(&b'\t')).map_err(named)?);
            }
            ([b"F", ..], Some(_)) => {}
            _ => return Err(invalid(format!("a line that was not asked for: {:?}", text(line)))),
        }
    }
    Ok(origins.into_iter().map(|(origin, _)| origin).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rpm_lists() {
        let digest = "ab".repeat(32);
        let text = format!(
            "P\tkernel\t1-1\tx86_64\t8\nF\t{digest}\t/lib/modules/1/a\tb.ko\nF\t\t/lib/modules\nP\tempty\t1-1\tnoarch\t(none)\n"
        );
        let origins = listed(text.as_bytes()).unwrap();
        assert_eq!(origins.len(), 2);
        // Where the file is listed, and where it lies when /lib is a link into /usr.
        let places: Vec<_> =
            origins[0].files.iter().map(|file| FileDigest::parse(file).unwrap().path.unwrap()).collect();
        assert_eq!(places, [&b"/usr/lib/modules/1/a\tb.ko"[..], b"/lib/modules/1/a\tb.ko"]);
        let error = listed(b"P\told\t1-1\tnoarch\t1\nF\tabcd\t/x\n").unwrap_err().to_string();
        assert!(error.contains("package old: ") && error.contains("only SHA-256 and longer"), "{error}");
    }
}
