//! Lists made up for tests and benches, with the PCR values that they lead to.

use countersign_tpm::alg::{Digest, HashAlg};

use super::PCR;
use super::list::frames;

/// A list under construction.
#[derive(Debug, Clone, Default)]
pub struct Synthetic {
    /// The list so far.
    pub bytes: Vec<u8>,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes(), bytes].concat()
}

impl Synthetic {
    /// Appends an entry of PCR 10 with these fields.
    pub fn push(&mut self, template: &str, fields: &[&[u8]]) {
        let data: Vec<u8> = fields.iter().flat_map(|field| sized(field)).collect();
        let hash = HashAlg::Sha1.digest(&[&data]);
        self.raw(template, hash.as_bytes(), &sized(&data));
    }

    /// Appends a violation: zeros in place of the template hash.
    pub fn push_violation(&mut self, path: &str) {
        let data = [sized(&d_ng("sha256", &[0; 32])), sized(&n_ng(path))].concat();
        self.raw("ima-ng", &[0; 20], &sized(&data));
    }

    /// Appends an entry of the template `ima`.
    pub fn push_old(&mut self, digest: &[u8; 20], name: &str) {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(256, 0);
        let hash = HashAlg::Sha1.digest(&[digest, &padded]);
        self.raw("ima", hash.as_bytes(), &[digest.as_slice(), &sized(name.as_bytes())].concat());
    }

    /// Appends a measured file, template ima-ng.
    pub fn push_file(&mut self, path: &str, sha256: &[u8]) {
        self.push("ima-ng", &[&d_ng("sha256", sha256), &n_ng(path)]);
    }

    fn raw(&mut self, template: &str, hash: &[u8], rest: &[u8]) {
        self.bytes.extend(u32::from(PCR).to_le_bytes());
        self.bytes.extend(hash);
        self.bytes.extend(sized(template.as_bytes()));
        self.bytes.extend(rest);
    }

    /// PCR 10 of a bank after all of it, from `start` on.
    #[must_use]
    pub fn pcr(&self, start: Digest) -> Digest {
        let list = frames(&self.bytes).into_iter().flatten().filter_map(Result::ok);
        list.fold(start, |value, frame| value.extend(frame.extends(start.alg()).as_bytes()))
    }
}

/// Contents of a field `d-ng`.
#[must_use]
pub fn d_ng(alg: &str, digest: &[u8]) -> Vec<u8> {
    [alg.as_bytes(), b":\0", digest].concat()
}

/// Contents of a field `n-ng`.
#[must_use]
pub fn n_ng(path: &str) -> Vec<u8> {
    [path.as_bytes(), &[0]].concat()
}

/// Path of the `n`th file of [`list`].
#[must_use]
pub fn path(n: u32) -> String {
    format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{n:07}.so.1", n / 64)
}

/// SHA-256 of the `n`th file of [`list`].
#[must_use]
pub fn digest(n: u32) -> Digest {
    HashAlg::Sha256.digest(&[b"synthetic file", &n.to_le_bytes()])
}

/// A boot_aggregate over PCRs that hold zeros, then `files` measured files with distinct digests: template ima-ng, SHA-256.
#[must_use]
pub fn list(files: u32) -> Synthetic {
    let zero = Digest::filled(HashAlg::Sha256, 0);
    let aggregate = super::boot_aggregates(HashAlg::Sha256, |_| Some(zero)).pop().unwrap_or(zero);
    let mut list = Synthetic::default();
    list.push_file("boot_aggregate", aggregate.as_bytes());
    for n in 0..files {
        list.push_file(&path(n), digest(n).as_bytes());
    }
    list
}
