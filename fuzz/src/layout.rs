//! Images are imported. The input is a text of parts, from which a folder or an archive is made whose digests are right:
//!
//! ```text
//! KIND part { "\n--\n" part }
//! ```
//!
//! `KIND` is `d` (an OCI layout in a folder), `o` (the same in a tar), `k` (from `docker save`), `g` (the last one, packed
//! with gzip) or `r` (the rest is a file as it is). The first part is `index.json` or `manifest.json`. The others are
//! blobs; in a part, `@1` to `@9` stand for the digest of a blob behind it and `#1` to `#9` for its length.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use mica_layerdb::{Digest, Error, ImportSource, Kind};

use super::tar::{check, world};

/// Parts that are read.
const PARTS: usize = 10;

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let mut world = world();
    let place = Place(world.directory().join("image"));
    let source = match kind {
        b'd' => place.folder(&parts(rest)),
        b'o' => place.file(&archive("index.json", &parts(rest))),
        b'k' => place.file(&archive("manifest.json", &parts(rest))),
        b'g' => place.file(&gzip(&archive("manifest.json", &parts(rest)))),
        _ => place.file(rest),
    };
    let source = if *kind == b'k' { ImportSource::DockerTar(source) } else { ImportSource::Detect(source) };
    match world.store.import(&source, None, &()) {
        Ok(images) => {
            for image in images {
                world.store.image_manifest(&image).expect("the manifest of an image that was imported");
                world.store.image_config(&image).expect("the configuration of an image that was imported");
                for diff_id in &image.layers {
                    let layer = world.store.layer(*diff_id).expect("its row").expect("a layer of an image");
                    check(&world, &layer);
                }
                world.store.remove_image(&image.name).expect("an image that was imported has a name");
            }
            world.grown();
        }
        // What the operating system says of a file of the image is no fault of Mica's: a link in a circle, say.
        Err(Error::Io { .. }) => {}
        Err(error) => {
            assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
            assert!(error.to_string().len() < 16 << 10, "an error of {} bytes", error.to_string().len());
        }
    }
    drop(place);
    world.require_no_leftovers();
}

/// Where the image is put; removed afterwards.
struct Place(PathBuf);

impl Place {
    fn file(&self, bytes: &[u8]) -> PathBuf {
        fs::write(&self.0, bytes).expect("a file");
        self.0.clone()
    }

    fn folder(&self, parts: &[Vec<u8>]) -> PathBuf {
        let blobs = self.0.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a folder");
        for (at, part) in parts.iter().enumerate() {
            let path = if at == 0 { self.0.join("index.json") } else { blobs.join(Digest::of(part).hex()) };
            fs::write(path, part).expect("a file");
        }
        self.0.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One of them is there.
        drop(fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0)));
    }
}

/// The parts, with the digests and lengths of those behind them.
fn parts(mut text: &[u8]) -> Vec<Vec<u8>> {
    const BETWEEN: &[u8] = b"\n--\n";
    let mut parts: Vec<Vec<u8>> = Vec::new();
    while let Some(end) = text.windows(BETWEEN.len()).position(|window| window == BETWEEN) {
        if parts.len() + 1 == PARTS {
            break;
        }
        parts.push(text[..end].to_vec());
        text = &text[end + BETWEEN.len()..];
    }
    parts.push(text.to_vec());
    for at in (0..parts.len()).rev() {
        let done = parts[at + 1..].to_vec();
        parts[at] = filled(&parts[at], at + 1, &done);
    }
    parts
}

fn filled(part: &[u8], first: usize, behind: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(part.len() + 256);
    let mut at = 0;
    while at < part.len() {
        let blob = part.get(at + 1).filter(|digit| digit.is_ascii_digit()).map(|digit| usize::from(digit - b'0'));
        let blob = blob.and_then(|number| behind.get(number.checked_sub(first)?));
        match (part[at], blob) {
            (b'@', Some(blob)) => out.extend_from_slice(Digest::of(blob).to_string().as_bytes()),
            (b'#', Some(blob)) => out.extend_from_slice(blob.len().to_string().as_bytes()),
            (b'%', Some(blob)) => out.extend_from_slice(Digest::of(blob).hex().as_bytes()),
            (other, _) => {
                out.push(other);
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    out
}

/// A tar of the parts, the first by `name`.
pub fn archive(name: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let name = if at == 0 { name.to_owned() } else { format!("blobs/sha256/{}", Digest::of(part).hex()) };
        tar.extend_from_slice(&header(Path::new(&name), part.len()));
        tar.extend_from_slice(part);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn header(name: &Path, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let name = name.as_os_str().as_encoded_bytes();
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    super::tar_mutator::seal(&mut block);
    block
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}
