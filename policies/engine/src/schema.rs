//! JSON Schemas (draft 2020-12) of the documents that policies and their authors see, made from the Rust types' own source: one text says what a
//! field is called, what it holds and what it means. A test keeps policies/schema/ equal to what this module makes.

mod check;
mod source;

use serde_json::{Map, Value, json};

pub use check::{Fault, check};

const OBLIGATIONS: &str = include_str!("../../../attest/wire/src/obligations.rs");

/// `policies/schema/input.json`: what policies see as `input`.
///
/// # Errors
/// A line of the types' source that this module does not understand.
pub fn input() -> Result<Value, String> {
    let facts = include_str!("../../../attest/wire/src/facts.rs");
    source::schema(&[include_str!("input.rs"), include_str!("verdict.rs"), facts], "Input", "Input of a policy")
}

/// `policies/schema/verdict.json`: the verdict document that the verifier stores and sends.
///
/// # Errors
/// As [`input`].
pub fn verdict() -> Result<Value, String> {
    source::schema(&[include_str!("verdict.rs"), OBLIGATIONS], "Verdict", "Verdict document")
}

/// `policies/schema/reference.json`: `data.countersign.reference` as stored: the verifier adds `accepted`, the same values made for lookup.
///
/// # Errors
/// As [`input`].
pub fn reference() -> Result<Value, String> {
    let mut schema = source::schema(
        &[include_str!("input.rs"), include_str!("verdict.rs")],
        "Reference",
        "Reference values, data.countersign.reference",
    )?;
    let accepted = json!({
        "description": "The same values for lookup: bank, then an array over the PCRs 0 to 23, then event type, then digest: the sets that contain it.",
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "object", "additionalProperties": {
            "type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}
        }}}
    });
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("accepted".into(), accepted);
    }
    Ok(schema)
}

/// `policies/schema/settings.json`: `data.countersign.settings`, with which the library is adjusted.
///
/// # Errors
/// As [`input`].
pub fn settings() -> Result<Value, String> {
    source::schema(
        &[include_str!("settings.rs"), OBLIGATIONS],
        "Settings",
        "Settings of the policy library, data.countersign.settings",
    )
}

/// Every published schema by its file name.
///
/// # Errors
/// As [`input`].
pub fn all() -> Result<Map<String, Value>, String> {
    let mut all = Map::new();
    all.insert("input.json".into(), input()?);
    all.insert("reference.json".into(), reference()?);
    all.insert("settings.json".into(), settings()?);
    all.insert("verdict.json".into(), verdict()?);
    Ok(all)
}
