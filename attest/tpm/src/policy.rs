//! Policy digests, computed as the TPM does (TPM 2.0 Part 3, 23), and the two policies of a release.

use crate::alg::{Digest, HashAlg};
use crate::codec::Writer;
use crate::pcr::PcrSelection;
use crate::public::Name;

/// TPM_RH_ENDORSEMENT.
pub const RH_ENDORSEMENT: u32 = 0x4000_000B;

const CC_POLICY_SECRET: u32 = 0x0000_0151;
const CC_POLICY_SIGNED: u32 = 0x0000_0160;
const CC_POLICY_AUTHORIZE: u32 = 0x0000_016A;
const CC_POLICY_COUNTER_TIMER: u32 = 0x0000_016D;
const CC_POLICY_OR: u32 = 0x0000_0171;
const CC_POLICY_PCR: u32 = 0x0000_017F;

/// Comparison of TPM2_PolicyCounterTimer (TPM_EO, Part 2, 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// TPM_EO_EQ.
    Equal,
    /// TPM_EO_UNSIGNED_LE.
    AtMost,
}

impl Comparison {
    /// TPM_EO.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Equal => 0x0000,
            Self::AtMost => 0x0009,
        }
    }
}

/// Offset of `clock` in TPMS_TIME_INFO, as PolicyCounterTimer counts (Part 2, 10.11.1).
pub const OFFSET_CLOCK: u16 = 8;
/// Offset of resetCount || restartCount in TPMS_TIME_INFO.
pub const OFFSET_COUNTERS: u16 = 16;

/// A policyDigest in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy(Digest);

impl Policy {
    /// The empty policy of a session with this hash.
    #[must_use]
    pub fn new(alg: HashAlg) -> Self {
        Self(Digest::filled(alg, 0))
    }

    fn update(self, parts: &[&[u8]]) -> Self {
        let mut all = vec![self.0.as_bytes()];
        all.extend(parts);
        Self(self.0.alg().digest(&all))
    }

    /// PolicyUpdate(commandCode, name, ref) of Part 3, 23.2.3: the second hash takes the policyRef.
    fn update_with_ref(self, command: u32, name: &[u8], policy_ref: &[u8]) -> Self {
        self.update(&[&command.to_be_bytes(), name]).update(&[policy_ref])
    }

    /// TPM2_PolicySecret with an entity's Name.
    #[must_use]
    pub fn secret(self, entity: &Name, policy_ref: &[u8]) -> Self {
        self.update_with_ref(CC_POLICY_SECRET, entity.as_bytes(), policy_ref)
    }

    /// TPM2_PolicySigned with the key's Name.
    #[must_use]
    pub fn signed(self, key: &Name, policy_ref: &[u8]) -> Self {
        self.update_with_ref(CC_POLICY_SIGNED, key.as_bytes(), policy_ref)
    }

    /// TPM2_PolicyAuthorize with the key's Name: what came before is replaced.
    #[must_use]
    pub fn authorize(self, key: &Name, policy_ref: &[u8]) -> Self {
        Self::new(self.0.alg()).update_with_ref(CC_POLICY_AUTHORIZE, key.as_bytes(), policy_ref)
    }

    /// TPM2_PolicyOR: what came before is replaced.
    #[must_use]
    pub fn or(self, branches: &[&[u8]]) -> Self {
        let list = branches.concat();
        Self::new(self.0.alg()).update(&[&CC_POLICY_OR.to_be_bytes(), &list])
    }

    /// TPM2_PolicyPCR; `pcr_digest` is by the session's hash.
    #[must_use]
    pub fn pcr(self, selection: &PcrSelection, pcr_digest: &[u8]) -> Self {
        self.update(&[&CC_POLICY_PCR.to_be_bytes(), &selection.to_bytes(), pcr_digest])
    }

    /// TPM2_PolicyCounterTimer.
    #[must_use]
    pub fn counter_timer(self, operand: &[u8], offset: u16, comparison: Comparison) -> Self {
        let args = self.0.alg().digest(&[operand, &offset.to_be_bytes(), &comparison.id().to_be_bytes()]);
        self.update(&[&CC_POLICY_COUNTER_TIMER.to_be_bytes(), args.as_bytes()])
    }

    /// The digest so far.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.0
    }
}

/// What an approval says: which boot, until when, and which PCRs (DESIGN.md section 8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    /// resetCount must equal this.
    pub reset_count: u32,
    /// restartCount must equal this.
    pub restart_count: u32,
    /// Clock must not exceed this, in milliseconds.
    pub clock_limit: u64,
    /// Selected PCRs.
    pub selection: PcrSelection,
    /// Their digest, SHA-256.
    pub pcr_digest: [u8; 32],
}

impl Approved {
    /// operandB of the first PolicyCounterTimer: resetCount || restartCount.
    #[must_use]
    pub fn counters(&self) -> [u8; 8] {
        (u64::from(self.reset_count) << 32 | u64::from(self.restart_count)).to_be_bytes()
    }

    /// approvedPolicy: PolicyCounterTimer(counters) -> PolicyCounterTimer(clock) -> PolicyPCR, in a SHA-256 session.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let policy = Policy::new(HashAlg::Sha256)
            .counter_timer(&self.counters(), OFFSET_COUNTERS, Comparison::Equal)
            .counter_timer(&self.clock_limit.to_be_bytes(), OFFSET_CLOCK, Comparison::AtMost)
            .pcr(&self.selection, &self.pcr_digest);
        sha256(policy)
    }
}

/// The sealed object's authPolicy: PolicyAuthorize(approval key) -> PolicySigned(verdict key), both with `policy_ref`.
#[must_use]
pub fn sealed_policy(approval_key: &Name, verdict_key: &Name, policy_ref: &[u8; 32]) -> [u8; 32] {
    sha256(Policy::new(HashAlg::Sha256).authorize(approval_key, policy_ref).signed(verdict_key, policy_ref))
}

/// The digest of a policy that was built with SHA-256.
fn sha256(policy: Policy) -> [u8; 32] {
    policy.0.as_bytes().try_into().unwrap_or_default()
}

/// The serialisation that a verifier signs must never be empty by accident: [`Approved`] with no PCRs approves nothing.
#[must_use]
pub fn covers(selection: &PcrSelection, least: &[u8]) -> bool {
    match selection.0.as_slice() {
        [bank] => bank.alg == HashAlg::Sha256.id() && bank.bitmap != 0 && least.iter().all(|&pcr| bank.contains(pcr)),
        _ => false,
    }
}

/// TPM2B_DIGEST list of TPM2_PolicyOR (TPML_DIGEST).
#[must_use]
pub fn or_list(branches: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(branches.len()).unwrap_or(u32::MAX);
    branches.iter().fold(Writer::new().u32_be(count), |writer, branch| writer.tpm2b(branch)).done()
}
