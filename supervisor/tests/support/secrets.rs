//! Where secrets are: memory, environment and arguments of a run's processes, files.

use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use countersign_sif::xts::VolumeKey;

use super::processes::{Family, Process};

/// A volume key and an escrow passphrase, in all the forms in which they would be found.
pub(crate) struct Secrets {
    needles: Vec<Vec<u8>>,
}

impl Secrets {
    pub(crate) fn new(key: &VolumeKey, passphrase: &str) -> Self {
        // Each half by itself: cipher contexts hold them apart.
        let (first, second) = key.split_at(32);
        let mut needles = Vec::new();
        for part in [first, second, passphrase.as_bytes()] {
            needles.extend([part.to_vec(), hex::encode(part).into(), hex::encode_upper(part).into()]);
        }
        for whole in [key.as_slice(), second, passphrase.as_bytes()] {
            // Without what depends on the end, so that a longer text with this one at its beginning is found too.
            for text in [STANDARD.encode(whole), URL_SAFE.encode(whole)] {
                needles.push(text[..whole.len() / 3 * 4].into());
            }
        }
        Self { needles }
    }

    /// Whether any of them is in these bytes.
    pub(crate) fn within(&self, bytes: &[u8]) -> bool {
        self.needles.iter().any(|needle| contains(bytes, needle))
    }

    /// Files that were changed since then and hold one.
    pub(crate) fn files(&self, folder: &Path, since: SystemTime) -> Vec<PathBuf> {
        let since = i64::try_from(since.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_file() && metadata.ctime() >= since && metadata.len() < 256 << 20 {
                    found.extend(std::fs::read(&path).ok().filter(|bytes| self.within(bytes)).map(|_| path));
                }
            }
        }
        found
    }

    /// The decryptor has them in locked memory only, no other process of the family has them.
    #[track_caller]
    pub(crate) fn only_in_the_decryptor(&self, family: &Family) {
        let decryptor = family.find("decryptor-process");
        let held = self.mappings(decryptor);
        // The scan finds what is there: the tweak's key schedule begins with the key's second half.
        assert!(!held.is_empty(), "the scan does not find the key where it must be");
        for (mapping, flags) in held {
            assert!(flags.split(' ').any(|flag| flag == "lo"), "not locked: {mapping} {flags}");
        }
        for process in &family.0 {
            if process.pid != decryptor.pid {
                self.not_in(process);
            }
            self.not_beside(process);
        }
    }

    /// No process of the family has them.
    #[track_caller]
    pub(crate) fn nowhere(&self, family: &Family) {
        for process in &family.0 {
            self.not_in(process);
            self.not_beside(process);
        }
    }

    #[track_caller]
    fn not_in(&self, process: &Process) {
        assert_eq!(self.mappings(process), [], "{} ({})", process.command, process.pid);
    }

    #[track_caller]
    fn not_beside(&self, process: &Process) {
        for file in ["environ", "cmdline"] {
            assert!(!self.within(&std::fs::read(process.file(file)).unwrap()), "{file} of {}", process.command);
        }
    }

    /// Mappings of a process that hold one, with their flags (proc(5), smaps). What cannot be read (device mappings) is skipped.
    fn mappings(&self, process: &Process) -> Vec<(String, String)> {
        let memory = File::open(process.file("mem")).unwrap();
        let maps = std::fs::read_to_string(process.file("smaps")).unwrap();
        assert!(!maps.is_empty(), "{} ({})", process.command, process.pid);
        let (mut found, mut mapping) = (Vec::new(), "");
        for line in maps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags: ") {
                if self.in_mapping(&memory, mapping) {
                    found.push((mapping.to_owned(), flags.to_owned()));
                }
            } else if !line.split(' ').next().unwrap().ends_with(':') {
                mapping = line;
            }
        }
        found
    }

    fn in_mapping(&self, memory: &File, mapping: &str) -> bool {
        let mut fields = mapping.split(' ');
        let (start, end) = fields.next().unwrap().split_once('-').unwrap();
        let skipped = mapping.ends_with("[vvar]") || mapping.ends_with("[vsyscall]");
        if !fields.next().unwrap().starts_with('r') || skipped {
            return false;
        }
        let (mut at, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let (mut buffer, nothing) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        while at < end {
            let part = usize::try_from(end - at).unwrap().min(buffer.len());
            let Ok(n @ 1..) = memory.read_at(&mut buffer[..part], at) else { return false };
            // Most of what is mapped was never written.
            if buffer[..n] != nothing[..n] && self.within(&buffer[..n]) {
                return true;
            }
            // Parts overlap by more than a needle's length.
            at += u64::try_from(if n == buffer.len() { n - 256 } else { n }).unwrap();
        }
        false
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let mut at = 0;
    loop {
        // To behind the next byte that is the needle's first.
        match (&bytes[at..]).skip_until(needle[0]).unwrap() {
            0 => return false,
            n => at += n,
        }
        if bytes[at - 1..].starts_with(needle) {
            return true;
        }
    }
}
