//! An explanation in words. Whatever comes from a host is shown without control characters.

use super::{Explanation, Finding, Since, printable};

/// Findings of one id that are shown in words; JSON has more.
const SHOWN: usize = 5;
/// Changes that are shown in words.
const CHANGES: usize = 24;

pub(super) fn words(explanation: &Explanation) -> String {
    let name = explanation.host_name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let decision = if explanation.allow { "ALLOW" } else { "DENY" };
    let mut lines = vec![
        format!("verdict {}: {decision} {}", explanation.verdict, explanation.purpose),
        format!("host    {}{name}", explanation.host),
    ];
    if !explanation.failed.is_empty() {
        lines.push(format!("failed  {}", explanation.failed.join(", ")));
    }
    if explanation.allow {
        lines.push("nothing stands against it".to_owned());
    }
    let shown = list(&mut lines, &explanation.findings);
    if !explanation.also.is_empty() {
        lines.push("not accepted either, though no reason names it".to_owned());
    }
    let shown = shown.saturating_add(list(&mut lines, &explanation.also));
    let all = explanation.findings.len().saturating_add(explanation.also.len()).saturating_add(explanation.more);
    if all > shown {
        lines.push(format!("and {} more: --json shows more of them", all.saturating_sub(shown)));
    }
    since(&mut lines, &explanation.since);
    if !explanation.commands.is_empty() {
        lines.push("what to do, if this boot is as it should be or to make it so".to_owned());
        lines.extend(explanation.commands.iter().map(|command| format!("  {command}")));
    }
    lines.extend(explanation.notes.iter().map(|note| format!("note: {note}")));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// Findings; returns how many were shown.
fn list(lines: &mut Vec<String>, findings: &[Finding]) -> usize {
    let mut shown = 0usize;
    let (mut last, mut alike) = ((String::new(), String::new()), 0usize);
    for finding in findings {
        let kind = (finding.source.clone(), finding.id.clone());
        if kind == last {
            alike = alike.saturating_add(1);
        } else {
            let source = if finding.source.is_empty() { String::new() } else { format!(" ({})", finding.source) };
            (last, alike) = (kind, 1);
            lines.push(format!("{}{source}: {}", finding.id, finding.message));
        }
        if alike > SHOWN {
            continue;
        }
        shown = shown.saturating_add(1);
        one(lines, finding);
    }
    shown
}

fn one(lines: &mut Vec<String>, finding: &Finding) {
    // A policy may say nothing of a subject.
    let mut field = |name: &str, value: &str| lines.extend((!value.is_empty()).then(|| format!("  {name:8} {value}")));
    if let Some(event) = &finding.event {
        field("where", &format!("event {} (PCR {}, {})", event.index, event.pcr, event.kind));
        if let Some(content) = &event.content {
            field("measured", &content.words());
        }
        field("digest", &event.digest);
    } else if let Some(file) = &finding.file {
        field("where", &format!("IMA entry {}: {}", file.entry, file.path));
        field("digest", &file.digest);
        if let Some(got) = &finding.got {
            field("got", got);
        }
    } else {
        for (name, value) in [("where", &finding.subject), ("got", &finding.got), ("want", &finding.want)] {
            if let Some(value) = value {
                field(name, value);
            }
        }
    }
    // A log that lies or does not replay is wrong in itself, not for want of a value.
    if finding.source == "appraisal" && finding.event.is_some() {
        for (name, value) in [("got", &finding.got), ("want", &finding.want)] {
            if let Some(value) = value {
                field(name, value);
            }
        }
    }
    match (&finding.nearest, finding.accepted) {
        (Some(nearest), accepted) => {
            let content = nearest.content.as_ref().map_or_else(String::new, |content| format!("{}, ", content.words()));
            let others = match accepted.unwrap_or(1) {
                0 | 1 => String::new(),
                all => format!(", nearest of {all}"),
            };
            field("accepted", &format!("{content}{} (set {}{others})", nearest.digest, nearest.set));
            field("change", &nearest.difference);
        }
        (None, Some(0)) => field("accepted", "nothing in its place"),
        (None, Some(all)) => {
            let named = finding.event.as_ref().and_then(|event| event.content.as_ref());
            let none = if named.is_some_and(|content| !content.name.is_empty()) { ", none of this name" } else { "" };
            field("accepted", &format!("{all} values of this PCR and type{none}"));
        }
        (None, None) => {}
    }
    for origin in &finding.belongs_to {
        field("of", origin);
    }
}

fn since(lines: &mut Vec<String>, since: &Since) {
    let title = "since the last good boot";
    match since {
        Since::NotInThisBundle => {
            lines.push(format!("{title}: not in this bundle; ask its verifier for the verdict by its id"))
        }
        Since::NoEarlierBoot => lines.push(format!("{title}: this verifier never accepted this host before")),
        Since::NotAuthentic => lines.push(format!("{title}: unknown, the PCRs vouch for no boot log of this one")),
        Since::Compared { verdict, facts, events, more_events, .. } => {
            if facts.is_empty() && events.is_empty() {
                lines.push(format!("{title} (verdict {verdict}): nothing in the boot log changed"));
                return;
            }
            lines.push(format!("{title} (verdict {verdict})"));
            let changes: Vec<String> = if facts.is_empty() {
                events.iter().map(|event| event.words()).collect()
            } else {
                facts.iter().map(|change| change.words()).collect()
            };
            lines.extend(changes.iter().take(CHANGES).map(|line| format!("  {line}")));
            let more = changes.len().saturating_sub(CHANGES);
            if more > 0 {
                lines.push(format!("  and {more} more: --json"));
            }
            let differ = events.len().saturating_add(*more_events);
            if !facts.is_empty() && differ > 0 {
                lines.push(format!("  ({differ} events that only one of the logs has: --json)"));
            }
        }
    }
}
