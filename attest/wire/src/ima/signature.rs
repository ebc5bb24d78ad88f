//! File signatures (`security.ima`): Linux integrity.h `signature_v2_hdr`, ima_appraise.c.

use countersign_tpm::alg::{Digest, HashAlg};

use super::hash::KernelHash;
use crate::codec::{Malformed, Reader, Reason};

/// What a signature is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// EVM_IMA_XATTR_DIGSIG: the file's contents.
    File,
    /// IMA_VERITY_DIGSIG: the file's fs-verity digest.
    Verity,
}

/// A file signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSignature<'a> {
    /// What it is over.
    pub kind: SignatureKind,
    /// Version of the header: 2, or 3.
    pub version: u8,
    /// Hash of the file and of the signature.
    pub hash: KernelHash,
    /// The last four bytes of the key's identifier.
    pub key_id: [u8; 4],
    /// PKCS#1 v1.5, or ECDSA as ASN.1 DER.
    pub signature: &'a [u8],
}

/// Why a signature cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// It breaks the format.
    #[error("signature: {0}")]
    Malformed(#[from] Malformed),
    /// A header of version 1: SHA-1 and no key id.
    #[error("a signature header of version 1")]
    Version1,
}

impl<'a> FileSignature<'a> {
    /// Reads type, header and signature.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadSignature> {
        if matches!(bytes, [3, 1, ..]) {
            return Err(BadSignature::Version1);
        }
        Ok(Reader::all(bytes, "signature", |reader| {
            let at = reader.clone();
            let kind = match reader.u8("type")? {
                3 => SignatureKind::File,
                6 => SignatureKind::Verity,
                other => return Err(at.bad("type", Reason::Value(other.into()))),
            };
            let at = reader.clone();
            let version = reader.u8("version")?;
            // fs-verity digests are signed with their kind in front, which version 2 cannot say.
            if !(version == 3 || version == 2 && kind == SignatureKind::File) {
                return Err(at.bad("version", Reason::Value(version.into())));
            }
            let at = reader.clone();
            let hash = reader.u8("hash_algo")?;
            let hash = KernelHash::from_id(hash).ok_or_else(|| at.bad("hash_algo", Reason::Value(hash.into())))?;
            let key_id = reader.array("keyid")?;
            let size = usize::from(reader.u16_be("sig_size")?);
            let signature = reader.take(size, "sig")?;
            Ok(Self { kind, version, hash, key_id, signature })
        })?)
    }

    /// The digest that is signed for a file with this digest: of version 2 the digest itself, of version 3 the hash of
    /// type || hash_algo || digest. `None` for a hash that is not computed here.
    #[must_use]
    pub fn signed_digest(&self, file: &[u8]) -> Option<Digest> {
        let alg = HashAlg::from_name(self.hash.name())?;
        if self.version == 2 {
            return Digest::new(alg, file);
        }
        let kind = match self.kind {
            SignatureKind::File => 3,
            SignatureKind::Verity => 6,
        };
        Some(alg.digest(&[&[kind, self.hash.id()], file]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &[u8] = &[3, 2, 4, 0xde, 0xad, 0xbe, 0xef, 0, 3, 1, 2, 3];

    #[test]
    fn headers() {
        let parsed = FileSignature::parse(V2).unwrap();
        assert_eq!((parsed.kind, parsed.version, parsed.hash), (SignatureKind::File, 2, KernelHash::SHA256));
        assert_eq!((parsed.key_id, parsed.signature), ([0xde, 0xad, 0xbe, 0xef], &[1, 2, 3][..]));
        assert_eq!(parsed.signed_digest(&[7; 32]).unwrap().as_bytes(), [7; 32]);
        assert_eq!(parsed.signed_digest(&[7; 20]), None);
        let mut v3 = V2.to_vec();
        (v3[0], v3[1]) = (6, 3);
        let signed = FileSignature::parse(&v3).unwrap().signed_digest(&[7; 32]).unwrap();
        assert_eq!(signed, HashAlg::Sha256.digest(&[&[6, 4], &[7; 32]]));
    }

    #[test]
    fn what_is_refused() {
        for end in 0..V2.len() {
            assert!(FileSignature::parse(&V2[..end]).is_err());
        }
        assert!(FileSignature::parse(&[V2, &[0]].concat()).is_err());
        assert_eq!(FileSignature::parse(&[3, 1, 0, 0]), Err(BadSignature::Version1));
        for (at, value) in [(0, 1), (0, 4), (0, 5), (1, 0), (1, 4), (2, 23), (7, 0xff)] {
            let mut changed = V2.to_vec();
            changed[at] = value;
            assert!(FileSignature::parse(&changed).is_err(), "{at} {value}");
        }
        let mut verity_v2 = V2.to_vec();
        verity_v2[0] = 6;
        assert!(FileSignature::parse(&verity_v2).is_err());
    }
}
