//! What a union's upper changes, as a layer: a tar as the OCI image specification ("Image Layer Filesystem Changeset")
//! describes it.
//!
//! The upper alone is walked. The lower is asked for single names, and walked only below directories that were moved:
//! a layer has no word for that, so that their whole content appears in the new place.
//!
//! What tar can't hold is left out, counted and logged: sockets, names that a layer takes for whiteouts, attributes with
//! `=` in their name. Labels that belong to the host (`security.*` but capabilities) are no part of a layer. A program's
//! character device 0:0 comes out as one; who takes in the layer will read a whiteout, for which the format has the same
//! word.
//!
//! Two runs over the same upper give the same bytes: names come in the order of their bytes, whiteouts before the rest, as
//! the specification recommends.

mod links;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::vec::IntoIter;

use mica_layerdb::tar::{Head, Kind, Writer};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::inode::{Attr, FileKind, Ino, ROOT};
use crate::lower::{Lower, LowerFile};
use crate::upper::blocks::{Map, Merged, Record};
use crate::upper::{DIRECTORY, Found, Marks, Spot, Upper, read_dir};
use links::Told;

/// Bytes of contents read at a time.
const PIECE: usize = 256 << 10;
/// Directories that can be in each other: a longer path is not the name of anything for a system call (`PATH_MAX`).
const DEPTH_MAX: usize = 2048;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a diff holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffStats {
    /// Entries of the tar, whiteouts included.
    pub entries: u64,
    /// Length of the tar.
    pub bytes: u64,
    /// Files and attributes that a layer can't hold.
    pub left_out: u64,
}

/// Writes what `upper` changes of `lower` as an uncompressed layer.
///
/// The upper should be at rest: a file that shrinks while it is read is an error, other changes may or may not be in.
pub fn write_diff(lower: &dyn Lower, upper: &Upper, out: &mut dyn Write) -> Result<DiffStats> {
    let mut diff = Diff {
        lower,
        upper,
        out: Writer::new(out),
        linked: HashMap::new(),
        told: Vec::new(),
        path: Vec::new(),
        frames: Vec::new(),
        buffer: vec![0; PIECE],
        stats: DiffStats::default(),
    };
    diff.root()?;
    while let Some(frame) = diff.frames.last_mut() {
        let Some((name, source)) = frame.entries.next() else {
            diff.frames.pop();
            continue;
        };
        diff.path.truncate(frame.path_bytes);
        diff.path.extend_from_slice(&name);
        match source {
            Source::Upper => diff.upper_entry(&name)?,
            Source::Lower(ino) => diff.lower_entry(ino)?,
        }
    }
    diff.tell_links()?;
    let Diff { out, mut stats, .. } = diff;
    stats.bytes = out.finish()?;
    Ok(stats)
}

/// A file that may have several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Linked {
    Upper(u64),
    Lower(Ino),
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Upper,
    Lower(Ino),
}

/// What a file has.
enum Contents {
    Plain(LowerFile),
    /// Some blocks of its own and some of the lower's.
    Merged(Merged),
}

impl Contents {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Contents::Plain(file) => file.read_at(offset, buffer),
            Contents::Merged(merged) => merged.read_at(offset, buffer),
        }
    }
}

/// A directory being told.
struct Frame {
    upper: Option<Arc<OwnedFd>>,
    /// The lower directory whose content is to be told too, as it has moved.
    moved: Option<Ino>,
    /// Whether nothing of the layers below shows at this path, so that there is nothing to be hidden.
    fresh: bool,
    /// Length of the path up to and with its last slash.
    path_bytes: usize,
    entries: IntoIter<(Vec<u8>, Source)>,
}

struct Diff<'a> {
    lower: &'a dyn Lower,
    upper: &'a Upper,
    out: Writer<'a>,
    /// The first paths of files with several names.
    linked: HashMap<Linked, Box<[u8]>>,
    /// Those of the lower among them.
    told: Vec<Told>,
    /// The entry being told; a directory has no slash at its end.
    path: Vec<u8>,
    frames: Vec<Frame>,
    buffer: Vec<u8>,
    stats: DiffStats,
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl Diff<'_> {
    fn root(&mut self) -> Result<()> {
        let spot = Spot::Fd(Arc::clone(&self.upper.root));
        let marks = self.upper.format.marks(&spot)?;
        // A fresh root stands in for the lower's until something changes.
        if !self.upper.fresh_root || marks.taken_over {
            let attr = attr_of(&spot)?;
            let xattrs = self.shown_xattrs(&spot)?;
            self.emit(b"./", &attr, b"", 0, &xattrs)?;
        }
        if marks.opaque {
            self.mark(b"", OPAQUE)?;
        }
        self.enter(Some(Arc::clone(&self.upper.root)), None, marks.opaque)
    }

    /// Begins to tell a directory at the current path.
    fn enter(&mut self, upper: Option<Arc<OwnedFd>>, moved: Option<Ino>, fresh: bool) -> Result<()> {
        if self.frames.len() == DEPTH_MAX {
            return Err(self.refused("directories are too deep in each other", Errno::NAMETOOLONG));
        }
        if !self.frames.is_empty() {
            self.path.push(b'/');
        }
        let mut entries: BTreeMap<Vec<u8>, Option<Source>> = BTreeMap::new();
        if let Some(dir) = &upper {
            for (name, _, kind) in read_dir(dir.as_fd())? {
                let whiteout = self.is_whiteout(dir, &name, kind)?;
                entries.insert(name, (!whiteout).then_some(Source::Upper));
            }
        }
        let deletes = |(name, source): (&Vec<u8>, &Option<Source>)| source.is_none().then(|| name.clone());
        let deleted: Vec<_> = if fresh { Vec::new() } else { entries.iter().filter_map(deletes).collect() };
        if let Some(lower) = moved {
            let mut add = |entry: crate::lower::LowerEntry<'_>| {
                entries.entry(entry.name.to_vec()).or_insert(Some(Source::Lower(entry.ino)));
                Ok(false)
            };
            self.lower.entries(lower, 0, &mut add)?;
        }
        let dir = self.path.clone();
        for name in deleted {
            self.mark(&dir, &[WHITEOUT, &name].concat())?;
        }
        let entries: Vec<_> = entries.into_iter().filter_map(|(name, source)| Some((name, source?))).collect();
        let path_bytes = self.path.len();
        self.frames.push(Frame { upper, moved, fresh, path_bytes, entries: entries.into_iter() });
        Ok(())
    }

    /// Only devices and empty files can be whiteouts; the rest needs no closer look here.
    fn is_whiteout(&self, dir: &Arc<OwnedFd>, name: &[u8], kind: FileType) -> Result<bool> {
        let spot = Spot::at(dir, name);
        match kind {
            FileType::CharacterDevice | FileType::Unknown => {}
            FileType::RegularFile if spot.stat().is_ok_and(|stat| stat.st_size == 0) => {}
            _ => return Ok(false),
        }
        Ok(matches!(self.upper.format.look(&spot)?, Some(Found::Whiteout)))
    }

    fn upper_entry(&mut self, name: &[u8]) -> Result<()> {
        let Some(Frame { upper: Some(dir), .. }) = self.frames.last() else { return Ok(()) };
        let spot = Spot::at(dir, name);
        // What has gone since its directory was read, or has become a whiteout, is not told.
        let Some(Found::Entry(stat, marks)) = self.upper.format.look(&spot)? else { return Ok(()) };
        let mut attr = Attr::of_stat(Ino::of_upper(stat.st_ino), &stat).ok_or(Errno::IO)?;
        if name.starts_with(WHITEOUT) {
            self.leave_out("a layer would take its name for a whiteout");
            return Ok(());
        }
        if marks.device {
            attr.kind = FileKind::CharDevice;
            (attr.rdev, attr.size) = (0, 0);
        }
        let xattrs = self.shown_xattrs(&spot)?;
        match attr.kind {
            FileKind::Directory => self.upper_dir(name, &spot, &marks, &attr, &xattrs),
            FileKind::Symlink => {
                let target = spot.link_target()?;
                self.file(Linked::Upper(stat.st_ino), &attr, &target, &xattrs, None)
            }
            FileKind::Regular => {
                let contents = self.contents(name, &spot, &marks, &mut attr)?;
                self.file(Linked::Upper(stat.st_ino), &attr, b"", &xattrs, Some(&contents))
            }
            _ => self.file(Linked::Upper(stat.st_ino), &attr, b"", &xattrs, None),
        }
    }

    fn upper_dir(&mut self, name: &[u8], spot: &Spot, marks: &Marks, attr: &Attr, xattrs: &Xattrs) -> Result<()> {
        let Some((moved, fresh)) = self.frames.last().map(|frame| (frame.moved, frame.fresh)) else { return Ok(()) };
        // What the layers below show at this path, if that makes a difference.
        let here = if !fresh && (marks.opaque || marks.redirect.is_some()) {
            self.lower.resolve(&self.path)?.filter(Attr::is_dir).map(|attr| attr.ino)
        } else {
            None
        };
        let merges = match &marks.redirect {
            _ if marks.opaque => None,
            Some(place) => Some(self.redirected_dir(place)?).filter(|lower| here != Some(*lower)),
            None => moved
                .map(|dir| self.lower.lookup(dir, name))
                .transpose()?
                .flatten()
                .filter(Attr::is_dir)
                .map(|attr| attr.ino),
        };
        let hides = here.is_some() && (marks.opaque || merges.is_some());
        let path = [&self.path[..], b"/"].concat();
        self.emit(&path, attr, b"", 0, xattrs)?;
        if hides {
            self.mark(&path, OPAQUE)?;
        }
        let dir = Arc::new(spot.open(DIRECTORY)?);
        self.enter(Some(dir), merges, fresh || marks.opaque || merges.is_some())
    }

    /// The contents of an upper file, which may be in the lower, and their size.
    fn contents(&self, name: &[u8], spot: &Spot, marks: &Marks, attr: &mut Attr) -> Result<Contents> {
        if let Some(record) = &marks.blocks {
            return self.merged(spot, record, attr);
        }
        if marks.metacopy && attr.size > 0 {
            let original = self.redirected(marks.redirect.as_deref().unwrap_or(name))?;
            let original = original.filter(|original| original.kind == FileKind::Regular && original.size >= attr.size);
            let original =
                original.ok_or_else(|| self.refused("its contents are in no file of the lower", Errno::IO))?;
            return Ok(Contents::Plain(self.lower.open(original.ino)?));
        }
        let file = File::from(spot.open(OFlags::RDONLY)?);
        attr.size = rustix::fs::fstat(&file)?.st_size as u64;
        Ok(Contents::Plain(LowerFile::File { file: Arc::new(file), sealed: false }))
    }

    /// The contents of an upper file of which a part is copied.
    fn merged(&self, spot: &Spot, record: &[u8], attr: &mut Attr) -> Result<Contents> {
        let record =
            Record::decode(record).ok_or_else(|| self.refused("it has marks that are not known", Errno::IO))?;
        let upper = File::from(spot.open(OFlags::RDONLY)?);
        let stat = rustix::fs::fstat(&upper)?;
        attr.size = stat.st_size as u64;
        if stat.st_ino != record.host {
            return Err(self.refused("it was copied in part, and then by another program", Errno::IO));
        }
        let original = self.lower.resolve(&record.path)?.filter(|original| record.is_of(original));
        let original = original.ok_or_else(|| self.refused("the lower has not what is left of it there", Errno::IO))?;
        let bits = Map::look(&self.upper.maps, &record)?;
        if bits.is_none() && record.map_is_durable {
            // Unless it has become whole at this moment.
            return match self.upper.format.marks(spot)?.blocks {
                Some(_) => Err(self.refused("the map of what is copied of it is missing", Errno::IO)),
                None => Ok(Contents::Plain(LowerFile::File { file: Arc::new(upper), sealed: false })),
            };
        }
        let valid = record.valid.min(attr.size);
        Ok(Contents::Merged(Merged { upper, lower: self.lower.open(original.ino)?, bits, valid }))
    }

    /// The lower directory that a redirect of the directory at the current path names.
    fn redirected_dir(&self, place: &[u8]) -> Result<Ino> {
        let found = self.redirected(place)?.filter(Attr::is_dir).map(|attr| attr.ino);
        found.ok_or_else(|| self.refused("its redirect leads to no directory of the lower", Errno::IO))
    }

    /// What a redirect of the entry at the current path names in the lower.
    fn redirected(&self, place: &[u8]) -> Result<Option<Attr>> {
        if place.starts_with(b"/") {
            self.lower.resolve(place)
        } else {
            let parent = if let Some(dir) = self.frames.last().and_then(|frame| frame.moved) {
                Some(dir)
            } else {
                let at = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                self.lower.resolve(&self.path[..at])?.map(|attr| attr.ino)
            };
            Ok(parent.map(|dir| self.lower.lookup(dir, place)).transpose()?.flatten())
        }
    }

    fn lower_entry(&mut self, ino: Ino) -> Result<()> {
        let attr = self.lower.attr(ino)?;
        let xattrs = self.lower_xattrs(ino)?;
        match attr.kind {
            FileKind::Directory => {
                let path = [&self.path[..], b"/"].concat();
                self.emit(&path, &attr, b"", 0, &xattrs)?;
                self.enter(None, Some(ino), true)
            }
            FileKind::Symlink => {
                let target = self.lower.link_target(ino)?;
                self.file(Linked::Lower(ino), &attr, &target, &xattrs, None)
            }
            FileKind::Regular => {
                let contents = Contents::Plain(self.lower.open(ino)?);
                self.file(Linked::Lower(ino), &attr, b"", &xattrs, Some(&contents))
            }
            _ => self.file(Linked::Lower(ino), &attr, b"", &xattrs, None),
        }
    }

    /// Tells what is no directory: as a hard link, if the same file has been told before.
    fn file(
        &mut self,
        identity: Linked,
        attr: &Attr,
        target: &[u8],
        xattrs: &Xattrs,
        contents: Option<&Contents>,
    ) -> Result<()> {
        let path = self.path.clone();
        if attr.kind == FileKind::Socket {
            self.leave_out("tar has no sockets");
            return Ok(());
        }
        if attr.nlink > 1 {
            if let Some(first) = self.linked.get(&identity) {
                let head = Head { kind: Kind::HardLink, link: first, ..head(&path, attr, b"", 0, &[]) };
                self.stats.entries += 1;
                return Ok(self.out.head(&head)?);
            }
            self.linked.insert(identity, path.as_slice().into());
            if let Linked::Lower(ino) = identity {
                self.told.push(Told { ino, path: path.as_slice().into() });
            }
        }
        let size = if contents.is_some() { attr.size } else { 0 };
        self.emit(&path, attr, target, size, xattrs)?;
        let Some(contents) = contents else { return Ok(()) };
        let mut at = 0;
        while at < size {
            let wanted = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
            let read = contents.read_at(at, &mut self.buffer[..wanted])?;
            if read == 0 {
                return Err(self.refused("it shrank while it was read", Errno::BUSY));
            }
            self.out.write(&self.buffer[..read])?;
            at += read as u64;
        }
        Ok(self.out.pad(size)?)
    }

    fn emit(&mut self, path: &[u8], attr: &Attr, target: &[u8], size: u64, xattrs: &Xattrs) -> Result<()> {
        self.stats.entries += 1;
        Ok(self.out.head(&head(path, attr, target, size, xattrs))?)
    }

    /// Writes a file that says something by its name.
    fn mark(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        self.stats.entries += 1;
        Ok(self.out.head(&Head::mark(&[dir, name].concat()))?)
    }

    /// The attributes of an upper file that programs see.
    fn shown_xattrs(&mut self, spot: &Spot) -> Result<Xattrs> {
        let format = self.upper.format;
        let mut names = spot.xattr_names()?;
        names.sort();
        let mut shown = Vec::new();
        for stored in names {
            if let Some(name) = format.shown_name(&stored)
                && let Some(value) = spot.xattr(&stored)?
            {
                shown.push((name, value));
            }
        }
        Ok(self.exported(shown))
    }

    fn lower_xattrs(&mut self, ino: Ino) -> Result<Xattrs> {
        let mut xattrs = self.lower.xattrs(ino)?;
        xattrs.sort();
        Ok(self.exported(xattrs))
    }

    /// Those attributes that are part of a layer.
    fn exported(&mut self, xattrs: Xattrs) -> Xattrs {
        let mut kept = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs {
            let host = name.starts_with(b"security.") && name != b"security.capability";
            if host {
                continue;
            }
            if name.contains(&b'=') {
                tracing::warn!(path = %self.path.escape_ascii(), name = %name.escape_ascii(), "an attribute is left out");
                self.stats.left_out += 1;
                continue;
            }
            kept.push((name, value));
        }
        kept
    }

    fn leave_out(&mut self, reason: &str) {
        tracing::warn!(path = %self.path.escape_ascii(), reason, "a file is left out of a layer");
        self.stats.left_out += 1;
    }

    fn refused(&self, reason: &str, errno: Errno) -> Error {
        Error::Layer { path: self.path.escape_ascii().to_string(), reason: reason.into(), errno }
    }
}

fn attr_of(spot: &Spot) -> Result<Attr> {
    let stat = spot.stat()?;
    Ok(Attr::of_stat(ROOT, &stat).ok_or(Errno::IO)?)
}

fn head<'a>(path: &'a [u8], attr: &Attr, link: &'a [u8], size: u64, xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Head<'a> {
    let &Attr { mode, uid, gid, mtime, rdev, .. } = attr;
    Head { path, kind: Kind::Inode(attr.kind), link, mode, uid, gid, mtime, rdev, size, xattrs }
}
