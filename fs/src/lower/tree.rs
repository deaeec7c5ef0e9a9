//! A chain tree and its objects as the lower of a union.
//!
//! Nothing is kept per inode: a number is a place in the tree.

use std::fs::File;
use std::sync::Arc;

use mica_layerdb::ObjectId;
use mica_layerdb::tree::{Content, Inode, Nid, Tree};

use super::{Lower, LowerEntry, LowerFile};
use crate::error::Result;
use crate::inode::{Attr, FileKind, Ino, ROOT};
use crate::objects::Objects;

/// A merged tree with the object folder that holds its larger contents.
#[derive(Debug)]
pub struct TreeLower {
    tree: Arc<Tree>,
    objects: Arc<Objects>,
}

impl TreeLower {
    /// The lower made of `tree` and `objects`.
    pub fn new(tree: Arc<Tree>, objects: Arc<Objects>) -> TreeLower {
        TreeLower { tree, objects }
    }

    fn nid(&self, ino: Ino) -> Nid {
        if ino == ROOT { self.tree.root() } else { Nid(ino.0) }
    }

    fn ino(&self, nid: Nid) -> Ino {
        if nid == self.tree.root() { ROOT } else { Ino(nid.0) }
    }

    fn inode(&self, ino: Ino) -> Result<Inode> {
        Ok(self.tree.inode(self.nid(ino))?)
    }

    fn attr_of(&self, inode: &Inode) -> Attr {
        let size = if inode.kind == FileKind::Directory { 4096 } else { inode.size };
        Attr {
            ino: self.ino(inode.nid),
            kind: inode.kind,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size,
            blocks: size.div_ceil(512),
            blksize: 4096,
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.mtime,
        }
    }

    fn object(&self, id: ObjectId, size: u64) -> Result<LowerFile> {
        let file: File = self.objects.open(id, size)?;
        Ok(LowerFile::File { file: Arc::new(file), sealed: self.objects.is_sealed() })
    }
}

impl Lower for TreeLower {
    fn attr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.attr_of(&self.inode(ino)?))
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let Some(entry) = self.tree.lookup(&self.inode(dir)?, name)? else { return Ok(None) };
        Ok(Some(self.attr_of(&self.tree.inode(entry.nid)?)))
    }

    fn entries(&self, dir: Ino, after: u64, each: &mut dyn FnMut(LowerEntry<'_>) -> Result<bool>) -> Result<()> {
        for entry in self.tree.entries(&self.inode(dir)?, after)? {
            let entry = entry?;
            let (ino, kind) = (self.ino(entry.nid), entry.kind);
            if each(LowerEntry { name: entry.name, ino, kind, cookie: entry.cookie })? {
                break;
            }
        }
        Ok(())
    }

    fn link_target(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.tree.link_target(&self.inode(ino)?)?.into_owned())
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.tree.xattr(&self.inode(ino)?, name)?.map(<[u8]>::to_vec))
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let found = self.tree.xattrs(&self.inode(ino)?)?;
        Ok(found.into_iter().map(|(name, value)| (name, value.to_vec())).collect())
    }

    fn open(&self, ino: Ino) -> Result<LowerFile> {
        let inode = self.inode(ino)?;
        match self.tree.content(&inode)? {
            Content::Inline(_) => Ok(LowerFile::Inline { tree: self.tree.clone(), nid: inode.nid }),
            Content::Object(id) => self.object(id, inode.size),
        }
    }

    fn prepare(&self, ino: Ino) -> Result<()> {
        if !self.objects.is_verifying() {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        match (inode.kind == FileKind::Regular).then(|| self.tree.content(&inode)).transpose()? {
            Some(Content::Object(id)) => self.objects.open(id, inode.size).map(drop),
            _ => Ok(()),
        }
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(self.ino(self.tree.parent(&self.inode(ino)?)?))
    }

    fn name_of(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        Ok(self.tree.name_of(self.nid(ino))?)
    }

    fn links(&self, ino: Ino) -> Result<Vec<(Ino, Vec<u8>)>> {
        let links = self.tree.links(self.nid(ino))?;
        Ok(links.into_iter().map(|(parent, name)| (self.ino(parent), name)).collect())
    }

    fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        self.objects.statfs()
    }
}
