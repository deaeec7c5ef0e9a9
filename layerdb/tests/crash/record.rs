//! The crashing disk itself: it shows what a careless writer loses, and doesn't take from a careful one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use mica_layerdb::disk::crash::{CrashDisk, Effort, Recorder};
use mica_layerdb::disk::{Disk, RealDisk};

use crate::folder;

/// What can be found under `name` after a power cut behind the last of `write`'s changes; `None` is no such file.
fn found(write: impl FnOnce(&CrashDisk) -> std::io::Result<()>) -> BTreeSet<Option<Vec<u8>>> {
    let directory = folder();
    let recorder = Arc::new(Recorder::new(directory.path()).unwrap());
    let disk = CrashDisk::new(RealDisk::open(directory.path()).unwrap(), Arc::clone(&recorder));
    disk.create_dir(Path::new("tmp")).unwrap();
    disk.sync_dir(Path::new(".")).unwrap();
    write(&disk).unwrap();
    let recording = recorder.finish();
    let effort = Effort { stride: 1, torn_bytes: 1, random: 8, first: recording.changes().len() };
    let mut found = BTreeSet::new();
    recording
        .states(effort, |state| -> Result<(), ()> {
            found.insert(state.image.read(Path::new("name")).map(<[u8]>::to_vec));
            Ok(())
        })
        .unwrap();
    found
}

fn bytes(text: &[u8]) -> Vec<u8> {
    text.to_vec()
}

#[test]
fn rename_before_the_sync_of_its_file_may_leave_an_empty_file_or_zeros() {
    let found = found(|disk| {
        let file = disk.create(Path::new("tmp/1"))?;
        disk.write(&file, b"abc")?;
        disk.publish(Path::new("tmp/1"), Path::new("name"))?;
        disk.sync_dir(Path::new("."))
    });
    assert_eq!(found, [bytes(b""), bytes(b"\0\0\0"), bytes(b"abc")].map(Some).into());
}

#[test]
fn rename_without_the_sync_of_its_directory_may_be_undone() {
    let found = found(|disk| {
        let file = disk.create(Path::new("tmp/1"))?;
        disk.write(&file, b"abc")?;
        disk.sync(&file)?;
        disk.publish(Path::new("tmp/1"), Path::new("name"))
    });
    assert_eq!(found, [None, Some(bytes(b"abc"))].into());
}

#[test]
fn last_write_may_be_torn_at_any_byte() {
    let found = found(|disk| {
        let file = disk.create(Path::new("name"))?;
        disk.write(&file, b"abc")?;
        disk.sync(&file)?;
        disk.sync_dir(Path::new("."))?;
        disk.write(&file, b"def")
    });
    let states = [b"abc".as_slice(), b"abcd", b"abcde", b"abcdef", b"abc\0\0\0"];
    assert_eq!(found, states.map(|state| Some(bytes(state))).into());
}

#[test]
fn synced_file_with_a_synced_name_stays_whatever_else_happens() {
    let found = found(|disk| {
        let file = disk.create(Path::new("tmp/1"))?;
        disk.write(&file, b"abc")?;
        disk.sync(&file)?;
        disk.publish(Path::new("tmp/1"), Path::new("name"))?;
        disk.sync_dir(Path::new("."))?;
        let other = disk.create(Path::new("tmp/2"))?;
        disk.write(&other, b"x")?;
        disk.remove(Path::new("tmp/2"))
    });
    assert_eq!(found, [Some(bytes(b"abc"))].into());
}
