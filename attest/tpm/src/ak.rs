//! Attestation keys: the template, what is accepted, and the qualified Name that a quote must carry (TPM 2.0 Part 1, 16).

use crate::alg::HashAlg;
use crate::policy::RH_ENDORSEMENT;
use crate::public::{Curve, Key, Name, Public, Scheme, attributes};

/// TPMA_OBJECT of our AK: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.
pub const ATTRIBUTES: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::USER_WITH_AUTH
    | attributes::NO_DA
    | attributes::RESTRICTED
    | attributes::SIGN;

/// The kinds of AK that this project makes. Others are accepted too: [`check`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA P-256 with SHA-256.
    #[default]
    P256,
    /// ECDSA P-384 with SHA-384.
    P384,
    /// RSASSA with 2048 bits and SHA-256, for TPMs without elliptic curves.
    Rsa2048,
}

impl Kind {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    /// Its name: `p256`, `p384` or `rsa2048`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa2048",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The key as TPM2_Create takes it.
    #[must_use]
    pub fn template(self) -> Public {
        let ecc = |curve, hash| Key::Ecc {
            symmetric: None,
            scheme: Scheme::Ecdsa(hash),
            curve,
            x: Vec::new(),
            y: Vec::new(),
        };
        let key = match self {
            Self::P256 => ecc(Curve::P256, HashAlg::Sha256),
            Self::P384 => ecc(Curve::P384, HashAlg::Sha384),
            Self::Rsa2048 => Key::Rsa {
                symmetric: None,
                scheme: Scheme::Rsassa(HashAlg::Sha256),
                bits: 2048,
                exponent: 0,
                modulus: Vec::new(),
            },
        };
        Public { name_alg: HashAlg::Sha256, attributes: ATTRIBUTES, auth_policy: Vec::new(), key }
    }

    /// The kind of a key, if it is one of these.
    #[must_use]
    pub fn of(public: &Public) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| {
            let mut bare = public.clone();
            match &mut bare.key {
                Key::Rsa { modulus, .. } => modulus.clear(),
                Key::Ecc { x, y, .. } => {
                    x.clear();
                    y.clear();
                }
                Key::Sealed { .. } => {}
            }
            bare == kind.template()
        })
    }
}

/// The default AK, as TPM2_Create takes it.
#[must_use]
pub fn template() -> Public {
    Kind::default().template()
}

/// Why a key is not accepted as an AK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AkError {
    /// Attributes that an AK must have are missing.
    #[error("AK attributes {got:#010x}: {missing} must be set")]
    Missing {
        /// TPMA_OBJECT.
        got: u32,
        /// The name of the first missing attribute.
        missing: &'static str,
    },
    /// It also decrypts.
    #[error("AK attributes {0:#010x}: decrypt must be clear")]
    Decrypts(u32),
    /// Kind, size or scheme is not on the list.
    #[error(
        "AK {0} is not accepted (ECDSA P-256 or P-384, RSASSA or RSAPSS with 2048 to 4096 bits, SHA-256 or SHA-384)"
    )]
    Algorithm(&'static str),
}

/// Checks that a key is one whose quotes mean something.
///
/// # Errors
/// [`AkError`] names the attribute or algorithm.
pub fn check(public: &Public) -> Result<(), AkError> {
    let required = [
        (attributes::RESTRICTED, "restricted"),
        (attributes::SIGN, "sign"),
        (attributes::FIXED_TPM, "fixedTPM"),
        (attributes::FIXED_PARENT, "fixedParent"),
        (attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
    ];
    for (bit, missing) in required {
        if !public.has(bit) {
            return Err(AkError::Missing { got: public.attributes, missing });
        }
    }
    if public.has(attributes::DECRYPT) {
        return Err(AkError::Decrypts(public.attributes));
    }
    let hash_ok = |hash: HashAlg| matches!(hash, HashAlg::Sha256 | HashAlg::Sha384);
    if !hash_ok(public.name_alg) {
        return Err(AkError::Algorithm("nameAlg"));
    }
    match (&public.key, public.scheme()) {
        (_, Scheme::Null) => Err(AkError::Algorithm("scheme NULL")),
        (Key::Ecc { curve: Curve::P256, .. }, Scheme::Ecdsa(HashAlg::Sha256))
        | (Key::Ecc { curve: Curve::P384, .. }, Scheme::Ecdsa(HashAlg::Sha384)) => Ok(()),
        (Key::Ecc { .. }, _) => Err(AkError::Algorithm("scheme")),
        (Key::Rsa { bits, modulus, exponent, .. }, Scheme::Rsassa(hash) | Scheme::Rsapss(hash)) => {
            if !hash_ok(hash) {
                return Err(AkError::Algorithm("scheme's hash"));
            }
            let length_ok = modulus.len().checked_mul(8) == Some(usize::from(*bits));
            if !(2048..=4096).contains(bits) || !length_ok || ![0, 65_537].contains(exponent) {
                return Err(AkError::Algorithm("RSA key size"));
            }
            Ok(())
        }
        (Key::Rsa { .. }, Scheme::Ecdsa(_)) | (Key::Sealed { .. }, _) => Err(AkError::Algorithm("type")),
    }
}

/// Qualified Name of an AK that is a child of an EK: H(QN(EK) || Name(AK)), QN(EK) = H(TPM_RH_ENDORSEMENT || Name(EK)).
///
/// Each hash is by the nameAlg of the object that it is for. `None` for a Name that is not one.
#[must_use]
pub fn qualified_name(ek: &Name, ak: &Name) -> Option<Name> {
    let alg = |name: &Name| {
        let id = name.as_bytes().first_chunk::<2>().map(|id| u16::from_be_bytes(*id))?;
        HashAlg::from_id(id)
    };
    let ek_qualified = Name::of(alg(ek)?, &[&RH_ENDORSEMENT.to_be_bytes(), ek.as_bytes()]);
    Some(Name::of(alg(ak)?, &[ek_qualified.as_bytes(), ak.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Quote;

    const ECC: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_ecc.tpmt");
    const RSA: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_rsa.tpmt");
    const EK: &[u8] = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ek.pub");
    const QUOTES: [(&[u8], &[u8]); 2] = [
        (ECC, include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.msg")),
        (RSA, include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_rsa.msg")),
    ];

    fn rsa() -> Public {
        Public::parse_file(RSA).unwrap()
    }

    fn with_scheme(public: &Public, new: Scheme) -> Public {
        let mut public = public.clone();
        match &mut public.key {
            Key::Rsa { scheme, .. } | Key::Ecc { scheme, .. } => *scheme = new,
            Key::Sealed { .. } => {}
        }
        public
    }

    #[test]
    fn recorded_aks_are_accepted() {
        check(&Public::parse_file(ECC).unwrap()).unwrap();
        check(&rsa()).unwrap();
        assert_eq!(template().attributes, 0x0005_0472);
        check(&template()).unwrap();
    }

    #[test]
    fn kinds() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            let mut made = kind.template();
            match &mut made.key {
                Key::Rsa { modulus, .. } => *modulus = vec![0xc5; 256],
                Key::Ecc { x, curve, .. } => *x = vec![1; curve.size()],
                Key::Sealed { .. } => {}
            }
            check(&made).unwrap();
            assert_eq!(Kind::of(&made), Some(kind));
        }
        assert_eq!(Kind::from_name("dsa"), None);
        assert_eq!(Kind::of(&Public::parse_file(EK).unwrap()), None);
    }

    #[test]
    fn qualified_signer_of_recorded_quotes() {
        let ek = Public::parse_file(EK).unwrap().name();
        for (ak, quote) in QUOTES {
            let ak = Public::parse_file(ak).unwrap().name();
            let quote = Quote::parse(quote).unwrap();
            assert_eq!(qualified_name(&ek, &ak).unwrap().as_bytes(), quote.qualified_signer);
            assert_ne!(qualified_name(&ak, &ak).unwrap().as_bytes(), quote.qualified_signer);
        }
        assert_eq!(qualified_name(&Name::of_handle(RH_ENDORSEMENT), &ek), None);
    }

    #[test]
    fn each_attribute_is_needed() {
        for (bit, name) in [
            (attributes::RESTRICTED, "restricted"),
            (attributes::SIGN, "sign"),
            (attributes::FIXED_TPM, "fixedTPM"),
            (attributes::FIXED_PARENT, "fixedParent"),
            (attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        ] {
            let mut public = rsa();
            public.attributes &= !bit;
            assert!(matches!(check(&public), Err(AkError::Missing { missing, .. }) if missing == name));
        }
        let mut public = rsa();
        public.attributes |= attributes::DECRYPT;
        assert!(matches!(check(&public), Err(AkError::Decrypts(_))));
    }

    #[test]
    fn schemes() {
        use HashAlg::{Sha1, Sha256, Sha384, Sha512};
        let ecc = template();
        let p384 = |scheme| {
            let mut public = with_scheme(&ecc, scheme);
            if let Key::Ecc { curve, .. } = &mut public.key {
                *curve = Curve::P384;
            }
            public
        };
        for accepted in [
            with_scheme(&rsa(), Scheme::Rsassa(Sha256)),
            with_scheme(&rsa(), Scheme::Rsapss(Sha384)),
            p384(Scheme::Ecdsa(Sha384)),
        ] {
            check(&accepted).unwrap();
        }
        for refused in [
            with_scheme(&rsa(), Scheme::Null),
            with_scheme(&ecc, Scheme::Null),
            with_scheme(&rsa(), Scheme::Rsassa(Sha1)),
            with_scheme(&rsa(), Scheme::Rsapss(Sha512)),
            with_scheme(&rsa(), Scheme::Ecdsa(Sha256)),
            with_scheme(&ecc, Scheme::Rsassa(Sha256)),
            with_scheme(&ecc, Scheme::Ecdsa(Sha1)),
            p384(Scheme::Ecdsa(Sha256)),
        ] {
            assert!(matches!(check(&refused), Err(AkError::Algorithm(_))), "{refused:?}");
        }
    }

    #[test]
    fn sizes_names_and_types() {
        let changed = |change: fn(&mut Public)| {
            let mut public = rsa();
            change(&mut public);
            public
        };
        let short: fn(&mut Public) = |public| {
            if let Key::Rsa { bits, modulus, .. } = &mut public.key {
                *bits = 1024;
                modulus.truncate(128);
            }
        };
        let unequal: fn(&mut Public) = |public| {
            if let Key::Rsa { modulus, .. } = &mut public.key {
                modulus.pop();
            }
        };
        let exponent: fn(&mut Public) = |public| {
            if let Key::Rsa { exponent, .. } = &mut public.key {
                *exponent = 3;
            }
        };
        let name: fn(&mut Public) = |public| public.name_alg = HashAlg::Sha1;
        let sealed: fn(&mut Public) = |public| public.key = Key::Sealed { unique: vec![0; 32] };
        for change in [short, unequal, exponent, name, sealed] {
            let public = changed(change);
            assert!(matches!(check(&public), Err(AkError::Algorithm(_))), "{public:?}");
        }
    }
}
