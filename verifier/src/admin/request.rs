//! What an operator may ask.

use countersign_wire::enrol::HostState;
use countersign_wire::id::{PayloadRoot, RunId, VerdictId, WorkloadId};
use serde::{Deserialize, Serialize};

/// A request of an operator. JSON: {"op": "...", ...}; binary values are base64, ids hex.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A join token.
    TokenNew {
        /// How many hosts it admits.
        uses: u32,
        /// Seconds until it expires.
        ttl_s: u32,
        /// Admits a new AK on this known host instead of a new host.
        host: Option<String>,
    },
    /// All hosts.
    HostList {},
    /// One host.
    HostShow {
        /// Id, its beginning, or name.
        host: String,
    },
    /// Changes a host's state.
    HostState {
        /// Id, its beginning, or name.
        host: String,
        /// New state.
        state: HostState,
        /// Why.
        reason: String,
    },
    /// Trusts a TPM vendor's CA.
    EkRootAdd {
        /// Certificates (DER, base64).
        certificates: Vec<String>,
        /// Hosts under it are simulated.
        development: bool,
    },
    /// Trusted CAs.
    EkRootList {},
    /// No longer trusts a CA.
    EkRootRemove {
        /// Beginning of the fingerprint.
        fingerprint: String,
    },
    /// Lists the EK of a TPM without a certificate.
    EkAllow {
        /// TPMT_PUBLIC, TPM2B_PUBLIC or SubjectPublicKeyInfo in DER (base64).
        ek: String,
        /// Label.
        name: String,
        /// The host with it is simulated.
        development: bool,
    },
    /// Listed EKs.
    EkList {},
    /// Takes an EK off the list.
    EkRemove {
        /// Beginning of its id.
        ek: String,
    },
    /// Adds reference values from a boot log.
    ReferenceAdd {
        /// Name of the set.
        name: String,
        /// The log (base64).
        eventlog: String,
        /// PCRs; empty takes the default.
        pcrs: Vec<u8>,
    },
    /// Adds reference values from the boot log in a verdict's evidence.
    ReferenceAddVerdict {
        /// Name of the set.
        name: String,
        /// The verdict's id.
        id: VerdictId,
        /// PCRs; empty takes the default.
        pcrs: Vec<u8>,
    },
    /// Adds an IMA reference set (`countersign.reference/v1`).
    ReferenceAddSet {
        /// Name of the set.
        name: String,
        /// The JSON document, compressed with zstd (base64).
        set: String,
        /// Key id of whoever signed it, as the command that sends it has checked; empty for an unsigned one.
        signer: String,
    },
    /// Removes a set.
    ReferenceRevoke {
        /// Its name.
        name: String,
    },
    /// All sets.
    ReferenceList {},
    /// Newest verdicts.
    VerdictList {
        /// Of this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// One verdict document.
    VerdictShow {
        /// Its id.
        id: VerdictId,
    },
    /// Why a verdict was a no: event or file, nearest accepted value, what changed, what to do.
    VerdictExplain {
        /// Its id.
        id: VerdictId,
    },
    /// One verdict's evidence bundle.
    VerdictBundle {
        /// Its id.
        id: VerdictId,
    },
    /// Newest releases.
    ReleaseList {
        /// To this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// Gives a release whose answer was lost back: it counts against the cap no longer.
    ReleaseRefund {
        /// Its run.
        run: RunId,
        /// Its host: id, a beginning of it, or name. Needed when several hosts have such a run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// Takes a protected image's key and policy.
    WorkloadRegister {
        /// Label.
        name: String,
        /// Workload id.
        workload: WorkloadId,
        /// Payload root.
        payload_root: PayloadRoot,
        /// UUID of the SIF, 32 hex digits.
        sif_uuid: String,
        /// The policy bundle (base64).
        policy: String,
        /// The LUKS2 volume key, 64 bytes (base64); empty when its owner holds it and grants it to each host.
        #[serde(default)]
        volume_key: Secret,
        /// PCRs that every approval must cover; empty takes the default.
        least_selection: Vec<u8>,
    },
    /// Takes an owner's grant.
    GrantAdd {
        /// The file that `supervisor grant` wrote (base64).
        grant: String,
    },
    /// All grants.
    GrantList {},
    /// All workloads.
    WorkloadList {},
    /// One workload.
    WorkloadShow {
        /// Workload id.
        workload: WorkloadId,
    },
    /// No longer releases a workload.
    WorkloadWithdraw {
        /// Workload id.
        workload: WorkloadId,
    },
    /// Newest runs.
    RunList {
        /// Of this host only.
        host: Option<String>,
        /// How many.
        limit: u32,
    },
    /// One run, with what else its host's log says of it.
    RunShow {
        /// Id, or its beginning.
        run: String,
    },
    /// Stops, freezes or thaws a run.
    RunOrder {
        /// Id, or its beginning.
        run: String,
        /// What its host is to do.
        order: RunOrder,
        /// Why.
        reason: String,
    },
    /// Tells the verifier that its database was restored from a backup.
    Restored {},
}

/// What a host is told to do with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOrder {
    /// End it.
    Stop,
    /// Freeze it.
    Freeze,
    /// Let it go on.
    Thaw,
}

impl RunOrder {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }
}

/// Text that is not shown and not left in memory.
#[derive(Clone, Default)]
pub struct Secret(pub(super) zeroize::Zeroizing<String>);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.into())
    }
}
