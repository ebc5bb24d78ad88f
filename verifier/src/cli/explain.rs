//! `verifier explain VERDICT|BUNDLE`.

use std::path::Path;

use countersign_wire::artefact;
use countersign_wire::id::VerdictId;
use countersign_wire::record::Bundle;
use serde_json::json;

use super::perform::perform;
use super::{Cli, read_at_most};
use crate::admin::Request;
use crate::check::code;
use crate::error::Error;
use crate::explain::{Explanation, explain_bundle};
use crate::out::{self, Failure};

/// 32 hex digits are a verdict's id; anything else is a file.
pub(super) fn run(cli: &Cli, what: &Path) -> Result<(), Failure> {
    let id = what.to_str().and_then(|text| text.parse::<VerdictId>().ok());
    let explanation: Explanation = match id {
        Some(id) => {
            let answer = perform(cli, Request::VerdictExplain { id })?;
            serde_json::from_value(answer).map_err(|e| Error::Internal(format!("the answer is no explanation: {e}")))?
        }
        None if what.exists() => explain_bundle(&read_at_most(what, artefact::longest::<Bundle>())?)?,
        None => {
            let error =
                format!("{:?} is neither a verdict's id (32 hex digits) nor a file", what.display().to_string());
            return Err(Failure {
                code: code::INPUT,
                hint: "verifier verdict list shows the ids; verifier verdict bundle ID -o FILE writes a bundle".into(),
                json: json!({"error": {"code": code::INPUT, "message": error}}),
                error,
            });
        }
    };
    out::print(cli.json, &json!(explanation), || explanation.words())
}
