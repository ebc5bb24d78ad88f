//! Files of the IMA list: what is accepted at their paths, and which package that is.

use std::collections::BTreeMap;

use countersign_wire::refset::{FileDigest, ReferenceSet};

use super::{EventWords, FileWords, Finding, Nearest};
use crate::appraise::NamedSet;
use crate::ima::{self, FindingKind, ImaState};

/// Packages of one file that are shown.
const PACKAGES: usize = 4;

/// What the sets say of a path or digest.
#[derive(Debug, Default)]
struct Known {
    /// Digests that are accepted at the path: set, digest, origin.
    here: Vec<(String, String, String)>,
    /// Where the digest is accepted: origin and path.
    there: Vec<String>,
    /// Sets that deny the digest.
    denied: Vec<String>,
}

/// Explains findings: those that a reason names by their path go to that reason, the others to `rest`.
pub(super) fn explain(
    state: &ImaState,
    names: &[NamedSet],
    documents: &[Vec<u8>],
    findings: &mut [Finding],
    mut rest: impl FnMut(Finding),
) {
    let files: Vec<&ima::Finding> = state.findings.iter().collect();
    if files.is_empty() {
        return;
    }
    let wanted: Vec<Wanted<'_>> = files.iter().map(|file| (file.path.as_str(), file.digest.as_str())).collect();
    let known = search(&wanted, names, documents);
    for (file, known) in files.iter().zip(known) {
        let named = |finding: &&mut Finding| {
            finding.event.is_none()
                && finding.file.is_none()
                && finding.subject.as_deref().is_some_and(|subject| is_about(subject, &file.path))
        };
        let mut found = Finding::default();
        let slot = findings.iter_mut().find(named);
        let unnamed = slot.is_none();
        let finding = slot.unwrap_or(&mut found);
        if unnamed {
            let (id, message) = match file.kind {
                FindingKind::Violation => ("ima-violation", "the kernel does not vouch for what was read or run"),
                FindingKind::Unknown => ("ima-unknown", "a file that no reference set accepts"),
                FindingKind::Denied => ("ima-denied", "a file that a deny-list names"),
            };
            (finding.id, finding.message) = (id.to_owned(), message.to_owned());
            finding.subject = Some(format!("IMA entry {}: {}", file.entry, file.path));
            finding.got = Some(file.reason.clone());
        }
        finding.accepted = (file.kind != FindingKind::Violation).then_some(known.here.len());
        finding.nearest = known.here.first().map(|(set, digest, _)| Nearest {
            set: set.clone(),
            digest: digest.clone(),
            content: None,
            difference: format!("{} has other contents", file.path),
        });
        let here = known.here.iter().map(|(.., origin)| origin.clone());
        let mut belongs: Vec<String> = Vec::new();
        for origin in here.chain(known.there).chain(known.denied) {
            if !belongs.contains(&origin) && belongs.len() < PACKAGES {
                belongs.push(origin);
            }
        }
        finding.belongs_to = belongs;
        finding.file = Some(FileWords { entry: file.entry, path: file.path.clone(), digest: file.digest.clone() });
        if unnamed {
            rest(found);
        }
    }
}

/// Whether a reason's subject is a path, or has it as one of its words: `/usr/bin/python3` is not meant by `/usr/bin/python3.11`.
fn is_about(subject: &str, path: &str) -> bool {
    let mark = |c: char| matches!(c, ':' | ',' | ';' | '"' | '\'' | '(' | ')');
    subject == path || subject.split_whitespace().any(|word| word.trim_matches(mark) == path)
}

/// Names the packages of files that GRUB read: their events hold the SHA-256 of the whole file, as packages do.
pub(super) fn packages(findings: &mut [Finding], names: &[NamedSet], documents: &[Vec<u8>]) {
    let is_file = |event: &EventWords| event.pcr == 9 && event.kind == "EV_IPL";
    let digest = |finding: &Finding| Some(format!("sha256:{}", finding.event.as_ref().filter(|e| is_file(e))?.digest));
    let (mut of, digests): (Vec<&mut Finding>, Vec<String>) =
        findings.iter_mut().filter_map(|finding| digest(finding).map(|digest| (finding, digest))).unzip();
    if of.is_empty() || documents.is_empty() {
        return;
    }
    let wanted: Vec<Wanted<'_>> = digests.iter().map(|digest| ("", digest.as_str())).collect();
    for (finding, known) in of.iter_mut().zip(search(&wanted, names, documents)) {
        finding.belongs_to.extend(known.there.into_iter().take(PACKAGES));
    }
}

/// Path, where it has one, and `alg:hex`.
type Wanted<'w> = (&'w str, &'w str);

/// One pass over the sets.
fn search(files: &[Wanted<'_>], names: &[NamedSet], documents: &[Vec<u8>]) -> Vec<Known> {
    let mut known: Vec<Known> = files.iter().map(|_| Known::default()).collect();
    let mut by_path: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut by_digest = by_path.clone();
    for (at, (path, digest)) in files.iter().enumerate() {
        by_path.entry(path).or_default().push(at);
        by_digest.entry(digest).or_default().push(at);
    }
    for (set, document) in names.iter().zip(documents) {
        let Ok(parsed) = ReferenceSet::parse(document) else { continue };
        for origin in &parsed.origins {
            for file in origin.files.iter().filter_map(|file| FileDigest::parse(file).ok()) {
                let digest = file.digest_text();
                let path = file.path.as_deref().map(|path| String::from_utf8_lossy(path).replace(' ', "_"));
                for at in path.as_deref().and_then(|path| by_path.get(path)).into_iter().flatten() {
                    if let Some(known) = known.get_mut(*at) {
                        known.here.push((set.name.clone(), digest.clone(), origin.describe()));
                    }
                }
                for at in by_digest.get(digest.as_str()).into_iter().flatten() {
                    if let Some(known) = known.get_mut(*at) {
                        known.there.push(format!(
                            "{} (as {})",
                            origin.describe(),
                            path.as_deref().unwrap_or("any path")
                        ));
                    }
                }
            }
        }
        for denied in &parsed.deny {
            for at in by_digest.get(denied.digest.as_str()).into_iter().flatten() {
                if let Some(known) = known.get_mut(*at) {
                    known.denied.push(format!("deny-list of set {}: {}", set.name, denied.reason));
                }
            }
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::is_about;

    #[test]
    fn a_path_is_not_the_beginning_of_another() {
        let path = "/usr/bin/python3";
        for (subject, it) in [
            ("/usr/bin/python3", true),
            ("/usr/bin/python3.11", false),
            ("/opt/usr/bin/python3", false),
            ("IMA entry 7: /usr/bin/python3", true),
            ("\"/usr/bin/python3\", twice", true),
            ("entry 7", false),
        ] {
            assert_eq!(is_about(subject, path), it, "{subject}");
        }
        assert!(is_about("/opt/a b", "/opt/a b"));
    }
}
