//! The digests of one event.

use std::num::NonZeroU16;

use countersign_tpm::alg::HashAlg;

/// The bytes that hold an event's digests, and where in them those stand that this program can compute. Their lengths were checked when the
/// log was parsed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Digests<'a> {
    area: &'a [u8],
    places: Places,
}

/// Offsets of the known banks' digests, each plus one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Places([Option<NonZeroU16>; 4]);

impl Places {
    /// Puts where the digest of a bank stands, if this program knows the bank.
    pub(super) fn put(&mut self, alg: u16, offset: usize) {
        let place = u16::try_from(offset).ok().and_then(|offset| NonZeroU16::new(offset.checked_add(1)?));
        if let Some(slot) = HashAlg::from_id(alg).and_then(|alg| self.0.get_mut(number(alg))) {
            *slot = place;
        }
    }
}

const fn number(alg: HashAlg) -> usize {
    match alg {
        HashAlg::Sha1 => 0,
        HashAlg::Sha256 => 1,
        HashAlg::Sha384 => 2,
        HashAlg::Sha512 => 3,
    }
}

impl<'a> Digests<'a> {
    pub(super) const fn new(area: &'a [u8], places: Places) -> Self {
        Self { area, places }
    }

    /// The one digest of an event in the format of TPM 1.2.
    pub(super) fn sha1(digest: &'a [u8]) -> Self {
        let mut places = Places::default();
        places.put(HashAlg::Sha1.id(), 0);
        Self::new(digest, places)
    }

    pub(super) fn get(&self, alg: HashAlg) -> Option<&'a [u8]> {
        let Places(places) = &self.places;
        let start = usize::from(places.get(number(alg)).copied().flatten()?.get()).checked_sub(1)?;
        self.area.get(start..start.checked_add(alg.size())?)
    }
}
