//! Every form of archive, one by one.

use super::forge::{Dialect, Forge, Head};
use super::{Scene, same};
use mica_layerdb::tree::{Content, FileKind, Inode, Tree};
use mica_layerdb::{DiffId, Layer};
use std::sync::Arc;

/// Bytes that don't compress and differ by `seed`.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(count)
    .collect()
}

fn tree(scene: &Scene, diff_id: DiffId) -> Arc<Tree> {
    scene.store().layer_tree(diff_id).unwrap()
}

fn find(tree: &Tree, path: &[u8]) -> Option<Inode> {
    let mut inode = tree.inode(tree.root()).unwrap();
    for name in path.split(|byte| *byte == b'/') {
        inode = tree.inode(tree.lookup(&inode, name).unwrap()?.nid).unwrap();
    }
    Some(inode)
}

#[test]
fn file_of_every_size_around_a_limit_returns() {
    let scene = Scene::new();
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000] {
        scene.returns(&Forge::new().file("a", &noise(size as u64, size)).file("b", b"last").end());
    }
}

#[test]
fn every_dialect_returns() {
    let scene = Scene::new();
    for dialect in [Dialect::V7, Dialect::Ustar, Dialect::Gnu, Dialect::Star, Dialect::Sun] {
        let mut forge = Forge::new();
        for (kind, name) in [(b'5', "d/"), (b'0', "d/f"), (0, "d/old"), (0, "e/"), (b'7', "d/c"), (b'6', "d/p")] {
            let head = Head { mode: 0o7755, uid: 1, gid: 2, ..Head::new(kind, name) }.dialect(dialect);
            let file = !matches!(kind, b'5' | b'6') && !name.ends_with('/');
            let bytes: &[u8] = if file { b"some" } else { b"" };
            forge.head(&head, bytes.len() as i64).contents(bytes);
        }
        forge.head(&Head::new(b'2', "d/s").link("f").dialect(dialect), 0);
        forge.head(&Head { device: (1, 3), ..Head::new(b'3', "d/null").dialect(dialect) }, 0);
        forge.head(&Head { device: (8, 1), ..Head::new(b'4', "d/sda").dialect(dialect) }, 0);
        let layer = scene.returns(&forge.end());
        assert_eq!(layer.entries, 9, "{dialect:?}");
    }
}

#[test]
fn numbers_in_base_256_and_owners_beyond_32_bits_return() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    for (at, id) in [0, 1 << 21, 65534, i64::from(u32::MAX) - 1, -2, i64::from(u32::MAX), -1].into_iter().enumerate() {
        forge
            .head(&Head { uid: id, gid: id, mtime: -(1 << 40), ..Head::new(b'0', format!("f{at}")) }, 1)
            .contents(b"x");
    }
    let tar = forge.end();
    let layer = scene.ingest(&tar);
    same(&scene.export(layer.diff_id), &tar);
    let tree = tree(&scene, layer.diff_id);
    let uids: Vec<u32> = (0..7).map(|at| find(&tree, format!("f{at}").as_bytes()).unwrap().uid).collect();
    assert_eq!(uids, [0, 1 << 21, 65534, u32::MAX - 1, u32::MAX - 1, 0, 0]);
}

#[test]
fn times_of_all_ages_return() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    let times = ["0", "-1", "-1.5", "-62135596800.123456789", "253402300800", "9223372036854775807", "1.", "+7.25"];
    for (at, time) in times.into_iter().enumerate() {
        forge.pax(&[("mtime", time.as_bytes()), ("atime", b"1.5"), ("ctime", b"-3")]).file(format!("f{at}"), b"x");
    }
    for (at, time) in [i64::MIN, -1, 0, 1 << 33, i64::MAX].into_iter().enumerate() {
        forge.head(&Head { mtime: time, ..Head::new(b'0', format!("g{at}")).dialect(Dialect::Gnu) }, 0);
    }
    scene.returns(&forge.end());
}

#[test]
fn names_of_255_bytes_and_in_no_encoding_return() {
    let long = vec![b'n'; 255];
    let strange: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut deep = Vec::new();
    while deep.len() + 256 < 4095 {
        deep.extend_from_slice(&[&long[..], b"/"].concat());
    }
    deep.extend_from_slice(b"end");
    deep[0] = b'd';
    let mut forge = Forge::new();
    forge.pax(&[("path", &long)]).file("cut", b"1").gnu_long(b'L', &strange).file("cut", b"2");
    forge.pax(&[("path", &deep)]).file("cut", b"3").gnu_long(b'L', &deep).file("cut", b"4");
    forge.file(&b"\xff\xfe\x80"[..], b"5").file(&b"\xc3("[..], b"6");
    let tar = forge.end();
    let scene = Scene::new();
    let layer = scene.ingest(&tar);
    same(&scene.export(layer.diff_id), &tar);
    let tree = tree(&scene, layer.diff_id);
    assert_eq!(find(&tree, &long).unwrap().size, 1);
    assert_eq!(find(&tree, &strange).unwrap().size, 1);
    assert_eq!(find(&tree, &deep).unwrap().size, 1);
}

/// Linux takes `PATH_MAX` = 4,096 bytes with the NUL for a target, and so does EROFS.
#[test]
fn link_target_of_4096_bytes_with_its_nul_returns_and_a_longer_one_is_refused_by_name() {
    let scene = Scene::new();
    let target = [b"t".repeat(255), vec![b'/']].concat().repeat(16);
    let mut forge = Forge::new();
    forge.pax(&[("linkpath", &target[..4095])]).head(&Head::new(b'2', "pax"), 0);
    forge.gnu_long(b'K', &target[..4095]).head(&Head::new(b'2', "gnu").dialect(Dialect::Gnu), 0);
    scene.returns(&forge.end());
    let tar = Forge::new().pax(&[("linkpath", &target)]).head(&Head::new(b'2', "toolong"), 0).end();
    let refusal = Scene::new().refused(&tar);
    assert!(refusal.contains("toolong") && refusal.contains("4096"), "{refusal}");
}

/// A tree holds values of up to 65,535 bytes; Linux would take one more.
#[test]
fn xattrs_of_up_to_64_kib_return() {
    for (size, kept) in [(0, true), (1, true), (4096, true), (65535, true), (65536, false)] {
        let value = noise(7, size);
        let records: [(&str, &[u8]); 2] =
            [("SCHILY.xattr.user.large", &value), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02")];
        let tar = Forge::new().pax(&records).file("f", b"x").end();
        let scene = Scene::new();
        let layer = scene.ingest(&tar);
        same(&scene.export(layer.diff_id), &tar);
        let tree = tree(&scene, layer.diff_id);
        let held = tree.xattr(&find(&tree, b"f").unwrap(), b"user.large").unwrap();
        assert_eq!(held, kept.then_some(&value[..]), "{size} bytes");
    }
    let tar = Forge::new().pax(&[("SCHILY.xattr.user.large", &noise(7, 65537))]).file("f", b"x").end();
    assert!(Scene::new().refused(&tar).contains("user.large"));
}

#[test]
fn records_that_mean_nothing_here_return() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge.records(b'g', &[(b"comment".to_vec(), b"of all\0of us".to_vec())]);
    forge.pax(&[("uname", b"root"), ("LIBARCHIVE.xattr.x", b"YQ"), ("VENDOR.x", b"\0\xff\n"), ("path", b"")]);
    forge.file("f", b"x");
    forge.records(b'X', &[(b"mtime".to_vec(), b"5".to_vec())]).file("sun", b"y");
    forge.head(&Head::new(b'V', "a volume").dialect(Dialect::Gnu), 0).file("g", b"z");
    scene.returns(&forge.end());
}

#[test]
fn global_records_change_no_entry() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge.records(b'g', &[(b"uid".to_vec(), b"77".to_vec()), (b"path".to_vec(), b"other".to_vec())]).file("f", b"x");
    let layer = scene.ingest(&forge.end());
    assert_eq!(find(&tree(&scene, layer.diff_id), b"f").unwrap().uid, 0);
}

#[test]
fn archive_of_nothing_but_global_records_and_a_label_returns() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge.records(b'g', &[(b"comment".to_vec(), b"x".to_vec())]);
    scene.returns(&forge.bytes);
    scene.returns(&forge.clone().end());
    scene.returns(&forge.head(&Head::new(b'V', "a volume").dialect(Dialect::Gnu), 0).bytes);
}

fn segments() -> Vec<(u64, Vec<u8>)> {
    (0..60_u64).map(|at| (at * 10_000 + at % 3, noise(at, (at * 37 % 2000) as usize))).collect()
}

#[test]
fn sparse_file_of_every_format_returns() {
    let scene = Scene::new();
    let small = vec![(100, noise(1, 600)), (2000, noise(2, 5)), (4000, Vec::new())];
    // What a hole is in the file may be data in the archive.
    let zeros = vec![(0, vec![0; 8192]), (1 << 20, vec![0; 512])];
    for (segments, size) in
        [(segments(), 700_000), (small, 4000), (zeros, 3 << 20), (Vec::new(), 1 << 20), (Vec::new(), 0)]
    {
        scene.returns(&Forge::new().gnu_sparse("f", &segments, size).file("g", b"x").end());
        for format in [0, 1, 10] {
            scene.returns(&Forge::new().pax_sparse(format, "f", &segments, size).file("g", b"x").end());
        }
    }
}

#[test]
fn sparse_file_that_is_replaced_returns() {
    let scene = Scene::new();
    for size in [4000, 700_000] {
        let segments: Vec<_> = segments().into_iter().filter(|(at, bytes)| at + bytes.len() as u64 <= size).collect();
        let mut forge = Forge::new();
        forge.gnu_sparse("f", &segments, size).pax_sparse(10, "f", &segments, size + 1).file("f", b"x");
        scene.returns(&forge.end());
    }
}

#[test]
fn hard_links_around_their_target_and_with_contents_return() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge.head(&Head::new(b'1', "before").link("d/f"), 0).directory("d/").file("d/f", &noise(3, 9000));
    forge.head(&Head::new(b'1', "after").link("./d/f"), 0).head(&Head::new(b'1', "absolute").link("/d/f"), 0);
    forge.head(&Head::new(b'1', "sized").link("d/f"), 9000);
    forge.head(&Head::new(b'1', "full").link("d/f"), 9000).contents(&noise(3, 9000));
    forge.head(&Head::new(b'1', "d/f").link("d/f"), 0);
    let tar = forge.end();
    let layer = scene.ingest(&tar);
    same(&scene.export(layer.diff_id), &tar);
    assert_eq!(find(&tree(&scene, layer.diff_id), b"d/f").unwrap().nlink, 6);
}

#[test]
fn root_by_any_of_its_names_returns() {
    let scene = Scene::new();
    for name in ["/", "./", ".", "", "//", "/./"] {
        let mut forge = Forge::new();
        forge.head(&Head { mode: 0o700, ..Head::new(b'5', name) }, 0).file("f", b"x");
        scene.returns(&forge.end());
    }
    assert!(Scene::new().refused(&Forge::new().file("/f", b"x").end()).contains("absolute"));
}

#[test]
fn contents_that_a_later_entry_replaces_return_after_a_collection_too() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    for at in 0..5 {
        forge.file("large", &noise(at, 10_000)).file("small", &noise(at, 100));
    }
    forge.file("large", &noise(1, 10_000)).directory("d/").file("d/below", &noise(9, 5000)).file("d", b"now a file");
    let tar = forge.end();
    let layer = scene.ingest(&tar);
    assert_eq!(layer.recipe.unwrap().objects, 6);
    scene.store().gc(mica_layerdb::GcOptions::default()).unwrap();
    same(&scene.export(layer.diff_id), &tar);
    let mut objects = Vec::new();
    scene.store().each_layer_object(&layer, |id, bytes| objects.push((id, bytes))).unwrap();
    objects.sort_unstable();
    objects.dedup();
    assert_eq!(objects.len(), 6);
    assert!(
        objects
            .iter()
            .all(|(id, bytes)| scene.store().object(*id).unwrap().unwrap().metadata().unwrap().len() == *bytes)
    );
}

#[test]
fn whiteouts_and_bookkeeping_of_aufs_return() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge
        .directory("d/")
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.full", b"contents of a whiteout");
    forge.directory(".wh..wh.aufs").directory(".wh..wh.plnk/").file(".wh..wh.plnk/17.4", &noise(1, 8000));
    forge.file(".wh..wh.orph/x", &noise(2, 8000));
    forge.head(&Head::new(b'1', "one").link(".wh..wh.plnk/17.4"), 0);
    forge.head(&Head::new(b'1', "two").link(".wh..wh.plnk/17.4"), 0);
    let tar = forge.end();
    let layer = scene.ingest(&tar);
    same(&scene.export(layer.diff_id), &tar);
    let tree = tree(&scene, layer.diff_id);
    let one = find(&tree, b"one").unwrap();
    assert_eq!((one.kind, one.size, one.nlink), (FileKind::Regular, 8000, 2));
    assert!(matches!(tree.content(&one).unwrap(), Content::Object(_)));
    assert!(find(&tree, b".wh..wh.plnk").is_none());
}

#[test]
fn whatever_is_behind_the_end_returns() {
    let scene = Scene::new();
    let body = Forge::new().file("f", b"x").bytes.clone();
    let ends: [&[&[u8]]; 9] = [
        &[],
        &[&[0; 512]],
        &[&[0; 1024]],
        &[&[0; 10240]],
        &[&[0; 1024], &[1]],
        &[&[0; 1024], b"not a tar at all", &vec![0; 100_000], b"!"],
        &[&[0; 1024], &noise(1, 700_000)],
        &[&[0; 1024], &vec![0; 3_000_001]],
        &[&[0; 1024], &body, &[0; 1024]],
    ];
    for end in ends {
        scene.returns(&[&body, &end.concat()[..]].concat());
    }
    for end in [&[][..], &[0; 1024], &[0; 512], &[0; 1025]] {
        scene.returns(end);
    }
}

#[test]
fn padding_of_any_kind_and_none_at_the_end_returns() {
    let scene = Scene::new();
    let mut forge = Forge::new();
    forge.head(&Head::new(b'0', "f"), 100).contents_padded_with(&noise(1, 100), 0xee);
    forge.head(&Head::new(b'0', "g"), 5000).contents_padded_with(&noise(2, 5000), b' ');
    scene.returns(&forge.clone().end());
    let mut cut = forge.file("h", b"short").bytes.clone();
    cut.truncate(cut.len() - 400);
    scene.returns(&cut);
}

#[test]
fn regular_file_whose_name_ends_with_a_slash_returns() {
    let scene = Scene::new();
    let tar = Forge::new().file("f/", b"it has contents").file("d/", b"").file("d/x", b"x").end();
    let layer = scene.ingest(&tar);
    same(&scene.export(layer.diff_id), &tar);
    let tree = tree(&scene, layer.diff_id);
    assert_eq!(find(&tree, b"f").unwrap().kind, FileKind::Regular);
    assert_eq!(find(&tree, b"d").unwrap().kind, FileKind::Directory);
}

#[test]
fn layer_taken_in_twice_and_exported_from_a_store_opened_anew_returns() {
    let mut scene = Scene::new();
    let tar = Forge::new().file("f", &noise(1, 5000)).file("f", &noise(2, 5000)).end();
    let first: Layer = scene.ingest(&tar);
    let second = scene.ingest(&tar);
    assert_eq!(first.recipe, second.recipe);
    scene.reopen();
    same(&scene.export(first.diff_id), &tar);
}
