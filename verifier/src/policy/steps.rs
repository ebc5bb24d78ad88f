//! What attacks are made of: one change each to what a machine measures or says. Each answers whether there was anything to change.

use countersign_wire::eventlog::EventType;

use super::log::{OwnEvent, OwnLog, ima_entry};
use super::machine::Machine;

pub(super) type Kind = EventType;

/// Changes an event of the measured log, found by PCR, type and part of its data.
pub(super) fn event(
    machine: &mut Machine,
    pcr: u32,
    kind: Kind,
    part: &[u8],
    change: impl FnOnce(&mut OwnEvent),
) -> bool {
    let Some(log) = &mut machine.log else { return false };
    let Some(event) = log.find(pcr, kind, part).and_then(|at| log.at(at)) else { return false };
    change(event);
    true
}

/// Changes the n-th program that firmware or a boot loader started.
pub(super) fn program(machine: &mut Machine, number: usize, change: impl FnOnce(&mut OwnEvent)) -> bool {
    let Some(log) = &mut machine.log else { return false };
    let all = log.all(4, Kind::EFI_BOOT_SERVICES_APPLICATION, b"");
    let Some(event) = all.get(number).and_then(|at| log.at(*at)) else { return false };
    change(event);
    true
}

pub(super) fn unknown(machine: &mut Machine, pcr: u32, kind: Kind, part: &[u8]) -> bool {
    event(machine, pcr, kind, part, OwnEvent::measure_unknown)
}

pub(super) fn remove(machine: &mut Machine, pcr: u32, kind: Kind, part: &[u8]) -> bool {
    let Some(log) = &mut machine.log else { return false };
    let Some(at) = log.find(pcr, kind, part) else { return false };
    log.events.remove(at);
    true
}

/// Inserts a copy of an event with other data behind it.
pub(super) fn insert(
    machine: &mut Machine,
    pcr: u32,
    kind: Kind,
    part: &[u8],
    change: impl FnOnce(&mut OwnEvent),
) -> bool {
    let Some(log) = &mut machine.log else { return false };
    let Some(at) = log.find(pcr, kind, part) else { return false };
    let Some(mut copy) = log.events.get(at).cloned() else { return false };
    change(&mut copy);
    log.events.insert(at.saturating_add(1), copy);
    true
}

/// Changes the contents of a UEFI variable that is measured into PCR 7: everything behind guid, two lengths and the name.
pub(super) fn variable(machine: &mut Machine, name: &str, contents: impl FnOnce(&[u8]) -> Vec<u8>) -> bool {
    let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let Some(log) = &mut machine.log else { return false };
    let found = log.events.iter_mut().find(|event| {
        event.pcr == 7
            && matches!(event.kind, Kind::EFI_VARIABLE_DRIVER_CONFIG | Kind::EFI_VARIABLE_AUTHORITY)
            && event.data.get(32..).is_some_and(|rest| rest.starts_with(&wide))
            && event.data.get(16..24) == Some(&u64::try_from(name.len()).unwrap_or(0).to_le_bytes()[..])
    });
    let Some(event) = found else { return false };
    let start = wide.len().saturating_add(32);
    let head = event.data.get(..start).unwrap_or_default();
    let new = contents(event.data.get(start..).unwrap_or_default());
    let mut data = head.get(..24).unwrap_or_default().to_vec();
    data.extend(u64::try_from(new.len()).unwrap_or(u64::MAX).to_le_bytes());
    data.extend(head.get(32..).unwrap_or_default());
    data.extend(new);
    event.measure(data);
    true
}

/// Boots with other words on the kernel's command line: GRUB's command, its menu entry, and what it measures as the line.
pub(super) fn command_line(machine: &mut Machine, words: &str) -> bool {
    let Some(log) = &mut machine.log else { return false };
    let mut changed = false;
    for start in [&b"grub_cmd: linux "[..], b"kernel_cmdline: "] {
        for at in log.all(8, Kind::IPL, start) {
            let Some(event) = log.at(at) else { continue };
            if !event.data.starts_with(start) {
                continue;
            }
            let mut text = event.data.strip_suffix(&[0]).unwrap_or(&event.data).to_vec();
            text.push(b' ');
            text.extend(words.as_bytes());
            text.push(0);
            event.measure(text);
            changed = true;
        }
    }
    changed
}

/// What the machine measures stays hidden: the log of the good boot is told instead.
pub(super) fn hidden(machine: &mut Machine, change: impl FnOnce(&mut Machine) -> bool) -> bool {
    machine.told_log = machine.log.as_ref().map(OwnLog::to_bytes);
    machine.told_log.is_some() && change(machine)
}

/// Changes the log that is told, not what is measured.
pub(super) fn forged(machine: &mut Machine, change: impl FnOnce(&mut OwnLog) -> bool) -> bool {
    let Some(mut log) = machine.log.clone() else { return false };
    let changed = change(&mut log);
    machine.told_log = Some(log.to_bytes());
    changed
}

pub(super) fn ran(machine: &mut Machine, alg: &str, digest: &[u8], path: &str) -> bool {
    let Some(ima) = &mut machine.ima else { return false };
    ima.push(ima_entry(alg, digest, path));
    true
}

/// Adds an entry as it stands.
pub(super) fn entry(machine: &mut Machine, change: impl FnOnce(&mut Vec<u8>), digest: &[u8], path: &str) -> bool {
    let Some(ima) = &mut machine.ima else { return false };
    let mut entry = ima_entry("sha256", digest, path);
    change(&mut entry);
    ima.push(entry);
    true
}
