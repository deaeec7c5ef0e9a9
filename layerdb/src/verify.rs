//! Comparing files with the digests that name them.

mod layer;
mod read;
mod repair;
mod scrub;

pub use layer::{LayerCheck, VerifyOptions};
pub use read::Pace;
pub(crate) use read::{Source, digest_of};
pub use repair::{RepairSource, Repaired};
pub(crate) use scrub::KEY as SCRUB_KEY;
pub use scrub::{Scrub, ScrubOptions, ScrubReport};

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::digest::{Digest, ObjectId};
use crate::disk;
use crate::error::{Error, Result};
use crate::object;
use crate::quarantine::{Damaged, Finding};
use crate::store::Store;

/// What was found of a file whose digest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has the digest, and so many bytes.
    Whole(u64),
    /// There is none.
    Missing,
    /// It has another digest.
    Corrupt { actual: Digest, inode: u64 },
    /// It can't be read, or is no regular file.
    Unreadable { reason: String, inode: u64 },
}

impl Verdict {
    /// What to tell quarantine of it, if it is damaged.
    pub(crate) fn finding(&self, expected: Digest) -> Option<Finding> {
        let expected = Some(expected);
        match self {
            Verdict::Whole(_) | Verdict::Missing => None,
            Verdict::Corrupt { actual, inode } => {
                let reason = "its digest is another".to_owned();
                Some(Finding { reason, expected, actual: Some(*actual), inode: Some(*inode) })
            }
            Verdict::Unreadable { reason, inode } => {
                Some(Finding { reason: reason.clone(), expected, actual: None, inode: Some(*inode) })
            }
        }
    }
}

impl Store {
    /// Reads a file below the root and compares it with a digest.
    pub(crate) fn verify_file(
        &self,
        path: &Path,
        expected: Digest,
        pace: &Pace,
        source: Source,
        each: &mut dyn FnMut(u64),
    ) -> Result<Verdict> {
        let action = || format!("read {}", self.root().join(path).display());
        let Some(stat) = disk::stat(self.disk(), path).map_err(Error::io(action()))? else {
            return Ok(Verdict::Missing);
        };
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(Verdict::Unreadable { reason: "it is no regular file".into(), inode: stat.st_ino });
        }
        let Some(file) = disk::open(self.disk(), path).map_err(Error::io(action()))? else {
            return Ok(Verdict::Missing);
        };
        let inode = file.metadata().map_err(Error::io(action()))?.ino();
        match digest_of(&file, source, pace, each) {
            Ok((actual, bytes)) if actual == expected => Ok(Verdict::Whole(bytes)),
            Ok((actual, _)) => Ok(Verdict::Corrupt { actual, inode }),
            Err(error) => Ok(Verdict::Unreadable { reason: error.to_string(), inode }),
        }
    }

    pub(crate) fn verify_object(
        &self,
        id: ObjectId,
        pace: &Pace,
        source: Source,
        each: &mut dyn FnMut(u64),
    ) -> Result<Verdict> {
        self.verify_file(&object::path(id), id.0, pace, source, each)
    }

    /// Compares an open object with its name, for one who is about to serve it, and takes it out of use if it is
    /// damaged. False then. The file is read by way of the page cache, which is filled for who reads it next.
    pub fn verify_open_object(&self, id: ObjectId, file: &File) -> Result<bool> {
        let inode = file.metadata().map_err(Error::io(format!("stat object {id}")))?.ino();
        let verdict = match digest_of(file, Source::Cache, &Pace::default(), &mut |_| {}) {
            Ok((actual, _)) if actual == id.0 => return Ok(true),
            Ok((actual, _)) => Verdict::Corrupt { actual, inode },
            Err(error) => Verdict::Unreadable { reason: error.to_string(), inode },
        };
        if let Some(finding) = verdict.finding(id.0) {
            self.quarantine(Damaged::Object(id), &finding)?;
        }
        Ok(false)
    }

    /// Takes an object out of use whose length is not the one that its tree says.
    pub fn report_length(&self, id: ObjectId, file: &File, expected_bytes: u64) -> Result<()> {
        let metadata = file.metadata().map_err(Error::io(format!("stat object {id}")))?;
        let reason = format!("it has {} bytes instead of {expected_bytes}", metadata.len());
        let finding = Finding { reason, expected: Some(id.0), actual: None, inode: Some(metadata.ino()) };
        self.quarantine(Damaged::Object(id), &finding).map(drop)
    }
}
