//! The object folder, open for serving.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

mod verified;

use mica_layerdb::verify::Defective;
use mica_layerdb::{Finding, ObjectId};
use rustix::fs::{CWD, Mode, OFlags, StatVfs};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result};
use crate::sys;
use verified::Verified;

/// Told of objects that can't be served. Called on the threads that serve mounts: it must not wait for long.
pub trait Watch: fmt::Debug + Send + Sync {
    /// The object has no file, or a damaged one, which may be open elsewhere.
    fn found(&self, id: ObjectId, defect: Defective);
}

/// A descriptor of the object folder.
///
/// As root it belongs to a private, detached mount of the folder that is read-only: nothing that is opened through it can be
/// written to, not even by the kernel when it opens a backing file anew with a program's flags.
pub struct Objects {
    /// Who is told of objects that can't be served.
    watch: Option<Arc<dyn Watch>>,
    /// Those that have the digests they are named after, if that is looked at.
    verified: OnceLock<Verified>,
    dir: OwnedFd,
    /// The detached mount; it is dissolved when this is closed.
    seal: Option<OwnedFd>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Objects").field("sealed", &self.is_sealed()).finish_non_exhaustive()
    }
}

impl Objects {
    /// Opens the folder at `path` behind a read-only mount where that is permitted, else as it is.
    pub fn sealed(path: &Path) -> Result<Objects> {
        match seal(path) {
            Ok((mount, dir)) => Ok(Objects { watch: None, verified: OnceLock::new(), dir, seal: Some(mount) }),
            Err(Errno::PERM | Errno::NOSYS) => {
                let dir = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| at(path, errno))?;
                Ok(Objects { watch: None, verified: OnceLock::new(), dir, seal: None })
            }
            Err(errno) => Err(at(path, errno)),
        }
    }

    /// Whether objects are opened through a read-only mount.
    pub fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// The same; tells `watch` of objects that can't be served.
    #[must_use]
    pub fn watched_by(mut self, watch: Arc<dyn Watch>) -> Objects {
        self.watch = Some(watch);
        self
    }

    /// From now on compares each object with its digest before it is opened for the first time.
    pub fn verify_first_use(&self) {
        self.verified.get_or_init(Verified::default);
    }

    /// Whether [`Objects::open`] may have to read all of the object, so that locks had better not be held.
    pub fn is_verifying(&self) -> bool {
        self.verified.get().is_some()
    }

    /// Opens an object of this length for reading. One that is missing, has another length, or another digest where
    /// that is looked at, is EIO, and told to who watches. Of those who open an object for the first time at once, one
    /// reads it and the others wait.
    pub fn open(&self, id: ObjectId, bytes: u64) -> Result<File> {
        let file = self.open_file(id)?.ok_or_else(|| {
            self.tell(id, Defective::Missing { bytes });
            missing(id)
        })?;
        let metadata = file.metadata()?;
        if metadata.len() != bytes {
            let reason = format!("it has {} bytes instead of {bytes}", metadata.len());
            return Err(self.damaged(id, &metadata, &reason, None));
        }
        let Some(verified) = self.verified.get() else { return Ok(file) };
        verified.once(id, || match mica_layerdb::verify::digest_of_open(&file) {
            Ok(actual) if actual == id.0 => Ok(()),
            Ok(actual) => Err(self.damaged(id, &metadata, "its digest is another", Some(actual))),
            Err(error) if mica_layerdb::verify::is_damage(&error) => {
                Err(self.damaged(id, &metadata, &format!("it can't be read: {error}"), None))
            }
            Err(error) => Err(error.into()),
        })?;
        Ok(file)
    }

    fn damaged(
        &self,
        id: ObjectId,
        metadata: &std::fs::Metadata,
        reason: &str,
        actual: Option<mica_layerdb::Digest>,
    ) -> Error {
        use std::os::unix::fs::MetadataExt as _;
        let finding = Finding { reason: reason.to_owned(), expected: Some(id.0), actual, inode: Some(metadata.ino()) };
        self.tell(id, Defective::Damaged(finding));
        Error::Unavailable { reason: format!("object {id} is corrupt: {reason}"), errno: Errno::IO }
    }

    fn tell(&self, id: ObjectId, defect: Defective) {
        if let Some(watch) = &self.watch {
            watch.found(id, defect);
        } else {
            tracing::error!(object = %id, ?defect, "an object can't be served");
        }
    }

    /// Opens an object whatever its length, for one who compares it with its digest.
    pub fn open_unverified(&self, id: ObjectId) -> Result<File> {
        self.open_file(id)?.ok_or_else(|| missing(id))
    }

    fn open_file(&self, id: ObjectId) -> Result<Option<File>> {
        let name = id.relative_path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.dir, &name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Free space of the disk that holds the objects.
    pub fn statfs(&self) -> Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.dir)?)
    }
}

fn missing(id: ObjectId) -> Error {
    Error::Unavailable { reason: format!("object {id} is missing"), errno: Errno::IO }
}

const DIRECTORY: OFlags =
    OFlags::from_bits_retain(OFlags::RDONLY.bits() | OFlags::DIRECTORY.bits() | OFlags::CLOEXEC.bits());

fn seal(path: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let clone = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::make_mount_read_only(&clone)?;
    // The clone's own descriptor is an O_PATH one; statfs needs a real one.
    let dir = rustix::fs::openat(&clone, ".", DIRECTORY, Mode::empty())?;
    Ok((clone, dir))
}

fn at(path: &Path, errno: Errno) -> Error {
    Error::Layer { path: path.display().to_string(), reason: errno.to_string(), errno }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use mica_layerdb::Digest;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<(ObjectId, Defective)>>);

    impl Watch for Told {
        fn found(&self, id: ObjectId, defect: Defective) {
            self.0.lock().push((id, defect));
        }
    }

    struct Place {
        folder: tempfile::TempDir,
        told: Arc<Told>,
    }

    impl Place {
        fn new() -> Place {
            Place { folder: tempfile::tempdir().unwrap(), told: Arc::default() }
        }

        fn put(&self, contents: &[u8]) -> (ObjectId, PathBuf) {
            let id = ObjectId(Digest::of(contents));
            let path = self.folder.path().join(id.relative_path());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, contents).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            (id, path)
        }

        fn objects(&self) -> Objects {
            let told: Arc<Told> = Arc::clone(&self.told);
            Objects::sealed(self.folder.path()).unwrap().watched_by(told)
        }
    }

    #[test]
    fn open_of_a_corrupt_object_is_eio_where_digests_are_looked_at_and_told_to_who_watches() {
        let place = Place::new();
        let (id, path) = place.put(b"what it was");
        std::fs::write(path, b"what it is!").unwrap();
        let trusting = place.objects();
        trusting.open(id, 11).unwrap();
        assert!(place.told.0.lock().is_empty());
        let verifying = place.objects();
        verifying.verify_first_use();
        for _ in 0..2 {
            assert_eq!(verifying.open(id, 11).unwrap_err().errno(), Errno::IO);
        }
        let told = place.told.0.lock();
        let (_, Defective::Damaged(finding)) = &told[0] else { panic!("{told:?}") };
        assert_eq!(finding.actual, Some(Digest::of(b"what it is!")));
        assert!(finding.inode.is_some());
    }

    #[test]
    fn open_of_an_object_that_was_whole_once_does_not_read_it_again() {
        let place = Place::new();
        let (id, path) = place.put(b"what it was");
        let verifying = place.objects();
        verifying.verify_first_use();
        verifying.open(id, 11).unwrap();
        std::fs::write(path, b"what it is!").unwrap();
        verifying.open(id, 11).unwrap();
    }

    #[test]
    fn open_of_a_missing_or_cut_object_is_eio_whatever_is_looked_at() {
        let place = Place::new();
        let (id, path) = place.put(b"what it was");
        let objects = place.objects();
        assert_eq!(objects.open(id, 12).unwrap_err().errno(), Errno::IO);
        std::fs::remove_file(path).unwrap();
        assert_eq!(objects.open(id, 11).unwrap_err().errno(), Errno::IO);
        let told = place.told.0.lock();
        assert!(matches!(told[0].1, Defective::Damaged(_)));
        assert_eq!(told[1], (id, Defective::Missing { bytes: 11 }));
    }
}
