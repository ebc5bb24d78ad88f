//! Reading what a policy returned: exactly the documented shape, or a denial.

use serde::Deserialize;
use serde_json::Value;

use crate::verdict::{Decision, Obligations, Reason, Source};
use crate::{limits, reason};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    id: String,
    message: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    got: Option<String>,
    #[serde(default)]
    want: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// A denial with one reason.
#[must_use]
pub fn deny(source: Source, id: &str, message: String) -> Decision {
    let reason = Reason { source, id: id.to_owned(), message, subject: None, got: None, want: None, hint: None };
    Decision { allow: false, reasons: vec![reason], obligations: Obligations::default() }
}

/// A decision from a policy's verdict document, whichever engine made it. Another shape than the documented one is a denial.
#[must_use]
pub fn decision(document: Value, source: Source) -> Decision {
    read(document, source).unwrap_or_else(|(id, message)| deny(source, id, message))
}

/// A decision from a verdict document; (reason id, message) when it has another shape.
fn read(document: Value, source: Source) -> Result<Decision, (&'static str, String)> {
    let wrong = |message: &str| (reason::TYPE, format!("the policy's verdict: {message}"));
    let Value::Object(mut document) = document else { return Err(wrong("it is no object")) };
    // Only a literal true grants.
    let Some(Value::Bool(allow)) = document.remove("allow") else { return Err(wrong("allow is not true or false")) };
    let obligations = match document.remove("obligations") {
        None => Obligations::default(),
        Some(given) => obligations(given)?,
    };
    let given = match document.remove("reasons") {
        None => Vec::new(),
        Some(Value::Array(reasons)) => reasons,
        Some(_) => return Err(wrong("reasons is no array")),
    };
    if let Some(key) = document.keys().next() {
        return Err(wrong(&format!("unknown key {key:?}")));
    }
    let mut reasons = Vec::new();
    for value in given.into_iter().take(limits::REASONS) {
        let given: Given = serde_json::from_value(value).map_err(|e| wrong(&format!("a reason: {e}")))?;
        let cut = |text: String| text.chars().take(limits::TEXT).collect::<String>();
        reasons.push(Reason {
            source,
            id: cut(given.id),
            message: cut(given.message),
            subject: given.subject.map(cut),
            got: given.got.map(cut),
            want: given.want.map(cut),
            hint: given.hint.map(cut),
        });
    }
    reasons.sort_by(|a, b| (&a.id, &a.subject, &a.message).cmp(&(&b.id, &b.subject, &b.message)));
    if !allow && reasons.is_empty() {
        reasons.push(Reason {
            source,
            id: reason::UNEXPLAINED.into(),
            message: "the policy says no and gives no reason".into(),
            subject: None,
            got: None,
            want: None,
            hint: None,
        });
    }
    let reasons = if allow { Vec::new() } else { reasons };
    Ok(Decision { allow, reasons, obligations })
}

/// Known obligations with values of their type; anything else denies.
fn obligations(given: Value) -> Result<Obligations, (&'static str, String)> {
    let unknown = |message: String| (reason::OBLIGATION, message);
    if !given.is_object() {
        return Err(unknown("obligations is no object".into()));
    }
    let given: Obligations = serde_json::from_value(given).map_err(|e| unknown(e.to_string()))?;
    given.check().map_err(|e| unknown(e.to_string()))?;
    Ok(given)
}
