//! The SIF container: global header, descriptors, and a reader that trusts neither.
//!
//! All integers are little endian and signed where the Go implementation has them so; negative ones are refused.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use countersign_wire::codec::{Malformed, Reader, Reason, Writer};

use crate::error::SifError;

/// Bytes of the global header.
pub const HEADER: usize = 128;
/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 585;
/// Most descriptors that a table is read with (48 is usual).
const MAX_DESCRIPTORS: u64 = 4096;
pub(crate) const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
pub(crate) const VERSION: &[u8; 3] = b"01\0";

/// Data types of objects.
pub mod data_type {
    /// Partition.
    pub const PARTITION: i32 = 0x4004;
    /// Signature.
    pub const SIGNATURE: i32 = 0x4005;
    /// Generic JSON.
    pub const JSON: i32 = 0x4006;
    /// Generic.
    pub const GENERIC: i32 = 0x4007;
    /// Crypto message.
    pub const CRYPTO_MESSAGE: i32 = 0x4008;
}

/// File system types of partitions.
pub mod fs_type {
    /// Squashfs.
    pub const SQUASHFS: i32 = 1;
    /// A LUKS2 container with squashfs in it.
    pub const ENCRYPTED_SQUASHFS: i32 = 5;
}

/// Partition type: primary system.
pub const PRIMARY_SYSTEM: i32 = 2;
/// Group bits of group and link fields.
pub const GROUP: u32 = 0xF000_0000;

/// Code of a processor architecture, as partitions and the global header carry it (ASCII and NUL).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch(pub [u8; 3]);

impl Arch {
    /// This machine's.
    #[must_use]
    pub fn native() -> Self {
        let little = cfg!(target_endian = "little");
        Self(*match std::env::consts::ARCH {
            "x86" => b"01\0",
            "x86_64" => b"02\0",
            "arm" => b"03\0",
            "aarch64" => b"04\0",
            "powerpc64" if little => b"06\0",
            "powerpc64" => b"05\0",
            "s390x" => b"11\0",
            "riscv64" => b"12\0",
            "loongarch64" => b"13\0",
            _ => b"00\0",
        })
    }
}

/// One object's descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Data type.
    pub data_type: i32,
    /// Object id, from 1. Signed relative to the lowest of its group.
    pub id: u32,
    /// Group with its upper bits. Not signed.
    pub group: u32,
    /// Link: an object id, or a group with its upper bits.
    pub link: u32,
    /// Offset in the file, bytes. Not signed: what lies there is.
    pub offset: u64,
    /// Length, bytes.
    pub size: u64,
    /// Length with the padding in front. Not signed, not used.
    pub size_with_padding: u64,
    /// Unix time.
    pub created: i64,
    /// Unix time. Not signed.
    pub modified: i64,
    /// Deprecated user and group id, as they stand; zero in what is written today.
    pub owner: [u8; 16],
    /// Name, NUL padded.
    pub name: [u8; 128],
    /// Type-specific bytes.
    pub extra: Box<[u8; 384]>,
}

impl Descriptor {
    /// The name up to its first NUL.
    #[must_use]
    pub fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(self.name.get(..end).unwrap_or_default()).into_owned()
    }

    /// For a partition: (file system type, partition type).
    #[must_use]
    pub fn partition(&self) -> Option<(i32, i32)> {
        if self.data_type != data_type::PARTITION {
            return None;
        }
        let (fs, rest) = self.extra.split_first_chunk::<4>()?;
        let part = rest.first_chunk::<4>()?;
        Some((i32::from_le_bytes(*fs), i32::from_le_bytes(*part)))
    }

    /// For a partition: its architecture.
    #[must_use]
    pub fn arch(&self) -> Option<Arch> {
        self.partition()?;
        self.extra.get(8..)?.first_chunk::<3>().copied().map(Arch)
    }

    /// End of the object in the file.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// What a signature covers of it (sif-format: 557 bytes).
    pub(crate) fn signed_bytes(&self, relative_id: u32) -> Vec<u8> {
        Writer::new()
            .raw(&self.data_type.to_le_bytes())
            .u8(1)
            .u32_le(relative_id)
            .u32_le(self.link)
            .u64_le(self.size)
            .raw(&self.created.to_le_bytes())
            .raw(&self.owner)
            .raw(&self.name)
            .raw(self.extra.as_slice())
            .done()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        Writer::new()
            .raw(&self.data_type.to_le_bytes())
            .u8(1)
            .u32_le(self.id)
            .u32_le(self.group)
            .u32_le(self.link)
            .u64_le(self.offset)
            .u64_le(self.size)
            .u64_le(self.size_with_padding)
            .raw(&self.created.to_le_bytes())
            .raw(&self.modified.to_le_bytes())
            .raw(&self.owner)
            .raw(&self.name)
            .raw(self.extra.as_slice())
            .done()
    }
}

/// A SIF whose structure holds. Nothing in it is authentic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sif {
    /// Image UUID.
    pub uuid: [u8; 16],
    /// Launch script.
    pub(crate) launch: [u8; 32],
    /// Used descriptors, in table order.
    pub objects: Vec<Descriptor>,
}

fn unsigned(reader: &mut Reader<'_>, field: &'static str) -> Result<u64, Malformed> {
    let at = reader.clone();
    let value = reader.u64_le(field)?;
    if value > i64::MAX.unsigned_abs() {
        return Err(at.bad(field, Reason::Other("negative")));
    }
    Ok(value)
}

impl Sif {
    /// Reads header and table from an open file, and refuses what a runtime might read differently: overlapping objects, duplicate ids, more
    /// than one primary partition, objects outside of the file.
    ///
    /// # Errors
    /// [`SifError`] names the field and offset, or the objects.
    pub fn read(file: &File) -> Result<Self, SifError> {
        let length = file.metadata()?.len();
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(|_| SifError::Structure("shorter than a SIF header".into()))?;
        let mut reader = Reader::new(&header);
        let launch = reader.array("launch")?;
        if reader.take(10, "magic")? != MAGIC {
            return Err(SifError::Structure("no SIF: the magic number is missing".into()));
        }
        if reader.take(3, "version")? != VERSION {
            return Err(SifError::Structure("another SIF version than 01".into()));
        }
        reader.take(3, "arch")?;
        let uuid = reader.array("uuid")?;
        reader.take(16, "times")?;
        let free = unsigned(&mut reader, "descriptors free")?;
        let total = unsigned(&mut reader, "descriptors total")?;
        let table_offset = unsigned(&mut reader, "descriptor table offset")?;
        let table_size = unsigned(&mut reader, "descriptor table size")?;
        let data_offset = unsigned(&mut reader, "data offset")?;
        unsigned(&mut reader, "data size")?;
        reader.end("header")?;
        let each = u64::try_from(DESCRIPTOR).unwrap_or(u64::MAX);
        let table_end = table_offset.saturating_add(table_size);
        let header_size = u64::try_from(HEADER).unwrap_or(u64::MAX);
        if total > MAX_DESCRIPTORS || total.checked_mul(each) != Some(table_size) || free > total {
            return Err(SifError::Structure(format!(
                "{total} descriptors, {free} of them free, in a table of {table_size} bytes"
            )));
        }
        if table_offset < header_size || table_end > length || data_offset < table_end {
            return Err(SifError::Structure("the descriptor table does not lie between header and data".into()));
        }
        let mut table = vec![0; usize::try_from(table_size).unwrap_or(0)];
        file.read_exact_at(&mut table, table_offset)?;
        let mut objects = Vec::new();
        let mut reader = Reader::new(&table);
        for _ in 0..total {
            objects.extend(descriptor(&mut reader)?);
        }
        reader.end("descriptor table")?;
        let sif = Self { uuid, launch, objects };
        sif.check(length, data_offset)?;
        Ok(sif)
    }

    fn check(&self, length: u64, data_offset: u64) -> Result<(), SifError> {
        let mut spans: Vec<(u64, u64, u32)> = Vec::new();
        let mut ids = HashSet::new();
        for object in &self.objects {
            let end = object.offset.checked_add(object.size);
            if object.offset < data_offset || end.is_none_or(|end| end > length) {
                return Err(SifError::Structure(format!("object {} lies outside of the file's data", object.id)));
            }
            if object.id == 0 || !ids.insert(object.id) {
                return Err(SifError::Structure(format!("object id {} is zero or not unique", object.id)));
            }
            if object.size > 0 {
                spans.push((object.offset, object.end(), object.id));
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            if let [(_, end, a), (start, _, b)] = pair
                && end > start
            {
                return Err(SifError::Structure(format!("objects {a} and {b} overlap")));
            }
        }
        let primary = self.objects.iter().filter(|o| o.partition().is_some_and(|(_, part)| part == PRIMARY_SYSTEM));
        if primary.count() > 1 {
            return Err(SifError::Structure("two primary partitions".into()));
        }
        Ok(())
    }

    /// The primary system partition.
    ///
    /// # Errors
    /// [`SifError::Structure`] when there is none.
    pub fn primary(&self) -> Result<&Descriptor, SifError> {
        let found = self.objects.iter().find(|o| o.partition().is_some_and(|(_, part)| part == PRIMARY_SYSTEM));
        found.ok_or_else(|| SifError::Structure("no primary partition".into()))
    }

    /// The one object of a type and name.
    ///
    /// # Errors
    /// [`SifError::Structure`] when there is none, or several.
    pub fn named(&self, data_type: i32, name: &str) -> Result<&Descriptor, SifError> {
        let mut found = self.objects.iter().filter(|o| o.data_type == data_type && o.name() == name);
        match (found.next(), found.next()) {
            (Some(object), None) => Ok(object),
            (None, _) => Err(SifError::Structure(format!("no object {name}"))),
            (Some(_), Some(_)) => Err(SifError::Structure(format!("several objects {name}"))),
        }
    }

    /// What the header's digest covers: launch script, magic, version, UUID.
    pub(crate) fn signed_header(&self) -> Vec<u8> {
        [self.launch.as_slice(), MAGIC, VERSION, &self.uuid].concat()
    }
}

fn descriptor(reader: &mut Reader<'_>) -> Result<Option<Descriptor>, SifError> {
    let data_type = i32::from_le_bytes(reader.array("data type")?);
    let at = reader.clone();
    let used = reader.u8("used")?;
    let id = reader.u32_le("id")?;
    let group = reader.u32_le("group")?;
    let link = reader.u32_le("link")?;
    let offset = unsigned(reader, "offset")?;
    let size = unsigned(reader, "size")?;
    let size_with_padding = unsigned(reader, "size with padding")?;
    let created = i64::from_le_bytes(reader.array("created")?);
    let modified = i64::from_le_bytes(reader.array("modified")?);
    let owner = reader.array("uid, gid")?;
    let name = reader.array("name")?;
    let extra = Box::new(reader.array("extra")?);
    match used {
        0 => return Ok(None),
        1 => {}
        other => return Err(at.bad("used", Reason::Value(other.into())).into()),
    }
    Ok(Some(Descriptor {
        data_type,
        id,
        group,
        link,
        offset,
        size,
        size_with_padding,
        created,
        modified,
        owner,
        name,
        extra,
    }))
}

/// Reads a whole object of at most `max` bytes.
///
/// # Errors
/// [`SifError`].
pub fn read_object(file: &File, object: &Descriptor, max: u64) -> Result<Vec<u8>, SifError> {
    if object.size > max {
        return Err(SifError::Structure(format!(
            "object {} ({}) has {} bytes, at most {max}",
            object.id,
            object.name(),
            object.size
        )));
    }
    let mut bytes = vec![0; usize::try_from(object.size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, object.offset)?;
    Ok(bytes)
}
