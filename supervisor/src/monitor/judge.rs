//! The workload's own policy, asked about a finding on the host that it was found on.

use std::sync::OnceLock;

use countersign_policy::verdict::{Decision, OnViolation};
use countersign_policy::{Compiled, PolicyBundle, Ready, ReferenceData, Role};
use countersign_wire::finding::Finding;
use countersign_wire::id::{RunId, WorkloadId};
use countersign_wire::time::rfc3339;
use serde_json::json;

/// What a policy says of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// It may be so.
    pub(crate) accepted: bool,
    /// Otherwise: what to do, where the policy says it.
    pub(crate) reaction: Option<OnViolation>,
    /// Otherwise: seconds that a frozen container is kept.
    pub(crate) freeze_hold_s: Option<u32>,
    /// Why not: reason ids and messages.
    pub(crate) reasons: Vec<String>,
}

/// The policy of a run.
#[derive(Debug)]
pub(crate) struct Judge {
    bundle: Vec<u8>,
    workload: WorkloadId,
    run: RunId,
    policy: OnceLock<Result<Ready, String>>,
}

impl Judge {
    /// `bundle` is the policy that came with the image's signature.
    pub(crate) fn new(bundle: &[u8], workload: WorkloadId, run: RunId) -> Self {
        Self { bundle: bundle.to_vec(), workload, run, policy: OnceLock::new() }
    }

    pub(crate) const fn run(&self) -> RunId {
        self.run
    }

    pub(crate) const fn workload(&self) -> WorkloadId {
        self.workload
    }

    /// Compiles the policy, so that the first finding does not wait for that.
    pub(crate) fn prepare(&self) -> &Result<Ready, String> {
        self.policy.get_or_init(|| {
            let bundle = PolicyBundle::parse(&self.bundle).map_err(|e| e.to_string())?;
            let compiled = Compiled::new(&bundle, Role::Workload).map_err(|e| e.to_string())?;
            Ok(compiled.ready(&ReferenceData::new(&json!({}))))
        })
    }

    /// Asks about one finding. A policy that cannot be asked accepts nothing.
    pub(crate) fn judge(&self, finding: &Finding) -> Judgement {
        let ready = match self.prepare() {
            Ok(ready) => ready,
            Err(e) => {
                let reasons = vec![format!("policy-error: {e}")];
                return Judgement { accepted: false, reaction: None, freeze_hold_s: None, reasons };
            }
        };
        let Decision { allow, reasons, obligations } = ready.decide_json(self.input(finding));
        Judgement {
            accepted: allow,
            reaction: obligations.on_violation,
            freeze_hold_s: obligations.freeze_hold_s,
            reasons: reasons.into_iter().map(|reason| format!("{}: {}", reason.id, reason.message)).collect(),
        }
    }

    /// What the policy sees: no facts of the host's boot, which the verifier appraises; the run and what was found in it.
    fn input(&self, finding: &Finding) -> serde_json::Value {
        let mut found = json!({"kind": finding.kind, "what": finding.what, "where": finding.place});
        for (name, value) in [("pid", json!(finding.pid)), ("executable", json!(finding.executable))] {
            if let (Some(found), false) = (found.as_object_mut(), value.is_null()) {
                found.insert(name.into(), value);
            }
        }
        json!({
            "version": 1,
            "purpose": "run",
            "time_ms": finding.time_ms,
            "time": rfc3339(finding.time_ms),
            "workload": {"id": self.workload},
            "run": {"total": 1, "findings": [found]},
        })
    }
}
