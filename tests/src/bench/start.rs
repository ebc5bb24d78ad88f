//! From `supervisor run` to the first byte of the workload's output.

use std::time::Instant;

use anyhow::bail;

use super::measure::timed_in_turn;
use super::plain::{Plain, first_byte};
use super::report::{Goal, Row};
use super::{Bench, Topic};
use crate::site::SECRET;

pub(super) const TOPIC: Topic = Topic { rows: &["first-byte"], measure };

const ROUNDS: usize = 25;
/// What a start may cost beside the plain one and the TPM's part, ms.
const ALLOWED: f64 = 60.0;

fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Row>> {
    let unseal = bench.unseal_ms()?;
    let folder = bench.folder("plain")?;
    let site = bench.site()?;
    let plain = Plain::new(site.tools().clone(), &site.path("rootfs"), &folder)?;
    let want = format!("{SECRET}\n");
    let medians = timed_in_turn(
        ROUNDS,
        &mut [
            &mut || {
                let mut command = site.tools().command("supervisor");
                command.args(site.run_arguments("app.sif", &["--runtime", "builtin"]));
                first_byte(command, Instant::now(), &want)
            },
            &mut || plain.start(&["cat", "/secret.txt"], &want),
        ],
    )?;
    let [run, plain] = medians.as_slice() else { bail!("two medians") };
    Ok(vec![Row {
        name: "first-byte".to_owned(),
        value: *run,
        unit: "ms",
        against: "plain start + [unseal] + 60 ms".to_owned(),
        against_value: plain + unseal + ALLOWED,
        goal: Goal::AtMost(1.0),
        samples: ROUNDS,
        note: format!("plain squashfuse + bubblewrap {plain:.1} ms, [unseal] {unseal:.1} ms"),
    }])
}
