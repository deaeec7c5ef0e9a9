//! Unions of branches, called as the FUSE adapter calls them. `model` compares them with a reference at random; here are the
//! rules that say which branch has what.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use mica_fs::branches::{BranchMode, BranchSpec, CreatePolicy};
use mica_fs::{Attr, Branches, Caller, Format, Ino, ROOT, SetAttr};
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;
use tempfile::TempDir;

const RW: BranchMode = BranchMode::Writable;
const RO: BranchMode = BranchMode::ReadOnly;
const WH: BranchMode = BranchMode::Whiteouts;

/// Directories that may become branches.
struct Place(TempDir);

impl Place {
    /// With these files, which contain their own paths.
    fn with(files: &[&str]) -> Place {
        let place = Place(TempDir::new().unwrap());
        for file in files {
            place.write(file);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, file: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }

    fn whiteout(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    fn has_whiteout(&self, name: &str) -> bool {
        let metadata = self.path(name).symlink_metadata();
        metadata.is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
    }

    fn spec(&self, name: &str, mode: BranchMode) -> BranchSpec {
        fs::create_dir_all(self.path(name)).unwrap();
        BranchSpec { path: self.path(name), mode, work: None }
    }

    fn union(&self, policy: CreatePolicy, branches: &[(&str, BranchMode)]) -> Union {
        let specs: Vec<_> = branches.iter().map(|(name, mode)| self.spec(name, *mode)).collect();
        Union(Branches::new(&specs, Format::detect(), policy).unwrap())
    }
}

/// Branches, by path.
struct Union(Branches);

impl Union {
    fn find(&self, path: &str) -> Result<Attr, Errno> {
        let root = self.0.getattr(ROOT, None).unwrap();
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(root, |dir, name| errno(self.0.lookup(dir.ino, name.as_bytes()))?.ok_or(Errno::NOENT))
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(parent)?.ino, name.as_bytes()))
    }

    fn read(&self, path: &str) -> Result<String, Errno> {
        let fh = errno(self.0.open(self.find(path)?.ino, OFlags::RDONLY))?;
        let mut bytes = vec![0; 4096];
        let read = self.0.read(fh, 0, &mut bytes).unwrap();
        self.0.release(fh);
        bytes.truncate(read);
        Ok(String::from_utf8(bytes).unwrap())
    }

    fn append(&self, path: &str) -> Result<(), Errno> {
        let attr = self.find(path)?;
        let fh = errno(self.0.open(attr.ino, OFlags::WRONLY))?;
        assert_eq!(self.0.write(fh, attr.size, b"+").unwrap(), 1);
        self.0.release(fh);
        Ok(())
    }

    fn create(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        let (_, fh) = errno(self.0.create(&Caller::default(), parent, name, 0o644, OFlags::CREATE | OFlags::EXCL))?;
        self.0.release(fh);
        Ok(())
    }

    fn mkdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        errno(self.0.mkdir(&Caller::default(), parent, name, 0o755)).map(drop)
    }

    fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        errno(self.0.unlink(parent, name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        let ((parent, name), (new_parent, new_name)) = (self.parent(from)?, self.parent(to)?);
        errno(self.0.rename(parent, name, new_parent, new_name, RenameFlags::empty()))
    }

    fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        let (ino, (parent, name)) = (self.find(from)?.ino, self.parent(to)?);
        errno(self.0.link(ino, parent, name)).map(drop)
    }

    fn list(&self, path: &str) -> Vec<String> {
        let fh = self.0.opendir(self.find(path).unwrap().ino).unwrap();
        let mut names = Vec::new();
        let each = &mut |entry: mica_fs::DirEntry<'_>| {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            true
        };
        self.0.readdir(fh, 0, false, each).unwrap();
        self.0.releasedir(fh);
        names.retain(|name| !name.starts_with('.') || name.len() > 2);
        names.sort();
        names
    }
}

fn errno<T>(result: mica_fs::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}

/// Rule 77: What is new goes to the branch that `create=` chooses (`--create`): `tdp`, the default, the topmost that
/// has the directory, or else the nearest above; `mfs` the one with the most free space; `rr` one after the other.
#[test]
fn what_is_new_goes_to_the_topmost_writable_branch_that_has_the_directory() {
    let place = Place::with(&["two/dir/x", "base/deep/x"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("two", RW), ("base", RO)]);
    union.create("new").unwrap();
    union.create("dir/new").unwrap();
    union.create("deep/new").unwrap();
    assert!(place.has("one/new") && place.has("two/dir/new") && !place.has("one/dir"));
    // Nobody that can be written to has it: the nearest above gets it.
    assert!(place.has("two/deep/new") && !place.has("one/deep"));
}

/// Rule 77: What is new goes to the branch that `create=` chooses (`--create`): `tdp`, the default, the topmost that
/// has the directory, or else the nearest above; `mfs` the one with the most free space; `rr` one after the other.
#[test]
fn what_is_new_goes_round_or_to_the_disk_with_the_most_room() {
    let place = Place::with(&["base/dir/x"]);
    let union = place.union(CreatePolicy::RoundRobin, &[("one", RW), ("base", RO), ("two", RW)]);
    for name in ["dir/a", "dir/b", "dir/c", "dir/d"] {
        union.create(name).unwrap();
    }
    assert_eq!(union.list("dir"), ["a", "b", "c", "d", "x"]);
    let mut names: Vec<_> =
        fs::read_dir(place.path("one/dir")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "c"]);
    assert!(place.has("two/dir/b") && place.has("two/dir/d"));

    let small = PathBuf::from("/dev/shm");
    let Ok(shm) = rustix::fs::statvfs(&small) else { return };
    let here = rustix::fs::statvfs(place.0.path()).unwrap();
    let shm_dir = TempDir::new_in(&small).unwrap();
    let specs = [place.spec("three", RW), BranchSpec { path: shm_dir.path().join("four"), mode: RW, work: None }];
    fs::create_dir(&specs[1].path).unwrap();
    let union = Union(Branches::new(&specs, Format::detect(), CreatePolicy::MostFreeSpace).unwrap());
    union.create("new").unwrap();
    let below_has_more = shm.f_bavail * shm.f_frsize > here.f_bavail * here.f_frsize;
    assert!(specs[usize::from(below_has_more)].path.join("new").exists());
    assert!(!specs[usize::from(!below_has_more)].path.join("new").exists());
}

/// Rule 76: What can be written to where it is, is changed there.
#[test]
fn copy_goes_to_the_nearest_writable_branch_above_and_keeps_its_number() {
    let place = Place::with(&["high/dir/upper", "base/dir/lower", "two/own"]);
    let branches = [("one", RW), ("high", RO), ("two", RW), ("base", RO)];
    let numbers = {
        let union = place.union(CreatePolicy::TopDownParent, &branches);
        let numbers = ["dir", "dir/upper", "dir/lower", "own"].map(|path| union.find(path).unwrap().ino);
        for path in ["dir/upper", "dir/lower", "own"] {
            union.append(path).unwrap();
        }
        assert_eq!(union.read("dir/lower").unwrap(), "base/dir/lower+");
        numbers
    };
    assert!(place.has("one/dir/upper") && !place.has("two/dir/upper"));
    assert!(place.has("two/dir/lower") && !place.has("one/dir/lower") && !place.has("one/own"));
    assert_eq!(fs::read_to_string(place.path("base/dir/lower")).unwrap(), "base/dir/lower");
    let again = place.union(CreatePolicy::TopDownParent, &branches);
    assert_eq!(["dir", "dir/upper", "dir/lower", "own"].map(|path| again.find(path).unwrap().ino), numbers);
}

/// Rule 76: What can be written to where it is, is changed there.
#[test]
fn file_below_all_writable_branches_alone_can_not_be_changed() {
    let place = Place::with(&["top/file", "top/dir/x"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("top", RO), ("one", RW)]);
    assert_eq!(union.append("file"), Err(Errno::ROFS));
    assert_eq!(union.unlink("file"), Err(Errno::ROFS));
    let chmod = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(errno(union.0.setattr(union.find("dir").unwrap().ino, None, &chmod)), Err(Errno::ROFS));
    // But there is room beside it.
    union.create("dir/new").unwrap();
    assert!(place.has("one/dir/new"));
    union.append("dir/new").unwrap();
}

/// Rule 75: In a branch that is `ro`, whiteouts and opaque marks hide nothing, and don't show.
#[test]
fn whiteouts_of_a_read_only_branch_hide_nothing_unless_it_is_said_so() {
    let place = Place::with(&["base/a", "base/b", "base/dir/x", "base/c", "mid/.wh.b", "mid/dir/.wh..wh..opq"]);
    place.whiteout("mid/a");
    for (mode, names) in [(RO, &["a", "b", "c", "dir"][..]), (WH, &["c", "dir"])] {
        let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("mid", mode), ("base", RO)]);
        assert_eq!(union.list(""), names);
        assert_eq!(union.find("a").is_ok(), mode == RO);
        assert_eq!(union.list("dir").is_empty(), mode == WH);
        assert_eq!(union.find(".wh.b"), Err(Errno::NOENT));
    }
}

/// Rule 78: A removed name that a branch below has too leaves a whiteout in the branch that had it, or in the nearest
/// above that can be written to.
#[test]
fn whiteout_is_made_where_the_name_was_or_in_the_nearest_writable_branch_above() {
    let place = Place::with(&["two/both", "base/both", "base/lower", "two/alone"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("two", RW), ("base", RO)]);
    for name in ["both", "lower", "alone"] {
        union.unlink(name).unwrap();
        assert_eq!(union.find(name), Err(Errno::NOENT));
    }
    assert!(place.has_whiteout("two/both") && place.has_whiteout("two/lower") && !place.has("two/alone"));
    assert!(fs::read_dir(place.path("one")).unwrap().next().is_none());
    // What is made above a whiteout leaves it where it is; a directory shows nothing of what was there.
    union.create("both").unwrap();
    assert!(place.has("one/both") && place.has_whiteout("two/both"));
    union.mkdir("lower").unwrap();
    assert!(union.list("lower").is_empty());
}

/// Rule 10: `st_nlink` of a directory is two plus the subdirectories that show, also where several layers make it up.
/// Rule 85: A merged directory counts the subdirectories that show.
#[test]
fn merged_directory_counts_the_subdirectories_that_show() {
    let place = Place::with(&["one/dir/a/x", "two/dir/b/x", "base/dir/b/y", "base/dir/c/z"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("two", RW), ("base", RO)]);
    assert_eq!(union.find("dir").unwrap().nlink, 5);
    union.unlink("dir/c/z").unwrap();
    let (parent, name) = union.parent("dir/c").unwrap();
    union.0.rmdir(parent, name).unwrap();
    assert_eq!(union.find("dir").unwrap().nlink, 4);
    union.rename("dir/a", "a").unwrap();
    assert_eq!(union.find("dir").unwrap().nlink, 3);
    union.mkdir("dir/d").unwrap();
    assert_eq!(union.find("dir").unwrap().nlink, 4);
}

/// Rule 79: A file is renamed and linked in the branch that has it, whatever branch has the directory; what a branch
/// above has under the new name is then taken away.
#[test]
fn file_is_renamed_and_linked_in_the_branch_that_has_it() {
    let place = Place::with(&["one/target", "two/source", "base/lower", "one/dir/x"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("two", RW), ("base", RO)]);
    let number = union.find("source").unwrap().ino;
    // What a branch above has is replaced.
    union.rename("source", "target").unwrap();
    assert_eq!((union.read("target").unwrap(), union.find("target").unwrap().ino), ("two/source".to_owned(), number));
    assert!(place.has("two/target") && !place.has("one/target") && !place.has("two/source"));
    union.rename("target", "dir/there").unwrap();
    assert!(place.has("two/dir/there"));
    // What can't be written to comes up first, and leaves a whiteout.
    union.rename("lower", "risen").unwrap();
    assert!(place.has("two/risen") && place.has_whiteout("two/lower"));
    union.link("risen", "dir/again").unwrap();
    assert_eq!(union.find("dir/again").unwrap(), union.find("risen").unwrap());
    assert_eq!(union.find("risen").unwrap().nlink, 2);
    assert_eq!(union.list("dir"), ["again", "there", "x"]);
}

/// Rule 80: A directory that is all in one branch `rw` can be renamed.
#[test]
fn directory_that_several_branches_have_or_one_that_can_not_be_written_to_is_not_renamed() {
    let place = Place::with(&["one/both/x", "base/both/y", "base/lower/z", "two/own/x", "base/place/x"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("two", RW), ("base", RO)]);
    assert_eq!(union.rename("both", "new"), Err(Errno::XDEV));
    assert_eq!(union.rename("lower", "new"), Err(Errno::XDEV));
    union.unlink("place/x").unwrap();
    let (parent, name) = union.parent("place").unwrap();
    union.0.rmdir(parent, name).unwrap();
    // One that is all in one branch moves, and shows nothing of what was at its new name.
    union.rename("own", "place").unwrap();
    assert_eq!(union.list("place"), ["x"]);
    assert_eq!(union.list(""), ["both", "lower", "place"]);
}

/// Rule 81: A file of several names stays one file when it is copied.
#[test]
fn hard_links_of_a_read_only_branch_stay_one_file_over_a_copy() {
    let place = Place::with(&["base/dir/file"]);
    fs::hard_link(place.path("base/dir/file"), place.path("base/other")).unwrap();
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("base", RO)]);
    union.append("other").unwrap();
    assert_eq!(union.read("dir/file").unwrap(), "base/dir/file+");
    assert_eq!(union.find("dir/file").unwrap(), union.find("other").unwrap());
    union.unlink("other").unwrap();
    assert_eq!(union.find("dir/file").unwrap().nlink, 1);
}

/// Rule 76: What can be written to where it is, is changed there.
#[test]
fn handle_from_before_a_copy_reads_what_is_written_after_it() {
    let place = Place::with(&["base/file"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("base", RO)]);
    let ino = union.find("file").unwrap().ino;
    let reader = union.0.open(ino, OFlags::RDONLY).unwrap();
    union.append("file").unwrap();
    let mut bytes = [0; 32];
    assert_eq!(union.0.read(reader, 0, &mut bytes).unwrap(), "base/file+".len());
    // Without a name it can be changed all the same.
    union.unlink("file").unwrap();
    assert_eq!(union.0.getattr(ino, None).unwrap().nlink, 0);
    union.0.setattr(ino, None, &SetAttr { size: Some(4), ..SetAttr::default() }).unwrap();
    assert_eq!(union.0.read(reader, 0, &mut bytes).unwrap(), 4);
}

/// Rule 83: A branch that comes shows at once, and one that goes takes its names along.
#[test]
fn branch_that_comes_shows_and_one_that_goes_takes_its_names_along() {
    let place = Place::with(&["base/file", "more/file", "more/only"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("base", RO)]);
    assert_eq!(union.read("file").unwrap(), "base/file");
    assert_eq!(union.find("only"), Err(Errno::NOENT));
    union.0.add(&place.spec("more", RO), 1).unwrap();
    assert_eq!((union.read("file").unwrap(), union.read("only").unwrap()), ("more/file".into(), "more/only".into()));
    let held = union.0.open(union.find("only").unwrap().ino, OFlags::RDONLY).unwrap();
    let remove = |name: &str| {
        // What a kernel gives back when it is told to forget a name.
        let forget = |parent: Ino, name: &[u8]| {
            if let Ok(Some(attr)) = union.0.lookup(parent, name) {
                union.0.forget(attr.ino, u64::MAX);
            }
        };
        errno(union.0.remove(&place.path(name), &forget))
    };
    assert_eq!(remove("more"), Err(Errno::BUSY));
    union.0.release(held);
    remove("more").unwrap();
    assert_eq!(union.find("only"), Err(Errno::NOENT));
    assert_eq!(union.read("file").unwrap(), "base/file");
    remove("base").unwrap();
    assert_eq!(remove("one"), Err(Errno::BUSY));
    assert_eq!(remove("base"), Err(Errno::NOENT));
}

/// Rule 84: A branch changes its mode at any time; to `ro` and `ro+wh` not while somebody may write to a file of it
/// (EBUSY).
#[test]
fn branch_changes_its_mode_unless_somebody_writes_to_it() {
    let place = Place::with(&["one/file", "base/low"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("base", RO)]);
    let writer = union.0.open(union.find("file").unwrap().ino, OFlags::WRONLY).unwrap();
    assert_eq!(errno(union.0.set_mode(&place.path("one"), RO)), Err(Errno::BUSY));
    union.0.release(writer);
    let reader = union.0.open(union.find("low").unwrap().ino, OFlags::RDONLY).unwrap();
    union.0.set_mode(&place.path("one"), RO).unwrap();
    assert_eq!(union.append("file"), Err(Errno::ROFS));
    assert_eq!(union.create("new"), Err(Errno::ROFS));
    union.0.set_mode(&place.path("base"), RW).unwrap();
    union.append("low").unwrap();
    assert_eq!(fs::read_to_string(place.path("base/low")).unwrap(), "base/low+");
    let mut bytes = [0; 32];
    assert_eq!(union.0.read(reader, 0, &mut bytes).unwrap(), "base/low+".len());
}

/// Rule 86: Branches are different directories, none in another.
#[test]
fn branches_are_told_apart() {
    let place = Place::with(&["one/inner/x"]);
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW)]);
    for (name, refused) in [("one", Errno::EXIST), ("one/inner", Errno::INVAL), ("absent", Errno::NOENT)] {
        let spec = BranchSpec { path: place.path(name), mode: RO, work: None };
        assert_eq!(errno(union.0.add(&spec, 0)), Err(refused), "{name}");
    }
    assert_eq!(union.0.list().len(), 1);
}

/// Rule 87: An upper of an overlay whose redirects or metadata copies lead to its lower is no branch: what they mark
/// is EIO.
#[test]
fn upper_whose_marks_lead_elsewhere_is_no_branch() {
    let place = Place::with(&["one/moved/x", "base/old/y"]);
    let format = Format::detect();
    let name = if format == Format::Trusted { "trusted.overlay.redirect" } else { "user.overlay.redirect" };
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(place.path("one/moved"), name, b"/old", flags).unwrap();
    let union = place.union(CreatePolicy::TopDownParent, &[("one", RW), ("base", RO)]);
    assert_eq!(union.find("moved"), Err(Errno::IO));
}
