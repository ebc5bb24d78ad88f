//! What binds an image together: payload root, policy digest, workload id, and the object `countersign.json` that states them.

use countersign_wire::id::{PayloadRoot, PolicyDigest, WorkloadId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::SifError;

/// Names of our objects.
pub mod names {
    /// The hash tree.
    pub const TREE: &str = "countersign.verity";
    /// The policy bundle.
    pub const POLICY: &str = "countersign.policy";
    /// The binding.
    pub const BINDING: &str = "countersign.json";
}

/// Cipher of every payload.
pub const CIPHER: &str = "aes-xts-plain64";

/// Everything that the payload root is computed from (DESIGN.md section 9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// Salt of the hash tree, hex.
    #[serde(with = "hex")]
    pub salt: [u8; 32],
    /// Bytes of a data block.
    pub data_block_size: u64,
    /// Bytes of a hash block.
    pub hash_block_size: u64,
    /// Data blocks in the partition.
    pub data_block_count: u64,
    /// Bytes of the partition.
    pub partition_length: u64,
    /// `aes-xts-plain64`.
    pub cipher: String,
    /// Bytes of a sector.
    pub sector_size: u64,
    /// Where the encrypted payload begins in the partition, bytes.
    pub payload_offset: u64,
    /// Root of the hash tree, hex.
    #[serde(with = "hex")]
    pub tree_root: [u8; 32],
}

impl Payload {
    /// SHA-256("countersign/payload/v1" || salt || sizes || cipher || sector size || payload offset || tree root).
    #[must_use]
    pub fn root(&self) -> PayloadRoot {
        let mut hash = Sha256::new();
        hash.update(b"countersign/payload/v1");
        hash.update(self.salt);
        for number in [self.data_block_size, self.hash_block_size, self.data_block_count, self.partition_length] {
            hash.update(number.to_be_bytes());
        }
        hash.update(u16::try_from(self.cipher.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(self.cipher.as_bytes());
        hash.update(self.sector_size.to_be_bytes());
        hash.update(self.payload_offset.to_be_bytes());
        hash.update(self.tree_root);
        PayloadRoot(hash.finalize().into())
    }

    /// Refuses numbers that this program does not serve.
    fn check(&self) -> Result<(), SifError> {
        let block = self.data_block_size;
        let whole = self.data_block_count.checked_mul(block) == Some(self.partition_length);
        if block != 4096 || self.hash_block_size != 4096 || !whole || self.data_block_count == 0 {
            return Err(SifError::Binding("block sizes or counts do not fit the partition".into()));
        }
        if self.cipher != CIPHER || self.sector_size != 512 {
            return Err(SifError::Binding(format!("cipher {:?} with {}-byte sectors", self.cipher, self.sector_size)));
        }
        let header = 1..=crate::luks::HEADER;
        if !self.payload_offset.is_multiple_of(block)
            || !header.contains(&self.payload_offset)
            || self.payload_offset >= self.partition_length
        {
            return Err(SifError::Binding(format!("payload offset {}", self.payload_offset)));
        }
        Ok(())
    }
}

/// `countersign.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Format version, 1.
    pub version: u16,
    /// Workload id.
    pub workload: WorkloadId,
    /// Payload root.
    pub payload_root: PayloadRoot,
    /// Policy digest.
    pub policy: PolicyDigest,
    /// Inputs of the payload root.
    pub payload: Payload,
}

impl Binding {
    /// The binding of a payload, a policy and an image.
    #[must_use]
    pub fn new(payload: Payload, policy: PolicyDigest, uuid: &[u8; 16]) -> Self {
        let payload_root = payload.root();
        Self { version: 1, workload: WorkloadId::of(&payload_root, &policy, uuid), payload_root, policy, payload }
    }

    /// The object's bytes.
    ///
    /// # Errors
    /// [`SifError::Binding`], which cannot happen.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SifError> {
        serde_json::to_vec(self).map_err(|e| SifError::Binding(e.to_string()))
    }

    /// Reads the object and recomputes every digest in it.
    ///
    /// # Errors
    /// [`SifError::Binding`]: unknown or duplicate keys, numbers that do not fit, or digests that do not follow from the rest.
    pub fn read(bytes: &[u8], policy: &[u8], uuid: &[u8; 16], partition_length: u64) -> Result<Self, SifError> {
        let binding: Self = serde_json::from_slice(bytes).map_err(|e| SifError::Binding(e.to_string()))?;
        if binding.version != 1 {
            return Err(SifError::Binding(format!("version {}", binding.version)));
        }
        binding.payload.check()?;
        if binding.payload.partition_length != partition_length {
            return Err(SifError::Binding(format!(
                "the partition has {partition_length} bytes, the binding says {}",
                binding.payload.partition_length
            )));
        }
        let want = Self::new(binding.payload.clone(), PolicyDigest::of(policy), uuid);
        if want.policy != binding.policy {
            return Err(SifError::Binding(format!(
                "the policy's digest is {}, the binding says {}",
                want.policy, binding.policy
            )));
        }
        if want != binding {
            return Err(SifError::Binding("payload root or workload id do not follow from the rest".into()));
        }
        Ok(binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload {
            salt: [1; 32],
            data_block_size: 4096,
            hash_block_size: 4096,
            data_block_count: 4097,
            partition_length: 4097 * 4096,
            cipher: CIPHER.into(),
            sector_size: 512,
            payload_offset: 4096 * 4096,
            tree_root: [2; 32],
        }
    }

    #[test]
    fn every_input_enters_the_root() {
        let base = payload().root();
        let changes: [fn(&mut Payload); 9] = [
            |p| p.salt[0] ^= 1,
            |p| p.data_block_size += 1,
            |p| p.hash_block_size += 1,
            |p| p.data_block_count += 1,
            |p| p.partition_length += 1,
            |p| p.cipher.push('x'),
            |p| p.sector_size += 1,
            |p| p.payload_offset += 1,
            |p| p.tree_root[0] ^= 1,
        ];
        for change in changes {
            let mut changed = payload();
            change(&mut changed);
            assert_ne!(changed.root(), base);
        }
    }

    #[test]
    fn duplicate_and_unknown_keys_and_false_digests_are_refused() {
        let binding = Binding::new(payload(), PolicyDigest::of(b"policy"), &[3; 16]);
        let bytes = binding.to_bytes().unwrap();
        let length = payload().partition_length;
        assert_eq!(Binding::read(&bytes, b"policy", &[3; 16], length).unwrap(), binding);
        let text = String::from_utf8(bytes).unwrap();
        let duplicate = text.replacen("{\"version\":1,", "{\"version\":1,\"version\":1,", 1);
        let unknown = text.replacen("{\"version\":1,", "{\"version\":1,\"more\":1,", 1);
        for wrong in [duplicate, unknown] {
            assert!(Binding::read(wrong.as_bytes(), b"policy", &[3; 16], length).is_err());
        }
        assert!(Binding::read(text.as_bytes(), b"another policy", &[3; 16], length).is_err());
        assert!(Binding::read(text.as_bytes(), b"policy", &[4; 16], length).is_err());
        assert!(Binding::read(text.as_bytes(), b"policy", &[3; 16], length + 4096).is_err());
        for end in 0..text.len() {
            assert!(Binding::read(&text.as_bytes()[..end], b"policy", &[3; 16], length).is_err());
        }
    }
}
