//! OCI images as input: layers over each other, whiteouts, and layers that want to get out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use countersign_sif::protect::squashfs_of;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{have, run};
use tar::{EntryType, Header};

const OCI: &str = "application/vnd.oci.image";

/// A layer under construction. Names and links are written as they are, however wrong.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn raw(mut self, kind: EntryType, path: &[u8], link: &[u8], mode: u32, body: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(1234);
        header.set_gid(1234);
        header.set_size(u64::try_from(body.len()).unwrap());
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, path: &str, body: &str) -> Self {
        self.raw(EntryType::Regular, path.as_bytes(), b"", 0o640, body.as_bytes())
    }
    fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path.as_bytes(), b"", 0o755, b"")
    }
    fn symlink(self, path: &str, to: &str) -> Self {
        self.raw(EntryType::Symlink, path.as_bytes(), to.as_bytes(), 0o777, b"")
    }
    fn hard(self, path: &str, to: &str) -> Self {
        self.raw(EntryType::Link, path.as_bytes(), to.as_bytes(), 0o640, b"")
    }
    fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

#[derive(Clone, Copy)]
enum Packed {
    Plain,
    Gzip,
    Zstd,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A layout in a folder. `change` may spoil what the JSON documents say.
struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn path(&self) -> PathBuf {
        self.dir.path().join("layout")
    }
    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        std::fs::write(self.path().join("blobs/sha256").join(&digest[7..]), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    }
    fn new(layers: Vec<(Vec<u8>, Packed)>, config: Value, change: impl FnOnce(&mut Value, &mut Value)) -> Self {
        let layout = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|(bytes, _)| digest(bytes)).collect();
        let mut config = json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let mut described = Vec::new();
        for (bytes, packed) in layers {
            let (bytes, media) = match packed {
                Packed::Plain => (bytes, "tar"),
                Packed::Gzip => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&bytes).unwrap();
                    (encoder.finish().unwrap(), "tar+gzip")
                }
                Packed::Zstd => (zstd::encode_all(bytes.as_slice(), 1).unwrap(), "tar+zstd"),
            };
            let mut blob = layout.blob(&bytes);
            blob["mediaType"] = json!(format!("{OCI}.layer.v1.{media}"));
            described.push(blob);
        }
        let mut manifest = json!({"schemaVersion": 2, "layers": described});
        change(&mut manifest, &mut config);
        manifest["config"] = layout.blob(&serde_json::to_vec(&config).unwrap());
        let mut entry = layout.blob(&serde_json::to_vec(&manifest).unwrap());
        entry["mediaType"] = json!(format!("{OCI}.manifest.v1+json"));
        layout.index(json!([entry]));
        layout
    }
    fn index(&self, manifests: Value) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
    fn of(layers: Vec<Vec<u8>>) -> Self {
        Self::new(layers.into_iter().map(|layer| (layer, Packed::Plain)).collect(), json!({}), |_, _| {})
    }
    /// The error of an image that is refused; nothing may be left behind.
    fn refused(&self) -> String {
        let room = tempfile::tempdir().unwrap();
        let error = squashfs_of(&self.path(), room.path()).unwrap_err().to_string();
        assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0);
        error
    }
    /// Unpacked, where unsquashfs is there.
    fn unpacked(&self) -> PathBuf {
        unpacked(&self.path(), self.dir.path())
    }
}

fn unpacked(input: &Path, room: &Path) -> PathBuf {
    let squashfs = squashfs_of(input, room).unwrap();
    let mut bytes = vec![0; usize::try_from(squashfs.length()).unwrap()];
    squashfs.read_exact_at(&mut bytes, 0).unwrap();
    let (file, out) = (room.join("made.sqfs"), room.join("out"));
    std::fs::write(&file, bytes).unwrap();
    let _ = std::fs::remove_dir_all(&out);
    run("unsquashfs", &["-n", "-q", "-d", out.to_str().unwrap(), file.to_str().unwrap()], b"");
    out
}

/// Every path below a folder with what it is; what every image gets is left out.
fn listing(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, list: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let kind = path.symlink_metadata().unwrap();
            if name == ".singularity.d" {
                continue;
            }
            if kind.is_symlink() {
                list.insert(name, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
            } else if kind.is_dir() {
                walk(root, &path, list);
                if std::fs::read_dir(&path).unwrap().next().is_none() {
                    list.insert(name, "folder".into());
                }
            } else {
                list.insert(name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
            }
        }
    }
    let mut list = BTreeMap::new();
    walk(root, root, &mut list);
    for given in ["dev", "proc", "sys", "root", "home", "tmp", "var/tmp", "etc/hosts", "etc/resolv.conf"] {
        assert!(list.remove(given).is_some(), "{given}");
    }
    list
}

fn expected(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())).collect()
}

#[test]
fn layers_lie_over_each_other() {
    if !have("mksquashfs") || !have("unsquashfs") {
        return;
    }
    let long = format!("deep/{}/{}", "n".repeat(90), "m".repeat(90));
    let mut first = Layer::default()
        .dir("./")
        .dir("a/")
        .file("a/kept", "one")
        .file("a/changed", "old")
        .file("a/gone", "x")
        .dir("b/sub/")
        .file("b/sub/old", "x")
        .file("b/other", "x")
        .dir("c/")
        .file("c/inside", "x")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/a")
        .file("linked", "shared")
        .hard("name2", "linked")
        .hard("/name3", "./name2")
        .file("becomes-dir", "x")
        .dir("becomes-file/")
        .file("becomes-file/x", "x")
        .raw(EntryType::Char, b"device", b"", 0o666, b"")
        .raw(EntryType::Regular, b"suid", b"", 0o4755, b"s");
    // A name that no header holds.
    let pax = format!("{} path={long}\n", long.len() + 10);
    first = first.raw(EntryType::XHeader, b"pax", b"", 0o644, pax.as_bytes()).file("short", "long name");
    first = first.raw(EntryType::GNULongName, b"././@LongLink", b"", 0, format!("{long}2\0").as_bytes());
    first = first.file("short", "GNU name");
    let second = Layer::default()
        .file("a/.wh.gone", "")
        .file("a/changed", "new")
        // Opaque: named after what the same layer puts there, and hiding only what is below.
        .file("b/new", "mine")
        .file("b/.wh..wh..opq", "")
        .dir("c/")
        .file("c/fresh", "mine")
        .file(".wh.c", "")
        .file("lib/through", "a link of the layer below")
        .file("abs/through", "an absolute link stays inside")
        .file(".wh.linked", "")
        .file(".wh.never-there", "")
        .dir("becomes-dir/")
        .file("becomes-dir/y", "y")
        .file("becomes-file", "z");
    let third = Layer::default().file("usr/lib/late", "3").file("a/.wh.kept", "").hard("again", "a/changed");
    let layers = vec![(first.done(), Packed::Gzip), (second.done(), Packed::Zstd), (third.done(), Packed::Plain)];
    let layout = Layout::new(layers, json!({"Cmd": ["/bin/sh"], "Labels": {"x": "y"}}), |_, _| {});
    let want = [
        ("a/changed", "new"),
        ("a/through", "an absolute link stays inside"),
        ("again", "new"),
        ("b/new", "mine"),
        ("c/fresh", "mine"),
        ("lib", "-> usr/lib"),
        ("abs", "-> /a"),
        ("usr/lib/through", "a link of the layer below"),
        ("usr/lib/late", "3"),
        ("name2", "shared"),
        ("name3", "shared"),
        ("becomes-dir/y", "y"),
        ("becomes-file", "z"),
        ("suid", "s"),
        (&long, "long name"),
        (&format!("{long}2"), "GNU name"),
    ];
    let out = layout.unpacked();
    assert_eq!(listing(&out), expected(&want));
    let inode = |name: &str| std::fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode("name2"), inode("name3"), "one file, two names");
    assert_eq!(std::fs::metadata(out.join("a/changed")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(std::fs::metadata(out.join("name2")).unwrap().mtime(), 1_700_000_000);
    assert!(std::fs::read_to_string(out.join(".singularity.d/runscript")).unwrap().contains("set -- '/bin/sh'"));
    let said = run("unsquashfs", &["-lln", layout.dir.path().join("made.sqfs").to_str().unwrap()], b"");
    let said = String::from_utf8(said).unwrap();
    assert!(said.lines().filter(|line| line.contains("squashfs-root/")).all(|line| line.contains(" 0/0 ")), "{said}");

    // The same layout as an archive, by GNU tar.
    let archive = layout.dir.path().join("image.tar");
    run("tar", &["-C", layout.path().to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."], b"");
    assert_eq!(listing(&unpacked(&archive, layout.dir.path())), expected(&want));
    let squashfs = squashfs_of(&archive, layout.dir.path()).unwrap();
    assert_eq!(squashfs.arch().0, *b"02\0");
    let manifest = std::fs::read_to_string(layout.path().join("index.json")).unwrap();
    assert!(manifest.contains(squashfs.source().unwrap()));
}

#[test]
fn nothing_gets_out_of_the_image() {
    if !have("mksquashfs") || !have("unsquashfs") {
        return;
    }
    for path in ["../x", "a/../../x", "..", "/../etc/passwd", "a/.."] {
        let error = Layout::of(vec![Layer::default().dir("a/").file(path, "x").done()]).refused();
        assert!(error.contains("leads out of the image"), "{path}: {error}");
    }
    for target in ["../../etc/passwd", "/etc/passwd", "nothing", "a", "", "/"] {
        let error = Layout::of(vec![Layer::default().dir("a/").hard("x", target).done()]).refused();
        assert!(error.contains("hard link") || error.contains("leads out"), "{target}: {error}");
    }
    // A whiteout cannot name something elsewhere, or the folder itself.
    for path in ["a/.wh...", "a/.wh.", "a/.wh..", "../.wh.x"] {
        Layout::of(vec![Layer::default().dir("a/").done(), Layer::default().file(path, "").done()]).refused();
    }
    // Through links: to the root's parent, to each other, to a file.
    let up = Layer::default().symlink("up", "../../../../..").file("up/here", "inside").symlink("x", "/");
    let layout = Layout::of(vec![up.file("x/up/too", "inside").done()]);
    assert_eq!(
        listing(&layout.unpacked()),
        expected(&[("here", "inside"), ("too", "inside"), ("up", "-> ../../../../.."), ("x", "-> /")])
    );
    let looped = Layer::default().symlink("p", "q").symlink("q", "p").file("p/x", "");
    assert!(Layout::of(vec![looped.done()]).refused().contains("lead to each other"));
    let through = Layer::default().file("f", "").file("f/x", "");
    assert!(Layout::of(vec![through.done()]).refused().contains("is a file"));
    // A hard link follows a link within the image only, and links a link itself.
    let hard = Layer::default().symlink("passwd", "/etc/passwd").hard("mine", "passwd").symlink("e", "/etc");
    let layout = Layout::of(vec![hard.done()]);
    assert_eq!(listing(&layout.unpacked())["mine"], "-> /etc/passwd");
    let hard = Layer::default().symlink("e", "/etc").hard("mine", "e/passwd");
    assert!(Layout::of(vec![hard.done()]).refused().contains("hard link"));
    // What is added goes nowhere else either.
    let own = Layer::default().symlink(".singularity.d", "/elsewhere").symlink("etc", "../../etc");
    let out = Layout::of(vec![own.done()]).refused();
    assert!(out.contains("lead to each other"), "{out}");
}

#[test]
fn what_is_not_what_it_says() {
    if !have("mksquashfs") {
        return;
    }
    let layer = || Layer::default().file("f", "content").done();
    let pristine = || Layout::of(vec![layer()]);
    // Each blob changed by one bit, cut, made longer, or gone.
    let blobs = |layout: &Layout| -> Vec<PathBuf> {
        std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    for n in 0..3 {
        for change in 0..4 {
            let layout = pristine();
            let mut all = blobs(&layout);
            all.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
            let path = &all[n];
            let mut bytes = std::fs::read(path).unwrap();
            match change {
                0 => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    std::fs::write(path, bytes).unwrap();
                }
                1 => std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap(),
                2 => std::fs::write(path, [&bytes[..], b" "].concat()).unwrap(),
                _ => std::fs::remove_file(path).unwrap(),
            }
            let error = layout.refused();
            assert!(error.contains("OCI image"), "blob {n}, change {change}: {error}");
        }
    }
    // A layout that was copied in part is no root folder.
    for name in ["index.json", "blobs"] {
        let layout = pristine();
        std::fs::rename(layout.path().join(name), layout.dir.path().join("elsewhere")).unwrap();
        let error = layout.refused();
        assert!(error.contains("OCI image"), "without {name}: {error}");
    }
    // An archive that was cut: the input is at fault, and nothing else.
    let layout = pristine();
    let archive = layout.dir.path().join("image.tar");
    run("tar", &["-C", layout.path().to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."], b"");
    let bytes = std::fs::read(&archive).unwrap();
    for length in [600, 1100, bytes.len() / 2] {
        std::fs::write(&archive, &bytes[..length]).unwrap();
        let error = squashfs_of(&archive, layout.dir.path()).unwrap_err().to_string();
        assert!(error.contains("OCI image"), "{length} bytes: {error}");
    }
    let with = |change: &dyn Fn(&mut Value, &mut Value)| {
        Layout::new(vec![(layer(), Packed::Gzip)], json!({}), change).refused()
    };
    let wrong = with(&|_, config| config["rootfs"]["diff_ids"][0] = json!(digest(b"other")));
    assert!(wrong.contains("diff_id"), "{wrong}");
    assert!(with(&|_, config| config["rootfs"]["diff_ids"] = json!([])).contains("layers"));
    assert!(with(&|_, config| config["os"] = json!("windows")).contains("windows"));
    let kind = format!("{OCI}.layer.v1.tar+encrypted");
    assert!(with(&|manifest, _| manifest["layers"][0]["mediaType"] = json!(kind)).contains("encrypted"));
    let plain = format!("{OCI}.layer.v1.tar");
    assert!(with(&|manifest, _| manifest["layers"][0]["mediaType"] = json!(plain)).contains("OCI image"));
    for text in ["sha256:../../../etc/passwd", "md5:00", "sha256:AB", ""] {
        assert!(with(&|manifest, _| manifest["layers"][0]["digest"] = json!(text)).contains("digest"));
    }
    // Archives that end early, and members nobody knows.
    let whole = layer();
    for length in [1, 100, 511, 513, 600] {
        Layout::of(vec![whole[..length].to_vec()]).refused();
    }
    let sparse = Layer::default().raw(EntryType::GNUSparse, b"s", b"", 0o644, b"");
    assert!(Layout::of(vec![sparse.done()]).refused().contains("sparse"));
    // A name of gigabytes that a few bytes of gzip expand to is not read.
    let mut bomb = Layer::default().raw(EntryType::GNULongName, b"././@LongLink", b"", 0, b"").0;
    bomb[124..136].copy_from_slice(b"77777777777\0");
    let mut header = Header::from_byte_slice(&bomb[..512]).clone();
    header.set_cksum();
    bomb[..512].copy_from_slice(header.as_bytes());
    assert!(Layout::of(vec![bomb]).refused().contains("extended header"));
}

#[test]
fn the_image_for_this_machine_is_taken() {
    if !have("mksquashfs") {
        return;
    }
    let layout = Layout::of(vec![Layer::default().file("f", "x").done()]);
    let index: Value = serde_json::from_slice(&std::fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let entry = |os: &str, architecture: &str| {
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entry
    };
    let native = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    layout.index(json!([entry("linux", "s390x"), entry("linux", native), entry("unknown", "unknown")]));
    layout.unpacked();
    // In an index of its own.
    let nested = serde_json::to_vec(&json!({"manifests": [entry("linux", native)]})).unwrap();
    let mut nested = layout.blob(&nested);
    nested["mediaType"] = json!(format!("{OCI}.index.v1+json"));
    layout.index(json!([nested]));
    layout.unpacked();
    // Only one, of another machine: it is said what it is for.
    layout.index(json!([entry("linux", "s390x")]));
    layout.unpacked();
    layout.index(json!([entry("linux", native), entry("linux", native)]));
    assert!(layout.refused().contains("2 images"));
    layout.index(json!([entry("linux", "s390x"), entry("linux", "ppc64le")]));
    assert!(layout.refused().contains("no image for this machine"));
    layout.index(json!([]));
    layout.refused();
}
