//! TPM 2.0 structures, Names, policy digests, credentials and import blobs in software, for both sides of attestation.
//!
//! Pure: no I/O, no clock, no randomness of its own (it is passed in), no unsafe code. Commands, sessions and transports are in
//! `countersign-attest`; what is made of a quote is the verifier's matter.
//!
//! | module | what is in it | TPM 2.0 |
//! |---|---|---|
//! | [`codec`], [`limits`] | the one reader and writer of bytes; every maximum | |
//! | [`alg`], [`sha256`], [`kdf`] | hashes, digests, HMAC, KDFa, KDFe | Part 1, 11.4 |
//! | [`public`], [`signature`], [`attest`], [`pcr`] | TPMT_PUBLIC and Names, TPMT_SIGNATURE, TPMS_ATTEST, PCR selections and digests | Part 2, 10 to 12 |
//! | [`policy`] | policy digests as the TPM computes them, and the two policies of a release | Part 3, 23 |
//! | [`wrap`], [`credential`], [`import`] | what only one TPM can open: seeds, MakeCredential, sealed objects | Part 1, 22 to 24 |
//! | [`ek`], [`ekcert`] | EK templates, EK certificates, the EK public area rebuilt from a certificate | EK Credential Profile 2.5 |
//! | [`ak`] | which attestation keys are accepted, and the Name their quotes must carry | Part 1, 16 |
//! | [`rc`] | response codes in words | Part 2, 6.6 |
//!
//! # Where to start
//!
//! A verifier knows three things of a host: the EK that a certificate vouches for, the AK that was proved to live beside it, and so the
//! only qualified signer that the host's quotes can have:
//!
//! ```
//! use countersign_tpm::{ak, attest::Quote, ekcert, public::Public};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let nv = include_bytes!("../../../fixtures/sb-ms-shim-grub212/nv_0x1c00002.der");
//! # let ak_public = include_bytes!("../../../fixtures/sb-ms-shim-grub212/ak_ecc.tpmt");
//! # let quote = include_bytes!("../../../fixtures/sb-ms-shim-grub212/quote_ecc.msg");
//! # let pem = include_str!("../../../fixtures/sb-ms-shim-grub212/issuercert.pem");
//! # let pem = pem.get(pem.find("-----BEGIN").unwrap()..).unwrap().trim_end();
//! # let (_, issuer) = x509_cert::der::pem::decode_vec(pem.as_bytes())?;
//! # let (curated_roots, now) = (vec![issuer], 1_795_600_000);
//! let certificate = ekcert::from_nv(nv)?;
//! let ek = ekcert::check(certificate, &[], &curated_roots, now)?;
//! let ak = Public::parse_file(ak_public)?;
//! ak::check(&ak)?;
//!
//! let quote = Quote::parse(quote)?;
//! let signer = ak::qualified_name(&ek.public.name(), &ak.name());
//! assert_eq!(signer.as_ref().map(|name| name.as_bytes()), Some(quote.qualified_signer));
//! # Ok(())
//! # }
//! ```
//!
//! Nothing in a [`attest::Quote`] is authentic before its signature was verified with the AK, and nothing in a [`public::Public`] is,
//! before a certificate (an EK) or an activated credential (an AK) vouched for its Name.

pub mod ak;
pub mod alg;
pub mod attest;
pub mod codec;
pub mod credential;
mod der;
pub mod ek;
pub mod ekcert;
pub mod import;
pub mod kdf;
pub mod limits;
pub mod pcr;
pub mod policy;
pub mod public;
pub mod rc;
pub mod sha256;
pub mod signature;
pub mod wrap;
