//! What the documents say is there, is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files with this ending below the checkout, but for what was built.
fn files(folder: &Path, ending: &str, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files(&path, ending, into);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            into.push(path);
        }
    }
}

#[test]
fn every_known_attack_names_a_test_that_exists() {
    let mut sources = Vec::new();
    files(&root(), "rs", &mut sources);
    let mut functions = BTreeSet::new();
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("fn ") {
            let name: String = text[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            functions.insert(name);
        }
    }
    let text = fs::read_to_string(root().join("docs/known-attacks.md")).unwrap();
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.contains("| test |")) {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        assert!(tests.contains('`'), "no test in: {row}");
        for test in tests.split('`').skip(1).step_by(2) {
            let (file, function) =
                test.split_once("::").map_or((None, test), |(file, function)| (Some(file), function));
            if let Some(file) = file {
                assert!(root().join(file).is_file(), "{file} is not there, in: {row}");
            }
            assert!(functions.contains(function), "there is no test {function}, in: {row}");
            named += 1;
        }
    }
    assert!(named > 60, "only {named} tests are named");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = Vec::new();
    files(&root(), "md", &mut documents);
    assert!(documents.len() > 5);
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            assert!(document.parent().unwrap().join(link).exists(), "{}: {link}", document.display());
        }
    }
}
