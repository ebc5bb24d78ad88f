//! An owner's grant: a workload's key, wrapped by its owner to one host's EK, for one AK and one verifier's keys (DESIGN.md section 8).
//!
//! Nothing in it is secret, and it is not signed: what it says beside the blob is checked against the blob's own policy, and the TPM checks the blob.

use countersign_tpm::import::SEALED_ATTRIBUTES;
use countersign_tpm::policy::sealed_policy;
use countersign_tpm::public::{Key, Name, Public};
use minicbor::{Decode, Encode};

use crate::cbor::message;
use crate::challenge::ImportBlob;
use crate::id::{HostId, WorkloadId};
use crate::limits;
use crate::release::policy_ref;

/// What `supervisor grant` writes and `verifier grant add` takes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Grant {
    /// Wire version, 1.
    #[n(0)]
    pub version: u16,
    /// Whose key it is.
    #[n(1)]
    pub workload: WorkloadId,
    /// Whose EK it is wrapped to.
    #[n(2)]
    pub host: HostId,
    /// Name of the AK that the host quotes with.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ak_name: Vec<u8>,
    /// Name of the verifier's approval key.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub approval: Vec<u8>,
    /// Name of the verifier's verdict key.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub verdict: Vec<u8>,
    /// The wrapped key.
    #[n(6)]
    pub import: ImportBlob,
}
message!(Grant, "grant", limits::MESSAGE);

impl ImportBlob {
    /// Whether this is a sealed object that opens for this workload, host and AK under these two keys, and in no other way. What is wrapped
    /// in it, and to which EK, only that EK's TPM can tell.
    #[must_use]
    pub fn opens_for(
        &self,
        workload: &WorkloadId,
        host: &HostId,
        ak_name: &[u8],
        approval: &Name,
        verdict: &Name,
    ) -> bool {
        let Ok(public) = Public::parse(&self.public) else { return false };
        public.auth_policy == sealed_policy(approval, verdict, &policy_ref(workload, host, ak_name))
            && public.attributes == SEALED_ATTRIBUTES
            && matches!(public.key, Key::Sealed { .. })
    }
}
