//! `verifier check quote`: is this quote by this AK, for this nonce, over these PCRs?

use countersign_tpm::public::Public;
use serde::Serialize;

use super::{CheckError, Pcrs, code};
use crate::appraise::quote::{QuoteError, QuoteKey, digest_of};

/// A quote that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedQuote {
    /// qualifiedSigner, hex.
    pub qualified_signer: String,
    /// resetCount.
    pub reset_count: u32,
    /// restartCount.
    pub restart_count: u32,
    /// Clock, ms.
    pub clock_ms: u64,
    /// safe.
    pub safe: bool,
    /// firmwareVersion, hex.
    pub firmware_version: String,
    /// pcrDigest, hex.
    pub pcr_digest: String,
}

/// Checks a quote: TPMT_PUBLIC, TPMS_ATTEST, TPMT_SIGNATURE; the nonce is the raw extraData. PCRs that were not quoted may be listed.
///
/// # Errors
/// [`CheckError`].
pub fn check_quote(
    ak: &[u8],
    quote: &[u8],
    signature: &[u8],
    nonce: &[u8],
    pcrs: &[u8],
) -> Result<CheckedQuote, CheckError> {
    let input = |check: &str, e: String, want: &str| CheckError::new(code::INPUT, check, e, want);
    let pcrs = Pcrs::parse(pcrs)?;
    let public = Public::parse_file(ak).map_err(|e| input("ak", e.to_string(), "a TPMT_PUBLIC"))?;
    countersign_tpm::ak::check(&public)
        .map_err(|e| CheckError::new(code::SIGNATURE, "ak", e.to_string(), "a restricted signing key").about("AK"))?;
    let key = QuoteKey::new(&public).map_err(failed)?;
    let quote = key.verify(quote, signature).map_err(failed)?;
    if quote.extra_data != nonce {
        return Err(
            CheckError::new(code::NONCE, "nonce", hex::encode(quote.extra_data), hex::encode(nonce)).about("extraData")
        );
    }
    let got = digest_of(key.hash(), &quote.selection, |alg, pcr| pcrs.get(alg, pcr)).map_err(|missing| {
        CheckError::new(code::PCRS, "pcr-selection", format!("no value of {missing}"), "every quoted PCR")
            .about("PCRS.json")
    })?;
    if got.as_bytes() != quote.pcr_digest {
        return Err(CheckError::new(code::PCRS, "pcr-digest", got.to_string(), hex::encode(quote.pcr_digest))
            .about("PCRS.json"));
    }
    Ok(CheckedQuote {
        qualified_signer: hex::encode(quote.qualified_signer),
        reset_count: quote.clock.reset_count,
        restart_count: quote.clock.restart_count,
        clock_ms: quote.clock.clock,
        safe: quote.clock.safe,
        firmware_version: format!("{:016x}", quote.firmware_version),
        pcr_digest: hex::encode(quote.pcr_digest),
    })
}

fn failed(error: QuoteError) -> CheckError {
    match error {
        QuoteError::Algorithm { got, want } => CheckError::new(code::SIGNATURE, "algorithm", got, want),
        QuoteError::Signature => {
            CheckError::new(code::SIGNATURE, "signature", "does not verify", "a signature by this AK over this quote")
        }
        QuoteError::Structure(reason) => {
            CheckError::new(code::FORMAT, "quote", reason, "TPMS_ATTEST and TPMT_SIGNATURE")
        }
    }
}
