//! Templates: which fields an entry has (Linux ima_template.c).

use crate::codec::Reason;

/// A field of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `d`: SHA-1 or MD5 digest without its name.
    D,
    /// `n`: name of at most 255 bytes.
    N,
    /// `d-ng`: digest with its algorithm in front.
    DNg,
    /// `d-ngv2`: digest with its kind and algorithm in front.
    DNgV2,
    /// `n-ng`: name.
    NNg,
    /// `sig`: file signature.
    Sig,
    /// `d-modsig`: digest without the appended signature.
    DModsig,
    /// `modsig`: appended signature (PKCS#7).
    Modsig,
    /// `buf`: measured buffer.
    Buf,
    /// `iuid`: owner.
    Iuid,
    /// `igid`: group.
    Igid,
    /// `imode`: mode.
    Imode,
    /// `xattrnames`: names of the EVM-protected attributes.
    XattrNames,
    /// `xattrlengths`: their lengths.
    XattrLengths,
    /// `xattrvalues`: their values.
    XattrValues,
    /// `evmsig`: portable EVM signature.
    EvmSig,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::D,
        Self::N,
        Self::DNg,
        Self::DNgV2,
        Self::NNg,
        Self::Sig,
        Self::DModsig,
        Self::Modsig,
        Self::Buf,
        Self::Iuid,
        Self::Igid,
        Self::Imode,
        Self::XattrNames,
        Self::XattrLengths,
        Self::XattrValues,
        Self::EvmSig,
    ];

    /// How format strings and errors name it.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::D => "d",
            Self::N => "n",
            Self::DNg => "d-ng",
            Self::DNgV2 => "d-ngv2",
            Self::NNg => "n-ng",
            Self::Sig => "sig",
            Self::DModsig => "d-modsig",
            Self::Modsig => "modsig",
            Self::Buf => "buf",
            Self::Iuid => "iuid",
            Self::Igid => "igid",
            Self::Imode => "imode",
            Self::XattrNames => "xattrnames",
            Self::XattrLengths => "xattrlengths",
            Self::XattrValues => "xattrvalues",
            Self::EvmSig => "evmsig",
        }
    }
}

/// Most fields of a template (Linux: TEMPLATE_NUM_FIELDS_MAX).
pub(crate) const MAX_FIELDS: usize = 15;
/// Longest template name or format string, in bytes: the most fields, each with 16 bytes and a separator.
pub(crate) const MAX_NAME: u32 = 255;
/// The template of the first kernels; its entries have a form of their own.
pub(crate) const OLD: &[u8] = b"ima";

/// The fields of a template, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    fields: [Field; MAX_FIELDS],
    len: usize,
}

impl Layout {
    /// The layout behind a template's name, which is one of the kernel's or a format string.
    ///
    /// # Errors
    /// Neither.
    pub fn of(name: &[u8]) -> Result<Self, Reason> {
        use Field as F;
        let built_in: &[Field] = match name {
            b"ima-ng" => &[F::DNg, F::NNg],
            b"ima-sig" => &[F::DNg, F::NNg, F::Sig],
            OLD => &[F::D, F::N],
            b"ima-ngv2" => &[F::DNgV2, F::NNg],
            b"ima-sigv2" => &[F::DNgV2, F::NNg, F::Sig],
            b"ima-buf" => &[F::DNg, F::NNg, F::Buf],
            b"ima-modsig" => &[F::DNg, F::NNg, F::Sig, F::DModsig, F::Modsig],
            b"evm-sig" => {
                &[F::DNg, F::NNg, F::EvmSig, F::XattrNames, F::XattrLengths, F::XattrValues, F::Iuid, F::Igid, F::Imode]
            }
            _ => return Self::parse(name),
        };
        let mut layout = Self { fields: [F::D; MAX_FIELDS], len: 0 };
        built_in.iter().for_each(|field| layout.push(*field));
        Ok(layout)
    }

    /// A format string: field ids with `|` between them.
    fn parse(format: &[u8]) -> Result<Self, Reason> {
        let mut layout = Self { fields: [Field::D; MAX_FIELDS], len: 0 };
        for id in format.split(|byte| *byte == b'|') {
            let field = Field::ALL.into_iter().find(|field| field.id().as_bytes() == id);
            let field =
                field.ok_or(Reason::Other("neither a template of the kernel nor a format string of its fields"))?;
            if layout.len == MAX_FIELDS {
                return Err(Reason::Other("a format string of more than 15 fields"));
            }
            if layout.fields().contains(&field) {
                return Err(Reason::Other("a format string that names a field twice"));
            }
            layout.push(field);
        }
        Ok(layout)
    }

    fn push(&mut self, field: Field) {
        if let Some(slot) = self.fields.get_mut(self.len) {
            *slot = field;
            self.len = self.len.saturating_add(1);
        }
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        self.fields.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_format_strings() {
        let pairs = [
            ("ima", "d|n"),
            ("ima-ng", "d-ng|n-ng"),
            ("ima-sig", "d-ng|n-ng|sig"),
            ("ima-ngv2", "d-ngv2|n-ng"),
            ("ima-sigv2", "d-ngv2|n-ng|sig"),
            ("ima-buf", "d-ng|n-ng|buf"),
            ("ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"),
            ("evm-sig", "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"),
        ];
        for (name, format) in pairs {
            assert_eq!(Layout::of(name.as_bytes()).unwrap(), Layout::of(format.as_bytes()).unwrap());
        }
        for bad in ["", "|", "d-ng|", "|d-ng", "d-ng||n-ng", "D-NG", "ima-ng|sig", "d|d", "ima-sig ", "x"] {
            assert!(Layout::of(bad.as_bytes()).is_err(), "{bad}");
        }
        let all: Vec<&str> = Field::ALL.iter().map(|field| field.id()).collect();
        assert!(Layout::of(all.join("|").as_bytes()).is_err(), "16 fields");
        assert_eq!(Layout::of(all[1..].join("|").as_bytes()).unwrap().fields(), &Field::ALL[1..]);
        assert!(all.join("|").len() <= usize::try_from(MAX_NAME).unwrap());
    }
}
