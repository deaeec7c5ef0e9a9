//! Archives that nobody would write by hand. What once failed is kept in `proptest-regressions/`.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::forge::{Dialect, Forge, Head};
use super::forms::noise;
use super::{Scene, same};

/// How an entry's name, link and attributes are told.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Plain,
    Pax,
    SunPax,
    Gnu,
}

#[derive(Clone, Debug)]
enum What {
    File { size: usize, padding: u8 },
    Sparse { format: u8, segments: Vec<(u16, u16)>, rest: u16 },
    Directory,
    Symlink { target_bytes: usize },
    HardLink { full: bool },
    Device { block: bool },
    Fifo,
    Whiteout { size: usize },
    Opaque,
    Bookkeeping { size: usize },
    Global,
    Volume,
}

#[derive(Clone, Debug)]
struct Piece {
    what: What,
    /// Which of a few names; entries of one name replace each other.
    name: usize,
    below: bool,
    dialect: Dialect,
    manner: Manner,
    xattr_bytes: Option<usize>,
    time: i64,
    owner: i64,
    seed: u64,
}

#[derive(Clone, Debug)]
struct Archive {
    pieces: Vec<Piece>,
    ends: usize,
    garbage: Vec<(bool, u32)>,
    cut_padding: bool,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => select(vec![0, 1, 511, 512, 513, 4095, 4096, 4097]),
        4 => 0..3000_usize,
        2 => 3000..60_000_usize,
        1 => select(vec![(1 << 20) - 1, 1 << 20, (1 << 20) + 513]),
    ]
}

fn what() -> impl Strategy<Value = What> {
    let segments = prop::collection::vec((0..5000_u16, 0..3000_u16), 0..40);
    prop_oneof![
        8 => (size(), prop_oneof![9 => Just(0), 1 => any::<u8>()]).prop_map(|(size, padding)| What::File { size, padding }),
        4 => (select(vec![0, 1, 10, 99]), segments, 0..9000_u16)
            .prop_map(|(format, segments, rest)| What::Sparse { format, segments, rest }),
        3 => Just(What::Directory),
        2 => select(vec![1, 99, 100, 101, 255, 4095]).prop_map(|target_bytes| What::Symlink { target_bytes }),
        3 => any::<bool>().prop_map(|full| What::HardLink { full }),
        1 => any::<bool>().prop_map(|block| What::Device { block }),
        1 => Just(What::Fifo),
        1 => (0..2000_usize).prop_map(|size| What::Whiteout { size }),
        1 => Just(What::Opaque),
        1 => (0..20_000_usize).prop_map(|size| What::Bookkeeping { size }),
        1 => Just(What::Global),
        1 => Just(What::Volume),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    let dialect = select(vec![Dialect::V7, Dialect::Ustar, Dialect::Gnu, Dialect::Star, Dialect::Sun]);
    let manner = select(vec![Manner::Plain, Manner::Plain, Manner::Pax, Manner::SunPax, Manner::Gnu]);
    let xattr = prop::option::weighted(0.2, select(vec![0_usize, 1, 300, 65535, 65536]));
    let time = select(vec![0, 1_700_000_000, -1, i64::from(i32::MIN), 1 << 34, 1 << 40, i64::MAX]);
    let owner = select(vec![0, 1000, 65534, 1 << 21, 4_294_967_294, -2]);
    (what(), 0..6_usize, any::<bool>(), dialect, manner, xattr, time, owner, 0..4_u64).prop_map(
        |(what, name, below, dialect, manner, xattr_bytes, time, owner, seed)| Piece {
            what,
            name,
            below,
            dialect,
            manner,
            xattr_bytes,
            time,
            owner,
            seed,
        },
    )
}

fn archive() -> impl Strategy<Value = Archive> {
    let garbage = prop::collection::vec((any::<bool>(), 1..200_000_u32), 0..3);
    (prop::collection::vec(piece(), 0..25), 0..5_usize, garbage, any::<bool>())
        .prop_map(|(pieces, ends, garbage, cut_padding)| Archive { pieces, ends, garbage, cut_padding })
}

impl Piece {
    /// Files, links and the rest have names of their own, so that nothing is both a directory and something else, and
    /// no hard link loses its target. Some names are long, some in no encoding.
    fn name(&self, family: &str) -> Vec<u8> {
        let mut name = match self.name {
            0 => vec![b'n'; 255 - family.len()],
            1 => vec![0xff, 0xfe],
            number => number.to_string().into_bytes(),
        };
        name.splice(0..0, family.bytes());
        if self.below { [b"dir/", &name[..]].concat() } else { name }
    }

    fn put(&self, forge: &mut Forge, files: &[Vec<u8>]) {
        let bytes = |size| noise(self.seed, size);
        match &self.what {
            What::File { size, padding } => {
                self.head(forge, b'0', self.name("f"), Vec::new(), *size);
                forge.contents_padded_with(&bytes(*size), *padding);
            }
            What::Sparse { format, segments, rest } => self.sparse(forge, *format, segments, u64::from(*rest)),
            What::Directory => self.head(forge, b'5', [self.name("d"), b"/".to_vec()].concat(), Vec::new(), 0),
            What::Symlink { target_bytes } => {
                self.head(forge, b'2', self.name("s"), vec![b't'; *target_bytes], 0);
            }
            What::HardLink { full } => {
                let Some(target) = files.get(self.name % files.len().max(1)) else { return };
                let size = if *full { 1500 } else { 0 };
                self.head(forge, b'1', self.name("l"), target.clone(), size);
                forge.contents(&bytes(size));
            }
            What::Device { block } => {
                self.head(forge, if *block { b'4' } else { b'3' }, self.name("c"), Vec::new(), 0);
            }
            What::Fifo => self.head(forge, b'6', self.name("p"), Vec::new(), 0),
            What::Whiteout { size } => {
                self.head(forge, b'0', b".wh.gone".to_vec(), Vec::new(), *size);
                forge.contents(&bytes(*size));
            }
            What::Opaque => self.head(forge, b'0', b"dir/.wh..wh..opq".to_vec(), Vec::new(), 0),
            What::Bookkeeping { size } => {
                self.head(forge, b'0', b".wh..wh.orph/x".to_vec(), Vec::new(), *size);
                forge.contents(&bytes(*size));
            }
            What::Global => {
                forge.records(b'g', &[(b"comment".to_vec(), bytes(50))]);
            }
            What::Volume => {
                forge.head(&Head::new(b'V', "volume").dialect(Dialect::Gnu), 0);
            }
        }
    }

    /// A header with what is told before it.
    fn head(&self, forge: &mut Forge, kind: u8, name: Vec<u8>, link: Vec<u8>, size: usize) {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if let Some(bytes) = self.xattr_bytes {
            records.push((b"SCHILY.xattr.user.x".to_vec(), noise(self.seed, bytes)));
        }
        let long = name.len() > 100 || link.len() > 100;
        match self.manner {
            Manner::Gnu => {
                forge.gnu_long(b'L', &name);
                if !link.is_empty() {
                    forge.gnu_long(b'K', &link);
                }
            }
            Manner::Plain if !long => {}
            _ => {
                records.extend([(b"path".to_vec(), name.clone()), (b"mtime".to_vec(), b"-5.000000001".to_vec())]);
                if !link.is_empty() {
                    records.push((b"linkpath".to_vec(), link.clone()));
                }
            }
        }
        if !records.is_empty() {
            forge.records(if matches!(self.manner, Manner::SunPax) { b'X' } else { b'x' }, &records);
        }
        let head = Head {
            uid: self.owner,
            gid: self.owner,
            mtime: self.time,
            device: (1, 3),
            ..Head::new(kind, name).link(link).dialect(self.dialect)
        };
        forge.head(&head, size as i64);
    }

    fn sparse(&self, forge: &mut Forge, format: u8, parts: &[(u16, u16)], rest: u64) {
        let mut at = 0;
        let mut segments = Vec::new();
        for (number, (hole, bytes)) in parts.iter().enumerate() {
            at += u64::from(*hole);
            segments.push((at, noise(self.seed + number as u64, usize::from(*bytes))));
            at += u64::from(*bytes);
        }
        let name = if self.below { format!("dir/f{}", self.name) } else { format!("f{}", self.name) };
        match format {
            99 => forge.gnu_sparse(&name, &segments, at + rest),
            format => forge.pax_sparse(format, &name, &segments, at + rest),
        };
    }
}

impl Archive {
    fn forge(&self) -> Vec<u8> {
        let files: Vec<Vec<u8>> = self
            .pieces
            .iter()
            .filter(|piece| matches!(piece.what, What::File { .. }))
            .map(|piece| piece.name("f"))
            .collect();
        let mut forge = Forge::new();
        for piece in &self.pieces {
            piece.put(&mut forge, &files);
        }
        let mut bytes = forge.bytes;
        if self.ends == 0 && self.cut_padding {
            // The last padding may be missing.
            if let Some(Piece { what: What::File { size, padding: 0 }, .. }) = self.pieces.last() {
                bytes.truncate(bytes.len() - (size.next_multiple_of(512) - size));
            }
            return bytes;
        }
        bytes.resize(bytes.len() + 512 * self.ends, 0);
        if self.ends >= 2 {
            for (zeros, count) in &self.garbage {
                bytes.extend(if *zeros { vec![0; *count as usize] } else { noise(7, *count as usize) });
            }
        }
        bytes
    }
}

/// Every archive comes back: at once, after a collection, and from the store opened anew.
#[test]
fn generated_archives_return() {
    let mut scene = Scene::new();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(128);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(cases)
    });
    let tars = Arc::new(std::sync::Mutex::new(Vec::new()));
    let result = runner.run(&archive(), |archive| {
        let tar = archive.forge();
        let layer = scene.ingest(&tar);
        same(&scene.export(layer.diff_id), &tar);
        tars.lock().unwrap().push((layer.diff_id, tar));
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    scene.store().gc(mica_layerdb::GcOptions::default()).unwrap();
    scene.reopen();
    for (diff_id, tar) in tars.lock().unwrap().iter() {
        same(&scene.export(*diff_id), tar);
    }
    scene.unpin();
    let report = scene.store().gc(mica_layerdb::GcOptions::default()).unwrap();
    let layers: std::collections::HashSet<_> = tars.lock().unwrap().iter().map(|(diff_id, _)| *diff_id).collect();
    assert_eq!(report.recipes.count, layers.len() as u64);
    assert_eq!(std::fs::read_dir(scene.directory.path().join("layers/sha256")).unwrap().count(), 0);
}
