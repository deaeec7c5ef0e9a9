//! Names that lead out of the image, numbers that are too large, and archives that cost more than they seem to.

use std::time::Instant;

use mica_layerdb::Limits;
use mica_layerdb::tree::{FileKind, Inode, Tree};

use super::Scene;
use super::forge::{Forge, Head};

fn find(tree: &Tree, path: &str) -> Option<Inode> {
    let mut inode = tree.inode(tree.root()).unwrap();
    for name in path.split('/') {
        inode = tree.inode(tree.lookup(&inode, name.as_bytes()).unwrap()?.nid).unwrap();
    }
    Some(inode)
}

#[test]
fn names_that_lead_out_are_refused_wherever_they_stand() {
    let scene = Scene::new(Limits::default());
    for name in ["/etc/passwd", "../x", "a/../../x", "a/..", "..", "./../x", "a/./../../x"] {
        scene.refuses(&Forge::new().file(name, b"x").end(), &[name, "offset 0"]);
        scene.refuses(&Forge::new().gnu_long(b'L', name.as_bytes()).file("good", b"x").end(), &[name]);
        scene.refuses(&Forge::new().pax(&[("path", name.as_bytes())]).file("good", b"x").end(), &[name]);
        let sparse = Forge::new().pax_sparse(2, name, &[(0, vec![1; 512])], 512).end();
        scene.refuses(&sparse, &[name]);
    }
    for hidden in [".wh...", ".wh..", ".wh."] {
        scene.refuses(&Forge::new().file(hidden, b"").end(), &["whiteout of no name"]);
    }
}

#[test]
fn name_with_nul_in_an_extended_header_is_refused() {
    let scene = Scene::new(Limits::default());
    scene.refuses(&Forge::new().pax(&[("path", b"a\0b")]).file("good", b"x").end(), &["PAX record"]);
    let error = scene.ingest(&Forge::new().head(&Head::new(b'2', "s").link(""), 0).end()).unwrap_err();
    assert!(error.to_string().contains("\"s\""), "{error}");
}

#[test]
fn links_out_of_the_image_stay_in_it() {
    let scene = Scene::new(Limits::default());
    let outside = scene.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for (number, target) in ["/", "..", "../../../../../../..", &outside.display().to_string()].into_iter().enumerate()
    {
        let mut forge = Forge::new();
        forge.head(&Head::new(b'2', format!("s{number}")).link(target), 0);
        forge.file(format!("s{number}/escaped{number}"), b"x");
        forge.head(&Head::new(b'1', format!("hard{number}")).link(format!("s{number}/escaped{number}")), 0);
        let layer = scene.ingest(&forge.end()).unwrap();
        let tree = scene.store.layer_tree(layer.diff_id).unwrap();
        assert_eq!(find(&tree, &format!("hard{number}")).unwrap().nlink, 2, "{target}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(scene.path()).unwrap().count(), 2, "the store and what was outside");
    assert!(!std::path::Path::new("/escaped0").exists());
}

#[test]
fn hard_links_out_of_the_image_are_refused() {
    let scene = Scene::new(Limits::default());
    let root = scene.store.root().join("FORMAT");
    for target in ["../../etc/passwd", "/etc/passwd", "/dev/null", "/proc/self/exe", &root.display().to_string()] {
        let tar = Forge::new().head(&Head::new(b'1', "link").link(target), 0).end();
        scene.refuses(&tar, &["\"link\"", target]);
    }
    let mut forge = Forge::new();
    forge.head(&Head::new(b'2', "s").link("/etc"), 0).head(&Head::new(b'1', "link").link("s/passwd"), 0);
    scene.refuses(&forge.end(), &["s/passwd", "doesn't have"]);
}

#[test]
fn devices_are_only_written_down() {
    let scene = Scene::new(Limits::default());
    let mut forge = Forge::new();
    forge.head(&Head { device: (1, 3), ..Head::new(b'3', "null") }, 0);
    forge.head(&Head { device: (8, 0), ..Head::new(b'4', "disk") }, 0);
    forge.head(&Head { device: (0, 0), ..Head::new(b'3', "gone") }, 0);
    let layer = scene.ingest(&forge.end()).unwrap();
    let tree = scene.store.layer_tree(layer.diff_id).unwrap();
    assert_eq!(find(&tree, "disk").unwrap().kind, FileKind::BlockDevice);
    assert!(find(&tree, "gone").unwrap().is_whiteout());
    // A file below a device would be written into it.
    let mut below = Forge::new();
    below.head(&Head { device: (1, 3), ..Head::new(b'3', "null") }, 0).file("null/x", b"x");
    let error = scene.ingest(&below.end()).unwrap_err().to_string();
    assert!(error.contains("not a directory"), "{error}");
    let huge = Forge::new().pax(&[("SCHILY.devmajor", b"4294967296")]).head(&Head::new(b'3', "d"), 0).end();
    assert!(scene.ingest(&huge).unwrap_err().to_string().contains("out of range"));
}

#[test]
fn numbers_beyond_their_fields_are_refused() {
    let scene = Scene::new(Limits::default());
    for size in [-1, i64::MIN, i64::MAX, 1 << 62] {
        let tar = Forge::new().head(&Head::new(b'0', "f"), size).end();
        scene.refuses(&tar, &["\"f\"", "offset 0"]);
    }
    for size in ["18446744073709551615", "-1", "9223372036854775807"] {
        scene.refuses(&Forge::new().pax(&[("size", size.as_bytes())]).file("f", b"").end(), &["offset 0"]);
    }
}

#[test]
fn sparse_files_of_8_eib_are_refused_before_anything_is_written() {
    let scene = Scene::new(Limits::default());
    let end = i64::MAX as u64;
    for format in [0, 1, 2] {
        let tar = Forge::new().pax_sparse(format, "s", &[(end - 512, vec![1; 512])], end).end();
        scene.refuses(&tar, &["limit content_bytes", "\"s\""]);
    }
    let tar = Forge::new().pax_sparse(2, "s", &[(0, vec![1; 512])], 65 << 30).end();
    let error = scene.ingest(&tar).unwrap_err().to_string();
    assert!(error.contains("limit hole_bytes"), "{error}");
}

/// A chain of links that each name the next one: looked through once a link it would take days.
#[test]
fn hard_links_in_reverse_order_take_no_more_than_linear_time() {
    let scene = Scene::new(Limits::default());
    let count = 60_000;
    let mut forge = Forge::new();
    for number in 0..count {
        forge.head(&Head::new(b'1', format!("d/{number}")).link(format!("d/{}", number + 1)), 0);
    }
    forge.file(format!("d/{count}"), b"x");
    let start = Instant::now();
    let layer = scene.ingest(&forge.end()).unwrap();
    eprintln!("{count} links in reverse order: {:?}", start.elapsed());
    let tree = scene.store.layer_tree(layer.diff_id).unwrap();
    assert_eq!(find(&tree, "d/0").unwrap().nlink, count + 1);
    let mut circle = Forge::new();
    circle.head(&Head::new(b'1', "a").link("b"), 0).head(&Head::new(b'1', "b").link("a"), 0);
    let error = scene.ingest(&circle.end()).unwrap_err().to_string();
    assert!(error.contains("\"a\"") && error.contains("doesn't have"), "{error}");
}

#[test]
fn symbolic_links_in_a_circle_are_refused() {
    let scene = Scene::new(Limits::default());
    let mut forge = Forge::new();
    forge.head(&Head::new(b'2', "a").link("b"), 0).head(&Head::new(b'2', "b").link("a"), 0).file("a/x", b"");
    scene.refuses(&forge.end(), &["loop of symbolic links", "\"a/x\""]);
}

/// Found by the fuzzer `tar`: the message held all of a malformed record.
#[test]
fn message_about_a_malformed_layer_is_short() {
    let scene = Scene::new(Limits::default());
    for (key, value) in [("uid", "x".repeat(60_000)), (&*"k".repeat(60_000), "\u{7}".repeat(9))] {
        let key = if key.starts_with('k') { format!("GNU.sparse.size{key}") } else { key.to_owned() };
        let tar = Forge::new().pax(&[(&key, value.as_bytes())]).file("f", b"").end();
        if let Err(error) = scene.ingest(&tar) {
            assert!(error.to_string().len() < 4096, "{} bytes", error.to_string().len());
        }
    }
    let name = "n".repeat(60_000);
    let xattr = Forge::new().pax(&[(&format!("SCHILY.xattr.user.{name}"), b"v")]).file("f", b"").end();
    let error = scene.ingest(&xattr).unwrap_err().to_string();
    assert!(error.len() < 4096, "{} bytes", error.len());
}
