//! Every structure: what is written is read back as it was, every prefix of it is refused, and no bytes at all make a parser panic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use countersign_tpm::alg::{Digest, HashAlg};
use countersign_tpm::attest::{ClockInfo, Quote};
use countersign_tpm::codec::{Malformed, Reader, Writer};
use countersign_tpm::ekcert;
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_tpm::public::{Curve, Key, Name, Public, Scheme};
use countersign_tpm::rc::ResponseCode;
use countersign_tpm::signature::Signature;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn hash() -> impl Strategy<Value = HashAlg> {
    select(HashAlg::ALL.to_vec())
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        Just(Scheme::Null),
        hash().prop_map(Scheme::Rsassa),
        hash().prop_map(Scheme::Rsapss),
        hash().prop_map(Scheme::Ecdsa),
    ]
}

fn symmetric() -> impl Strategy<Value = Option<u16>> {
    select(vec![None, Some(128), Some(192), Some(256)])
}

fn key() -> impl Strategy<Value = Key> {
    let rsa = (symmetric(), scheme(), any::<u16>(), any::<u32>(), bytes(512)).prop_map(
        |(symmetric, scheme, bits, exponent, modulus)| Key::Rsa { symmetric, scheme, bits, exponent, modulus },
    );
    let ecc = (symmetric(), scheme(), select(vec![Curve::P256, Curve::P384]), bytes(66), bytes(66))
        .prop_map(|(symmetric, scheme, curve, x, y)| Key::Ecc { symmetric, scheme, curve, x, y });
    let sealed = bytes(64).prop_map(|unique| Key::Sealed { unique });
    prop_oneof![rsa, ecc, sealed]
}

fn public() -> impl Strategy<Value = Public> {
    (hash(), any::<u32>(), any::<bool>(), key()).prop_map(|(name_alg, attributes, policy, key)| {
        let auth_policy = if policy { Digest::filled(name_alg, 0xa5).as_bytes().to_vec() } else { Vec::new() };
        Public { name_alg, attributes, auth_policy, key }
    })
}

fn selection() -> impl Strategy<Value = PcrSelection> {
    (proptest::sample::subsequence(HashAlg::ALL.to_vec(), 0..=4), vec(vec(0u8..24, 0..24), 4)).prop_map(
        |(algs, pcrs)| {
            PcrSelection(algs.into_iter().zip(pcrs).map(|(alg, pcrs)| BankSelection::new(alg, &pcrs)).collect())
        },
    )
}

/// The parser refuses each proper prefix of `good`, and anything behind it.
fn only_whole<T>(good: &[u8], parse: impl Fn(&[u8]) -> Result<T, Malformed>) {
    assert!(parse(good).is_ok());
    for end in 0..good.len() {
        let error = parse(&good[..end]).err().unwrap_or_else(|| panic!("{end} of {} bytes were enough", good.len()));
        assert!(error.offset <= end, "{error}");
    }
    assert!(parse(&[good, &[0]].concat()).is_err());
}

/// Every pair of bytes, taken as a length or count, set to values around what fits: an error inside of the input, or another value that
/// is written as it was read.
fn inner_lengths<T>(good: &[u8], parse: impl Fn(&[u8]) -> Result<T, Malformed>, write: impl Fn(&T) -> Vec<u8>) {
    for at in 0..good.len().saturating_sub(1) {
        let was = u16::from_be_bytes([good[at], good[at + 1]]);
        for value in [0, 1, was.wrapping_sub(1), was.wrapping_add(1), 0x00ff, 0x7fff, 0xffff] {
            let mut changed = good.to_vec();
            changed[at..at + 2].copy_from_slice(&value.to_be_bytes());
            match parse(&changed) {
                Ok(other) => assert_eq!(write(&other), changed),
                Err(error) => assert!(error.offset <= changed.len(), "{error}"),
            }
        }
    }
}

fn read_selection(bytes: &[u8]) -> Result<PcrSelection, Malformed> {
    Reader::all(bytes, "selection", PcrSelection::read)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn publics(public in public()) {
        let bytes = public.to_bytes();
        prop_assert_eq!(&Public::parse(&bytes).unwrap(), &public);
        prop_assert_eq!(&Public::parse_file(&bytes).unwrap(), &public);
        let sized = Writer::new().tpm2b(&bytes).done();
        prop_assert_eq!(&Public::parse_file(&sized).unwrap(), &public);
        prop_assert_eq!(Name::parse(public.name().as_bytes()).unwrap(), public.name());
        only_whole(&bytes, Public::parse);
        only_whole(&sized, Public::parse_file);
        inner_lengths(&bytes[..bytes.len().min(120)], Public::parse, Public::to_bytes);
        let _ = (public.spki(), public.ecc_point());
    }

    #[test]
    fn signatures(hash in hash(), kind in 0..3, first in bytes(66), second in bytes(66)) {
        let signature = match kind {
            0 => Signature::Rsassa { hash, signature: &first },
            1 => Signature::Rsapss { hash, signature: &first },
            _ => Signature::Ecdsa { hash, r: &first, s: &second },
        };
        let bytes = signature.to_bytes();
        prop_assert_eq!(Signature::parse(&bytes).unwrap(), signature);
        only_whole(&bytes, |bytes| Signature::parse(bytes).map(|_| ()));
        for size in [0, 32, 48] {
            prop_assert!(signature.to_fixed(size).is_none_or(|fixed| fixed.len() == 2 * size));
        }
        let mut changed = bytes.clone();
        for at in 0..bytes.len() - 1 {
            changed[at] ^= 0x80;
            if let Ok(other) = Signature::parse(&changed) {
                prop_assert_eq!(&other.to_bytes(), &changed);
            }
            changed[at] ^= 0x80;
        }
    }

    #[test]
    fn selections(selection in selection()) {
        let bytes = selection.to_bytes();
        prop_assert_eq!(&read_selection(&bytes).unwrap(), &selection);
        only_whole(&bytes, read_selection);
        inner_lengths(&bytes, read_selection, PcrSelection::to_bytes);
        for bank in &selection.0 {
            prop_assert!(bank.pcrs().all(|pcr| bank.contains(pcr)));
            prop_assert_eq!(u32::try_from(bank.pcrs().count()).unwrap(), bank.bitmap.count_ones());
        }
    }

    #[test]
    fn quotes(
        signer in bytes(66),
        extra in bytes(66),
        clock in any::<(u64, u32, u32, bool)>(),
        firmware_version in any::<u64>(),
        selection in selection(),
        digest in bytes(64),
    ) {
        let quote = Quote {
            qualified_signer: &signer,
            extra_data: &extra,
            clock: ClockInfo { clock: clock.0, reset_count: clock.1, restart_count: clock.2, safe: clock.3 },
            firmware_version,
            selection,
            pcr_digest: &digest,
        };
        let bytes = quote.to_bytes();
        prop_assert_eq!(&Quote::parse(&bytes).unwrap(), &quote);
        only_whole(&bytes, |bytes| Quote::parse(bytes).map(|_| ()));
        for at in 0..bytes.len() - 1 {
            for value in [[0, 0], [0, 0x43], [0x7f, 0xff], [0xff, 0xff]] {
                let mut changed = bytes.clone();
                changed[at..at + 2].copy_from_slice(&value);
                if let Ok(other) = Quote::parse(&changed) {
                    prop_assert_eq!(&other.to_bytes(), &changed);
                }
            }
        }
    }

    #[test]
    fn names(alg in hash(), data in bytes(40)) {
        let name = Name::of(alg, &[&data]);
        only_whole(name.as_bytes(), Name::parse);
    }

    #[test]
    fn any_bytes(bytes in bytes(200), prefix in select(vec![
        Vec::new(),
        vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18],
        vec![0, 0x01, 0, 0x0b],
        vec![0, 0x23, 0, 0x0b],
        vec![0, 0x18, 0, 0x0b],
        vec![0x10, 0x01, 0, 0, 0x10, 0x02, 0, 0x30, 0x82, 0, 0x40],
        vec![0x30, 0x82, 0, 0x40, 0x30],
    ])) {
        let bytes = [prefix, bytes].concat();
        let _ = Quote::parse(&bytes);
        let _ = Signature::parse(&bytes);
        let _ = Public::parse(&bytes);
        let _ = Public::parse_file(&bytes);
        let _ = read_selection(&bytes);
        let _ = Name::parse(&bytes);
        let der = ekcert::from_nv(&bytes).unwrap_or(&bytes);
        prop_assert!(ekcert::check(der, &[], &[], 0).is_err());
        let _ = (ekcert::certified_key(der), ekcert::subject(der));
    }

    #[test]
    fn any_response_code(code in any::<u32>()) {
        let code = ResponseCode(code);
        prop_assert!(!code.to_string().is_empty());
        let _ = (code.base(), code.location(), code.asks_again());
    }
}
