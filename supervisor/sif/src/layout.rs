//! Writing a SIF: objects behind each other, ids in order, partitions at multiples of 4096 (sif-format, section 6).

use countersign_wire::codec::Writer;

use crate::error::SifError;
use crate::format::{Arch, DESCRIPTOR, Descriptor, MAGIC, PRIMARY_SYSTEM, Sif, VERSION, data_type};

/// Descriptors in the table: as many as both runtimes write.
pub const CAPACITY: usize = 48;
/// Where the table lies.
const TABLE_OFFSET: u64 = 4096;
/// Launch script, as both runtimes write it.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";

/// Lays a new image out: descriptors first, then the objects' places in the file.
#[derive(Debug, Clone)]
pub struct Layout {
    uuid: [u8; 16],
    time: i64,
    arch: Arch,
    end: u64,
    data_offset: u64,
    objects: Vec<Descriptor>,
}

/// An object to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a> {
    /// Data type.
    pub data_type: i32,
    /// Name, at most 128 bytes.
    pub name: &'a str,
    /// Link: an object id, or a group with its upper bits.
    pub link: u32,
    /// Group with its upper bits.
    pub group: u32,
    /// Type-specific bytes, at most 384.
    pub extra: &'a [u8],
    /// Length, bytes.
    pub size: u64,
}

fn fill<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], SifError> {
    let mut field = [0; N];
    let place = field
        .get_mut(..bytes.len())
        .ok_or_else(|| SifError::Structure(format!("{what} has {} bytes, at most {N}", bytes.len())))?;
    place.copy_from_slice(bytes);
    Ok(field)
}

impl Layout {
    /// An empty image. `time`: seconds since 1970, for every object.
    #[must_use]
    pub fn new(uuid: [u8; 16], time: i64) -> Self {
        let table = u64::try_from(CAPACITY.saturating_mul(DESCRIPTOR)).unwrap_or(u64::MAX);
        let data_offset = TABLE_OFFSET.saturating_add(table);
        Self { uuid, time, arch: Arch(*b"00\0"), end: data_offset, data_offset, objects: Vec::new() }
    }

    /// Adds an object behind the last one; the offset at which it belongs.
    ///
    /// # Errors
    /// [`SifError::Structure`]: the table is full, a field too long, the image too large, or a second primary partition.
    pub fn add(&mut self, object: Object<'_>) -> Result<u64, SifError> {
        if self.objects.len() >= CAPACITY {
            return Err(SifError::Structure(format!("more than {CAPACITY} objects")));
        }
        let too_large = || SifError::Structure("the image is too large".into());
        let align = if object.data_type == data_type::PARTITION { 4096 } else { 1 };
        let offset = self.end.checked_next_multiple_of(align).ok_or_else(too_large)?;
        let end = offset.checked_add(object.size).filter(|end| i64::try_from(*end).is_ok()).ok_or_else(too_large)?;
        let descriptor = Descriptor {
            data_type: object.data_type,
            id: u32::try_from(self.objects.len()).unwrap_or(u32::MAX).saturating_add(1),
            group: object.group,
            link: object.link,
            offset,
            size: object.size,
            size_with_padding: end.saturating_sub(self.end),
            created: self.time,
            modified: self.time,
            owner: [0; 16],
            name: fill(object.name.as_bytes(), "an object's name")?,
            extra: Box::new(fill(object.extra, "an object's type-specific part")?),
        };
        if let (Some((_, PRIMARY_SYSTEM)), Some(arch)) = (descriptor.partition(), descriptor.arch()) {
            if self.objects.iter().any(|o| o.partition().is_some_and(|(_, part)| part == PRIMARY_SYSTEM)) {
                return Err(SifError::Structure("two primary partitions".into()));
            }
            self.arch = arch;
        }
        self.objects.push(descriptor);
        self.end = end;
        Ok(offset)
    }

    /// The objects so far.
    #[must_use]
    pub fn objects(&self) -> &[Descriptor] {
        &self.objects
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

    /// Header and table, to be written at 0; they end where the data begins.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let used = u64::try_from(self.objects.len()).unwrap_or(0);
        let capacity = u64::try_from(CAPACITY).unwrap_or(0);
        let table_size = self.data_offset.saturating_sub(TABLE_OFFSET);
        let mut head = Writer::new()
            .raw(&self.sif().launch)
            .raw(MAGIC)
            .raw(VERSION)
            .raw(&self.arch.0)
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

/// Extra bytes of a primary system partition.
#[must_use]
pub fn primary_extra(fs_type: i32, arch: Arch) -> Vec<u8> {
    [&fs_type.to_le_bytes()[..], &PRIMARY_SYSTEM.to_le_bytes(), &arch.0].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::format::GROUP;

    fn blank(name: &str, extra: &[u8], size: u64) -> Result<Layout, SifError> {
        let mut layout = Layout::new([0; 16], 0);
        layout.add(Object { data_type: data_type::GENERIC, name, link: 0, group: GROUP | 1, extra, size })?;
        Ok(layout)
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        blank(&"n".repeat(128), &[1; 384], 0).unwrap();
        assert!(blank(&"n".repeat(129), &[], 0).is_err());
        assert!(blank("", &[1; 385], 0).is_err());
        for size in [u64::MAX, u64::MAX - 40_000, i64::MAX.unsigned_abs()] {
            assert!(blank("", &[], size).is_err());
        }
        let mut layout = Layout::new([0; 16], 0);
        let extra = primary_extra(1, Arch::native());
        let partition =
            Object { data_type: data_type::PARTITION, name: "", link: 0, group: GROUP | 1, extra: &extra, size: 1 };
        layout.add(partition).unwrap();
        assert!(layout.add(partition).is_err(), "a second primary partition");
        for _ in 1..CAPACITY {
            layout.add(Object { data_type: data_type::GENERIC, ..partition }).unwrap();
        }
        assert!(layout.add(Object { data_type: data_type::GENERIC, ..partition }).is_err(), "a full table");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            uuid: [u8; 16],
            time: i64,
            objects in prop::collection::vec((0x4001i32..0x400c, "[a-z]{0,128}", any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..385), 0u64..9000), 0..CAPACITY),
        ) {
            let mut layout = Layout::new(uuid, time);
            for (data_type, name, link, group, extra, size) in &objects {
                let _ = layout.add(Object { data_type: *data_type, name, link: *link, group: *group, extra, size: *size });
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&layout.head()).unwrap();
            file.set_len(layout.end).unwrap();
            prop_assert_eq!(Sif::read(&file).unwrap(), layout.sif());
        }
    }
}
