//! Who may run what: the rules of `supervisor.toml` with names made numbers and keys read.

use std::path::Path;
use std::process::{Command, Stdio};

use countersign_sif::dsse::SignerKey;
use countersign_wire::id::WorkloadId;
use serde::{Deserialize, Serialize};

use super::message::SIGNERS;
use super::peer::Peer;
use super::settings::{Daemon, FILE, Written, read_trusted};
use crate::exit::{Failure, Stage};

/// Runs of one user at a time, where a rule does not say.
const RUNS: usize = 8;

/// All rules, in the order of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    file: String,
    rules: Vec<Rule>,
    /// Root's grant.
    root: Grant,
}

#[derive(Debug, Clone)]
struct Rule {
    users: Vec<u32>,
    groups: Vec<u32>,
    grant: Grant,
}

/// What a client may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// The rule's name.
    pub(super) rule: String,
    /// Trusted signers, PEM texts.
    signers: Vec<String>,
    /// Whether the client may bring others.
    own_signers: bool,
    /// Workloads that may be run; empty for all.
    workloads: Vec<WorkloadId>,
    /// Whether containers may see the client's files.
    binds: bool,
    /// Runs at a time.
    pub(super) runs: usize,
}

/// Looks a name up: `passwd` or `group`, name; its number.
pub(super) type LookUp<'a> = &'a dyn Fn(&str, &str) -> Option<u32>;

/// As the system's name services say (getent, so that directories count too).
pub(super) fn getent(database: &str, name: &str) -> Option<u32> {
    let asked = Command::new("getent").args([database, "--", name]).stdin(Stdio::null()).output().ok()?;
    let line = String::from_utf8(asked.stdout).ok()?;
    let mut fields = line.lines().next()?.split(':');
    (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
}

impl Rules {
    /// Resolves the rules of a file.
    ///
    /// # Errors
    /// [`Stage::Configuration`] names the rule.
    pub(super) fn resolve(file: Option<&Path>, daemon: &Daemon, look_up: LookUp<'_>) -> Result<Self, Failure> {
        let file = file.unwrap_or_else(|| Path::new(FILE)).display().to_string();
        let resolve = |rule: &Written| {
            Rule::resolve(rule, look_up).map_err(|mut failure| {
                failure.error = format!("{file}: rule {:?}: {}", rule.name, failure.error);
                failure
            })
        };
        let rules = daemon.rules.iter().map(resolve).collect::<Result<_, _>>()?;
        let root = Grant { rule: "root".into(), own_signers: true, binds: true, runs: daemon.runs, ..Grant::default() };
        Ok(Self { file, rules, root })
    }

    /// What a client may do.
    ///
    /// # Errors
    /// [`Stage::Refused`]: no rule admits it.
    pub(super) fn grant(&self, peer: &Peer) -> Result<&Grant, Failure> {
        if peer.is_root() {
            return Ok(&self.root);
        }
        let fits = |rule: &&Rule| {
            rule.users.contains(&peer.uid) || rule.groups.iter().any(|group| peer.groups.contains(group))
        };
        self.rules.iter().find(fits).map(|rule| &rule.grant).ok_or_else(|| {
            let (uid, file) = (peer.uid, &self.file);
            Failure::new(
                Stage::Refused,
                format!("the daemon refuses: no rule of {file} admits user {uid}"),
                format!("the administrator adds [[daemon.rule]] with users = [\"{uid}\"] to {file}, then: systemctl reload countersign-supervisor"),
            )
        })
    }
}

impl Rule {
    fn resolve(rule: &Written, look_up: LookUp<'_>) -> Result<Self, Failure> {
        let bad =
            |what: String| Failure::new(Stage::Configuration, what, "supervisor daemon --example shows every key");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if rule.name.is_empty() || rule.name.len() > 64 || !rule.name.chars().all(plain) {
            return Err(bad("a rule's name has 1 to 64 letters, digits, -, _ or .".into()));
        }
        if rule.users.is_empty() && rule.groups.is_empty() {
            return Err(bad("it names neither users nor groups".into()));
        }
        if rule.signers.is_empty() && !rule.own_signers {
            return Err(bad("it names no signers, and own_signers is not set: nothing could be run".into()));
        }
        if rule.signers.len() > SIGNERS {
            return Err(bad(format!("more than {SIGNERS} signers")));
        }
        let number = |database: &str, name: &String| {
            let known = || (!name.is_empty()).then(|| look_up(database, name)).flatten();
            let found = name.parse().ok().or_else(known);
            found.ok_or_else(|| bad(format!("getent {database} knows no {name:?}")))
        };
        let users = rule.users.iter().map(|name| number("passwd", name)).collect::<Result<_, _>>()?;
        let groups = rule.groups.iter().map(|name| number("group", name)).collect::<Result<_, _>>()?;
        let mut signers = Vec::new();
        for path in &rule.signers {
            let pem = read_trusted(path)?;
            SignerKey::from_pem(pem.as_bytes()).map_err(|e| bad(format!("{}: {e}", path.display())))?;
            signers.push(pem);
        }
        let grant = Grant {
            rule: rule.name.clone(),
            signers,
            own_signers: rule.own_signers,
            workloads: rule.workloads.clone(),
            binds: rule.binds,
            runs: rule.runs.unwrap_or(RUNS),
        };
        Ok(Self { users, groups, grant })
    }
}

impl Grant {
    fn refused(&self, what: &str, hint: &str) -> Failure {
        Failure::new(Stage::Refused, format!("the daemon refuses: rule {:?} {what}", self.rule), hint)
    }

    /// The signers that count, when the client has given these: the rule's own, or fewer of them; others only where the rule allows it.
    ///
    /// # Errors
    /// [`Stage::Refused`].
    pub(super) fn trusted(&self, given: Vec<String>) -> Result<Vec<String>, Failure> {
        if given.is_empty() {
            if self.signers.is_empty() {
                return Err(self.refused("names no signers", "give the owner's public key: --signer FILE"));
            }
            return Ok(self.signers.clone());
        }
        let known = |pem: &String| self.signers.iter().any(|signer| signer.trim() == pem.trim());
        if !self.own_signers && !given.iter().all(known) {
            let hint = "leave --signer out: the rule's signers count (or the administrator sets own_signers = true)";
            return Err(self.refused("fixes the signers, and this one is none of them", hint));
        }
        Ok(given)
    }

    /// Whether a workload may be run.
    ///
    /// # Errors
    /// [`Stage::Refused`].
    pub(super) fn admit(&self, workload: WorkloadId) -> Result<(), Failure> {
        if self.workloads.is_empty() || self.workloads.contains(&workload) {
            return Ok(());
        }
        let hint = format!("the administrator adds {workload} to the rule's workloads");
        Err(self.refused(&format!("does not list workload {workload}"), &hint))
    }

    /// Whether the container may see files of the client's.
    ///
    /// # Errors
    /// [`Stage::Refused`].
    pub(super) fn lends(&self) -> Result<(), Failure> {
        if self.binds {
            return Ok(());
        }
        let hint = "pass data through standard input and output, or the administrator sets binds = true in the rule";
        Err(self.refused("allows no --bind and no --home", hint))
    }

    /// Whether one more run may start, with so many already there.
    ///
    /// # Errors
    /// [`Stage::Refused`].
    pub(super) fn room(&self, there: usize) -> Result<(), Failure> {
        if there < self.runs {
            return Ok(());
        }
        let hint = "wait until one has ended (supervisor ps shows them), or the administrator raises the rule's runs";
        Err(self.refused(&format!("allows {} runs at a time", self.runs), hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(database: &str, name: &str) -> Option<u32> {
        match (database, name) {
            ("passwd", "alice") => Some(1001),
            ("group", "physics") => Some(500),
            _ => None,
        }
    }

    fn rules(text: &str) -> Result<Rules, String> {
        let daemon: Daemon = toml::from_str(text).unwrap();
        Rules::resolve(Some(Path::new("x.toml")), &daemon, &look_up).map_err(|failure| failure.error)
    }

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid: 1, groups: groups.to_vec(), pid: 7 }
    }

    #[test]
    fn nobody_but_root_without_a_rule() {
        let none = rules("").unwrap();
        assert_eq!(none.grant(&peer(0, &[0])).unwrap().rule, "root");
        let refused = none.grant(&peer(1001, &[500])).unwrap_err();
        assert_eq!(refused.stage, Stage::Refused);
        assert!(refused.error.contains("user 1001") && refused.hint.contains("users = [\"1001\"]"), "{refused:?}");
    }

    #[test]
    fn the_first_rule_that_fits() {
        let text = "rule = [{name = \"a\", users = [\"alice\"], own_signers = true},
            {name = \"b\", groups = [\"physics\", \"77\"], own_signers = true, runs = 2}]";
        let rules = rules(text).unwrap();
        let rule = |uid, groups: &[u32]| rules.grant(&peer(uid, groups)).map(|grant| grant.rule.clone()).ok();
        assert_eq!(rule(1001, &[500]).as_deref(), Some("a"));
        assert_eq!(rule(1002, &[4, 500]).as_deref(), Some("b"));
        assert_eq!(rule(1002, &[77]).as_deref(), Some("b"));
        // A user's number is no group's.
        assert_eq!(rule(500, &[1001]), None);
        let grant = rules.grant(&peer(1002, &[77])).unwrap();
        assert!(grant.room(1).is_ok());
        assert!(grant.room(2).unwrap_err().error.contains("allows 2 runs"));
    }

    #[test]
    fn rules_that_say_nothing_useful_are_refused() {
        for (text, words) in [
            ("rule = [{users = [\"1\"], own_signers = true}]", "name"),
            ("rule = [{name = \"a\", own_signers = true}]", "neither users nor groups"),
            ("rule = [{name = \"a\", users = [\"1\"]}]", "own_signers"),
            ("rule = [{name = \"a\", users = [\"bob\"], own_signers = true}]", "knows no \"bob\""),
            ("rule = [{name = \"a\", users = [\"\"], own_signers = true}]", "knows no \"\""),
            ("rule = [{name = \"a\", users = [\"1\"], signers = [\"/nowhere\"]}]", "/nowhere"),
        ] {
            let refused = rules(text).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn signers_and_workloads() {
        let grant = |own_signers, signers: &[&str]| Grant {
            rule: "r".into(),
            signers: signers.iter().map(|&pem| pem.to_owned()).collect(),
            own_signers,
            workloads: vec![WorkloadId([1; 32])],
            binds: false,
            runs: 1,
        };
        let given = |pems: &[&str]| pems.iter().map(|&pem| pem.to_owned()).collect::<Vec<_>>();
        assert_eq!(grant(false, &["A", "B"]).trusted(Vec::new()).unwrap(), ["A", "B"]);
        assert_eq!(grant(false, &["A", "B"]).trusted(given(&["B\n"])).unwrap(), ["B\n"]);
        assert!(grant(false, &["A"]).trusted(given(&["A", "C"])).unwrap_err().error.contains("fixes the signers"));
        assert_eq!(grant(true, &["A"]).trusted(given(&["C"])).unwrap(), ["C"]);
        assert!(grant(true, &[]).trusted(Vec::new()).unwrap_err().hint.contains("--signer"));
        assert!(grant(true, &[]).admit(WorkloadId([1; 32])).is_ok());
        assert!(grant(true, &[]).admit(WorkloadId([2; 32])).unwrap_err().error.contains("0202"));
    }

    #[test]
    fn names_as_the_system_knows_them() {
        if Command::new("getent").arg("--version").output().is_err() {
            println!("skipped: getent is not installed");
            return;
        }
        assert_eq!((getent("passwd", "root"), getent("group", "root")), (Some(0), Some(0)));
        assert_eq!((getent("passwd", "no-such-user-here"), getent("passwd", "--version")), (None, None));
    }
}
