//! Two stacks side by side.

use std::collections::{HashMap, HashSet};

use super::record::{Change, ChangeKind, Counts, NodeKind, Property, Seen, Summary};
use super::stack::{Dir, Item, Pair, Source, Stack, pair};
use super::{DiffOptions, Name};
use crate::digest::Digest;
use crate::error::Result;
use crate::tree::{Content, Entered, FileKind, Nid};

/// Tells an inode from all others of all layers.
type Identity = (usize, Nid);

pub(super) struct Walk<'a, 'v> {
    before: &'a Stack,
    after: &'a Stack,
    options: DiffOptions,
    visit: &'v mut dyn FnMut(Change) -> Result<()>,
    summary: Summary,
    /// What each file of several names has become, and what it comes from.
    became: HashMap<Identity, Identity>,
    came_from: HashMap<Identity, Identity>,
    /// Files of several names whose bytes are counted.
    counted: [HashSet<Identity>; 2],
    /// The directories of each layer that were looked through, before and after.
    entered: [HashMap<usize, Entered>; 2],
    frames: Vec<Frame<'a>>,
    /// The path being looked at; its root is empty.
    path: Vec<u8>,
}

/// A directory that is being looked through.
struct Frame<'a> {
    /// Length of its path.
    path_bytes: usize,
    pairs: Box<dyn Iterator<Item = Pair<'a>> + 'a>,
}

impl<'a, 'v> Walk<'a, 'v> {
    pub(super) fn new(
        before: &'a Stack,
        after: &'a Stack,
        options: DiffOptions,
        visit: &'v mut dyn FnMut(Change) -> Result<()>,
    ) -> Walk<'a, 'v> {
        Walk {
            before,
            after,
            options,
            visit,
            summary: Summary::default(),
            became: HashMap::new(),
            came_from: HashMap::new(),
            counted: [HashSet::new(), HashSet::new()],
            entered: [HashMap::new(), HashMap::new()],
            frames: Vec::new(),
            path: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Summary> {
        let (before, after) = (self.before.root()?, self.after.root()?);
        match (before, after) {
            // There is a root always; without layers it is nothing that anybody has made.
            (Some(before), None) => self.enter(Some(&before), None)?,
            (None, Some(after)) => self.enter(None, Some(&after))?,
            (before, after) => self.pair(before.map(Item::Directory), after.map(Item::Directory))?,
        }
        while let Some(frame) = self.frames.last_mut() {
            let Some(Pair { name, before, after }) = frame.pairs.next() else {
                self.frames.pop();
                continue;
            };
            self.path.truncate(frame.path_bytes);
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            self.pair(before, after)?;
        }
        Ok(self.summary)
    }

    fn pair(&mut self, before: Option<Item<'a>>, after: Option<Item<'a>>) -> Result<()> {
        match (&before, &after) {
            (None, None) => return Ok(()),
            (Some(Item::Directory(one)), Some(Item::Directory(other))) if one.is(other) => return Ok(()),
            (Some(Item::File(one)), Some(Item::File(other))) if one.is(other) => return Ok(()),
            (Some(one), Some(other)) => self.compare(one.attributes(), other.attributes())?,
            (Some(one), None) => self.tell(ChangeKind::Removed, Some(one.attributes()), None, Vec::new())?,
            (None, Some(other)) => self.tell(ChangeKind::Added, None, Some(other.attributes()), Vec::new())?,
        }
        let directory = |item: Option<Item<'a>>| match item {
            Some(Item::Directory(dir)) => Some(dir),
            _ => None,
        };
        let (before, after) = (directory(before), directory(after));
        self.enter(before.as_ref(), after.as_ref())
    }

    /// Begins to look through a directory that is there before or after.
    fn enter(&mut self, before: Option<&Dir<'a>>, after: Option<&Dir<'a>>) -> Result<()> {
        if before.is_none() && after.is_none() {
            return Ok(());
        }
        let mut entries = |side: usize, stack: &'a Stack, dir: Option<&Dir<'a>>| {
            let Some(dir) = dir else { return Ok(Vec::new()) };
            for source in dir.sources() {
                let (layer, _) = source.identity();
                let entered = self.entered[side].entry(layer).or_insert_with(|| Entered::of(source.tree));
                entered.enter(source.tree, &source.inode)?;
            }
            stack.entries(dir)
        };
        let pairs = pair(entries(0, self.before, before)?, entries(1, self.after, after)?);
        self.frames.push(Frame { path_bytes: self.path.len(), pairs: Box::new(pairs) });
        Ok(())
    }

    fn compare(&mut self, one: Source<'a>, other: Source<'a>) -> Result<()> {
        let mut what = Vec::new();
        if NodeKind::of(&one.inode) == NodeKind::of(&other.inode) {
            let implied = self.compare_as_layers(&one, &other, &mut what)?;
            if !implied && !one.is(&other) {
                self.compare_attributes(&one, &other, &mut what)?;
            }
        } else {
            what.push(Property::Type);
        }
        if what.is_empty() {
            return Ok(());
        }
        what.sort_unstable();
        self.tell(ChangeKind::Changed, Some(one), Some(other), what)
    }

    /// Directories of layers; says whether the attributes of one are not its own.
    fn compare_as_layers(&self, one: &Source<'a>, other: &Source<'a>, what: &mut Vec<Property>) -> Result<bool> {
        if one.inode.kind != FileKind::Directory || !(self.before.is_raw() && self.after.is_raw()) {
            return Ok(false);
        }
        if one.tree.is_opaque(&one.inode)? != other.tree.is_opaque(&other.inode)? {
            what.push(Property::Opaque);
        }
        let implied = (one.tree.is_implied(&one.inode)?, other.tree.is_implied(&other.inode)?);
        if implied.0 != implied.1 {
            what.push(Property::Implied);
        }
        Ok(implied.0 || implied.1)
    }

    fn compare_attributes(&mut self, one: &Source<'a>, other: &Source<'a>, what: &mut Vec<Property>) -> Result<()> {
        let (a, b) = (&one.inode, &other.inode);
        if a.mode != b.mode {
            what.push(Property::Mode);
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            what.push(Property::Owner);
        }
        if self.options.times && a.mtime != b.mtime {
            what.push(Property::Time);
        }
        if !differing_xattrs(one, other)?.is_empty() {
            what.push(Property::Xattr);
        }
        match a.kind {
            FileKind::Regular if !same_contents(one, other)? => what.push(Property::Content),
            FileKind::Symlink if one.tree.link_target(a)? != other.tree.link_target(b)? => what.push(Property::Target),
            FileKind::CharDevice | FileKind::BlockDevice if a.rdev != b.rdev => what.push(Property::Device),
            _ => {}
        }
        if a.kind != FileKind::Directory && self.links_differ(one, other) {
            what.push(Property::Links);
        }
        Ok(())
    }

    /// Whether a name has other names of the same file beside it than before.
    fn links_differ(&mut self, one: &Source<'a>, other: &Source<'a>) -> bool {
        if one.inode.nlink != other.inode.nlink {
            return true;
        }
        if one.inode.nlink < 2 {
            return false;
        }
        let (before, after) = (one.identity(), other.identity());
        *self.became.entry(before).or_insert(after) != after || *self.came_from.entry(after).or_insert(before) != before
    }

    fn tell(
        &mut self,
        change: ChangeKind,
        before: Option<Source<'a>>,
        after: Option<Source<'a>>,
        what: Vec<Property>,
    ) -> Result<()> {
        let xattrs = match (&before, &after) {
            (Some(one), Some(other)) if what.contains(&Property::Xattr) => differing_xattrs(one, other)?,
            _ => Vec::new(),
        };
        let bytes = [self.bytes(0, before), self.bytes(1, after)];
        let seen = |source: Option<Source<'a>>| source.map(|it| Seen::of(it.tree, &it.inode)).transpose();
        let path = if self.path.is_empty() { b"/".to_vec() } else { self.path.clone() };
        let told = Change { change, path: Name(path), what, xattrs, before: seen(before)?, after: seen(after)? };
        if let Some(kind) = told.after.as_ref().or(told.before.as_ref()).map(|seen| seen.kind) {
            let counts = match change {
                ChangeKind::Added => &mut self.summary.added,
                ChangeKind::Changed => &mut self.summary.changed,
                ChangeKind::Removed => &mut self.summary.removed,
            };
            count(counts, kind, bytes);
        }
        (self.visit)(told)
    }

    /// The bytes of a regular file whose names have not been counted yet.
    fn bytes(&mut self, side: usize, source: Option<Source<'a>>) -> u64 {
        let Some(source) = source.filter(|source| source.inode.kind == FileKind::Regular) else { return 0 };
        let first = source.inode.nlink < 2 || self.counted[side].insert(source.identity());
        if first { source.inode.size } else { 0 }
    }
}

fn count(counts: &mut Counts, kind: NodeKind, [before, after]: [u64; 2]) {
    match kind {
        NodeKind::File => counts.files += 1,
        NodeKind::Directory => counts.directories += 1,
        _ => counts.others += 1,
    }
    counts.bytes_before += before;
    counts.bytes_after += after;
}

/// Whether two regular files have the same bytes. None is read: they are in the tree or have a digest.
fn same_contents(one: &Source<'_>, other: &Source<'_>) -> Result<bool> {
    if one.inode.size != other.inode.size {
        return Ok(false);
    }
    Ok(match (one.tree.content(&one.inode)?, other.tree.content(&other.inode)?) {
        (Content::Inline(one), Content::Inline(other)) => one == other,
        (Content::Object(one), Content::Object(other)) => one == other,
        (Content::Inline(bytes), Content::Object(id)) | (Content::Object(id), Content::Inline(bytes)) => {
            Digest::of(bytes) == id.0
        }
    })
}

/// The names of attributes that only one has, or that have another value.
fn differing_xattrs(one: &Source<'_>, other: &Source<'_>) -> Result<Vec<Name>> {
    if one.inode.has_no_xattrs() && other.inode.has_no_xattrs() {
        return Ok(Vec::new());
    }
    let (before, after) = (one.tree.xattrs(&one.inode)?, other.tree.xattrs(&other.inode)?);
    let gone = before.iter().filter(|pair| !after.contains(pair));
    let come = after.iter().filter(|pair| !before.contains(pair));
    let mut names: Vec<Name> = gone.chain(come).map(|(name, _)| Name(name.clone())).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
