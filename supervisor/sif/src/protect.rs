//! Making a protected image: as an ordinary user, in one pass, atomically.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use countersign_wire::id::PolicyDigest;
use zeroize::Zeroizing;

use crate::binding::{Binding, CIPHER, Payload, names};
use crate::dsse::{self, OwnerKey};
use crate::error::SifError;
use crate::escrow::{self, Escrow};
use crate::format::{GROUP, data_type, fs_type};
use crate::layout::{Layout, Object, primary_extra};
use crate::luks::{self, Pbkdf};
use crate::pipeline::{Payload as Encrypting, Written};
use crate::verity::{BLOCK_U64, tree_size};
use crate::xts::{KEY, SECTOR, VolumeKey};

pub use crate::squashfs::{Squashfs, squashfs_of, squashfs_of_signed};

/// The partition's object id, which the others link to.
const PARTITION: u32 = 1;

/// What to protect, and how.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The file system.
    pub squashfs: &'a Squashfs,
    /// The policy bundle.
    pub policy: &'a [u8],
    /// Who signs.
    pub signer: &'a OwnerKey,
    /// Who can open it without a verifier.
    pub escrow: &'a Escrow,
    /// Where it goes; replaced as a whole, or not at all.
    pub output: &'a Path,
    /// Seconds since 1970 for the image's times.
    pub time: i64,
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Makes a protected image. `progress` is told bytes done and bytes in all.
///
/// # Errors
/// [`SifError`]; nothing is left behind then, and an older file of that name stays as it was.
pub fn protect(plan: &Plan<'_>, progress: impl FnMut(u64, u64) + Send) -> Result<Binding, SifError> {
    let folder = plan.output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let too_large = || SifError::Structure("the file system is too large".into());
    let padded = plan.squashfs.length().checked_next_multiple_of(BLOCK_U64).ok_or_else(too_large)?;
    let partition_length = padded.checked_add(luks::HEADER).ok_or_else(too_large)?;
    let data_blocks = partition_length / BLOCK_U64;

    let mut key = VolumeKey::new([0; KEY]);
    openssl::rand::rand_priv_bytes(key.as_mut_slice())?;
    let mut salt = [0; 32];
    openssl::rand::rand_bytes(&mut salt)?;
    let uuid = uuid::Uuid::new_v4().into_bytes();
    let (passphrase, pbkdf, message) = match plan.escrow {
        Escrow::Pem(public) => {
            let mut passphrase = Zeroizing::new(vec![0; 64]);
            openssl::rand::rand_priv_bytes(&mut passphrase)?;
            let message = escrow::wrap(public, &passphrase)?;
            (passphrase, Pbkdf::Random, Some(message))
        }
        Escrow::Passphrase(passphrase) => (passphrase.clone(), Pbkdf::Typed, None),
    };
    let make = || luks::make_header(&key, &passphrase, pbkdf, folder);
    // cryptsetup measures how much of argon2id two seconds allow: were all cores at work meanwhile, it would take less.
    let made = (pbkdf == Pbkdf::Typed).then(make).transpose()?;

    let mut layout = Layout::new(uuid, plan.time);
    let object =
        Object { data_type: data_type::GENERIC, name: "", link: PARTITION, group: GROUP | 1, extra: &[], size: 0 };
    let extra = primary_extra(fs_type::ENCRYPTED_SQUASHFS, plan.squashfs.arch());
    let partition =
        Object { data_type: data_type::PARTITION, link: 0, extra: &extra, size: partition_length, ..object };
    let partition_at = layout.add(partition)?;

    let message_at = match &message {
        Some(message) => Some(layout.add(Object {
            data_type: data_type::CRYPTO_MESSAGE,
            extra: &escrow::EXTRA,
            size: length(message),
            ..object
        })?),
        None => None,
    };
    let tree_at = layout.add(Object { name: names::TREE, size: tree_size(data_blocks), ..object })?;

    let output = tempfile::Builder::new().prefix(".countersign-").tempfile_in(folder)?;
    let file = output.as_file();
    let payload = Encrypting { squashfs: plan.squashfs, file, partition_at, tree_at, padded, salt };
    let header = || made.map_or_else(make, Ok);
    let Written { digest, tree_root } = payload.write(&key, header, progress)?;
    let mut digests = vec![digest];
    if let (Some(message), Some(at)) = (&message, message_at) {
        file.write_all_at(message, at)?;
        digests.push(dsse::digest(message));
    }
    let tree = layout.objects().last().ok_or_else(|| SifError::Structure("no hash tree".into()))?;
    digests.push(dsse::object_digest(file, tree)?);

    let binding = Binding::new(
        Payload {
            salt,
            data_block_size: BLOCK_U64,
            hash_block_size: BLOCK_U64,
            data_block_count: data_blocks,
            partition_length,
            cipher: CIPHER.into(),
            sector_size: u64::try_from(SECTOR).unwrap_or(0),
            payload_offset: luks::HEADER,
            tree_root,
        },
        PolicyDigest::of(plan.policy),
        &uuid,
    );
    let mut place = |object: Object<'_>, bytes: &[u8]| -> Result<(), SifError> {
        let at = layout.add(Object { size: length(bytes), ..object })?;
        digests.push(dsse::digest(bytes));
        Ok(file.write_all_at(bytes, at)?)
    };
    place(Object { name: names::POLICY, ..object }, plan.policy)?;
    place(Object { data_type: data_type::JSON, name: names::BINDING, ..object }, &binding.to_bytes()?)?;

    let signed: Vec<_> = layout.objects().iter().zip(digests).collect();
    let envelope = plan.signer.sign(&layout.sif(), &signed)?;
    // Hash type 1 (SHA-256), no fingerprint.
    let mut extra = [0; 4 + 256];
    if let Some(first) = extra.first_mut() {
        *first = 1;
    }
    let signature = Object {
        data_type: data_type::SIGNATURE,
        link: GROUP | 1,
        group: GROUP,
        extra: &extra,
        size: length(&envelope),
        ..object
    };
    let at = layout.add(signature)?;
    file.write_all_at(&envelope, at)?;
    file.write_all_at(&layout.head(), 0)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    output.persist(plan.output).map_err(|e| SifError::Io(e.error))?;
    File::open(folder)?.sync_all()?;
    Ok(binding)
}
