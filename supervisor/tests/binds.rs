//! `--bind` and `--home` under the daemon: in the container a user has the rights that he has outside, and no more. The users exist as numbers
//! only; switching to them needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use support::host::{ALICE, BOB, Host, connect, reacts, rule, settings};
use support::{failed, receive, send, stderr, stdout};

/// A group of a project.
const PROJECT: u32 = 54_400;

/// A host with rules that let Alice and Bob bind.
fn host() -> Option<Host> {
    Host::new(&format!("{}{}", rule("alice", ALICE, "runs = 4\nbinds = true"), rule("bob", BOB, "binds = true")))
}

/// A folder of the host's.
fn folder(host: &Host, name: &str, (user, group): (u32, u32), mode: u32) -> PathBuf {
    let path = host.path(name);
    fs::create_dir(&path).unwrap();
    give(&path, (user, group), mode);
    path
}

fn file(folder: &Path, name: &str, owners: (u32, u32), mode: u32) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("{name}\n")).unwrap();
    give(&path, owners, mode);
    path
}

fn give(path: &Path, (user, group): (u32, u32), mode: u32) {
    chown(path, Some(user), Some(group)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn owners(path: &Path) -> (u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// Runs a shell script of Alice's with binds.
fn shell(host: &Host, binds: &[&str], script: &str) -> Output {
    let options: Vec<&str> = binds.iter().flat_map(|bind| ["--bind", bind]).collect();
    host.exec(ALICE, "alice.sif", &options, &["sh", "-c", script])
}

/// The same, for somebody who is in these groups too.
fn shell_in(host: &Host, groups: &[u32], binds: &[&str], script: &str) -> Output {
    let groups = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    let id = ALICE.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--groups", &groups, "--"]).arg(host.path("supervisor"));
    command.arg("exec").arg(format!("--daemon={}", host.socket().display()));
    command.args(binds.iter().flat_map(|bind| ["--bind", bind])).arg(host.path("alice.sif"));
    command.args(["sh", "-c", script]).stdin(Stdio::null());
    command.output().unwrap()
}

fn bind(source: &Path, more: &str) -> String {
    format!("{}:{more}", source.display())
}

#[test]
fn a_user_reads_and_writes_his_own_as_himself() {
    let Some(host) = host() else { return };
    let own = (ALICE, ALICE);
    let data = folder(&host, "data", own, 0o700);
    file(&data, "in", own, 0o600);
    let single = file(&data, "single", own, 0o600);
    fs::create_dir(data.join("ro")).unwrap();
    let sealed = folder(&host, "sealed", own, 0o755);
    file(&sealed, "kept", own, 0o644);
    symlink(&data, host.path("link")).unwrap();
    file(&host.scene.owner.path("rootfs"), "single", (0, 0), 0o644);
    let made = host.scene.with_policy("alert-owner", &reacts("alert"));
    host.image_of(ALICE, &made, "alert.sif");
    // A folder, by a link of the user's; one to be read only; a single file; within the image and below /tmp.
    let binds = [bind(&host.path("link"), "/data"), bind(&sealed, "/tmp/sealed:ro"), bind(&single, "/tmp/one")];
    let options: Vec<&str> = binds.iter().flat_map(|bind| ["--bind", bind]).chain(["--status-fd", "2"]).collect();
    let script = r#"
        cat /data/in /tmp/one /tmp/sealed/kept
        echo made > /data/out; echo more >> /tmp/one; busybox mkdir /data/new
        busybox stat -c '%u %g' /data/in /data/out
        (echo x > /tmp/sealed/kept) 2>&1; (echo x > /tmp/sealed/more) 2>&1
        cp /bin/busybox /data/true; sleep 2; /data/true; sleep 1.5; exit 5"#;
    let out = host.exec(ALICE, "alert.sif", &options, &["sh", "-c", script]);
    let err = stderr(&out);
    assert_eq!(out.status.code(), Some(5), "{err}");
    let refused = |name: &str| format!("sh: can't create /tmp/sealed/{name}: Read-only file system");
    let ids = format!("{ALICE} {ALICE}");
    let lines = ["in", "single", "kept", &ids, &ids, &refused("kept"), &refused("more")];
    assert_eq!(stdout(&out).lines().collect::<Vec<_>>(), lines, "{err}");
    for name in ["out", "new", "true", "single"] {
        assert_eq!(owners(&data.join(name)), own, "{name}");
    }
    assert_eq!(fs::read_to_string(&single).unwrap(), "single\nmore\n");
    assert_eq!(fs::read_to_string(sealed.join("kept")).unwrap(), "kept\n");
    // What is bound was there when the workload began; a program in it is not the image's.
    let said: Vec<Value> = err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let found: Vec<&Value> = said.iter().filter(|line| line["stage"] == "finding").collect();
    let found = found.iter().map(|line| &line["detail"]["finding"]);
    let found: Vec<(&Value, &Value)> = found.map(|finding| (&finding["kind"], &finding["where"])).collect();
    assert!(!found.is_empty() && found.iter().all(|(kind, _)| *kind == "process-not-in-image"), "{found:?}");
    assert!(found.iter().any(|(_, place)| place.as_str().unwrap().contains("/data")), "{found:?}");
    assert!(!said.iter().any(|line| line["stage"] == "warning"), "the binds are watched too: {err}");
    // As a home: variable and folder, too.
    let home = bind(&data, "/home");
    let out = host.exec(ALICE, "alice.sif", &["--home", &home], &["sh", "-c", "echo $HOME; pwd; cat in"]);
    assert_eq!(stdout(&out), "/home\n/home\nin\n", "{}", stderr(&out));
    // Nothing is left mounted, and nothing of the container's user.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&host.public.path().display().to_string()), "{mounts}");
}

#[test]
fn the_rights_are_the_users_own_for_him_and_against_him() {
    let Some(host) = host() else { return };
    // Places that he may name, and not enter.
    for (name, owners) in [("bobs", (BOB, BOB)), ("roots", (0, 0))] {
        let closed = folder(&host, name, owners, 0o700);
        file(&closed, "secret", owners, 0o666);
        let out = shell(&host, &[&bind(&closed, "/data")], "ls /data; cat /data/secret; echo x > /data/new");
        let err = stderr(&out);
        assert_eq!((stdout(&out).as_str(), err.matches("Permission denied").count()), ("", 3), "{err}");
        assert!(!closed.join("new").exists());
        // What is below, or a link to it, he cannot even name.
        let link = host.path(&format!("to-{name}"));
        symlink(closed.join("secret"), &link).unwrap();
        for source in [closed.join("secret"), link] {
            failed(&shell(&host, &[&bind(&source, "/tmp/x")], "true"), 200, &["--bind", "Permission denied"]);
        }
    }
    // Another's file that all may read; one that nobody but its owner may; his own that is closed, which he may open again.
    let mixed = folder(&host, "mixed", (BOB, PROJECT), 0o2775);
    file(&mixed, "all", (BOB, BOB), 0o644);
    file(&mixed, "bob", (BOB, BOB), 0o600);
    file(&mixed, "project", (BOB, PROJECT), 0o660);
    file(&mixed, "others", (BOB, PROJECT), 0o604);
    let own = file(&mixed, "own", (ALICE, ALICE), 0o000);
    let script = r#"cd /data; for name in all bob project others own; do cat $name 2>/dev/null || echo no; done
        (echo more >> project) 2>/dev/null || echo no; (echo x > made) 2>/dev/null || echo no
        (busybox chown 0 own) 2>/dev/null || echo no; busybox chmod 600 own && cat own"#;
    // A group gives, and takes: it is not for others that "others" may read.
    for (groups, told) in [
        (&[PROJECT][..], "all\nno\nproject\nno\nno\nno\nown\n"),
        (&[54_401, 54_402], "all\nno\nno\nothers\nno\nno\nno\nno\nown\n"),
    ] {
        give(&own, (ALICE, ALICE), 0o000);
        let out = shell_in(&host, groups, &[&bind(&mixed, "/data")], script);
        assert_eq!(stdout(&out), told, "{groups:?}: {}", stderr(&out));
        assert_eq!(owners(&own), (ALICE, ALICE));
        let made = mixed.join("made");
        assert_eq!(made.exists(), groups == [PROJECT]);
        if made.exists() {
            assert_eq!(owners(&made), (ALICE, PROJECT), "the folder gives its group on");
            fs::remove_file(made).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(mixed.join("project")).unwrap(), "project\nmore\n");
    // Programs that would be another's there, and devices, are none.
    let set_uid = mixed.join("id");
    fs::copy("/bin/busybox", &set_uid).unwrap();
    give(&set_uid, (BOB, BOB), 0o4755);
    let device = mixed.join("zero");
    assert!(Command::new("mknod").arg(&device).args(["c", "1", "5"]).status().unwrap().success());
    give(&device, (ALICE, ALICE), 0o666);
    let made = host.scene.with_policy("alert-owner", &reacts("alert"));
    host.image_of(ALICE, &made, "alert.sif");
    let options = ["--bind", &bind(&mixed, "/data")];
    let out = host.exec(ALICE, "alert.sif", &options, &["sh", "-c", "/data/id -u; cat /data/zero"]);
    assert_eq!(stdout(&out), format!("{ALICE}\n"));
    assert!(stderr(&out).contains("Permission denied"), "{}", stderr(&out));
}

#[test]
fn what_is_refused_and_why() {
    let Some(mut host) = host() else { return };
    let data = folder(&host, "data", (ALICE, ALICE), 0o700);
    let data = bind(&data, "/data");
    // Policy has the last word.
    let strict = host.scene.with_policy("strict", support::DEMANDS_ALL);
    host.image_of(ALICE, &strict, "strict.sif");
    let out = host.exec(ALICE, "strict.sif", &["--bind", &data], &["true"]);
    failed(&out, 200, &["--bind=", "demands containall"]);
    // Kernel files, devices, sockets, too many, one in another, a place that the image has not.
    failed(
        &shell(&host, &["/proc/self:/tmp/x"], "true"),
        212,
        &["--bind /proc/", "(proc)", "cannot be lent", "hint: "],
    );
    failed(&shell(&host, &["/sys:/tmp/x"], "true"), 212, &["--bind /sys", "(sysfs)"]);
    failed(&shell(&host, &["/:/tmp/x"], "true"), 212, &["--bind /", "mounted below"]);
    failed(&shell(&host, &["/dev/null:/tmp/x"], "true"), 200, &["neither a folder nor a regular file"]);
    failed(&shell(&host, &[data.as_str(); 17], "true"), 200, &["17 binds", "16 at most"]);
    failed(&shell(&host, &[&data, "/usr:/data/x"], "true"), 200, &["/data/x: lies in /data", "hint: "]);
    failed(&shell(&host, &["/usr:/none"], "true"), 213, &["/none cannot be mounted"]);
    // In namespaces of the user's own he could mount what he wants.
    let plain = host.exec_command(ALICE, "alice.sif", &["--bind", &data], &["true"]);
    let arguments: Vec<&OsStr> = plain.get_args().collect();
    let (before, program) = arguments.split_at(arguments.iter().position(|word| *word == "--").unwrap() + 1);
    let mut command = Command::new(plain.get_program());
    command.args(before).args(["unshare", "--user", "--mount", "--map-current-user"]).args(program);
    let out = command.stdin(Stdio::null()).output().unwrap();
    failed(&out, 212, &["--bind", "user namespace of its own"]);
    // It is for the rule to allow.
    host.reload(&rule("alice", ALICE, "runs = 4"));
    let words = ["the daemon refuses: rule \"alice\" allows no --bind and no --home", "binds = true"];
    failed(&shell(&host, &[&data], "true"), 208, &words);
    failed(&host.exec(ALICE, "alice.sif", &["--home", &data], &["true"]), 208, &words);
}

#[test]
fn a_client_that_sends_what_ours_does_not() {
    let Some(host) = host() else { return };
    let data = folder(&host, "data", (ALICE, ALICE), 0o700);
    let path = |path: &Path, more: OFlags| {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | more, Mode::empty()).unwrap()
    };
    let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
    let folder = || path(&data, OFlags::empty());
    let socket = host.path("socket");
    let _socket = UnixListener::bind(&socket).unwrap();
    symlink("/etc/shadow", host.path("link")).unwrap();
    let answer = |places: &[&str], given: Vec<OwnedFd>| {
        let mut settings = settings();
        let bind = |place: &&str| json!({"source": "/x", "destination": place, "read_only": false});
        settings["binds"] = places.iter().map(bind).collect();
        let request = json!({"Run": {"task": {"Exec": []}, "settings": settings, "terminal": false, "signers": [], "environment": []}});
        let fixed = [open(&host.path("alice.sif")), open(Path::new("/dev/null"))];
        let [image, null] = &fixed;
        let mut fds: Vec<BorrowedFd<'_>> = vec![image.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
        fds.extend(given.iter().map(OwnedFd::as_fd));
        let client = connect(&host.socket(), ALICE);
        assert_eq!(receive(&client).unwrap(), "Ready");
        send(&client, &serde_json::to_vec(&request).unwrap(), &fds);
        receive(&client).unwrap()
    };
    for place in ["/tmp/../x", "/..", "/", "x", "", "/tmp/./../../oldroot/tmp"] {
        let told = answer(&[place], vec![folder()]);
        assert!(told["Failed"]["error"].as_str().unwrap().contains("without .."), "{place}: {told}");
    }
    let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
    let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let memory =
        path(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory))), OFlags::empty());
    let namespace = path(Path::new("/proc/self/ns/mnt"), OFlags::empty());
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(&made).unwrap();
    let nowhere = fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    for (fds, stage, words) in [
        // Older kernels refuse them by themselves.
        (vec![nowhere], "usage or namespaces", "/x: its mount"),
        (vec![], "usage", "4 descriptors in place of 5"),
        (vec![folder(), open(Path::new("/dev/null")), folder()], "usage", "7 descriptors in place of 5"),
        (vec![open(&data)], "usage", "more than a path"),
        (vec![path(&socket, OFlags::empty())], "usage", "Socket"),
        (vec![path(&host.path("link"), OFlags::NOFOLLOW)], "usage", "Symlink"),
        (vec![path(Path::new("/dev/null"), OFlags::empty())], "usage", "CharacterDevice"),
        (vec![pipe], "usage", "more than a path"),
        // Files that are mounted nowhere, and namespaces.
        (vec![memory], "namespaces", "its mount cannot be had"),
        (vec![namespace], "usage or namespaces", "/x"),
        (vec![path(Path::new("/proc/1"), OFlags::empty())], "namespaces", "cannot be lent"),
    ] {
        let told = answer(&["/tmp/x"], fds);
        assert!(stage.contains(told["Failed"]["stage"].as_str().unwrap()), "{words}: {told}");
        assert!(told["Failed"]["error"].as_str().unwrap().contains(words), "{words}: {told}");
    }
    let many: Vec<String> = (0..17).map(|n| format!("/tmp/{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let told = answer(&many, (0..16).map(|_| folder()).collect());
    assert!(told["Failed"]["error"].as_str().unwrap().contains("17 binds"), "{told}");
}

#[test]
fn in_another_mount_namespace_and_with_mounts_below() {
    let Some(host) = host() else { return };
    let data = folder(&host, "data", (ALICE, ALICE), 0o755);
    let below = folder(&host, "data/below", (ALICE, ALICE), 0o755);
    file(&below, "hidden", (ALICE, ALICE), 0o644);
    file(&below, "deeper", (ALICE, ALICE), 0o644);
    let image = host.path("fuse.sqfs");
    let made = Command::new("mksquashfs").args([&data, &image]).stdout(Stdio::null()).status();
    let plain = host.exec_command(ALICE, "alice.sif", &["--bind", &bind(&data, "/data")], &["ls", "/data/below"]);
    // As services and batch jobs have it, with mounts that the daemon's namespace has not.
    let with = |mount: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount, "sh"]).arg(&below).arg(&image);
        command.arg(plain.get_program()).args(plain.get_args()).env("LC_ALL", "C").stdin(Stdio::null());
        command.output().unwrap()
    };
    let out = with("mount -t tmpfs -o mode=755 x $1 && echo x > $1/shown && shift 2 && exec \"$@\"");
    if stderr(&out).contains("(tmpfs)") {
        println!("skipped: this kernel's tmpfs has no idmapped mounts");
    } else {
        assert_eq!(stdout(&out), "shown\n", "what a mount hides stays hidden: {}", stderr(&out));
    }
    let out = with("mount -t tmpfs -o mode=755 x $1 && mount --make-unbindable $1 && shift 2 && exec \"$@\"");
    failed(&out, 200, &["data/below cannot be bound (unbindable)"]);
    if !made.is_ok_and(|status| status.success()) {
        return println!("skipped: mksquashfs is not installed");
    }
    let fuse =
        "squashfuse -f -o allow_other $2 $1 & until grep -q fuse.squashfuse /proc/self/mounts; do sleep 0.05; done
        below=$1; shift 2; \"$@\"; code=$?; umount $below; wait; exit $code";
    failed(&with(fuse), 212, &["or one that is mounted below, cannot be lent", "FUSE cannot"]);
    let plain = host.exec_command(ALICE, "alice.sif", &["--bind", &bind(&below, "/data")], &["ls", "/data"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", fuse, "sh"]).arg(&below).arg(&image).arg(plain.get_program());
    let out = command.args(plain.get_args()).env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap();
    failed(&out, 212, &["its file system (fuse.squashfuse", "NFS, Lustre and FUSE cannot"]);
}

#[test]
fn under_a_daemon_that_systemd_has_confined() {
    let Some(mut host) = host() else { return };
    let data = folder(&host, "data", (ALICE, ALICE), 0o700);
    file(&data, "in", (ALICE, ALICE), 0o600);
    drop(host.daemon.take());
    host.start_as_service();
    let daemon = host.daemon.as_ref().unwrap().pid();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_ne!(namespace(&daemon.to_string()), namespace("self"));
    let out = shell(&host, &[&bind(&data, "/data")], "cat /data/in; echo x > /data/out");
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(0), "in\n"), "{}", stderr(&out));
    assert_eq!(owners(&data.join("out")), (ALICE, ALICE));
}
