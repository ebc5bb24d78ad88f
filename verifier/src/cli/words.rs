//! Answers in words.

use countersign_wire::facts::Log;
use serde_json::Value;

use crate::admin::Request;
use crate::check::{CheckedBundle, CheckedLog, CheckedQuote};
use crate::out::table;

fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn rows(answer: &Value, list: &str, columns: &[&str]) -> String {
    let entries = answer.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        return format!("no {list}");
    }
    let mut all = vec![columns.iter().map(|column| column.to_uppercase()).collect::<Vec<_>>()];
    all.extend(entries.iter().map(|entry| columns.iter().map(|column| text(entry, column)).collect()));
    table(&all)
}

pub(super) fn fields(value: &Value) -> String {
    let Some(map) = value.as_object() else { return value.to_string() };
    table(&map.iter().map(|(name, _)| vec![name.clone(), text(value, name)]).collect::<Vec<_>>())
}

/// The answer to an operator's request.
pub(super) fn answer(request: &Request, answer: &Value) -> String {
    match request {
        Request::TokenNew { .. } => text(answer, "token"),
        Request::HostList {} => rows(answer, "hosts", &["host", "name", "state", "simulated", "state_reason"]),
        Request::EkRootList {} => rows(answer, "roots", &["fingerprint", "subject", "development"]),
        Request::EkRootAdd { .. } => rows(answer, "added", &["fingerprint", "subject", "development"]),
        Request::EkList {} => rows(answer, "eks", &["ek", "name", "development"]),
        Request::ReferenceList {} => rows(answer, "sets", &["name", "values", "files", "signer"]),
        Request::VerdictList { .. } => rows(answer, "verdicts", &["id", "host", "purpose", "allow", "time_ms"]),
        Request::ReleaseList { .. } => {
            rows(answer, "releases", &["run", "host", "workload", "boot", "cap", "time_ms", "refunded_ms"])
        }
        Request::GrantList {} => rows(answer, "grants", &["workload", "host", "state"]),
        Request::WorkloadList {} => rows(answer, "workloads", &["workload", "name", "withdrawn"]),
        Request::RunList { .. } => {
            rows(answer, "runs", &["run", "host_name", "workload_name", "state", "started_ms", "status", "findings"])
        }
        Request::VerdictShow { .. } => verdict(answer),
        Request::HostShow { .. }
        | Request::HostState { .. }
        | Request::EkRootRemove { .. }
        | Request::EkAllow { .. }
        | Request::EkRemove { .. }
        | Request::ReferenceAdd { .. }
        | Request::ReferenceAddVerdict { .. }
        | Request::ReferenceAddSet { .. }
        | Request::ReferenceRevoke { .. }
        | Request::ReleaseRefund { .. }
        | Request::VerdictBundle { .. }
        | Request::VerdictExplain { .. }
        | Request::GrantAdd { .. }
        | Request::WorkloadRegister { .. }
        | Request::WorkloadShow { .. }
        | Request::WorkloadWithdraw { .. }
        | Request::RunShow { .. }
        | Request::RunOrder { .. }
        | Request::Restored {} => fields(answer),
    }
}

fn verdict(document: &Value) -> String {
    let mut lines = vec![format!(
        "{} {} of host {}{}",
        if document.get("allow") == Some(&Value::Bool(true)) { "ALLOW" } else { "DENY" },
        text(document, "purpose"),
        text(document, "host"),
        if document.get("simulated") == Some(&Value::Bool(true)) { " (simulated TPM)" } else { "" }
    )];
    let list = |name: &str| document.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    for check in list("checks") {
        let detail = ["got", "want", "subject", "why"]
            .iter()
            .filter_map(|name| Some((name, text(&check, name))).filter(|(_, value)| !value.is_empty()))
            .map(|(name, value)| format!("{name} {value}"));
        let detail: Vec<String> = detail.collect();
        lines.push(
            format!("  {:16}  {:13}  {}", text(&check, "id"), text(&check, "result"), detail.join("; "))
                .trim_end()
                .to_owned(),
        );
    }
    for reason in list("reasons") {
        lines.push(format!("{} ({}): {}", text(&reason, "id"), text(&reason, "source"), text(&reason, "message")));
        for name in ["subject", "got", "want", "hint"] {
            let value = text(&reason, name);
            if !value.is_empty() {
                lines.push(format!("  {name:8} {value}"));
            }
        }
    }
    lines.join("\n")
}

/// A log that was checked.
pub(super) fn eventlog(checked: &CheckedLog) -> String {
    let secure_boot = checked.secure_boot.map_or("unknown", |on| if on { "on" } else { "off" });
    let banks: Vec<String> = checked.pcrs.iter().map(|(bank, pcrs)| format!("{bank} ({} PCRs)", pcrs.len())).collect();
    let mut text =
        format!("the log replays in {}\n{} events, Secure Boot {secure_boot}", banks.join(", "), checked.events);
    if checked.facts.exit_boot_services.as_ref().is_some_and(|fact| fact.log == Log::Pcr) {
        text.push_str("\nthe log lacks the events of ExitBootServices; PCR 5 shows them");
    }
    text
}

/// A quote that was checked.
pub(super) fn quote(checked: &CheckedQuote) -> String {
    format!(
        "the quote holds: resetCount {}, restartCount {}, clock {} ms, safe {}\nPCR digest {}",
        checked.reset_count, checked.restart_count, checked.clock_ms, checked.safe, checked.pcr_digest
    )
}

/// A bundle that was checked.
pub(super) fn bundle(checked: &CheckedBundle) -> String {
    let decision = if checked.allow { "allow" } else { "deny" };
    let anchor = if checked.anchored {
        "anchored in the trust bundle given"
    } else {
        "NOT anchored: anybody can make such a bundle"
    };
    let mut lines = vec![
        format!("the verdict {} was recomputed: {decision} ({})", checked.verdict, checked.purpose),
        format!("host {}{}", checked.host, if checked.simulated { " (simulated TPM)" } else { "" }),
        anchor.to_owned(),
    ];
    lines.extend(checked.workload.iter().map(|workload| format!("workload {workload}")));
    lines.extend(checked.rests_on_the_verifier.iter().map(|what| format!("rests on the verifier's word: {what}")));
    lines.join("\n")
}
