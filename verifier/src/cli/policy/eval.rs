//! `verifier policy eval`.

use std::collections::BTreeMap;

use countersign_policy::{Compiled, PolicyBundle, ReferenceData, Role, reference_document};
use serde_json::{Value, json};

use super::{Policy, bundle, failed};
use crate::cli::read;
use crate::out::{self, Failure};
use crate::policy::mutate;

/// Decides once.
pub(super) fn eval(json: bool, command: &Policy) -> Result<(), Failure> {
    let Policy::Eval { policy, evidence, input, reference, workload, trace } = command else { return Ok(()) };
    let role = if *workload { Role::Workload } else { Role::Host };
    let shipped = if *workload {
        countersign_policy::shipped_workload_policy()
    } else {
        countersign_policy::shipped_host_policy()
    };
    let bytes = policy.as_deref().map_or_else(|| Ok(shipped.to_vec()), bundle)?;
    let (document, recorded) = match (input, evidence) {
        (Some(file), _) => {
            let document: Value =
                serde_json::from_slice(&read(file)?).map_err(|e| failed(e, "an input document is JSON"))?;
            (document, countersign_policy::input::Reference::default())
        }
        (None, Some(file)) => {
            let file = read(file)?;
            let input = mutate::recorded_input(&file).map_err(|e| failed(e, ""))?;
            (json!(input), mutate::recorded_reference(&file).map_err(|e| failed(e, ""))?)
        }
        (None, None) => {
            let input = mutate::shipped_input().map_err(|e| failed(e, ""))?;
            (json!(input), mutate::shipped_reference().map_err(|e| failed(e, ""))?)
        }
    };
    let recorded = match reference {
        None => recorded,
        Some(file) => serde_json::from_slice(&read(file)?).map_err(|e| failed(e, "see verifier policy schema"))?,
    };
    let reference = reference_document(&recorded);
    let parsed = PolicyBundle::parse(&bytes).map_err(|e| failed(e, ""))?;
    let compiled = Compiled::new(&parsed, role).map_err(|e| failed(e, ""))?;
    let decision = compiled.ready(&ReferenceData::new(&reference)).decide_json(document.clone());
    let rules = if *trace {
        countersign_policy::testing::rules(&parsed, &reference, &document).map_err(|e| failed(e, ""))?
    } else {
        BTreeMap::new()
    };
    let value = json!({
        "allow": decision.allow, "reasons": decision.reasons, "obligations": decision.obligations,
        "policy": hex::encode(parsed.digest()), "rules": rules,
    });
    out::print(json, &value, || {
        let mut lines = vec![if decision.allow { "ALLOW".to_owned() } else { "DENY".to_owned() }];
        for reason in &decision.reasons {
            lines.push(format!("{}: {}", reason.id, reason.message));
            let more =
                [("subject", &reason.subject), ("got", &reason.got), ("want", &reason.want), ("hint", &reason.hint)];
            lines.extend(more.iter().filter_map(|(name, value)| Some(format!("  {name:8} {}", value.as_ref()?))));
        }
        lines.extend(rules.iter().map(|(name, value)| format!("{name} = {value}")));
        lines.join("\n")
    })
}
