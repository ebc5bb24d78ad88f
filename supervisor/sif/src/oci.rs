//! OCI images as input: a layout folder, or an archive of one (OCI image specification 1.1).
//!
//! Layers are never unpacked: a first pass over them builds the merged tree in memory (names only), a second one streams the contents of what
//! is left to mksquashfs. So nothing in a layer can reach the machine's files, and no root is needed. Every blob's digest is checked each time
//! it is read, and every layer's contents against the configuration's `diff_ids`.
//!
//! As Apptainer does: every file is root's, Entrypoint, Cmd and Env become the runscript and an environment file, WorkingDir and User are not
//! used. Device nodes, FIFOs and extended attributes are left out.

mod config;
mod layer;
mod manifest;
mod store;
mod stream;
mod tree;

use std::path::Path;

use crate::error::SifError;
use crate::format::Arch;
use crate::squashfs::{Squashfs, from_tar};
use manifest::Image;
use store::Store;
use tree::Tree;

/// Most layers of an image. Runtimes stop at 128.
const LAYERS: usize = 512;
/// Longest index, manifest or configuration, bytes (the specification's own advice to registries is 4 MiB).
const JSON: u64 = 4 << 20;
/// Most members of all layers: what the merged tree keeps in memory.
const MEMBERS: u64 = 4_000_000;
/// Longest path and link target, bytes (PATH_MAX).
const PATH: usize = 4096;
/// Most bytes of names and link targets in all layers.
const NAMES: u64 = 512 << 20;
/// Longest extended header of a layer's member, bytes.
const EXTENSION: u64 = 1 << 20;
/// Most bytes that all layers may have when they are decompressed.
const EXPANDED: u64 = 1 << 40;
/// Most symbolic links followed on one path (as the kernel).
const LINKS: usize = 40;

fn bad(why: impl Into<String>) -> SifError {
    SifError::Structure(format!("OCI image: {}", why.into()))
}

/// Whether a folder or file is an OCI layout or an archive of one.
pub(crate) fn is_oci(input: &Path) -> bool {
    Store::looks_like(input)
}

/// The squashfs of an OCI image. `folder` has room for a temporary file.
///
/// # Errors
/// [`SifError`].
pub(crate) fn squashfs(input: &Path, folder: &Path) -> Result<Squashfs, SifError> {
    let store = Store::open(input)?;
    let image = Image::read(&store, Arch::native())?;
    let mut tree = Tree::new();
    let mut budget = layer::Budget::new();
    for (number, layer) in image.layers.iter().enumerate() {
        layer.each(&store, &mut budget, |index, member, _| tree.apply(number, index, member))?;
    }
    config::add(&mut tree, &image.config)?;
    from_tar(folder, image.arch, Some(image.digest.to_string()), |out| stream::write(&tree, &image, &store, out))
}
