//! Layers that come as blobs, and changes that leave as layers.

use std::io::{self, Cursor, Read};

use mica_snapshotter::Mount;
use mica_snapshotter::error::Kind as ErrorKind;

use super::world::{GZIP, TAR, World, diff_id, files, gzip, incoming, kind, labels, reading, tar};

#[test]
fn applied_layer_is_the_contents_of_the_committed_snapshot() {
    let world = World::new();
    let plain = tar(&[("one", "1"), ("two", "2")]);
    let mounts = world.prepare("extract", "", labels(&[])).unwrap();
    let applied = world.apply(&mounts, incoming(GZIP, &gzip(&plain))).unwrap().unwrap();
    assert_eq!(applied.diff_id, diff_id(&plain));
    assert_eq!(applied.size, plain.len() as u64);
    let mut exported = Vec::new();
    world.store().export_layer(applied.diff_id, &mut exported).unwrap();
    assert_eq!(exported, plain);
    assert!(world.store().chain_records().unwrap().is_empty(), "nobody has looked yet");
    world.committed("c", "extract");
    world.active("run", "c");
    assert_eq!(world.names_below("run"), ["one", "two"]);
    world.remove_all();
}

#[test]
fn layers_applied_one_upon_another_stack() {
    let world = World::new();
    world.layer("base", "", "a");
    world.active("x", "base");
    world.apply_to("x", incoming(TAR, &tar(&[("b", "1"), ("c", "1")]))).unwrap().unwrap();
    world.apply_to("x", incoming(TAR, &tar(&[(".wh.b", ""), ("d", "1")]))).unwrap().unwrap();
    assert_eq!(world.names_below("x"), ["a", "c", "d"]);
    world.committed("c", "x");
    world.active("run", "c");
    assert_eq!(world.names_below("run"), ["a", "c", "d"]);
    world.remove_all();
}

#[test]
fn known_layer_is_not_read_again() {
    struct Unreadable;
    impl Read for Unreadable {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("it was read"))
        }
    }
    let world = World::new();
    let plain = tar(&[("file", "base")]);
    world.layer("base", "", "file");
    let label = diff_id(&plain).to_string();
    world.prepare("labelled", "", labels(&[("containerd.io/snapshot/diff-id", &label)])).unwrap();
    let applied = world.apply_to("labelled", reading(TAR, &plain, Unreadable)).unwrap().unwrap();
    assert_eq!((applied.diff_id, applied.size), (diff_id(&plain), plain.len() as u64));
    world.active("told", "");
    let mut layer = reading(TAR, &plain, Unreadable);
    layer.diff_id = Some(diff_id(&plain));
    world.apply_to("told", layer).unwrap().unwrap();
    world.active("unknown", "");
    assert_eq!(
        kind(world.apply_to("unknown", reading(TAR, &plain, Unreadable)), "it was read"),
        ErrorKind::Unavailable
    );
    world.remove_all();
}

#[test]
fn bad_layers_are_refused_by_name_and_leave_nothing() {
    let world = World::new();
    let plain = tar(&[("file", "content")]);
    let packed = gzip(&plain);
    let mut other_blob = incoming(TAR, &plain);
    other_blob.blob = Some(mica_layerdb::BlobDigest(mica_layerdb::Digest::of(b"other")));
    let mut other_diff_id = incoming(GZIP, &packed);
    other_diff_id.diff_id = Some(diff_id(b"other"));
    let large: String = "0123456789".repeat(5000);
    let large = tar(&[("large", &large)]);
    let table = [
        ("another blob digest", other_blob, "blob of layer"),
        ("another diff-id", other_diff_id, "diff-id of layer"),
        ("truncated gzip", incoming(GZIP, &packed[..packed.len() - 9]), "is bad"),
        ("truncated tar", incoming(TAR, &large[..3000]), "is bad"),
        ("no gzip", incoming(GZIP, &plain), "is bad"),
        ("upwards", incoming(TAR, &tar(&[("good", "x"), ("a/../../b", "x")])), "a/../../b"),
        ("upwards at once", incoming(TAR, &tar(&[("../b", "x")])), "../b"),
        ("noise", incoming(TAR, &[7; 2000]), "is bad"),
    ];
    for (what, layer, named) in table {
        let mounts = world.prepare("extract", "", labels(&[])).unwrap();
        let refused = world.apply(&mounts, layer);
        let error = refused.as_ref().unwrap_err().to_string();
        assert!(error.contains("sha256:"), "{what}: {error}");
        assert_eq!(kind(refused, named), ErrorKind::InvalidArgument, "{what}");
        assert!(world.store().layers().unwrap().is_empty(), "{what}");
        assert_eq!(files(&world.root().join("tmp")), [""; 0], "{what}");
        // The snapshot is as it was.
        world.apply(&mounts, incoming(TAR, &plain)).unwrap().unwrap();
        world.remove("extract").unwrap();
        world.cleanup().unwrap();
    }
    world.assert_empty();
}

#[test]
fn label_that_names_another_layer_is_a_mismatch() {
    let world = World::new();
    let label = diff_id(b"other").to_string();
    world.prepare("x", "", labels(&[("containerd.io/snapshot/diff-id", &label)])).unwrap();
    let refused = world.apply_to("x", incoming(TAR, &tar(&[("f", "x")])));
    assert_eq!(kind(refused, &label), ErrorKind::InvalidArgument);
    world.remove_all();
}

#[test]
fn apply_to_foreign_mounts_or_of_foreign_types_is_left_to_others() {
    let world = World::new();
    let mounts = world.prepare("x", "", labels(&[])).unwrap();
    let plain = tar(&[("f", "x")]);
    let changed = |change: &dyn Fn(&mut Mount)| {
        let mut mount = mounts[0].clone();
        change(&mut mount);
        vec![mount]
    };
    let foreign: [Vec<Mount>; 6] = [
        vec![],
        [&mounts[..], &mounts[..]].concat(),
        changed(&|mount| mount.kind = "overlay".into()),
        changed(&|mount| mount.target = "/sub".into()),
        changed(&|mount| mount.source = format!("/elsewhere{}", mount.source)),
        changed(&|mount| mount.source = "/tmp/rootfs".into()),
    ];
    for mounts in foreign {
        assert_eq!(world.apply(&mounts, incoming(TAR, &plain)).unwrap(), None, "{mounts:?}");
        assert_eq!(world.diff(&mounts, &mounts, &mut Vec::new()).unwrap(), None);
    }
    for media_type in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "text/plain", ""] {
        assert_eq!(world.apply(&mounts, incoming(media_type, &plain)).unwrap(), None);
    }
    assert_eq!(world.apply(&mounts, incoming(TAR, &plain)).unwrap().unwrap().diff_id, diff_id(&plain));
    world.remove_all();
}

#[test]
fn apply_to_what_is_no_longer_there_is_an_error_since_others_would_fill_a_bare_folder() {
    let world = World::new();
    let plain = tar(&[("f", "x")]);
    let mounts = world.prepare("x", "", labels(&[])).unwrap();
    world.remove("x").unwrap();
    assert_eq!(kind(world.apply(&mounts, incoming(TAR, &plain)), &mounts[0].source), ErrorKind::NotFound);
    let number = world.active("y", "");
    let mounts = world.mounts("y").unwrap();
    world.machine.unmount_by_hand(number);
    assert_eq!(kind(world.apply(&mounts, incoming(TAR, &plain)), "y is not mounted"), ErrorKind::Unavailable);
    world.layer("base", "", "f");
    let mounts = world.view("v", "base", labels(&[])).unwrap();
    assert_eq!(kind(world.apply(&mounts, incoming(TAR, &plain)), "v is view"), ErrorKind::FailedPrecondition);
    world.remove_all();
}

#[test]
fn apply_over_contents_goes_through_the_mount() {
    let world = World::new();
    let plain = tar(&[("f", "x")]);
    let number = world.active("written", "");
    world.write(number, "file", "x");
    assert_eq!(world.apply_to("written", incoming(TAR, &plain)).unwrap(), None);
    let number = world.active("seen", "");
    world.machine.look(number).unwrap();
    assert_eq!(world.apply_to("seen", incoming(TAR, &plain)).unwrap(), None);
    world.remove_all();
}

/// Does something when half of the layer is read.
struct Meanwhile<F>(Cursor<Vec<u8>>, Option<F>);

impl<F: FnOnce()> Read for Meanwhile<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let half = buffer.len().min(self.0.get_ref().len() / 2).max(1);
        let read = self.0.read(&mut buffer[..half])?;
        if let Some(act) = self.1.take() {
            act();
        }
        Ok(read)
    }
}

fn meanwhile(bytes: &[u8], act: impl FnOnce() + Send + 'static) -> mica_snapshotter::Incoming {
    reading(TAR, bytes, Meanwhile(Cursor::new(bytes.to_vec()), Some(act)))
}

#[test]
fn removal_cleanup_and_use_during_an_apply_are_noticed() {
    let world = World::new();
    let plain = tar(&[("f", "x")]);
    world.active("gone", "");
    let snapshots = world.shared();
    let layer = meanwhile(&plain, move || snapshots.remove("gone").unwrap());
    assert_eq!(kind(world.apply_to("gone", layer), "gone"), ErrorKind::NotFound);
    world.assert_empty();

    let number = world.active("used", "");
    let machine = std::sync::Arc::clone(&world.machine);
    let layer = meanwhile(&plain, move || drop(machine.look(number).unwrap()));
    assert_eq!(kind(world.apply_to("used", layer), "used"), ErrorKind::Unavailable);
    world.remove("used").unwrap();
    world.assert_empty();

    world.active("kept", "");
    let snapshots = world.shared();
    let layer = meanwhile(&plain, move || snapshots.cleanup().unwrap());
    world.apply_to("kept", layer).unwrap().unwrap();
    world.cleanup().unwrap();
    assert_eq!(world.names_below("kept"), ["f"]);
    world.remove_all();
}

#[test]
fn diff_of_an_active_snapshot_against_its_parent_is_its_upper() {
    let world = World::new();
    world.layer("base", "", "below");
    let number = world.active("x", "base");
    world.write(number, "new", "content");
    let lower = world.view("lower", "base", labels(&[])).unwrap();
    let mut out = Vec::new();
    world.diff(&lower, &world.mounts("x").unwrap(), &mut out).unwrap().unwrap();
    let mut archive = tar::Archive::new(&out[..]);
    let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [std::path::Path::new("new")]);
    // Also against a pristine active snapshot, and with nothing below.
    let lower = world.prepare("lower2", "base", labels(&[])).unwrap();
    world.diff(&lower, &world.mounts("x").unwrap(), &mut Vec::new()).unwrap().unwrap();
    let upper = world.prepare("free", "", labels(&[])).unwrap();
    world.diff(&[], &upper, &mut Vec::new()).unwrap().unwrap();
    world.remove_all();
}

#[test]
fn diff_of_anything_else_is_left_to_others() {
    let world = World::new();
    world.layer("base", "", "below");
    world.layer("other", "", "below");
    let x = world.prepare("x", "base", labels(&[])).unwrap();
    let other = world.view("o", "other", labels(&[])).unwrap();
    let none = |lower: &[Mount], upper: &[Mount]| {
        let mut out = Vec::new();
        assert_eq!(world.diff(lower, upper, &mut out).unwrap(), None);
        assert!(out.is_empty());
    };
    none(&other, &x);
    none(&[], &x);
    none(&x, &other);
    let applied = world.prepare("applied", "base", labels(&[])).unwrap();
    world.apply(&applied, incoming(TAR, &tar(&[("f", "x")]))).unwrap().unwrap();
    let base = world.view("b", "base", labels(&[])).unwrap();
    let number = super::world::number_of(&applied);
    world.write(number, "more", "x");
    none(&base, &applied);
    none(&applied, &x);
    world.remove_all();
}
