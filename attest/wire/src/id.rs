//! Identities: fixed-length byte strings that people see as lower-case hex.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected} hex digits, got {got:?}")]
pub struct BadId {
    /// Which identity was being read.
    pub what: &'static str,
    /// Hex digits that it has.
    pub expected: usize,
    /// What stood there instead (cut to 80 characters).
    pub got: String,
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| BadId {
                    what: $what,
                    expected: 2 * $len,
                    got: text.chars().take(80).collect(),
                })?;
                Ok(Self(bytes))
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                let bytes = d.bytes()?;
                <[u8; $len]>::try_from(bytes).map(Self).map_err(|_| {
                    minicbor::decode::Error::message(concat!($what, ": wrong length")).at(at)
                })
            }
        }
    };
}

identity!(
    /// SHA-256 over the DER SubjectPublicKeyInfo of the host's EK (DESIGN.md section 2).
    HostId, 32, "host id"
);
identity!(
    /// What identifies an encrypted image together with its policy (DESIGN.md section 2).
    WorkloadId, 32, "workload id"
);
identity!(
    /// What identifies an encrypted root file system (DESIGN.md section 9).
    PayloadRoot, 32, "payload root"
);
identity!(
    /// SHA-256 of the bytes of a policy bundle.
    PolicyDigest, 32, "policy digest"
);
identity!(
    /// 16 random bytes for one start of a workload.
    RunId, 16, "run id"
);
identity!(
    /// 32 random bytes that the verifier chose for one challenge.
    Nonce, 32, "nonce"
);
identity!(
    /// 16 random bytes that name one enrolment in progress.
    EnrolmentId, 16, "enrolment id"
);
identity!(
    /// 16 random bytes that name one verdict.
    VerdictId, 16, "verdict id"
);

impl HostId {
    /// The identity of the host whose EK has this DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_ek_spki(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl WorkloadId {
    /// SHA-256("countersign/workload/v1" || payload root || policy digest || SIF UUID).
    #[must_use]
    pub fn of(root: &PayloadRoot, policy: &PolicyDigest, sif_uuid: &[u8; 16]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"countersign/workload/v1");
        hash.update(root.0);
        hash.update(policy.0);
        hash.update(sif_uuid);
        Self(hash.finalize().into())
    }
}

impl PolicyDigest {
    /// The digest of a policy object's bytes.
    #[must_use]
    pub fn of(bundle: &[u8]) -> Self {
        Self(Sha256::digest(bundle).into())
    }
}
