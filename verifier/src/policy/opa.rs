//! A real Open Policy Agent as engine, over HTTP, HTTPS or a Unix socket.
//!
//! OPA answers 200 `{}` for a path that does not exist, keeps deciding by a stale bundle, forgets the reference values when it is restarted, and
//! has no deadline of its own. So: our own deadline over all that a decision takes; a literal `allow == true` in a document of the documented shape, or
//! no; its version and its bundle's revision are checked with every answer; and its reference values and its bundle's age before it is asked.

use std::io::Read as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use countersign_policy::input::Reference;
use countersign_policy::verdict::Decision;
use countersign_policy::{PolicyEngine, Role, decision, deny, reason, reference_document};
use reqwest::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::appraise::{RemoteAnswer, RemoteDecision};
use crate::endpoint::Endpoint;

/// The first version whose bundle signatures can be relied on.
pub const SAFE_VERSION: [u64; 3] = [1, 21, 3];
/// Bytes of an answer.
const ANSWER_BYTES: u64 = 1 << 20;
/// How far OPA's clock may be before ours.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// Reason: no connection.
pub const UNREACHABLE: &str = "opa-unreachable";
/// Reason: an answer that breaks off, is too large, is no JSON, or has another status.
pub const ANSWER: &str = "opa-answer";
/// Reason: no answer before the deadline.
pub const DEADLINE: &str = "opa-deadline";
/// Reason: older than [`SAFE_VERSION`], or of unknown version.
pub const VERSION: &str = "opa-version";
/// Reason: not by the bundle that was asked for, or without a decision id.
pub const PROVENANCE: &str = "opa-provenance";
/// Reason: OPA has not heard of its bundle's server for too long, or does not say.
pub const STALE: &str = "opa-stale-bundle";
/// Reason: OPA does not take the verifier's reference values.
pub const REFERENCE: &str = "opa-reference";

/// Where an OPA is and what is asked of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port`; `unix:PATH` for a socket.
    pub address: String,
    /// Bearer token.
    pub token: Option<String>,
    /// The only CA that is trusted (PEM), for https.
    pub ca: Option<Vec<u8>>,
    /// Deadline of one decision.
    pub deadline: Duration,
    /// Name and revision that the policy's bundle must have.
    pub bundle: Option<(String, String)>,
    /// Refuse answers without a decision id (OPA gives one when it keeps a decision log).
    pub decision_id: bool,
    /// Take versions that are known to be unsafe.
    pub dangerous_allow_old_opa: bool,
}

/// What one decision must rest on.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Name of the policy's bundle in OPA.
    pub bundle: &'a str,
    /// The revision that it must have: that of the bundle in force here.
    pub revision: &'a str,
    /// How long ago OPA may have heard of its bundle's server at most; none does not ask.
    pub max_age: Option<Duration>,
    /// The reference values.
    pub reference: &'a Reference,
    /// What tells these from others: their digest.
    pub stamp: &'a str,
}

/// An OPA.
pub struct Opa {
    options: Options,
    role: Role,
    client: reqwest::blocking::Client,
    base: String,
    version: Mutex<String>,
    /// When OPA heard of its bundle's server last, as far as we know.
    heard: Mutex<Option<SystemTime>>,
}

/// Reason id and message.
type Fault = (&'static str, String);

impl std::fmt::Debug for Opa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opa").field("address", &self.options.address).finish_non_exhaustive()
    }
}

impl Opa {
    /// A client. Nothing is asked yet. It blocks its thread: async code makes and uses it on threads for that.
    ///
    /// # Errors
    /// The address or the CA cannot be used; a token without TLS or a socket.
    pub fn new(options: Options, role: Role) -> Result<Self, String> {
        let token = options.token.clone().map(Zeroizing::new);
        let endpoint = Endpoint { address: options.address.clone(), ca: options.ca.clone(), token };
        let (builder, base) = endpoint.client()?;
        let builder = reqwest::blocking::ClientBuilder::from(builder).timeout(options.deadline);
        let client = builder.build().map_err(|e| e.to_string())?;
        let (version, heard) = (Mutex::new("unknown".into()), Mutex::new(None));
        Ok(Self { options, role, client, base, version, heard })
    }

    /// Gives OPA the verifier's reference values, at `data.countersign.reference`.
    ///
    /// # Errors
    /// OPA does not take them.
    pub fn put_reference(&self, document: &Value) -> Result<(), String> {
        let until = Instant::now().checked_add(self.options.deadline);
        self.exchange(Method::PUT, "/v1/data/countersign/reference", Some(document), until)
            .map(drop)
            .map_err(|(_, why)| why)
    }

    /// One decision with all that is recorded of it. Never fails: no usable answer is an answer with its reason.
    #[must_use]
    pub fn ask_for(&self, input: &Value, wanted: &Wanted<'_>) -> RemoteDecision {
        let until = Instant::now().checked_add(self.options.deadline);
        let mut decision_id = None;
        let answer = match self.answer(input, wanted, until) {
            Ok(mut answer) => {
                decision_id = answer.get("decision_id").and_then(Value::as_str).map(str::to_owned);
                let document = answer.get_mut("result").map(Value::take).unwrap_or_default();
                RemoteAnswer::Document(document.to_string().into_bytes())
            }
            Err((id, message)) => RemoteAnswer::Failed { id: id.to_owned(), message },
        };
        RemoteDecision {
            engine: self.engine(),
            bundle: wanted.bundle.to_owned(),
            revision: wanted.revision.to_owned(),
            decision_id,
            answer,
        }
    }

    fn answer(&self, input: &Value, wanted: &Wanted<'_>, until: Option<Instant>) -> Result<Value, Fault> {
        if let Some(refused) = countersign_policy::malformed(input, self.role.source()) {
            let why = refused.reasons.into_iter().next().map_or_else(String::new, |reason| reason.message);
            return Err((reason::INPUT, why));
        }
        self.give_reference(wanted, until)?;
        if let Some(max_age) = wanted.max_age {
            self.fresh(wanted.bundle, max_age, until)?;
        }
        let answer = self.ask(input, until)?;
        self.provenance(&answer, Some((wanted.bundle, wanted.revision)))?;
        Ok(answer)
    }

    /// OPA holds the reference values with these digests, or is given them. What it holds is lost when it is restarted, so it is asked every time.
    fn give_reference(&self, wanted: &Wanted<'_>, until: Option<Instant>) -> Result<(), Fault> {
        let place = "/v1/data/countersign/verifier";
        let held = self.exchange(Method::GET, place, None, until)?;
        if held.pointer("/result/reference").and_then(Value::as_str) == Some(wanted.stamp) {
            return Ok(());
        }
        let refused = |(id, why): Fault| {
            let id = if id == ANSWER { REFERENCE } else { id };
            (id, format!("OPA is to be given the reference values: {why}"))
        };
        // The stamp last: a crash in between gives them once more.
        let document = reference_document(wanted.reference);
        self.exchange(Method::PUT, "/v1/data/countersign/reference", Some(&document), until).map_err(refused)?;
        self.exchange(Method::PUT, place, Some(&json!({"reference": wanted.stamp})), until).map_err(refused).map(drop)
    }

    /// OPA heard of its bundle's server not too long ago. What it said last is enough while that is recent: it can only have heard more since.
    fn fresh(&self, bundle: &str, max_age: Duration, until: Option<Instant>) -> Result<(), Fault> {
        let now = SystemTime::now();
        let recent = |heard: SystemTime| match now.duration_since(heard) {
            Ok(age) => age <= max_age,
            Err(ahead) => ahead.duration() <= CLOCKS_DIFFER,
        };
        let known = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some_and(recent) {
            return Ok(());
        }
        let status = self.exchange(Method::GET, "/v1/status", None, until);
        let status = status.map_err(|(id, why)| {
            let why = format!("OPA does not tell its bundle's age (its configuration needs `status`): {why}");
            (if id == ANSWER { STALE } else { id }, why)
        })?;
        let said = status.pointer("/result/bundles").and_then(|bundles| bundles.get(bundle));
        let said = said.and_then(|bundle| bundle.get("last_successful_request")).and_then(Value::as_str);
        let heard = said.and_then(instant);
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        if heard.is_some_and(recent) {
            return Ok(());
        }
        let said = said.unwrap_or("never");
        Err((
            STALE,
            format!("OPA heard of the server of bundle {bundle} last: {said}; at most {} s", max_age.as_secs()),
        ))
    }

    /// One request and its answer, before `until`.
    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        until: Option<Instant>,
    ) -> Result<Value, Fault> {
        let late = || (DEADLINE, format!("OPA did not answer within {} ms", self.options.deadline.as_millis()));
        let left = until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        if left.is_zero() {
            return Err(late());
        }
        // On the request the time counts up to the last byte of its answer; on the client it would begin anew with every byte.
        let mut request = self.client.request(method, format!("{}{path}", self.base)).timeout(left);
        if let Some(token) = &self.options.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().map_err(|e| {
            if e.is_timeout() { late() } else { (UNREACHABLE, format!("OPA at {}: {e}", self.options.address)) }
        })?;
        let status = response.status();
        let mut bytes = Vec::new();
        let read = response.take(ANSWER_BYTES.saturating_add(1)).read_to_end(&mut bytes);
        let over = until.is_none_or(|until| Instant::now() >= until);
        match read {
            Err(_) if over => return Err(late()),
            Err(e) => return Err((ANSWER, format!("OPA's answer broke off: {e}"))),
            Ok(_) => {}
        }
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > ANSWER_BYTES {
            return Err((ANSWER, format!("OPA's answer has more than {ANSWER_BYTES} bytes")));
        }
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(300).collect();
            let id = if status.is_server_error() { reason::ERROR } else { ANSWER };
            return Err((id, format!("OPA answers {status}: {text}")));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| (ANSWER, format!("OPA's answer is no JSON: {e}")))
    }

    /// The policy's verdict document stands at `result` of the answer.
    fn ask(&self, input: &Value, until: Option<Instant>) -> Result<Value, Fault> {
        let path =
            format!("/v1/data/{}/verdict?provenance&strict-builtin-errors=true", self.role.package().replace('.', "/"));
        let answer = self.exchange(Method::POST, &path, Some(&json!({"input": input})), until)?;
        if answer.get("result").is_none() {
            let why = format!("data.{}.verdict is undefined in OPA", self.role.package());
            return Err((reason::UNDEFINED, why));
        }
        Ok(answer)
    }

    /// Version, bundle revision and decision id of an answer.
    fn provenance(&self, answer: &Value, bundle: Option<(&str, &str)>) -> Result<(), Fault> {
        let version = answer.pointer("/provenance/version").and_then(Value::as_str).unwrap_or_default();
        version.clone_into(&mut self.version.lock().unwrap_or_else(PoisonError::into_inner));
        let numbers: Vec<u64> = version.split(['.', '-']).take(3).filter_map(|part| part.parse().ok()).collect();
        if !self.options.dangerous_allow_old_opa && (numbers.len() < 3 || numbers.as_slice() < &SAFE_VERSION[..]) {
            return Err((
                VERSION,
                format!("OPA {version:?} is older than 1.21.3, whose bundle signatures can be relied on"),
            ));
        }
        if let Some((name, revision)) = bundle {
            let got = answer.pointer("/provenance/bundles").and_then(|bundles| bundles.get(name));
            let got = got.and_then(|bundle| bundle.get("revision")).and_then(Value::as_str);
            if got != Some(revision) {
                return Err((
                    PROVENANCE,
                    format!("OPA decided by revision {got:?} of bundle {name}, not {revision:?}"),
                ));
            }
        }
        if self.options.decision_id && answer.get("decision_id").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err((PROVENANCE, "OPA's answer has no decision id".into()));
        }
        Ok(())
    }
}

/// `2026-11-26T01:02:03.456Z` as OPA writes it; fractions are dropped.
fn instant(text: &str) -> Option<SystemTime> {
    let (whole, rest) = text.split_at_checked(19)?;
    if !rest.ends_with('Z') || !rest.trim_end_matches('Z').bytes().all(|byte| byte == b'.' || byte.is_ascii_digit()) {
        return None;
    }
    let time: x509_cert::der::DateTime = format!("{whole}Z").parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(time.unix_duration())
}

impl PolicyEngine for Opa {
    fn engine(&self) -> String {
        format!("opa {}", self.version.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn decide(&self, input: &Value) -> Decision {
        let source = self.role.source();
        if let Some(refused) = countersign_policy::malformed(input, source) {
            return refused;
        }
        let until = Instant::now().checked_add(self.options.deadline);
        let wanted = self.options.bundle.as_ref().map(|(name, revision)| (name.as_str(), revision.as_str()));
        let answer = self.ask(input, until).and_then(|answer| self.provenance(&answer, wanted).map(|()| answer));
        match answer {
            Err((id, message)) => deny(source, id, message),
            Ok(mut answer) => decision(answer.get_mut("result").map(Value::take).unwrap_or_default(), source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_opa_writes_them() {
        let seconds = |text: &str| {
            instant(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
        };
        assert_eq!(seconds("2026-11-26T01:02:03.456789Z"), Some(1_795_654_923));
        assert_eq!(seconds("2026-11-26T01:02:03Z"), Some(1_795_654_923));
        for bad in ["", "0001", "2026-11-26T01:02:03+01:00", "2026-13-26T01:02:03Z", "2026-11-26T01:02:03.4x6Z"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
