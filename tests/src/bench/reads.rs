//! Large images: that their size costs no time at the start, and how fast they are read.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use countersign_sif::xts::{KEY, VolumeKey, Xts};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::measure::{ms, timed_in_turn};
use super::monitor::Run;
use super::plain::{Plain, first_byte};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::{SECRET, Site};

pub(super) const TOPIC: Topic = Topic { rows: &["start-flat", "read-seq", "read-rand"], measure };

/// Starts of each image, and fresh mounts for random reads.
const ROUNDS: usize = 15;
/// Sequential readings, each of a fresh mount.
const READINGS: usize = 5;
/// The small image, MB.
const SMALL: u32 = 100;
/// The large one, and what is taken where memory does not suffice, MB.
const LARGE: [u32; 2] = [4_000, 1_000];
/// Bytes that are read one after the other.
const SEQUENTIAL: u64 = 1 << 29;
/// Bytes of one read of them.
const PIECE: usize = 1 << 20;
/// What the floor takes at once: what stays in a core's cache.
const CHUNK: usize = 256 << 10;
/// Random reads on one mount.
const READS: u64 = 6_000;
/// Bytes of each.
const READ: u64 = 4096;

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    // In memory: disks here are slower than what is measured.
    let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir_in("/dev/shm")?;
    let [wanted, less] = LARGE;
    let large = if free_mb()? > u64::from(wanted).saturating_mul(3) { wanted } else { less };
    let site = bench.site()?;
    let small_image = image(site, folder.path(), SMALL)?;
    let large_image = image(site, folder.path(), large)?;
    let mut rows = vec![flat(site, &small_image, &large_image, large)?, sequential(site, &large_image)?];
    std::fs::remove_file(large_image.sif)?;
    let plain = Plain::of(site.tools().clone(), small_image.squashfs.clone(), folder.path())?;
    rows.push(random(site, &small_image, &plain)?);
    Ok(rows)
}

/// Memory that is to be had, MB.
fn free_mb() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

/// A registered image, and its file system in clear text.
struct Images {
    sif: PathBuf,
    squashfs: PathBuf,
}

/// The site's files and one more, `/noise`, of so many MB that nobody can compress.
fn image(site: &Site, folder: &Path, megabytes: u32) -> anyhow::Result<Images> {
    let (squashfs, sif) = (folder.join(format!("{megabytes}.sqfs")), folder.join(format!("{megabytes}.sif")));
    let noise = format!("noise f 444 0 0 head -c {megabytes}000000 /dev/urandom");
    let (from, to) = (site.arg("rootfs"), squashfs.display().to_string());
    let options = ["-all-root", "-quiet", "-no-progress", "-noD", "-noF", "-no-duplicates", "-no-xattrs"];
    site.tools().ok("mksquashfs", &[&[from.as_str(), &to, "-p", &noise], &options[..]].concat())?;
    site.protect_from(&to, &sif.display().to_string())?;
    // Of the large one nobody reads the clear text: memory is short.
    if megabytes > SMALL {
        std::fs::remove_file(&squashfs)?;
    }
    Ok(Images { sif, squashfs })
}

fn flat(site: &Site, small: &Images, large: &Images, megabytes: u32) -> anyhow::Result<Row> {
    let want = format!("{SECRET}\n");
    let start = |images: &Images| {
        let mut command = site.tools().command("supervisor");
        // An absolute path stays what it is in the site's folder.
        command.args(site.run_arguments(&images.sif.display().to_string(), &["--runtime", "builtin"]));
        first_byte(command, Instant::now(), &want)
    };
    let medians = timed_in_turn(ROUNDS, &mut [&mut || start(large), &mut || start(small)])?;
    let [large, small] = medians.as_slice() else { bail!("two medians") };
    let [wanted, _] = LARGE;
    let less = if megabytes < wanted { format!("; {wanted} MB need more memory than is free") } else { String::new() };
    Ok(Row {
        name: "start-flat".to_owned(),
        value: *large,
        unit: "ms",
        against: format!("the same with {SMALL} MB"),
        against_value: *small,
        goal: Goal::AtMost(1.1),
        samples: ROUNDS,
        note: format!("an image of {megabytes} MB with as many files; both on tmpfs{less}"),
    })
}

fn sequential(site: &Site, images: &Images) -> anyhow::Result<Row> {
    let image = images.sif.display().to_string();
    let mut key = VolumeKey::new([0; KEY]);
    openssl::rand::rand_bytes(key.as_mut_slice())?;
    let medians = timed_in_turn(READINGS, &mut [&mut || read_all(site, &image), &mut || floor(&key)])?;
    let [value, floor] = medians.as_slice() else { bail!("two medians") };
    Ok(Row {
        name: "read-seq".to_owned(),
        value: *value,
        unit: "GB/s",
        against: "SHA-256 + AES-XTS on one core".to_owned(),
        against_value: *floor,
        goal: Goal::AtLeast(0.7),
        samples: READINGS,
        note: "the file that the decryptor serves, through squashfuse's own descriptor, on a fresh mount".to_owned(),
    })
}

fn rate(bytes: u64, started: Instant) -> anyhow::Result<f64> {
    let kib = f64::from(u32::try_from(bytes >> 10)?);
    Ok(kib * 1024.0 / started.elapsed().as_secs_f64() / 1e9)
}

/// GB/s of the decrypted file that squashfuse has open.
fn read_all(site: &Site, image: &str) -> anyhow::Result<f64> {
    let run = Run::start(site, image, "echo ready; exec sleep 1000")?;
    let file = served(run.child.id())?;
    let mut buffer = vec![0; PIECE];
    let started = Instant::now();
    // Not its very beginning, which squashfuse has read.
    let from = u64::try_from(PIECE)?;
    for at in (from..from.saturating_add(SEQUENTIAL)).step_by(PIECE) {
        file.read_exact_at(&mut buffer, at)?;
    }
    let rate = rate(SEQUENTIAL, started)?;
    ensure!(buffer.iter().any(|byte| *byte != 0), "nothing was read");
    Ok(rate)
}

/// The decrypted file: a copy of the descriptor of the squashfuse below this process. It cannot be opened again.
fn served(supervisor: u32) -> anyhow::Result<File> {
    let parent = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()
    };
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !command.starts_with("squashfuse") || parent(pid).and_then(parent) != Some(supervisor) {
            continue;
        }
        for fd in std::fs::read_dir(entry.path().join("fd"))?.flatten() {
            if std::fs::read_link(fd.path()).is_ok_and(|target| target.ends_with("rootfs.sqfs")) {
                let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id")?;
                let process = pidfd_open(pid, PidfdFlags::empty())?;
                let number = fd.file_name().to_string_lossy().parse()?;
                return Ok(File::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?));
            }
        }
    }
    bail!("no squashfuse below the supervisor has the image open")
}

/// GB/s at which one core hashes and decrypts, from memory and to memory.
fn floor(key: &VolumeKey) -> anyhow::Result<f64> {
    let mut xts = Xts::decryptor(key)?;
    let (cipher, mut plain) = (vec![7; CHUNK], vec![0; CHUNK]);
    let started = Instant::now();
    for first in (0..SEQUENTIAL / 512).step_by(CHUNK / 512) {
        for block in cipher.chunks(4096) {
            black_box(ring::digest::digest(&ring::digest::SHA256, block));
        }
        xts.run(first, black_box(&cipher), &mut plain)?;
        black_box(&mut plain);
    }
    rate(SEQUENTIAL, started)
}

fn random(site: &Site, images: &Images, plain: &Plain) -> anyhow::Result<Row> {
    let image = images.sif.display().to_string();
    let ours = || {
        let mut run = Run::start(site, &image, "echo ready; exec sleep 1000")?;
        reads(&PathBuf::from(format!("/proc/{}/root/noise", run.init()?)))
    };
    let theirs = || plain.mounted(|root| reads(&root.join("noise")));
    let ((_, one), (_, other)) = (ours()?, theirs()?);
    ensure!(one == other, "the peer reads other bytes");
    let medians = timed_in_turn(ROUNDS, &mut [&mut || Ok(ours()?.0), &mut || Ok(theirs()?.0)])?;
    let [value, peer] = medians.as_slice() else { bail!("two medians") };
    let per_second = |ms: &f64| u32::try_from(READS).map(|reads| f64::from(reads) * 1e3 / ms);
    Ok(Row {
        name: "read-rand".to_owned(),
        value: per_second(value)?,
        unit: "per second",
        against: "squashfuse on the plain file".to_owned(),
        against_value: per_second(peer)?,
        goal: Goal::AtLeast(0.8),
        samples: ROUNDS,
        note: format!("{READS} reads of 4 KiB at random places of a file of {SMALL} MB, each time on a fresh mount"),
    })
}

/// Reads at places that are the same every time; milliseconds, and what was read as one number.
fn reads(path: &Path) -> anyhow::Result<(f64, u64)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let blocks = file.metadata()?.len() / READ;
    let mut buffer = [0; 4096];
    let (mut state, mut sum) = (1_u64, 0_u64);
    let started = Instant::now();
    for _ in 0..READS {
        // Knuth's linear congruences.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 16).checked_rem(blocks).unwrap_or(0).saturating_mul(READ);
        file.read_exact_at(&mut buffer, at)?;
        sum = sum.rotate_left(1).wrapping_add(u64::from(buffer[0]));
    }
    Ok((ms(started.elapsed()), sum))
}
