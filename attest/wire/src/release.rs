//! The release protocol's derived values, made by one function for both sides (DESIGN.md section 8).

use sha2::{Digest as _, Sha256};

use crate::id::{HostId, WorkloadId};

/// TPM_CC_Unseal, the only command that a verdict is good for (TPM 2.0 Part 2, 6.5.2).
const CC_UNSEAL: u32 = 0x0000_015E;

/// policyRef = SHA-256("countersign/release/v1" || workload id || host id || SHA-256(AK Name)).
#[must_use]
pub fn policy_ref(workload: &WorkloadId, host: &HostId, ak_name: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"countersign/release/v1");
    hash.update(workload.0);
    hash.update(host.0);
    hash.update(Sha256::digest(ak_name));
    hash.finalize().into()
}

/// cpHashA = SHA-256(TPM_CC_Unseal || object Name): this object, this command, no parameters.
#[must_use]
pub fn unseal_cp_hash(object_name: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(CC_UNSEAL.to_be_bytes());
    hash.update(object_name);
    hash.finalize().into()
}

/// aHash of TPM2_PolicySigned in the one form that the verdict key signs:
/// SHA-256(nonceTPM || expiration || cpHashA || policyRef).
#[must_use]
pub fn verdict_hash(nonce_tpm: &[u8; 32], expiration: u32, cp_hash: &[u8; 32], policy_ref: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(nonce_tpm);
    hash.update(expiration.to_be_bytes());
    hash.update(cp_hash);
    hash.update(policy_ref);
    hash.finalize().into()
}

/// aHash of TPM2_PolicyAuthorize: SHA-256(approvedPolicy || policyRef).
#[must_use]
pub fn approval_hash(approved_policy: &[u8; 32], policy_ref: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(approved_policy);
    hash.update(policy_ref);
    hash.finalize().into()
}
