//! Bare SHA-256 by three libraries: the fastest of them is the floor.

use std::hint::black_box;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::measure::{Call, in_turn};

/// One message's digest.
pub(super) type Hash = fn(&[u8]) -> [u8; 32];

/// Each library's shortest way.
const ALL: [(&str, Hash); 3] = [("sha2", by_sha2), ("ring", by_ring), ("OpenSSL", openssl::sha::sha256)];

pub(super) fn by_sha2(message: &[u8]) -> [u8; 32] {
    Sha256::digest(message).into()
}

fn by_ring(message: &[u8]) -> [u8; 32] {
    ring::digest::digest(&ring::digest::SHA256, message).as_ref().try_into().unwrap_or_default()
}

/// A value and its floor, in seconds.
pub(super) struct Against {
    pub(super) value: f64,
    pub(super) floor: f64,
    /// The library that the floor is of.
    pub(super) library: &'static str,
}

/// Medians of a call, and of what it cannot save, done with each library in turn.
pub(super) fn against_hashes(
    rounds: usize,
    value: Call<'_>,
    floor: &dyn Fn(Hash) -> anyhow::Result<()>,
) -> anyhow::Result<Against> {
    let mut floors: Vec<_> = ALL.iter().map(|(_, hash)| move || floor(black_box(*hash))).collect();
    let mut calls: Vec<Call<'_>> = vec![value];
    for floor in &mut floors {
        calls.push(floor);
    }
    let medians = in_turn(rounds, &mut calls)?;
    let (value, floors) = medians.split_first().context("no median")?;
    let named = floors.iter().zip(ALL).map(|(seconds, (library, _))| (*seconds, library));
    let (floor, library) = named.min_by(|a, b| a.0.total_cmp(&b.0)).context("no floor")?;
    Ok(Against { value: *value, floor, library })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_agree() {
        let message: Vec<u8> = (0..=200).collect();
        for (library, hash) in ALL {
            assert_eq!(hash(&message), by_sha2(&message), "{library}");
        }
    }
}
