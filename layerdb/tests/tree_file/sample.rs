//! Trees to test with: a declarative list of entries and how it becomes a tree file.

use std::fs::File;
use std::io::Read;
use std::io::Seek;

use mica_layerdb::tree::{Attributes, Body, Builder, FileKind, NodeId, Timestamp, Tree, Written};
use mica_layerdb::{Digest, ObjectId};
use rustix::fs::makedev;

/// An entry by its path; components are bytes.
#[derive(Clone, Debug)]
pub struct Item {
    pub path: Vec<Vec<u8>>,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Inode(Attributes, Body),
    /// A further name of the inode at this path, which stands before it.
    Link(Vec<Vec<u8>>),
    Opaque,
    Whiteout,
}

pub fn split(path: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
    path.as_ref().split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

pub fn attributes(kind: FileKind, permissions: u32) -> Attributes {
    Attributes {
        mode: kind.mode_bits() | permissions,
        uid: 0,
        gid: 0,
        mtime: Timestamp { secs: 1_700_000_000, nanos: 0 },
        rdev: 0,
        xattrs: Vec::new(),
    }
}

pub fn item(path: impl AsRef<[u8]>, attributes: Attributes, body: Body) -> Item {
    Item { path: split(path), what: What::Inode(attributes, body) }
}

pub fn dir(path: impl AsRef<[u8]>) -> Item {
    item(path, attributes(FileKind::Directory, 0o755), Body::None)
}

pub fn file(path: impl AsRef<[u8]>, contents: impl Into<Vec<u8>>) -> Item {
    item(path, attributes(FileKind::Regular, 0o644), Body::Inline(contents.into()))
}

pub fn object(path: impl AsRef<[u8]>, seed: &str, size: u64) -> Item {
    let id = ObjectId(Digest::of(seed.as_bytes()));
    item(path, attributes(FileKind::Regular, 0o644), Body::Object { id, size })
}

/// A file whose object has these contents.
pub fn object_of(path: impl AsRef<[u8]>, contents: &[u8]) -> Item {
    let body = Body::Object { id: ObjectId(Digest::of(contents)), size: contents.len() as u64 };
    item(path, attributes(FileKind::Regular, 0o644), body)
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl Into<Vec<u8>>) -> Item {
    item(path, attributes(FileKind::Symlink, 0o777), Body::Symlink(target.into()))
}

pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { path: split(path), what: What::Link(split(target)) }
}

pub fn with_xattrs(mut item: Item, xattrs: &[(&[u8], &[u8])]) -> Item {
    if let What::Inode(attributes, _) = &mut item.what {
        attributes.xattrs.extend(xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())));
    }
    item
}

pub fn with(mut item: Item, change: impl FnOnce(&mut Attributes)) -> Item {
    if let What::Inode(attributes, _) = &mut item.what {
        change(attributes);
    }
    item
}

/// The node at `path`, if all of it is there.
pub fn find(builder: &Builder, path: &[Vec<u8>]) -> Option<NodeId> {
    path.iter().try_fold(builder.root(), |node, name| builder.child(node, name))
}

/// Puts the items in, in the order given; parents that are missing are implied.
pub fn build(items: &[Item]) -> Builder {
    let mut builder = Builder::new(tempfile::tempfile().unwrap()).unwrap();
    for item in items {
        put(&mut builder, item);
    }
    builder
}

fn put(builder: &mut Builder, item: &Item) {
    let Some((name, parents)) = item.path.split_last() else {
        match &item.what {
            What::Inode(attributes, _) => builder.set_attributes(builder.root(), attributes.clone()).unwrap(),
            What::Opaque => builder.set_opaque(builder.root()).unwrap(),
            What::Link(_) | What::Whiteout => panic!("the root is a directory"),
        }
        return;
    };
    let root = builder.root();
    let dir = parents.iter().fold(root, |dir, name| builder.implied_directory(dir, name).unwrap());
    match &item.what {
        What::Inode(attributes, body) => {
            builder.insert(dir, name, attributes.clone(), body.clone()).unwrap();
        }
        What::Link(target) => {
            let target = find(builder, target).expect("a link stands behind its target");
            builder.link(dir, name, target).unwrap();
        }
        What::Opaque => {
            let node = builder.implied_directory(dir, name).unwrap();
            builder.set_opaque(node).unwrap();
        }
        What::Whiteout => builder.whiteout(dir, name).unwrap(),
    }
}

/// Writes a builder's tree to an unnamed file.
pub fn written(builder: Builder) -> (File, Written) {
    let mut file = tempfile::tempfile().unwrap();
    let written = builder.write(&mut file).unwrap();
    (file, written)
}

pub fn bytes_of(items: &[Item]) -> Vec<u8> {
    let (mut file, written) = written(build(items));
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    assert_eq!(written.digest, Digest::of(&bytes));
    bytes
}

pub fn tree_of(items: &[Item]) -> Tree {
    Tree::from_vec(bytes_of(items), "sample").unwrap()
}

/// A POSIX ACL as the kernel stores it: version 2, then entries of tag, permissions and id.
pub fn acl(named_user: u32) -> Vec<u8> {
    let none = u32::MAX;
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, none), (2, 5, named_user), (4, 5, none), (0x10, 5, none), (0x20, 4, none)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Bytes that differ from place to place.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Every kind of inode, and every way to lay one out.
pub fn everything() -> Vec<Item> {
    let mut items = vec![with(dir("/"), |root| {
        root.mode = 0o40_751;
        root.xattrs = vec![(b"user.root".to_vec(), b"yes".to_vec())];
    })];
    contents(&mut items);
    links_and_devices(&mut items);
    names(&mut items);
    attributes_of_all_sorts(&mut items);
    items
}

fn contents(items: &mut Vec<Item>) {
    items.push(dir("contents"));
    for size in [0, 1, 2, 31, 32, 33, 511, 2048, 3900, 4032, 4064, 4068, 4090, 4093, 4094, 4095, 4096] {
        items.push(file(format!("contents/inline-{size}"), pattern(size)));
        let attributed = file(format!("contents/attributed-{size}"), pattern(size));
        items.push(with_xattrs(attributed, &[(b"user.size", size.to_string().as_bytes())]));
    }
    let sizes = [1, 4097, 8192, 1 << 20, (5 << 30) + 7, 1 << 43, (1 << 43) + 1, (1 << 50) + 12_345];
    for (number, size) in sizes.into_iter().enumerate() {
        items.push(object(format!("contents/object-{number}"), &format!("object {number}"), size));
    }
    items.push(object("contents/same-object", "object 3", 1 << 20));
    items.push(with_xattrs(
        object("contents/attributed-object", "other", 5000),
        &[
            (
                b"security.capability",
                b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            ),
            (b"trusted.overlay.redirect", b"/what/a/user/said"),
            (b"trusted.zebra", b"behind the overlay's own"),
            (b"user.colour", b"red"),
        ],
    ));
}

fn links_and_devices(items: &mut Vec<Item>) {
    items.push(dir("special"));
    for length in [1, 59, 60, 2000, 3968, 4000, 4031, 4032, 4033, 4095] {
        items.push(symlink(format!("special/link-{length}"), vec![b't'; length]));
        let attributed = symlink(format!("special/attributed-link-{length}"), vec![b'u'; length]);
        items.push(with_xattrs(attributed, &[(b"trusted.link", b"l")]));
    }
    items.push(symlink("special/absolute", "/usr/bin/../lib"));
    for (name, kind, major, minor) in [
        ("null", FileKind::CharDevice, 1, 3),
        ("whiteout", FileKind::CharDevice, 0, 0),
        ("largest", FileKind::CharDevice, 4095, 0xf_ffff),
        ("disk", FileKind::BlockDevice, 259, 300),
        ("zero-disk", FileKind::BlockDevice, 0, 0),
    ] {
        let mut node = attributes(kind, 0o600);
        node.rdev = makedev(major, minor);
        items.push(item(format!("special/{name}"), node, Body::None));
    }
    items.push(item("special/pipe", attributes(FileKind::Fifo, 0o622), Body::None));
    items.push(item("special/socket", attributes(FileKind::Socket, 0o755), Body::None));
    items.push(file("special/first-name", "three names"));
    items.push(link("special/second-name", "special/first-name"));
    items.push(link("a-name-that-comes-first", "special/first-name"));
    items.push(link("special/pipe-again", "special/pipe"));
    items.push(link("special/link-again", "special/absolute"));
    items.push(object("special/object", "linked object", 70_000));
    items.push(link("contents/object-again", "special/object"));
}

fn names(items: &mut Vec<Item>) {
    items.push(dir("names"));
    for name in
        [&b"!"[..], b"+", b"-x", b".\x01", b".-", b".a", b"...", b"..a", b"..\xff", b"a", b"~", b"\x80", b"\xff\xfe"]
    {
        items.push(file([b"names/".as_slice(), name].concat(), name));
    }
    items.push(file([b"names/".as_slice(), &[b'n'; 255]].concat(), "long"));
    items.push(dir([b"names/".as_slice(), &[0xee; 255]].concat()));
    items.push(dir("many"));
    for number in 0..5000 {
        items.push(file(format!("many/entry-{:04}", number * 7 % 5000), ""));
    }
    // Directories whose entries end near and at the end of a block: `.` and `..` take 27 bytes, 15 names 255 each.
    for last in [200, 222, 231, 232, 233, 255] {
        items.push(dir(format!("edge-{last}")));
        for number in 0..15 {
            items.push(file(format!("edge-{last}/{number:0>243}"), ""));
        }
        items.push(dir(format!("edge-{last}/{}", "z".repeat(last))));
    }
    items.push(dir("empty"));
    let mut deep = String::new();
    for level in 0..100 {
        deep = format!("{deep}/level-{level}");
        items.push(dir(&deep));
    }
    items.push(file(format!("{deep}/bottom"), "found"));
}

fn attributes_of_all_sorts(items: &mut Vec<Item>) {
    items.push(with(dir("attributes"), |dir| {
        dir.mode = 0o43_777;
        dir.xattrs = vec![
            (b"system.posix_acl_access".to_vec(), acl(7)),
            (b"system.posix_acl_default".to_vec(), acl(1000)),
            (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        ];
    }));
    for (number, (secs, nanos)) in
        [(0, 0), (-1, 999_999_999), (-5_000_000_000, 1), (1 << 33, 500_000_000)].into_iter().enumerate()
    {
        items.push(with(file(format!("attributes/time-{number}"), "t"), |file| file.mtime = Timestamp { secs, nanos }));
    }
    items.push(with(file("attributes/owned", "o"), |file| {
        (file.uid, file.gid, file.mode) = (u32::MAX - 1, 3_000_000_000, 0o104_755);
    }));
    for number in 0..3 {
        let shared = with_xattrs(
            file(format!("attributes/shared-{number}"), "s"),
            &[
                (b"user.shared", b"a value that several inodes have"),
                (b"system.posix_acl_access", &acl(7)),
                (
                    b"security.capability",
                    b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
                ),
                (b"user.number", number.to_string().as_bytes()),
                (b"user.empty", b""),
            ],
        );
        items.push(shared);
    }
    for name in ["large", "large-too"] {
        let large = file(format!("attributes/{name}"), "l");
        let own = format!("user.of-{name}");
        items.push(with_xattrs(large, &[(b"user.large", &pattern(65_535)), (own.as_bytes(), &pattern(9000))]));
    }
    for name in ["hundreds", "hundreds-too"] {
        let many: Vec<_> = (0..300).map(|number| format!("user.{number}").into_bytes()).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_slice(), &name[5..])).collect();
        items.push(with_xattrs(file(format!("attributes/{name}"), pattern(1000)), &many));
    }
    items.push(with_xattrs(dir("attributes/large-directory"), &[(b"trusted.large", &pattern(30_000))]));
    items.push(file("attributes/large-directory/child", "c"));
    items.push(with_xattrs(symlink("attributes/large-link", vec![b'x'; 300]), &[(b"trusted.l", &pattern(5000))]));
}
