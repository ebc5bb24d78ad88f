//! A protected image: opened once, its signature and bindings checked before anything else is done with it.

use std::fs::File;
use std::path::Path;

use countersign_wire::limits;

use crate::binding::{Binding, names};
use crate::dsse::{self, SignerKey, object_digest};
use crate::error::SifError;
use crate::escrow::{self, EscrowKey};
use crate::format::{Descriptor, GROUP, PRIMARY_SYSTEM, Sif, data_type, fs_type, read_object};
use crate::luks;
use crate::verity::{Tree, tree_size};
use crate::xts::VolumeKey;

/// Longest `countersign.json`.
const MAX_BINDING: u64 = 64 * 1024;

/// A protected image whose signature holds.
#[derive(Debug)]
pub struct Image {
    file: File,
    sif: Sif,
    binding: Binding,
    policy: Vec<u8>,
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

    /// As [`Image::open`], on an open file; `full` also reads the partition and the tree and checks every digest.
    ///
    /// # Errors
    /// [`SifError`].
    pub fn from_file(file: File, trusted: &[SignerKey], full: bool) -> Result<Self, SifError> {
        let sif = Sif::read(&file)?;
        let group = GROUP | 1;
        let mut signed: Vec<&Descriptor> = Vec::new();
        let mut signatures: Vec<&Descriptor> = Vec::new();
        for object in &sif.objects {
            if object.data_type == data_type::SIGNATURE {
                signatures.push(object);
            } else if object.group == group {
                signed.push(object);
            } else {
                return Err(SifError::Signature(format!("object {} ({}) is in no signed group", object.id, object.name())));
            }
        }
        signed.sort_by_key(|object| object.id);
        let [signature] = signatures.as_slice() else {
            return Err(SifError::Signature(format!("{} signatures, expected one over the whole group", signatures.len())));
        };
        if signature.link != group {
            return Err(SifError::Signature("the signature is for another group".into()));
        }
        let partition = sif.primary()?.clone();
        if partition.partition() != Some((fs_type::ENCRYPTED_SQUASHFS, PRIMARY_SYSTEM)) {
            return Err(SifError::Structure("the primary partition is no encrypted squashfs".into()));
        }
        let tree = sif.named(data_type::GENERIC, names::TREE)?.clone();
        let envelope = read_object(&file, signature, dsse::MAX)?;
        let signer = dsse::verify(&envelope, &sif, &signed, trusted, |object| {
            let by_root = object.id == partition.id || object.id == tree.id;
            if by_root && !full { Ok(None) } else { object_digest(&file, object).map(Some) }
        })?;
        let max_policy = u64::try_from(limits::POLICY).unwrap_or(u64::MAX);
        let policy = read_object(&file, sif.named(data_type::GENERIC, names::POLICY)?, max_policy)?;
        let json = read_object(&file, sif.named(data_type::JSON, names::BINDING)?, MAX_BINDING)?;
        let binding = Binding::read(&json, &policy, &sif.uuid, partition.size)?;
        if tree.size != tree_size(binding.payload.data_block_count) {
            return Err(SifError::Binding(format!("the hash tree has {} bytes", tree.size)));
        }
        Ok(Self { file, binding, policy, partition, tree, signer, sif })
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

    /// The volume key, on its owner's machine.
    ///
    /// # Errors
    /// [`SifError::Key`] or [`SifError::Program`] for a key that does not open it.
    pub fn open_escrow(&self, key: &EscrowKey) -> Result<VolumeKey, SifError> {
        let passphrase = match key {
            EscrowKey::Passphrase(passphrase) => passphrase.clone(),
            EscrowKey::Pem(key) => {
                let message = self.sif.objects.iter().find(|object| {
                    object.data_type == data_type::CRYPTO_MESSAGE && object.link == self.partition.id
                });
                let message = message.ok_or_else(|| SifError::Key("the image has a passphrase, no escrow key".into()))?;
                escrow::unwrap(key, &read_object(&self.file, message, 64 * 1024)?)?
            }
        };
        let mut header = vec![0; usize::try_from(luks::HEADER).unwrap_or(0)];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut header, self.partition.offset)?;
        luks::open_header(&header, &passphrase, &std::env::temp_dir())
    }
}
