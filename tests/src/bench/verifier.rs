//! The verifier: how long it takes to be ready, and the memory that it idles in.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

use super::measure::{median, ms};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::Site;

pub(super) const TOPIC: Topic = Topic { rows: &["ready", "idle-rss"], measure };

const STARTS: usize = 21;
/// Attestations that it appraised before it idles.
const ATTESTATIONS: usize = 10;

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let site = Site::new(&bench.options.bin_dir, &bench.options.out.join("verifier"), |_, _| Ok(()))?;
    let rows = site.make_host().and_then(|()| with_host(&site));
    site.destroy_host()?;
    rows
}

fn with_host(site: &Site) -> anyhow::Result<Vec<Row>> {
    site.make_verifier()?;
    let mut starts = Vec::new();
    // The first start is warm-up, and makes what later ones find.
    site.serve()?.0.stop();
    for _ in 0..STARTS {
        let (mut service, ended) = site.serve()?;
        starts.push(ms(ended.took));
        service.stop();
    }
    let (mut service, _) = site.serve()?;
    let fresh = idle_rss(service.pid())?;
    site.enrol()?;
    let config = site.arg("host/attest.toml");
    for _ in 0..ATTESTATIONS {
        site.ok("attest", &["--config", &config, "now"])?;
    }
    let used = idle_rss(service.pid())?;
    service.stop();
    let row = |name: &str, value, unit, most, samples, note| Row {
        name: name.to_owned(),
        value,
        unit,
        against: "goal".to_owned(),
        against_value: most,
        goal: Goal::Below(1.0),
        samples,
        note,
    };
    let attested = ATTESTATIONS.saturating_add(1);
    Ok(vec![
        row(
            "ready",
            median(starts)?,
            "ms",
            150.0,
            STARTS,
            "from the start of `verifier serve` to its line `ready`".to_owned(),
        ),
        row(
            "idle-rss",
            used,
            "MiB",
            40.0,
            1,
            format!("after an enrolment and {attested} attestations; right after the start {fresh:.1} MiB"),
        ),
    ])
}

/// VmRSS of a process that has had a second of rest, MiB.
fn idle_rss(pid: u32) -> anyhow::Result<f64> {
    std::thread::sleep(Duration::from_secs(1));
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u32 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(f64::from(kib) / 1024.0)
}
