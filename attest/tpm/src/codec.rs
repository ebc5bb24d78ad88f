//! One reader and one writer for every binary format of the project.
//!
//! Every parse ends in [`Reader::all`], which refuses trailing bytes and names the field and its offset.

/// Why bytes could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} at byte {offset}: {reason}")]
pub struct Malformed {
    /// The field that was being read.
    pub field: &'static str,
    /// Offset of that field from the start of the outermost input, in bytes.
    pub offset: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What can be wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The input ends before the field does.
    #[error("truncated: needs {needed} bytes, {left} are left")]
    Truncated {
        /// Bytes the field needs.
        needed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes follow where none may.
    #[error("{0} trailing bytes")]
    Trailing(usize),
    /// A length or count is over its limit.
    #[error("{got} is over the limit of {max}")]
    TooLarge {
        /// What the input says.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// A value that the format does not allow here.
    #[error("value {0:#x} is not allowed here")]
    Value(u64),
    /// Any other breach of the format.
    #[error("{0}")]
    Other(&'static str),
}

/// Reads a byte slice front to back.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

macro_rules! integer {
    ($be:ident, $le:ident, $int:ty, $len:literal) => {
        #[doc = concat!("Reads a big-endian `", stringify!($int), "`.")]
        ///
        /// # Errors
        /// [`Reason::Truncated`].
        pub fn $be(&mut self, field: &'static str) -> Result<$int, Malformed> {
            self.array::<$len>(field).map(<$int>::from_be_bytes)
        }
        #[doc = concat!("Reads a little-endian `", stringify!($int), "`.")]
        ///
        /// # Errors
        /// [`Reason::Truncated`].
        pub fn $le(&mut self, field: &'static str) -> Result<$int, Malformed> {
            self.array::<$len>(field).map(<$int>::from_le_bytes)
        }
    };
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// Reads all of `bytes` with `parse`, refusing what is left over as trailing bytes of `field`.
    ///
    /// # Errors
    /// Those of `parse`, and [`Reason::Trailing`].
    pub fn all<T>(
        bytes: &'a [u8],
        field: &'static str,
        parse: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        let mut reader = Self::new(bytes);
        let value = parse(&mut reader)?;
        reader.end(field)?;
        Ok(value)
    }

    /// Refuses anything left over.
    ///
    /// # Errors
    /// [`Reason::Trailing`].
    pub const fn end(&self, field: &'static str) -> Result<(), Malformed> {
        match self.left() {
            0 => Ok(()),
            n => Err(self.bad(field, Reason::Trailing(n))),
        }
    }

    /// Offset of the next byte from the start of the outermost input.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes that are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// An error about the field that starts at the next byte.
    #[must_use]
    pub const fn bad(&self, field: &'static str, reason: Reason) -> Malformed {
        Malformed { field, offset: self.offset(), reason }
    }

    /// Reads `n` bytes.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    pub fn take(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            return Err(self.bad(field, Reason::Truncated { needed: n, left: self.left() }));
        };
        self.go_on(n, rest);
        Ok(taken)
    }

    /// Reads everything that is left.
    #[must_use]
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.go_on(rest.len(), &[]);
        rest
    }

    const fn go_on(&mut self, taken: usize, rest: &'a [u8]) {
        self.rest = rest;
        self.offset = self.offset.saturating_add(taken);
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(self.bad(field, Reason::Truncated { needed: N, left: self.left() }));
        };
        self.go_on(N, rest);
        Ok(*taken)
    }

    /// A reader over the next `n` bytes, which are then behind this one; its offsets go on from here.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    pub fn sub(&mut self, n: usize, field: &'static str) -> Result<Self, Malformed> {
        let offset = self.offset;
        Ok(Self { rest: self.take(n, field)?, offset })
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    integer!(u16_be, u16_le, u16, 2);
    integer!(u32_be, u32_le, u32, 4);
    integer!(u64_be, u64_le, u64, 8);

    /// Reads a TPM2B: a big-endian u16 length, at most `max`, and that many bytes.
    ///
    /// # Errors
    /// [`Reason::TooLarge`] and [`Reason::Truncated`].
    pub fn tpm2b(&mut self, max: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let at = self.clone();
        let n = usize::from(self.u16_be(field)?);
        if n > max {
            return Err(at.bad(
                field,
                Reason::TooLarge {
                    got: u64::try_from(n).unwrap_or(u64::MAX),
                    max: u64::try_from(max).unwrap_or(u64::MAX),
                },
            ));
        }
        self.take(n, field)
    }
}

/// Builds a byte string: the maker of what [`Reader`] reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }
    /// An empty one with room for `n` bytes: while they suffice, nothing that was appended is moved and left behind in memory.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Self(Vec::with_capacity(n))
    }
    /// Appends one byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    /// Appends a big-endian integer.
    #[must_use]
    pub fn u16_be(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }
    /// Appends a big-endian integer.
    #[must_use]
    pub fn u32_be(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }
    /// Appends a big-endian integer.
    #[must_use]
    pub fn u64_be(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }
    /// Appends a little-endian integer.
    #[must_use]
    pub fn u32_le(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }
    /// Appends a little-endian integer.
    #[must_use]
    pub fn u64_le(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }
    /// Appends bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// Appends a TPM2B. Contents over 65,535 bytes, which no TPM structure has, get a length that does not fit: a reader refuses them.
    #[must_use]
    pub fn tpm2b(self, bytes: &[u8]) -> Self {
        let n = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16_be(n).raw(bytes)
    }
    /// The bytes so far.
    #[must_use]
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_go_through_parts() {
        let bytes = [0, 3, 1, 2, 3, 9];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u16_be("length"), Ok(3));
        let mut inner = reader.sub(3, "part").unwrap();
        assert_eq!(inner.u8("first"), Ok(1));
        let error = inner.u32_be("number").unwrap_err();
        assert_eq!((error.offset, error.reason), (3, Reason::Truncated { needed: 4, left: 2 }));
        assert_eq!(error.to_string(), "number at byte 3: truncated: needs 4 bytes, 2 are left");
        assert_eq!(inner.end("part").unwrap_err().reason, Reason::Trailing(2));
        assert_eq!(reader.rest(), [9]);
        assert_eq!(reader.left(), 0);
    }

    #[test]
    fn limits_come_before_the_bytes() {
        let error = Reader::new(&[0xff, 0xff]).tpm2b(64, "digest").unwrap_err();
        assert_eq!(error.reason, Reason::TooLarge { got: 65_535, max: 64 });
        assert_eq!(Reader::new(&[]).take(usize::MAX, "all").unwrap_err().offset, 0);
    }

    #[test]
    fn written_is_read() {
        let bytes = Writer::with_capacity(40)
            .u8(1)
            .u16_be(2)
            .u32_be(3)
            .u64_be(4)
            .u32_le(5)
            .u64_le(6)
            .tpm2b(b"seven")
            .raw(b"8")
            .done();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(""), Ok(1));
        assert_eq!(reader.u16_be(""), Ok(2));
        assert_eq!(reader.u32_be(""), Ok(3));
        assert_eq!(reader.u64_be(""), Ok(4));
        assert_eq!(reader.u32_le(""), Ok(5));
        assert_eq!(reader.u64_le(""), Ok(6));
        assert_eq!(reader.tpm2b(5, ""), Ok(b"seven".as_slice()));
        assert_eq!(reader.rest(), b"8");
        // A length that 16 bits cannot hold is refused by the reader, not misread.
        let long = Writer::new().tpm2b(&vec![0; 70_000]).done();
        assert!(Reader::all(&long, "long", |reader| reader.tpm2b(usize::MAX, "long").map(<[u8]>::len)).is_err());
    }
}
