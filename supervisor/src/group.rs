//! The workload's processes as one thing: to list, freeze and end.
//!
//! A cgroup v2 of its own for each run where one can be made, as root or below a delegated one. Where none can, the process tree: what
//! descends from the container's first process or is in its process namespace. Nobody leaves either by forking twice, by a session of his
//! own or by another name; ending the first process ends a process namespace.

mod cgroup;
mod tree;

use std::fs::File;
use std::io;
use std::sync::OnceLock;

pub(crate) use cgroup::Cgroup;
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

    /// Where a process that is to be in it writes `0`; none for a process tree.
    pub(crate) fn entrance(&self) -> Option<&File> {
        self.cgroup.as_ref().ok().map(Cgroup::entrance)
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
        match &self.cgroup {
            Ok(cgroup) => cgroup.processes(),
            Err(_) => self.tree()?.processes(),
        }
    }

    /// None of them runs when this returns.
    ///
    /// # Errors
    /// The system calls fail, or it takes too long: then some may run.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        match &self.cgroup {
            Ok(cgroup) => cgroup.freeze(true),
            Err(_) => self.tree()?.stop(),
        }
    }

    /// They run again.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        match &self.cgroup {
            Ok(cgroup) => cgroup.freeze(false),
            Err(_) => self.tree()?.go_on(),
        }
    }

    /// All of them are gone when this returns, frozen or not.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match &self.cgroup {
            Ok(cgroup) => cgroup.kill(),
            Err(_) => self.init.get().map_or(Ok(()), Tree::kill),
        }
    }
}

/// Whether runs here get a cgroup: where, or why not. Makes one and removes it.
pub(crate) fn probe() -> Result<String, String> {
    let name = format!("{PREFIX}probe-{}", std::process::id());
    let cgroup = Cgroup::make(&name)?;
    Ok(cgroup.path().parent().map(|path| path.display().to_string()).unwrap_or_default())
}
