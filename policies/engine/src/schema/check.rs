//! The part of JSON Schema that our schemas use: type, properties, required, additionalProperties, items, enum, const, minimum, maximum,
//! pattern-free. Anything else in a schema is an error, so nothing is ignored silently.

use serde_json::Value;

/// Where a document breaks its schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct Fault {
    /// JSON Pointer (RFC 6901) into the document; empty for the document itself.
    pub place: String,
    /// What is wrong.
    pub why: String,
}

/// Nesting of schemas and documents.
const DEPTH: usize = 64;

/// Checks a document against a schema of [`super`].
///
/// # Errors
/// The first fault.
pub fn check(document: &Value, schema: &Value) -> Result<(), Fault> {
    visit(document, schema, schema, "", 0)
}

fn visit(value: &Value, schema: &Value, root: &Value, place: &str, depth: usize) -> Result<(), Fault> {
    let fault = |why: String| Fault { place: place.to_owned(), why };
    if depth > DEPTH {
        return Err(fault("nested too deeply".into()));
    }
    let depth = depth.saturating_add(1);
    let Some(rules) = schema.as_object() else { return Err(fault("its schema is no object".into())) };
    for (rule, want) in rules {
        match (rule.as_str(), want) {
            ("$schema" | "$defs" | "title" | "description", _) => {}
            ("$ref", Value::String(name)) => {
                let target = name.strip_prefix('#').and_then(|path| root.pointer(path));
                let target = target.ok_or_else(|| fault(format!("its schema {name} is missing")))?;
                visit(value, target, root, place, depth)?;
            }
            ("type", Value::String(kind)) => {
                let fits = match kind.as_str() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    _ => false,
                };
                if !fits {
                    return Err(fault(format!("is {}, not {kind}", name(value))));
                }
            }
            ("minimum", Value::Number(least)) => {
                if value.as_i64().is_some_and(|value| least.as_i64().is_some_and(|least| value < least)) {
                    return Err(fault(format!("is less than {least}")));
                }
            }
            ("maximum", Value::Number(most)) => {
                if value.as_u64().is_some_and(|value| most.as_u64().is_some_and(|most| value > most)) {
                    return Err(fault(format!("is more than {most}")));
                }
            }
            ("enum", Value::Array(values)) => {
                if !values.contains(value) {
                    return Err(fault(format!("is none of {}", want)));
                }
            }
            ("const", only) => {
                if value != only {
                    return Err(fault(format!("is not {only}")));
                }
            }
            ("items", items) => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    visit(item, items, root, &format!("{place}/{at}"), depth)?;
                }
            }
            ("required", Value::Array(names)) => {
                let lacks = |name: &&Value| name.as_str().is_some_and(|name| value.get(name).is_none());
                if let Some(name) = value.as_object().and_then(|_| names.iter().find(lacks)) {
                    return Err(fault(format!("lacks {name}")));
                }
            }
            ("properties", Value::Object(properties)) => {
                for (name, inner) in properties {
                    if let Some(inner_value) = value.get(name) {
                        visit(inner_value, inner, root, &format!("{place}/{name}"), depth)?;
                    }
                }
            }
            ("additionalProperties", more) => {
                let known = rules.get("properties").and_then(Value::as_object);
                for (name, inner) in value.as_object().into_iter().flatten() {
                    if known.is_some_and(|known| known.contains_key(name)) {
                        continue;
                    }
                    if more == &Value::Bool(false) {
                        return Err(fault(format!("has an unknown key {name:?}")));
                    }
                    visit(inner, more, root, &format!("{place}/{name}"), depth)?;
                }
            }
            ("allOf", Value::Array(parts)) => {
                for part in parts {
                    visit(value, part, root, place, depth)?;
                }
            }
            ("oneOf", Value::Array(forms)) => {
                let fitting = forms.iter().filter(|form| visit(value, form, root, place, depth).is_ok()).count();
                if fitting != 1 {
                    return Err(fault(format!("fits {fitting} of the forms, not one")));
                }
            }
            (other, _) => return Err(fault(format!("its schema has {other:?}, which is not understood"))),
        }
    }
    Ok(())
}

const fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
