//! Which part of an event's data its digest vouches for.

use countersign_tpm::alg::HashAlg;

use super::known::known;
use super::variable::ascii_utf16;
use super::{Event, EventType, Guid, Variable};

/// What GRUB puts in front of the text that it measures (GRUB 2.06 and later; the last two: Fedora's and Red Hat's older patches).
pub(super) const GRUB_PREFIXES: [&[u8]; 5] =
    [b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ", b"grub_kernel_cmdline ", b"grub_cmd "];

/// Length of GRUB's prefix of an EV_IPL event, if it has one.
pub(crate) fn grub_prefix(data: &[u8]) -> Option<usize> {
    GRUB_PREFIXES.iter().find(|prefix| data.starts_with(prefix)).map(|prefix| prefix.len())
}

impl<'a> Event<'a> {
    /// The part of the event's data that its digest in this bank vouches for: what was really measured.
    ///
    /// Seen on real machines: the whole data; of a boot variable its contents alone; of an authority all but a surplus last byte; of a
    /// boot loader's text what follows the prefix, with or without its terminating NUL. Never the data of an executable's event.
    #[must_use]
    pub fn measured(&self, alg: HashAlg) -> Option<&'a [u8]> {
        self.part(alg, self.digest(alg)?)
    }

    /// The same for a digest that is at hand. The likeliest part is tried first: each try hashes.
    pub(super) fn part(&self, alg: HashAlg, digest: &[u8]) -> Option<&'a [u8]> {
        let data = self.data;
        let hashes = |part: &[u8]| alg.is_digest(part, digest);
        // Nearly always it is one of a few, whose digests are at hand.
        let hashes_to_known = |part: &[u8]| match known(alg).of_data(part) {
            Some(of_part) => of_part.as_bytes() == digest,
            None => hashes(part),
        };
        let whole = || hashes(data).then_some(data);
        if self.is_opaque() {
            return None;
        }
        match self.kind {
            EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2 => {
                let contents = Variable::parse(data).ok().map(|variable| variable.data);
                contents.filter(|contents| hashes(contents)).or_else(whole)
            }
            // In PCR 7 always whole; the rules hold it to that.
            EventType::EFI_VARIABLE_DRIVER_CONFIG => {
                whole().or_else(|| Some(Variable::parse(data).ok()?.data).filter(|contents| hashes(contents)))
            }
            EventType::EFI_VARIABLE_AUTHORITY => whole().or_else(|| {
                // Old versions of shim hash five bytes more than the variable has, and log one more than they hash. A single surplus byte
                // is believed of shim's own events only: firmware puts an owner in front of the certificate.
                let (variable, tail) = Variable::parse_with_tail(data).ok()?;
                let part = data.split_last()?.1;
                let shim = variable.guid == Guid::SHIM || variable.data.starts_with(&[0x30, 0x82]);
                ((tail >= 2 || (tail == 1 && shim)) && hashes(part)).then_some(part)
            }),
            EventType::IPL => {
                // systemd-stub logs a section's name in UTF-16 and measures it in ASCII with its NUL (PCR 11).
                let name = || {
                    let name = ascii_utf16(data.strip_suffix(&[0, 0])?)?;
                    (alg.digest(&[name.as_bytes(), &[0]]).as_bytes() == digest).then_some(data)
                };
                name().or_else(|| ipl(data, hashes))
            }
            EventType::SEPARATOR => hashes_to_known(data).then_some(data),
            EventType::EFI_ACTION | EventType::ACTION => {
                [data].into_iter().chain(data.strip_suffix(&[0])).find(|text| hashes_to_known(text))
            }
            _ => whole(),
        }
    }

    /// Whether the digest is of something that is not in the log: an executable, firmware, tables, a file that GRUB read (PCR 9), a list of
    /// shim's (PCR 14). The data only says where it lies or what it is called, and hashing it would tell nothing.
    fn is_opaque(&self) -> bool {
        let blob = matches!(
            self.kind,
            EventType::EFI_PLATFORM_FIRMWARE_BLOB
                | EventType::EFI_PLATFORM_FIRMWARE_BLOB2
                | EventType::EFI_HANDOFF_TABLES
                | EventType::EFI_HANDOFF_TABLES2
        );
        let file = self.kind == EventType::IPL && matches!(self.pcr, 9 | 14) && grub_prefix(self.data).is_none();
        blob || file || self.is_image()
    }

    /// Whether the log says that an executable was measured (UEFI_IMAGE_LOAD_EVENT).
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(
            self.kind,
            EventType::EFI_BOOT_SERVICES_APPLICATION
                | EventType::EFI_BOOT_SERVICES_DRIVER
                | EventType::EFI_RUNTIME_SERVICES_DRIVER
        )
    }

    /// What was measured as text, where it is text.
    #[must_use]
    pub fn text(&self, alg: HashAlg) -> Option<String> {
        self.measured(alg).and_then(|part| self.part_text(part))
    }

    /// A measured part as text, where it is text.
    #[must_use]
    pub fn part_text(&self, part: &[u8]) -> Option<String> {
        if let Ok(variable) = Variable::parse(part) {
            return variable.name().map(|name| {
                let shown: String = variable.data.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                let more = if variable.data.len() > 16 { "..." } else { "" };
                format!("{name} = {shown}{more} ({} bytes)", variable.data.len())
            });
        }
        plain_text(part)
    }
}

/// Bytes as text: UTF-8 or UTF-16 without control characters, a terminating NUL left out.
pub(crate) fn plain_text(part: &[u8]) -> Option<String> {
    let text = part.strip_suffix(&[0]).unwrap_or(part);
    let plain = |byte| matches!(byte, 0x20..=0x7e | b'\n' | b'\t');
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    // Nearly all text is plain. No look ends early: so the compiler takes many bytes at once.
    let all_plain = |text: &str| text.bytes().fold(true, |all, byte| all & plain(byte));
    let printable = |text: &str| !text.is_empty() && (all_plain(text) || !text.chars().any(control));
    match std::str::from_utf8(text) {
        Ok(text) if printable(text) => Some(text.to_owned()),
        _ => utf16(part).filter(|text| printable(text)),
    }
}

/// UTF-16LE with or without its NUL; firmware that cuts the last byte of the text off leaves an odd number of bytes.
pub(crate) fn utf16(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    let end = end.saturating_add(end % 2).min(bytes.len());
    let bytes = bytes.get(..end)?;
    if let Some(text) = ascii_utf16(bytes) {
        return Some(text);
    }
    let units = bytes.chunks(2).map(|pair| match pair {
        [low, high] => u16::from_le_bytes([*low, *high]),
        [low] => u16::from(*low),
        _ => 0,
    });
    char::decode_utf16(units).collect::<Result<String, _>>().ok()
}

/// EV_IPL belongs to boot loaders, and each has its own habits.
fn ipl(data: &[u8], hashes: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    let without_nul = data.strip_suffix(&[0]);
    let prefix = grub_prefix(data).or_else(|| data.windows(2).position(|pair| pair == b": ")?.checked_add(2));
    if let Some(prefix) = prefix {
        let after = [without_nul.and_then(|text| text.get(prefix..)), data.get(prefix..)];
        if let Some(part) = after.into_iter().flatten().find(|part| hashes(part)) {
            return Some(part);
        }
    }
    // The last one: UTF-16 without its NUL.
    let rest = [Some(data), without_nul, without_nul.and_then(|text| text.strip_suffix(&[0]))];
    if let Some(part) = rest.into_iter().flatten().find(|part| hashes(part)) {
        return Some(part);
    }
    // Distributions had prefixes without a colon.
    let words = || Some(without_nul.unwrap_or(data)).filter(|text| prefix.is_none() && text.is_ascii());
    if let Some(after) =
        words().and_then(|text| data.get(text.iter().position(|byte| *byte == b' ')?.checked_add(1)?..))
        && let Some(part) = [Some(after), after.strip_suffix(&[0])].into_iter().flatten().find(|part| hashes(part))
    {
        return Some(part);
    }
    // systemd-boot before version 250 logs one byte less of a UTF-16 text than it measures: the last NUL.
    (data.len() % 2 == 1 && data.last() == Some(&0))
        .then(|| [data, &[0]].concat())
        .filter(|text| hashes(text))
        .map(|_| data)
}
