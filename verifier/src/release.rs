//! The two signatures of a release, in the one strict form each (DESIGN.md section 8). Nothing else in this program signs with these keys.

use countersign_tpm::alg::HashAlg;
use countersign_tpm::policy::{Approved, covers};
use countersign_wire::answer::Release;
use countersign_wire::challenge::Bank;
use countersign_wire::id::HostId;
use countersign_wire::release::{approval_hash, policy_ref, unseal_cp_hash, verdict_hash};

use crate::appraise::ReleaseBasis;
use crate::error::Error;
use crate::keys::Keys;

/// How long an approval holds, by the TPM's clock, in milliseconds.
const APPROVAL_MS: u64 = 10 * 60 * 1000;
/// How long a verdict holds after its session was started, in seconds.
const EXPIRATION_S: u32 = 30;

/// Why something is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An approval over too few PCRs, over none, or over the run PCR.
    #[error("approval: the selection does not cover the workload's least selection, is empty, or has the run PCR")]
    Selection,
    /// A verdict without end, or with a too distant one.
    #[error("verdict: expiration {0} s is not from 1 to 300")]
    Expiration(u32),
    /// A verdict that is bound to no object.
    #[error("verdict: cpHashA must be 32 bytes and not zero")]
    CpHash,
    /// A verdict that is bound to no session.
    #[error("verdict: nonceTPM must be 32 bytes and not zero")]
    Nonce,
}

/// What the approval key signs: a digest computed here from signed PCR values, over enough PCRs, never over the run PCR.
///
/// # Errors
/// [`Refused::Selection`].
pub fn approval_to_sign(
    approved: &Approved,
    policy_ref: &[u8; 32],
    least: &[u8],
    run_pcr: u8,
) -> Result<[u8; 32], Refused> {
    let has_run_pcr = approved.selection.0.iter().any(|bank| bank.contains(run_pcr));
    if !covers(&approved.selection, least) || has_run_pcr {
        return Err(Refused::Selection);
    }
    Ok(approval_hash(&approved.digest(), policy_ref))
}

/// What the verdict key signs: this session, this object's Unseal, a near end. Each looser form is a replay.
///
/// # Errors
/// [`Refused`].
pub fn verdict_to_sign(
    nonce_tpm: &[u8],
    expiration: u32,
    cp_hash: &[u8],
    policy_ref: &[u8; 32],
) -> Result<[u8; 32], Refused> {
    let nonce: &[u8; 32] = nonce_tpm.try_into().map_err(|_| Refused::Nonce)?;
    let cp_hash: &[u8; 32] = cp_hash.try_into().map_err(|_| Refused::CpHash)?;
    if *nonce == [0; 32] {
        return Err(Refused::Nonce);
    }
    if *cp_hash == [0; 32] {
        return Err(Refused::CpHash);
    }
    if !(1..=300).contains(&expiration) {
        return Err(Refused::Expiration(expiration));
    }
    Ok(verdict_hash(nonce, expiration, cp_hash, policy_ref))
}

/// Signs a release. The caller stores the answer durably before it lets it out.
///
/// # Errors
/// [`Error::Internal`] when a form is refused: nothing is signed then.
pub fn sign(keys: &Keys, host: &HostId, basis: &ReleaseBasis, least: &[u8], run_pcr: u8) -> Result<Release, Error> {
    let refused = |e: Refused| Error::Internal(format!("not signed: {e}"));
    let reference = policy_ref(&basis.workload, host, &basis.ak_name);
    let approved = Approved {
        reset_count: basis.reset_count,
        restart_count: basis.restart_count,
        clock_limit: basis.clock_ms.saturating_add(APPROVAL_MS),
        selection: basis.selection.clone(),
        pcr_digest: basis.pcr_digest,
    };
    let approval = approval_to_sign(&approved, &reference, least, run_pcr).map_err(refused)?;
    let cp_hash = unseal_cp_hash(&basis.object_name);
    let verdict = verdict_to_sign(&basis.nonce_tpm, EXPIRATION_S, &cp_hash, &reference).map_err(refused)?;
    let pcrs = approved.selection.0.first().map(|bank| bank.pcrs().collect()).unwrap_or_default();
    Ok(Release {
        approval_key: keys.approval_public().to_bytes(),
        verdict_key: keys.verdict_public().to_bytes(),
        policy_ref: reference,
        selection: Bank { alg: HashAlg::Sha256.id(), pcrs },
        pcr_digest: approved.pcr_digest,
        reset_count: approved.reset_count,
        restart_count: approved.restart_count,
        clock_limit: approved.clock_limit,
        approval: keys.sign_approval(&approval)?,
        expiration: EXPIRATION_S,
        verdict: keys.sign_verdict(&verdict)?,
        lease_s: basis.lease_s,
    })
}

#[cfg(test)]
mod tests {
    use countersign_tpm::pcr::{BankSelection, PcrSelection};

    use super::*;

    fn approved(pcrs: &[u8], alg: HashAlg) -> Approved {
        Approved {
            reset_count: 1,
            restart_count: 0,
            clock_limit: 5,
            selection: PcrSelection::single(alg, pcrs),
            pcr_digest: [1; 32],
        }
    }

    #[test]
    fn approvals_cover_the_least_selection() {
        let least = [0, 7];
        let ask = |approved: &Approved| approval_to_sign(approved, &[2; 32], &least, 13);
        assert!(ask(&approved(&[0, 4, 7], HashAlg::Sha256)).is_ok());
        assert_eq!(ask(&approved(&[0], HashAlg::Sha256)), Err(Refused::Selection), "too few");
        assert_eq!(ask(&approved(&[], HashAlg::Sha256)), Err(Refused::Selection), "none");
        assert_eq!(ask(&approved(&[0, 7, 13], HashAlg::Sha256)), Err(Refused::Selection), "the run PCR");
        assert_eq!(ask(&approved(&[0, 7], HashAlg::Sha1)), Err(Refused::Selection), "another bank");
        assert_eq!(approval_to_sign(&approved(&[], HashAlg::Sha256), &[2; 32], &[], 13), Err(Refused::Selection));
        let mut two = approved(&[0, 7], HashAlg::Sha256);
        two.selection.0.push(BankSelection::new(HashAlg::Sha1, &[0]));
        assert_eq!(ask(&two), Err(Refused::Selection), "two banks");
    }

    #[test]
    fn verdicts_have_one_form() {
        let ask = |nonce: &[u8], expiration, cp_hash: &[u8]| verdict_to_sign(nonce, expiration, cp_hash, &[3; 32]);
        assert!(ask(&[1; 32], 30, &[2; 32]).is_ok());
        for expiration in [0, 301, u32::MAX, 0x8000_0001] {
            assert_eq!(ask(&[1; 32], expiration, &[2; 32]), Err(Refused::Expiration(expiration)));
        }
        for nonce in [&[][..], &[1; 16], &[1; 33], &[0; 32]] {
            assert_eq!(ask(nonce, 30, &[2; 32]), Err(Refused::Nonce));
        }
        for cp_hash in [&[][..], &[2; 20], &[0; 32]] {
            assert_eq!(ask(&[1; 32], 30, cp_hash), Err(Refused::CpHash));
        }
    }
}
