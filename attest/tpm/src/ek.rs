//! Endorsement keys: the templates that are accepted, their policies, and rebuilding a public area from a certified key
//! (TCG EK Credential Profile 2.5, annex B).

use crate::alg::HashAlg;
use crate::policy::{Policy, RH_ENDORSEMENT};
use crate::public::{Curve, Key, Name, Public, Scheme, attributes};

/// TPMA_OBJECT of the low-range templates (L-1, L-2): policy only.
const LOW_RANGE: u32 = 0x0003_00B2;
/// TPMA_OBJECT of the high-range templates (H-1 and up): the empty password works too; we never use it.
const HIGH_RANGE: u32 = 0x0003_00F2;

/// PolicyC of the SHA-384 templates: PolicyAuthorizeNV of NV index 0x01c07f02 (EK Credential Profile 2.5, B.6.5).
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef, 0x2b, 0x6a, 0x16,
    0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5, 0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6,
    0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

/// An EK template that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// L-1: RSA-2048, SHA-256, AES-128. Certificate at NV 0x01c00002.
    Rsa2048,
    /// L-2: P-256, SHA-256, AES-128. Certificate at NV 0x01c0000a.
    P256,
    /// H-3: P-384, SHA-384, AES-256. Certificate at NV 0x01c00016.
    P384,
}

impl Template {
    /// All of them, by ascending NV index of their certificates.
    pub const ALL: [Self; 3] = [Self::Rsa2048, Self::P256, Self::P384];

    /// NV index of the certificate.
    #[must_use]
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::P256 => 0x01c0_000a,
            Self::P384 => 0x01c0_0016,
        }
    }

    /// Handle at which TPM vendors and swtpm keep the key persistent (TCG Registry of Reserved TPM 2.0 Handles).
    #[must_use]
    pub const fn persistent_handle(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x8101_0001,
            Self::P256 => 0x8101_000A,
            Self::P384 => 0x8101_0016,
        }
    }

    /// PolicyA: TPM2_PolicySecret(TPM_RH_ENDORSEMENT), by the template's hash.
    #[must_use]
    pub fn policy_a(self) -> Vec<u8> {
        let secret = Policy::new(self.name_alg()).secret(&Name::of_handle(RH_ENDORSEMENT), &[]);
        secret.digest().as_bytes().to_vec()
    }

    /// The branches of the PolicyOR that follows PolicySecret; none for the low range.
    #[must_use]
    pub fn policy_or(self) -> Option<[Vec<u8>; 2]> {
        match self {
            Self::Rsa2048 | Self::P256 => None,
            Self::P384 => Some([self.policy_a(), POLICY_C_SHA384.to_vec()]),
        }
    }

    /// The EK's authPolicy.
    #[must_use]
    pub fn policy(self) -> Vec<u8> {
        match self.policy_or() {
            None => self.policy_a(),
            Some([a, c]) => Policy::new(self.name_alg()).or(&[&a, &c]).digest().as_bytes().to_vec(),
        }
    }

    /// nameAlg of the EK; sessions that authorise it must have the same hash.
    #[must_use]
    pub const fn name_alg(self) -> HashAlg {
        match self {
            Self::Rsa2048 | Self::P256 => HashAlg::Sha256,
            Self::P384 => HashAlg::Sha384,
        }
    }

    /// The template as TPM2_CreatePrimary takes it: `unique` is zeros (low range) or empty (high range).
    #[must_use]
    pub fn template(self) -> Public {
        match self {
            Self::Rsa2048 => self.public(&[0; 256], &[]),
            Self::P256 => self.public(&[0; 32], &[0; 32]),
            Self::P384 => self.public(&[], &[]),
        }
    }

    fn public(self, first: &[u8], second: &[u8]) -> Public {
        let ecc = |curve, bits| Key::Ecc {
            symmetric: Some(bits),
            scheme: Scheme::Null,
            curve,
            x: first.to_vec(),
            y: second.to_vec(),
        };
        let (attributes, key) = match self {
            Self::Rsa2048 => (
                LOW_RANGE,
                Key::Rsa {
                    symmetric: Some(128),
                    scheme: Scheme::Null,
                    bits: 2048,
                    exponent: 0,
                    modulus: first.to_vec(),
                },
            ),
            Self::P256 => (LOW_RANGE, ecc(Curve::P256, 128)),
            Self::P384 => (HIGH_RANGE, ecc(Curve::P384, 256)),
        };
        Public { name_alg: self.name_alg(), attributes, auth_policy: self.policy(), key }
    }

    /// The public area that a TPM has whose certificate holds this key: the template with the certified numbers. What the host says
    /// about its EK does not enter.
    ///
    /// `None` when the key is of no accepted kind.
    #[must_use]
    pub fn rebuild(key: &CertifiedKey) -> Option<(Self, Public)> {
        let (template, public) = match key {
            CertifiedKey::Rsa { modulus, exponent: 65_537 } if modulus.len() == 256 => {
                (Self::Rsa2048, Self::Rsa2048.public(modulus, &[]))
            }
            CertifiedKey::Ecc { curve: Curve::P256, x, y } => (Self::P256, Self::P256.public(x, y)),
            CertifiedKey::Ecc { curve: Curve::P384, x, y } => (Self::P384, Self::P384.public(x, y)),
            CertifiedKey::Rsa { .. } => return None,
        };
        Some((template, public))
    }

    /// The template of an EK's public area, if it is exactly one of these with some key in it.
    #[must_use]
    pub fn of(public: &Public) -> Option<Self> {
        let key = match &public.key {
            Key::Rsa { modulus, .. } => CertifiedKey::Rsa { modulus: modulus.clone(), exponent: 65_537 },
            Key::Ecc { curve, x, y, .. } => CertifiedKey::Ecc { curve: *curve, x: x.clone(), y: y.clone() },
            Key::Sealed { .. } => return None,
        };
        let (template, rebuilt) = Self::rebuild(&key)?;
        (rebuilt == *public).then_some(template)
    }
}

/// A public key as an EK certificate holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertifiedKey {
    /// RSA.
    Rsa {
        /// Big-endian, no leading zeros.
        modulus: Vec<u8>,
        /// Public exponent.
        exponent: u64,
    },
    /// A point on a curve.
    Ecc {
        /// The curve.
        curve: Curve,
        /// Padded to the curve's size.
        x: Vec<u8>,
        /// Padded to the curve's size.
        y: Vec<u8>,
    },
}

/// Attributes that every storage key for wraps has.
pub const STORAGE: u32 = attributes::RESTRICTED | attributes::DECRYPT;

#[cfg(test)]
mod tests {
    use super::*;

    fn point(fill: u8, curve: Curve) -> CertifiedKey {
        CertifiedKey::Ecc { curve, x: vec![fill; curve.size()], y: vec![fill; curve.size()] }
    }

    #[test]
    fn templates_as_written() {
        for (template, attributes, length) in [
            (Template::Rsa2048, 0x0003_00B2, 314),
            (Template::P256, 0x0003_00B2, 122),
            (Template::P384, 0x0003_00F2, 74),
        ] {
            let public = template.template();
            assert_eq!(public.attributes, attributes);
            assert!(public.has(STORAGE));
            assert_eq!(public.to_bytes().len(), length);
            assert_eq!(Public::parse(&public.to_bytes()).unwrap(), public);
        }
    }

    #[test]
    fn rebuilt_publics_are_recognised_and_nothing_near_them() {
        let keys = [
            CertifiedKey::Rsa { modulus: vec![0xc5; 256], exponent: 65_537 },
            point(7, Curve::P256),
            point(7, Curve::P384),
        ];
        for (key, expected) in keys.iter().zip(Template::ALL) {
            let (template, public) = Template::rebuild(key).unwrap();
            assert_eq!(template, expected);
            assert_eq!(Template::of(&public), Some(expected));
            let mut signs = public.clone();
            signs.attributes |= attributes::SIGN;
            assert_eq!(Template::of(&signs), None);
            let mut open = public.clone();
            open.auth_policy.clear();
            assert_eq!(Template::of(&open), None);
            let mut weaker = public;
            if let Key::Rsa { symmetric, .. } | Key::Ecc { symmetric, .. } = &mut weaker.key {
                *symmetric = Some(192);
            }
            assert_eq!(Template::of(&weaker), None);
        }
    }

    #[test]
    fn other_keys_have_no_template() {
        for key in [
            CertifiedKey::Rsa { modulus: vec![0xc5; 384], exponent: 65_537 },
            CertifiedKey::Rsa { modulus: vec![0xc5; 128], exponent: 65_537 },
            CertifiedKey::Rsa { modulus: vec![0xc5; 256], exponent: 3 },
        ] {
            assert_eq!(Template::rebuild(&key), None);
        }
        assert_eq!(Template::of(&crate::ak::template()), None);
    }
}
