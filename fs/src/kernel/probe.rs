//! Whether this machine can do it: by doing it, with a tree of one file.

use std::fs::{self, File};
use std::path::Path;

use mica_layerdb::tree::{Attributes, Body, Builder, FileKind, Timestamp};
use mica_layerdb::{Digest, ObjectId};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::{Overlay, SOURCE, mount_image, refused};
use crate::error::{Error, Result};

const NAME: &str = "file";
/// More than trees hold themselves.
const CONTENTS: [u8; 5000] = [b'x'; 5000];

/// Tries a mount below `folder`, an empty one on the disk of uppers and objects, and says why it can't be had. What is made is
/// removed again, except for the folder.
pub fn probe(folder: &Path) -> Result<()> {
    let mountpoint = folder.join("mnt");
    let tried = prepare(folder).and_then(|()| {
        let overlay = Overlay {
            source: SOURCE,
            tree: &mountpoint,
            objects: &folder.join("objects"),
            writable: Some(folder),
            attributes: MountAttrFlags::empty(),
        };
        mount_image(&folder.join("tree"), &overlay, &mountpoint)?;
        let used = use_it(folder, &mountpoint);
        let unmounted = rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        used.and_then(|()| unmounted.map_err(|errno| refused(&mountpoint, format!("can't unmount: {errno}"), errno)))
    });
    let cleaned = ["mnt", "objects", "upper", "work", "tree", "spool"].into_iter().try_for_each(|name| {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::from(error)),
            _ => Ok(()),
        }
    });
    tried.and(cleaned)
}

fn prepare(folder: &Path) -> Result<()> {
    for name in ["mnt", "upper", "work"] {
        fs::create_dir(folder.join(name))?;
    }
    let id = ObjectId(Digest::of(&CONTENTS));
    let object = folder.join("objects").join(id.relative_path());
    if let Some(parent) = object.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(object, CONTENTS)?;
    let spool = File::options().read(true).write(true).create_new(true).open(folder.join("spool"))?;
    let mut tree = Builder::new(spool)?;
    let attributes = Attributes {
        mode: FileKind::Regular.mode_bits() | 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        rdev: 0,
        xattrs: Vec::new(),
    };
    tree.insert(tree.root(), NAME.as_bytes(), attributes, Body::Object { id, size: CONTENTS.len() as u64 })?;
    tree.write(&mut File::create_new(folder.join("tree"))?)?;
    Ok(())
}

/// Reads contents out of an object, and changes attributes without taking contents along.
fn use_it(folder: &Path, mountpoint: &Path) -> Result<()> {
    let path = mountpoint.join(NAME);
    let failed = |what: &str| refused(mountpoint, what.to_owned(), Errno::IO);
    if fs::read(&path)? != CONTENTS {
        return Err(failed("contents of objects are not what they should be"));
    }
    rustix::fs::setxattr(&path, "user.mica", b"probe", XattrFlags::empty())?;
    let mut value = [0; 16];
    match rustix::fs::getxattr(folder.join("upper").join(NAME), "trusted.overlay.metacopy", &mut value) {
        Ok(_) => Ok(()),
        Err(_) => Err(failed("overlayfs takes contents along where attributes alone change")),
    }
}
