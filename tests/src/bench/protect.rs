//! Protecting an image: against the least work that it takes, and against Apptainer's own encryption.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use countersign_sif::dsse::OwnerKey;
use countersign_sif::escrow::Escrow;
use countersign_sif::protect::{Plan, protect, squashfs_of};
use countersign_sif::xts::{KEY, VolumeKey, Xts};
use openssl::pkey::PKey;
use openssl::rsa::Rsa;

use super::measure::timed_in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["protect"], measure };

const ROUNDS: usize = 5;
/// Bytes of the file system.
const SIZE: usize = 1 << 30;
/// Bytes that the floor takes at once: what stays in a core's cache.
const CHUNK: usize = 256 << 10;
const THREADS: usize = 2;

fn measure(_bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    // Disks here are slower than what is measured.
    let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir_in("/dev/shm")?;
    let source = folder.path().join("source.sqfs");
    squashfs(folder.path(), &source)?;
    let squashfs = squashfs_of(&source, folder.path())?;
    let sign = PKey::generate_ed25519()?.private_key_to_pem_pkcs8()?;
    let signer = OwnerKey::from_pem(&sign)?;
    let escrow = Escrow::from_pem(&Rsa::generate(2048)?.public_key_to_pem()?)?;
    let output = folder.path().join("app.sif");
    let plan =
        Plan { squashfs: &squashfs, policy: b"policy", signer: &signer, escrow: &escrow, output: &output, time: 0 };
    let mut key = VolumeKey::new([0; KEY]);
    openssl::rand::rand_bytes(key.as_mut_slice())?;
    let medians = timed_in_turn(
        ROUNDS,
        &mut [
            &mut || {
                let _ = fs::remove_file(&output);
                let started = Instant::now();
                protect(&plan, |_, _| {})?;
                Ok(started.elapsed().as_secs_f64())
            },
            &mut || floor(&key),
        ],
    )?;
    let [value, floor] = medians.as_slice() else { bail!("two medians") };
    let rate = |seconds: f64| u32::try_from(SIZE >> 10).map(|kib| f64::from(kib) * 1024.0 / seconds / 1e9);
    Ok(vec![Row {
        name: "protect".to_owned(),
        value: rate(*value)?,
        unit: "GB/s",
        against: format!("one AES-XTS and two SHA-256 passes on {THREADS} threads"),
        against_value: rate(*floor)?,
        goal: Goal::AtLeast(0.6),
        samples: ROUNDS,
        note: "a 1 GB squashfs, everything of protect but mksquashfs; input and output on tmpfs".to_owned(),
    }])
}

/// A squashfs of [`SIZE`] bytes that nobody can compress: a superblock of a small one, and noise.
fn squashfs(folder: &Path, target: &Path) -> anyhow::Result<()> {
    let empty = folder.join("empty");
    fs::create_dir(&empty)?;
    let made = squashfs_of(&empty, folder).context("mksquashfs")?;
    let mut bytes = vec![0; usize::try_from(made.length())?];
    made.read_exact_at(&mut bytes, 0)?;
    let file = fs::File::create(target)?;
    let mut noise = vec![0; 1 << 20];
    openssl::rand::rand_bytes(&mut noise)?;
    for at in (0..SIZE).step_by(noise.len()) {
        file.write_all_at(&noise, u64::try_from(at)?)?;
    }
    file.write_all_at(&bytes, 0)?;
    ensure!(file.metadata()?.len() == u64::try_from(SIZE)?, "another size");
    Ok(())
}

/// The work that no program can leave out, from memory and to memory, spread evenly over the threads; seconds.
fn floor(key: &VolumeKey) -> anyhow::Result<f64> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| share(key))).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread ended"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(started.elapsed().as_secs_f64())
}

fn share(key: &VolumeKey) -> anyhow::Result<()> {
    let mut xts = Xts::encryptor(key)?;
    let (plain, mut cipher) = (vec![7; CHUNK], vec![0; CHUNK]);
    let mut whole = ring::digest::Context::new(&ring::digest::SHA256);
    let sectors = u64::try_from(CHUNK / 512)?;
    for n in 0..u64::try_from(SIZE / THREADS / CHUNK)? {
        xts.run(n.saturating_mul(sectors), &plain, &mut cipher)?;
        for block in cipher.chunks(4096) {
            std::hint::black_box(ring::digest::digest(&ring::digest::SHA256, block));
        }
        whole.update(&cipher);
    }
    std::hint::black_box(whole.finish());
    Ok(())
}
