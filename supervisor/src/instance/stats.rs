//! What an instance uses, from /proc and from its cgroup as far as it has the files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::folder::Instances;
use super::other;
use crate::exit::Failure;
use crate::group::Group;
use crate::stat::Stat;

/// Unit of the processor times in /proc/PID/stat: 1/100 s (USER_HZ) on every machine that this runs on.
const TICKS: f64 = 100.0;
/// What a cgroup can say, where its controller is there.
const FILES: [&str; 4] = ["memory.current", "memory.peak", "pids.current", "cpu.stat"];

/// Use of one instance: processes, processor time, memory, what was read and written; `not_read` names what nobody could say, with the reason.
/// Memory is the sum of resident sets: pages that processes share are counted for each.
///
/// # Errors
/// [`crate::exit::Stage::Usage`] when it does not run.
pub fn stats(instances: Option<&Path>, name: &str) -> Result<Value, Failure> {
    let note = Instances::open(instances)?.named(name)?.running()?;
    let processes = Group::under(note.init).and_then(|group| group.processes()).map_err(other)?;
    let (mut ticks, mut memory, mut read, mut written, mut count) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut not_read = Vec::new();
    for pid in processes {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let Ok(Some(stat)) = Stat::of(pid) else { continue };
        count = count.saturating_add(1);
        ticks = ticks.saturating_add(stat.ticks);
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        memory = memory.saturating_add(file("status").map_or(0, |text| field(&text, "VmRSS:")));
        match file("io") {
            Ok(text) => {
                read = read.saturating_add(field(&text, "rchar:"));
                written = written.saturating_add(field(&text, "wchar:"));
            }
            Err(e) => {
                not_read.push(json!({"what": format!("what process {pid} reads and writes"), "why": e.to_string()}))
            }
        }
    }
    let mut found = Map::new();
    match cgroup(note.init) {
        Ok(folder) => {
            found.insert("path".into(), json!(folder));
            for name in FILES {
                match fs::read_to_string(folder.join(name)) {
                    Ok(text) => drop(found.insert(name.into(), json!(text.trim()))),
                    Err(e) => not_read.push(json!({"what": name, "why": format!("{}: {e}", folder.display())})),
                }
            }
        }
        Err(why) => not_read.push(json!({"what": "cgroup", "why": why})),
    }
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "hundredths of seconds, far below 2^52")]
    let seconds = ticks as f64 / TICKS;
    Ok(json!({
        "name": note.name, "processes": count, "cpu_s": seconds, "memory_kib": memory, "read_bytes": read,
        "written_bytes": written, "cgroup": found, "not_read": not_read,
    }))
}

/// The folder of a run's own cgroup.
pub(super) fn cgroup(pid: u32) -> Result<PathBuf, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|e| e.to_string())?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or("no cgroup v2")?;
    if !path.rsplit('/').next().is_some_and(|name| name.starts_with("countersign-")) {
        return Err("the run has no cgroup of its own".into());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let place = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
    });
    Ok(Path::new(place.ok_or("cgroup v2 is not mounted")?).join(path.trim_start_matches('/')))
}
