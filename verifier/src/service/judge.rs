//! The decision, on a thread that may wait: evidence is appraised, another engine and a candidate policy are asked. No transaction is open meanwhile.

use std::sync::Arc;

use countersign_policy::input::{Input, Reference};
use countersign_policy::verdict::{Mode, Verdict};
use countersign_policy::{PolicyBundle, Role};
use sha2::{Digest as _, Sha256};

use crate::appraise::{Context, Judged, Prepared, RemoteAnswer, RemoteDecision, prepare};
use crate::config::OpaConfig;
use crate::error::Error;
use crate::policy::opa::{self, Opa, Options, Wanted};

/// An Open Policy Agent that decides the host policy beside the embedded engine.
#[derive(Debug, Clone)]
pub(crate) struct Beside {
    opa: Arc<Opa>,
    config: OpaConfig,
}

/// Who decides, apart from the policies in a context.
#[derive(Debug, Default)]
pub(super) struct Bench {
    pub(super) beside: Option<Beside>,
    /// The candidate's bundle: it decides too, and never grants.
    pub(super) candidate: Option<Vec<u8>>,
}

/// What was decided, and what the candidate would have.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) judged: Judged,
    pub(super) candidate: Option<Verdict>,
}

impl Beside {
    /// Its client blocks: it is made and used on threads for that.
    pub(super) async fn open(config: &OpaConfig) -> Result<Self, Error> {
        let options = Options {
            address: config.endpoint.address.clone(),
            token: config.endpoint.token.as_ref().map(|token| token.to_string()),
            ca: config.endpoint.ca.clone(),
            deadline: config.deadline,
            bundle: None,
            decision_id: config.decision_id,
            dangerous_allow_old_opa: config.dangerous_allow_old_opa,
        };
        let made = tokio::task::spawn_blocking(move || Opa::new(options, Role::Host));
        let opa = made.await.map_err(|e| Error::Internal(e.to_string()))?;
        let address = config.endpoint.address.clone();
        let opa = opa.map_err(|reason| Error::State { path: address, reason })?;
        Ok(Self { opa: Arc::new(opa), config: config.clone() })
    }

    fn ask(&self, input: &Input, context: &Context) -> RemoteDecision {
        let failed = |id: &str, message: String| RemoteDecision {
            engine: "opa unknown".to_owned(),
            bundle: self.config.bundle.clone(),
            revision: String::new(),
            decision_id: None,
            answer: RemoteAnswer::Failed { id: id.to_owned(), message },
        };
        let revision = PolicyBundle::parse(&context.host_policy).map(|bundle| bundle.manifest().revision.clone());
        let Some(revision) = revision.ok().filter(|revision| !revision.is_empty()) else {
            let why = "the host policy in force has no revision that OPA's bundle could have (verifier policy load)";
            return failed(opa::PROVENANCE, why.to_owned());
        };
        let reference: Result<Reference, _> = serde_json::from_slice(&context.reference);
        let (input, reference) = match (serde_json::to_value(input), reference) {
            (Ok(input), Ok(reference)) => (input, reference),
            (Err(e), _) | (_, Err(e)) => return failed(countersign_policy::reason::ERROR, e.to_string()),
        };
        let stamp = hex::encode(Sha256::digest(&context.reference));
        self.opa.ask_for(
            &input,
            &Wanted {
                bundle: &self.config.bundle,
                revision: &revision,
                max_age: self.config.max_bundle_age,
                reference: &reference,
                stamp: &stamp,
            },
        )
    }
}

impl Bench {
    /// Appraises evidence; what another engine says is kept in the context.
    pub(super) fn decide(self, evidence: &[u8], context: &mut Context) -> Decided {
        let prepared = prepare(evidence, context);
        let input = prepared.input(context);
        context.remote = match (&self.beside, &input) {
            (Some(beside), Some(input)) => Some(beside.ask(input, context)),
            (Some(_), None) | (None, _) => None,
        };
        let judged = prepared.judge(context);
        let candidate = self.candidate.filter(|_| input.is_some());
        let candidate = candidate.and_then(|bundle| try_candidate(&prepared, context, bundle));
        Decided { judged, candidate }
    }
}

/// The verdict that a candidate would give on the same evidence, marked as audit-only. Nothing in it reaches the answer, not even a panic.
fn try_candidate(prepared: &Prepared, context: &mut Context, bundle: Vec<u8>) -> Option<Verdict> {
    let enforced = std::mem::replace(&mut context.host_policy, bundle);
    let remote = context.remote.take();
    let judge = || prepared.judge(context).verdict;
    let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(judge));
    (context.host_policy, context.remote) = (enforced, remote);
    match judged {
        Ok(verdict) => Some(Verdict { mode: Mode::AuditOnly, ..verdict }),
        Err(_) => {
            tracing::error!("the candidate policy broke the engine");
            None
        }
    }
}
