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
    /// Options of its file system.
    pub(super) options: String,
}

impl Mount {
    /// An overlay to which nobody can write and which shows nothing but the image: two layers, that of the runtime's mount points and the
    /// image. Both runtimes call them so (`overlay-lowerdir` and `rootfs` in the session's folder).
    pub(super) fn is_sealed(&self) -> bool {
        let mut options = self.options.split(',');
        let value = |name: &str| self.options.split(',').find_map(|option| option.strip_prefix(name));
        let layers = value("lowerdir=").map(|layers| layers.split(':').collect::<Vec<_>>()).unwrap_or_default();
        let known =
            |layer: &&str| ["/session/overlay-lowerdir", "/session/rootfs"].iter().any(|end| layer.ends_with(end));
        let written =
            options.any(|option| ["upperdir", "lowerdir+", "datadir+"].iter().any(|name| option.starts_with(name)));
        self.kind == "overlay" && !written && layers.len() == 2 && layers.iter().all(known)
    }
}

/// A path as mount tables have it.
pub(super) fn escape(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

/// The path behind what mount tables have.
pub(super) fn unescape(place: &str) -> Vec<u8> {
    let mut path = Vec::with_capacity(place.len());
    let mut rest = place;
    while let Some((before, after)) = rest.split_once('\\') {
        path.extend(before.bytes());
        let byte = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(byte.unwrap_or(b'\\'));
        rest = byte.and_then(|_| after.get(3..)).unwrap_or(after);
    }
    path.extend(rest.bytes());
    path
}

/// Lines that are none are left out: the kernel writes this.
pub(super) fn parse(table: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        let place = fields.nth(1)?.to_owned();
        let mut after = after.split(' ');
        let kind = after.next()?.to_owned();
        let options = after.nth(1).unwrap_or_default().to_owned();
        Some(Mount { id, device, place, kind, options })
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
        let place = escape("/a b");
        let (kind, options) = ("tmpfs".to_owned(), "rw".to_owned());
        assert_eq!(mounts[1], Mount { id: 91, device: "0:50".into(), place, kind, options });
        let strange = "/a\tb\nc\\d";
        assert_eq!(escape(strange), "/a\\011b\\012c\\134d");
        assert_eq!(unescape(&escape(strange)), strange.as_bytes());
        // Not of the kernel's.
        assert_eq!(unescape("/a\\9\\"), b"/a\\9\\");
        assert_eq!(root(&[]), None);
    }

    #[test]
    fn overlays_that_are_the_image() {
        let session = "/var/lib/apptainer/mnt/session";
        let of = |kind: &str, options: &str| {
            let line = format!("160 68 0:42 / / rw,nodev unbindable - {kind} overlay {options}");
            parse(&line).remove(0).is_sealed()
        };
        let sealed = format!("ro,lowerdir={session}/overlay-lowerdir:{session}/rootfs,redirect_dir=on");
        assert!(of("overlay", &sealed));
        for bad in [
            format!("rw,lowerdir={session}/overlay-lowerdir:{session}/rootfs,upperdir={session}/upper,workdir=/w"),
            format!("ro,lowerdir={session}/overlay-lowerdir:{session}/overlay-images/0/upper:{session}/rootfs"),
            format!("ro,lowerdir={session}/overlay-images/0/upper:{session}/rootfs"),
            format!("ro,lowerdir+=/evil,lowerdir={session}/overlay-lowerdir:{session}/rootfs"),
            format!("ro,lowerdir={session}/rootfs"),
            "ro".to_owned(),
        ] {
            assert!(!of("overlay", &bad), "{bad}");
        }
        // A program's answers, not the kernel's.
        assert!(!of("fuse.fuse-overlayfs", &sealed));
    }
}
