//! Giving layers back as the tars they came from.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::digest::{DiffId, Digest, Hasher, ObjectId};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::layer::{self, Layer};
use crate::object;
use crate::quarantine::Damaged;
use crate::recipe::{Reader, RecipeRecord, Step};
use crate::store::Store;
use crate::tree::{Content, FileKind, Nid, Tree};
use crate::verify::{self, Pace, Verdict};

/// Bytes read and written at once.
const PIECE: usize = 256 << 10;

impl Store {
    /// Writes the layer's original uncompressed tar, byte for byte, and returns its length.
    ///
    /// The bytes are compared with the diff-id as they are written, so **what was written counts only if this returns
    /// without an error**: damage that shows in the digest alone is told at the end, and what is damaged is then found,
    /// named and taken out of use.
    ///
    /// Errors: [`Error::NoLayer`], [`Error::NoRecipe`]; [`Error::CorruptRecipe`], [`Error::CorruptLayer`],
    /// [`Error::CorruptObject`] and [`Error::NoObject`] name what is damaged.
    pub fn export_layer(&self, diff_id: DiffId, out: &mut dyn Write) -> Result<u64> {
        let _hold = self.hold(&[diff_id])?;
        let layer = self.layer(diff_id)?.ok_or(Error::NoLayer { diff_id })?;
        let recipe = layer.recipe.ok_or(Error::NoRecipe { diff_id })?;
        let tree = self.layer_tree(diff_id)?;
        let mut reader = self.open_recipe(&layer, &recipe)?;
        let mut export = Export {
            store: self,
            layer: &layer,
            tree: &tree,
            out,
            hasher: Hasher::new(),
            bytes: 0,
            buffer: vec![0; PIECE],
            object: None,
        };
        match export.run(&mut reader) {
            Err(error) if error.kind() == Kind::Corrupt => {
                // What was noticed need not be what is damaged: a recipe's damage may ask for an object that isn't there.
                match self.culprit(&layer, &recipe) {
                    Ok(Some(culprit)) => Err(culprit),
                    Ok(None) | Err(_) => Err(error),
                }
            }
            exported => exported,
        }
    }

    /// Opens a layer's recipe, and checks that it is the layer's.
    pub(crate) fn open_recipe(&self, layer: &Layer, recipe: &RecipeRecord) -> Result<Reader<File>> {
        let diff_id = layer.diff_id;
        let corrupt = |reason: &str| Error::CorruptRecipe { diff_id, reason: reason.into() };
        let action = || format!("open the recipe of layer {diff_id}");
        let file = disk::open(self.disk(), &layer::recipe_path(diff_id)).map_err(Error::io(action()))?;
        let file = file.ok_or_else(|| corrupt("its file is missing"))?;
        let bytes = file.metadata().map_err(Error::io(action()))?.len();
        if bytes != recipe.bytes {
            return Err(corrupt(&format!("its file has {bytes} bytes instead of {}", recipe.bytes)));
        }
        let reader = Reader::new(file, diff_id)?;
        if reader.diff_id() != diff_id {
            return Err(corrupt(&format!("it is that of layer {}", reader.diff_id())));
        }
        if reader.tar_bytes() != layer.tar_bytes || reader.objects() != recipe.objects {
            return Err(corrupt("its header isn't what the layer's record says"));
        }
        Ok(reader)
    }

    /// Looks for what is damaged of a layer by reading all of it, and takes that out of use.
    fn culprit(&self, layer: &Layer, recipe: &RecipeRecord) -> Result<Option<Error>> {
        let diff_id = layer.diff_id;
        if let Some(reason) = self.condemn(Damaged::Recipe(diff_id), &layer::recipe_path(diff_id), recipe.digest)? {
            return Ok(Some(Error::CorruptRecipe { diff_id, reason }));
        }
        if self.condemn(Damaged::Tree(diff_id), &layer::path(diff_id), layer.tree_digest)?.is_some() {
            let reason = "its digest is not the one that was recorded";
            let source = Box::new(Error::CorruptTreeFile { tree: diff_id.to_string(), reason });
            return Ok(Some(Error::CorruptLayer { diff_id, source }));
        }
        let mut objects = HashSet::new();
        self.each_layer_object(layer, |id, _| {
            objects.insert(id);
        })?;
        for id in objects {
            let missing = self.object(id)?.is_none();
            if let Some(reason) = self.condemn(Damaged::Object(id), &object::path(id), id.0)? {
                return Ok(Some(if missing { Error::NoObject { id } } else { Error::CorruptObject { id, reason } }));
            }
        }
        Ok(None)
    }

    /// Says what is wrong with a file, if anything, and takes it out of use.
    fn condemn(&self, what: Damaged, path: &Path, expected: Digest) -> Result<Option<String>> {
        let verdict = self.verify_file(path, expected, &Pace::default(), verify::Source::Cache, &mut |_| {})?;
        let reason = match &verdict {
            Verdict::Whole(_) => return Ok(None),
            Verdict::Missing => "its file is missing".into(),
            Verdict::Corrupt { actual, .. } => format!("its bytes have the digest {actual} instead of {expected}"),
            Verdict::Unreadable { reason, .. } => reason.clone(),
        };
        if let Some(finding) = verdict.finding(expected)
            && let Err(error) = self.quarantine(what, &finding)
        {
            tracing::warn!(%what, %error, "what is damaged stays in use");
        }
        Ok(Some(reason))
    }
}

/// A tar on its way out.
struct Export<'a> {
    store: &'a Store,
    layer: &'a Layer,
    tree: &'a Arc<Tree>,
    out: &'a mut dyn Write,
    hasher: Hasher,
    bytes: u64,
    buffer: Vec<u8>,
    /// The object that was read last: a sparse file has many parts.
    object: Option<(ObjectId, File)>,
}

impl Export<'_> {
    fn run(&mut self, reader: &mut Reader<File>) -> Result<u64> {
        while let Some(step) = reader.step()? {
            self.follow(step)?;
        }
        let actual = std::mem::take(&mut self.hasher).finish();
        if self.bytes == self.layer.tar_bytes && actual == self.layer.diff_id.0 {
            return Ok(self.bytes);
        }
        Err(self.corrupt_recipe(format!("it makes a tar of {} bytes with the digest {actual}", self.bytes)))
    }

    fn follow(&mut self, step: Step<'_>) -> Result<()> {
        match step {
            Step::Bytes(bytes) => self.put(bytes),
            Step::Zeros(count) => self.zeros(count),
            Step::File(nid) => self.file(nid, None),
            Step::FilePart { nid, offset, bytes } => self.file(nid, Some((offset, bytes))),
            Step::Object { id, bytes } => self.object(id, bytes, 0, bytes),
            Step::ObjectPart { id, size, offset, bytes } => self.object(id, size, offset, bytes),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.room(bytes.len() as u64)?;
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(self.unwritten())?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        self.room(count)?;
        let mut left = count;
        while left > 0 {
            let piece = left.min(ZEROS.len() as u64);
            self.put(&ZEROS[..piece as usize])?;
            left -= piece;
        }
        Ok(())
    }

    /// Puts a part of a regular file, all of it if `part` is `None`.
    fn file(&mut self, nid: Nid, part: Option<(u64, u64)>) -> Result<()> {
        let tree = Arc::clone(self.tree);
        let inode = tree.inode(nid).map_err(|source| self.corrupt_tree(source))?;
        if inode.kind != FileKind::Regular {
            return Err(self.corrupt_recipe(format!("it takes nid {} for a regular file", nid.0)));
        }
        let (offset, count) = part.unwrap_or((0, inode.size));
        if count == 0 || offset.checked_add(count).is_none_or(|end| end > inode.size) {
            return Err(self.corrupt_recipe(format!("it takes {count} bytes at {offset} of nid {}", nid.0)));
        }
        match tree.content(&inode).map_err(|source| self.corrupt_tree(source))? {
            Content::Inline(bytes) => self.put(&bytes[offset as usize..][..count as usize]),
            Content::Object(id) => self.object(id, inode.size, offset, count),
        }
    }

    /// Puts a part of an object, which must lie within it.
    fn object(&mut self, id: ObjectId, size: u64, offset: u64, count: u64) -> Result<()> {
        self.room(count)?;
        let file = self.open(id, size)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = offset;
        let end = offset + count;
        while at < end {
            let piece = (end - at).min(buffer.len() as u64) as usize;
            match file.read_at(&mut buffer[..piece], at) {
                Ok(0) => return Err(Error::CorruptObject { id, reason: "it became shorter while it was read".into() }),
                Ok(got) => {
                    self.put(&buffer[..got])?;
                    at += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("read object {id}"))(error)),
            }
        }
        self.buffer = buffer;
        self.object = Some((id, file));
        Ok(())
    }

    fn open(&mut self, id: ObjectId, size: u64) -> Result<File> {
        if let Some((open, file)) = self.object.take()
            && open == id
        {
            return Ok(file);
        }
        let file = self.store.object(id)?.ok_or(Error::NoObject { id })?;
        let actual = file.metadata().map_err(Error::io(format!("stat object {id}")))?.len();
        if actual != size {
            let reason = format!("its file has {actual} bytes instead of {size}");
            return Err(Error::CorruptObject { id, reason });
        }
        Ok(file)
    }

    /// Refuses to write more than the tar has.
    fn room(&self, count: u64) -> Result<()> {
        match self.bytes.checked_add(count) {
            Some(bytes) if bytes <= self.layer.tar_bytes => Ok(()),
            _ => Err(self.corrupt_recipe(format!("it makes more than the {} bytes of its tar", self.layer.tar_bytes))),
        }
    }

    fn corrupt_recipe(&self, reason: String) -> Error {
        Error::CorruptRecipe { diff_id: self.layer.diff_id, reason }
    }

    fn corrupt_tree(&self, source: Error) -> Error {
        Error::CorruptLayer { diff_id: self.layer.diff_id, source: Box::new(source) }
    }

    fn unwritten(&self) -> impl FnOnce(io::Error) -> Error {
        Error::io(format!("write the tar of layer {}", self.layer.diff_id))
    }
}
