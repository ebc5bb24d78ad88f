//! Handles (TPM 2.0 Part 2, 7).

/// First handle that an owner may make persistent (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
pub const PERSISTENT_FIRST: u32 = 0x8100_0000;

/// TPM_RH_NULL.
pub(super) const RH_NULL: u32 = 0x4000_0007;
/// TPM_RS_PW.
pub(super) const RS_PW: u32 = 0x4000_0009;

/// A hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// TPM_RH_OWNER.
    Owner,
    /// TPM_RH_ENDORSEMENT.
    Endorsement,
    /// TPM_RH_LOCKOUT.
    Lockout,
    /// TPM_RH_PLATFORM.
    Platform,
}

impl Hierarchy {
    /// TPM_HANDLE.
    #[must_use]
    pub const fn handle(self) -> u32 {
        match self {
            Self::Owner => 0x4000_0001,
            Self::Lockout => 0x4000_000A,
            Self::Endorsement => 0x4000_000B,
            Self::Platform => 0x4000_000C,
        }
    }
}
