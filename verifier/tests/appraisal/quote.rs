//! Who signed, what was quoted, and whether the values sent are those.

use std::rc::Rc;

use countersign_tpm::ak::{self, qualified_name};
use countersign_tpm::alg::HashAlg;
use countersign_tpm::pcr::{BankSelection, PcrSelection};
use countersign_tpm::policy::RH_ENDORSEMENT;
use countersign_tpm::public::{Name, attributes};
use countersign_wire::evidence::PcrValue;

use crate::support::boot;
use crate::support::case::{Case, accepted, refused};
use crate::support::tpm::SoftTpm;

#[test]
fn wrong_magic_and_wrong_type() {
    // A restricted key signs no such bytes; one that is not restricted would sign the digest of any.
    let no = refused(&Case::attest().resigned(|quote| quote[0] = 0), "quote-signature", "quote");
    assert!(no.got.contains("magic"), "{no:?}");
    for kind in [0x14, 0x16, 0x17, 0x19, 0x1a] {
        // session audit, time, certify, creation, NV
        let no = refused(&Case::attest().resigned(|quote| quote[5] = kind), "quote-signature", "quote");
        assert!(no.got.contains("type"), "{no:?}");
    }
    refused(&Case::attest().resigned(|quote| quote.push(0)), "quote-signature", "quote");
    refused(&Case::attest().resigned(|quote| quote.truncate(quote.len() - 1)), "quote-signature", "quote");
}

#[test]
fn a_changed_quote_or_signature() {
    let case = Case::attest();
    refused(&case.tampered(|evidence| evidence.quote[60] ^= 1), "quote-signature", "signature");
    refused(&case.tampered(|evidence| evidence.signature[20] ^= 1), "quote-signature", "signature");
    refused(&case.tampered(|evidence| evidence.signature.clear()), "quote-signature", "quote");
    // The algorithm in the signature is not the AK's.
    let no = refused(&case.tampered(|evidence| evidence.signature[3] = 0x0c), "quote-signature", "signature");
    assert!(no.got.contains("another scheme or hash"), "{no:?}");
    // r and s of zero: ECDSA's psychic signature.
    let zeros = [&[0, 0x18, 0, 0x0b, 0, 32][..], &[0; 32], &[0, 32], &[0; 32]].concat();
    refused(&case.tampered(|evidence| evidence.signature = zeros), "quote-signature", "signature");
}

#[test]
fn a_key_that_is_not_restricted() {
    type Change = fn(u32) -> u32;
    let changes: [(Change, &str); 6] = [
        (|bits| bits & !attributes::RESTRICTED, "restricted"),
        (|bits| bits & !attributes::FIXED_TPM, "fixedTPM"),
        (|bits| bits & !attributes::FIXED_PARENT, "fixedParent"),
        (|bits| bits & !attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (|bits| bits & !attributes::SIGN, "sign"),
        (|bits| bits | attributes::DECRYPT, "decrypt"),
    ];
    for (change, name) in changes {
        let mut case = Case::attest();
        let mut public = case.tpm.ak();
        public.attributes = change(ak::ATTRIBUTES);
        case.context.host.ak_public = public.to_bytes();
        case.signer = qualified_name(&case.tpm.ek.name(), &public.name()).unwrap().as_bytes().to_vec();
        let no = refused(&case.judge(), "algorithm", "AK");
        assert!(no.got.contains(name), "{no:?}");
    }
    let mut case = Case::attest();
    case.context.host.ak_public.truncate(20);
    refused(&case.judge(), "algorithm", "AK");
}

#[test]
fn an_ak_outside_of_the_endorsement_hierarchy() {
    let case = Case::attest();
    let (ek, ak) = (case.tpm.ek.name(), case.tpm.ak().name());
    let child = |parent: &Name| Name::of(HashAlg::Sha256, &[parent.as_bytes(), ak.as_bytes()]);
    let primary = |hierarchy: u32| child(&Name::of_handle(hierarchy));
    let under = |hierarchy: u32| child(&Name::of(HashAlg::Sha256, &[&hierarchy.to_be_bytes(), ek.as_bytes()]));
    let (owner, null) = (0x4000_0001, 0x4000_0007);
    let honest = under(RH_ENDORSEMENT);
    assert_eq!(honest.as_bytes(), case.signer);
    for signer in [primary(owner), primary(null), under(owner), under(null), primary(RH_ENDORSEMENT), ak] {
        let mut case = case.clone();
        case.signer = signer.as_bytes().to_vec();
        let no = refused(&case.judge(), "qualified-signer", "qualifiedSigner");
        assert_eq!(no.want, honest.to_string());
    }
    let mut case = case;
    case.signer = Vec::new();
    refused(&case.judge(), "qualified-signer", "qualifiedSigner");
}

#[test]
fn a_quote_of_another_enrolled_host() {
    // Another machine's TPM answers this host's challenge: relayed as it is, or under this host's name.
    let case = Case::attest();
    let mut relay = case.clone();
    relay.tpm = Rc::new(SoftTpm::new());
    refused(&relay.judge(), "quote-signature", "signature");
    relay.signer = relay.tpm.signer();
    refused(&relay.judge(), "quote-signature", "signature");
    // The same AK public area under the EK of another machine.
    let mut moved = case;
    moved.context.host.ek_name = SoftTpm::new().ek.name().as_bytes().to_vec();
    refused(&moved.judge(), "qualified-signer", "qualifiedSigner");
}

#[test]
fn a_quote_over_other_pcrs_than_asked_for() {
    let all: Vec<u8> = boot::ASKED.collect();
    let sha1 = BankSelection::new(HashAlg::Sha1, &all);
    let sha256 = BankSelection::new(HashAlg::Sha256, &all);
    let selections = [
        PcrSelection(Vec::new()),
        PcrSelection::single(HashAlg::Sha256, &all[1..]),
        PcrSelection::single(HashAlg::Sha256, &(0..16).collect::<Vec<_>>()),
        PcrSelection::single(HashAlg::Sha1, &all),
        PcrSelection(vec![sha256, sha1]),
        PcrSelection(vec![sha1, sha256]),
    ];
    for selection in selections {
        let mut case = Case::attest();
        case.selection = selection;
        refused(&case.judge(), "pcr-selection", "quote's PCR selection");
    }
    // One bank twice in the quote: not a structure that is read at all.
    let mut case = Case::attest();
    case.selection = PcrSelection(vec![sha256, sha256]);
    let no = refused(&case.judge(), "quote-signature", "quote");
    assert!(no.got.contains("one bank selected twice"), "{no:?}");
}

#[test]
fn a_pcr_listed_twice_relabelled_missing_or_not_asked_for() {
    let case = Case::attest();
    let indices = "indices of PCR values";
    let pcr4 = case.pcrs[0].pcrs[4].clone();
    // Twice: the honest value first, and the honest value last.
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs.push(pcr4.clone())), "pcr-selection", indices);
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs.insert(4, pcr4.clone())), "pcr-selection", indices);
    let twice = case.tampered(|evidence| {
        let again = evidence.pcrs[0].clone();
        evidence.pcrs.push(again);
    });
    refused(&twice, "pcr-selection", "PCR values");
    // Relabelled: the value of PCR 7 as PCR 4's, and both exchanged.
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs[7].index = 4), "pcr-selection", indices);
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs.swap(4, 7)), "pcr-selection", indices);
    let exchanged = case.tampered(|evidence| {
        let values = &mut evidence.pcrs[0].pcrs;
        values.swap(4, 7);
        (values[4].index, values[7].index) = (4, 7);
    });
    refused(&exchanged, "pcr-digest", "digest of the PCR values");
    let relabelled = case.tampered(|evidence| evidence.pcrs[0].alg = HashAlg::Sha384.id());
    refused(&relabelled, "pcr-selection", "PCR values");
    // Missing.
    refused(&case.tampered(|evidence| drop(evidence.pcrs[0].pcrs.remove(4))), "pcr-selection", indices);
    refused(&case.tampered(|evidence| evidence.pcrs.clear()), "pcr-selection", "PCR values");
    // Not asked for.
    let extra = PcrValue { index: 16, value: vec![0; 32] };
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs.push(extra)), "pcr-selection", indices);
    let bank = case.tampered(|evidence| evidence.pcrs.push(boot::bank(HashAlg::Sha1)));
    refused(&bank, "pcr-selection", "PCR values");
    // Of another length than the bank's.
    refused(&case.tampered(|evidence| evidence.pcrs[0].pcrs[4].value.truncate(20)), "pcr-digest", "PCR values");
    // Two values whose concatenation is the same.
    let shifted = case.tampered(|evidence| {
        let values = &mut evidence.pcrs[0].pcrs;
        let moved = values[5].value.remove(0);
        values[4].value.push(moved);
    });
    refused(&shifted, "pcr-digest", "PCR values");
}

#[test]
fn false_pcr_values() {
    let case = Case::attest();
    let judged = case.tampered(|evidence| evidence.pcrs[0].pcrs[7].value = vec![0; 32]);
    refused(&judged, "pcr-digest", "digest of the PCR values");
}

#[test]
fn every_bank_that_is_asked_for() {
    accepted(&Case::attest().with_bank(HashAlg::Sha1).judge());
    let case = Case::attest().with_bank(HashAlg::Sha1);
    // The banks exchange their labels; one is left out.
    refused(&case.tampered(|evidence| drop(evidence.pcrs.pop())), "pcr-selection", "PCR values");
    let judged = case.tampered(|evidence| (evidence.pcrs[0].alg, evidence.pcrs[1].alg) = (0x04, 0x0b));
    refused(&judged, "pcr-digest", "PCR values");
}
