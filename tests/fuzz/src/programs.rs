//! What the command lines read: join tokens, PCRS.json, packages, images and initrds.

use std::io::Write as _;
use std::path::Path;

use countersign_attest::learn;
use countersign_verifier::check::{LogFiles, check_eventlog};

/// The text form of a join token.
pub fn join_token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = countersign_attest::token::parse(text);
    }
}

/// PCRS.json: no values are those of a log that is none.
pub fn pcrs_json(data: &[u8]) {
    assert!(check_eventlog(LogFiles { log: b"", pcrs: data, ..LogFiles::default() }).is_err());
}

fn path<T>(data: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(data).unwrap();
    read(file.path())
}

/// A Debian package.
pub fn learn_deb(data: &[u8]) {
    let _ = path(data, learn::deb_file);
}

/// The headers of an RPM package.
pub fn learn_rpm(data: &[u8]) {
    let _ = path(data, learn::rpm_file);
}

/// The cpio archives of an initrd.
pub fn learn_initrd(data: &[u8]) {
    let _ = path(data, learn::initrd);
}

/// A SIF image, as far as its squashfs is looked for.
pub fn learn_sif(data: &[u8]) {
    let _ = path(data, learn::sif);
}
