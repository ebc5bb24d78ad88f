//! PCR selections and the digest over selected PCRs (TPM 2.0 Part 2, 10.6; Part 1, 17.5).

use crate::alg::{Digest, HashAlg};
use crate::codec::{Malformed, Reader, Reason, Writer};
use crate::limits;

/// PCRs of one bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankSelection {
    /// TPM_ALG_ID of the bank; unknown ones are kept as numbers.
    pub alg: u16,
    /// Bit `n` stands for PCR `n`.
    pub bitmap: u32,
    /// Bytes that the bitmap has on the wire (sizeofSelect): 3 on PC clients.
    size: u8,
}

impl BankSelection {
    /// A selection of PCRs below 24, as PC clients write it; others are ignored.
    #[must_use]
    pub fn new(alg: HashAlg, pcrs: &[u8]) -> Self {
        let bitmap = pcrs.iter().filter(|&&pcr| pcr < 24).fold(0, |bits, &pcr| bits | bit(pcr));
        Self { alg: alg.id(), bitmap, size: 3 }
    }

    /// Whether the PCR is selected.
    #[must_use]
    pub fn contains(&self, pcr: u8) -> bool {
        self.bitmap & bit(pcr) != 0
    }

    /// The selected PCRs, ascending.
    pub fn pcrs(&self) -> impl Iterator<Item = u8> + use<> {
        let bitmap = self.bitmap;
        (0..32u8).filter(move |&pcr| bitmap & bit(pcr) != 0)
    }
}

fn bit(pcr: u8) -> u32 {
    1u32.checked_shl(u32::from(pcr)).unwrap_or(0)
}

/// TPML_PCR_SELECTION.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrSelection(pub Vec<BankSelection>);

impl PcrSelection {
    /// One bank.
    #[must_use]
    pub fn single(alg: HashAlg, pcrs: &[u8]) -> Self {
        Self(vec![BankSelection::new(alg, pcrs)])
    }

    /// Reads a selection; a bank that stands twice is refused.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let at = reader.clone();
        let count = reader.u32_be("pcrSelections.count")?;
        let max = u32::try_from(limits::BANKS).unwrap_or(u32::MAX);
        if count > max {
            return Err(at.bad("pcrSelections.count", Reason::TooLarge { got: count.into(), max: max.into() }));
        }
        let mut banks: Vec<BankSelection> = Vec::new();
        for _ in 0..count {
            let at = reader.clone();
            let alg = reader.u16_be("pcrSelections.hash")?;
            let size = reader.u8("pcrSelections.sizeofSelect")?;
            if usize::from(size) > limits::PCR_BITMAP {
                return Err(at.bad("pcrSelections.sizeofSelect", Reason::Value(size.into())));
            }
            let bytes = reader.take(usize::from(size), "pcrSelections.pcrSelect")?;
            let mut bitmap = [0; 4];
            for (to, from) in bitmap.iter_mut().zip(bytes) {
                *to = *from;
            }
            if banks.iter().any(|bank| bank.alg == alg) {
                return Err(at.bad("pcrSelections.hash", Reason::Other("one bank selected twice")));
            }
            banks.push(BankSelection { alg, bitmap: u32::from_le_bytes(bitmap), size });
        }
        Ok(Self(banks))
    }

    /// Appends the selection as TPML_PCR_SELECTION.
    #[must_use]
    pub fn write(&self, writer: Writer) -> Writer {
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.iter().fold(writer.u32_be(count), |writer, bank| {
            let bytes = bank.bitmap.to_le_bytes();
            let bytes = bytes.get(..usize::from(bank.size)).unwrap_or(&bytes);
            writer.u16_be(bank.alg).u8(bank.size).raw(bytes)
        })
    }

    /// TPML_PCR_SELECTION as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.write(Writer::new()).done()
    }
}

/// H(values in the order of the selection: bank by bank, ascending index), as in a quote's pcrDigest.
#[must_use]
pub fn pcr_digest<'a>(alg: HashAlg, values: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let values: Vec<&[u8]> = values.into_iter().map(Digest::as_bytes).collect();
    alg.digest(&values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_round_trip_and_sweeps() {
        let selection = PcrSelection(vec![
            BankSelection::new(HashAlg::Sha256, &[0, 7, 14, 23]),
            BankSelection::new(HashAlg::Sha1, &[10]),
        ]);
        let bytes = selection.to_bytes();
        let read = |bytes: &[u8]| Reader::all(bytes, "selection", PcrSelection::read);
        assert_eq!(read(&bytes), Ok(selection.clone()));
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err());
        }
        assert_eq!(selection.0[0].pcrs().collect::<Vec<_>>(), [0, 7, 14, 23]);
        let twice = PcrSelection(vec![selection.0[0], selection.0[0]]).to_bytes();
        assert!(read(&twice).is_err());
        let mut many = bytes.clone();
        many[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(read(&many), Err(Malformed { reason: Reason::TooLarge { .. }, .. })));
        let mut wide = bytes;
        wide[6] = 5;
        assert!(read(&wide).is_err());
    }
}
