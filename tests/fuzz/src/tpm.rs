//! Structures of the TPM, and EK certificates. What is read is written as the same bytes.

use countersign_tpm::alg::HashAlg;
use countersign_tpm::attest::Quote;
use countersign_tpm::codec::Reader;
use countersign_tpm::ek::Template;
use countersign_tpm::ekcert;
use countersign_tpm::pcr::PcrSelection;
use countersign_tpm::public::{Name, Public};
use countersign_tpm::signature::Signature;

/// TPMS_ATTEST of type quote.
pub fn attest(data: &[u8]) {
    let Ok(quote) = Quote::parse(data) else { return };
    assert_eq!(quote.to_bytes(), data);
}

/// TPMT_SIGNATURE.
pub fn signature(data: &[u8]) {
    let Ok(signature) = Signature::parse(data) else { return };
    assert_eq!(signature.to_bytes(), data);
    for size in [32, 48] {
        assert!(signature.to_fixed(size).is_none_or(|fixed| fixed.len() == 2 * size));
    }
}

/// TPMT_PUBLIC, TPM2B_PUBLIC and Names.
pub fn public(data: &[u8]) {
    let _ = Name::parse(data);
    if let Ok(public) = Public::parse(data) {
        assert_eq!(public.to_bytes(), data);
        let _ = (public.name(), public.spki(), public.ecc_point(), countersign_tpm::ak::check(&public));
        let _ = Template::of(&public);
    }
    let _ = Public::parse_file(data);
}

/// TPML_PCR_SELECTION.
pub fn pcr_selection(data: &[u8]) {
    let Ok(selection) = Reader::all(data, "TPML_PCR_SELECTION", PcrSelection::read) else { return };
    let again = Reader::all(&selection.to_bytes(), "TPML_PCR_SELECTION", |reader| PcrSelection::read(reader));
    assert_eq!(again.as_ref(), Ok(&selection));
    assert!(selection.0.iter().all(|bank| bank.pcrs().all(|pcr| pcr < 32)));
    let _ = selection.0.iter().filter_map(|bank| HashAlg::from_id(bank.alg)).count();
}

/// An EK certificate, as a file and as an NV index: its key, and its path to itself as a root.
pub fn ek_certificate(data: &[u8]) {
    let der = ekcert::from_nv(data).unwrap_or(data);
    let _ = (ekcert::subject(der), ekcert::check_root(der));
    if let Ok(key) = ekcert::certified_key(der) {
        let _ = Template::rebuild(&key);
    }
    let _ = ekcert::check(der, &[der.to_vec()], &[der.to_vec()], 1_795_600_000);
}
