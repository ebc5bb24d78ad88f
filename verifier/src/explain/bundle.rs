//! Explanations offline, from a bundle file.

use super::{Basis, Before, Explanation, Material, explain};
use crate::check::{CheckError, check_bundle, code, open};

/// Explains the verdict of a bundle, which must be consistent: signed by the log key that it names, with the sets that its record names. Whether
/// that is a verifier's, `check bundle --trust` tells.
///
/// # Errors
/// [`CheckError`].
pub fn explain_bundle(file: &[u8]) -> Result<Explanation, CheckError> {
    let mut notes =
        vec!["nobody vouches for this bundle here: verifier check bundle FILE --trust TRUST does".to_owned()];
    match check_bundle(file, None) {
        Ok(_) => {}
        // Another version's words. What the evidence holds can be explained still.
        Err(e) if e.code == code::VERDICT => {
            notes.push("this version recomputes another verdict from the evidence than the bundle holds".to_owned());
        }
        Err(e) => return Err(e),
    }
    let (bundle, record) = open(file)?;
    let bad = |e: String| CheckError::new(code::INPUT, "bundle", e, "an evidence bundle");
    let material = Material {
        document: record.verdict.clone(),
        basis: Some(Basis::of(record).map_err(|e| bad(e.to_string()))?),
        sets: bundle.sets.unwrap_or_default().into_iter().map(Vec::from).collect(),
        before: Before::Bundle,
        state_reason: None,
    };
    let mut explanation = explain(&material).map_err(bad)?;
    explanation.notes.extend(notes);
    Ok(explanation)
}
