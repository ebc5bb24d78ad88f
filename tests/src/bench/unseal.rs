//! The unseal path on a real swtpm, against the round trips of its TPM commands; and how many they are.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use countersign_attest::endorsement::{Ak, AkBlob, Ek, EndorsementAuth};
use countersign_attest::tpm::{Tpm, TpmAddress};
use countersign_attest::unseal::Waiting;
use countersign_tpm::alg::HashAlg;
use countersign_tpm::ek::Template;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm_sim::{Options, Sim};

use super::broker::Broker;
use super::measure::{median, ms};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::tap::Tap;

pub(super) const TOPIC: Topic =
    Topic { rows: &["unseal", "unseal-p384", "unseal-commands", "unseal-commands-rsa2048"], measure };

const ROUNDS: usize = 61;
const SECRET: [u8; 64] = [0x5a; 64];
/// TPM_CC_Unseal.
const UNSEAL: u32 = 0x15E;

/// The path under one kind of EK.
#[derive(Debug, Clone, Copy)]
struct Path {
    /// Median of the whole path, ms.
    whole_ms: f64,
    /// Median of its commands' round trips, ms.
    trips_ms: f64,
    /// Commands up to the secret.
    commands: u32,
    /// Commands that free the TPM's slots afterwards.
    after: u32,
}

/// Both kinds of EK that swtpm has certificates for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    rsa: Path,
    p384: Path,
}

impl Bench {
    /// Median of the unseal path under the EK that names an swtpm's host (RSA-2048), ms.
    pub(super) fn unseal_ms(&mut self) -> anyhow::Result<f64> {
        Ok(self.unseal()?.rsa.whole_ms)
    }

    fn unseal(&mut self) -> anyhow::Result<Measured> {
        if let Some(measured) = self.unseal {
            return Ok(measured);
        }
        let folder = self.folder("unseal")?;
        let mut sim = Sim::create(folder.join("tpm"), &Options::named("unseal"))?;
        let measured = both(&mut sim, &folder);
        sim.destroy()?;
        let measured = measured?;
        self.unseal = Some(measured);
        Ok(measured)
    }
}

fn both(sim: &mut Sim, folder: &std::path::Path) -> anyhow::Result<Measured> {
    sim.start()?;
    let address: TpmAddress = sim.tpm_arg().parse()?;
    let [mut rsa, mut p384] =
        [Template::Rsa2048, Template::P384].map(|template| Samples { template, ..Samples::default() });
    for round in 0..=ROUNDS {
        for samples in [&mut rsa, &mut p384] {
            let mut tpm = Tpm::connect(&address)?;
            let scene = Scene::new(&mut tpm, samples.template)?;
            let (whole, trips) = scene.unseal(&mut tpm)?;
            // The first is warm-up.
            if round > 0 {
                samples.whole.push(whole);
                samples.trips.push(trips);
            }
        }
    }
    let tap = Tap::new(folder, &address)?;
    let path = |samples: Samples| {
        let (commands, after) = count(&tap, samples.template)?;
        anyhow::Ok(Path { whole_ms: median(samples.whole)?, trips_ms: median(samples.trips)?, commands, after })
    };
    Ok(Measured { rsa: path(rsa)?, p384: path(p384)? })
}

#[derive(Debug)]
struct Samples {
    template: Template,
    whole: Vec<f64>,
    trips: Vec<f64>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { template: Template::Rsa2048, whole: Vec::new(), trips: Vec::new() }
    }
}

/// An EK, an AK's blob, and a secret sealed to the EK.
struct Scene {
    ek: Ek,
    ak: AkBlob,
    broker: Broker,
}

impl Scene {
    fn new(tpm: &mut Tpm, template: Template) -> anyhow::Result<Self> {
        let ek = Ek::open(tpm, template, None, &EndorsementAuth::default())?;
        let ak = AkBlob::create(tpm, &ek)?;
        let broker = Broker::new(&ek, &SECRET)?;
        Ok(Self { ek, ak, broker })
    }

    /// Import to secret, nothing cached, the AK loaded for the quote; milliseconds in all and of the round trips. The broker's part is in neither.
    fn unseal(&self, tpm: &mut Tpm) -> anyhow::Result<(f64, f64)> {
        let selection = PcrSelection::single(HashAlg::Sha256, &(0..15).collect::<Vec<_>>());
        let busy = tpm.busy();
        let started = Instant::now();
        let waiting = Waiting::open(tpm, &self.ek, &self.broker.import, None)?;
        let ak = Ak::load(tpm, &self.ek, &self.ak)?;
        let (quote, _) = tpm.quote(&ak.key.object, &[1; 32], &selection)?;
        ak.close(tpm)?;
        let before = started.elapsed();
        let release = self.broker.answer(&waiting, &quote)?;
        let resumed = Instant::now();
        let secret = waiting.unseal(tpm, &release)?;
        let whole = before.saturating_add(resumed.elapsed());
        ensure!(secret.as_slice() == SECRET, "another secret");
        Ok((ms(whole), ms(tpm.busy().saturating_sub(busy))))
    }
}

/// Commands of one path up to TPM2_Unseal and behind it, counted on the way to the TPM.
fn count(tap: &Tap, template: Template) -> anyhow::Result<(u32, u32)> {
    let mut tpm = Tpm::connect(&tap.address.parse()?)?;
    let scene = Scene::new(&mut tpm, template)?;
    let before = tap.seen().len();
    scene.unseal(&mut tpm)?;
    let seen = tap.seen();
    let path = seen.get(before..).unwrap_or_default();
    let is_unseal = |command: &Vec<u8>| command.get(6..10) == Some(&UNSEAL.to_be_bytes());
    let at = path.iter().position(is_unseal).context("no TPM2_Unseal passed by")?;
    let commands = u32::try_from(at.saturating_add(1))?;
    Ok((commands, u32::try_from(path.len())?.saturating_sub(commands)))
}

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let Measured { rsa, p384 } = bench.unseal()?;
    let time = |name: &str, path: Path, note: &str| Row {
        name: name.to_owned(),
        value: path.whole_ms,
        unit: "ms",
        against: "its TPM round trips".to_owned(),
        against_value: path.trips_ms,
        goal: Goal::AtMost(1.5),
        samples: ROUNDS,
        note: note.to_owned(),
    };
    let commands = |name: &str, path: Path, most: f64| Row {
        name: name.to_owned(),
        value: f64::from(path.commands),
        unit: "commands",
        against: "goal".to_owned(),
        against_value: most,
        goal: Goal::AtMost(1.0),
        samples: 1,
        note: format!("up to TPM2_Unseal; {} more then free the TPM's slots", path.after),
    };
    Ok(vec![
        time(
            "unseal",
            rsa,
            "under the RSA-2048 EK, nothing cached: from TPM2_Import to the secret, with the quote, without the verifier's part",
        ),
        time("unseal-p384", p384, "the same under the P-384 EK"),
        commands("unseal-commands", p384, 25.0),
        commands("unseal-commands-rsa2048", rsa, 22.0),
    ])
}
