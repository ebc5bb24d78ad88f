//! A process whose executable cannot be shown to be the image's, however that was learned: by a look or by the kernel's announcement.

use countersign_wire::finding::{Finding, Kind};

use super::mounts::Mount;
use super::process::Executable;

/// `where` when the executable was opened through none of these mounts.
const NOWHERE: &str = "on no mount of the container";

/// The finding. Its `where` is the place, in the container, of the mount that the executable was opened through, as mount tables have it.
pub(super) fn stranger(pid: u32, executable: &Executable, mounts: &[Mount], time_ms: i64) -> Finding {
    let through = mounts.iter().find(|mount| mount.id == executable.mount);
    let place = through.map_or(NOWHERE, |mount| mount.place.as_str());
    // Its root can be written, or has other layers than the image: nothing says where a file of it comes from.
    let what = match place {
        "/" => "runs an executable that cannot be shown to be the image's",
        _ => "runs an executable that is not in the image",
    };
    Finding::new(Kind::ProcessNotInImage, what, place, time_ms).of(pid, &executable.path)
}
