//! What watching a run costs, and how long a finding takes to stop it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::measure::{median, ms};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::Site;

pub(super) const TOPIC: Topic = Topic { rows: &["monitor", "freeze"], measure };

/// How long the supervisor's processor time is counted.
const WATCHED: Duration = Duration::from_secs(40);
/// What it may take of one core, percent.
const SHARE: f64 = 0.5;
/// Frozen runs.
const ROUNDS: usize = 15;
/// From a look to the frozen container, ms.
const FROZEN: f64 = 50.0;

/// Accepts nothing that is found, and freezes for it.
const POLICY: &str = r#"package countersign.workload

default verdict := {"allow": false, "reasons": [], "obligations": {"on_violation": "freeze", "freeze_hold_s": 1}}

verdict := {"allow": true, "reasons": [], "obligations": {"lease_s": 3600, "reattest_s": 1800}} if input.purpose == "release"
"#;

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let folder = bench.folder("monitor")?;
    let site = bench.site()?;
    let policy = folder.join("policy");
    fs::create_dir_all(policy.join("countersign/workload"))?;
    fs::write(policy.join("countersign/workload/workload.rego"), POLICY)?;
    let image = folder.join("frozen.sif").display().to_string();
    site.protect_as(&image, &policy.display().to_string())?;

    let mut quiet = Run::start(site, &image, "echo ready; exec sleep 1000")?;
    let before = quiet.spent()?;
    let started = Instant::now();
    std::thread::sleep(WATCHED);
    let (spent, time) = (quiet.spent()?.saturating_sub(before), started.elapsed());
    drop(quiet);

    let mut frozen = Vec::new();
    for _ in 0..ROUNDS {
        let mut run = Run::start(site, &image, "echo ready; read x; cp /bin/busybox /tmp/sleep; exec /tmp/sleep 1000")?;
        run.child.stdin.as_mut().context("no standard input")?.write_all(b"go\n")?;
        frozen.push(run.finding()?);
    }
    let row = |name: &str, value, unit, want, samples, note: &str| Row {
        name: name.to_owned(),
        value,
        unit,
        against: "goal".to_owned(),
        against_value: want,
        goal: Goal::AtMost(1.0),
        samples,
        note: note.to_owned(),
    };
    let share = 100.0 * ms(spent) / ms(time);
    Ok(vec![
        row("monitor", share, "% of a core", SHARE, 1, "the supervisor's own processor time over 40 s of a quiet run"),
        row(
            "freeze",
            median(frozen)?,
            "ms",
            FROZEN,
            ROUNDS,
            "from the kernel's announcement or the look to `frozen 1`",
        ),
    ])
}

/// A run that says `ready`; killed when dropped.
pub(super) struct Run {
    pub(super) child: Child,
    status: BufReader<ChildStderr>,
}

impl Run {
    pub(super) fn start(site: &Site, image: &str, script: &str) -> anyhow::Result<Self> {
        let mut command = site.tools().command("supervisor");
        command.args(["exec", "--config", &site.arg("host/attest.toml"), "--runtime", "builtin", "--status-fd", "2"]);
        command.args(["--signer", &site.arg("owner/owner.pub.pem"), image, "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let status = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        let mut run = Self { child, status };
        if line != "ready\n" {
            let mut words = String::new();
            while run.status.read_line(&mut words)? > 0 {}
            bail!("the workload did not start: {words}");
        }
        Ok(run)
    }

    /// Processor time of all threads of the supervisor's main process.
    fn spent(&mut self) -> anyhow::Result<Duration> {
        let mut spent = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let nanos = text.split(' ').next().context("schedstat")?.parse()?;
            spent = spent.saturating_add(Duration::from_nanos(nanos));
        }
        Ok(spent)
    }

    /// The container's first process.
    pub(super) fn init(&mut self) -> anyhow::Result<u64> {
        loop {
            let mut line = String::new();
            if self.status.read_line(&mut line)? == 0 {
                bail!("the run did not start");
            }
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            if value.get("stage").and_then(Value::as_str) == Some("started") {
                return value.pointer("/detail/init").and_then(Value::as_u64).context("no init");
            }
        }
    }

    /// Milliseconds from the first finding's look to the reaction to it.
    fn finding(&mut self) -> anyhow::Result<f64> {
        loop {
            let mut line = String::new();
            if self.status.read_line(&mut line)? == 0 {
                bail!("nothing was found");
            }
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            if value.pointer("/detail/reaction").and_then(Value::as_str) == Some("freeze") {
                return value.pointer("/detail/ms").and_then(Value::as_f64).context("no ms");
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
