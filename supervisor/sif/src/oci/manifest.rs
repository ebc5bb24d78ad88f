//! From the index to one image: its manifest, its configuration, its layers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::layer::{Compression, Layer};
use super::store::{Digest, Store};
use super::{LAYERS, bad};
use crate::error::SifError;
use crate::format::Arch;

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// What the configuration says of a start.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Config {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// One image.
#[derive(Debug)]
pub(super) struct Image {
    /// Of its manifest.
    pub(super) digest: Digest,
    pub(super) arch: Arch,
    pub(super) config: Config,
    pub(super) layers: Vec<Layer>,
}

/// Docker's and the OCI's names for one thing.
fn is_index(media_type: &str) -> bool {
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
        .contains(&media_type)
}

fn is_manifest(media_type: &str) -> bool {
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"]
        .contains(&media_type)
}

/// The SIF's code of Go's name for an architecture.
fn arch_of(name: &str) -> Arch {
    Arch(*match name {
        "386" => b"01\0",
        "amd64" => b"02\0",
        "arm" => b"03\0",
        "arm64" => b"04\0",
        "ppc64" => b"05\0",
        "ppc64le" => b"06\0",
        "mips" => b"07\0",
        "mipsle" => b"08\0",
        "mips64" => b"09\0",
        "mips64le" => b"10\0",
        "s390x" => b"11\0",
        "riscv64" => b"12\0",
        "loong64" => b"13\0",
        _ => b"00\0",
    })
}

impl Image {
    /// The image for this machine; where there is only one, that one.
    pub(super) fn read(store: &Store, native: Arch) -> Result<Self, SifError> {
        let index: Index = store.json("index.json")?;
        let mut found = Vec::new();
        for entry in index.manifests {
            if is_index(&entry.media_type) {
                let nested: Index = store.json_blob(&entry.digest, entry.size)?;
                // Deeper ones are no images of anybody's making.
                found.extend(nested.manifests.into_iter().filter(|entry| is_manifest(&entry.media_type)));
            } else if is_manifest(&entry.media_type) {
                found.push(entry);
            }
        }
        // What builders attach for their own use says "unknown".
        found.retain(|entry| entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown"));
        if found.len() > 1 {
            found.retain(|entry| {
                entry.platform.as_ref().is_some_and(|p| p.os == "linux" && arch_of(&p.architecture) == native)
            });
        }
        match <[Descriptor; 1]>::try_from(found) {
            Ok([one]) => Self::of(store, one),
            Err(found) if found.is_empty() => Err(bad("no image for this machine in the index")),
            Err(found) => {
                Err(bad(format!("{} images in the index; skopeo copy oci:IN:TAG oci:OUT takes one", found.len())))
            }
        }
    }

    fn of(store: &Store, entry: Descriptor) -> Result<Self, SifError> {
        let manifest: Manifest = store.json_blob(&entry.digest, entry.size)?;
        let config: ConfigFile = store.json_blob(&manifest.config.digest, manifest.config.size)?;
        if config.os != "linux" {
            return Err(bad(format!("it is for {:?}, not for linux", config.os)));
        }
        let diff_ids = config.rootfs.diff_ids;
        if manifest.layers.len() > LAYERS || manifest.layers.len() != diff_ids.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(bad(format!("{layers} layers (at most {LAYERS}), {ids} in its configuration")));
        }
        let layer = |(layer, diff_id): (Descriptor, Digest)| {
            let compression = Compression::of(&layer.media_type)
                .ok_or_else(|| bad(format!("a layer of type {:?}", layer.media_type)))?;
            Ok(Layer { digest: layer.digest, size: layer.size, compression, diff_id })
        };
        let layers: Result<Vec<Layer>, SifError> = manifest.layers.into_iter().zip(diff_ids).map(layer).collect();
        let arch = arch_of(&config.architecture);
        Ok(Self { digest: entry.digest, arch, config: config.config.unwrap_or_default(), layers: layers? })
    }
}
