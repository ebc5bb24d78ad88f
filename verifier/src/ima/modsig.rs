//! Signatures that are appended to a file, as kernel modules have them: detached CMS (RFC 5652, 5), in an IMA list's field `modsig`.
//!
//! Linux (`scripts/sign-file`, `kmodsign`) makes them without signed attributes: the signature is over the content's digest itself, which the list
//! has in `d-modsig`. With signed attributes (RFC 5652, 5.4) it is over those, and they hold that digest.

use countersign_tpm::alg::HashAlg;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag, TagNumber};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
/// Hashes of signers; SHA-1 is not accepted.
const HASHES: [(ObjectIdentifier, HashAlg); 3] = [
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), HashAlg::Sha256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), HashAlg::Sha384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), HashAlg::Sha512),
];

/// The one signature of a SignedData. Nothing of it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModSig<'a> {
    /// Who signed.
    pub(super) signer: Signer<'a>,
    /// The hash of the content, and of the attributes where there are any.
    pub(super) hash: HashAlg,
    /// Contents of the signed attributes.
    attributes: Option<&'a [u8]>,
    /// The signature.
    pub(super) signature: &'a [u8],
}

/// How a signer is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer<'a> {
    /// By its certificate's issuer (DER) and serial number (the integer's bytes).
    Issued { issuer: &'a [u8], serial: &'a [u8] },
    /// By its key identifier.
    Key(&'a [u8]),
}

impl<'a> ModSig<'a> {
    /// Reads a ContentInfo with a SignedData of one signer.
    ///
    /// # Errors
    /// In words.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        Self::read(bytes).map_err(|e| format!("the appended signature: {e}"))
    }

    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut outer = Elements::of(bytes)?;
        let mut content = outer.inside(Tag::Sequence)?;
        outer.end()?;
        if content.oid()? != SIGNED_DATA {
            return Err("no SignedData".into());
        }
        let mut explicit = content.inside(context(0, true))?;
        content.end()?;
        let mut data = explicit.inside(Tag::Sequence)?;
        explicit.end()?;
        // version, digestAlgorithms, encapContentInfo; then certificates and revocation lists, which nobody asks.
        data.next(Tag::Integer)?;
        data.next(Tag::Set)?;
        data.next(Tag::Sequence)?;
        data.optional(context(0, true))?;
        data.optional(context(1, true))?;
        let mut signers = data.inside(Tag::Set)?;
        data.end()?;
        let mut signer = signers.inside(Tag::Sequence)?;
        signers.end().map_err(|_| "more than one signer".to_owned())?;
        signer.next(Tag::Integer)?;
        let named = match signer.optional(context(0, false))? {
            Some(key) => Signer::Key(key),
            None => {
                let mut name = signer.inside(Tag::Sequence)?;
                let issuer = name.whole(Tag::Sequence)?;
                let serial = name.next(Tag::Integer)?;
                name.end()?;
                Signer::Issued { issuer, serial }
            }
        };
        let oid = signer.inside(Tag::Sequence)?.oid()?;
        let hash = HASHES.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash);
        let hash = hash.ok_or_else(|| format!("hash {oid} is not accepted"))?;
        let attributes = signer.optional(context(0, true))?;
        // signatureAlgorithm: the key decides how it signs.
        signer.next(Tag::Sequence)?;
        let signature = signer.next(Tag::OctetString)?;
        signer.optional(context(1, true))?;
        signer.end()?;
        Ok(Self { signer: named, hash, attributes, signature })
    }

    /// The digest that the signature is over, for content of this digest; an error if the signed attributes hold another one.
    ///
    /// # Errors
    /// In words.
    pub(super) fn signed_digest(&self, content: &[u8]) -> Result<countersign_tpm::alg::Digest, String> {
        let Some(attributes) = self.attributes else {
            return countersign_tpm::alg::Digest::new(self.hash, content)
                .ok_or_else(|| "the appended signature is over a digest of another length".into());
        };
        let mut all = Elements::of(attributes)?;
        let mut found = None;
        while !all.done() {
            let mut attribute = all.inside(Tag::Sequence)?;
            if attribute.oid()? == MESSAGE_DIGEST {
                let mut values = attribute.inside(Tag::Set)?;
                let value = values.next(Tag::OctetString)?;
                values.end()?;
                if found.replace(value).is_some() {
                    return Err("the appended signature has two message digests".into());
                }
            }
        }
        if found != Some(content) {
            return Err("the appended signature is over another file".into());
        }
        // RFC 5652, 5.4: hashed as a SET OF, not under the tag that they have in the structure.
        let set = AnyRef::new(Tag::Set, attributes).and_then(|set| set.to_der()).map_err(|e| e.to_string())?;
        Ok(self.hash.digest(&[&set]))
    }
}

const fn context(number: u32, constructed: bool) -> Tag {
    Tag::ContextSpecific { constructed, number: TagNumber(number) }
}

/// Elements that follow one another.
struct Elements<'a> {
    bytes: &'a [u8],
    reader: SliceReader<'a>,
}

impl<'a> Elements<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, String> {
        Ok(Self { bytes, reader: SliceReader::new(bytes).map_err(|e| e.to_string())? })
    }

    /// The contents of the next element, which has this tag.
    fn next(&mut self, tag: Tag) -> Result<&'a [u8], String> {
        let element = AnyRef::decode(&mut self.reader).map_err(|e| e.to_string())?;
        if element.header().tag() != tag {
            return Err(format!("{} where {tag} is expected", element.header().tag()));
        }
        Ok(element.value())
    }

    /// The next element with its tag and length.
    fn whole(&mut self, tag: Tag) -> Result<&'a [u8], String> {
        let start = usize::try_from(self.reader.position()).unwrap_or(usize::MAX);
        self.next(tag)?;
        let end = usize::try_from(self.reader.position()).unwrap_or(usize::MAX);
        self.bytes.get(start..end).ok_or_else(|| "truncated".to_owned())
    }

    fn inside(&mut self, tag: Tag) -> Result<Self, String> {
        Self::of(self.next(tag)?)
    }

    /// The contents of the next element, if it has this tag.
    fn optional(&mut self, tag: Tag) -> Result<Option<&'a [u8]>, String> {
        if self.done() || Tag::peek(&self.reader).map_err(|e| e.to_string())? != tag {
            return Ok(None);
        }
        self.next(tag).map(Some)
    }

    fn oid(&mut self) -> Result<ObjectIdentifier, String> {
        ObjectIdentifier::from_bytes(self.next(Tag::ObjectIdentifier)?).map_err(|e| e.to_string())
    }

    fn done(&self) -> bool {
        self.reader.is_finished()
    }

    fn end(&self) -> Result<(), String> {
        if self.done() { Ok(()) } else { Err("bytes behind it".into()) }
    }
}
