//! From Debian packages.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use countersign_wire::refset::Origin;

use super::hashing::{digest, line, places};
use super::tar::{self, Member};
use super::unpack::{self, Format};
use super::{LearnError, about};

/// Longest control file, and `status` entry.
const CONTROL: u64 = 1024 * 1024;

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A package file: every regular file, also where it lies on a host whose /bin, /sbin and /lib are links into /usr.
///
/// # Errors
/// It is no package, or is compressed with xz and `xz` is missing.
pub fn deb_file(path: &Path) -> Result<Origin, LearnError> {
    read_deb(path).map_err(about(path))
}

fn read_deb(path: &Path) -> io::Result<Origin> {
    let mut file = File::open(path)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *b"!<arch>\n" {
        return Err(invalid("no Debian package"));
    }
    let mut origin = None;
    let mut offset: u64 = 8;
    loop {
        file.seek(SeekFrom::Start(offset))?;
        let mut header = [0; 60];
        match file.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(header.get(from..to).unwrap_or_default()).trim().to_owned()
        };
        if header.get(58..) != Some(b"`\n") {
            return Err(invalid("ar: a member's header is damaged"));
        }
        let size: u64 = text(48, 58).parse().map_err(|_| invalid("ar: a member's size is no number"))?;
        if file.metadata()?.len() < offset.saturating_add(60).saturating_add(size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let name = text(0, 16);
        let mut body = BufReader::new((&file).take(size));
        let format = Format::of(body.fill_buf()?);
        if name.starts_with("control.tar") {
            origin = Some(control(unpack::reader(format, body)?)?);
        } else if name.starts_with("data.tar") {
            let mut origin = origin.take().ok_or_else(|| invalid("no control.tar in front of data.tar"))?;
            for (path, sha256) in tar::digests(unpack::reader(format, body)?)? {
                origin.files.extend(places(&path).map(|path| line(sha256.clone(), &path)));
            }
            return Ok(origin);
        }
        offset = offset.saturating_add(60).saturating_add(size).saturating_add(size % 2);
    }
    Err(invalid("the package has no data.tar"))
}

/// Name, version and architecture.
fn control(source: impl Read) -> io::Result<Origin> {
    let mut found = None;
    tar::members(source, |path, member| {
        if let (b"./control" | b"control", Member::File(body)) = (path, member) {
            let mut text = String::new();
            body.take(CONTROL).read_to_string(&mut text)?;
            found = Some(origin(&text));
        }
        Ok(())
    })?;
    found.ok_or_else(|| invalid("control.tar has no control file"))
}

fn field<'t>(paragraph: &'t str, name: &str) -> &'t str {
    let value = |line: &'t str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    paragraph.lines().find_map(value).unwrap_or_default()
}

fn origin(paragraph: &str) -> Origin {
    Origin {
        version: field(paragraph, "Version").to_owned(),
        arch: field(paragraph, "Architecture").to_owned(),
        ..Origin::new("deb", field(paragraph, "Package"))
    }
}

/// Installed packages, all or the named ones, of the system at `root`: each regular file of dpkg's lists, hashed as it is installed here and with the
/// path where it really lies. Their maintainers' digests (MD5) vouch for nothing and are not looked at: this host is the golden one.
///
/// # Errors
/// dpkg's lists cannot be read, or a named package is not installed. Files that were removed are left out.
pub fn deb_installed(root: &Path, packages: &[String]) -> Result<Vec<Origin>, LearnError> {
    let status = root.join("var/lib/dpkg/status");
    let text = fs::read_to_string(&status).map_err(about(&status))?;
    let real_root = fs::canonicalize(root).map_err(about(root))?;
    let mut origins = Vec::new();
    for paragraph in text.split("\n\n") {
        let mut package = origin(paragraph);
        let wanted = packages.is_empty() || packages.contains(&package.name);
        if !wanted || !field(paragraph, "Status").ends_with(" installed") {
            continue;
        }
        let info = root.join("var/lib/dpkg/info");
        let with_arch = info.join(format!("{}:{}.list", package.name, package.arch));
        let plain = info.join(format!("{}.list", package.name));
        let list = if with_arch.exists() { with_arch } else { plain };
        let list_bytes = fs::read(&list).map_err(about(&list))?;
        for path in list_bytes.split(|byte| *byte == b'\n').filter(|path| path.len() > 1) {
            let below = path.strip_prefix(b"/").unwrap_or(path);
            let path = root.join(std::ffi::OsStr::from_bytes(below));
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_file() {
                let real = fs::canonicalize(&path).map_err(about(&path))?;
                let (sha256, _) = File::open(&real).and_then(digest).map_err(about(&path))?;
                let logged = real.strip_prefix(&real_root).unwrap_or(&real).as_os_str().as_bytes();
                package.files.push(line(sha256, &[b"/", logged].concat()));
            }
        }
        origins.push(package);
    }
    if let Some(missing) = packages.iter().find(|name| !origins.iter().any(|origin| origin.name == **name)) {
        return Err(about(&status)(format!("package {missing} is not installed")));
    }
    Ok(origins)
}
