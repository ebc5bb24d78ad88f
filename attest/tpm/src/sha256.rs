//! SHA-256 of a message that is at hand as a whole: logs and lists are many short ones, and what a hasher spends on its buffer is then a fifth
//! of the whole.

use sha2::block_api::compress256;

/// Initial value (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

fn bytes(state: [u32; 8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, word) in out.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    out
}

/// The digest of a message.
#[must_use]
pub fn digest(message: &[u8]) -> [u8; 32] {
    let (whole, rest) = message.as_chunks();
    let mut state = INITIAL;
    if !whole.is_empty() {
        compress256(&mut state, whole);
    }
    // The padding: 0x80, zeros, and the number of bits in the last eight bytes.
    let mut last = [[0u8; 64]; 2];
    let padded = last.as_flattened_mut();
    if let Some((to, behind)) = padded.split_at_mut_checked(rest.len()) {
        to.copy_from_slice(rest);
        if let Some(first) = behind.first_mut() {
            *first = 0x80;
        }
    }
    let used = if rest.len() < 64 - 8 { 64 } else { 128 };
    if let Some(length) = padded.get_mut(..used).and_then(|padded| padded.last_chunk_mut()) {
        *length = u64::try_from(message.len()).unwrap_or(u64::MAX).saturating_mul(8).to_be_bytes();
    }
    compress256(&mut state, last.get(..used / 64).unwrap_or_default());
    bytes(state)
}

/// A PCR's value extended by a digest: SHA-256(old || digest) (TPM 2.0 Part 1, 17.2).
#[must_use]
pub fn extend(old: &[u8; 32], event: &[u8; 32]) -> [u8; 32] {
    // The second block is padding alone: 0x80, and 512 bits.
    let mut blocks = [[0u8; 64]; 2];
    let [message, padding] = &mut blocks;
    let (first, second) = message.split_at_mut(32);
    first.copy_from_slice(old);
    second.copy_from_slice(event);
    (padding[0], padding[62]) = (0x80, 0x02);
    let mut state = INITIAL;
    compress256(&mut state, &blocks);
    bytes(state)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn as_any_other_sha256() {
        let message: Vec<u8> = (0..=255).collect();
        for length in 0..=256 {
            assert_eq!(digest(&message[..length]), <[u8; 32]>::from(Sha256::digest(&message[..length])), "{length}");
        }
        let (old, event) = ([1; 32], [2; 32]);
        assert_eq!(extend(&old, &event), <[u8; 32]>::from(Sha256::digest([old, event].as_flattened())));
    }
}
