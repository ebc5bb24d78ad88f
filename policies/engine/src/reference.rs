//! Reference values as policies see them.

use serde_json::{Map, Value, json};

use crate::input::{Reference, ReferenceValue};

/// PCRs of a TPM for PC clients (TCG PC Client Platform TPM Profile 1.05, section 4.5.2): 0 to 23.
const PCRS: usize = 24;

/// The document that policies see as `data.countersign.reference`: `revision` and `values` as stored but for their contents in words, and `accepted`, the same values made for lookup:
/// `accepted[bank][pcr][type][digest]` is the list of the sets that contain it. `accepted[bank]` is an array with one object per PCR, 0 to 23.
///
/// One function makes it for every engine, so that all of them see the same.
#[must_use]
pub fn reference_document(reference: &Reference) -> Value {
    let mut accepted: Map<String, Value> = Map::new();
    // A policy may always ask for the SHA-256 bank; without values it is empty, not undefined.
    accepted.insert("sha256".to_owned(), empty_bank());
    for value in &reference.values {
        let bank = accepted.entry(value.bank.clone()).or_insert_with(empty_bank);
        let Some(Value::Object(pcr)) = bank.get_mut(usize::from(value.pcr)) else { continue };
        let types = pcr.entry(value.kind.clone()).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(digests) = types else { continue };
        let names = digests.entry(value.digest.clone()).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(names) = names {
            let name = Value::String(value.name.clone());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let values: Vec<_> =
        reference.values.iter().map(|value| ReferenceValue { content: None, ..value.clone() }).collect();
    json!({ "revision": reference.revision, "values": values, "accepted": accepted })
}

fn empty_bank() -> Value {
    Value::Array(vec![Value::Object(Map::new()); PCRS])
}
