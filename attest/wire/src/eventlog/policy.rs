//! Variables of the Secure Boot policy: where they stand, and under which type.

use super::rules::{Lie, lie, short, unmeasured};
use super::shape::words;
use super::{Event, EventType, Guid, Variable};

/// Names of the Secure Boot policy's variables: whoever owns them, a reader could take them for it.
pub(super) fn is_policy(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 10] = [
        b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0",
        b"S\0e\0t\0u\0p\0M\0o\0d\0e\0",
        b"A\0u\0d\0i\0t\0M\0o\0d\0e\0",
        b"D\0e\0p\0l\0o\0y\0e\0d\0M\0o\0d\0e\0",
        b"P\0K\0",
        b"K\0E\0K\0",
        b"d\0b\0",
        b"d\0b\0x\0",
        b"d\0b\0t\0",
        b"d\0b\0r\0",
    ];
    NAMES.contains(&name)
}

/// Whether a variable belongs to the Secure Boot databases or to shim.
pub(super) fn owned(variable: &Variable<'_>) -> bool {
    matches!(variable.guid, Guid::SECURITY_DATABASE | Guid::SHIM)
}

/// A variable of the Secure Boot policy outside its register. Firmware measures other variables in PCR 1 and elsewhere.
pub(super) fn misplaced(event: &Event<'_>) -> Result<(), Lie> {
    if event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
        return Ok(());
    }
    let Ok((variable, _)) = Variable::parse_with_tail(event.data) else { return Ok(()) };
    let keys = variable.guid == Guid::GLOBAL && ["SecureBoot", "PK", "KEK"].iter().any(|name| variable.is_named(name));
    let databases = variable.guid == Guid::SECURITY_DATABASE && is_policy(variable.raw_name());
    if keys || databases {
        let got = format!("{} in PCR {}", variable.name().unwrap_or_default(), event.pcr);
        return Err(lie(event, "secure-boot-variable", got, "the policy's variables where the policy is measured"));
    }
    Ok(())
}

/// A variable of the policy under another type than EV_EFI_VARIABLE_DRIVER_CONFIG. An authority names the database that it was found in, and
/// holds one entry of it: an owner and a certificate or hash, never a list. Devices have a database of their own (devdb).
pub(super) fn policy_variable(event: &Event<'_>, part: Option<&[u8]>) -> Result<(), Lie> {
    const LISTS: [Guid; 4] = [Guid::X509_LIST, Guid::SHA256_LIST, Guid::SHA1_LIST, Guid::RSA2048_LIST];
    let devices = matches!(event.kind, EventType::EFI_SPDM_DEVICE_POLICY | EventType::EFI_SPDM_DEVICE_AUTHORITY);
    let variable = Variable::parse_with_tail(event.data).ok();
    let hidden = variable.is_some_and(|(variable, tail)| {
        let name = variable.raw_name();
        let databases: [&[u8]; 3] = [b"d\0b\0", b"d\0b\0x\0", b"d\0b\0t\0"];
        let list = || LISTS.iter().any(|list| variable.data.starts_with(&list.0)) || variable.data.is_empty();
        match event.kind {
            EventType::EFI_VARIABLE_AUTHORITY => is_policy(name) && (!databases.contains(&name) || list()),
            _ if devices => (is_policy(name) || owned(&variable)) && !variable.is_named("devdb"),
            EventType::IPL | EventType::EVENT_TAG | EventType::EFI_ACTION if tail == 0 => true,
            _ => is_policy(name) || owned(&variable),
        }
    });
    if hidden {
        let name = variable.and_then(|(variable, _)| variable.name()).unwrap_or_default();
        let want = "EV_EFI_VARIABLE_DRIVER_CONFIG or _AUTHORITY";
        return Err(lie(event, "relabelled", format!("variable {name} under another type"), want));
    }
    if event.kind == EventType::EFI_ACTION && !words(event.data) {
        return Err(lie(event, "relabelled", format!("data {}", short(event.data)), "an action: words"));
    }
    if (devices || event.kind == EventType::EFI_VARIABLE_AUTHORITY) && part.is_none() {
        return Err(unmeasured(event));
    }
    Ok(())
}
