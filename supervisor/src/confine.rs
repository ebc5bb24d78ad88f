//! Fewer rights for a decryptor of the daemon: root's files until the key is there, then a user of its own and nothing more.

use std::io;

use rustix::process::{DumpableBehavior, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};

/// To open the TPM and the state folder, whoever's they are; to become another user; to keep memory out of swap.
const UNTIL_RELEASED: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::IPC_LOCK);
/// All memory is locked, and what is allocated later must be lockable too.
const AFTERWARDS: CapabilitySet = CapabilitySet::IPC_LOCK;

fn keep(these: CapabilitySet) -> io::Result<()> {
    let kept = capabilities(None)?.permitted.intersection(these);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Before anything else, while there is one thread: no new privileges ever, and only the capabilities that a release needs.
///
/// # Errors
/// The system does not allow it.
pub(crate) fn begin() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => {}
            other => other?,
        }
    }
    set_no_new_privs(true)?;
    keep(UNTIL_RELEASED)
}

/// Once the key is there and no file is to be opened any more: this user, with no rights over anything.
///
/// # Errors
/// The system does not allow it, or the parent has ended. Nothing must be served then.
pub(crate) fn finish(uid: u32) -> io::Result<()> {
    let parent = getppid();
    set_keep_capabilities(true)?;
    countersign_sys::become_user(uid, uid)?;
    keep(AFTERWARDS)?;
    set_keep_capabilities(false)?;
    // The kernel has undone both.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}
