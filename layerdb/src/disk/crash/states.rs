//! Which states a power cut could leave.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::model::{Atom, Image, NodeNumber};
use super::recorder::{Change, Recording};
use crate::digest::Digest;

/// Which of the pending changes the power cut let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// None: what the contract guarantees, no more.
    Guaranteed,
    /// The first so many, in their order; all of them is what the death of the process leaves.
    Prefix(usize),
    /// All in their order, but the last write only up to a byte.
    Torn(usize),
    /// All in their order, but the last write left zeros.
    LastZeros,
    /// All names, and no bytes: the file of length zero after a power cut.
    NamesOnly,
    /// All names and lengths, but zeros for bytes.
    Zeros,
    /// All bytes, and no names.
    BytesOnly,
    /// Only those of the n-th file or directory that has any: reordered before all others.
    OnlyOf(usize),
    /// All but those of the n-th file or directory that has any: reordered behind all others.
    AllBut(usize),
    /// By the seed: of each directory the first so many changes of its names, and each change of bytes or not.
    Random(u64),
}

/// How many of the possible states are tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Only every so-manieth distinct state, 1 for all; the guaranteed one at each point is always among them.
    pub stride: usize,
    /// Torn at every so-manieth byte of a last write of up to 4096 bytes; longer ones at seven places.
    pub torn_bytes: usize,
    /// Random subsets before each sync.
    pub random: u64,
    /// Only power cuts after so many changes.
    pub first: usize,
}

/// A state that a power cut could leave.
#[derive(Debug)]
pub struct CrashState {
    /// The changes that had been made: as many of the recording's first ones.
    pub at: usize,
    /// The last mark among them.
    pub mark: Option<usize>,
    /// What became of the pending ones.
    pub variant: Variant,
    /// What is found.
    pub image: Image,
}

/// The changes so far, told apart by whether they are settled.
pub(super) struct Past {
    /// What is settled.
    settled: Image,
    /// What a process sees.
    visible: Image,
    pending: Vec<Atom>,
}

impl Past {
    pub(super) fn new(start: &Image) -> Past {
        Past { settled: start.clone(), visible: start.clone(), pending: Vec::new() }
    }

    pub(super) fn everything(self) -> Image {
        self.visible
    }

    /// Changes name paths as they were then; `visible` knows what they meant.
    pub(super) fn add(&mut self, change: &Change) {
        match change {
            Change::CreateDir { path, directory } => {
                self.make(directory.0, 0o700, true);
                self.link(path, directory.0);
            }
            Change::Create { path, file, mode } => {
                self.make(file.0, *mode, false);
                self.link(path, file.0);
            }
            Change::SetMode { path, mode } => {
                if let Some(node) = self.visible.find(path) {
                    self.push(Atom::Mode { node, mode: *mode });
                }
            }
            Change::Write { file, at, bytes } => {
                self.push(Atom::Write { node: file.0, at: *at, bytes: Arc::new(bytes.clone()) });
            }
            Change::Truncate { file, length } => self.push(Atom::Truncate { node: file.0, length: *length }),
            Change::Rename { from, to } => self.rename(from, to),
            Change::Remove { path } => {
                if let Some((dir, name)) = self.visible.parent(path) {
                    self.push(Atom::Unlink { dir, name: name.to_os_string() });
                }
            }
            Change::Sync { file } => self.settle(|node| node == file.0),
            Change::SyncDir { path } => {
                let dir = self.visible.find(path);
                self.settle(|node| Some(node) == dir);
            }
            Change::SyncAll => self.settle(|_| true),
            Change::Mark(_) => {}
        }
    }

    fn make(&mut self, node: NodeNumber, mode: u32, directory: bool) {
        self.visible.make(node, mode, directory);
        self.settled.make(node, mode, directory);
    }

    fn link(&mut self, path: &std::path::Path, node: NodeNumber) {
        if let Some((dir, name)) = self.visible.parent(path) {
            self.push(Atom::Link { dir, name: name.to_os_string(), node });
        }
    }

    fn rename(&mut self, from: &std::path::Path, to: &std::path::Path) {
        let (Some(node), Some((old, from)), Some((new, to))) =
            (self.visible.find(from), self.visible.parent(from), self.visible.parent(to))
        else {
            return;
        };
        let (from, to) = (from.to_os_string(), to.to_os_string());
        if old == new {
            self.push(Atom::Move { dir: old, from, to, node });
        } else {
            self.push(Atom::Link { dir: new, name: to, node });
            self.push(Atom::Unlink { dir: old, name: from });
        }
    }

    fn push(&mut self, atom: Atom) {
        self.visible.apply(&atom);
        self.pending.push(atom);
    }

    fn settle(&mut self, settled: impl Fn(NodeNumber) -> bool) {
        let (now, later) = std::mem::take(&mut self.pending).into_iter().partition(|atom| settled(atom.settled_by()));
        let now: Vec<Atom> = now;
        for atom in &now {
            self.settled.apply(atom);
        }
        self.pending = later;
    }

    fn image(&self, variant: Variant) -> Image {
        let mut image = self.settled.clone();
        let keys: Vec<NodeNumber> =
            self.pending.iter().map(Atom::settled_by).collect::<BTreeSet<_>>().into_iter().collect();
        let mut stopped: HashSet<NodeNumber> = HashSet::new();
        for (at, atom) in self.pending.iter().enumerate() {
            let last = at + 1 == self.pending.len();
            match variant {
                Variant::Guaranteed => {}
                Variant::Prefix(many) if at >= many => {}
                Variant::Torn(length) if last => image.apply(&atom.torn(length)),
                Variant::LastZeros if last => image.apply(&atom.zeroed()),
                Variant::NamesOnly if atom.is_data() => {}
                Variant::BytesOnly if !atom.is_data() => {}
                Variant::Zeros => image.apply(&atom.zeroed()),
                Variant::OnlyOf(key) if keys.get(key) != Some(&atom.settled_by()) => {}
                Variant::AllBut(key) if keys.get(key) == Some(&atom.settled_by()) => {}
                Variant::Random(_) if stopped.contains(&atom.settled_by()) => {}
                Variant::Random(seed) => {
                    let drawn = xxhash_rust::xxh32::xxh32(&at.to_le_bytes(), seed as u32);
                    if drawn & 1 == 0 {
                        image.apply(atom);
                    } else if !atom.is_data() {
                        stopped.insert(atom.settled_by());
                    }
                }
                _ => image.apply(atom),
            }
        }
        image
    }

    /// The variants to try, given the change that comes next and the one that came last.
    fn variants(&self, last: Option<&Change>, next: Option<&Change>, effort: Effort) -> Vec<Variant> {
        let count = self.pending.len();
        let mut variants = vec![Variant::Guaranteed];
        // Shorter prefixes than all were tried before, unless what is settled has changed since.
        let first = if last.is_none_or(Change::is_sync) { 1 } else { count };
        variants.extend((first.max(1)..=count).map(Variant::Prefix));
        if let (Some(Change::Write { .. }), Some(Atom::Write { bytes, .. })) = (last, self.pending.last()) {
            variants.push(Variant::LastZeros);
            variants.extend(torn_at(bytes.len(), effort).map(Variant::Torn));
        }
        // What is pending here contains what was pending anywhere since the last sync or mark.
        if count > 1 && next.is_none_or(|next| next.is_sync() || matches!(next, Change::Mark(_))) {
            let keys = self.pending.iter().map(Atom::settled_by).collect::<BTreeSet<_>>().len();
            variants.extend([Variant::NamesOnly, Variant::Zeros, Variant::BytesOnly]);
            variants.extend((0..keys).flat_map(|key| [Variant::OnlyOf(key), Variant::AllBut(key)]));
            variants.extend((1..=effort.random).map(Variant::Random));
        }
        variants
    }
}

fn torn_at(length: usize, effort: Effort) -> impl Iterator<Item = usize> {
    let step = if length <= 4096 { effort.torn_bytes.max(1) } else { length.div_ceil(8) };
    (1..length).step_by(step).chain(length.checked_sub(1))
}

impl Recording {
    /// Visits the states that a power cut before, between and after the changes could leave, each once for each mark
    /// that it may follow. Returns how many there were, tried or not.
    pub fn states<E>(&self, effort: Effort, mut visit: impl FnMut(CrashState) -> Result<(), E>) -> Result<usize, E> {
        let mut past = Past::new(&self.start);
        let mut seen: HashSet<(Option<usize>, Digest)> = HashSet::new();
        let mut mark = None;
        for at in 0..=self.changes.len() {
            let last = at.checked_sub(1).map(|last| &self.changes[last]);
            let late_enough = at >= effort.first;
            let variants = if late_enough { past.variants(last, self.changes.get(at), effort) } else { Vec::new() };
            for variant in variants {
                let image = past.image(variant);
                if !seen.insert((mark, image.digest())) {
                    continue;
                }
                if variant == Variant::Guaranteed || seen.len().is_multiple_of(effort.stride) {
                    visit(CrashState { at, mark, variant, image })?;
                }
            }
            if let Some(change) = self.changes.get(at) {
                past.add(change);
                if let Change::Mark(reached) = change {
                    mark = Some(*reached);
                }
            }
        }
        Ok(seen.len())
    }
}
