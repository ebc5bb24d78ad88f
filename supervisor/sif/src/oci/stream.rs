//! The merged tree as one tar archive, for mksquashfs.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use tar::{Builder, EntryType, Header};

use super::bad;
use super::layer::Budget;
use super::manifest::Image;
use super::store::Store;
use super::tree::{Content, Entry, Tree};
use crate::error::SifError;

/// Longest name in a header; longer ones go into a pax record.
const SHORT: usize = 100;

struct Member<'a> {
    kind: EntryType,
    path: &'a [u8],
    link: &'a [u8],
    mode: u32,
    mtime: u64,
    size: u64,
}

/// A file that waits for its layer: names, mode, modification time, size.
struct Wanted {
    paths: Vec<Vec<u8>>,
    mode: u32,
    mtime: u64,
    size: u64,
}

pub(super) fn write(tree: &Tree, image: &Image, store: &Store, out: &mut dyn Write) -> Result<(), SifError> {
    let mut archive = Builder::new(out);
    let mut wanted: BTreeMap<(usize, u64), Wanted> = BTreeMap::new();
    tree.walk(|path, mode, mtime, entry| {
        let member = Member { kind: EntryType::Directory, path, link: &[], mode, mtime, size: 0 };
        match entry {
            Entry::Folder => append(&mut archive, &member, &mut std::io::empty()),
            Entry::Symlink(link) => {
                append(&mut archive, &Member { kind: EntryType::Symlink, link, ..member }, &mut std::io::empty())
            }
            Entry::File(number) => {
                let Some(file) = tree.file(number) else { return Ok(()) };
                match &file.content {
                    Content::Made(text) => {
                        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
                        let member = Member { kind: EntryType::Regular, size, ..member };
                        append(&mut archive, &member, &mut text.as_slice())
                    }
                    Content::Member { layer, number, size } => {
                        let (mode, mtime, size) = (file.mode, file.mtime, *size);
                        let new = || Wanted { paths: Vec::new(), mode, mtime, size };
                        wanted.entry((*layer, *number)).or_insert_with(new).paths.push(path.to_vec());
                        Ok(())
                    }
                }
            }
        }
    })?;
    let mut budget = Budget::new();
    for (layer_number, layer) in image.layers.iter().enumerate() {
        layer.each(store, &mut budget, |number, _, body| {
            let Some(file) = wanted.remove(&(layer_number, number)) else { return Ok(()) };
            let (mode, mtime, size) = (file.mode, file.mtime, file.size);
            let Some((first, others)) = file.paths.split_first() else { return Ok(()) };
            append(
                &mut archive,
                &Member { kind: EntryType::Regular, path: first, link: &[], mode, mtime, size },
                body,
            )?;
            for path in others {
                let link = Member { kind: EntryType::Link, path, link: first, mode, mtime, size: 0 };
                append(&mut archive, &link, &mut std::io::empty())?;
            }
            Ok(())
        })?;
    }
    if !wanted.is_empty() {
        return Err(bad("its layers changed while they were read"));
    }
    Ok(archive.finish()?)
}

/// Writes a member; everything is root's.
fn append(archive: &mut Builder<&mut dyn Write>, member: &Member<'_>, body: &mut dyn Read) -> Result<(), SifError> {
    let mut header = Header::new_ustar();
    header.set_entry_type(member.kind);
    header.set_mode(member.mode);
    header.set_mtime(member.mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(member.size);
    let mut long = Vec::new();
    let decimal = member.size.to_string();
    if member.size >= 1 << 33 {
        long.push(("size", decimal.as_bytes())); // beyond eleven octal digits
    }
    let fields = header.as_old_mut();
    for (name, value, field) in
        [("path", member.path, &mut fields.name), ("linkpath", member.link, &mut fields.linkname)]
    {
        match field.get_mut(..value.len()).filter(|_| value.len() < SHORT) {
            Some(field) => field.copy_from_slice(value),
            None => long.push((name, value)),
        }
    }
    header.set_cksum();
    if !long.is_empty() {
        archive.append_pax_extensions(long)?;
    }
    Ok(archive.append(&header, body)?)
}
