//! Reference values from everything that they are learned from, against files, packages and archives that other tools make.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use countersign_attest::learn::{self, LearnError};
use countersign_tpm::alg::HashAlg;
use countersign_wire::ima::synthetic;
use countersign_wire::refset::{FileDigest, Origin};
use tempfile::TempDir;

/// Runs a tool; false, said aloud, where it is not installed.
fn tool(name: &str, dir: &Path, args: &[&str]) -> bool {
    let mut command = Command::new(name);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match command.spawn() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {name} is not installed");
            false
        }
        child => {
            let output = child.unwrap().wait_with_output().unwrap();
            assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
    }
}

fn shell(dir: &Path, line: &str) -> bool {
    tool("sh", dir, &["-ec", line])
}

fn has(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name} >/dev/null")]).status().unwrap().success();
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}

/// A small root file system.
fn root(dir: &Path) {
    for folder in ["usr/bin", "usr/lib", "etc", "bin"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("usr/bin/tool"), b"tool").unwrap();
    fs::hard_link(dir.join("usr/bin/tool"), dir.join("usr/bin/alias")).unwrap();
    fs::write(dir.join("usr/lib/big"), vec![7; 300_000]).unwrap();
    fs::write(dir.join("etc/two words"), b"").unwrap();
    fs::write(dir.join(format!("etc/{}", "n".repeat(180))), b"long name").unwrap();
    fs::write(dir.join("bin/old"), b"old").unwrap();
    symlink("tool", dir.join("usr/bin/link")).unwrap();
}

fn wanted() -> BTreeMap<String, String> {
    let long = format!("/etc/{}", "n".repeat(180));
    let files: [(&str, Vec<u8>); 6] = [
        ("/usr/bin/tool", b"tool".to_vec()),
        ("/usr/bin/alias", b"tool".to_vec()),
        ("/usr/lib/big", vec![7; 300_000]),
        ("/etc/two words", Vec::new()),
        (&long, b"long name".to_vec()),
        ("/bin/old", b"old".to_vec()),
    ];
    let digest = |bytes: &[u8]| format!("sha256:{}", HashAlg::Sha256.digest(&[bytes]));
    files.iter().map(|(path, bytes)| ((*path).to_owned(), digest(bytes))).collect()
}

/// Path and digest of each file.
fn files(origin: &Origin) -> BTreeMap<String, String> {
    let file = |file: &String| {
        let file = FileDigest::parse(file).unwrap();
        (String::from_utf8(file.path.clone().unwrap()).unwrap(), file.digest_text())
    };
    let all: BTreeMap<_, _> = origin.files.iter().map(file).collect();
    assert_eq!(all.len(), origin.files.len(), "no file twice");
    all
}

#[test]
fn a_folder() {
    let dir = TempDir::new().unwrap();
    root(dir.path());
    let origin = learn::directory(dir.path()).unwrap();
    assert_eq!((origin.kind.as_str(), files(&origin)), ("directory", wanted()));
    assert!(matches!(learn::directory(&dir.path().join("nothing")), Err(LearnError::File { .. })));
}

#[test]
fn a_golden_hosts_list_in_both_forms() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("list");
    let mut list = synthetic::list(5);
    list.push_violation("/var/log/wtmp");
    list.push_old(&[3; 20], "/sbin/init");
    fs::write(&path, &list.bytes).unwrap();
    let origin = learn::ima_list(&path, false).unwrap();
    assert_eq!(origin.files.len(), 6, "neither boot_aggregate nor the violation");
    assert!(origin.files.contains(&format!("sha256:{} {}", synthetic::digest(4), synthetic::path(4))));
    assert!(origin.files.contains(&format!("sha1:{} /sbin/init", "03".repeat(20))));
    let anywhere = learn::ima_list(&path, true).unwrap();
    assert!(anywhere.files.contains(&format!("sha256:{}", synthetic::digest(4))));
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples/nosb-direct-diskroot-ima-tcb-apptainer");
    if let (Ok(binary), Ok(ascii)) = (
        learn::ima_list(&Path::new(recorded).join("ima_binary"), false),
        learn::ima_list(&Path::new(recorded).join("ima_ascii"), false),
    ) {
        assert!(binary.files.len() > 500);
        let shorter = binary.files.len().min(ascii.files.len());
        assert_eq!(binary.files[..shorter], ascii.files[..shorter]);
    } else {
        println!("skipped: no recorded samples beside the checkout");
    }
    // A list that was edited.
    let at = list.bytes.windows(5).position(|window| window == b"file-").unwrap();
    list.bytes[at] = b'F';
    fs::write(&path, &list.bytes).unwrap();
    assert!(learn::ima_list(&path, false).unwrap_err().to_string().contains("template hash is not that of its fields"));
}

#[test]
fn a_sif_image() {
    if !has("mksquashfs") || !has("siftool") || !has("unsquashfs") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image_root = dir.path().join("root");
    root(&image_root);
    let make = "mksquashfs root part.sqfs -quiet -no-progress -all-root >/dev/null; siftool new app.sif; \
                echo recipe > def; siftool add --datatype 1 --filename def app.sif def; \
                siftool add --datatype 4 --parttype 2 --partfs 1 --partarch 2 --groupid 1 app.sif part.sqfs";
    shell(dir.path(), make);
    let origin = learn::sif(&dir.path().join("app.sif")).unwrap();
    assert_eq!((origin.kind.as_str(), origin.name.as_str(), files(&origin)), ("sif", "app.sif", wanted()));
    let sif = fs::read(dir.path().join("app.sif")).unwrap();
    let bad = dir.path().join("bad.sif");
    for end in [0, 41, 127, 4096, 5000, sif.len() / 2] {
        fs::write(&bad, &sif[..end]).unwrap();
        assert!(learn::sif(&bad).is_err(), "{end}");
    }
    let mut many = sif;
    many[88..96].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&bad, many).unwrap();
    assert!(learn::sif(&bad).unwrap_err().to_string().contains("descriptors, at most"));
}

#[test]
fn debian_package_files() {
    if !has("dpkg-deb") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let package = dir.path().join("p");
    root(&package);
    fs::create_dir(package.join("DEBIAN")).unwrap();
    let control =
        "Package: demo\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: demo\n";
    fs::write(package.join("DEBIAN/control"), control).unwrap();
    let mut want = wanted();
    want.insert("/usr/bin/old".into(), want["/bin/old"].clone());
    for compression in ["none", "gzip", "zstd", "xz"] {
        if compression == "xz" && !has("xz") {
            continue;
        }
        tool("dpkg-deb", dir.path(), &["-Z", compression, "--root-owner-group", "-b", "p", "demo.deb"]);
        let path = dir.path().join("demo.deb");
        let origin = learn::deb_file(&path).unwrap();
        assert_eq!(origin.describe(), "deb demo 1:2.0-1 all");
        assert_eq!(files(&origin), want, "{compression}");
        let deb = fs::read(&path).unwrap();
        let cut = dir.path().join("cut.deb");
        for end in (0..deb.len() - 1).step_by(deb.len() / 40 + 1) {
            fs::write(&cut, &deb[..end]).unwrap();
            assert!(learn::deb_file(&cut).is_err(), "{compression} {end}");
        }
    }
}

#[test]
fn installed_debian_packages() {
    let dir = TempDir::new().unwrap();
    let (info, bin) = (dir.path().join("var/lib/dpkg/info"), dir.path().join("usr/bin"));
    fs::create_dir_all(&info).unwrap();
    fs::create_dir_all(&bin).unwrap();
    symlink("usr/bin", dir.path().join("bin")).unwrap();
    fs::write(bin.join("demo"), b"tool").unwrap();
    symlink("demo", bin.join("link")).unwrap();
    let status = "Package: demo\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n\
                  Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 2\n\n";
    fs::write(dir.path().join("var/lib/dpkg/status"), status).unwrap();
    fs::write(info.join("demo:amd64.list"), "/.\n/bin\n/bin/demo\n/bin/link\n/bin/removed\n").unwrap();
    let origins = learn::deb_installed(dir.path(), &[]).unwrap();
    assert_eq!(origins.len(), 1);
    assert_eq!(origins[0].describe(), "deb demo 1 amd64");
    // With the path where it lies.
    let digest = format!("sha256:{} /usr/bin/demo", HashAlg::Sha256.digest(&[b"tool"]));
    assert_eq!(origins[0].files, [digest]);
    let error = learn::deb_installed(dir.path(), &["gone".into()]).unwrap_err();
    assert!(error.to_string().contains("package gone is not installed"), "{error}");
    // A real one, where this is Debian.
    if Path::new("/var/lib/dpkg/status").exists() {
        let origins = learn::deb_installed(Path::new("/"), &["dpkg".into()]).unwrap();
        assert!(files(&origins[0]).contains_key("/usr/bin/dpkg-deb"));
    } else {
        println!("skipped: this is no Debian");
    }
}

const SPEC: &str = "Name: demo\nVersion: 2.0\nRelease: 1\nSummary: demo\nLicense: none\nBuildArch: noarch\n\
%description\ndemo\n%install\nmkdir -p %{buildroot}/usr/bin %{buildroot}/etc\nprintf tool > %{buildroot}/usr/bin/tool\n\
printf old > %{buildroot}/etc/old\nln -s tool %{buildroot}/usr/bin/link\n%files\n/usr/bin/tool\n/usr/bin/link\n/etc/old\n";

#[test]
fn rpm_package_files_and_installed_ones() {
    if !has("rpmbuild") || !has("rpm") {
        return;
    }
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("demo.spec"), SPEC).unwrap();
    let build = |algorithm: u32, name: &str| {
        let define = format!("_topdir {}/{name}", dir.path().display());
        let algorithm = format!("_binary_filedigest_algorithm {algorithm}");
        let args = [
            "-bb",
            "--quiet",
            "--define",
            &define,
            "--define",
            &algorithm,
            "--define",
            "_build_id_links none",
            "demo.spec",
        ];
        tool("rpmbuild", dir.path(), &args);
        dir.path().join(name).join("RPMS/noarch/demo-2.0-1.noarch.rpm")
    };
    let package = build(8, "sha256");
    let origin = learn::rpm_file(&package).unwrap();
    assert_eq!(origin.describe(), "rpm demo 2.0-1 noarch");
    let digest = |bytes: &[u8]| format!("sha256:{}", HashAlg::Sha256.digest(&[bytes]));
    let want: BTreeMap<String, String> =
        [("/etc/old".to_owned(), digest(b"old")), ("/usr/bin/tool".to_owned(), digest(b"tool"))].into();
    assert_eq!(files(&origin), want);
    let sha512 = learn::rpm_file(&build(10, "sha512")).unwrap();
    assert!(sha512.files.iter().all(|file| file.starts_with("sha512:")));
    let error = learn::rpm_file(&build(1, "md5")).unwrap_err();
    assert!(error.to_string().contains("only SHA-256 and longer"), "{error}");
    // Damaged.
    let bytes = fs::read(&package).unwrap();
    let cut = dir.path().join("cut.rpm");
    for end in (0..2000.min(bytes.len())).step_by(61) {
        fs::write(&cut, &bytes[..end]).unwrap();
        assert!(learn::rpm_file(&cut).is_err(), "{end}");
    }
    for at in (96..1500).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] = 0xff;
        fs::write(&cut, changed).unwrap();
        let _ = learn::rpm_file(&cut);
    }
    // Installed.
    let system = dir.path().join("system");
    fs::create_dir(&system).unwrap();
    let root = system.display().to_string();
    if fs::metadata("/").unwrap().uid() == 0 && fs::metadata(dir.path()).unwrap().uid() == 0 {
        tool(
            "rpm",
            dir.path(),
            &["--root", &root, "--install", "--nodeps", "--noscripts", &package.display().to_string()],
        );
        let installed = learn::rpm_installed(&system, &[]).unwrap();
        assert_eq!(installed.len(), 1);
        assert_eq!((installed[0].describe(), files(&installed[0])), (origin.describe(), want));
        assert!(learn::rpm_installed(&system, &["nothing".into()]).is_err());
    } else {
        println!("skipped: packages are installed by root only");
    }
}

#[test]
fn initrds() {
    if !has("cpio") && !has("busybox") {
        return;
    }
    let dir = TempDir::new().unwrap();
    root(&dir.path().join("main"));
    fs::create_dir_all(dir.path().join("early/kernel/x86/microcode")).unwrap();
    fs::write(dir.path().join("early/kernel/x86/microcode/GenuineIntel.bin"), b"microcode").unwrap();
    let cpio = if has("cpio") { "cpio --quiet" } else { "busybox cpio" };
    shell(
        dir.path(),
        &format!(
            "for d in main early; do (cd $d; find . | {cpio} -o -H newc > ../$d.cpio); done; head -c 1000 /dev/zero > zeros"
        ),
    );
    let mut want = wanted();
    want.insert(
        "/kernel/x86/microcode/GenuineIntel.bin".into(),
        format!("sha256:{}", HashAlg::Sha256.digest(&[b"microcode"])),
    );
    // busybox writes the contents of hard links once, in front; then its other names count as empty files.
    let images = [
        ("cat", "cat early.cpio main.cpio > initrd"),
        ("gzip", "gzip -k main.cpio; cat early.cpio zeros main.cpio.gz > initrd"),
        ("gzip", "gzip -kf early.cpio; cat early.cpio.gz zeros main.cpio.gz zeros > initrd"),
        ("gzip", "cat early.cpio main.cpio | gzip > initrd"),
        ("zstd", "zstd -qk main.cpio; cat early.cpio main.cpio.zst > initrd"),
        ("xz", "xz -k --check=crc32 main.cpio; cat early.cpio main.cpio.xz > initrd"),
    ];
    let path = dir.path().join("initrd");
    for (program, line) in images {
        if !has(program) {
            continue;
        }
        shell(dir.path(), line);
        let origin = learn::initrd(&path).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(files(&origin), want, "{line}");
    }
    let plain = fs::read(dir.path().join("early.cpio")).unwrap();
    let cut = dir.path().join("cut");
    let ends = plain.windows(10).position(|window| window == b"TRAILER!!!").unwrap();
    for end in (0..ends).step_by(13) {
        fs::write(&cut, &plain[..end]).unwrap();
        assert!(learn::initrd(&cut).is_err(), "{end}");
    }
    for (bytes, want) in
        [(&b"BZh91AY"[..], "bzip2 is not read here"), (b"\x02\x21\x4c\x18", "lz4"), (b"text", "failed to fill")]
    {
        fs::write(&cut, bytes).unwrap();
        let error = learn::initrd(&cut).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

/// The command, in a folder.
fn attest(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_attest")).args(args).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn learned_merged_compared_signed_and_checked() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    root(&at.join("one"));
    root(&at.join("two"));
    fs::write(at.join("two/bin/old"), b"new").unwrap();
    fs::write(at.join("two/bin/more"), b"more").unwrap();
    for name in ["one", "two"] {
        let (code, _, stderr) = attest(at, &["learn", "dir", name, "-o", &format!("{name}.json")]);
        assert_eq!(code, 0, "{stderr}");
    }
    assert_eq!(attest(at, &["learn", "dir", "one"]).1, fs::read_to_string(at.join("one.json")).unwrap());
    assert!(attest(at, &["learn", "--digest-only", "dir", "one"]).1.lines().all(|line| !line.contains("/usr/bin")));
    let (_, stdout, _) = attest(at, &["reference", "diff", "one.json", "two.json"]);
    let want = "directory one: present -> none\ndirectory two: none -> present\n+ /bin/more\n! /bin/old\n";
    assert_eq!(stdout, want);
    assert_eq!(attest(at, &["reference", "diff", "one.json", "one.json"]).1, "both sets accept the same\n");
    let (code, stdout, _) = attest(at, &["reference", "merge", "one.json", "two.json", "-o", "both.json"]);
    assert_eq!((code, stdout.as_str()), (0, "both.json: 13 files of 2 origins\n"));
    if !has("openssl") {
        return;
    }
    for (name, algorithm) in [
        ("ed", "ed25519"),
        ("p256", "EC -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "EC -pkeyopt ec_paramgen_curve:P-384"),
    ] {
        shell(
            at,
            &format!(
                "openssl genpkey -algorithm {algorithm} -out {name}.pem; openssl pkey -in {name}.pem -pubout -out {name}.pub"
            ),
        );
        let (code, stdout, stderr) =
            attest(at, &["reference", "sign", "both.json", "--key", &format!("{name}.pem"), "-o", "both.dsse"]);
        assert_eq!(code, 0, "{stderr}");
        let id = stdout.trim().rsplit(' ').next().unwrap().to_owned();
        let (code, stdout, _) = attest(at, &["reference", "verify", "both.dsse", "--key", &format!("{name}.pub")]);
        assert_eq!((code, stdout), (0, format!("a reference set of 13 files of 2 origins, signed by key {id}\n")));
    }
    attest(at, &["reference", "verify", "both.dsse", "--key", "p384.pub", "-o", "opened.json"]);
    assert_eq!(fs::read(at.join("opened.json")).unwrap(), fs::read(at.join("both.json")).unwrap());
    for args in [
        &["reference", "verify", "both.dsse"][..],
        &["reference", "verify", "both.dsse", "--key", "ed.pub"],
        &["reference", "verify", "both.json", "--key", "ed.pub"],
        &["reference", "verify", "ed.pub"],
        &["reference", "merge", "both.dsse"],
        &["reference", "sign", "both.json", "--key", "ed.pub", "-o", "x"],
        &["learn", "rpm", "both.json"],
        &["learn", "deb", "both.json"],
        &["learn", "sif", "both.json"],
        &["learn", "host", "both.json"],
    ] {
        let (code, _, stderr) = attest(at, args);
        assert_eq!(code, 14, "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
}
