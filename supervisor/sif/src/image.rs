//! A protected image: opened once, its signature and bindings checked before anything else is done with it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use countersign_wire::limits;

use crate::binding::{Binding, names};
use crate::dsse::{self, SignerKey, object_digest};
use crate::error::SifError;
use crate::escrow::{self, EscrowKey};
use crate::format::{Descriptor, GROUP, PRIMARY_SYSTEM, Sif, data_type, fs_type, read_object};
use crate::luks;
use crate::verity::{BLOCK, BLOCK_U64, Tree, tree_size};
use crate::xts::VolumeKey;

/// Longest `countersign.json`.
const MAX_BINDING: u64 = 64 * 1024;

/// A protected image whose signature holds.
///
/// There is no other way to one than through the checks:
///
/// ```compile_fail
/// fn shortcut(file: std::fs::File, binding: countersign_sif::binding::Binding) -> countersign_sif::Image {
///     countersign_sif::Image { file, binding, ..todo!() }
/// }
/// ```
///
/// and a decrypted view takes an image, never a bare file:
///
/// ```compile_fail
/// fn shortcut(file: &std::fs::File, key: &countersign_sif::xts::VolumeKey) {
///     let _ = countersign_sif::View::new(file, key, 1);
/// }
/// ```
#[derive(Debug)]
pub struct Image {
    file: File,
    sif: Sif,
    binding: Binding,
    policy: Vec<u8>,
    /// The escrow's crypto message, if there is one.
    message: Option<Vec<u8>>,
    partition: Descriptor,
    tree: Descriptor,
    /// Key id of the signer.
    pub signer: String,
}

impl Image {
    /// Opens an image and checks signature, policy and binding; of the partition and its tree only what the signed root binds block by block
    /// is left for later.
    ///
    /// # Errors
    /// [`SifError`] says what is wrong.
    pub fn open(path: &Path, trusted: &[SignerKey]) -> Result<Self, SifError> {
        Self::from_file(File::open(path)?, trusted, false)
    }

    /// As [`Image::open`], on an open file; `full` also reads the partition and the tree, and checks every digest and every block.
    ///
    /// Not authenticated, and not used: architecture and times of the global header, table sizes, an object's absolute id, offset, padded
    /// size and modification time, bytes between and behind the objects.
    ///
    /// # Errors
    /// [`SifError`].
    pub fn from_file(file: File, trusted: &[SignerKey], full: bool) -> Result<Self, SifError> {
        let sif = Sif::read(&file)?;
        // 1. Every object is in the one signed group; exactly one signature, over that group.
        let group = GROUP | 1;
        let mut signed: Vec<&Descriptor> = Vec::new();
        let mut signatures: Vec<&Descriptor> = Vec::new();
        for object in &sif.objects {
            if object.data_type == data_type::SIGNATURE {
                signatures.push(object);
            } else if object.group == group {
                signed.push(object);
            } else {
                return Err(SifError::Signature(format!(
                    "object {} ({}) is in no signed group",
                    object.id,
                    object.name()
                )));
            }
        }
        signed.sort_by_key(|object| object.id);
        let [signature] = signatures.as_slice() else {
            return Err(SifError::Signature(format!(
                "{} signatures, expected one over the whole group",
                signatures.len()
            )));
        };
        if signature.link != group {
            return Err(SifError::Signature("the signature is for another group".into()));
        }
        // 2. The objects that a protected image has, each exactly once, each of the partition.
        let partition = sif.primary()?.clone();
        if partition.partition() != Some((fs_type::ENCRYPTED_SQUASHFS, PRIMARY_SYSTEM)) {
            return Err(SifError::Structure("the primary partition is no encrypted squashfs".into()));
        }
        let tree = sif.named(data_type::GENERIC, names::TREE)?.clone();
        let policy = sif.named(data_type::GENERIC, names::POLICY)?;
        let json = sif.named(data_type::JSON, names::BINDING)?;
        for object in [&tree, policy, json] {
            if object.link != partition.id {
                return Err(SifError::Binding(format!(
                    "object {} ({}) does not belong to the partition",
                    object.id,
                    object.name()
                )));
            }
        }
        let message = signed.iter().find(|object| {
            object.data_type == data_type::CRYPTO_MESSAGE
                && object.link == partition.id
                && object.extra.first_chunk::<8>() == Some(&escrow::EXTRA)
        });
        // 3. Signature and digests. What is used later is read once: the copy that was hashed is the one that is kept.
        let max_policy = u64::try_from(limits::POLICY).unwrap_or(u64::MAX);
        let wanted =
            [(Some(policy.id), max_policy), (Some(json.id), MAX_BINDING), (message.map(|m| m.id), escrow::MAX)];
        let mut kept: [Option<Vec<u8>>; 3] = [None, None, None];
        let envelope = read_object(&file, signature, dsse::MAX)?;
        let signer = dsse::verify(&envelope, &sif, &signed, trusted, |object| {
            let by_root = object.id == partition.id || object.id == tree.id;
            if by_root && !full {
                return Ok(None);
            }
            for ((id, max), place) in wanted.iter().zip(&mut kept) {
                if *id == Some(object.id) {
                    return Ok(Some(dsse::digest(place.insert(read_object(&file, object, *max)?))));
                }
            }
            object_digest(&file, object).map(Some)
        })?;
        let [policy, json, message] = kept;
        let (Some(policy), Some(json)) = (policy, json) else {
            return Err(SifError::Signature("policy and binding are not among the signed objects".into()));
        };
        // 4. Payload root, policy digest and workload id follow from what was read.
        let binding = Binding::read(&json, &policy, &sif.uuid, partition.size)?;
        if tree.size != tree_size(binding.payload.data_block_count) {
            return Err(SifError::Binding(format!("the hash tree has {} bytes", tree.size)));
        }
        let image = Self { file, binding, policy, message, partition, tree, signer, sif };
        if full {
            image.check_blocks()?;
        }
        Ok(image)
    }

    /// Checks every block of the partition against the tree.
    fn check_blocks(&self) -> Result<(), SifError> {
        let tree = self.tree();
        let mut buffer = vec![0; 256 * BLOCK];
        let mut index: u64 = 0;
        let count = self.binding.payload.data_block_count;
        while index < count {
            let blocks = usize::try_from(count.saturating_sub(index)).unwrap_or(usize::MAX).min(256);
            let part = buffer.get_mut(..blocks.saturating_mul(BLOCK)).unwrap_or_default();
            self.read_blocks(&tree, index, part)?;
            index = index.saturating_add(256);
        }
        Ok(())
    }

    /// Reads whole blocks of the partition, each checked against the tree.
    fn read_blocks(&self, tree: &Tree, first: u64, buffer: &mut [u8]) -> Result<(), SifError> {
        let at = first.saturating_mul(BLOCK_U64);
        self.file.read_exact_at(buffer, self.partition.offset.saturating_add(at))?;
        let mut index = first;
        for block in buffer.chunks(BLOCK) {
            tree.check(&self.file, index, block)?;
            index = index.saturating_add(1);
        }
        Ok(())
    }

    /// The binding: workload id, payload root, policy digest.
    #[must_use]
    pub const fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The policy bundle.
    #[must_use]
    pub fn policy(&self) -> &[u8] {
        &self.policy
    }

    /// Image UUID.
    #[must_use]
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.sif.uuid
    }

    /// The objects.
    #[must_use]
    pub fn objects(&self) -> &[Descriptor] {
        &self.sif.objects
    }

    /// The file, for a process that inherits it.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Offset of the partition in the file.
    #[must_use]
    pub const fn partition_offset(&self) -> u64 {
        self.partition.offset
    }

    /// The hash tree, ready to check blocks.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let payload = &self.binding.payload;
        Tree::new(payload.salt, payload.tree_root, self.tree.offset, payload.data_block_count)
    }

    /// The volume key, on its owner's machine. cryptsetup sees a copy of the header whose every block was checked.
    ///
    /// # Errors
    /// [`SifError::Key`] or [`SifError::Program`] for a key that does not open it, [`SifError::Integrity`] for a changed header.
    pub fn open_escrow(&self, key: &EscrowKey) -> Result<VolumeKey, SifError> {
        let passphrase = match key {
            EscrowKey::Passphrase(passphrase) => passphrase.clone(),
            EscrowKey::Pem(key) => {
                let message = self.message.as_ref();
                let message =
                    message.ok_or_else(|| SifError::Key("the image has a passphrase, no escrow key".into()))?;
                escrow::unwrap(key, message)?
            }
        };
        // At most 16 MiB: Binding::read saw to that.
        let mut header = vec![0; usize::try_from(self.binding.payload.payload_offset).unwrap_or(0)];
        self.read_blocks(&self.tree(), 0, &mut header)?;
        luks::open_header(&header, &passphrase, &std::env::temp_dir())
    }
}
