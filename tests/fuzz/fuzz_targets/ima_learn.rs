//! Packages, images and initrds as `attest learn` reads them: by the first byte, the rest is the file.
#![no_main]

use std::io::Write as _;

use countersign_attest::learn;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, file)) = data.split_first() else { return };
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(file).unwrap();
    let path = path.path();
    let _ = match kind % 4 {
        0 => learn::deb_file(path),
        1 => learn::rpm_file(path),
        2 => learn::initrd(path),
        _ => learn::ima_list(path, false),
    };
});
