//! Who a client is, as the kernel says.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

/// A client's process when it connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    /// Effective user.
    pub(super) uid: u32,
    /// Effective group.
    pub(super) gid: u32,
    /// All groups, the effective one too.
    pub(super) groups: Vec<u32>,
    /// Its number; for people only, numbers are used again.
    pub(super) pid: u32,
}

impl Peer {
    /// Asks the kernel (SO_PEERCRED, SO_PEERGROUPS).
    ///
    /// # Errors
    /// The system call fails.
    pub(super) fn of(socket: impl AsFd) -> std::io::Result<Self> {
        let (pid, uid, gid) = countersign_sys::peer(&socket)?;
        let mut groups = countersign_sys::peer_groups(&socket)?;
        if !groups.contains(&gid) {
            groups.push(gid);
        }
        Ok(Self { uid, gid, groups, pid })
    }

    /// A handle on the process, where the kernel gives one (Linux 6.5).
    pub(super) fn process(socket: impl AsFd) -> Option<OwnedFd> {
        countersign_sys::peer_process(socket).ok()
    }

    /// Whether this is root.
    pub(super) const fn is_root(&self) -> bool {
        self.uid == 0
    }
}
