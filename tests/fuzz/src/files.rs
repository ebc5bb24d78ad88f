//! SIF images and policy bundles.

use std::fs::File;
use std::io::Write as _;

use countersign_policy::PolicyBundle;
use countersign_sif::Image;
use countersign_sif::binding::Binding;
use countersign_sif::format::{Sif, read_object};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes of an object that are read.
const OBJECT: u64 = 1024 * 1024;

pub(super) fn file(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

/// Header, descriptors and objects of a SIF image; nobody's signature is accepted.
pub fn sif(data: &[u8]) {
    let file = file(data);
    if let Ok(sif) = Sif::read(&file) {
        let _ = sif.primary();
        for object in &sif.objects {
            let _ = (object.name(), object.partition(), object.arch());
            if let Ok(bytes) = read_object(&file, object, OBJECT) {
                assert!(bytes.len() <= data.len());
            }
        }
    }
    assert!(Image::from_file(file, &[], true).is_err());
}

/// The binding of policy and payload in an image.
pub fn sif_binding(data: &[u8]) {
    if let Ok(binding) = Binding::read(data, b"policy", &[0; 16], 8192) {
        let bytes = binding.to_bytes().unwrap();
        assert!(Binding::read(&bytes, b"policy", &[0; 16], 8192).is_ok());
    }
}

/// An OPA bundle: as it is, and as the tar archive in one.
pub fn policy_bundle(data: &[u8]) {
    let _ = PolicyBundle::parse(data);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    gzip.write_all(data).unwrap();
    let _ = PolicyBundle::parse(&gzip.finish().unwrap());
}
