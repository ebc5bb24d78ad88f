//! What data looks like, whatever its type says.

use super::measured::utf16;

/// Words in ASCII or UTF-16.
pub(super) fn words(data: &[u8]) -> bool {
    is_line(data) || utf16(data).is_some_and(|text| is_line(text.as_bytes()))
}

/// One line of printable characters and its NULs.
pub(super) fn is_line(data: &[u8]) -> bool {
    let end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    end > 0 && data.iter().take(end).all(|byte| matches!(byte, 0x20..=0x7e | b'\t' | b'\r' | b'\n'))
}

/// Kernel parameters in UTF-16, as systemd-boot and systemd-stub log them: words without control characters. What they call the initial RAM
/// disks that they measure beside them has no `=`.
pub(super) fn parameters(data: &[u8]) -> bool {
    data.chunks_exact(2).any(|pair| pair == [b'=', 0])
        && utf16(data).is_some_and(|text| !text.chars().any(char::is_control))
}

/// UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3): an address, a length, and a device path that is as long as the event says, if it has one. Old versions
/// of shim leave all of it out, and log the structure with what happens to stand behind it.
pub(super) fn looks_like_image(data: &[u8]) -> bool {
    let Some((header, path)) = data.split_at_checked(32) else { return false };
    if header.iter().all(|byte| *byte == 0) {
        return matches!(path.len(), 8 | 9);
    }
    let mut fields = header.chunks_exact(8).map(|field| field.try_into().map_or(0, u64::from_le_bytes));
    let (Some(address), Some(size), _, Some(length)) = (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    // Processors have at most 52 bits of physical address.
    let placed = (1..1 << 52).contains(&address) && (1..1 << 40).contains(&size);
    let whole = usize::try_from(length).is_ok_and(|length| length <= path.len());
    placed && whole && if length == 0 { path.is_empty() } else { is_node(path) }
}

/// The first node of a device path (UEFI 2.10, 10.3): hardware, ACPI, messaging, media, BIOS boot or the end.
fn is_node(path: &[u8]) -> bool {
    let &[kind, _, low, high, ..] = path else { return false };
    let length = usize::from(u16::from_le_bytes([low, high]));
    matches!(kind, 1..=5 | 0x7f) && (4..=path.len()).contains(&length)
}
