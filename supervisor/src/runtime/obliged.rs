//! Flags that policy demands (`runtime_flags`): what the runtime gets for them, and what the user may not give beside them.

use std::ffi::OsString;

use countersign_wire::obligations::RuntimeFlag;

use super::Task;
use super::flags::{FLAGS, Given, PREFIXES, is_false};
use crate::exit::{Failure, Stage};

/// Variables that stand for a flag beside the one with its name.
const ALIASES: [(&str, &str); 3] = [("bind", "BINDPATH"), ("fusemount", "FUSESPEC"), ("overlay", "OVERLAYIMAGE")];

const fn name(demanded: RuntimeFlag) -> &'static str {
    match demanded {
        RuntimeFlag::NetNone => "net-none",
        RuntimeFlag::Pid => "pid",
        RuntimeFlag::Containall => "containall",
        RuntimeFlag::NoPrivs => "no-privs",
    }
}

/// The flags that a demand forbids, and the switches that must not be given as off.
const fn against(demanded: RuntimeFlag) -> (&'static [&'static str], &'static [&'static str]) {
    match demanded {
        RuntimeFlag::NetNone => (&["netns-path", "network", "network-args"], &["net"]),
        RuntimeFlag::Pid => (&["no-pid"], &["pid"]),
        // Whatever comes from the host's file systems, devices and their libraries too. `--env` gives a value, not the host's environment.
        RuntimeFlag::Containall => (
            &[
                "bind",
                "cdi-dirs",
                "data",
                "device",
                "fusemount",
                "home",
                "mount",
                "no-pid",
                "nv",
                "nvccli",
                "overlay",
                "rocm",
                "workdir",
            ],
            &["cleanenv", "contain", "containall", "ipc", "pid"],
        ),
        RuntimeFlag::NoPrivs => (&["add-caps", "allow-setuid", "keep-privs"], &["no-privs"]),
    }
}

fn refusal(given: &str, demanded: RuntimeFlag, hint: &str) -> Failure {
    let what = format!("{given} is refused: the policy that released the key demands {}", name(demanded));
    Failure::new(Stage::Usage, what, hint)
}

/// Whether what the user gave, on the command line or by variables, leaves room for what is demanded.
///
/// # Errors
/// [`Stage::Usage`] names the first flag or variable that does not.
pub(super) fn check(
    demanded: &[RuntimeFlag],
    given: &[Given],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(), Failure> {
    for demanded in demanded.iter().copied() {
        let (forbidden, switches) = against(demanded);
        for given in given {
            let name = given.flag.name;
            let is_none = name == "network" && given.value.as_ref().is_some_and(|value| value == "none");
            if forbidden.contains(&name) && !given.is_off() && !is_none || switches.contains(&name) && given.is_off() {
                return Err(refusal(&given.argument().to_string_lossy(), demanded, "leave the flag away"));
            }
        }
        for flag in FLAGS.iter().filter(|flag| forbidden.contains(&flag.name)) {
            let own = flag.name.to_uppercase().replace('-', "_");
            let others = ALIASES.iter().filter(|(name, _)| *name == flag.name).map(|(_, alias)| (*alias).to_owned());
            for (prefix, name) in others.chain([own]).flat_map(|name| PREFIXES.map(|prefix| (prefix, name.clone()))) {
                let name = format!("{prefix}_{name}");
                let is_none = |value: &OsString| flag.name == "network" && value == "none";
                if variable(&name).is_some_and(|value| !is_false(&value) && !is_none(&value)) {
                    return Err(refusal(&name, demanded, &format!("unset {name}")));
                }
            }
        }
    }
    Ok(())
}

/// What Apptainer and SingularityCE get for it, behind the user's own flags: the last word counts.
pub(super) fn switches(demanded: &[RuntimeFlag], task: &Task) -> Vec<&'static str> {
    let of = |demanded: &RuntimeFlag| -> &'static [&'static str] {
        match demanded {
            RuntimeFlag::NetNone => &["--net", "--network=none"],
            // An instance always has an own one, and takes no such flag.
            RuntimeFlag::Pid if matches!(task, Task::Start { .. }) => &[],
            RuntimeFlag::Pid => &["--pid"],
            RuntimeFlag::Containall => &["--containall"],
            RuntimeFlag::NoPrivs => &["--no-privs"],
        }
    };
    demanded.iter().flat_map(of).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;

    const ALL: [RuntimeFlag; 4] =
        [RuntimeFlag::NetNone, RuntimeFlag::Pid, RuntimeFlag::Containall, RuntimeFlag::NoPrivs];

    fn given(name: &str, value: Option<&str>) -> Given {
        Given { flag: flags::long(name).unwrap(), value: value.map(OsString::from) }
    }

    #[test]
    fn each_forbidden_flag_is_one() {
        for (forbidden, switches) in ALL.map(against) {
            for name in forbidden.iter().chain(switches) {
                assert!(flags::long(name).is_some(), "{name}");
            }
        }
        for (name, _) in ALIASES {
            assert!(flags::long(name).is_some(), "{name}");
        }
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (demanded, name, value) in [
            (RuntimeFlag::NetNone, "network", Some("bridge")),
            (RuntimeFlag::NetNone, "netns-path", Some("/run/netns/x")),
            (RuntimeFlag::NetNone, "net", Some("false")),
            (RuntimeFlag::Pid, "no-pid", None),
            (RuntimeFlag::Pid, "pid", Some("false")),
            (RuntimeFlag::Containall, "bind", Some("/data")),
            (RuntimeFlag::Containall, "home", Some("/home/x")),
            (RuntimeFlag::Containall, "overlay", Some("/x")),
            (RuntimeFlag::Containall, "nv", None),
            (RuntimeFlag::Containall, "cleanenv", Some("0")),
            (RuntimeFlag::NoPrivs, "keep-privs", None),
            (RuntimeFlag::NoPrivs, "no-privs", Some("false")),
        ] {
            let given = [given(name, value)];
            let failure = check(&[demanded], &given, |_| None).unwrap_err();
            assert_eq!(failure.stage, Stage::Usage);
            let words = format!("--{name}");
            assert!(
                failure.error.starts_with(&words) && failure.error.contains(super::name(demanded)),
                "{}",
                failure.error
            );
            assert!(check(&[], &given, |_| None).is_ok());
        }
        let fine = [
            given("net", None),
            given("network", Some("none")),
            given("containall", None),
            given("env", Some("A=1")),
            given("scratch", Some("/x")),
            given("nv", Some("false")),
            given("no-pid", Some("false")),
        ];
        assert!(check(&ALL, &fine, |_| None).is_ok());
    }

    #[test]
    fn variables_are_no_way_around() {
        let set = |name: &'static str, value: &'static str| move |asked: &str| (asked == name).then(|| value.into());
        for (name, value) in [
            ("APPTAINER_BIND", "/data"),
            ("SINGULARITY_BINDPATH", "/data"),
            ("APPTAINER_NETWORK", "bridge"),
            ("APPTAINER_NO_PID", "1"),
            ("APPTAINER_NV", "yes"),
        ] {
            let failure = check(&ALL, &[], set(name, value)).unwrap_err();
            assert!(failure.error.starts_with(name) && failure.hint == format!("unset {name}"), "{}", failure.error);
        }
        assert!(check(&ALL, &[], set("APPTAINER_NETWORK", "none")).is_ok());
        assert!(check(&ALL, &[], set("APPTAINER_NV", "false")).is_ok());
    }

    #[test]
    fn what_the_runtimes_get() {
        let run = Task::Run(Vec::new());
        assert_eq!(switches(&ALL, &run), ["--net", "--network=none", "--pid", "--containall", "--no-privs"]);
        let start = Task::Start { name: "x".into(), folder: "/x".into(), arguments: Vec::new() };
        assert_eq!(switches(&[RuntimeFlag::Pid, RuntimeFlag::NoPrivs], &start), ["--no-privs"]);
    }
}
