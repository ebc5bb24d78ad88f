//! AES-256-XTS in 512-byte sectors, tweak = sector number (plain64), as dm-crypt and LUKS2 have it.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use zeroize::Zeroizing;

use crate::error::SifError;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Bytes of a volume key: data key and tweak key.
pub const KEY: usize = 64;

/// A volume key.
pub type VolumeKey = Zeroizing<[u8; KEY]>;

/// A direction with its expanded key.
pub struct Xts {
    context: CipherCtx,
    encrypt: bool,
}

impl std::fmt::Debug for Xts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xts").finish_non_exhaustive()
    }
}

impl Xts {
    /// Encrypts with a key.
    ///
    /// # Errors
    /// [`SifError::Crypto`].
    pub fn encryptor(key: &VolumeKey) -> Result<Self, SifError> {
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(Cipher::aes_256_xts()), Some(key.as_slice()), None)?;
        Ok(Self { context, encrypt: true })
    }

    /// Decrypts with a key.
    ///
    /// # Errors
    /// [`SifError::Crypto`].
    pub fn decryptor(key: &VolumeKey) -> Result<Self, SifError> {
        let mut context = CipherCtx::new()?;
        context.decrypt_init(Some(Cipher::aes_256_xts()), Some(key.as_slice()), None)?;
        Ok(Self { context, encrypt: false })
    }

    /// Transforms whole sectors, the first of which has number `sector`.
    ///
    /// # Errors
    /// [`SifError::Crypto`], also for a length that is no multiple of a sector's.
    pub fn run(&mut self, sector: u64, input: &[u8], output: &mut [u8]) -> Result<(), SifError> {
        if input.len() != output.len() || !input.len().is_multiple_of(SECTOR) {
            return Err(SifError::Crypto("not whole sectors".into()));
        }
        let numbers = sectors(sector, input.len())?;
        for ((number, from), to) in numbers.zip(input.chunks_exact(SECTOR)).zip(output.chunks_exact_mut(SECTOR)) {
            self.tweak(number)?;
            if self.context.cipher_update(from, Some(to))? != SECTOR {
                return Err(SifError::Crypto("a sector came out short".into()));
            }
        }
        Ok(())
    }

    /// The same where the sectors are.
    ///
    /// # Errors
    /// As [`Xts::run`].
    pub fn run_in_place(&mut self, sector: u64, data: &mut [u8]) -> Result<(), SifError> {
        if !data.len().is_multiple_of(SECTOR) {
            return Err(SifError::Crypto("not whole sectors".into()));
        }
        let numbers = sectors(sector, data.len())?;
        for (number, one) in numbers.zip(data.chunks_exact_mut(SECTOR)) {
            self.tweak(number)?;
            if self.context.cipher_update_inplace(one, SECTOR)? != SECTOR {
                return Err(SifError::Crypto("a sector came out short".into()));
            }
        }
        Ok(())
    }

    /// The next sector is this one.
    fn tweak(&mut self, number: u64) -> Result<(), SifError> {
        let iv = u128::from(number).to_le_bytes();
        if self.encrypt {
            self.context.encrypt_init(None, None, Some(&iv))?;
        } else {
            self.context.decrypt_init(None, None, Some(&iv))?;
        }
        Ok(())
    }
}

/// The numbers of so many bytes' sectors.
fn sectors(first: u64, bytes: usize) -> Result<std::ops::Range<u64>, SifError> {
    let count = u64::try_from(bytes / SECTOR).ok();
    let end =
        count.and_then(|count| first.checked_add(count)).ok_or_else(|| SifError::Crypto("sector number".into()))?;
    Ok(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut key = VolumeKey::new([0; KEY]);
        for (n, byte) in key.iter_mut().enumerate() {
            *byte = u8::try_from(n).unwrap();
        }
        let plain: Vec<u8> = (0..4 * SECTOR).map(|n| u8::try_from(n % 256).unwrap()).collect();
        let mut cipher = vec![0; plain.len()];
        Xts::encryptor(&key).unwrap().run(9, &plain, &mut cipher).unwrap();
        assert_ne!(cipher[..SECTOR], cipher[SECTOR..2 * SECTOR], "each sector has its own tweak");
        let mut back = vec![0; plain.len()];
        Xts::decryptor(&key).unwrap().run(9, &cipher, &mut back).unwrap();
        assert_eq!(back, plain);
        let mut place = plain.clone();
        Xts::encryptor(&key).unwrap().run_in_place(9, &mut place).unwrap();
        assert_eq!(place, cipher);
        Xts::decryptor(&key).unwrap().run_in_place(9, &mut place).unwrap();
        assert_eq!(place, plain);
        Xts::decryptor(&key).unwrap().run(11, &cipher[2 * SECTOR..], &mut back[..2 * SECTOR]).unwrap();
        assert_eq!(back[..2 * SECTOR], plain[2 * SECTOR..]);
        assert!(Xts::encryptor(&key).unwrap().run(0, &plain[..5], &mut back[..5]).is_err());
        assert!(Xts::encryptor(&key).unwrap().run_in_place(0, &mut back[..5]).is_err());
    }

    /// IEEE 1619-2007, annex B, vector 10: AES-256, data unit 255, 512 bytes (the first 64 of the ciphertext).
    #[test]
    fn known_answer_of_ieee_1619() {
        let mut key = VolumeKey::new([0; KEY]);
        let digits = "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592";
        hex::decode_to_slice(digits, key.as_mut_slice()).unwrap();
        let plain: Vec<u8> = (0..SECTOR).map(|n| u8::try_from(n % 256).unwrap()).collect();
        let mut cipher = vec![0; SECTOR];
        Xts::encryptor(&key).unwrap().run(255, &plain, &mut cipher).unwrap();
        let want = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd";
        assert_eq!(hex::encode(&cipher[..64]), want);
    }

    #[test]
    fn a_sector_number_past_the_last_one_is_an_error() {
        let key = VolumeKey::new(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        let mut out = vec![0; 2 * SECTOR];
        assert!(Xts::encryptor(&key).unwrap().run(u64::MAX - 1, &[0; 2 * SECTOR], &mut out).is_err());
        assert!(Xts::encryptor(&key).unwrap().run_in_place(u64::MAX - 1, &mut out).is_err());
    }
}
