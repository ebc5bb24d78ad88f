//! What a look over the whole log shows, before its events are judged one by one.

use super::examine::{EXITED, Registers};
use super::measured::grub_prefix;
use super::{Event, EventLog, EventType};

/// What a look over the whole log shows.
#[derive(Default)]
pub(super) struct Whole<'a> {
    /// An event of UEFI's. Else a conventional BIOS wrote it.
    pub(super) uefi: bool,
    /// Separators of PCR 0 and of the Secure Boot register that are still to come.
    pub(super) ahead: [usize; 2],
    /// A variable in the Secure Boot register.
    pub(super) policy: bool,
    /// The first event that only a boot loader or an operating system logs.
    pub(super) loader: Option<Event<'a>>,
    /// GRUB's words in PCR 8: in a TDX guest's registers they stand among the names of files.
    pub(super) grub: bool,
}

impl<'a> Whole<'a> {
    pub(super) fn of(log: &EventLog<'a>, registers: Registers) -> Self {
        let mut whole = Self { uefi: log.is_uefi(), ..Self::default() };
        let places = [0, registers.secure_boot()].map(u32::from);
        for event in &log.events {
            match event.kind {
                EventType::SEPARATOR => {
                    for (count, place) in whole.ahead.iter_mut().zip(places) {
                        *count = count.saturating_add(usize::from(event.pcr == place));
                    }
                }
                EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_VARIABLE_AUTHORITY => {
                    whole.policy |= u32::from(registers.secure_boot()) == event.pcr;
                }
                EventType::IPL if matches!(event.pcr, 8 | 9 | 14) => whole.loader(event),
                EventType::EFI_ACTION if event.pcr == 5 && event.data == EXITED.as_bytes() => whole.loader(event),
                _ => {}
            }
            whole.grub |=
                !whole.grub && event.pcr == 8 && event.kind == EventType::IPL && grub_prefix(event.data).is_some();
        }
        whole
    }

    fn loader(&mut self, event: &Event<'a>) {
        if self.loader.is_none() {
            self.loader = Some(*event);
        }
    }
}
