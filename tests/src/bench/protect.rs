//! Protecting an image: against the least work that it takes, and against Apptainer's own encryption.

use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use countersign_sif::dsse::OwnerKey;
use countersign_sif::escrow::Escrow;
use countersign_sif::protect::{Plan, Squashfs, protect, squashfs_of};
use countersign_sif::verity::BLOCK;
use countersign_sif::xts::{KEY, SECTOR, VolumeKey, Xts};
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use ring::digest::{Context, SHA256, digest};

use super::measure::timed_in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["protect", "protect-vs-apptainer"], measure };

const ROUNDS: usize = 5;
/// Bytes of the file system, where there is room.
const SIZE: usize = 1 << 30;
/// Bytes of the one that Apptainer encrypts too: it keeps five copies on the way.
const PEER: usize = SIZE / 2;
/// Bytes that the floor takes at once: what stays in a core's cache.
const CHUNK: usize = 256 << 10;
/// A file system in memory: disks are slower than what is measured.
const MEMORY: &str = "/dev/shm";

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let mut owner = Owner::new(bench)?;
    let mut rows = vec![against_floor(&mut owner)?];
    match apptainer() {
        Ok(program) => rows.push(against_apptainer(&mut owner, &program)?),
        Err(why) => writeln!(anstream::stderr().lock(), "protect-vs-apptainer: skipped: {why}")?,
    }
    Ok(rows)
}

/// Who protects, and where.
struct Owner {
    folder: tempfile::TempDir,
    in_memory: bool,
    signer: OwnerKey,
    escrow: Escrow,
    escrow_pem: PathBuf,
}

impl Owner {
    fn new(bench: &Bench) -> anyhow::Result<Self> {
        let in_memory = Path::new(MEMORY).is_dir();
        let parent = if in_memory { PathBuf::from(MEMORY) } else { bench.folder("protect")? };
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir_in(parent)?;
        let pem = Rsa::generate(3072)?.public_key_to_pem_pkcs1()?;
        let escrow_pem = folder.path().join("escrow.pub.pem");
        fs::write(&escrow_pem, &pem)?;
        let signer = OwnerKey::from_pem(&PKey::generate_ed25519()?.private_key_to_pem_pkcs8()?)?;
        Ok(Self { escrow: Escrow::from_pem(&pem)?, folder, in_memory, signer, escrow_pem })
    }

    /// `wanted`, or the half of it again and again until `copies` of it leave half of the room free.
    fn fitting(&self, wanted: usize, copies: u64) -> anyhow::Result<usize> {
        let found = rustix::fs::statvfs(self.folder.path())?;
        let mut room = found.f_bavail.saturating_mul(found.f_frsize);
        if self.in_memory {
            room = room.min(available_memory()?);
        }
        let most = usize::try_from(room.checked_div(copies.saturating_mul(2)).unwrap_or(0))?;
        let mut size = wanted;
        while size > most {
            size /= 2;
        }
        ensure!(size >= CHUNK.saturating_mul(64), "no room in {}", self.folder.path().display());
        Ok(size)
    }

    fn place(&self, size: usize) -> String {
        let place = if self.in_memory { MEMORY } else { "a disk" };
        format!("{} MiB that nobody can compress, on {place}", size >> 20)
    }

    /// A squashfs of `size` bytes: the superblock of a small one, and noise. What is in it makes no difference here.
    fn squashfs(&self, size: usize) -> anyhow::Result<Squashfs> {
        let (empty, target) = (self.folder.path().join("empty"), self.folder.path().join("source.sqfs"));
        fs::create_dir_all(&empty)?;
        let small = squashfs_of(&empty, self.folder.path()).context("mksquashfs")?;
        let mut bytes = vec![0; usize::try_from(small.length())?];
        small.read_exact_at(&mut bytes, 0)?;
        noise(&target, size)?;
        fs::File::options().write(true).open(&target)?.write_all_at(&bytes, 0)?;
        Ok(squashfs_of(&target, self.folder.path())?)
    }

    /// Seconds that `protect` takes.
    fn protect(&self, squashfs: &Squashfs) -> anyhow::Result<f64> {
        let output = self.folder.path().join("app.sif");
        if output.exists() {
            fs::remove_file(&output)?;
        }
        let (policy, time) = (b"policy".as_slice(), 0);
        let plan = Plan { squashfs, policy, signer: &self.signer, escrow: &self.escrow, output: &output, time };
        let started = Instant::now();
        protect(&plan, |_, _| {})?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// A file of random bytes.
fn noise(path: &Path, size: usize) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut block = vec![0; 1 << 20];
    for _ in (0..size).step_by(block.len()) {
        openssl::rand::rand_bytes(&mut block)?;
        file.write_all(&block)?;
    }
    Ok(())
}

fn available_memory() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kib.saturating_mul(1024))
}

fn gigabytes(size: usize) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(size >> 10)?) * 1024.0 / 1e9)
}

fn against_floor(owner: &mut Owner) -> anyhow::Result<Row> {
    let size = owner.fitting(SIZE, 2)?;
    let squashfs = owner.squashfs(size)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut key = VolumeKey::new([0; KEY]);
    openssl::rand::rand_bytes(key.as_mut_slice())?;
    let calls: &mut [super::measure::Timed<'_>] =
        &mut [&mut || owner.protect(&squashfs), &mut || floor(&key, size, threads)];
    let medians = timed_in_turn(ROUNDS, calls)?;
    let [value, floor] = medians.as_slice() else { bail!("two medians") };
    let gigabytes = gigabytes(size)?;
    Ok(Row {
        name: "protect".to_owned(),
        value: gigabytes / value,
        unit: "GB/s",
        against: format!("AES-XTS once and SHA-256 twice, {threads} threads"),
        against_value: gigabytes / floor,
        goal: Goal::AtLeast(0.6),
        samples: ROUNDS,
        note: format!("{}; {value:.2} s, the floor {floor:.2} s", owner.place(size)),
    })
}

/// The work that no program can leave out, from memory and to memory, spread evenly over the threads; seconds.
fn floor(key: &VolumeKey, size: usize, threads: usize) -> anyhow::Result<f64> {
    let chunks = u64::try_from((size / CHUNK).div_ceil(threads))?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| share(key, chunks))).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread ended"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(started.elapsed().as_secs_f64())
}

fn share(key: &VolumeKey, chunks: u64) -> anyhow::Result<()> {
    let mut xts = Xts::encryptor(key)?;
    let (plain, mut cipher) = (vec![7; CHUNK], vec![0; CHUNK]);
    let mut whole = Context::new(&SHA256);
    let sectors = u64::try_from(CHUNK / SECTOR)?;
    for chunk in 0..chunks {
        xts.run(chunk.saturating_mul(sectors), black_box(&plain), &mut cipher)?;
        for block in cipher.chunks(BLOCK) {
            black_box(digest(&SHA256, block));
        }
        whole.update(&cipher);
    }
    black_box(whole.finish());
    Ok(())
}

/// The program that scripts/apptainer.sh built, or why there is none.
fn apptainer() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/apptainer.sh");
    let found = Command::new(&script).arg("path").output().map_err(|e| format!("{}: {e}", script.display()))?;
    let program = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if program.is_empty() {
        Err("no Apptainer (scripts/apptainer.sh build makes one)".to_owned())
    } else {
        Ok(program.into())
    }
}

/// Apptainer encrypts with gocryptfs where it may not use dm-crypt. What a build takes without encryption is subtracted.
fn against_apptainer(owner: &mut Owner, program: &Path) -> anyhow::Result<Row> {
    let size = owner.fitting(PEER, 5)?;
    let squashfs = owner.squashfs(size)?;
    let rootfs = owner.folder.path().join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    noise(&rootfs.join("noise"), size)?;
    let encrypt = ["--encrypt".to_owned(), format!("--pem-path={}", owner.escrow_pem.display())];
    let build = |more: &[String]| build(program, owner.folder.path(), &rootfs, more);
    let medians = timed_in_turn(ROUNDS, &mut [&mut || owner.protect(&squashfs)])?;
    let [own] = medians.as_slice() else { bail!("one median") };
    // Half a minute: once.
    let (plain, encrypted) = (build(&[])?, build(&encrypt)?);
    let step = encrypted - plain;
    ensure!(step > 0.0, "encryption took no time: {encrypted:.2} s with it, {plain:.2} s without");
    let gigabytes = gigabytes(size)?;
    Ok(Row {
        name: "protect-vs-apptainer".to_owned(),
        value: gigabytes / own,
        unit: "GB/s",
        against: "the encryption in apptainer build --encrypt".to_owned(),
        against_value: gigabytes / step,
        goal: Goal::AtLeast(20.0),
        samples: 1,
        note: format!(
            "{}; {own:.2} s; as an ordinary user (gocryptfs) apptainer build takes {encrypted:.1} s with --encrypt and {plain:.1} s without",
            owner.place(size)
        ),
    })
}

/// Seconds that a build takes, uncompressed.
fn build(program: &Path, folder: &Path, rootfs: &Path, more: &[String]) -> anyhow::Result<f64> {
    let mut command = Command::new(program);
    // As root it would use dm-crypt, which few machines let a container have.
    command.env("COUNTERSIGN_ROOT_PROGRAM", "/usr/bin/unshare").args(["--user", "--map-user=1000", "--map-group=1000"]);
    command.args(["/usr/bin/apptainer", "build", "--userns", "--force", "--mksquashfs-args=-noD -noF"]).args(more);
    command.arg(folder.join("peer.sif")).arg(rootfs).stdin(Stdio::null());
    // Its copies go beside the image, and nothing into anybody's home.
    command.envs(["HOME", "APPTAINER_TMPDIR", "APPTAINER_CONFIGDIR", "APPTAINER_CACHEDIR"].map(|name| (name, folder)));
    let started = Instant::now();
    let output = command.output().context("Apptainer")?;
    let took = started.elapsed().as_secs_f64();
    ensure!(output.status.success(), "apptainer build: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(took)
}
