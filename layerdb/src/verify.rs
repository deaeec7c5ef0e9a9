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

/// Why an object can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defective {
    /// It has no file.
    Missing {
        /// The length that it should have.
        bytes: u64,
    },
    /// Its file is not what it should be.
    Damaged(Finding),
}

/// The digest of an open file, read by way of the page cache, which is filled for who reads it next.
pub fn digest_of_open(file: &File) -> std::io::Result<Digest> {
    digest_of(file, Source::Cache, &Pace::default(), &mut |_| {}).map(|(digest, _)| digest)
}

/// Whether a failed read tells that the disk doesn't give the bytes back; other failures pass.
pub fn is_damage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

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
            Err(error) if is_damage(&error) => Ok(Verdict::Unreadable { reason: error.to_string(), inode }),
            Err(error) => Err(Error::io(action())(error)),
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

    /// Takes note of an object that couldn't be served: a damaged file goes out of use, and the layers that need it
    /// are marked. Walks over all trees, but only the first time.
    pub fn report_defective(&self, id: ObjectId, defect: &Defective) -> Result<()> {
        match defect {
            Defective::Missing { bytes } => self.report_missing(&[(id, Some(*bytes))]),
            Defective::Damaged(finding) => self.quarantine(Damaged::Object(id), finding).map(drop),
        }
    }
}
