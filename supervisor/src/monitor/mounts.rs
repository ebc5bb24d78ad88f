//! Mount tables: /proc/PID/mountinfo (proc(5)).

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Its number, in this boot's tables.
    pub(super) id: u64,
    /// `major:minor` of its file system.
    pub(super) device: String,
    /// Where it is, as the process sees it; octal escapes as they stand.
    pub(super) place: String,
    /// Type of its file system.
    pub(super) kind: String,
}

/// Lines that are none are left out: the kernel writes this.
pub(super) fn parse(table: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        let place = fields.nth(1)?.to_owned();
        Some(Mount { id, device, place, kind: after.split(' ').next()?.to_owned() })
    };
    table.lines().filter_map(line).collect()
}

/// What is mounted at `/` last: that is what a path resolves to.
pub(super) fn root(mounts: &[Mount]) -> Option<&Mount> {
    mounts.iter().rev().find(|mount| mount.place == "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let table = "90 80 0:45 / / ro,nosuid shared:3 - fuse.squashfuse squashfuse ro\n91 90 0:50 / /a\\040b rw - tmpfs tmpfs rw\nx\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(root(&mounts).map(|mount| mount.device.as_str()), Some("0:45"));
        assert_eq!(mounts[1], Mount { id: 91, device: "0:50".into(), place: "/a\\040b".into(), kind: "tmpfs".into() });
        assert_eq!(root(&[]), None);
    }
}
