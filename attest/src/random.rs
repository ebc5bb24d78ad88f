//! The system's random numbers, for the pure crates that take a generator.

use std::time::Duration;

use getrandom::SysRng;
use rand_core::UnwrapErr;

/// getrandom(2). A system without randomness ends the program: going on would be worse.
pub type SystemRng = UnwrapErr<SysRng>;

/// The generator.
#[must_use]
pub const fn system_rng() -> SystemRng {
    UnwrapErr(SysRng)
}

/// A random part of a time, from nothing to all of it.
#[must_use]
pub(crate) fn part_of(time: Duration) -> Duration {
    time.mul_f64(f64::from(u16::from_be_bytes(random())) / f64::from(u16::MAX))
}

/// Random bytes.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    use rand_core::Rng as _;
    let mut bytes = [0; N];
    system_rng().fill_bytes(&mut bytes);
    bytes
}
