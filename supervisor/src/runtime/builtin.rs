//! The built-in runtime: bubblewrap. Read-only root, its own processes, mounts and ids, no new privileges, no capabilities, a clean environment.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use countersign_wire::obligations::RuntimeFlag;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::flags::{self, Given};
use super::workload::Bubble;
use super::{Place, Task, said, terminal};
use crate::exit::{Failure, Stage};
use crate::stage::start;

/// Where Singularity and Apptainer images have their entry point.
const RUNSCRIPT: &str = ".singularity.d/runscript";
const STARTSCRIPT: &str = ".singularity.d/startscript";
/// A shell that waits to be told to end.
const WAIT: &str = "trap 'exit 0' TERM INT HUP; while :; do sleep 3600 & wait $!; done";
/// Longest file of `--env-file`, bytes.
const ENV_FILE: u64 = 1 << 20;
/// Switches that say what is so anyway.
const ALWAYS: [&str; 12] = [
    "cleanenv",
    "contain",
    "containall",
    "ipc",
    "no-eval",
    "no-home",
    "no-init",
    "no-privs",
    "no-umask",
    "pid",
    "userns",
    "uts",
];

/// What its flags ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    binds: Vec<Bind>,
    scratch: Vec<PathBuf>,
    variables: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    hostname: Option<OsString>,
    shell: Option<OsString>,
    no_network: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bind {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
}

/// Where a workload's programs are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A workload's environment, but for what flags add.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let path = ("PATH".into(), PATH.into());
    let kept = ["TERM", "LANG", "TZ"].into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    std::iter::once(path).chain(kept)
}

fn usage(what: String, hint: &str) -> Failure {
    Failure::new(Stage::Usage, what, hint)
}

impl Settings {
    /// # Errors
    /// [`Stage::Usage`] names a flag that it does not have, or a value that is none.
    pub(crate) fn of(flags: &[Given]) -> Result<Self, Failure> {
        let mut settings = Self::default();
        let (mut net, mut network) = (false, None);
        for given in flags.iter().filter(|given| !given.is_off()) {
            let value = given.value.clone().unwrap_or_default();
            match given.flag.name {
                "bind" => {
                    for spec in value.as_bytes().split(|byte| *byte == b',') {
                        settings.binds.push(Bind::parse(spec)?);
                    }
                }
                "home" => {
                    let bind = Bind::parse(value.as_bytes())?;
                    settings.variables.push(("HOME".into(), bind.destination.clone().into()));
                    settings.directory.get_or_insert_with(|| bind.destination.clone().into());
                    settings.binds.push(bind);
                }
                "env" => {
                    let several = value.as_bytes().iter().filter(|byte| **byte == b'=').count() > 1;
                    for pair in value.as_bytes().split(|byte| several && *byte == b',') {
                        settings.variables.push(variable(pair)?);
                    }
                }
                "env-file" => settings.variables.extend(env_file(Path::new(&value))?),
                "pwd" | "cwd" => settings.directory = Some(value),
                "hostname" => settings.hostname = Some(value),
                "shell" => settings.shell = Some(value),
                "scratch" => {
                    let paths = value.as_bytes().split(|byte| *byte == b',');
                    for path in paths {
                        settings.scratch.push(absolute(path)?);
                    }
                }
                "net" => net = true,
                "network" => network = Some(value),
                name if ALWAYS.contains(&name) => {}
                name => {
                    let what = format!("the built-in runtime has no --{name}");
                    return Err(usage(what, "take Apptainer or SingularityCE: --runtime apptainer"));
                }
            }
        }
        match (net, network) {
            (_, Some(network)) if network == "none" => settings.no_network = true,
            (false, None) => {}
            (true, None) | (_, Some(_)) => {
                let what = "the built-in runtime has no network of its own but none".to_owned();
                return Err(usage(what, "--net --network none, or --runtime apptainer"));
            }
        }
        Ok(settings)
    }

    /// Own processes, nothing of the host and no privileges are so anyway.
    pub(super) fn oblige(&mut self, demanded: &[RuntimeFlag]) {
        self.no_network |= demanded.contains(&RuntimeFlag::NetNone);
    }

    /// What of the host is to be seen in the container, and whether it is only to be read.
    pub(crate) fn binds(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.binds.iter().map(|bind| (bind.source.as_path(), bind.read_only))
    }

    /// The same, from other places.
    pub(crate) fn bound_from(mut self, place: impl Fn(usize) -> PathBuf) -> Self {
        for (n, bind) in self.binds.iter_mut().enumerate() {
            bind.source = place(n);
        }
        self
    }

    /// The flags that it was made of, as far as policy has a say in them.
    pub(crate) fn flags(&self) -> Vec<Given> {
        let given = |(source, _): (&Path, bool)| Some(Given { flag: flags::long("bind")?, value: Some(source.into()) });
        self.binds().filter_map(given).collect()
    }

    /// Whether it could have been made here of flags: another program may have sent it. What is mounted within a bind would be made in the
    /// caller's folder, by way of his links.
    ///
    /// # Errors
    /// [`Stage::Usage`].
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let mut earlier: Vec<&Path> = Vec::new();
        let places = self.binds.iter().map(|bind| (&bind.destination, true));
        for (place, is_bind) in places.chain(self.scratch.iter().map(|place| (place, false))) {
            absolute(place.as_os_str().as_bytes())?;
            if let Some(outer) = earlier.iter().find(|outer| place.starts_with(outer)) {
                let what = format!("{}: lies in {}, which is bound too", place.display(), outer.display());
                return Err(usage(what, "give places of the container of which none is in another"));
            }
            earlier.extend(is_bind.then_some(place.as_path()));
        }
        Ok(())
    }

    /// bubblewrap's command line, and what it starts in words.
    pub(super) fn command(&self, place: &Place<'_>, task: &Task) -> Result<(Bubble, String), Failure> {
        let root = place.root;
        let mut bubble = Bubble::new(place.ids)?;
        let command = &mut bubble.command;
        // The container's first process is bubblewrap's own, and the workload can read that one's environment too.
        command.env_clear().env("LC_ALL", "C");
        command.arg("--ro-bind").arg(root).arg("/");
        // A link is not followed: it would lead out of the image.
        let has = |name: &str| root.join(name).symlink_metadata().is_ok_and(|found| found.is_dir());
        if has("proc") {
            command.args(["--proc", "/proc"]);
        }
        if has("dev") {
            command.args(["--dev", "/dev"]);
        }
        if has("tmp") {
            command.args(["--tmpfs", "/tmp"]);
        }
        let mut made: Vec<&Path> = Vec::new();
        for bind in &self.binds {
            mount_point(root, &bind.destination, &made)?;
            made.push(&bind.destination);
            command.arg(if bind.read_only { "--ro-bind" } else { "--bind" }).arg(&bind.source).arg(&bind.destination);
        }
        for path in &self.scratch {
            mount_point(root, path, &made)?;
            made.push(path);
            command.arg("--tmpfs").arg(path);
        }
        command.args(["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]);
        if self.no_network {
            command.arg("--unshare-net");
        }
        if let Some(name) = &self.hostname {
            command.arg("--hostname").arg(name);
        }
        command.arg("--chdir").arg(self.directory.as_deref().unwrap_or(OsStr::new("/")));
        bubble.give("--args", in_memory(&self.environment_arguments()?)?)?;
        let command = &mut bubble.command;
        // At the user's terminal there is job control; elsewhere a session without one.
        match terminal::filter().filter(|_| place.terminal.is_any()) {
            Some(filter) => {
                terminal::hand_over(command, place.terminal);
                bubble.give("--seccomp", in_memory(&filter)?)?;
            }
            None => {
                command.arg("--new-session");
            }
        }
        bubble.holds()?;
        let command_line = self.command_line(task, root);
        bubble.command.arg("--").args(&command_line);
        Ok((bubble, said(command_line.first().map(OsString::as_os_str))))
    }

    /// What sets the environment, as bubblewrap reads it from a descriptor: the values are often secrets, and everybody on the machine sees
    /// command lines.
    fn environment_arguments(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut arguments = Zeroizing::new(b"--clearenv\0".to_vec());
        for (name, value) in environment().chain(self.variables.iter().cloned()) {
            // It would begin another argument.
            if name.as_bytes().contains(&0) || value.as_bytes().contains(&0) {
                let what = format!("the value of {} holds a zero byte", name.display());
                return Err(usage(what, "give a text without one in --env and --env-file"));
            }
            for part in [b"--setenv".as_slice(), name.as_bytes(), value.as_bytes()] {
                arguments.extend_from_slice(part);
                arguments.push(0);
            }
        }
        Ok(arguments)
    }

    /// Another command line in a container of it: flags for the environment alone.
    pub(super) fn join(&self, root: &Path, task: &Task, flags: &[Given]) -> Result<Command, Failure> {
        for given in flags {
            if !["env", "env-file", "shell", "cleanenv"].contains(&given.flag.name) {
                let what = format!("--{} is for the start of an instance", given.flag.name);
                return Err(usage(what, "give it to supervisor instance start"));
            }
        }
        let more = Self::of(flags)?;
        let shell = more.shell.clone().or_else(|| self.shell.clone());
        let command_line = Self { shell, ..self.clone() }.command_line(task, root);
        let (program, arguments) = command_line.split_first().ok_or_else(|| usage("no command".into(), "give one"))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment());
        command.envs(self.variables.iter().chain(&more.variables).map(|(name, value)| (name, value)));
        Ok(command)
    }

    pub(super) fn command_line(&self, task: &Task, root: &Path) -> Vec<OsString> {
        let has = |path: &str| root.join(path).symlink_metadata().is_ok();
        let shell = || {
            let found = OsString::from(if has("bin/bash") { "/bin/bash" } else { "/bin/sh" });
            self.shell.clone().unwrap_or(found)
        };
        match task {
            Task::Run(arguments) if has(RUNSCRIPT) => {
                [OsString::from(format!("/{RUNSCRIPT}"))].into_iter().chain(arguments.iter().cloned()).collect()
            }
            Task::Run(arguments) | Task::Exec(arguments) if !arguments.is_empty() => arguments.clone(),
            Task::Run(_) | Task::Exec(_) => vec![shell()],
            Task::Shell(arguments) => [shell()].into_iter().chain(arguments.iter().cloned()).collect(),
            Task::Start { arguments, .. } if has(STARTSCRIPT) => {
                [OsString::from(format!("/{STARTSCRIPT}"))].into_iter().chain(arguments.iter().cloned()).collect()
            }
            // Nothing to do but to be there for others.
            Task::Start { arguments, .. } if arguments.is_empty() => {
                ["/bin/sh", "-c", WAIT].map(OsString::from).to_vec()
            }
            Task::Start { arguments, .. } => arguments.clone(),
        }
    }
}

/// A descriptor to read these bytes from.
fn in_memory(bytes: &[u8]) -> Result<OwnedFd, Failure> {
    let mut file = std::fs::File::from(memfd_create("bubblewrap", MemfdFlags::CLOEXEC).map_err(start)?);
    std::io::Write::write_all(&mut file, bytes).map_err(start)?;
    std::io::Seek::rewind(&mut file).map_err(start)?;
    Ok(file.into())
}

impl Bind {
    /// `source[:destination[:ro|rw]]`; the source must exist.
    fn parse(spec: &[u8]) -> Result<Self, Failure> {
        let text = String::from_utf8_lossy(spec).into_owned();
        let bad = |why: &str| usage(format!("--bind {text}: {why}"), "--bind SOURCE[:DESTINATION[:ro]]");
        let mut parts = spec.split(|byte| *byte == b':');
        let source = Path::new(OsStr::from_bytes(parts.next().unwrap_or_default()));
        let destination = parts.next().filter(|part| !part.is_empty());
        let options = parts.next().unwrap_or_default();
        let mut read_only = false;
        for option in options.split(|byte| *byte == b'+') {
            match option {
                b"ro" => read_only = true,
                b"rw" | b"" => read_only = false,
                _ => return Err(bad("an option is neither ro nor rw")),
            }
        }
        if parts.next().is_some() {
            return Err(bad("more than three parts"));
        }
        let full = std::path::absolute(source).map_err(|e| bad(&e.to_string()))?;
        // Where it is now: links are followed once, here.
        let found = full.canonicalize().map_err(|e| bad(&e.to_string()))?;
        let destination = match destination {
            Some(part) => absolute(part)?,
            None => absolute(full.as_os_str().as_bytes())?,
        };
        Ok(Self { source: found, destination, read_only })
    }
}

/// A place in the container.
fn absolute(path: &[u8]) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path != Path::new("/") {
        return Ok(path);
    }
    let what = format!("{}: a place in the container is an absolute path below / without ..", path.display());
    Err(usage(what, "--bind SOURCE:/PLACE"))
}

/// The image is read-only: what is mounted on must be there, itself and not by a link, or in what was mounted before.
fn mount_point(root: &Path, place: &Path, made: &[&Path]) -> Result<(), Failure> {
    if place.starts_with("/tmp") || made.iter().any(|earlier| place.starts_with(earlier)) {
        return Ok(());
    }
    let mut at = root.to_owned();
    for part in place.strip_prefix("/").unwrap_or(place) {
        at.push(part);
        let found = at.symlink_metadata().map(|found| found.is_symlink());
        let why = match found {
            Ok(false) => continue,
            Ok(true) => "is reached by a link",
            Err(_) => "is not there",
        };
        let what = format!("{} cannot be mounted: in the image it {why}", place.display());
        let hint = "give a place that the image has, or below /tmp; Apptainer makes places: --runtime apptainer";
        return Err(Failure::new(Stage::Start, what, hint));
    }
    Ok(())
}

/// `NAME=VALUE`.
fn variable(pair: &[u8]) -> Result<(OsString, OsString), Failure> {
    let at = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(|| {
        usage(format!("{}: no NAME=VALUE", String::from_utf8_lossy(pair)), "--env NAME=VALUE[,NAME=VALUE]")
    })?;
    let (name, value) = (pair.get(..at).unwrap_or_default(), pair.get(at.saturating_add(1)..).unwrap_or_default());
    Ok((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())))
}

/// One `NAME=VALUE` a line, taken as it is; empty lines and lines that begin with # are passed over.
fn env_file(path: &Path) -> Result<Vec<(OsString, OsString)>, Failure> {
    let bad =
        |e: &dyn std::fmt::Display| usage(format!("{}: {e}", path.display()), "--env-file takes lines NAME=VALUE");
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| bad(&e))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, ENV_FILE), &mut text).map_err(|e| bad(&e))?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| variable(line).map_err(|failure| bad(&failure.error))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::flags;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn given(name: &str, value: &str) -> Given {
        let flag = flags::long(name).unwrap();
        Given { flag, value: flag.value.then(|| value.into()) }
    }

    #[test]
    fn a_runscript_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let run = Task::Run(words(&["a", "b"]));
        let mut settings = Settings::default();
        assert_eq!(settings.command_line(&run, root), words(&["a", "b"]));
        assert_eq!(settings.command_line(&Task::Run(Vec::new()), root), words(&["/bin/sh"]));
        std::fs::create_dir(root.join(".singularity.d")).unwrap();
        std::fs::write(root.join(RUNSCRIPT), "").unwrap();
        assert_eq!(settings.command_line(&run, root), words(&["/.singularity.d/runscript", "a", "b"]));
        assert_eq!(settings.command_line(&Task::Exec(words(&["a"])), root), words(&["a"]));
        std::fs::create_dir(root.join("bin")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("bin/bash")).unwrap();
        let shell = Task::Shell(words(&["-l"]));
        assert_eq!(settings.command_line(&shell, root), words(&["/bin/bash", "-l"]));
        settings.shell = Some("/bin/zsh".into());
        assert_eq!(settings.command_line(&shell, root), words(&["/bin/zsh", "-l"]));
    }

    #[test]
    fn flags_become_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let text = path.display().to_string();
        std::fs::write(path.join("env"), "# a comment\nA=1\n\nB=x=y\n").unwrap();
        let settings = Settings::of(&[
            given("bind", &format!("{text}:/data:ro,{text}")),
            given("home", &format!("{text}:/home/me")),
            given("env", "C=a,b"),
            given("env", "D=1,E=2"),
            given("env-file", &path.join("env").display().to_string()),
            given("containall", ""),
            given("net", ""),
            given("network", "none"),
        ])
        .unwrap();
        let bind =
            |destination: &str, read_only| Bind { source: path.clone(), destination: destination.into(), read_only };
        assert_eq!(settings.binds, [bind("/data", true), bind(&text, false), bind("/home/me", false)]);
        let variables: Vec<String> =
            settings.variables.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
        assert_eq!(variables, ["HOME=/home/me", "C=a,b", "D=1", "E=2", "A=1", "B=x=y"]);
        assert!(settings.no_network && settings.directory == Some("/home/me".into()));
    }

    #[test]
    fn variables_are_arguments_of_their_own() {
        let settings = |value: &str| Settings { variables: vec![("A".into(), value.into())], ..Settings::default() };
        let arguments = settings("b c").environment_arguments().unwrap();
        let text = String::from_utf8_lossy(&arguments);
        assert!(text.starts_with("--clearenv\0--setenv\0PATH\0") && text.ends_with("\0--setenv\0A\0b c\0"), "{text}");
        let failure = settings("x\0--bind\0/\0/").environment_arguments().unwrap_err();
        assert!(failure.stage == Stage::Usage && !failure.error.contains("bind"), "{}", failure.error);
    }

    #[test]
    fn what_it_does_not_have_is_said_by_name() {
        for (name, value, word) in [
            ("nv", "", "no --nv"),
            ("overlay", "x", "no --overlay"),
            ("net", "", "no network"),
            ("network", "bridge", "no network"),
            ("bind", "/nonexistent:/x", "No such file"),
            ("bind", "/tmp:x", "absolute"),
            ("bind", "/tmp:/", "below /"),
            ("bind", "/tmp:/x/../..", "without .."),
            ("bind", "/tmp:/x:suid", "neither ro nor rw"),
            ("bind", "/tmp:/x:ro:y", "three parts"),
            ("env", "x", "NAME=VALUE"),
            ("env-file", "/nonexistent", "No such file"),
        ] {
            let failure = Settings::of(&[given(name, value)]).unwrap_err();
            assert!(failure.stage == Stage::Usage && failure.error.contains(word), "{name}: {}", failure.error);
        }
    }

    #[test]
    fn mount_points_are_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/oldroot", root.join("a/link")).unwrap();
        let made = [Path::new("/made")];
        for good in ["/a", "/a/b", "/tmp/x", "/made/y"] {
            assert!(mount_point(root, Path::new(good), &made).is_ok(), "{good}");
        }
        for (bad, word) in [("/c", "not there"), ("/a/b/c", "not there"), ("/a/link/x", "by a link")] {
            assert!(mount_point(root, Path::new(bad), &made).unwrap_err().error.contains(word), "{bad}");
        }
    }
}
