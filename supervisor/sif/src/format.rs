//! The SIF container: global header, descriptors, and a reader that trusts neither.
//!
//! All integers are little endian and signed where the Go implementation has them so; negative ones are refused.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use countersign_wire::codec::{Malformed, Reader, Reason, Writer};

use crate::error::SifError;

/// Bytes of the global header.
pub const HEADER: usize = 128;
/// Bytes of a descriptor.
pub const DESCRIPTOR: usize = 585;
/// Descriptors in a table that is written.
pub const CAPACITY: usize = 48;
/// Where a written table lies.
const TABLE_OFFSET: u64 = 4096;
/// Most descriptors that a table is read with (48 is usual).
const MAX_DESCRIPTORS: u64 = 4096;
/// Launch script, as both runtimes write it.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";
const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
const VERSION: &[u8; 3] = b"01\0";

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

/// One object's descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Data type.
    pub data_type: i32,
    /// Object id, from 1.
    pub id: u32,
    /// Group with its upper bits.
    pub group: u32,
    /// Link: an object id, or a group with its upper bits.
    pub link: u32,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub size: u64,
    /// Length with the padding in front.
    pub size_with_padding: u64,
    /// Unix time.
    pub created: i64,
    /// Unix time.
    pub modified: i64,
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
            .u64_le(0)
            .u64_le(0)
            .raw(&self.name)
            .raw(self.extra.as_slice())
            .done()
    }

    fn to_bytes(&self) -> Vec<u8> {
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
            .u64_le(0)
            .u64_le(0)
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
    launch: [u8; 32],
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
        unsigned(&mut reader, "descriptors free")?;
        let total = unsigned(&mut reader, "descriptors total")?;
        let table_offset = unsigned(&mut reader, "descriptor table offset")?;
        let table_size = unsigned(&mut reader, "descriptor table size")?;
        let data_offset = unsigned(&mut reader, "data offset")?;
        unsigned(&mut reader, "data size")?;
        reader.end("header")?;
        let each = u64::try_from(DESCRIPTOR).unwrap_or(u64::MAX);
        let table_end = table_offset.saturating_add(table_size);
        let header_size = u64::try_from(HEADER).unwrap_or(u64::MAX);
        if total > MAX_DESCRIPTORS || total.checked_mul(each) != Some(table_size) {
            return Err(SifError::Structure(format!("{total} descriptors in a table of {table_size} bytes")));
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
        for object in &self.objects {
            let end = object.offset.checked_add(object.size);
            if object.offset < data_offset || end.is_none_or(|end| end > length) {
                return Err(SifError::Structure(format!("object {} lies outside of the file's data", object.id)));
            }
            if object.id == 0 || self.objects.iter().filter(|other| other.id == object.id).count() > 1 {
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
    let owner = reader.take(16, "uid, gid")?;
    let name = reader.array("name")?;
    let extra = Box::new(reader.array("extra")?);
    match used {
        0 => return Ok(None),
        1 => {}
        other => return Err(at.bad("used", Reason::Value(other.into())).into()),
    }
    if owner.iter().any(|&byte| byte != 0) {
        // Deprecated; the signed form of our images has zeros here.
        return Err(at.bad("uid, gid", Reason::Other("not zero")).into());
    }
    Ok(Some(Descriptor { data_type, id, group, link, offset, size, size_with_padding, created, modified, name, extra }))
}

/// Reads a whole object of at most `max` bytes.
///
/// # Errors
/// [`SifError`].
pub fn read_object(file: &File, object: &Descriptor, max: u64) -> Result<Vec<u8>, SifError> {
    if object.size > max {
        return Err(SifError::Structure(format!("object {} ({}) has {} bytes, at most {max}", object.id, object.name(), object.size)));
    }
    let mut bytes = vec![0; usize::try_from(object.size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, object.offset)?;
    Ok(bytes)
}

/// Lays a new image out: descriptors first, then the objects' places in the file.
#[derive(Debug, Clone)]
pub struct Layout {
    uuid: [u8; 16],
    time: i64,
    end: u64,
    data_offset: u64,
    /// The descriptors so far.
    pub objects: Vec<Descriptor>,
}

impl Layout {
    /// An empty image.
    #[must_use]
    pub fn new(uuid: [u8; 16], time: i64) -> Self {
        let table = u64::try_from(CAPACITY.saturating_mul(DESCRIPTOR)).unwrap_or(u64::MAX);
        let data_offset = TABLE_OFFSET.saturating_add(table);
        Self { uuid, time, end: data_offset, data_offset, objects: Vec::new() }
    }

    /// Adds an object behind the last one, partitions at a multiple of 4096; where it goes.
    pub fn add(&mut self, data_type: i32, name: &str, link: u32, group: u32, extra: &[u8], size: u64) -> u64 {
        let align = if data_type == data_type::PARTITION { 4096 } else { 1 };
        let offset = self.end.next_multiple_of(align);
        let mut name_field = [0; 128];
        for (to, from) in name_field.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let mut extra_field = Box::new([0; 384]);
        for (to, from) in extra_field.iter_mut().zip(extra) {
            *to = *from;
        }
        self.objects.push(Descriptor {
            data_type,
            id: u32::try_from(self.objects.len()).unwrap_or(u32::MAX).saturating_add(1),
            group,
            link,
            offset,
            size,
            size_with_padding: offset.saturating_sub(self.end).saturating_add(size),
            created: self.time,
            modified: self.time,
            name: name_field,
            extra: extra_field,
        });
        self.end = offset.saturating_add(size);
        offset
    }

    /// What the reader will make of it.
    #[must_use]
    pub fn sif(&self) -> Sif {
        let mut launch = [0; 32];
        for (to, from) in launch.iter_mut().zip(LAUNCH) {
            *to = *from;
        }
        Sif { uuid: self.uuid, launch, objects: self.objects.clone() }
    }

    /// Header and table, to be written at 0; up to the first object.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let used = u64::try_from(self.objects.len()).unwrap_or(0);
        let capacity = u64::try_from(CAPACITY).unwrap_or(0);
        let table_size = self.data_offset.saturating_sub(TABLE_OFFSET);
        let arch: [u8; 3] = if cfg!(target_arch = "aarch64") { *b"04\0" } else { *b"02\0" };
        let mut head = Writer::new()
            .raw(&self.sif().launch)
            .raw(MAGIC)
            .raw(VERSION)
            .raw(&arch)
            .raw(&self.uuid)
            .raw(&self.time.to_le_bytes())
            .raw(&self.time.to_le_bytes())
            .u64_le(capacity.saturating_sub(used))
            .u64_le(capacity)
            .u64_le(TABLE_OFFSET)
            .u64_le(table_size)
            .u64_le(self.data_offset)
            .u64_le(self.end.saturating_sub(self.data_offset))
            .done();
        head.resize(usize::try_from(TABLE_OFFSET).unwrap_or(0), 0);
        for object in &self.objects {
            head.extend(object.to_bytes());
        }
        head.resize(usize::try_from(self.data_offset).unwrap_or(0), 0);
        head
    }
}

/// Extra bytes of a primary system partition for this machine's architecture.
#[must_use]
pub fn partition_extra(fs: i32) -> Vec<u8> {
    let arch: [u8; 3] = if cfg!(target_arch = "aarch64") { *b"04\0" } else { *b"02\0" };
    [&fs.to_le_bytes()[..], &PRIMARY_SYSTEM.to_le_bytes(), &arch].concat()
}
