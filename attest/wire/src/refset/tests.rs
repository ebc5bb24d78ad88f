use super::*;
use proptest::prelude::*;

fn digest(byte: u8) -> String {
    format!("sha256:{}", hex::encode([byte; 32]))
}

fn set(files: &[(&str, &str, &str)]) -> ReferenceSet {
    let mut set = ReferenceSet::default();
    for (package, version, file) in files {
        let mut origin = Origin::new("deb", *package);
        origin.version = (*version).to_owned();
        origin.files.push((*file).to_owned());
        set.origins.push(origin);
    }
    set
}

#[test]
fn canonical_form_is_one() {
    let (a, b) = (format!("{} /bin/a", digest(1)), format!("{} /bin/b", digest(2)));
    let one = set(&[("x", "1", &b), ("x", "1", &a), ("x", "1", &a)]);
    let other = set(&[("x", "1", &a), ("x", "1", &b)]);
    assert_eq!(one.to_json().unwrap(), other.to_json().unwrap());
    let back = ReferenceSet::parse(&one.to_json().unwrap()).unwrap();
    assert_eq!((back.files(), back.origins.len()), (2, 1));
    assert_eq!(back.to_json().unwrap(), one.to_json().unwrap());
    let merged = one.clone().merge(other.clone());
    assert_eq!(merged, one.canonical());
}

#[test]
fn what_is_refused() {
    let refused = |text: &str| ReferenceSet::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(refused("{}").contains("missing field `type`"));
    assert!(refused(r#"{"type": "x"}"#).contains("not \"countersign.reference/v1\""));
    assert!(refused(r#"{"type": "countersign.reference/v1", "denied": []}"#).contains("unknown field `denied`"));
    let with = |file: &str| {
        let text = serde_json::json!({"type": TYPE, "origins": [{"kind": "deb", "name": "bash", "files": [file]}]});
        ReferenceSet::parse(text.to_string().as_bytes()).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(with(&digest(1)), Ok(()));
    for (file, why) in [
        ("", "no \"algorithm:\""),
        ("sha256:00", "another length"),
        ("crc32:00000000", "an algorithm that the kernel does not have"),
        (&digest(0xab).to_uppercase().replace("SHA", "sha"), "lower case"),
        (&format!("{} ", digest(1)), "an empty path"),
        (&format!("{} /a\\b", digest(1)), "neither"),
        (&format!("{} /a\\x0", digest(1)), "neither"),
        (&format!("{} /a\\xzz", digest(1)), "two hex digits"),
    ] {
        let error = with(file).unwrap_err();
        assert!(error.starts_with("deb bash: ") && error.contains(why), "{file}: {error}");
    }
}

#[test]
fn differences() {
    let before = set(&[
        ("bash", "5.1", &format!("{} /bin/bash", digest(1))),
        ("gone", "1", &format!("{} /bin/gone", digest(2))),
        ("same", "1", &digest(3)),
    ]);
    let mut after = set(&[
        ("bash", "5.2", &format!("{} /bin/bash", digest(4))),
        ("new", "1", &format!("{} /bin/new", digest(5))),
        ("same", "1", &digest(3)),
    ]);
    after.exclude.push("/var/.*".into());
    let difference = Difference::between(&before, &after);
    assert_eq!(difference.changed, ["/bin/bash"]);
    assert_eq!((difference.added, difference.removed), (vec!["/bin/new".into()], vec!["/bin/gone".into()]));
    assert_eq!(difference.rules, ["+ exclude /var/.*"]);
    let packages: Vec<_> =
        difference.packages.iter().map(|p| (p.name.as_str(), p.before.len(), p.after.len())).collect();
    assert_eq!(packages, [("deb bash", 1, 1), ("deb gone", 1, 0), ("deb new", 0, 1)]);
    assert!(Difference::between(&before, &before).is_empty());
}

proptest! {
    #[test]
    fn any_path_survives(path in proptest::collection::vec(1u8..=255, 1..40)) {
        let file = FileDigest { alg: crate::ima::KernelHash::SHA1, digest: vec![7; 20], path: Some(path) };
        prop_assert_eq!(FileDigest::parse(&file.to_string()).unwrap(), file);
    }
}
