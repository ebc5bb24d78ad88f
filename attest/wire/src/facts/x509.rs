//! The subject of a certificate, for people: no more of X.509 than that.

use sha2::{Digest as _, Sha256};

/// Longest subject that is kept, in characters.
const SUBJECT: usize = 256;

/// SHA-256 of the DER encoding, hex.
pub(super) fn fingerprint(der: &[u8]) -> String {
    hex::encode(Sha256::digest(der))
}

/// A DER element: tag, contents and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length =
                length.iter().try_fold(0usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))?;
            (length, rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((*tag, contents, rest))
}

/// Certificate -> TBSCertificate -> subject (RFC 5280, 4.1), written most specific part first as RFC 4514 does.
pub(super) fn subject(der: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(der)?;
    let (_, tbs, _) = element(certificate)?;
    let (tag, _, after_version) = element(tbs)?;
    // version is there from X.509 version 2 on.
    let mut rest = if tag == 0xa0 { after_version } else { tbs };
    for _serial_algorithm_issuer_validity in 0..4 {
        rest = element(rest)?.2;
    }
    let (_, mut names, _) = element(rest)?;
    let mut parts: Vec<(&str, String)> = Vec::new();
    while let Some((_, set, next)) = element(names) {
        names = next;
        let (_, pair, _) = element(set)?;
        let (_, oid, value) = element(pair)?;
        let (tag, value, _) = element(value)?;
        let [0x55, 0x04, attribute] = oid else { continue };
        let name = match attribute {
            3 => "CN",
            6 => "C",
            7 => "L",
            8 => "ST",
            10 => "O",
            11 => "OU",
            _ => continue,
        };
        parts.push((name, text(tag, value)));
    }
    let mut out = String::new();
    for (name, value) in parts.iter().rev() {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(name);
        out.push('=');
        out.extend(value.chars().filter(|c| !c.is_control()));
    }
    Some(out.chars().take(SUBJECT).collect())
}

fn text(tag: u8, value: &[u8]) -> String {
    const BMP_STRING: u8 = 0x1e;
    if tag == BMP_STRING {
        let units: Vec<u16> =
            value.chunks_exact(2).filter_map(|pair| <[u8; 2]>::try_from(pair).ok().map(u16::from_be_bytes)).collect();
        return String::from_utf16_lossy(&units);
    }
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &[u8] = include_bytes!("../../../../fixtures/sb-ms-shim-grub212/ek-rsa2048.crt");

    #[test]
    fn damaged_certificates_have_no_subject() {
        for end in 0..CERTIFICATE.len() {
            let _ = subject(&CERTIFICATE[..end]);
        }
        for at in 0..CERTIFICATE.len().min(300) {
            let mut changed = CERTIFICATE.to_vec();
            changed[at] = 0xff;
            let _ = subject(&changed);
        }
        assert_eq!(subject(b""), None);
        assert!(subject(CERTIFICATE).is_some());
    }
}
