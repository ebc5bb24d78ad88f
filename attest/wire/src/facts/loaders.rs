//! Which boot loaders ran, and which of the files they read are kernels and initial RAM disks.

use super::{Events, Fact, Facts, Loader, Log, Measured, Strength};

/// Names the boot loaders from what was found, and sorts kernels and RAM disks out of GRUB's files and a unified image's sections.
pub(super) fn name(facts: &mut Facts) {
    let mut found = std::mem::take(&mut facts.loaders);
    let mut add = |loader: Loader, strength, events: Events| {
        if !found.iter().any(|fact| fact.value == loader) {
            found.push(Fact { value: loader, strength, log: Log::Firmware, events });
        }
    };
    if let Some(shim) = &facts.shim {
        match &shim.sbat_level {
            Some(level) => add(Loader::Shim, Strength::Authenticated, level.events),
            None => {
                let events = shim.lists.first().map(|list| list.events).unwrap_or_default();
                add(Loader::Shim, Strength::Named, events);
            }
        }
    }
    for application in &facts.applications {
        let path = application.value.path.as_deref().unwrap_or_default();
        let ends = |name: &str| {
            path.len() >= name.len()
                && path.get(path.len().saturating_sub(name.len())..).is_some_and(|end| end.eq_ignore_ascii_case(name))
        };
        if ends("bootmgfw.efi") {
            add(Loader::Windows, Strength::Named, application.events);
        } else if ends("systemd-bootx64.efi") || ends("systemd-bootaa64.efi") {
            add(Loader::SystemdBoot, Strength::Named, application.events);
        }
    }
    if let Some(section) = facts.sections.first() {
        add(Loader::SystemdStub, section.strength, section.events);
    }
    if found.is_empty()
        && let Some(initrd) = facts.initrds.first()
    {
        found.push(Fact { value: Loader::DirectKernel, ..initrd_as(initrd) });
    }
    // In the order in which they ran: by their first events.
    found.sort_by_key(|fact| fact.events.as_slice().first().copied());
    facts.loaders = found;
    grub_files(facts);
    sections(facts);
}

fn initrd_as(initrd: &Fact<Measured>) -> Fact<Loader> {
    Fact { value: Loader::DirectKernel, strength: Strength::Named, log: initrd.log, events: initrd.events }
}

/// GRUB names a file as its command does: the first word of a command line is the kernel, the words behind `initrd` are RAM disks.
fn grub_files(facts: &mut Facts) {
    let lines = facts.command_lines.iter().filter(|line| line.value.by == Loader::Grub);
    let mut kernels: Vec<&str> = lines.filter_map(|line| line.value.text.split(' ').next()).collect();
    kernels.sort_unstable();
    facts.initrds.extend(facts.files.extract_if(.., |file| is_initrd(&file.value.name)));
    facts.kernels.extend(facts.files.extract_if(.., |file| kernels.binary_search(&file.value.name.as_str()).is_ok()));
}

fn is_initrd(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.starts_with("initrd") || file.starts_with("initramfs")
}

fn sections(facts: &mut Facts) {
    for section in &facts.sections {
        match section.value.name.as_str() {
            ".linux" => facts.kernels.push(section.clone()),
            ".initrd" => facts.initrds.push(section.clone()),
            _ => {}
        }
    }
}
