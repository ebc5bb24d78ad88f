//! Image encryption, against OpenSSL's own speed on the same sectors.

use std::hint::black_box;

use anyhow::{Context as _, bail, ensure};
use countersign_sif::xts::{KEY, SECTOR, VolumeKey, Xts};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;

use super::measure::in_turn;
use super::report::{Goal, Row};
use super::{Bench, Topic};

pub(super) const TOPIC: Topic = Topic { rows: &["xts"], measure };

const ROUNDS: usize = 501;
/// Bytes encrypted at once: what stays in a core's cache.
const BYTES: usize = 256 * 1024;

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let mut key = VolumeKey::new([0; KEY]);
    openssl::rand::rand_bytes(key.as_mut_slice())?;
    let mut plain = vec![0; BYTES];
    openssl::rand::rand_bytes(&mut plain)?;
    let (mut ours, mut bare, mut fixed) = (vec![0; BYTES], vec![0; BYTES], vec![0; BYTES]);

    let mut xts = Xts::encryptor(&key)?;
    let mut context = openssl_context(&key)?;
    xts.run(7, &plain, &mut ours)?;
    bare_sectors(&mut context, 7, &plain, &mut bare)?;
    ensure!(ours == bare, "the floor does other work");

    let mut one_iv = openssl_context(&key)?;
    let medians = in_turn(
        ROUNDS,
        &mut [
            &mut || Ok(xts.run(7, black_box(&plain), &mut ours)?),
            &mut || bare_sectors(&mut context, 7, black_box(&plain), &mut bare),
            &mut || {
                for (from, to) in black_box(&plain).chunks_exact(SECTOR).zip(fixed.chunks_exact_mut(SECTOR)) {
                    one_iv.cipher_update(from, Some(to))?;
                }
                Ok(())
            },
        ],
    )?;
    let [value, floor, same_iv] = medians.as_slice() else { bail!("three medians") };
    let rate = |seconds: f64| u32::try_from(BYTES).map(|bytes| f64::from(bytes) / seconds / 1e9);
    let note = format!(
        "against OpenSSL with one IV for all sectors, which no image can use: {:.2} GB/s here, {} by `openssl speed`",
        rate(*same_iv)?,
        match openssl_speed(bench) {
            Ok(speed) => format!("{speed:.2} GB/s"),
            Err(e) => format!("unknown ({e:#})"),
        }
    );
    Ok(vec![Row {
        name: "xts".to_owned(),
        value: rate(*value)?,
        unit: "GB/s",
        against: "OpenSSL, a fresh IV a sector".to_owned(),
        against_value: rate(*floor)?,
        goal: Goal::AtLeast(0.8),
        samples: ROUNDS,
        note,
    }])
}

fn openssl_context(key: &VolumeKey) -> anyhow::Result<CipherCtx> {
    let mut context = CipherCtx::new()?;
    context.encrypt_init(Some(Cipher::aes_256_xts()), Some(key.as_slice()), Some(&[0; 16]))?;
    Ok(context)
}

/// OpenSSL and nothing else: set the tweak, encrypt the sector.
fn bare_sectors(context: &mut CipherCtx, first: u64, input: &[u8], output: &mut [u8]) -> anyhow::Result<()> {
    let mut iv = [0; 16];
    for ((number, from), to) in (first..).zip(input.chunks_exact(SECTOR)).zip(output.chunks_exact_mut(SECTOR)) {
        let (low, _) = iv.split_at_mut(8);
        low.copy_from_slice(&number.to_le_bytes());
        context.encrypt_init(None, None, Some(&iv))?;
        context.cipher_update(from, Some(to))?;
    }
    Ok(())
}

/// What `openssl speed` says of 512-byte blocks, GB/s.
fn openssl_speed(bench: &Bench) -> anyhow::Result<f64> {
    let args = ["speed", "-elapsed", "-mr", "-seconds", "1", "-evp", "aes-256-xts", "-bytes", "512"];
    let ended = bench.tools()?.ok("openssl", &args)?;
    // +F:22:AES-256-XTS:5300000000.00
    let line = ended.stdout.lines().rev().find(|line| line.starts_with("+F:")).context("no result")?;
    let bytes: f64 = line.rsplit(':').next().unwrap_or_default().parse().context("no number")?;
    Ok(bytes / 1e9)
}
