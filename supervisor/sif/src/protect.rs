//! Making a protected image: as an ordinary user, in one pass, atomically.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_wire::id::PolicyDigest;
use zeroize::Zeroizing;

use crate::binding::{Binding, CIPHER, Payload, names};
use crate::dsse::{OwnerKey, object_digest};
use crate::error::SifError;
use crate::escrow::{self, Escrow};
use crate::format::{GROUP, Layout, Sif, data_type, fs_type, partition_extra};
use crate::luks::{self, Pbkdf};
use crate::verity::{BLOCK, Builder, tree_size};
use crate::xts::{KEY, SECTOR, VolumeKey, Xts};

/// Bytes encrypted at once.
const CHUNK: usize = 4 << 20;

/// What to protect, and how.
#[derive(Debug)]
pub struct Plan<'a> {
    /// A squashfs.
    pub squashfs: &'a Path,
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

fn random(bytes: &mut [u8]) -> Result<(), SifError> {
    Ok(openssl::rand::rand_bytes(bytes)?)
}

/// Makes a protected image. `progress` is told bytes done and bytes in all.
///
/// # Errors
/// [`SifError`]; nothing is left behind then.
pub fn protect(plan: &Plan<'_>, mut progress: impl FnMut(u64, u64)) -> Result<Binding, SifError> {
    let folder = plan.output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let block = u64::try_from(BLOCK).unwrap_or(0);
    let input = File::open(plan.squashfs)?;
    let length = input.metadata()?.len();
    if length == 0 {
        return Err(SifError::Structure("the file system to protect is empty".into()));
    }
    let padded = length.next_multiple_of(block);
    let partition_length = luks::HEADER.saturating_add(padded);
    let data_blocks = partition_length / block;

    let mut key = VolumeKey::new([0; KEY]);
    random(key.as_mut_slice())?;
    let mut salt = [0; 32];
    random(&mut salt)?;
    let mut uuid: [u8; 16] = uuid::Uuid::new_v4().into_bytes();
    random(&mut uuid)?;
    uuid = uuid::Builder::from_random_bytes(uuid).into_uuid().into_bytes();
    let (passphrase, pbkdf, message) = match plan.escrow {
        Escrow::Pem(public) => {
            let mut passphrase = Zeroizing::new(vec![0; 64]);
            random(&mut passphrase)?;
            let message = escrow::wrap(public, &passphrase)?;
            (passphrase, Pbkdf::Random, Some(message))
        }
        Escrow::Passphrase(passphrase) => (passphrase.clone(), Pbkdf::Typed, None),
    };
    let header = luks::make_header(&key, &passphrase, pbkdf, folder)?;

    let group = GROUP | 1;
    let mut layout = Layout::new(uuid, plan.time);
    let partition_extra = partition_extra(fs_type::ENCRYPTED_SQUASHFS);
    let partition_at = layout.add(data_type::PARTITION, "", 0, group, &partition_extra, partition_length);
    let message = message.map(|message| {
        let extra = [2i32.to_le_bytes(), 0x200i32.to_le_bytes()].concat();
        let size = u64::try_from(message.len()).unwrap_or(0);
        (layout.add(data_type::CRYPTO_MESSAGE, "", 1, group, &extra, size), message)
    });
    let tree_at = layout.add(data_type::GENERIC, names::TREE, 1, group, &[], tree_size(data_blocks));
    let policy_size = u64::try_from(plan.policy.len()).unwrap_or(0);
    let policy_at = layout.add(data_type::GENERIC, names::POLICY, 1, group, &[], policy_size);

    let output = tempfile::Builder::new().prefix(".countersign-").tempfile_in(folder)?;
    let file = output.as_file();
    file.write_all_at(&header, partition_at)?;
    let mut tree = Builder::new(salt);
    tree.add(&header);
    encrypt(&input, padded, &key, |offset, chunk| {
        tree.add(chunk);
        progress(offset.saturating_add(u64::try_from(chunk.len()).unwrap_or(0)), padded);
        Ok(file.write_all_at(chunk, partition_at.saturating_add(luks::HEADER).saturating_add(offset))?)
    })?;
    let (tree, tree_root) = tree.finish();
    let payload = Payload {
        salt,
        data_block_size: block,
        hash_block_size: block,
        data_block_count: data_blocks,
        partition_length,
        cipher: CIPHER.into(),
        sector_size: u64::try_from(SECTOR).unwrap_or(0),
        payload_offset: luks::HEADER,
        tree_root,
    };
    let binding = Binding::new(payload, PolicyDigest::of(plan.policy), &uuid);
    let json = binding.to_bytes()?;
    let json_size = u64::try_from(json.len()).unwrap_or(0);
    let json_at = layout.add(data_type::JSON, names::BINDING, 1, group, &[], json_size);
    if let Some((at, message)) = &message {
        file.write_all_at(message, *at)?;
    }
    file.write_all_at(&tree, tree_at)?;
    file.write_all_at(plan.policy, policy_at)?;
    file.write_all_at(&json, json_at)?;

    let mut digests = Vec::new();
    for object in &layout.objects {
        digests.push((object, object_digest(file, object)?));
    }
    let envelope = plan.signer.sign(&layout.sif(), &digests)?;
    let mut extra = 1i32.to_le_bytes().to_vec();
    extra.resize(4 + 256, 0);
    let size = u64::try_from(envelope.len()).unwrap_or(0);
    let signature_at = layout.add(data_type::SIGNATURE, "", group, GROUP, &extra, size);
    file.write_all_at(&envelope, signature_at)?;
    file.write_all_at(&layout.head(), 0)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()?;
    output.persist(plan.output).map_err(|e| SifError::Io(e.error))?;
    Ok(binding)
}

/// Encrypts a file, padded with zeros to `padded` bytes, in order; two threads share each chunk.
fn encrypt(
    input: &File,
    padded: u64,
    key: &VolumeKey,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), SifError>,
) -> Result<(), SifError> {
    let mut first = Xts::encryptor(key)?;
    let mut second = Xts::encryptor(key)?;
    let mut reader = BufReader::with_capacity(1 << 20, input);
    let mut offset: u64 = 0;
    let mut plain = Zeroizing::new(vec![0; CHUNK]);
    let mut cipher = vec![0; CHUNK];
    while offset < padded {
        let want = usize::try_from(padded.saturating_sub(offset)).unwrap_or(usize::MAX).min(CHUNK);
        let part = plain.get_mut(..want).unwrap_or_default();
        part.fill(0);
        read_full(&mut reader, part)?;
        let out = cipher.get_mut(..want).unwrap_or_default();
        let half = (want / 2).next_multiple_of(SECTOR).min(want);
        let sector = offset / 512;
        let (plain_a, plain_b) = part.split_at(half);
        let (out_a, out_b) = out.split_at_mut(half);
        let half_sectors = u64::try_from(half / SECTOR).unwrap_or(0);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| second.run(sector.saturating_add(half_sectors), plain_b, out_b));
            first.run(sector, plain_a, out_a)?;
            other.join().map_err(|_| SifError::Crypto("an encryption thread ended".into()))?
        })?;
        write(offset, out)?;
        offset = offset.saturating_add(u64::try_from(want).unwrap_or(0));
    }
    Ok(())
}

/// Fills a buffer as far as the input goes.
fn read_full(reader: &mut impl std::io::Read, mut buffer: &mut [u8]) -> Result<(), SifError> {
    while !buffer.is_empty() {
        let n = reader.read(buffer)?;
        if n == 0 {
            return Ok(());
        }
        buffer = buffer.get_mut(n..).unwrap_or_default();
    }
    Ok(())
}

/// A squashfs of what is given: a folder, a plain SIF, or a squashfs already. The file lies in `folder` unless it was a squashfs.
///
/// # Errors
/// [`SifError`].
pub fn squashfs_of(input: &Path, folder: &Path) -> Result<tempfile::TempPath, SifError> {
    let target = tempfile::Builder::new().prefix(".countersign-").suffix(".sqfs").tempfile_in(folder)?;
    if input.is_dir() {
        let path = target.into_temp_path();
        let mut command = Command::new("mksquashfs");
        command.arg(input).arg(&path).args(["-noappend", "-all-root", "-no-progress", "-quiet", "-comp", "zstd"]);
        let output = command.stdin(Stdio::null()).output().map_err(|e| SifError::Program {
            program: "mksquashfs",
            reason: format!("cannot be started: {e} (package squashfs-tools)"),
        })?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(SifError::Program { program: "mksquashfs", reason });
        }
        return Ok(path);
    }
    let mut file = File::open(input)?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0)?;
    if &magic == b"hsqs" {
        std::io::copy(&mut file, &mut target.as_file())?;
        return Ok(target.into_temp_path());
    }
    let sif = Sif::read(&file)?;
    let partition = sif.primary()?;
    if partition.partition().map(|(fs, _)| fs) != Some(fs_type::SQUASHFS) {
        return Err(SifError::Structure("the SIF's primary partition is no plain squashfs".into()));
    }
    let mut offset = partition.offset;
    let mut left = partition.size;
    let mut buffer = vec![0; 1 << 20];
    let mut written: u64 = 0;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..want).unwrap_or_default();
        file.read_exact_at(part, offset)?;
        target.as_file().write_all_at(part, written)?;
        let n = u64::try_from(want).unwrap_or(0);
        (offset, left, written) = (offset.saturating_add(n), left.saturating_sub(n), written.saturating_add(n));
    }
    Ok(target.into_temp_path())
}
