//! TPMT_PUBLIC and Names (TPM 2.0 Part 2, 12.2.4; Part 1, 16).

use std::fmt;

use crate::alg::HashAlg;
use crate::codec::{Malformed, Reader, Reason, Writer};
use crate::limits;
use crate::signature::{ALG_ECDSA, ALG_RSAPSS, ALG_RSASSA};

/// TPM_ALG_RSA.
pub const ALG_RSA: u16 = 0x0001;
/// TPM_ALG_AES.
pub const ALG_AES: u16 = 0x0006;
/// TPM_ALG_KEYEDHASH.
pub const ALG_KEYEDHASH: u16 = 0x0008;
/// TPM_ALG_NULL.
pub const ALG_NULL: u16 = 0x0010;
/// TPM_ALG_ECC.
pub const ALG_ECC: u16 = 0x0023;
/// TPM_ALG_CFB.
pub const ALG_CFB: u16 = 0x0043;

/// TPMA_OBJECT bits (Part 2, 8.3).
pub mod attributes {
    /// The hierarchy cannot change.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// Gone after TPM2_Startup(CLEAR).
    pub const ST_CLEAR: u32 = 1 << 2;
    /// The parent cannot change.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made the sensitive data.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// USER actions with authValue.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// ADMIN actions with policy only.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// No dictionary-attack protection.
    pub const NO_DA: u32 = 1 << 10;
    /// Duplication needs an inner wrap.
    pub const ENCRYPTED_DUPLICATION: u32 = 1 << 11;
    /// Signs or decrypts only structures that the TPM knows.
    pub const RESTRICTED: u32 = 1 << 16;
    /// Decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// Signs.
    pub const SIGN: u32 = 1 << 18;
}

/// An elliptic curve that this crate computes on (TPM_ECC_CURVE, Part 2, 6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// TPM_ECC_NIST_P256.
    P256,
    /// TPM_ECC_NIST_P384.
    P384,
}

impl Curve {
    /// TPM_ECC_CURVE.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::P256 => 0x0003,
            Self::P384 => 0x0004,
        }
    }

    /// The curve of a TPM_ECC_CURVE, if it is one of these.
    #[must_use]
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            0x0003 => Some(Self::P256),
            0x0004 => Some(Self::P384),
            _ => None,
        }
    }

    /// Bytes of a coordinate.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// A signing scheme of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TPM_ALG_NULL: none is fixed.
    Null,
    /// RSASSA-PKCS1-v1_5 with this hash.
    Rsassa(HashAlg),
    /// RSASSA-PSS with this hash.
    Rsapss(HashAlg),
    /// ECDSA with this hash.
    Ecdsa(HashAlg),
}

/// The key-specific part of a public area: parameters and unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// An RSA key.
    Rsa {
        /// AES-CFB key bits for children, in a storage key.
        symmetric: Option<u16>,
        /// Signing scheme.
        scheme: Scheme,
        /// Bits of the modulus.
        bits: u16,
        /// Public exponent; 0 stands for 65537.
        exponent: u32,
        /// Modulus, big-endian.
        modulus: Vec<u8>,
    },
    /// An ECC key.
    Ecc {
        /// AES-CFB key bits for children, in a storage key.
        symmetric: Option<u16>,
        /// Signing scheme.
        scheme: Scheme,
        /// The curve.
        curve: Curve,
        /// Affine x, big-endian.
        x: Vec<u8>,
        /// Affine y, big-endian.
        y: Vec<u8>,
    },
    /// A sealed data object (scheme NULL).
    Sealed {
        /// H(seed || data).
        unique: Vec<u8>,
    },
}

/// TPMT_PUBLIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// Algorithm of the Name.
    pub name_alg: HashAlg,
    /// TPMA_OBJECT.
    pub attributes: u32,
    /// authPolicy, empty or a digest of `name_alg`.
    pub auth_policy: Vec<u8>,
    /// The key.
    pub key: Key,
}

impl Public {
    /// Reads a TPMT_PUBLIC.
    ///
    /// # Errors
    /// A type, scheme, curve or symmetric algorithm outside of those above, or not the structure.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > limits::PUBLIC {
            let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let max = u64::try_from(limits::PUBLIC).unwrap_or(u64::MAX);
            return Err(Reader::new(bytes).bad("TPMT_PUBLIC", Reason::TooLarge { got, max }));
        }
        Reader::all(bytes, "TPMT_PUBLIC", Self::read)
    }

    /// Reads a public area from a file: TPMT_PUBLIC, or TPM2B_PUBLIC as most tools write it. They cannot be confused: a TPMT_PUBLIC
    /// has its nameAlg where a TPM2B_PUBLIC has the type, and no number is both.
    ///
    /// # Errors
    /// As [`Public::parse`].
    pub fn parse_file(bytes: &[u8]) -> Result<Self, Malformed> {
        let sized =
            bytes.split_first_chunk::<2>().filter(|(n, rest)| usize::from(u16::from_be_bytes(**n)) == rest.len());
        match sized {
            Some(_) => Reader::all(bytes, "TPM2B_PUBLIC", |reader| {
                let n = reader.u16_be("TPM2B_PUBLIC.size")?;
                let mut inner = reader.sub(usize::from(n), "TPM2B_PUBLIC")?;
                let public = Self::read(&mut inner)?;
                inner.end("TPM2B_PUBLIC")?;
                Ok(public)
            }),
            None => Self::parse(bytes),
        }
    }

    /// Reads a TPMT_PUBLIC that other fields follow.
    ///
    /// # Errors
    /// As [`Public::parse`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let at_kind = reader.clone();
        let kind = reader.u16_be("type")?;
        let at = reader.clone();
        let name_alg = reader.u16_be("nameAlg")?;
        let name_alg = HashAlg::from_id(name_alg).ok_or_else(|| at.bad("nameAlg", Reason::Value(name_alg.into())))?;
        let attributes = reader.u32_be("objectAttributes")?;
        let at = reader.clone();
        let auth_policy = reader.tpm2b(limits::DIGEST, "authPolicy")?.to_vec();
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.size() {
            return Err(at.bad("authPolicy", Reason::Other("its length is not that of a digest by nameAlg")));
        }
        let key = match kind {
            ALG_RSA => {
                let symmetric = read_symmetric(reader)?;
                let scheme = read_scheme(reader)?;
                Key::Rsa {
                    symmetric,
                    scheme,
                    bits: reader.u16_be("parameters.keyBits")?,
                    exponent: reader.u32_be("parameters.exponent")?,
                    modulus: reader.tpm2b(limits::RSA, "unique.rsa")?.to_vec(),
                }
            }
            ALG_ECC => {
                let symmetric = read_symmetric(reader)?;
                let scheme = read_scheme(reader)?;
                let at = reader.clone();
                let id = reader.u16_be("parameters.curveID")?;
                let curve = Curve::from_id(id).ok_or_else(|| at.bad("parameters.curveID", Reason::Value(id.into())))?;
                let at = reader.clone();
                let kdf = reader.u16_be("parameters.kdf")?;
                if kdf != ALG_NULL {
                    return Err(at.bad("parameters.kdf", Reason::Value(kdf.into())));
                }
                let x = reader.tpm2b(limits::ECC, "unique.ecc.x")?.to_vec();
                Key::Ecc { symmetric, scheme, curve, x, y: reader.tpm2b(limits::ECC, "unique.ecc.y")?.to_vec() }
            }
            ALG_KEYEDHASH => {
                let at = reader.clone();
                let scheme = reader.u16_be("parameters.scheme")?;
                if scheme != ALG_NULL {
                    return Err(at.bad("parameters.scheme", Reason::Value(scheme.into())));
                }
                Key::Sealed { unique: reader.tpm2b(limits::DIGEST, "unique.keyedHash")?.to_vec() }
            }
            other => return Err(at_kind.bad("type", Reason::Value(other.into()))),
        };
        Ok(Self { name_alg, attributes, auth_policy, key })
    }

    /// The structure as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let kind = match self.key {
            Key::Rsa { .. } => ALG_RSA,
            Key::Ecc { .. } => ALG_ECC,
            Key::Sealed { .. } => ALG_KEYEDHASH,
        };
        let writer =
            Writer::new().u16_be(kind).u16_be(self.name_alg.id()).u32_be(self.attributes).tpm2b(&self.auth_policy);
        match &self.key {
            Key::Rsa { symmetric, scheme, bits, exponent, modulus } => {
                let writer = write_scheme(write_symmetric(writer, *symmetric), *scheme);
                writer.u16_be(*bits).u32_be(*exponent).tpm2b(modulus)
            }
            Key::Ecc { symmetric, scheme, curve, x, y } => {
                let writer = write_scheme(write_symmetric(writer, *symmetric), *scheme);
                writer.u16_be(curve.id()).u16_be(ALG_NULL).tpm2b(x).tpm2b(y)
            }
            Key::Sealed { unique } => writer.u16_be(ALG_NULL).tpm2b(unique),
        }
        .done()
    }

    /// Name = nameAlg || H(public area).
    #[must_use]
    pub fn name(&self) -> Name {
        Name::of(self.name_alg, &[&self.to_bytes()])
    }

    /// Whether all of these attribute bits are set.
    #[must_use]
    pub const fn has(&self, bits: u32) -> bool {
        self.attributes & bits == bits
    }

    /// The signing scheme, for a key that has one.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        match &self.key {
            Key::Rsa { scheme, .. } | Key::Ecc { scheme, .. } => *scheme,
            Key::Sealed { .. } => Scheme::Null,
        }
    }

    /// For an ECC key: 04 || x || y, coordinates padded (SEC 1, 2.3.3). `None` for other keys and overlong coordinates.
    #[must_use]
    pub fn ecc_point(&self) -> Option<Vec<u8>> {
        let Key::Ecc { curve, x, y, .. } = &self.key else { return None };
        let mut point = vec![4];
        for coordinate in [x, y] {
            point.resize(point.len().checked_add(curve.size().checked_sub(coordinate.len())?)?, 0);
            point.extend_from_slice(coordinate);
        }
        Some(point)
    }

    /// SubjectPublicKeyInfo (DER, RFC 5280 4.1.2.7); `None` for a sealed object or a key that has none.
    #[must_use]
    pub fn spki(&self) -> Option<Vec<u8>> {
        use p256::pkcs8::EncodePublicKey as _;
        match &self.key {
            Key::Ecc { curve: Curve::P256, .. } => {
                let key = p256::PublicKey::from_sec1_bytes(&self.ecc_point()?).ok()?;
                Some(key.to_public_key_der().ok()?.into_vec())
            }
            Key::Ecc { curve: Curve::P384, .. } => {
                let key = p384::PublicKey::from_sec1_bytes(&self.ecc_point()?).ok()?;
                Some(key.to_public_key_der().ok()?.into_vec())
            }
            Key::Rsa { modulus, exponent, .. } => {
                let exponent = if *exponent == 0 { 65_537 } else { *exponent };
                let key = rsa::PublicKey::new(
                    rsa::BoxedUint::from_be_slice_vartime(modulus),
                    rsa::BoxedUint::from(u64::from(exponent)),
                );
                Some(key.ok()?.to_public_key_der().ok()?.into_vec())
            }
            Key::Sealed { .. } => None,
        }
    }
}

fn read_symmetric(reader: &mut Reader<'_>) -> Result<Option<u16>, Malformed> {
    let at = reader.clone();
    match reader.u16_be("parameters.symmetric.algorithm")? {
        ALG_NULL => Ok(None),
        ALG_AES => {
            let at = reader.clone();
            let bits = reader.u16_be("parameters.symmetric.keyBits")?;
            if ![128, 192, 256].contains(&bits) {
                return Err(at.bad("parameters.symmetric.keyBits", Reason::Value(bits.into())));
            }
            let at = reader.clone();
            match reader.u16_be("parameters.symmetric.mode")? {
                ALG_CFB => Ok(Some(bits)),
                other => Err(at.bad("parameters.symmetric.mode", Reason::Value(other.into()))),
            }
        }
        other => Err(at.bad("parameters.symmetric.algorithm", Reason::Value(other.into()))),
    }
}

fn read_scheme(reader: &mut Reader<'_>) -> Result<Scheme, Malformed> {
    let at = reader.clone();
    let scheme = reader.u16_be("parameters.scheme")?;
    if scheme == ALG_NULL {
        return Ok(Scheme::Null);
    }
    let of = match scheme {
        ALG_RSASSA => Scheme::Rsassa,
        ALG_RSAPSS => Scheme::Rsapss,
        ALG_ECDSA => Scheme::Ecdsa,
        other => return Err(at.bad("parameters.scheme", Reason::Value(other.into()))),
    };
    let at = reader.clone();
    let hash = reader.u16_be("parameters.scheme.hashAlg")?;
    HashAlg::from_id(hash).map(of).ok_or_else(|| at.bad("parameters.scheme.hashAlg", Reason::Value(hash.into())))
}

fn write_symmetric(writer: Writer, bits: Option<u16>) -> Writer {
    match bits {
        None => writer.u16_be(ALG_NULL),
        Some(bits) => writer.u16_be(ALG_AES).u16_be(bits).u16_be(ALG_CFB),
    }
}

fn write_scheme(writer: Writer, scheme: Scheme) -> Writer {
    match scheme {
        Scheme::Null => writer.u16_be(ALG_NULL),
        Scheme::Rsassa(hash) => writer.u16_be(ALG_RSASSA).u16_be(hash.id()),
        Scheme::Rsapss(hash) => writer.u16_be(ALG_RSAPSS).u16_be(hash.id()),
        Scheme::Ecdsa(hash) => writer.u16_be(ALG_ECDSA).u16_be(hash.id()),
    }
}

/// A TPM Name: nameAlg || digest for objects, the handle for everything else (Part 1, 16).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// nameAlg || H(parts).
    #[must_use]
    pub fn of(alg: HashAlg, parts: &[&[u8]]) -> Self {
        Self(Writer::new().u16_be(alg.id()).raw(alg.digest(parts).as_bytes()).done())
    }

    /// The Name of an entity that is its handle (hierarchies, PCRs, sessions).
    #[must_use]
    pub fn of_handle(handle: u32) -> Self {
        Self(handle.to_be_bytes().to_vec())
    }

    /// A Name as received.
    ///
    /// # Errors
    /// Not nameAlg || digest of that algorithm's length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        Reader::all(bytes, "Name", |reader| {
            let at = reader.clone();
            let id = reader.u16_be("Name.nameAlg")?;
            let alg = HashAlg::from_id(id).ok_or_else(|| at.bad("Name.nameAlg", Reason::Value(id.into())))?;
            reader.take(alg.size(), "Name.digest")?;
            Ok(Self(bytes.to_vec()))
        })
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECC: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_ecc.tpmt");
    const ECC_NAME: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_ecc.name");
    const RSA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_rsa.tpmt");
    const RSA_NAME: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_rsa.name");

    #[test]
    fn recorded_publics_and_names() {
        for (file, name) in [(ECC, ECC_NAME), (RSA, RSA_NAME)] {
            let public = Public::parse_file(file).unwrap();
            let bytes = public.to_bytes();
            assert_eq!(bytes, file[2..], "the files hold TPM2B_PUBLIC");
            assert_eq!(Public::parse(&bytes).unwrap(), public);
            assert_eq!(Public::parse_file(&bytes).unwrap(), public);
            assert_eq!(public.name().as_bytes(), name);
            assert_eq!(Name::parse(name).unwrap(), public.name());
            assert!(public.spki().is_some());
        }
    }

    #[test]
    fn truncations_and_changed_bytes() {
        for file in [ECC, RSA] {
            for end in 0..file.len() {
                assert!(Public::parse_file(&file[..end]).is_err());
            }
            let bytes = &file[2..];
            for end in 0..bytes.len() {
                assert!(Public::parse(&bytes[..end]).is_err());
            }
            assert!(Public::parse(&[bytes, &[0]].concat()).is_err());
            for at in 0..bytes.len() {
                for value in [0, 0x0b, 0x10, 0xff] {
                    let mut changed = bytes.to_vec();
                    changed[at] = value;
                    if let Ok(other) = Public::parse(&changed) {
                        assert_eq!(other.to_bytes(), changed);
                        let _ = (other.spki(), other.ecc_point());
                    }
                }
            }
        }
        assert!(Public::parse(&[0; 2000]).is_err());
    }
}
