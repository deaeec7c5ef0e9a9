//! Every limit: what reaches it is taken in, one more is refused by its name, its value, the entry and the offset.

use std::io::Write as _;

use mica_layerdb::Limits;

use super::Scene;
use super::forge::{Forge, Head};

/// Both archives under the same limits: the first is taken in, the second refused with these words.
#[track_caller]
fn at_and_above(limits: Limits, at: &[u8], above: &[u8], words: &[&str]) {
    limits.check().unwrap();
    let scene = Scene::new(limits);
    scene.refuses(above, words);
    scene.ingest(at).unwrap_or_else(|error| panic!("at the limit: {error}"));
}

fn files(count: usize) -> Vec<u8> {
    let mut forge = Forge::new();
    for number in 0..count {
        forge.file(format!("file-{number}"), b"");
    }
    forge.end()
}

fn one(name: &str) -> Vec<u8> {
    Forge::new().file(name, b"x").end()
}

#[test]
fn entries_at_the_limit_and_one_above() {
    let limits = Limits { entries: 10, ..Limits::default() };
    at_and_above(limits, &files(10), &files(11), &["over 10 entries", "limit entries", "\"file-10\"", "offset 5120"]);
}

#[test]
fn folders_that_names_imply_count_as_entries() {
    let limits = Limits { entries: 10, ..Limits::default() };
    // Nine folders and a file; ten folders.
    at_and_above(limits, &one("a/b/c/d/e/f/g/h/i/x"), &one("a/b/c/d/e/f/g/h/i/j/k/x"), &["limit entries", "offset 0"]);
}

#[test]
fn depth_at_the_limit_and_one_above() {
    let limits = Limits { depth: 4, ..Limits::default() };
    at_and_above(limits, &one("a/b/c/d"), &one("a/b/c/d/e"), &["over 4 names deep", "limit depth", "\"a/b/c/d/e\""]);
}

#[test]
fn depth_counts_the_folders_behind_symbolic_links() {
    let limits = Limits { depth: 4, ..Limits::default() };
    let linked = |name: &str| {
        let mut forge = Forge::new();
        forge.directory("a/b/c/").head(&Head::new(b'2', "s").link("a/b"), 0);
        forge.file(name, b"").end()
    };
    at_and_above(limits, &linked("s/c/d"), &linked("s/c/d/e"), &["limit depth", "\"s/c/d/e\""]);
}

#[test]
fn name_at_the_limit_and_one_above() {
    let name = |length: usize| {
        let name = format!("{}/{}", "a".repeat(200), "b".repeat(length - 201));
        Forge::new().pax(&[("path", name.as_bytes())]).file("short", b"").end()
    };
    let limits = Limits { name_bytes: 300, ..Limits::default() };
    at_and_above(limits, &name(300), &name(301), &["301 bytes", "over 300 bytes", "limit name_bytes", "offset 0"]);
}

#[test]
fn component_of_a_name_at_its_255_bytes_and_one_above() {
    let name = |length: usize| Forge::new().gnu_long(b'L', &vec![b'n'; length]).file("short", b"").end();
    at_and_above(Limits::default(), &name(255), &name(256), &["256 bytes", "over 255"]);
}

#[test]
fn link_target_at_the_limit_and_one_above() {
    for kind in [b'2', b'1'] {
        let link = |length: usize| {
            let target =
                format!("{}t", "./".repeat((length - 1) / 2) + if length.is_multiple_of(2) { "/" } else { "" });
            assert_eq!(target.len(), length);
            let mut forge = Forge::new();
            forge.file("t", b"").pax(&[("linkpath", target.as_bytes())]);
            forge.head(&Head::new(kind, "link").link("t"), 0).end()
        };
        let limits = Limits { link_bytes: 50, ..Limits::default() };
        at_and_above(limits, &link(50), &link(51), &["51 bytes", "limit link_bytes", "\"link\"", "offset 512"]);
    }
}

fn with_xattrs(sizes: &[usize]) -> Vec<u8> {
    let mut forge = Forge::new();
    let records: Vec<(Vec<u8>, Vec<u8>)> = sizes
        .iter()
        .enumerate()
        .map(|(number, size)| (format!("SCHILY.xattr.user.{number}").into_bytes(), vec![b'v'; *size]))
        .collect();
    forge.records(b'x', &records).file("f", b"").end()
}

#[test]
fn extended_attributes_at_their_limits_and_one_above() {
    let value = Limits { xattr_value_bytes: 100, ..Limits::default() };
    at_and_above(
        value,
        &with_xattrs(&[100]),
        &with_xattrs(&[101]),
        &["101 bytes", "limit xattr_value_bytes", "user.0"],
    );
    let count = Limits { xattrs: 3, ..Limits::default() };
    at_and_above(count, &with_xattrs(&[1; 3]), &with_xattrs(&[1; 4]), &["over 3", "limit xattrs", "user.3"]);
    // Each name has six bytes.
    let all = Limits { xattr_bytes: 112, ..Limits::default() };
    at_and_above(all, &with_xattrs(&[50, 50]), &with_xattrs(&[50, 51]), &["113 bytes", "limit xattr_bytes", "\"f\""]);
}

#[test]
fn extended_headers_of_one_entry_add_up_to_their_limit() {
    let headers = |comment: usize| {
        let mut forge = Forge::new();
        forge.pax(&[("comment", &vec![b'c'; 500])]).pax(&[("comment", &vec![b'c'; comment])]);
        forge.file("f", b"").end()
    };
    let limits = Limits { extension_bytes: 1026, ..Limits::default() };
    at_and_above(limits, &headers(500), &headers(501), &["514 bytes", "over 1026", "limit extension_bytes"]);
}

#[test]
fn segments_of_every_kind_of_sparse_file_at_the_limit_and_one_above() {
    let limits = Limits { segments: 30, ..Limits::default() };
    let segments = |count: u64| -> Vec<(u64, Vec<u8>)> { (0..count).map(|at| (at * 1024, vec![1; 512])).collect() };
    let gnu = |count| Forge::new().gnu_sparse("s", &segments(count), 1 << 20).end();
    at_and_above(limits.clone(), &gnu(30), &gnu(31), &["over 30", "limit segments"]);
    for format in [0, 1, 2] {
        let pax = |count| Forge::new().pax_sparse(format, "s", &segments(count), 1 << 20).end();
        at_and_above(limits.clone(), &pax(30), &pax(31), &["over 30", "limit segments"]);
    }
}

#[test]
fn memory_for_metadata_has_a_limit() {
    let limits = Limits { metadata_bytes: 10 * (256 + 6), ..Limits::default() };
    let last = ["limit metadata_bytes", "\"file-10\""];
    let mut ten = files(9);
    ten.truncate(9 * 512);
    at_and_above(limits, &files(10), &files(11), &last);
}

#[test]
fn tar_at_the_limit_and_one_above() {
    let tar = one("f");
    let limits = Limits { tar_bytes: tar.len() as u64, ..Limits::default() };
    let above = [&tar[..], &[0]].concat();
    at_and_above(limits, &tar, &above, &["over 2048 bytes of tar", "limit tar_bytes"]);
}

#[test]
fn contents_at_the_limit_and_one_above() {
    let tar = |size: usize| Forge::new().file("a", &[1; 5000]).file("b", &vec![2; size]).end();
    let limits = Limits { content_bytes: 10_000, ..Limits::default() };
    at_and_above(limits, &tar(5000), &tar(5001), &["5001 bytes", "over 10000", "limit content_bytes", "\"b\""]);
}

#[test]
fn holes_at_the_limit_and_one_above() {
    let tar = |size: u64| Forge::new().gnu_sparse("s", &[(0, vec![1; 512])], size).end();
    let limits = Limits { hole_bytes: 10_000, ..Limits::default() };
    at_and_above(limits, &tar(10_512), &tar(10_513), &["over 10000 bytes of holes", "limit hole_bytes", "\"s\""]);
}

#[test]
fn expansion_at_the_limit_and_one_above() {
    let pack = |zeros: usize| {
        let tar = Forge::new().file("zeros", &vec![0; zeros]).end();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let limits = Limits { expansion: 100, expansion_free_bytes: 1 << 20, ..Limits::default() };
    at_and_above(limits, &pack(1 << 19), &pack(8 << 20), &["expand to over", "over 100 times", "limit expansion"]);
}

#[test]
fn zstd_window_at_the_limit_and_one_above() {
    let pack = |log: u32| {
        let tar = Forge::new().file("f", &[7; 3000]).end();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let limits = Limits { zstd_window_log: 18, ..Limits::default() };
    at_and_above(limits, &pack(18), &pack(19), &["zstd stream", "over 262144 bytes", "limit zstd_window_log"]);
}
