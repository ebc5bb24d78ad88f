//! The owner's way back: `unprotect` and `rekey`, with the escrow key.

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use countersign_sif::dsse::{OwnerKey, SignerKey};
use countersign_sif::escrow::{Escrow, EscrowKey};
use countersign_sif::format::{Arch, GROUP, data_type, fs_type};
use countersign_sif::layout::{Layout, Object, primary_extra};
use countersign_sif::protect::Squashfs;
use countersign_sif::xts::VolumeKey;
use countersign_sif::{Image, SifError, View};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::owner::{self, Input, Policy, Protect, not_written, of_image, progress};
use crate::workshop::{Workshop, exists};

/// Bytes decrypted at once.
const CHUNK: usize = 4 << 20;

/// A protected image and what opens it.
#[derive(Debug)]
pub struct Protected<'a> {
    /// The image.
    pub image: &'a Path,
    /// Trusted signers.
    pub signers: &'a [SignerKey],
    /// What opens the escrow.
    pub escrow: &'a EscrowKey,
}

/// Writes the image as a plain SIF, which only its owner may read; every block is checked on the way.
///
/// # Errors
/// [`Failure`]; nothing half-made is left then.
pub fn unprotect(given: &Protected<'_>, output: &Path, force: bool) -> Result<Value, Failure> {
    if !force && output.symlink_metadata().is_ok() {
        return Err(exists(output));
    }
    let (image, key) = owner::open(given.image, given.signers, given.escrow)?;
    let workshop = Workshop::beside(output)?;
    let made = || -> Result<(), SifError> {
        let file = File::create_new(workshop.path().join("image"))?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        decrypt(&image, &key, &file)?;
        Ok(file.sync_all()?)
    };
    made().map_err(|e| not_written(output, e))?;
    workshop.deliver(output, force)?;
    Ok(json!({"image": output, "was": image.binding().workload}))
}

/// What `rekey` makes of an image.
#[derive(Debug)]
pub struct Rekey<'a> {
    /// Owner's private key.
    pub sign: &'a OwnerKey,
    /// Folder of another workload policy; none keeps the image's.
    pub policy: Option<&'a Path>,
    /// Who can open the new image without a verifier.
    pub escrow: Escrow,
    /// The image to make.
    pub output: &'a Path,
    /// Whether an image of that name is replaced.
    pub force: bool,
}

/// Encrypts an image with another volume key, for another escrow or policy: another workload, which is to be registered. It is decrypted, checked
/// and encrypted chunk by chunk: the plain file system is never in a file.
///
/// # Errors
/// [`Failure`]; nothing is left then.
pub fn rekey(given: &Protected<'_>, new: Rekey<'_>) -> Result<Value, Failure> {
    if !new.force && new.output.symlink_metadata().is_ok() {
        return Err(exists(new.output));
    }
    let (image, key) = owner::open(given.image, given.signers, given.escrow)?;
    // As many contexts as protect has threads: each reads its own chunk.
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let view = View::new(&image, &key, threads).map_err(|e| of_image(given.image, e))?;
    drop(key);
    let squashfs = Squashfs::of_view(view, arch(&image)).map_err(|e| of_image(given.image, e))?;
    let mut made = owner::protect_image(Protect {
        input: Input::Open(squashfs),
        policy: new.policy.map_or_else(|| Policy::Bundle(image.policy()), Policy::Folder),
        sign: new.sign,
        escrow: new.escrow,
        output: new.output,
        force: new.force,
    })?;
    if let Some(fields) = made.as_object_mut() {
        fields.insert("was".into(), json!(image.binding().workload));
    }
    Ok(made)
}

fn arch(image: &Image) -> Arch {
    let partition = image.objects().iter().find(|object| object.data_type == data_type::PARTITION);
    partition.and_then(countersign_sif::format::Descriptor::arch).unwrap_or_else(Arch::native)
}

/// Writes a plain SIF with the image's file system.
fn decrypt(image: &Image, key: &VolumeKey, file: &File) -> Result<(), SifError> {
    let view = View::new(image, key, 1)?;
    let mut uuid = countersign_attest::random::random::<16>();
    // RFC 9562: version 4, variant 10.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut layout = Layout::new(uuid, 0);
    let extra = primary_extra(fs_type::SQUASHFS, arch(image));
    let object = Object {
        data_type: data_type::PARTITION,
        name: "",
        link: 0,
        group: GROUP | 1,
        extra: &extra,
        size: view.length(),
    };
    let at = layout.add(object)?;
    let bar = progress("decrypting");
    bar.set_length(view.length());
    let mut done: u64 = 0;
    while done < view.length() {
        let plain = zeroize::Zeroizing::new(view.read_at(done, CHUNK)?);
        file.write_all_at(&plain, at.saturating_add(done))?;
        done = done.saturating_add(u64::try_from(plain.len()).unwrap_or(u64::MAX));
        bar.set_position(done);
    }
    bar.finish_and_clear();
    Ok(file.write_all_at(&layout.head(), 0)?)
}
