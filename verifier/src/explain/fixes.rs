//! What to do: commands as they would be typed. Names that a host chose stand in them only as far as a shell takes them for a word.

use super::Finding;

/// Whose evidence it is.
pub(super) struct Place<'a> {
    pub(super) host: &'a str,
    pub(super) name: Option<&'a str>,
    pub(super) verdict: &'a str,
}

impl Place<'_> {
    /// A name for a new set: the host's label, as far as it is plain, and the beginning of the verdict's id.
    fn set(&self) -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let label: String = self.name.unwrap_or_default().chars().filter(plain).take(40).collect();
        let label = label.trim_start_matches(['-', '.']);
        let label = if label.is_empty() { "host" } else { label };
        format!("{label}-{}", self.verdict.get(..8).unwrap_or("new"))
    }
}

/// Whether a shell takes a package's name for a word, and a program for no option.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

/// Whether a finding is that Secure Boot is off.
pub(super) fn secure_boot_off(finding: &Finding) -> bool {
    let content = finding.event.as_ref().and_then(|event| event.content.as_ref());
    finding.id == "secure-boot" || content.is_some_and(|content| content.name == "SecureBoot" && content.text == "off")
}

/// What would accept a finding or mend it, the most direct first. `hint` is the verdict's own. With Secure Boot `off` the other events follow from
/// that, and none of them is to be accepted.
pub(super) fn of(finding: &Finding, hint: Option<String>, place: &Place<'_>, off: bool) -> Vec<String> {
    let set = place.set();
    if finding.file.is_some() {
        if finding.id.contains("denied") || finding.belongs_to.iter().any(|origin| origin.starts_with("deny-list")) {
            return vec![
                "put another version of the file on the host and reboot it".to_owned(),
                "or take the digest off the set's deny-list: verifier reference add NAME --file SET".to_owned(),
            ];
        }
        if finding.id.contains("violation") {
            return vec!["reboot the host, and keep others from writing the file while it is in use".to_owned()];
        }
        let package = finding.belongs_to.first().map(String::as_str).unwrap_or_default();
        let mut words = package.split(' ');
        let learn = match (words.next(), words.next().filter(|name| is_plain(name))) {
            (Some("deb"), Some(name)) => format!("attest learn deb-installed {name}"),
            (Some("rpm"), Some(name)) => format!("attest learn rpm-installed {name}"),
            _ => "attest learn host".to_owned(),
        };
        return vec![format!("{learn} -o {set}.json && verifier reference add {set} --file {set}.json")];
    }
    if let Some(event) = &finding.event
        && finding.source != "appraisal"
        && finding.accepted.is_some()
    {
        if off {
            return vec![SECURE_BOOT.to_owned()];
        }
        let entries = |content: Option<&countersign_wire::facts::Content>| {
            content.filter(|content| content.name == "dbx").and_then(|content| content.entries)
        };
        let accepted = entries(finding.nearest.as_ref().and_then(|nearest| nearest.content.as_ref()));
        if entries(event.content.as_ref()) < accepted {
            return vec![
                "fwupdmgr update   # on the host: its dbx is older than the accepted one; then reboot".to_owned(),
            ];
        }
        return vec![format!("verifier reference add {set} --verdict {}", place.verdict)];
    }
    match finding.id.as_str() {
        "secure-boot" => vec![SECURE_BOOT.to_owned()],
        "pcr-complete" if off => vec![SECURE_BOOT.to_owned()],
        "host-suspended" => vec![format!("verifier host admit {}", place.host)],
        "host-state" => hint.into_iter().collect(),
        "reference-missing" => {
            vec![format!("verifier reference add {set} --verdict {}", place.verdict)]
        }
        _ => hint
            .into_iter()
            .map(|hint| hint.replace("host admit HOST", &format!("host admit {}", place.host)))
            .collect(),
    }
}

const SECURE_BOOT: &str = "switch Secure Boot on in the firmware's set-up and reboot";
