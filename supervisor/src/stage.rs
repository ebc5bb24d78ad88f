//! The stage: a process in a user and mount namespace of its own, in which the decrypted file system is mounted and the workload runs.
//!
//! It never sees the key. squashfuse is started in the decryptor's mount, which is detached at once: no path leads to the decrypted image. All
//! that is before the key is asked for; squashfuse's opening of the image waits for the decryptor. Nothing is made outside of its namespace, so
//! nothing is left when it is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use countersign_wire::obligations::RuntimeFlag;
use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, fadvise, fstat, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change, move_mount, unmount,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::exit::{Failure, Stage};
use crate::runtime::{Chosen, Ids, Place, Share, Task, Waiting};
use crate::served::FILE;
use crate::watch::all_signals;

/// Folder of the stage's own places, over the state folder. What shows the machine to a runtime covers it: nobody finds the root in its first
/// place.
const OWN: &str = ".own";
/// How long squashfuse may take to mount.
const MOUNT: Duration = Duration::from_secs(20);
/// Most bytes of one request to the decryptor: squashfs' blocks of 128 KiB touch 33 pages, which two threads decrypt at the same time.
const REQUEST: usize = 17 * 4096;
/// How long it may take to end after its last unmount.
const LEAVE: Duration = Duration::from_secs(1);

/// What the supervisor tells it first; the user's standard input comes along, behind it the mounts of the binds, and behind those the entrance to
/// the run's cgroup and its folder, if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What to run.
    pub(crate) task: Task,
    /// The ids that the workload sees; this process's own if not given.
    pub(crate) ids: Option<Ids>,
    /// The host's state folder: the run's mounts go over it, so that it is out of the workload's reach.
    pub(crate) folder: PathBuf,
    /// How many mounts come along, for [`place_of_bind`].
    pub(crate) binds: usize,
    /// What the runtime shall take the container's name from.
    pub(crate) name: OsString,
    /// What the workload gets of the user's terminal.
    pub(crate) terminal: Share,
}

/// What the supervisor tells it later.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// By which runtime the workload is to run.
    Runtime(Chosen),
    /// The decryptor serves: make everything but the workload. Policy demands these flags of the runtime.
    Make(Vec<RuntimeFlag>),
    /// Run it.
    Start,
    /// It is watched: what waits for that may run.
    Watched,
    /// Send the workload this signal.
    Signal(u8),
    /// Send the workload and what it runs (its process group) the signal of a terminal's key.
    Key(u8),
}

/// What it tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Mounted: the FUSE descriptor comes along, for the decryptor. This process is about to open the decrypted image.
    Fuse(u32),
    /// The workload is running; the container's first process has this id.
    Started(u32),
    /// The workload ended with this exit code.
    Ended(u8),
    /// It was not started.
    Failed(Failure),
}

/// Where the stage has a bind that came as a mount, below its folder.
pub(crate) fn place_of_bind(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!(".bind-{n}"))
}

/// Runs the stage on its standard input.
pub(crate) fn main() -> u8 {
    let Ok(channel) = Channel::from_stdin() else { return Stage::Start.code() };
    // They are the workload's, also where a batch system sends them to all processes of a job. What is started here hears them.
    let Ok(_unheard) = countersign_sys::signals(&all_signals()) else { return Stage::Start.code() };
    match play(&channel) {
        Ok(()) => 0,
        Err(failure) => {
            let code = failure.stage.code();
            let _ = channel.send(&Report::Failed(failure), &[]);
            code
        }
    }
}

pub(crate) fn namespaces(e: impl std::fmt::Display) -> Failure {
    let hint =
        "user namespaces and /dev/fuse are needed: check kernel.unprivileged_userns_clone and the mode of /dev/fuse";
    Failure::new(Stage::Namespaces, format!("a private mount cannot be made: {e}"), hint)
}

pub(crate) fn start(e: impl std::fmt::Display) -> Failure {
    Failure::new(
        Stage::Start,
        format!("the workload cannot be started: {e}"),
        "supervisor inspect --full IMAGE checks the image",
    )
}

fn play(channel: &Channel) -> Result<(), Failure> {
    let Some((order, fds)) = channel.receive::<Order>().map_err(start)? else { return Ok(()) };
    let mut fds = fds.into_iter();
    let stdin = fds.next().ok_or_else(|| start("no standard input was handed over"))?;
    let binds = fds.by_ref().take(order.binds).collect();
    let cgroup = fds.next().zip(fds.next());
    let ids = order.ids.unwrap_or_else(Ids::own);
    let places = Places::make(&order, binds)?;
    let fuse = fuse(&places.image, "countersign", &format!(",max_read={REQUEST}"))?;
    let before = device(&places.root).map_err(start)?;
    let mut squashfuse = squashfuse(&places)?;
    unmount(&places.image, UnmountFlags::DETACH).map_err(namespaces)?;
    let _ = fs::remove_dir(&places.image);
    channel.send(&Report::Fuse(squashfuse.id()), &[fuse.as_fd()]).map_err(start)?;
    drop(fuse);
    // The supervisor says by what, and when the decryptor serves; without those words the run is over.
    let Some((Word::Runtime(mut runtime), _)) = channel.receive::<Word>().map_err(start)? else { return Ok(()) };
    let place = Place { root: &places.root, shown: &places.shown, ids, terminal: order.terminal };
    // What it does before it looks for its image, it does while the key is released.
    let ready = runtime.prepare(&place, &order.task, &stdin, cgroup.as_ref())?;
    let Some((Word::Make(demanded), _)) = channel.receive::<Word>().map_err(start)? else { return Ok(()) };
    let ready = if demanded.is_empty() {
        ready
    } else {
        // Not what policy demands.
        ready.map(Waiting::end).transpose()?;
        runtime.oblige(&demanded);
        None
    };
    mounted(&mut squashfuse, &places.root, before)?;
    let _ = read_blocks_at_once(&squashfuse);
    let outcome = match ready {
        Some(ready) => {
            drop((stdin, cgroup));
            runtime.go_on(channel, ready, &place, &order.task, &squashfuse)
        }
        None => runtime.run(channel, &place, &order.task, (stdin, cgroup), &squashfuse),
    };
    // Said at once: unmounting takes its time.
    let report = match outcome {
        Ok(Some(code)) => Report::Ended(code),
        Ok(None) => return Ok(()),
        Err(failure) => Report::Failed(failure),
    };
    channel.send(&report, &[]).map_err(start)?;
    places.unmount();
    finish(&mut squashfuse);
    Ok(())
}

/// The mount points, on a file system that only this namespace has.
struct Places {
    /// Where the decryptor's file is.
    image: PathBuf,
    /// Where the container's root is mounted.
    root: PathBuf,
    /// Where another runtime than the built-in one gets it.
    shown: PathBuf,
}

/// Where another runtime than the built-in one gets the root of an image of this name, over the state folder.
pub(crate) fn shown(folder: &Path, name: &OsStr) -> PathBuf {
    folder.join("image").join(name)
}

impl Places {
    /// Enters namespaces of our own and makes them there.
    fn make(order: &Order, binds: Vec<OwnedFd>) -> Result<Self, Failure> {
        let base = &order.folder;
        countersign_sys::enter_private_namespaces().map_err(namespaces)?;
        // Nothing that is mounted here is seen elsewhere.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(namespaces)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("countersign", base, "tmpfs", flags, Some(c"mode=0700,size=64k")).map_err(namespaces)?;
        let own = base.join(OWN);
        fs::create_dir(&own).map_err(namespaces)?;
        let places = Self { image: own.join("image"), root: own.join("root"), shown: shown(base, &order.name) };
        for folder in [&places.image, &places.root] {
            fs::create_dir(folder).map_err(namespaces)?;
        }
        for (n, bind) in binds.into_iter().enumerate() {
            let place = place_of_bind(base, n);
            let kind = FileType::from_raw_mode(fstat(&bind).map_err(namespaces)?.st_mode);
            let made = if kind == FileType::Directory { fs::create_dir(&place) } else { fs::write(&place, "") };
            made.map_err(namespaces)?;
            move_mount(&bind, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(namespaces)?;
        }
        Ok(places)
    }

    /// Takes the container's root away, wherever it is.
    fn unmount(&self) {
        for place in [Some(self.root.as_path()), self.shown.parent()].into_iter().flatten() {
            let _ = unmount(place, UnmountFlags::DETACH);
        }
    }
}

/// Mounts FUSE at a folder. /dev/fuse must be opened in the namespace in which it is mounted.
pub(crate) fn fuse(folder: &Path, source: &str, options: &str) -> Result<fs::File, Failure> {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let fuse = fuse.map_err(|e| namespaces(format!("/dev/fuse: {e}")))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0{options}", fuse.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(namespaces)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(source, folder, "fuse", flags, Some(options.as_c_str())).map_err(namespaces)?;
    Ok(fuse)
}

/// Programs that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Squashfuse,
    Bubblewrap,
}

impl Program {
    /// Where it is.
    ///
    /// # Errors
    /// [`Stage::Missing`].
    pub(crate) fn find(self) -> Result<PathBuf, Failure> {
        let (names, package): (&[&str], &str) = match self {
            // The low-level variant has fewer round trips.
            Self::Squashfuse => (&["squashfuse_ll", "squashfuse"], "squashfuse fuse3"),
            Self::Bubblewrap => (&["bwrap"], "bubblewrap"),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = vec!["/usr/bin".into(), "/bin".into(), "/usr/local/bin".into()];
        folders.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
        let mut places = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        places.find(|path| path.is_file()).ok_or_else(|| {
            let name = names.last().copied().unwrap_or_default();
            Failure::new(Stage::Missing, format!("{name} is not installed"), format!("apt-get install {package}"))
        })
    }
}

pub(crate) fn missing(program: &Path, e: &io::Error) -> Failure {
    Failure::new(Stage::Missing, format!("{} cannot be started: {e}", program.display()), "supervisor doctor")
}

/// Starts squashfuse, which opens the image as soon as the decryptor lets it. It finds it by a descriptor, which needs no place.
fn squashfuse(places: &Places) -> Result<Child, Failure> {
    let program = Program::Squashfuse.find()?;
    // Without O_PATH it would be a request, which nobody answers yet.
    let folder = open(&places.image, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(namespaces)?;
    let image = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(FILE);
    let mut command = Command::new(&program);
    countersign_sys::end_with_parent(&mut command);
    countersign_sys::ignore_signals(&mut command, all_signals());
    command.arg("-f").args(["-o", "ro,nosuid,nodev"]).arg(image).arg(&places.root);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|e| missing(&program, &e))
}

fn device(path: &Path) -> rustix::io::Result<u64> {
    rustix::fs::stat(path).map(|stat| stat.st_dev)
}

/// Waits until squashfuse has mounted the root, which was on another device `before`.
fn mounted(child: &mut Child, root: &Path, before: u64) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        if device(root).is_ok_and(|now| now != before) {
            return Ok(());
        }
        if let Some(status) = child.try_wait().map_err(start)? {
            let mut words = String::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = io::Read::read_to_string(&mut io::Read::take(stderr, 4096), &mut words);
            }
            return Err(start(format!("squashfuse ended ({status}): {}", words.trim())));
        }
        if started.elapsed() > MOUNT {
            let _ = child.kill();
            return Err(start("squashfuse did not mount the file system in time"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A block of squashfs may lie on 33 pages, and of an open file the kernel reads 32 at once (128 KiB): the last one would be a request of its own,
/// which nothing is done beside. Of one that is said to be read in sequence it reads twice as many.
fn read_blocks_at_once(squashfuse: &Child) -> io::Result<()> {
    let process = Pid::from_child(squashfuse);
    let is_image = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|path| path.ends_with(FILE));
    let descriptors = fs::read_dir(format!("/proc/{}/fd", squashfuse.id()))?.flatten();
    let number = descriptors.filter(is_image).find_map(|entry| entry.file_name().to_str()?.parse().ok());
    let number = number.ok_or(io::ErrorKind::NotFound)?;
    let image = pidfd_getfd(pidfd_open(process, PidfdFlags::empty())?, number, PidfdGetfdFlags::empty())?;
    Ok(fadvise(&image, 0, None, Advice::Sequential)?)
}

/// squashfuse ends by itself after its last unmount; if not, it is ended.
fn finish(child: &mut Child) {
    let asked = Instant::now();
    while asked.elapsed() < LEAVE {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
    use super::*;

    #[test]
    fn the_image_is_found_among_a_programs_files() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            let mut child = Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap();
            let outcome = read_blocks_at_once(&child);
            child.kill().unwrap();
            child.wait().unwrap();
            outcome
        };
        match of(FILE) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return println!("skipped: {e}"),
            found => found.unwrap(),
        }
        assert_eq!(of("another").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
