//! One look at the run: its processes against what was there when the workload started.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use countersign_attest::lease::boot_time;
use countersign_wire::finding::{Finding, Kind};

use super::machine::Machine;
use super::mounts::{Mount, root};
use super::process::{Executable, Identity, NAMESPACES, Process, identity};
use super::sockets;
use super::stranger::stranger;
use crate::group::Group;
use crate::stat::{Stat, if_there};

/// How often a process is read again that changes its mount namespace while it is read.
const TRIES: u32 = 4;
/// Most processes between a nested runtime's container and the run's first process.
const DEPTH: usize = 16;

/// How long a runtime of its own may take from the container to the workload: then it may be that nothing is started in it, as in an instance
/// without a start script.
const IDLE: Duration = Duration::from_secs(3);

/// How old a process is that is not being forked any more.
const FORKED: Duration = Duration::from_secs(1);

/// How things were when the workload started.
#[derive(Debug)]
pub(super) struct Baseline {
    /// A process that is in the container as it was set up.
    pub(super) first: Process,
    /// `major:minor` of file systems on which there is nothing but the image.
    image: Vec<String>,
    mounts: Vec<Mount>,
    /// By the names of [`NAMESPACES`], those that the kernel has.
    namespaces: HashMap<&'static str, String>,
    capabilities: u64,
    /// Processes of the runtime itself and the file that each runs: they wait for the container's end, or serve its file systems.
    runtime: HashMap<Process, Identity>,
    /// Files of the runtime's programs.
    programs: HashSet<Identity>,
    /// The runtime's own mount namespace, where it is not the container's: no process of the workload can enter it.
    outer: Option<String>,
    /// That one and those of the runtime's processes on the way from there to the container.
    around: HashSet<String>,
    /// The cgroup that the runtime has moved the container to, where it is none of the run's.
    moved: Option<PathBuf>,
    machine: Machine,
}

/// A process and where it runs what.
struct Inside {
    process: Process,
    executable: Executable,
    mounts: Vec<Mount>,
}

impl Inside {
    /// The mount that its executable was opened through, if that is one of its own.
    fn through(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == self.executable.mount)
    }

    /// Whether it runs a file of its own mounts. One in memory is on no mount; no runtime runs from one, so it is the workload already.
    fn runs_own(&self) -> bool {
        self.through().is_some() || self.executable.path.starts_with("/memfd:")
    }
}

/// What is known while a nested runtime makes its container.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// Mount namespace and executable of each process, as links of /proc name them.
    seen: HashMap<u32, [Option<PathBuf>; 2]>,
    /// The runtime's own process in a container: since when nothing has changed there, and how much all of them had worked by then.
    idle: Option<(Process, Vec<Mount>, u64, Duration)>,
}

impl Awaited {
    /// Whether one of these processes is new, has executed something, or is in another mount namespace. Whoever becomes the workload does all of
    /// that, and two links are read sooner than a mount table, which keeps those waiting who mount.
    fn stirs(&mut self, pids: &[u32]) -> bool {
        let links = |pid: &u32| ["ns/mnt", "exe"].map(|name| std::fs::read_link(format!("/proc/{pid}/{name}")).ok());
        let now = pids.iter().map(|pid| (*pid, links(pid))).collect();
        let before = std::mem::replace(&mut self.seen, now);
        self.seen.iter().any(|(pid, links)| before.get(pid) != Some(links))
    }

    /// What was seen was not looked at to the end: it stirs again.
    pub(super) fn look_again(&mut self) {
        self.seen.clear();
    }

    /// Whether this one has been there, with these mounts, for as long as a runtime may take from the container to the workload, and none of the
    /// processes has worked meanwhile: on a busy machine a runtime may take longer.
    fn still(&mut self, inside: &Inside) -> bool {
        let now = boot_time();
        let Some(worked) = work(self.seen.keys().copied()) else {
            self.idle = None;
            return false;
        };
        match &self.idle {
            Some((process, mounts, before, since))
                if *process == inside.process && *mounts == inside.mounts && *before == worked =>
            {
                now.saturating_sub(*since) > IDLE
            }
            _ => {
                self.idle = Some((inside.process, inside.mounts.clone(), worked, now));
                false
            }
        }
    }
}

/// The processor time that these processes have used (clock ticks); `None` while one of them works, or waits to.
fn work(pids: impl Iterator<Item = u32>) -> Option<u64> {
    let mut sum = 0_u64;
    for pid in pids {
        // One that has ended, or cannot be looked at, says nothing.
        let Ok(Some(stat)) = Stat::of(pid) else { continue };
        if matches!(stat.state, 'R' | 'D') {
            return None;
        }
        sum = sum.saturating_add(stat.ticks);
    }
    Some(sum)
}

impl Baseline {
    /// Taken once the container is set up; `None` before.
    ///
    /// With the built-in runtime, bubblewrap's own first process is in the container too and is all that is looked at: whatever the workload
    /// does by then changes nothing of that. A `nested` runtime (the place of the image's mount, as mount tables have it) makes a container
    /// further in. It is recognised by the workload's first process, or, where the runtime has had its time and starts nothing, by the
    /// runtime's own process in it, which is idle. It is looked for among the processes at hand once one of them stirs, or `everywhere`.
    pub(super) fn take(
        group: &Group,
        nested: Option<&str>,
        awaited: &mut Awaited,
        everywhere: bool,
    ) -> io::Result<Option<Self>> {
        let Some(init) = group.init().map(Process::of).transpose()?.flatten() else { return Ok(None) };
        let candidates = match nested {
            None => Vec::new(),
            Some(_) if everywhere => group.processes()?,
            Some(_) => group.at_hand()?,
        };
        if nested.is_some() && !awaited.stirs(&candidates) && !everywhere {
            return Ok(None);
        }
        let (table, outer) = (init.mounts()?, init.namespace("mnt")?);
        let mut programs: HashSet<Identity> = HashSet::from([identity("/proc/self/exe")?]);
        let mut runtime = HashMap::new();
        for process in std::iter::once(init).chain(init.parent()?) {
            runtime.insert(process, identity(&process.file("exe"))?);
        }
        let mut around = HashSet::new();
        let (first, mounts, image, capabilities) = if let Some(place) = nested {
            let Some(squashfs) = table.iter().rev().find(|mount| mount.place == place) else { return Ok(None) };
            let found = container(candidates, init, (&table, &outer), squashfs, awaited)?;
            let Some((inside, capabilities)) = found else {
                return Ok(None);
            };
            around = own(group, &inside, (init, &outer), &mut runtime)?;
            let Inside { process, mounts, .. } = inside;
            let mut image = vec![squashfs.device.clone()];
            image.extend(root(&mounts).filter(|root| root.is_sealed()).map(|root| root.device.clone()));
            (process, mounts, image, capabilities)
        } else {
            // Its root while it works is not the image, and it has capabilities to the last.
            let squashfs = root(&table).filter(|root| root.kind.contains("squashfuse"));
            let Some(image) = squashfs.map(|root| vec![root.device.clone()]) else { return Ok(None) };
            if init.status()?.capabilities != 0 {
                return Ok(None);
            }
            // As it is now: before, it may have been at work still.
            (init, init.mounts()?, image, 0)
        };
        let mut namespaces = HashMap::new();
        for name in NAMESPACES {
            // One that the kernel does not have.
            if let Some(namespace) = if_there(first.namespace(name))? {
                namespaces.insert(name, namespace);
            }
        }
        // It may end while it is looked at: then another one may be the first.
        if !first.lives() {
            awaited.look_again();
            return Ok(None);
        }
        programs.extend(runtime.values());
        Ok(Some(Self {
            first,
            image,
            namespaces,
            capabilities,
            runtime,
            programs,
            outer: nested.map(|_| outer),
            around,
            moved: None,
            machine: Machine::now()?,
            mounts,
        }))
    }

    /// The container's mounts that are not the image, on which executables can lie.
    pub(super) fn other_mounts(&self) -> Vec<Mount> {
        let other = self.mounts.iter().filter(|mount| !self.image.contains(&mount.device) && mount.kind != "proc");
        other.cloned().collect()
    }

    /// Looks once, and adds what it finds.
    ///
    /// # Errors
    /// What happens in the run cannot be seen, or not all of it: what was found by then counts.
    pub(super) fn look(&mut self, group: &Group, time_ms: i64, found: &mut Vec<Finding>) -> io::Result<()> {
        found.extend(self.machine.look(time_ms)?);
        if let Some(cgroup) = if_there(group.elsewhere(self.first.pid))?.flatten().filter(|_| self.first.lives()) {
            self.moved = Some(cgroup);
        }
        let mut tables: HashMap<String, Vec<Mount>> = HashMap::new();
        let (mut judged, mut judged_beside): (HashSet<String>, HashSet<String>) = Default::default();
        let mut ours: HashMap<u64, Process> = HashMap::new();
        // Whoever shares the container's files or processes, or the files of the runtime around it, from wherever he came.
        let shared = ["mnt", "pid"].into_iter().filter_map(|kind| Some((kind, self.namespaces.get(kind)?)));
        let shared = shared.chain(self.around.iter().map(|name| ("mnt", name)));
        let shared: Vec<(&str, &Path)> = shared.map(|(kind, name)| (kind, Path::new(name.as_str()))).collect();
        let all = group.in_sight(&shared)?;
        // What is known of those who are not in its process namespace.
        let (mut beside, mut told): (HashSet<Process>, Vec<Finding>) = Default::default();
        let mut looked = Ok(());
        for pid in all.iter().copied() {
            let process = match Process::of(pid) {
                Ok(Some(process)) => process,
                Ok(None) => continue,
                Err(e) => {
                    looked = Err(e);
                    break;
                }
            };
            let is_beside =
                self.outer.is_none() && process.namespace("pid").ok().as_ref() != self.namespaces.get("pid");
            if is_beside {
                beside.insert(process);
            }
            let (found, judged) = if is_beside { (&mut told, &mut judged_beside) } else { (&mut *found, &mut judged) };
            // What cannot be read has ended, or does not want to be looked at.
            let outcome = self.examine(process, (group, &all), (&mut tables, judged), &mut ours, time_ms);
            match outcome {
                Ok(more) => found.extend(more),
                Err(_) if !process.lives() || process.is_ending() => {}
                Err(e) => {
                    let what = format!("the process cannot be examined: {e}");
                    found.push(Finding::new(Kind::ProcessNotInImage, &what, "", time_ms).of(process.pid, "unknown"));
                }
            }
        }
        // The kernel gives the number of a mount namespace that is gone to the next one that is made: then they were another container's. That of
        // the process namespace is not given away while its first process's handle is open.
        if self.first.lives() && !self.first.is_ending() {
            found.extend(told);
        } else {
            ours.retain(|_, process| !beside.contains(process));
        }
        looked?;
        if !ours.is_empty() {
            found.extend(self.listening(&ours, time_ms)?);
        }
        Ok(())
    }

    fn examine(
        &self,
        process: Process,
        of: (&Group, &[u32]),
        (tables, judged): (&mut HashMap<String, Vec<Mount>>, &mut HashSet<String>),
        ours: &mut HashMap<u64, Process>,
        time_ms: i64,
    ) -> io::Result<Vec<Finding>> {
        // All of one moment: a process that leaves its mount namespace or executes something else meanwhile would look as if it ran a stranger's
        // file.
        let mut tries = 0_u32;
        let (namespace, executable, file, table) = loop {
            let (namespace, executable) = (process.namespace("mnt")?, process.executable()?);
            let file = identity(&process.file("exe"));
            let table = if tables.contains_key(&namespace) { None } else { Some(process.mounts()?) };
            tries = tries.saturating_add(1);
            if (process.namespace("mnt")? == namespace && process.executable()? == executable) || tries >= TRIES {
                break (namespace, executable, file, table);
            }
        };
        if let (Some(known), Ok(file)) = (self.runtime.get(&process), &file)
            && file == known
        {
            return Ok(Vec::new());
        }
        if let Some(table) = table {
            tables.insert(namespace.clone(), table);
        }
        let mounts = tables.get(&namespace).map(Vec::as_slice).unwrap_or_default();
        let through = mounts.iter().find(|mount| mount.id == executable.mount);
        // A program of the host, in the namespace of the runtime: it joins an instance. Nothing of the image runs there, and nothing in memory.
        let is_hosts = || through.is_some_and(|mount| !self.image.contains(&mount.device));
        let mut found = Vec::new();
        let say = |kind: Kind, what: &str, place: &str| {
            Finding::new(kind, what, place, time_ms).of(process.pid, &executable.path)
        };
        let put_here = |parent: Process| {
            let what = "was put into the container's namespaces from outside";
            say(Kind::NewNamespace, what, &format!("/proc/{}", parent.pid))
        };
        if self.outer.as_ref() == Some(&namespace) && is_hosts() {
            found.extend(self.put_by(process, of)?.map(put_here));
            return Ok(found);
        }
        // On its way from outside into the container: it runs a runtime's program, to which no mount inside leads. One inside can do so by the
        // `exe` of such a process: it hides what it runs then, and not what it listens on, or who traces it.
        let passes = through.is_none() && file.is_ok_and(|file| self.is_a_runtimes(file));
        let status = process.status()?;
        if !passes {
            found.extend(self.put_by(process, of)?.map(put_here));
            for (name, before) in &self.namespaces {
                let now = process.namespace(name)?;
                if now != *before {
                    let what = format!("in another {name} namespace than the container's");
                    found.push(say(Kind::NewNamespace, &what, &now));
                }
            }
            if through.is_none_or(|mount| !self.image.contains(&mount.device)) {
                found.push(stranger(process.pid, &executable, mounts, time_ms));
            }
            // A copy of the table in a new namespace has the same mounts under other numbers.
            if judged.insert(namespace) {
                let known: HashSet<(&str, &str)> =
                    self.mounts.iter().map(|mount| (mount.device.as_str(), mount.place.as_str())).collect();
                for mount in
                    mounts.iter().filter(|mount| !known.contains(&(mount.device.as_str(), mount.place.as_str())))
                {
                    found.push(say(Kind::NewMount, &format!("a new mount ({})", mount.kind), &mount.place));
                }
            }
            let gained = status.capabilities & !self.capabilities;
            if gained != 0 {
                let what = format!("has capabilities {gained:#x} that the workload began without");
                found.push(say(Kind::CapabilityGained, &what, ""));
            }
        }
        if status.tracer != 0 {
            found.push(say(Kind::Ptrace, "is traced by another process", &format!("/proc/{}", status.tracer)));
        }
        for socket in process.sockets()? {
            ours.insert(socket, process);
        }
        Ok(found)
    }

    /// Its parent, if it was put here from outside.
    fn put_by(&self, process: Process, (group, all): (&Group, &[u32])) -> io::Result<Option<Process>> {
        if let Some(parent) = self.parent_outside(process, all)? {
            return Ok(Some(parent));
        }
        // Whoever put it here may have ended: then it has got a parent inside.
        Ok(if self.in_another_cgroup(process, group)? { Some(process.parent()?.unwrap_or(process)) } else { None })
    }

    /// Whether it is in none of the run's cgroups. All that the workload starts is born there, and who joins an instance goes there first.
    fn in_another_cgroup(&self, process: Process, group: &Group) -> io::Result<bool> {
        let Some(cgroup) = group.elsewhere(process.pid)? else { return Ok(false) };
        if self.moved.as_ref().is_some_and(|moved| cgroup.starts_with(moved)) {
            return Ok(false);
        }
        // At the top of all, as it is seen from here.
        let forked = cgroup.components().any(|part| matches!(part, Component::Normal(_))) || process.age() > FORKED;
        Ok(forked && process.lives())
    }

    /// Its parent, if that is outside and neither of the runtime's own processes nor one that joins an instance. What the workload starts has its
    /// parents inside, and whoever loses his inside gets another one there.
    fn parent_outside(&self, process: Process, all: &[u32]) -> io::Result<Option<Process>> {
        let Some(parent) = process.parent()? else { return Ok(None) };
        if all.binary_search(&parent.pid).is_ok() || self.runtime.contains_key(&parent) {
            return Ok(None);
        }
        // Or one that was born after the others were listed.
        let born = parent.namespace("pid").is_ok_and(|name| self.namespaces.get("pid") == Some(&name));
        let joins = identity(&parent.file("exe")).is_ok_and(|file| self.is_a_runtimes(file));
        Ok((!born && !joins && process.parent()? == Some(parent)).then_some(parent))
    }

    /// Whether a file is one of the runtime's programs, or this very program, also as it was replaced since.
    fn is_a_runtimes(&self, file: Identity) -> bool {
        let installed = || {
            let own = std::fs::read_link("/proc/self/exe").ok()?;
            let own = own.to_str()?;
            identity(own.strip_suffix(" (deleted)").unwrap_or(own)).ok()
        };
        self.programs.contains(&file) || installed() == Some(file)
    }

    fn listening(&self, ours: &HashMap<u64, Process>, time_ms: i64) -> io::Result<Vec<Finding>> {
        // In the container's network, and in those of processes that left it.
        let mut seen: HashSet<String> = HashSet::new();
        let mut all = Vec::new();
        for process in ours.values().copied().collect::<HashSet<_>>() {
            let Some(namespace) = if_there(process.namespace("net"))? else { continue };
            if seen.contains(&namespace) {
                continue;
            }
            // Of one that has ended meanwhile nothing is known; another one may be in the same network.
            if let Some(found) = sockets::listening(process)? {
                seen.insert(namespace);
                all.extend(found);
            }
        }
        let own = all.into_iter().filter_map(|socket| Some((ours.get(&socket.socket)?, socket)));
        let finding = |(process, socket): (&Process, sockets::Listening)| {
            let what = format!("listens on {} port {}", socket.protocol, socket.address.port());
            let path = process.executable().map_or_else(|_| "unknown".into(), |executable| executable.path);
            Finding::new(Kind::ListeningSocket, &what, &socket.address.to_string(), time_ms).of(process.pid, &path)
        };
        Ok(own.map(finding).collect())
    }
}

/// The container that a nested runtime has made, by a process in it, and the capabilities that its workload begins with: its root is not the
/// machine's (`table`, in the namespace `outer`), and the image is there.
fn container(
    candidates: Vec<u32>,
    init: Process,
    (table, outer): (&[Mount], &str),
    squashfs: &Mount,
    awaited: &mut Awaited,
) -> io::Result<Option<(Inside, u64)>> {
    let machine = root(table).map(|root| root.device.as_str());
    let mut waiting = None;
    for pid in candidates {
        let Some(process) = Process::of(pid)?.filter(|process| *process != init) else { continue };
        // What cannot be looked at has ended, or is not the first one.
        if process.namespace("mnt").map_or(true, |namespace| namespace == outer) {
            continue;
        }
        let (Ok(executable), Ok(mounts)) = (process.executable(), process.mounts()) else {
            awaited.look_again();
            continue;
        };
        let inside = Inside { process, executable, mounts };
        let Some(top) = root(&inside.mounts) else { continue };
        if Some(top.device.as_str()) == machine {
            continue;
        }
        // Or the image's folders lie on a root in memory, as with Apptainer's `--underlay`.
        let is_image = |mount: &Mount| mount.device == squashfs.device && mount.place != squashfs.place;
        let has_image =
            if inside.runs_own() { inside.through().is_some_and(is_image) } else { inside.mounts.iter().any(is_image) };
        if !has_image && !top.kind.contains("fuse") && top.kind != "overlay" {
            continue;
        }
        let Ok(status) = process.status() else {
            awaited.look_again();
            continue;
        };
        if inside.runs_own() {
            return Ok(Some((inside, status.capabilities)));
        }
        // What the runtime itself may do there is not the workload's.
        waiting = waiting.or(Some(inside));
    }
    Ok(waiting.filter(|inside| awaited.still(inside)).map(|inside| (inside, 0)))
}

/// The runtime's own processes around a container: programs of the host, in the namespaces of those that made it. A process of the workload
/// that has left the container is in none of these. The mount namespaces of all those.
fn own(
    group: &Group,
    inside: &Inside,
    (init, outer): (Process, &str),
    runtime: &mut HashMap<Process, Identity>,
) -> io::Result<HashSet<String>> {
    let container = inside.process.namespace("mnt")?;
    let mut namespaces = HashSet::from([outer.to_owned()]);
    let mut at = inside.process;
    for _ in 0..DEPTH {
        let Some(parent) = at.parent()?.filter(|parent| *parent != init) else { break };
        at = parent;
        namespaces.extend(if_there(parent.namespace("mnt"))?);
    }
    namespaces.remove(&container);
    for pid in group.processes()? {
        let Some(process) = Process::of(pid)? else { continue };
        // What cannot be read is not taken for the runtime's.
        let Ok(namespace) = process.namespace("mnt") else { continue };
        let Ok(executable) = process.executable() else { continue };
        let waits = process == inside.process && !inside.runs_own();
        // A program of the host was opened before its process made a namespace of its own: its mount is in no table any more.
        let is_hosts =
            inside.mounts.iter().all(|mount| mount.id != executable.mount) && !executable.path.starts_with("/memfd:");
        if (namespaces.contains(&namespace) && is_hosts) || waits {
            runtime.insert(process, identity(&process.file("exe"))?);
        }
    }
    Ok(namespaces)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_has_worked_or_waits_to() {
        assert_eq!(work([u32::MAX].into_iter()), Some(0), "one that has ended");
        let mut works = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        while work([works.id()].into_iter()).is_some() {}
        rustix::process::kill_process(rustix::process::Pid::from_child(&works), rustix::process::Signal::STOP).unwrap();
        while work([works.id()].into_iter()).is_none() {}
        works.kill().unwrap();
        works.wait().unwrap();
    }
}
