//! The workload's processes as one thing: to list, freeze and end.
//!
//! A cgroup v2 of its own for each run where one can be made, as root or below a delegated one. Where none can, the process tree: what
//! descends from the container's first process or is in its process namespace. Nobody leaves either by forking twice, by a session of his
//! own or by another name; ending the first process ends a process namespace. With a cgroup the tree counts too: a runtime shows the machine's
//! own files, and somebody may move a process to another cgroup.

mod cgroup;
mod tree;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use cgroup::{Cgroup, mount_points};
use tree::Tree;

/// Name of a run's cgroup, before the run id.
const PREFIX: &str = "countersign-";

/// The processes of one run.
#[derive(Debug)]
pub(crate) struct Group {
    cgroup: Result<Cgroup, String>,
    init: OnceLock<Tree>,
}

impl Group {
    /// A cgroup for the run, or its reason why there is none. Those of dead runs beside it are removed.
    pub(crate) fn make(run: &str) -> Self {
        Self { cgroup: Cgroup::make(&format!("{PREFIX}{run}")), init: OnceLock::new() }
    }

    /// The process tree below a first process, to look at.
    pub(crate) fn under(init: u32) -> io::Result<Self> {
        let group = Self { cgroup: Err("to look at only".into()), init: OnceLock::new() };
        group.begins_with(init)?;
        Ok(group)
    }

    /// Where a process that is to be in it writes `0`, and the folder in which one is born; none for a process tree.
    pub(crate) fn entrance(&self) -> Option<[&File; 2]> {
        self.cgroup.as_ref().ok().map(|cgroup| [cgroup.entrance(), cgroup.folder()])
    }

    /// Which of the two it is, for people: the cgroup's path, or why there is none.
    pub(crate) fn words(&self) -> String {
        match &self.cgroup {
            Ok(cgroup) => format!("cgroup {}", cgroup.path().display()),
            Err(why) => format!("process tree ({why})"),
        }
    }

    /// Says which process is the container's first.
    ///
    /// # Errors
    /// It has ended already.
    pub(crate) fn begins_with(&self, init: u32) -> io::Result<()> {
        let _ = self.init.set(Tree::of(init)?);
        Ok(())
    }

    /// The container's first process, by its id here; none before it is known.
    pub(crate) fn init(&self) -> Option<u32> {
        self.init.get().map(Tree::init)
    }

    fn tree(&self) -> io::Result<&Tree> {
        self.init.get().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the container has no process yet"))
    }

    /// Ids of all its processes, here. Those of the runtime that wait for the container's end may be among them.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        self.in_sight(&[])
    }

    /// As [`Group::processes`], and whoever else is in one of these namespaces, by their kinds and names. Those are looked at only: they may
    /// be on their way in, as who joins an instance is.
    pub(crate) fn in_sight(&self, namespaces: &[(&str, &Path)]) -> io::Result<Vec<u32>> {
        let Ok(cgroup) = &self.cgroup else { return self.tree()?.in_sight(namespaces) };
        let mut all = cgroup.processes()?;
        // Without a process yet there is nobody who could have left.
        if let Some(tree) = self.init.get() {
            all.extend(tree.in_sight(namespaces)?);
            all.sort_unstable();
            all.dedup();
        }
        Ok(all)
    }

    /// Ids of those in its cgroup, which are found without a look at every process of the machine; all of them where there is no cgroup.
    pub(crate) fn at_hand(&self) -> io::Result<Vec<u32>> {
        let Ok(cgroup) = &self.cgroup else { return self.processes() };
        let mut inside = cgroup.processes()?;
        inside.sort_unstable();
        Ok(inside)
    }

    /// The cgroup that a process is in, unless it is the run's or below it; none without a cgroup. As [`Cgroup::elsewhere`].
    pub(crate) fn elsewhere(&self, process: u32) -> io::Result<Option<PathBuf>> {
        self.cgroup.as_ref().map_or(Ok(None), |cgroup| cgroup.elsewhere(process))
    }

    /// None of them runs when this returns.
    ///
    /// # Errors
    /// The system calls fail, or it takes too long: then some may run.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        let Ok(cgroup) = &self.cgroup else { return self.tree()?.stop(&|| Ok(Vec::new())) };
        cgroup.freeze(true)?;
        self.init.get().map_or(Ok(()), |tree| tree.stop(&|| cgroup.processes()))
    }

    /// They run again.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        let Ok(cgroup) = &self.cgroup else { return self.tree()?.go_on(&|| Ok(Vec::new())) };
        self.init.get().map_or(Ok(()), |tree| tree.go_on(&|| cgroup.processes()))?;
        cgroup.freeze(false)
    }

    /// All of them are gone when this returns, frozen or not.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let cgroup = self.cgroup.as_ref().map_or(Ok(()), Cgroup::kill);
        // Whatever came of the cgroup.
        self.init.get().map_or(Ok(()), Tree::kill).and(cgroup)
    }
}

/// Whether runs here get a cgroup: where, or why not. Makes one and removes it.
pub(crate) fn probe() -> Result<String, String> {
    let name = format!("{PREFIX}probe-{}", std::process::id());
    let cgroup = Cgroup::make(&name)?;
    Ok(cgroup.path().parent().map(|path| path.display().to_string()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_left_the_cgroup_is_listed_frozen_and_ended_too() {
        let group = Group::make(&format!("left-{}", std::process::id()));
        if group.cgroup.is_err() {
            return println!("skipped: {}", group.words());
        }
        // Never in the cgroup: as one who was moved out of it.
        let mut command = Command::new("unshare");
        command.args(["-Urpf", "--kill-child", "sh", "-c", "echo $$; echo ready; while :; do :; done"]);
        let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else { return println!("skipped: no unshare") };
        let mut words = BufReader::new(child.stdout.take().unwrap()).lines();
        if words.nth(1).is_none() {
            child.wait().unwrap();
            return println!("skipped: no user namespaces");
        }
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let init: u32 = children.trim().parse().unwrap();
        group.begins_with(init).unwrap();
        assert_eq!(group.processes().unwrap(), [init]);
        let state = || crate::stat::Stat::of(init).unwrap().map(|stat| stat.state);
        group.freeze().unwrap();
        assert_eq!(state(), Some('T'));
        group.thaw().unwrap();
        assert_ne!(state(), Some('T'));
        group.freeze().unwrap();
        group.kill().unwrap();
        child.wait().unwrap();
        assert!(state().is_none_or(|state| state == 'Z'));
    }
}
