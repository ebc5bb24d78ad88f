//! UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3): where an executable came from. None of it is measured.

use crate::codec::{Malformed, Reader};
use crate::eventlog::Guid;
use crate::eventlog::utf16;

/// Nodes of a device path that are read: real ones have fewer than ten.
const NODES: usize = 32;

/// The path of an executable: its file's path, the GUID of its file in a firmware volume, or the PCI device whose ROM it is.
pub(super) fn path(data: &[u8]) -> Option<String> {
    let mut reader = Reader::new(data);
    reader.take(24, "ImageLocationInMemory to ImageLinkTimeAddress").ok()?;
    let length = reader.u64_le("LengthOfDevicePath").ok()?;
    let mut nodes = reader.sub(usize::try_from(length).ok()?, "DevicePath").ok()?;
    let mut found = None;
    let mut pci = String::new();
    for _ in 0..NODES {
        let Ok((kind, subkind, body)) = node(&mut nodes) else { break };
        match (kind, subkind) {
            // Media: file path (UEFI 2.10, 10.3.5.4), file of a firmware volume.
            (4, 4) => found = utf16(body).filter(|path| !path.chars().any(char::is_control)),
            (4, 6) => found = body.try_into().ok().map(|guid| format!("fv:{}", Guid(guid))),
            // Hardware: PCI function and device.
            (1, 1) => {
                if let [function, device] = body {
                    pci.push_str(&format!("/pci({device:x},{function:x})"));
                }
            }
            (0x7f, _) => break,
            _ => {}
        }
    }
    found.filter(|path| !path.is_empty()).or_else(|| Some(pci).filter(|path| !path.is_empty()))
}

fn node<'a>(reader: &mut Reader<'a>) -> Result<(u8, u8, &'a [u8]), Malformed> {
    let kind = reader.u8("Type")?;
    let subkind = reader.u8("SubType")?;
    let length = reader.u16_le("Length")?;
    let body = reader.take(usize::from(length.saturating_sub(4)), "node")?;
    Ok((kind, subkind, body))
}
