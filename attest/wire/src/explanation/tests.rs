use super::*;
use crate::facts::Strength;

fn finding(id: &str, n: usize) -> Finding {
    let content = Content { name: "dbx".into(), text: "t".repeat(480), entries: Some(3), strength: Strength::Named };
    Finding {
        source: "host-policy".into(),
        id: id.into(),
        message: "measured, and not among the reference values".into(),
        event: Some(EventWords {
            index: u32::try_from(n).unwrap(),
            pcr: 7,
            kind: "EV_EFI_VARIABLE_DRIVER_CONFIG".into(),
            digest: "00".repeat(32),
            content: Some(content.clone()),
        }),
        accepted: Some(2),
        nearest: Some(Nearest {
            set: "recorded".into(),
            digest: "11".repeat(32),
            content: Some(content),
            difference: "dbx 371 -> 420 entries".into(),
        }),
        fix: vec![format!("verifier reference add set-{n}")],
        ..Finding::default()
    }
}

fn explanation(findings: usize, also: usize) -> Explanation {
    let list = |id: &str, count: usize| (0..count).map(|n| finding(id, n)).collect::<Vec<_>>();
    let (findings, also) = (list("boot-event", findings), list("other", also));
    let commands = findings.iter().chain(&also).flat_map(|finding| finding.fix.clone()).collect();
    Explanation {
        verdict: "7f".into(),
        host: "ab".into(),
        host_name: None,
        purpose: "attest".into(),
        time_ms: 1,
        allow: false,
        failed: vec!["host-policy".into()],
        findings,
        also,
        more: 0,
        since: Since::NoEarlierBoot,
        commands,
        notes: Vec::new(),
    }
}

#[test]
fn short_ones_cross_whole() {
    let told = explanation(3, 2);
    let json = told.clone().to_json().unwrap();
    assert_eq!(Explanation::from_json(&json), Some(told));
    for end in 0..json.len() {
        assert_eq!(Explanation::from_json(&json[..end]), None);
    }
}

#[test]
fn long_ones_are_cut_to_the_limit_and_counted() {
    for (findings, also) in [(10, 500), (500, 10), (500, 500)] {
        let told = explanation(findings, also);
        let json = told.clone().to_json().unwrap();
        assert!(json.len() <= limits::EXPLANATION, "{}", json.len());
        let read = Explanation::from_json(&json).unwrap();
        assert_eq!(read.findings.len() + read.also.len() + read.more, findings + also);
        assert!(!read.findings.is_empty(), "the reasons go last");
        assert_eq!(read.findings[0], told.findings[0]);
        assert_eq!(read.commands.len(), read.findings.len() + read.also.len());
        assert!(read.words().contains("more: --json"), "{}", read.words());
    }
    let mut huge = explanation(1, 0);
    huge.notes.push("x".repeat(limits::EXPLANATION));
    assert_eq!(huge.to_json(), None, "what cannot be cut is not sent");
    assert_eq!(Explanation::from_json(&vec![b' '; limits::EXPLANATION + 1]), None);
}

#[test]
fn a_terminal_is_not_steered() {
    let mut told = explanation(1, 0);
    told.host_name = Some("a\u{1b}[2Jb\nc".into());
    assert!(told.words().contains("(a\\u{1b}[2Jb\\nc)"), "{}", told.words());
}
