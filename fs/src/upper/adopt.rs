//! Uppers that fuse-overlayfs has written, whose containers go on with Mica.
//!
//! Where it may not, or is told not to, make character devices, it deletes NAME by a file `.wh.NAME`; what is opaque has a file
//! `.wh..wh..opq`, and often `user.fuseoverlayfs.opaque` alone. Such marks are put into the upper's own form before it is
//! used, one directory after the other, so that an interrupted search is simply done again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::{DIRECTORY, Mark, Spot, Upper, read_dir, remove_tree};
use crate::error::Result;
use std::os::fd::AsFd as _;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_FILE: &[u8] = b".wh..wh..opq";
const OPAQUE: &[u8] = b"user.fuseoverlayfs.opaque";

impl Upper {
    /// Puts the marks of fuse-overlayfs into this upper's form, if it has used the upper since Mica has.
    pub fn adopt(self) -> Result<Upper> {
        if self.is_foreign {
            let mut dirs = vec![Arc::clone(&self.root)];
            while let Some(dir) = dirs.pop() {
                self.adopt_dir(&dir, &mut dirs)?;
            }
            // By this the next start knows that nothing is to be searched. What cannot go is searched for again.
            if let Err(errno) = remove_tree(self.work.as_fd(), b"work") {
                tracing::warn!(%errno, "another program's work directory stays");
            }
        }
        Ok(self)
    }

    fn adopt_dir(&self, dir: &Arc<OwnedFd>, dirs: &mut Vec<Arc<OwnedFd>>) -> Result<()> {
        let entries = read_dir(dir.as_fd())?;
        let here = Spot::Fd(Arc::clone(dir));
        let marked = entries.iter().any(|(name, _, _)| name == OPAQUE_FILE) || here.xattr(OPAQUE)?.is_some();
        if marked {
            self.format.set(&here, Mark::Opaque, b"y")?;
            match here.remove_xattr(OPAQUE) {
                Err(Errno::NODATA) => {}
                removed => removed?,
            }
        }
        for (name, _, kind) in entries {
            let spot = Spot::at(dir, &name);
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                // Book-keeping begins with the mark twice, and hides nothing.
                if !hidden.is_empty() && !hidden.starts_with(WHITEOUT) {
                    self.adopt_whiteout(&Spot::at(dir, hidden))?;
                }
                rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
            } else if kind == FileType::Directory || kind == FileType::Unknown {
                match spot.open(DIRECTORY) {
                    Ok(inner) => dirs.push(Arc::new(inner)),
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// What has a deleted name again shows nothing from below.
    fn adopt_whiteout(&self, hidden: &Spot) -> Result<(), Errno> {
        match hidden.stat() {
            Err(Errno::NOENT) => Upper::make_whiteout(hidden),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.format.set(hidden, Mark::Opaque, b"y")
            }
            found => found.map(drop),
        }
    }
}
