//! Layers laid over each other: names, links and where each file's contents are; whiteouts as the OCI image specification has them.
//!
//! Paths are resolved within this tree, never on the machine: `..` in a member's name is refused, a symbolic link on the way leads to another
//! place of the tree, and a hard link to something that is not in the tree is refused.

use std::collections::{BTreeMap, VecDeque};

use super::layer::{Kind, Member};
use super::{LINKS, MEMBERS, bad};
use crate::error::SifError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const ROOT: usize = 0;
/// The layer of what is added to an image: above all others.
const OWN: usize = usize::MAX;

/// Where a file's contents are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// In a layer, the member with this number.
    Member { layer: usize, number: u64, size: u64 },
    /// Made here.
    Made(Vec<u8>),
}

/// A file; several names may lead to it.
#[derive(Debug, Clone)]
pub(super) struct FileNode {
    pub(super) content: Content,
    pub(super) mode: u32,
    pub(super) mtime: u64,
}

#[derive(Debug, Clone)]
enum What {
    Folder(BTreeMap<Vec<u8>, usize>),
    /// Index among the files.
    File(usize),
    Symlink(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Node {
    layer: usize,
    mode: u32,
    mtime: u64,
    what: What,
}

/// What [`Tree::walk`] tells of.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    Folder,
    File(usize),
    Symlink(&'a [u8]),
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    files: Vec<FileNode>,
}

/// The parts of a member's name, which must not lead out of the image.
fn parts(path: &[u8]) -> Result<VecDeque<Vec<u8>>, SifError> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let parts: VecDeque<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    if parts.iter().any(|part| part == b".." || part.contains(&0)) {
        return Err(bad(format!("{:?} leads out of the image", String::from_utf8_lossy(path))));
    }
    Ok(parts)
}

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node { layer: 0, mode: 0o755, mtime: 0, what: What::Folder(BTreeMap::new()) };
        Self { nodes: vec![root], files: Vec::new() }
    }

    fn children(&self, folder: usize) -> Option<&BTreeMap<Vec<u8>, usize>> {
        match &self.nodes.get(folder)?.what {
            What::Folder(children) => Some(children),
            What::File(_) | What::Symlink(_) => None,
        }
    }

    fn children_mut(&mut self, folder: usize) -> Result<&mut BTreeMap<Vec<u8>, usize>, SifError> {
        match self.nodes.get_mut(folder).map(|node| &mut node.what) {
            Some(What::Folder(children)) => Ok(children),
            _ => Err(bad("a file where a folder is expected")),
        }
    }

    fn child(&self, folder: usize, name: &[u8]) -> Option<usize> {
        self.children(folder)?.get(name).copied()
    }

    fn put(&mut self, folder: usize, name: &[u8], node: Node) -> Result<usize, SifError> {
        let at = self.nodes.len();
        // Folders that no layer names are made too, for the names below them.
        if u64::try_from(at).is_ok_and(|made| made > MEMBERS) {
            return Err(bad(format!("more than {MEMBERS} files and folders")));
        }
        self.children_mut(folder)?.insert(name.to_vec(), at);
        self.nodes.push(node);
        Ok(at)
    }

    /// The folder that a path leads to, symbolic links followed within the tree; `make` says in which layer missing folders are made.
    fn folder(&mut self, mut path: VecDeque<Vec<u8>>, make: Option<usize>) -> Result<Option<usize>, SifError> {
        let mut above = vec![ROOT];
        let mut links: usize = 0;
        while let Some(part) = path.pop_front() {
            let here = above.last().copied().unwrap_or(ROOT);
            match part.as_slice() {
                b"" | b"." => continue,
                // Only in a symbolic link's target; the root is its own parent.
                b".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(next) = self.child(here, &part) else {
                let Some(layer) = make else { return Ok(None) };
                let folder = Node { layer, mode: 0o755, mtime: 0, what: What::Folder(BTreeMap::new()) };
                above.push(self.put(here, &part, folder)?);
                continue;
            };
            match self.nodes.get(next).map(|node| &node.what) {
                Some(What::Folder(_)) => above.push(next),
                Some(What::Symlink(target)) => {
                    links = links.saturating_add(1);
                    if links > LINKS {
                        return Err(bad("symbolic links that lead to each other"));
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        path.push_front(part.to_vec());
                    }
                }
                _ if make.is_none() => return Ok(None),
                _ => return Err(bad(format!("a folder {:?} that is a file", String::from_utf8_lossy(&part)))),
            }
        }
        Ok(above.last().copied())
    }

    /// Applies a member of a layer, the one with this number.
    pub(super) fn apply(&mut self, layer: usize, number: u64, member: Member) -> Result<(), SifError> {
        let mut path = parts(&member.path)?;
        let Some(name) = path.pop_back() else {
            // The root itself.
            if let Some(root) = self.nodes.get_mut(ROOT) {
                (root.mode, root.mtime) = (member.mode, member.mtime);
            }
            return Ok(());
        };
        if name == OPAQUE {
            if let Some(folder) = self.folder(path, None)? {
                self.prune(folder, layer);
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(bad("a whiteout of nothing"));
            }
            if let Some(folder) = self.folder(path, None)?
                && let Some(child) = self.child(folder, hidden)
                && !self.prune(child, layer)
            {
                self.children_mut(folder)?.remove(hidden);
            }
            return Ok(());
        }
        let Some(folder) = self.folder(path, Some(layer))? else { return Ok(()) };
        let (mode, mtime) = (member.mode, member.mtime);
        let what = match member.kind {
            Kind::Folder => {
                if let Some(there) = self.child(folder, &name)
                    && self.children(there).is_some()
                    && let Some(node) = self.nodes.get_mut(there)
                {
                    (node.layer, node.mode, node.mtime) = (layer, mode, mtime);
                    return Ok(());
                }
                What::Folder(BTreeMap::new())
            }
            Kind::File => {
                let content = Content::Member { layer, number, size: member.size };
                self.files.push(FileNode { content, mode, mtime });
                What::File(self.files.len().saturating_sub(1))
            }
            Kind::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(bad("a symbolic link to nothing"));
            }
            Kind::Symlink(target) => What::Symlink(target),
            Kind::Hardlink(target) => self.linked(&target)?,
            Kind::Special => {
                self.children_mut(folder)?.remove(&name);
                return Ok(());
            }
        };
        self.put(folder, &name, Node { layer, mode, mtime, what }).map(drop)
    }

    /// What a hard link is another name of: a file or symbolic link of this tree, never of the machine.
    fn linked(&mut self, target: &[u8]) -> Result<What, SifError> {
        let outside = || bad(format!("a hard link to {:?}, which is no file in it", String::from_utf8_lossy(target)));
        let mut path = parts(target)?;
        let name = path.pop_back().ok_or_else(outside)?;
        let folder = self.folder(path, None)?.ok_or_else(outside)?;
        let node = self.child(folder, &name).and_then(|at| self.nodes.get(at)).ok_or_else(outside)?;
        match &node.what {
            What::Folder(_) => Err(outside()),
            what @ (What::File(_) | What::Symlink(_)) => Ok(what.clone()),
        }
    }

    /// Takes away what layers below `layer` put here; false when nothing is left of it.
    fn prune(&mut self, at: usize, layer: usize) -> bool {
        let mut emptied = vec![(at, false)];
        // Children first: a folder of a lower layer stays while it holds something of this one.
        while let Some((node, seen)) = emptied.pop() {
            let Some(children) = self.children(node) else { continue };
            if !seen {
                let below: Vec<usize> = children.values().copied().collect();
                emptied.push((node, true));
                emptied.extend(below.into_iter().map(|child| (child, false)));
                continue;
            }
            let gone: Vec<Vec<u8>> = children
                .iter()
                .filter(|(_, child)| !self.stays(**child, layer))
                .map(|(name, _)| name.clone())
                .collect();
            if let Ok(children) = self.children_mut(node) {
                for name in gone {
                    children.remove(&name);
                }
            }
        }
        self.stays(at, layer)
    }

    fn stays(&self, at: usize, layer: usize) -> bool {
        let own = self.nodes.get(at).is_some_and(|node| node.layer >= layer);
        own || self.children(at).is_some_and(|children| !children.is_empty())
    }

    /// Adds a folder where there is nothing.
    pub(super) fn add_folder(&mut self, path: &str, mode: u32) -> Result<(), SifError> {
        let mut parts = parts(path.as_bytes())?;
        let Some(name) = parts.pop_back() else { return Ok(()) };
        let Some(folder) = self.folder(parts, Some(OWN))? else { return Ok(()) };
        if self.child(folder, &name).is_none() {
            let node = Node { layer: OWN, mode, mtime: 0, what: What::Folder(BTreeMap::new()) };
            self.put(folder, &name, node)?;
        }
        Ok(())
    }

    /// Adds a file, in the place of what is there (`replace`), or where there is nothing.
    pub(super) fn add_file(&mut self, path: &str, mode: u32, text: &[u8], replace: bool) -> Result<(), SifError> {
        let mut parts = parts(path.as_bytes())?;
        let Some(name) = parts.pop_back() else { return Ok(()) };
        let Some(folder) = self.folder(parts, Some(OWN))? else { return Ok(()) };
        if replace || self.child(folder, &name).is_none() {
            self.files.push(FileNode { content: Content::Made(text.to_vec()), mode, mtime: 0 });
            let what = What::File(self.files.len().saturating_sub(1));
            self.put(folder, &name, Node { layer: OWN, mode, mtime: 0, what })?;
        }
        Ok(())
    }

    /// The files, by the numbers that [`Tree::walk`] gives.
    pub(super) fn file(&self, number: usize) -> Option<&FileNode> {
        self.files.get(number)
    }

    /// Calls `each` with every path, its mode and modification time; folders come before what is in them.
    pub(super) fn walk(
        &self,
        mut each: impl FnMut(&[u8], u32, u64, Entry<'_>) -> Result<(), SifError>,
    ) -> Result<(), SifError> {
        let mut todo: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), ROOT)];
        while let Some((path, at)) = todo.pop() {
            let Some(node) = self.nodes.get(at) else { continue };
            let entry = match &node.what {
                What::File(number) => Entry::File(*number),
                What::Symlink(target) => Entry::Symlink(target),
                What::Folder(children) => {
                    for (name, child) in children.iter().rev() {
                        let below =
                            if path.is_empty() { name.clone() } else { [&path, b"/".as_slice(), name].concat() };
                        todo.push((below, *child));
                    }
                    Entry::Folder
                }
            };
            if at != ROOT {
                each(&path, node.mode, node.mtime, entry)?;
            }
        }
        Ok(())
    }
}
