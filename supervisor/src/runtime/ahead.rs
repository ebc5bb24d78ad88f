//! The workload's program is read from the image while its container is made: the kernel keeps what it has read.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FileType, Mode, OFlags, ResolveFlags, fadvise, fstat, open, openat2};

use super::builtin::PATH;

/// Most bytes of it: the rest is read when it is needed.
const LENGTH: u64 = 4 << 20;

/// Has the kernel begin to read it, and waits for nothing. Where there is no such program, the runtime will say so.
pub(super) fn read(root: &Path, program: &OsStr) {
    let Ok(root) = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else { return };
    let places: Vec<PathBuf> = if program.as_bytes().contains(&b'/') {
        vec![program.into()]
    } else {
        PATH.split(':').map(|folder| Path::new(folder).join(program)).collect()
    };
    if let Some(file) = places.iter().find_map(|place| file(&root, place)) {
        let _ = fadvise(&file, 0, std::num::NonZeroU64::new(LENGTH), Advice::WillNeed);
    }
}

/// A regular file of the image; links are followed as in the container.
fn file(root: &OwnedFd, place: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, place, flags, Mode::empty(), resolve).ok()?;
    (FileType::from_raw_mode(fstat(&file).ok()?.st_mode) == FileType::RegularFile).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_image_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        std::fs::write(root.join("usr/bin/tool"), "x").unwrap();
        std::fs::write(folder.path().join("outside"), "x").unwrap();
        for (target, link) in [("usr/bin", "bin"), ("/usr/bin/tool", "link"), ("../outside", "out")] {
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
        let fd = open(&root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for (place, there) in [
            ("bin/tool", true),
            ("/link", true),
            ("usr/bin", false),
            ("out", false),
            ("../outside", false),
            ("none", false),
        ] {
            assert_eq!(file(&fd, Path::new(place)).is_some(), there, "{place}");
        }
        for program in ["tool", "/link", "none", ""] {
            read(&root, OsStr::new(program));
        }
        read(&folder.path().join("none"), OsStr::new("tool"));
    }
}
