//! Sets of PCRs.

use super::PCRS;

/// Some of the PCRs 0 to 23.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PcrSet(u32);

impl PcrSet {
    /// None.
    pub const NONE: Self = Self(0);
    /// PCRs 0 to 23.
    pub const ALL: Self = Self(0x00FF_FFFF);

    /// Whether it has this PCR.
    #[must_use]
    pub fn contains(self, pcr: u8) -> bool {
        self.0 & bit(pcr) != 0
    }

    /// What is in one or the other.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An index that no TPM has is no member of any set.
fn bit(pcr: u8) -> u32 {
    if usize::from(pcr) < PCRS { 1u32.checked_shl(u32::from(pcr)).unwrap_or(0) } else { 0 }
}

impl FromIterator<u8> for PcrSet {
    fn from_iter<I: IntoIterator<Item = u8>>(pcrs: I) -> Self {
        Self(pcrs.into_iter().fold(0, |set, pcr| set | bit(pcr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        let set: PcrSet = [0, 7, 23, 24, 255].into_iter().collect();
        let inside: Vec<u8> = (0..=255).filter(|pcr| set.contains(*pcr)).collect();
        assert_eq!(inside, [0, 7, 23]);
        assert_eq!((0..24).collect::<PcrSet>(), PcrSet::ALL);
        assert_eq!(set.union(PcrSet::NONE), set);
    }
}
