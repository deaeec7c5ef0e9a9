//! A disk that is really full: a small one in memory, which RocksDB meets as the store does.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use mica_layerdb::Kind;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::check::{Expected, Verdict, lean, sound, whole};
use crate::folder;
use crate::material::Material;
use crate::scenario::{STEPS, Scene, view};

/// A small filesystem, unmounted when dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` if this user can't mount.
    fn new() -> Option<SmallDisk> {
        let directory = folder();
        match rustix::mount::mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=24m")) {
            Ok(()) => Some(SmallDisk { directory }),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "full disk not tried: a tmpfs can't be mounted: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves about so many bytes free.
    fn fill(&self, leave: u64) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(leave)).unwrap();
        path
    }

    /// Frees what was filled. Its blocks first, and at once: a program that another test is just starting may have the
    /// file open until it has replaced its image, and a removed file takes space as long.
    fn free(filler: &Path) {
        File::options().write(true).open(filler).unwrap().set_len(0).unwrap();
        fs::remove_file(filler).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.directory.path(), UnmountFlags::DETACH);
    }
}

/// Plays the scenario; before request `full_at` the disk gets full but for some bytes, after it there is room again.
fn play(material: &Material, full_at: usize, leave: u64) -> Verdict {
    let Some(disk) = SmallDisk::new() else { return Ok(()) };
    let root = disk.path().join("store");
    let mut scene = Scene::new(&root, None, material);
    for (number, step) in STEPS.iter().enumerate() {
        if number != full_at {
            (step.run)(&mut scene).map_err(|error| format!("{} with room: {error}", step.name))?;
            continue;
        }
        let before = scene.store.as_ref().map(|store| view(store).unwrap()).unwrap_or_default();
        let filler = disk.fill(leave);
        let result = (step.run)(&mut scene);
        SmallDisk::free(&filler);
        let Err(error) = result else { continue };
        if error.kind() != Kind::NoSpace {
            return Err(format!("{} with {leave} bytes left: {error}", step.name));
        }
        if scene.store.is_some() && step.atomic {
            let found = view(scene.store()).map_err(|error| format!("look: {error}"))?;
            Expected { before: &before, after: &before, next: None }.compare(&found)?;
        }
        if scene.store.is_none() || matches!((step.run)(&mut scene), Err(mica_layerdb::Error::Broken { .. })) {
            scene.open().map_err(|error| format!("open with room: {error}"))?;
        }
        match (step.run)(&mut scene) {
            Err(error) if !matches!(error.kind(), Kind::Exists | Kind::NotFound) => {
                return Err(format!("{} repeated: {error}", step.name));
            }
            _ => {}
        }
    }
    scene.gc().map_err(|error| error.to_string())?;
    whole(scene.store())?;
    sound(scene.store())?;
    lean(scene.store())
}

#[test]
fn full_disk_during_any_request_is_told_and_harmless() {
    let material = Material::new();
    let mut failures = Vec::new();
    for (full_at, step) in STEPS.iter().enumerate() {
        for leave in [0, 4 << 10, 64 << 10, 1 << 20] {
            if let Err(wrong) = play(&material, full_at, leave) {
                failures.push(format!("{}, {leave} bytes left: {wrong}", step.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn freed_filler_gives_its_space_back_though_a_program_that_is_starting_has_it_open() {
    let Some(disk) = SmallDisk::new() else { return };
    let filler = disk.fill(0);
    let inherited = File::open(&filler).unwrap();
    SmallDisk::free(&filler);
    fs::write(disk.path().join("file"), vec![1; 1 << 20]).unwrap();
    drop(inherited);
}
