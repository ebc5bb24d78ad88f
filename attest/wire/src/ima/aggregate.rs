//! boot_aggregate: IMA's first entry ties its list to the boot log's PCRs (Linux ima_crypto.c, `ima_calc_boot_aggregate`).

use countersign_tpm::alg::{Digest, HashAlg};

/// Name of the first entry of a list. A later entry of this name is another kernel's first: kexec.
pub const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// What the kernel may have logged as boot_aggregate for these PCRs of a bank: the hash over PCRs 0 to 7 (always with SHA-1, and all kernels
/// before 5.8) and the one over PCRs 0 to 9. Empty when a PCR is missing.
#[must_use]
pub fn boot_aggregates(alg: HashAlg, pcr: impl Fn(u8) -> Option<Digest>) -> Vec<Digest> {
    let of = |last: u8| {
        let values: Option<Vec<Digest>> = (0..=last).map(&pcr).collect();
        let values = values?;
        let parts: Vec<&[u8]> = values.iter().map(Digest::as_bytes).collect();
        Some(alg.digest(&parts))
    };
    let newer = if alg == HashAlg::Sha1 { None } else { of(9) };
    of(7).into_iter().chain(newer).collect()
}
