//! OCI layouts: everything around the fuzzer's part is as it must be, digests and sizes too, so that each parser is reached.

use std::fs;
use std::path::Path;

use countersign_sif::protect::squashfs_of;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const TYPE: &str = "application/vnd.oci.image";

/// The first byte says what the rest is: index, manifest, configuration, a layer in one of three forms, or a whole archive.
pub fn oci(data: &[u8]) {
    let Some((kind, part)) = data.split_first() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (input, room) = (folder.path().join("input"), folder.path().join("room"));
    fs::create_dir(&room).unwrap();
    match kind % 7 {
        0 => fs::write(&input, part).unwrap(),
        kind => layout(&input, kind, part),
    }
    let made = squashfs_of(&input, &room);
    assert_eq!(fs::read_dir(&room).unwrap().count(), 0, "a file is left");
    if let Ok(squashfs) = made {
        let mut magic = [0; 4];
        squashfs.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"hsqs");
    }
}

fn layout(folder: &Path, kind: u8, part: &[u8]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let blob = |bytes: &[u8], media: &str| -> Value {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).unwrap();
        json!({"mediaType": format!("{TYPE}.{media}"), "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let text = |value: &Value| serde_json::to_vec(value).unwrap();
    let (layer, media) = match kind {
        1 => (part, "layer.v1.tar"),
        2 => (part, "layer.v1.tar+gzip"),
        3 => (part, "layer.v1.tar+zstd"),
        _ => ([0; 1024].as_slice(), "layer.v1.tar"),
    };
    let layer = blob(layer, media);
    // Right for an archive that is not compressed; of the others that is looked at last.
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = if kind == 4 { part.to_vec() } else { text(&config) };
    let manifest = json!({"schemaVersion": 2, "config": blob(&config, "config.v1+json"), "layers": [layer]});
    let manifest = if kind == 5 { part.to_vec() } else { text(&manifest) };
    let index = json!({"schemaVersion": 2, "manifests": [blob(&manifest, "manifest.v1+json")]});
    let index = if kind == 6 { part.to_vec() } else { text(&index) };
    fs::write(folder.join("index.json"), index).unwrap();
}
