//! One look at the run: its processes against what was there when the workload started.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use countersign_wire::finding::{Finding, Kind};

use super::machine::Machine;
use super::mounts::{Mount, root};
use super::process::{NAMESPACES, Process};
use super::sockets;
use crate::group::Group;

/// How often a process is read again that changes its mount namespace while it is read.
const TRIES: u32 = 4;

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// How things were when the workload started.
#[derive(Debug)]
pub(super) struct Baseline {
    /// A process that is in the container as it was set up.
    pub(super) first: Process,
    /// `major:minor` of the image.
    image: String,
    mounts: Vec<Mount>,
    /// By the names of [`NAMESPACES`], as far as they can be read.
    namespaces: HashMap<&'static str, String>,
    capabilities: u64,
    /// Processes of the runtime itself, with their executables: they wait for the container's end.
    runtime: Vec<(Process, String)>,
    /// Files of the runtime's programs: device and inode.
    programs: HashSet<(u64, u64)>,
    /// The runtime's own mount namespace, where it is not the container's: no process of the workload can enter it.
    outer: Option<String>,
    machine: Machine,
}

impl Baseline {
    /// Taken from the workload's first process once its container is set up: what it runs then lies on a mount of its own table, and with a
    /// runtime that is `nested` its mounts are not those of the run's first process. `None` while there is none, or none at hand when it is not
    /// looked for everywhere.
    pub(super) fn take(group: &Group, nested: bool, everywhere: bool) -> io::Result<Option<Self>> {
        let Some(init) = group.init().and_then(Process::of) else { return Ok(None) };
        let outer = init.namespace("mnt")?;
        let candidates = if everywhere { group.processes()? } else { group.at_hand()? };
        let others = candidates.into_iter().filter_map(Process::of).filter(|process| *process != init);
        let Some((first, mounts, image)) = others.into_iter().find_map(|process| {
            // Before what costs more to read.
            if (process.namespace("mnt").ok()? != outer) != nested {
                return None;
            }
            let (executable, mounts) = (process.executable().ok()?, process.mounts().ok()?);
            let root = root(&mounts)?;
            let through = mounts.iter().find(|mount| mount.id == executable.mount);
            // A wrapper around a nested runtime has mounts of its own too, but no image at their root; nor has a container of Apptainer's
            // `--underlay`, where the image's folders lie on a root in memory.
            let at_root = !nested || root.kind.contains("fuse") || root.kind == "overlay";
            let below = through.filter(|mount| mount.kind.contains("squashfuse"));
            let image = if at_root { root } else { below? }.device.clone();
            // A file in memory is on no mount; no runtime runs from one, so it is the workload already.
            let inside = through.is_some() || executable.path.starts_with("/memfd:");
            let set_up = inside && (process.namespace("mnt").ok()? != outer) == nested;
            set_up.then_some((process, mounts, image))
        }) else {
            return Ok(None);
        };
        // It may end while it is looked at: then another one may be the first.
        let (Ok(inside), Ok(status)) = (first.namespace("mnt"), first.status()) else { return Ok(None) };
        let processes = group.processes()?.into_iter().filter_map(Process::of);
        let waiting = init.parent().and_then(Process::of);
        let mut runtime = Vec::new();
        let mut programs: HashSet<(u64, u64)> = fs::metadata("/proc/self/exe").iter().map(identity).collect();
        for process in processes {
            let (Ok(namespace), Ok(executable)) = (process.namespace("mnt"), process.executable()) else { continue };
            // With the built-in runtime only bubblewrap's two processes are its own: whatever else is elsewhere has left the container.
            if process == init || Some(process) == waiting || (nested && namespace != inside) {
                programs.extend(fs::metadata(process.file("exe")).iter().map(identity));
                runtime.push((process, executable.path));
            }
        }
        // A workload is quick: what it may have changed already is taken from the runtime's own process where both are in one container.
        let capabilities = if nested { status.capabilities } else { status.capabilities & init.status()?.capabilities };
        let first = if nested { first } else { init };
        let mounts = if nested { mounts } else { init.mounts()? };
        let namespaces = NAMESPACES.into_iter().filter_map(|name| Some((name, first.namespace(name).ok()?))).collect();
        Ok(Some(Self {
            first,
            image,
            namespaces,
            capabilities,
            runtime,
            programs,
            outer: nested.then_some(outer),
            machine: Machine::now(),
            mounts,
        }))
    }

    /// Places of the container's mounts that are not the image, on which executables can lie.
    pub(super) fn other_mounts(&self) -> impl Iterator<Item = &str> {
        let other = self.mounts.iter().filter(|mount| mount.device != self.image && mount.kind != "proc");
        other.map(|mount| mount.place.as_str())
    }

    /// Looks once.
    pub(super) fn look(&mut self, group: &Group, time_ms: i64) -> io::Result<Vec<Finding>> {
        let mut found = self.machine.look(time_ms);
        let processes: Vec<Process> = group.processes()?.into_iter().filter_map(Process::of).collect();
        let mut tables: HashMap<String, Vec<Mount>> = HashMap::new();
        let mut ours: HashMap<u64, Process> = HashMap::new();
        for process in processes {
            // What cannot be read has ended, or does not want to be looked at.
            let outcome = self.examine(process, &mut tables, &mut ours, time_ms);
            match outcome {
                Ok(more) => found.extend(more),
                Err(_) if !process.lives() || process.is_ending() => {}
                Err(e) => {
                    let what = format!("the process cannot be examined: {e}");
                    found.push(Finding::new(Kind::ProcessNotInImage, &what, "", time_ms).of(process.pid, "unknown"));
                }
            }
        }
        if !ours.is_empty() {
            found.extend(self.listening(&ours, time_ms));
        }
        Ok(found)
    }

    fn examine(
        &self,
        process: Process,
        tables: &mut HashMap<String, Vec<Mount>>,
        ours: &mut HashMap<u64, Process>,
        time_ms: i64,
    ) -> io::Result<Vec<Finding>> {
        // All of one moment: a process that leaves its mount namespace meanwhile would look as if it ran a stranger's file.
        let mut tries = 0_u32;
        let (namespace, executable, table) = loop {
            let (namespace, executable) = (process.namespace("mnt")?, process.executable()?);
            let table = if tables.contains_key(&namespace) { None } else { Some(process.mounts()?) };
            tries = tries.saturating_add(1);
            if process.namespace("mnt")? == namespace || tries >= TRIES {
                break (namespace, executable, table);
            }
        };
        if self.runtime.iter().any(|(known, path)| *known == process && *path == executable.path) {
            return Ok(Vec::new());
        }
        let new = table.is_some();
        if let Some(table) = table {
            tables.insert(namespace.clone(), table);
        }
        let mounts = tables.get(&namespace).map(Vec::as_slice).unwrap_or_default();
        let through = mounts.iter().find(|mount| mount.id == executable.mount);
        // On its way from outside into the container (`exec instance://`), or waiting for its end. Nobody inside can run the very file of a
        // runtime's program without a mount that leads to it.
        let passes = || fs::metadata(process.file("exe")).is_ok_and(|file| self.programs.contains(&identity(&file)));
        if self.outer.as_ref() == Some(&namespace) || (through.is_none() && passes()) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut say = |kind: Kind, what: &str, place: &str| {
            found.push(Finding::new(kind, what, place, time_ms).of(process.pid, &executable.path));
        };
        for (name, before) in &self.namespaces {
            let now = process.namespace(name)?;
            if now != *before {
                say(Kind::NewNamespace, &format!("in another {name} namespace than the container's"), &now);
            }
        }
        if through.is_none_or(|mount| mount.device != self.image) {
            let place = through.map_or("on no mount of the container", |mount| mount.place.as_str());
            say(Kind::ProcessNotInImage, "runs an executable that is not in the image", place);
        }
        // A copy of the table in a new namespace has the same mounts under other numbers.
        if new {
            let known: HashSet<(&str, &str)> =
                self.mounts.iter().map(|mount| (mount.device.as_str(), mount.place.as_str())).collect();
            for mount in mounts.iter().filter(|mount| !known.contains(&(mount.device.as_str(), mount.place.as_str()))) {
                say(Kind::NewMount, &format!("a new mount ({})", mount.kind), &mount.place);
            }
        }
        let status = process.status()?;
        let gained = status.capabilities & !self.capabilities;
        if gained != 0 {
            say(Kind::CapabilityGained, &format!("has capabilities {gained:#x} that the workload began without"), "");
        }
        if status.tracer != 0 {
            say(Kind::Ptrace, "is traced by another process", &format!("/proc/{}", status.tracer));
        }
        for socket in process.sockets()? {
            ours.insert(socket, process);
        }
        Ok(found)
    }

    fn listening(&self, ours: &HashMap<u64, Process>, time_ms: i64) -> Vec<Finding> {
        // In the container's network, and in those of processes that left it.
        let mut networks: HashMap<String, Process> = HashMap::new();
        for process in ours.values() {
            if let Ok(namespace) = process.namespace("net") {
                networks.insert(namespace, *process);
            }
        }
        let all = networks.into_values().flat_map(sockets::listening);
        let own = all.filter_map(|socket| Some((ours.get(&socket.socket)?, socket)));
        let finding = |(process, socket): (&Process, sockets::Listening)| {
            let what = format!("listens on {} port {}", socket.protocol, socket.address.port());
            let path = process.executable().map_or_else(|_| "unknown".into(), |executable| executable.path);
            Finding::new(Kind::ListeningSocket, &what, &socket.address.to_string(), time_ms).of(process.pid, &path)
        };
        own.map(finding).collect()
    }
}
