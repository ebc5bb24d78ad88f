//! Receipts: what an accepted attestation leaves in the run PCR (DESIGN.md section 5).

use minicbor::{Decode, Encode};

use crate::id::HostId;

/// number || 16 random bytes || HMAC-SHA256(receipt key, host id || number || bytes).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Receipt {
    /// Ascending per host, from 1.
    #[n(0)]
    pub number: u64,
    /// Random bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub random: [u8; 16],
    /// The verifier's MAC: only it can make receipts.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

impl Receipt {
    /// What the MAC covers.
    #[must_use]
    pub fn mac_input(host: &HostId, number: u64, random: &[u8; 16]) -> Vec<u8> {
        [&host.0[..], &number.to_be_bytes(), random].concat()
    }

    /// The 56 bytes as they are extended and logged.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.number.to_be_bytes()[..], &self.random, &self.mac].concat()
    }

    /// Reads the 56 bytes back; `None` for any other length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (random, rest) = rest.split_first_chunk::<16>()?;
        let mac = rest.try_into().ok()?;
        Some(Self { number: u64::from_be_bytes(*number), random: *random, mac })
    }
}
