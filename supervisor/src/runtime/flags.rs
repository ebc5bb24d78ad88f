//! The flags of Apptainer and SingularityCE: which take a value, and what becomes of each (docs/operations.md has the same table).

use std::ffi::{OsStr, OsString};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::exit::{Failure, Stage};

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The runtime gets it as it is.
    Pass,
    /// It would break what a protected run promises; why.
    Refuse(&'static str),
}

/// A flag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    /// Whether it takes a value.
    pub(crate) value: bool,
    pub(crate) rule: Rule,
}

const fn switch(name: &'static str, short: Option<char>) -> Flag {
    Flag { name, short, value: false, rule: Rule::Pass }
}

const fn value(name: &'static str, short: Option<char>) -> Flag {
    Flag { name, short, value: true, rule: Rule::Pass }
}

const fn refused(name: &'static str, short: Option<char>, value: bool, why: &'static str) -> Flag {
    Flag { name, short, value, rule: Rule::Refuse(why) }
}

const KEY: &str = "the image's key comes from the TPM and never reaches the runtime";
const COPY: &str = "it would write the decrypted image to a disk";
const LIMITS: &str = "it would take the container out of the run's cgroup; limit the whole: systemd-run --scope -p MemoryMax=1G supervisor ...";
const PRIVILEGES: &str = "a workload gets no more privileges than its user has";

/// All of them.
pub(crate) const FLAGS: &[Flag] = &[
    refused("add-caps", None, true, PRIVILEGES),
    refused("allow-setuid", None, false, PRIVILEGES),
    value("app", None),
    refused("apply-cgroups", None, true, LIMITS),
    value("arch", None),
    value("authfile", None),
    value("bind", Some('B')),
    refused("blkio-weight", None, true, LIMITS),
    refused("blkio-weight-device", None, true, LIMITS),
    refused("boot", None, false, PRIVILEGES),
    value("cdi-dirs", None),
    switch("cleanenv", Some('e')),
    switch("compat", None),
    switch("contain", Some('c')),
    switch("containall", Some('C')),
    refused("cpu-shares", None, true, LIMITS),
    refused("cpus", None, true, LIMITS),
    refused("cpuset-cpus", None, true, LIMITS),
    refused("cpuset-mems", None, true, LIMITS),
    value("cwd", None),
    value("data", None),
    value("device", None),
    switch("disable-cache", None),
    value("dns", None),
    value("docker-host", None),
    switch("docker-login", None),
    value("drop-caps", None),
    value("env", None),
    value("env-file", None),
    refused("fakeroot", Some('f'), false, PRIVILEGES),
    value("fusemount", None),
    value("home", Some('H')),
    value("hostname", None),
    switch("ipc", Some('i')),
    refused("keep-layers", None, false, "the image is no OCI image"),
    refused("keep-privs", None, false, PRIVILEGES),
    refused("memory", None, true, LIMITS),
    refused("memory-reservation", None, true, LIMITS),
    refused("memory-swap", None, true, LIMITS),
    value("mount", None),
    switch("net", Some('n')),
    value("netns-path", None),
    value("network", None),
    value("network-args", None),
    switch("no-compat", None),
    switch("no-eval", None),
    switch("no-home", None),
    switch("no-https", None),
    switch("no-init", None),
    value("no-mount", None),
    switch("no-oci", None),
    switch("no-pid", None),
    switch("no-privs", None),
    switch("no-setgroups", None),
    switch("no-tmp-sandbox", None),
    switch("no-umask", None),
    switch("nv", None),
    switch("nvccli", None),
    refused("oci", None, false, "the OCI mode unpacks the image by itself"),
    refused("oom-kill-disable", None, false, LIMITS),
    value("overlay", Some('o')),
    refused("passphrase", None, false, KEY),
    refused("pem-path", None, true, KEY),
    switch("pid", Some('p')),
    refused("pid-file", None, true, "supervisor instance list --json says the process id"),
    refused("pids-limit", None, true, LIMITS),
    value("platform", None),
    refused("proot", None, true, "processes under proot are not what the monitor sees"),
    value("pwd", None),
    switch("rocm", None),
    value("scratch", Some('S')),
    value("security", None),
    refused("sharens", None, false, "another run would join this one without a grant of its own"),
    value("shell", Some('s')),
    refused("tmp-sandbox", None, false, COPY),
    switch("underlay", None),
    refused("unsquash", None, false, COPY),
    switch("userns", Some('u')),
    switch("uts", None),
    refused("vm", None, false, "a virtual machine is out of the monitor's sight"),
    value("workdir", Some('W')),
    refused("writable", Some('w'), false, "the image is sealed; --writable-tmpfs or --overlay take what is written"),
    switch("writable-tmpfs", None),
];

/// The flag of this name.
pub(crate) fn long(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The flag of this letter.
pub(crate) fn short(letter: char) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.short == Some(letter))
}

/// A flag as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub(crate) flag: &'static Flag,
    /// Its value; of a switch `--name=false` and the like.
    pub(crate) value: Option<OsString>,
}

/// Name and value, between the processes of a run.
impl Serialize for Given {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.flag.name, &self.value).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, value) = <(String, Option<OsString>)>::deserialize(deserializer)?;
        let flag = long(&name).ok_or_else(|| serde::de::Error::custom("no flag of a runtime"))?;
        Ok(Self { flag, value })
    }
}

impl Given {
    /// A switch that is given as off.
    pub(crate) fn is_off(&self) -> bool {
        !self.flag.value && self.value.as_deref().is_some_and(is_false)
    }

    /// As the runtime takes it, in one word.
    pub(crate) fn argument(&self) -> OsString {
        let mut argument = OsString::from(format!("--{}", self.flag.name));
        if let Some(value) = &self.value {
            argument.push("=");
            argument.push(value);
        }
        argument
    }

    /// Whether the run may have it.
    ///
    /// # Errors
    /// [`Stage::Usage`], with the reason.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.flag.rule {
            Rule::Refuse(why) if !self.is_off() => {
                Err(refusal(&format!("--{}", self.flag.name), why, "leave the flag away"))
            }
            Rule::Pass | Rule::Refuse(_) => Ok(()),
        }
    }
}

fn refusal(what: &str, why: &str, hint: &str) -> Failure {
    Failure::new(Stage::Usage, format!("{what} is refused: {why}"), hint)
}

pub(super) fn is_false(value: &OsStr) -> bool {
    ["", "0", "f", "F", "false", "FALSE", "False"].iter().any(|word| value == *word)
}

/// The runtimes take each flag from the environment too: whether one that is refused comes from there.
///
/// # Errors
/// [`Stage::Usage`], with the variable's name.
pub(crate) fn check_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    for flag in FLAGS {
        let Rule::Refuse(why) = flag.rule else { continue };
        for prefix in PREFIXES {
            let name = format!("{prefix}_{}", flag.name.to_uppercase().replace('-', "_"));
            if get(&name).is_some_and(|value| !is_false(&value)) {
                return Err(refusal(&name, why, &format!("unset {name}")));
            }
        }
    }
    Ok(())
}

/// What the runtimes' variables begin with.
pub(super) const PREFIXES: [&str; 2] = ["APPTAINER", "SINGULARITY"];

/// Variables with keys of encrypted images: the runtime needs none, and gives its environment to workloads.
pub(crate) fn key_variables() -> impl Iterator<Item = String> {
    let names = ["ENCRYPTION_PASSPHRASE", "ENCRYPTION_PEM_PATH", "ENCRYPTION_PEM_DATA"];
    PREFIXES.iter().flat_map(move |prefix| names.map(|name| format!("{prefix}_{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_and_each_letter_once_in_order() {
        let names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        assert!(names.is_sorted(), "in order, so that two are seen");
        let mut letters: Vec<char> = FLAGS.iter().filter_map(|flag| flag.short).collect();
        let all = letters.len();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), all);
    }

    #[test]
    fn what_breaks_the_promise_is_refused_by_name() {
        for (name, why) in [
            ("writable", "sealed"),
            ("pem-path", "TPM"),
            ("unsquash", "disk"),
            ("keep-privs", "privileges"),
            ("memory", "systemd-run"),
        ] {
            let given = Given { flag: long(name).unwrap(), value: None };
            let failure = given.check().unwrap_err();
            assert_eq!(failure.stage, Stage::Usage);
            assert!(failure.error.contains(&format!("--{name}")) && failure.error.contains(why), "{}", failure.error);
        }
        assert!(Given { flag: long("writable").unwrap(), value: Some("false".into()) }.check().is_ok());
        assert!(Given { flag: long("writable-tmpfs").unwrap(), value: None }.check().is_ok());
    }

    #[test]
    fn the_environment_is_no_way_around() {
        let one = |name: &'static str, value: &'static str| move |asked: &str| (asked == name).then(|| value.into());
        assert!(check_environment(one("APPTAINER_WRITABLE", "1")).unwrap_err().error.contains("APPTAINER_WRITABLE"));
        assert!(check_environment(one("SINGULARITY_KEEP_PRIVS", "yes")).is_err());
        assert!(check_environment(one("APPTAINER_WRITABLE", "false")).is_ok());
        assert!(check_environment(one("APPTAINER_BIND", "/data")).is_ok());
        assert!(key_variables().any(|name| name == "APPTAINER_ENCRYPTION_PEM_DATA"));
    }
}
