//! Following a verifier whose approval or verdict key was rotated: from the pinned trust bundle to the newest, each step signed by the CA key.

use countersign_tpm::public::Public;
use countersign_wire::challenge::Challenge;
use countersign_wire::id::WorkloadId;
use countersign_wire::trust::{TrustBundle, TrustChain};
use countersign_wire::{artefact, cbor};

use super::{Keys, Operation};
use crate::client::Client;
use crate::error::HostError;

impl Operation<'_> {
    /// Checks, before anything is asked of the TPM, that the challenge's sealed object opens under the pinned keys. One that does not may be for
    /// keys that are new: then the verifier's transitions are walked, and pinned.
    pub(super) fn expect_sealed(
        &mut self,
        client: &Client,
        keys: &Keys,
        challenge: &Challenge,
        workload: &WorkloadId,
    ) -> Result<(), HostError> {
        if self.opens_under_pinned(keys, challenge, workload)? {
            return Ok(());
        }
        self.follow(client)?;
        if self.opens_under_pinned(keys, challenge, workload)? {
            return Ok(());
        }
        Err(HostError::unexpected(
            "its sealed object is for another workload, host, AK, or for keys that this host has not pinned",
        ))
    }

    fn opens_under_pinned(&self, keys: &Keys, challenge: &Challenge, workload: &WorkloadId) -> Result<bool, HostError> {
        let blob =
            challenge.import.as_ref().ok_or_else(|| HostError::unexpected("its challenge has no sealed object"))?;
        let (_, trust) = self.host.trust()?;
        let name = |public: &[u8]| {
            let public = Public::parse(public).map_err(|e| HostError::Corrupt(format!("trust.bundle: {e}")))?;
            Ok::<_, HostError>(public.name())
        };
        let (approval, verdict) = (name(&trust.approval_key)?, name(&trust.verdict_key)?);
        Ok(blob.opens_for(workload, &keys.card.host, keys.ak.public.name().as_bytes(), &approval, &verdict))
    }

    /// Pins the newest trust bundle, if the verifier can show the way to it.
    fn follow(&self, client: &Client) -> Result<(), HostError> {
        let (pinned, _) = self.host.trust()?;
        let newest = client.trust_since(&TrustBundle::digest(&pinned))?;
        if newest != pinned {
            let bundle: TrustBundle = cbor::decode(&newest)?;
            self.host.state.write("trust.bundle", &artefact::to_file(&bundle))?;
        }
        Ok(())
    }
}

/// The newest bundle of a chain that begins with the one that has this digest.
pub(crate) fn newest(chain: &[u8], digest: &[u8; 32]) -> Result<Vec<u8>, HostError> {
    let chain: TrustChain = cbor::decode(chain)?;
    let newest = chain.newest(digest).map_err(|e| HostError::unexpected(format!("its new trust bundle: {e}")))?;
    Ok(newest.to_vec())
}
