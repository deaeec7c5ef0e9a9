//! Objects: all that trees and recipes name are there, with the length that these say; with `data`, each has the
//! digest that it is named after.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;

use rustix::fs::FileType;

use super::{Fsck, Issue, Users};
use crate::digest::{Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::object;
use crate::quarantine::{Damaged, Finding};
use crate::sorter::{MEMORY_BYTES, Record, SHARDS, Sorted, short_object};
use crate::store::Store;
use crate::verify::{Pace, Source, Verdict};

/// Defects of objects that are collected before it is looked up who needs them: that walks over all trees.
const GATHERED: usize = 16 << 10;

/// An object that something names, and the length it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Needed {
    id: ObjectId,
    bytes: u64,
}

impl Record for Needed {
    const BYTES: usize = 40;

    fn key(self) -> u64 {
        short_object(self.id)
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.bytes.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Needed {
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        let length = bytes[32..].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        Needed { id: ObjectId(Digest::from_bytes(digest)), bytes: length }
    }
}

/// A defect of an object, before it is known whom it concerns.
enum Wrong {
    Missing { bytes: u64 },
    Length { expected: u64, found: u64, finding: Finding },
    Corrupt { actual: Digest, finding: Finding },
    Unreadable { reason: String, finding: Finding },
}

impl Fsck<'_> {
    pub(super) fn objects(&mut self) -> Result<()> {
        self.shard_names()?;
        let (store, layers) = (self.store, std::mem::take(&mut self.layers));
        let documents: Vec<ObjectId> = {
            let images = self.readable_images()?;
            images.iter().flat_map(crate::image::Image::objects).collect()
        };
        let documents: HashSet<ObjectId> = documents.into_iter().collect();
        let mut needed: Sorted<'_, Needed> = Sorted::new(store, MEMORY_BYTES, |visit| {
            for layer in &layers {
                let mut failed = Ok(());
                let walked = store.each_layer_object(layer, |id, bytes| {
                    if failed.is_ok() {
                        failed = visit(Needed { id, bytes });
                    }
                });
                // A damaged tree or recipe has been told, or was damaged since.
                if let Err(error) = walked {
                    tracing::warn!(layer = %layer.diff_id, %error, "a layer's objects are not checked");
                }
                failed?;
            }
            Ok(())
        })?;
        let pace = self.pace();
        let mut gathered = Vec::new();
        for shard in 0..SHARDS {
            let mut stored = self.stored(shard as u8)?;
            let parts = needed.parts(shard);
            for part in 0..parts {
                let keys = Sorted::<Needed>::keys(shard, part, parts);
                let wanted = needed.part(shard, part, parts)?;
                self.join(&wanted, &mut stored, &keys, &mut gathered)?;
            }
            let unused = stored.iter().filter(|(id, used)| !used && !documents.contains(id)).count();
            self.report.unused_objects += unused as u64;
            if self.options.data {
                self.contents(&stored, &documents, &pace, &mut gathered)?;
            }
            if gathered.len() >= GATHERED {
                self.tell(std::mem::take(&mut gathered))?;
            }
        }
        drop(needed);
        self.layers = layers;
        self.tell(gathered)
    }

    fn readable_images(&self) -> Result<Vec<crate::image::Image>> {
        let rows = self.store.db().scan(crate::store::Family::Images, b"")?;
        Ok(rows.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
    }

    /// Names in `objects/` itself.
    fn shard_names(&mut self) -> Result<()> {
        for name in self.list(Path::new("objects"))? {
            let path = Path::new("objects").join(&name);
            let hex = name.as_encoded_bytes();
            if hex.len() != 2 || !hex.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                self.foreign_file(&path, true)?;
            } else if let Some(stat) = self.stat(&path)? {
                self.mode(&path, 0o700, &stat);
            }
        }
        Ok(())
    }

    /// The objects of a shard, in order, each not yet used. What is no object is reported.
    fn stored(&mut self, shard: u8) -> Result<Vec<(ObjectId, bool)>> {
        let (ids, foreign) = self.store.list_shard(shard)?;
        for name in foreign {
            self.foreign_file(&Path::new("objects").join(format!("{shard:02x}")).join(name), true)?;
        }
        let mut stored: Vec<(ObjectId, bool)> = ids.into_iter().map(|id| (id, false)).collect();
        stored.sort_unstable();
        Ok(stored)
    }

    /// Compares what is needed with what is there, both in order.
    fn join(
        &mut self,
        wanted: &[Needed],
        stored: &mut [(ObjectId, bool)],
        keys: &dyn Fn(u64) -> bool,
        gathered: &mut Vec<(ObjectId, Wrong)>,
    ) -> Result<()> {
        let mut wanted = wanted.iter().peekable();
        for (id, used) in stored.iter_mut().filter(|(id, _)| keys(short_object(*id))) {
            while let Some(missing) = wanted.next_if(|needed| needed.id < *id) {
                gathered.push((missing.id, Wrong::Missing { bytes: missing.bytes }));
            }
            let mut expected = None;
            while let Some(needed) = wanted.next_if(|needed| needed.id == *id) {
                // Two trees that say different lengths can't both be right; each is compared.
                expected = expected.or(Some(needed.bytes));
                *used = true;
                self.object(*id, needed.bytes, gathered)?;
            }
            if expected.is_none() {
                self.object_file(*id)?;
            }
        }
        gathered.extend(wanted.map(|missing| (missing.id, Wrong::Missing { bytes: missing.bytes })));
        Ok(())
    }

    /// An object that is needed.
    fn object(&mut self, id: ObjectId, bytes: u64, gathered: &mut Vec<(ObjectId, Wrong)>) -> Result<()> {
        let Some((length, inode)) = self.object_file(id)? else {
            gathered.push((id, Wrong::Missing { bytes }));
            return Ok(());
        };
        let finding = |reason: String| Finding { reason, expected: Some(id.0), actual: None, inode: Some(inode) };
        match length {
            None => {
                let reason = "it is no regular file".to_owned();
                gathered.push((id, Wrong::Unreadable { finding: finding(reason.clone()), reason }));
            }
            Some(found) if found != bytes => {
                let finding = finding(format!("it has {found} bytes instead of {bytes}"));
                gathered.push((id, Wrong::Length { expected: bytes, found, finding }));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Looks at an object's file: its length, if it is a regular file, and its inode. `None` if there is none.
    fn object_file(&mut self, id: ObjectId) -> Result<Option<(Option<u64>, u64)>> {
        let path = object::path(id);
        let Some(stat) = self.stat(&path)? else { return Ok(None) };
        self.report.objects += 1;
        self.report.object_bytes += stat.st_size as u64;
        self.sealed(&path, &stat)?;
        let regular = FileType::from_raw_mode(stat.st_mode).is_file();
        Ok(Some((regular.then_some(stat.st_size as u64), stat.st_ino)))
    }

    /// Reads contents, those that nothing names included: the next ingest may find them. Documents have been read.
    fn contents(
        &mut self,
        stored: &[(ObjectId, bool)],
        documents: &HashSet<ObjectId>,
        pace: &Pace,
        gathered: &mut Vec<(ObjectId, Wrong)>,
    ) -> Result<()> {
        let told: HashSet<ObjectId> = gathered.iter().map(|(id, _)| *id).collect();
        let progress = self.progress;
        for (id, _) in stored.iter().filter(|(id, _)| !told.contains(id) && !documents.contains(id)) {
            let mut each = |bytes| progress.read("objects", bytes);
            let verdict = self.store.verify_object(*id, pace, Source::Disk, &mut each)?;
            let finding = verdict.finding(id.0);
            match (verdict, finding) {
                (Verdict::Whole(bytes), _) => self.report.read_bytes += bytes,
                (Verdict::Corrupt { actual, .. }, Some(finding)) => {
                    gathered.push((*id, Wrong::Corrupt { actual, finding }));
                }
                (Verdict::Unreadable { reason, .. }, Some(finding)) => {
                    gathered.push((*id, Wrong::Unreadable { reason, finding }));
                }
                // It was collected.
                _ => {}
            }
        }
        Ok(())
    }

    /// Reports defects of objects with those whom they concern. What is not needed any more is not missing.
    fn tell(&mut self, gathered: Vec<(ObjectId, Wrong)>) -> Result<()> {
        if gathered.is_empty() {
            return Ok(());
        }
        let ids: HashSet<ObjectId> = gathered.iter().map(|(id, _)| *id).collect();
        let mut touched = self.store.needed_by(&ids)?;
        let mut missing = Vec::new();
        for (id, wrong) in gathered {
            let needed = touched.contains_key(&id);
            let users = touched.get(&id).cloned().map(Users::from).unwrap_or_default();
            match wrong {
                Wrong::Missing { bytes } => {
                    if needed && !self.has_object(id, bytes)? {
                        missing.push((id, bytes, users));
                    }
                }
                Wrong::Length { expected, found, finding } => {
                    if needed && !self.has_object(id, expected)? {
                        let issue = Issue::WrongLength { id, expected, found, users };
                        self.quarantine(&issue, Damaged::Object(id), &finding);
                    }
                }
                Wrong::Corrupt { actual, finding } => {
                    self.quarantine(&Issue::CorruptObject { id, actual, users }, Damaged::Object(id), &finding);
                }
                Wrong::Unreadable { reason, finding } => {
                    self.quarantine(&Issue::UnreadableObject { id, reason, users }, Damaged::Object(id), &finding);
                }
            }
        }
        touched.clear();
        self.tell_missing(missing)
    }

    /// All marks at once: each marking walks over all trees.
    fn tell_missing(&mut self, missing: Vec<(ObjectId, u64, Users)>) -> Result<()> {
        if self.options.repair {
            let marked: Vec<_> = missing.iter().map(|(id, bytes, _)| (*id, Some(*bytes))).collect();
            self.store.report_missing(&marked)?;
        }
        for (id, bytes, users) in missing {
            let quarantined = self.is_quarantined(id)?;
            let issue = Issue::MissingObject { id, bytes, quarantined, users };
            self.findings()
                .containable(&issue, || Ok("the layers were marked, so that the next import repairs them".into()));
        }
        Ok(())
    }
}

impl Store {
    /// The objects whose digests begin with this byte, and other names in their directory.
    pub(crate) fn list_shard(&self, shard: u8) -> Result<(Vec<ObjectId>, Vec<OsString>)> {
        let directory = Path::new("objects").join(format!("{shard:02x}"));
        let names = match disk::list(self.disk(), &directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(Error::io(format!("read {}", self.root().join(&directory).display())))?,
        };
        let (mut ids, mut foreign) = (Vec::new(), Vec::new());
        for name in names {
            let hex = [format!("{shard:02x}").as_bytes(), name.as_encoded_bytes()].concat();
            match Digest::from_hex(&hex) {
                Some(digest) => ids.push(ObjectId(digest)),
                None => foreign.push(name),
            }
        }
        Ok((ids, foreign))
    }
}
