//! Medians of things that are measured in turn: what disturbs the machine for a while disturbs all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// How long one batch of short calls is to take: much shorter than a scheduler's turn, so that most batches run undisturbed.
const BATCH: Duration = Duration::from_micros(400);
/// Batches of one size that are tried before it is called too small.
const TRIES: u32 = 3;
/// Most calls in a batch.
const MOST: u32 = 1 << 20;

/// Something to measure; its result must go through [`std::hint::black_box`] where nothing else uses it.
pub(super) type Call<'a> = &'a mut dyn FnMut() -> anyhow::Result<()>;

/// Medians, in seconds for one call each: every round runs a batch of each call, in turn, and every other round in the opposite order.
pub(super) fn in_turn(rounds: usize, calls: &mut [Call<'_>]) -> anyhow::Result<Vec<f64>> {
    let mut sized = Vec::new();
    for call in calls.iter_mut() {
        let size = batch_size(call)?;
        sized.push((call, size));
    }
    medians(rounds, sized.len(), |n| {
        let (call, size) = sized.get_mut(n).context("no such call")?;
        Ok(batch(call, *size)?.as_secs_f64() / f64::from(*size))
    })
}

/// Something that measures itself, in whatever unit.
pub(super) type Timed<'a> = &'a mut dyn FnMut() -> anyhow::Result<f64>;

/// As [`in_turn`], for things that are long and measure themselves; one call each is warm-up.
pub(super) fn timed_in_turn(rounds: usize, calls: &mut [Timed<'_>]) -> anyhow::Result<Vec<f64>> {
    medians(rounds, calls.len(), |n| calls.get_mut(n).context("no such call")?())
}

fn medians(
    rounds: usize,
    things: usize,
    mut measure: impl FnMut(usize) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<f64>> {
    let mut samples = vec![Vec::with_capacity(rounds); things];
    for n in 0..things {
        measure(n)?;
    }
    for round in 0..rounds {
        let mut order: Vec<_> = samples.iter_mut().enumerate().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (n, samples) in order {
            samples.push(measure(n)?);
        }
    }
    samples.into_iter().map(median).collect()
}

fn batch(call: &mut Call<'_>, size: u32) -> anyhow::Result<Duration> {
    let started = Instant::now();
    for _ in 0..size {
        call()?;
    }
    Ok(started.elapsed())
}

/// How many calls take about [`BATCH`] when nothing disturbs them; warms up on the way.
fn batch_size(call: &mut Call<'_>) -> anyhow::Result<u32> {
    let mut size: u32 = 1;
    while size < MOST {
        let mut fastest = Duration::MAX;
        for _ in 0..TRIES {
            fastest = fastest.min(batch(call, size)?);
        }
        if fastest >= BATCH {
            break;
        }
        size = size.saturating_mul(2);
    }
    Ok(size)
}

/// The middle one; of an even number, the upper of the two.
pub(super) fn median(mut samples: Vec<f64>) -> anyhow::Result<f64> {
    ensure!(samples.iter().all(|sample| sample.is_finite()), "a measurement is no number");
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().context("nothing was measured")
}

/// Milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

    use std::cell::RefCell;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0, 4.0]).unwrap(), 3.0);
        assert!(median(vec![]).is_err());
        assert!(median(vec![f64::NAN]).is_err());
    }

    #[test]
    fn in_turn_and_then_the_other_way_round() {
        let order = RefCell::new(String::new());
        let call = |name: char| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(f64::from(u32::from(name)))
            }
        };
        let medians = timed_in_turn(3, &mut [&mut call('a'), &mut call('b')]).unwrap();
        assert_eq!(order.borrow().as_str(), "ababbaab");
        assert_eq!(medians, [97.0, 98.0]);
    }

    #[test]
    fn a_failure_ends_the_measurement() {
        let mut left = 5;
        let mut failing = || {
            left -= 1;
            anyhow::ensure!(left > 0, "broken");
            Ok(())
        };
        assert!(in_turn(1000, &mut [&mut failing]).is_err());
    }
}
