//! Every maximum of this crate: value, unit and source.

/// Bytes of a public area (TPM 2.0 Part 2, 12.2.4: RSA-4096 needs about 550).
pub const PUBLIC: usize = 1024;
/// Bytes of a TPMS_ATTEST (Part 2, 10.12.8: a quote over every bank needs below 300).
pub const ATTEST: usize = 2048;
/// Bytes of a TPMT_SIGNATURE (Part 2, 11.3.4: RSA-4096 needs 518).
pub const SIGNATURE: usize = 1024;
/// Bytes of an RSA modulus (4096 bits).
pub const RSA: usize = 512;
/// Bytes of an ECC coordinate (P-521).
pub const ECC: usize = 66;
/// Bytes of a digest or policy (SHA-512).
pub const DIGEST: usize = 64;
/// Bytes of a TPM Name (2 + SHA-512).
pub const NAME: usize = 66;
/// Bytes of extraData (Part 2, 10.12.8: TPM2B_DATA is at most a TPMT_HA).
pub const EXTRA_DATA: usize = 66;
/// Banks in a PCR selection (Part 2, 10.6.3: one for each hash algorithm; 16 are known).
pub const BANKS: usize = 16;
/// Bytes of a PCR bitmap (Part 2, 10.6.1: 24 PCRs on PC clients, 32 at most).
pub const PCR_BITMAP: usize = 4;
/// Bytes that can be sealed (Part 2, 11.1.15: MAX_SYM_DATA is 128).
pub const SEALED: usize = 128;
/// Bytes of an EK or CA certificate (EK Credential Profile 2.5, 3: vendors' certificates are below 2 KiB).
pub const CERTIFICATE: usize = 8192;
/// Intermediate certificates that a host may show (two are the most seen).
pub const CHAIN: usize = 8;
