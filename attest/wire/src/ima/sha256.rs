//! SHA-256 of short messages, in one call of the compression function: a list is hundreds of thousands of them, and what a hasher spends on its
//! buffer is then a fifth of the whole.

use sha2::block_api::compress256;
use sha2::{Digest as _, Sha256};

/// Initial value (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// Longest message whose padding (nine bytes at least) fits in two blocks.
const SHORT: usize = 128 - 9;

fn bytes(state: [u32; 8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, word) in out.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    out
}

/// The digest of a message.
pub(super) fn digest(message: &[u8]) -> [u8; 32] {
    let mut blocks = [[0u8; 64]; 2];
    let flat = blocks.as_flattened_mut();
    let Some((to, behind)) = flat.split_at_mut_checked(message.len()).filter(|_| message.len() <= SHORT) else {
        return Sha256::digest(message).into();
    };
    to.copy_from_slice(message);
    if let Some(first) = behind.first_mut() {
        *first = 0x80;
    }
    let bits = u64::try_from(message.len()).unwrap_or(0).saturating_mul(8).to_be_bytes();
    let used = if message.len() <= 64 - 9 { 64 } else { 128 };
    if let Some(length) = flat.get_mut(..used).and_then(|padded| padded.last_chunk_mut()) {
        *length = bits;
    }
    let mut state = INITIAL;
    compress256(&mut state, blocks.get(..used / 64).unwrap_or_default());
    bytes(state)
}

/// A PCR's value extended by a digest: SHA-256(old || digest).
pub(super) fn extend(old: &[u8; 32], event: &[u8; 32]) -> [u8; 32] {
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
