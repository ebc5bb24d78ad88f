//! UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3): where an executable came from. None of it is measured.

use crate::codec::{Malformed, Reader};
use crate::eventlog::Guid;
use crate::eventlog::utf16;

/// Nodes of a device path that are read: real ones have fewer than ten.
const NODES: usize = 32;

/// Type, subtype and body of a node.
type Node<'a> = (u8, u8, &'a [u8]);

/// The path of an executable: its file's path, the GUID of its file in a firmware volume, or the PCI device whose ROM it is.
pub(super) fn path(data: &[u8]) -> Option<String> {
    let mut reader = Reader::new(data);
    reader.take(24, "ImageLocationInMemory to ImageLinkTimeAddress").ok()?;
    let length = reader.u64_le("LengthOfDevicePath").ok()?;
    let mut path = reader.sub(usize::try_from(length).ok()?, "DevicePath").ok()?;
    let nodes = std::iter::from_fn(move || node(&mut path).ok()).take(NODES).take_while(|(kind, ..)| *kind != 0x7f);
    let last = nodes.clone().filter(|(kind, subkind, _)| matches!((kind, subkind), (4, 4 | 6))).last();
    let pci = || nodes.filter_map(pci).collect();
    last.and_then(file).filter(|path| !path.is_empty()).or_else(|| Some(pci()).filter(|path: &String| !path.is_empty()))
}

/// Media: file path (UEFI 2.10, 10.3.5.4), file of a firmware volume.
fn file((_, subkind, body): Node<'_>) -> Option<String> {
    match subkind {
        4 => utf16(body).filter(|path| !path.chars().any(char::is_control)),
        _ => body.try_into().ok().map(|guid| format!("fv:{}", Guid(guid))),
    }
}

/// Hardware: PCI function and device.
fn pci((kind, subkind, body): Node<'_>) -> Option<String> {
    match (kind, subkind, body) {
        (1, 1, [function, device]) => Some(format!("/pci({device:x},{function:x})")),
        _ => None,
    }
}

fn node<'a>(reader: &mut Reader<'a>) -> Result<Node<'a>, Malformed> {
    let kind = reader.u8("Type")?;
    let subkind = reader.u8("SubType")?;
    let length = reader.u16_le("Length")?;
    let body = reader.take(usize::from(length.saturating_sub(4)), "node")?;
    Ok((kind, subkind, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(nodes: &[Node<'_>]) -> Vec<u8> {
        let mut path = Vec::new();
        for (kind, subkind, body) in nodes {
            path.extend([*kind, *subkind]);
            path.extend(u16::try_from(body.len()).unwrap().saturating_add(4).to_le_bytes());
            path.extend(*body);
        }
        [[0; 24].as_slice(), &u64::try_from(path.len()).unwrap().to_le_bytes(), &path].concat()
    }

    #[test]
    fn the_last_file_or_else_the_device() {
        const FILE: Node<'_> = (4, 4, b"\\\0A\0\0\0");
        const VOLUME: Node<'_> = (4, 6, &[0x11; 16]);
        const NO_TEXT: Node<'_> = (4, 4, b"\x07\0\0\0");
        const END: Node<'_> = (0x7f, 0xff, b"");
        let (pci, bridge): (Node<'_>, Node<'_>) = ((1, 1, &[0, 0x1f]), (1, 1, &[2, 3]));
        let of = |nodes: &[Node<'_>]| path(&event(nodes));
        let volume = "fv:11111111-1111-1111-1111-111111111111";
        assert_eq!(of(&[pci, FILE, END]).as_deref(), Some("\\A"));
        assert_eq!(of(&[FILE, VOLUME, END]).as_deref(), Some(volume));
        assert_eq!(of(&[pci, bridge, END]).as_deref(), Some("/pci(1f,0)/pci(3,2)"));
        assert_eq!(of(&[pci, END, FILE]).as_deref(), Some("/pci(1f,0)"), "nothing behind the end");
        assert_eq!(of(&[FILE, pci, NO_TEXT, END]).as_deref(), Some("/pci(1f,0)"), "the last file has no name");
        assert_eq!(of(&[END]), None);
        let long = [&[pci; NODES][..], &[FILE, END]].concat();
        assert!(!of(&long).unwrap().contains('A'), "more nodes than are read");
        let good = event(&[pci, FILE, END]);
        assert_eq!(path(&good[..good.len() - 1]), None, "shorter than it says");
    }
}
