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

/// Whether an approval may be over this selection: one SHA-256 bank, not empty, with every PCR of `least`. That the run PCR is not in
/// it is for the caller to see to.
#[must_use]
pub fn covers(selection: &PcrSelection, least: &[u8]) -> bool {
    match selection.0.as_slice() {
        [bank] => bank.alg == HashAlg::Sha256.id() && bank.bitmap != 0 && least.iter().all(|&pcr| bank.contains(pcr)),
        _ => false,
    }
}

/// pHashList of TPM2_PolicyOR (TPML_DIGEST).
#[must_use]
pub fn or_list(branches: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(branches.len()).unwrap_or(u32::MAX);
    branches.iter().fold(Writer::new().u32_be(count), |writer, branch| writer.tpm2b(branch)).done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approved() -> Approved {
        Approved {
            reset_count: 7,
            restart_count: 2,
            clock_limit: 600_000,
            selection: PcrSelection::single(HashAlg::Sha256, &[0, 2, 4, 7]),
            pcr_digest: [0x11; 32],
        }
    }

    #[test]
    fn policies_of_the_ek_credential_profile() {
        // EK Credential Profile 2.5, B.6.2 and B.6.5: PolicyA by SHA-256, PolicyA by SHA-384, PolicyB by SHA-384.
        let endorsement = Name::of_handle(RH_ENDORSEMENT);
        let a = Policy::new(HashAlg::Sha256).secret(&endorsement, &[]);
        assert_eq!(a.digest().to_string(), "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa");
        let a = Policy::new(HashAlg::Sha384).secret(&endorsement, &[]);
        assert_eq!(
            a.digest().to_string(),
            "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53"
        );
        let b = crate::ek::Template::P384.policy();
        assert_eq!(
            hex::encode(b),
            "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
        );
    }

    #[test]
    fn pcr_policy_by_hand() {
        // Part 3, 23.7: H(old || TPM_CC_PolicyPCR || TPML_PCR_SELECTION || digest).
        let selection = PcrSelection::single(HashAlg::Sha256, &[0, 7]);
        let by_hand =
            HashAlg::Sha256.digest(&[&[0; 32], &[0, 0, 1, 0x7f], &[0, 0, 0, 1, 0, 0x0b, 3, 0x81, 0, 0], &[0x22; 32]]);
        assert_eq!(Policy::new(HashAlg::Sha256).pcr(&selection, &[0x22; 32]).digest(), by_hand);
    }

    #[test]
    fn every_part_of_an_approval_counts() {
        let first = approved().digest();
        assert_eq!(approved().counters(), [0, 0, 0, 7, 0, 0, 0, 2]);
        let others = [
            Approved { reset_count: 8, ..approved() },
            Approved { restart_count: 3, ..approved() },
            Approved { clock_limit: 600_001, ..approved() },
            Approved { selection: PcrSelection::single(HashAlg::Sha256, &[0, 2, 4]), ..approved() },
            Approved { pcr_digest: [0x12; 32], ..approved() },
        ];
        for other in others {
            assert_ne!(other.digest(), first, "{other:?}");
        }
    }

    #[test]
    fn sealed_policy_binds_both_keys_and_the_reference() {
        let (a, b) = (Name::of(HashAlg::Sha256, &[b"a"]), Name::of(HashAlg::Sha256, &[b"b"]));
        let policy = sealed_policy(&a, &b, &[1; 32]);
        assert_ne!(policy, sealed_policy(&b, &a, &[1; 32]));
        assert_ne!(policy, sealed_policy(&a, &a, &[1; 32]));
        assert_ne!(policy, sealed_policy(&a, &b, &[2; 32]));
        // PolicyAuthorize forgets what came before.
        let fresh = Policy::new(HashAlg::Sha256);
        assert_eq!(fresh.signed(&a, &[]).authorize(&b, &[]), fresh.authorize(&b, &[]));
        assert_ne!(fresh.authorize(&b, &[]).signed(&a, &[]), fresh.signed(&a, &[]));
    }

    #[test]
    fn what_an_approval_may_cover() {
        let of = |alg, pcrs: &[u8]| PcrSelection::single(alg, pcrs);
        assert!(covers(&of(HashAlg::Sha256, &[0, 4, 7]), &[4, 7]));
        assert!(covers(&of(HashAlg::Sha256, &[0]), &[]));
        assert!(!covers(&of(HashAlg::Sha256, &[]), &[]), "empty");
        assert!(!covers(&of(HashAlg::Sha256, &[0, 4]), &[4, 7]), "PCR 7 is missing");
        assert!(!covers(&of(HashAlg::Sha1, &[0, 4, 7]), &[4, 7]), "another bank");
        assert!(!covers(&PcrSelection(Vec::new()), &[]));
        let [first] = of(HashAlg::Sha256, &[4, 7]).0[..] else { panic!("one bank") };
        let [second] = of(HashAlg::Sha384, &[4, 7]).0[..] else { panic!("one bank") };
        assert!(!covers(&PcrSelection(vec![first, second]), &[4, 7]), "two banks");
        assert!(!covers(&of(HashAlg::Sha256, &[0]), &[200]), "no such PCR");
    }

    #[test]
    fn or_lists() {
        assert_eq!(or_list(&[&[1, 2], &[3]]), [0, 0, 0, 2, 0, 2, 1, 2, 0, 1, 3]);
    }
}
