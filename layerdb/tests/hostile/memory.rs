//! What the worst layers make a process take: each in a child of its own, whose largest size is read from the kernel.

use std::io::{Read, Write as _};
use std::process::Command;

use mica_layerdb::{IngestOptions, Limits};

use super::Scene;
use super::forge::{Forge, Head};

const CASE: &str = "MICA_HOSTILE_CASE";
const MIB: u64 = 1 << 20;

/// Runs a case in a child and returns the child's largest size in bytes.
fn peak(case: &str) -> u64 {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{case}: {output}{}", String::from_utf8_lossy(&child.stderr));
    let line = output.lines().find_map(|line| line.split("peak ").nth(1)).unwrap_or_else(|| panic!("{case}: {output}"));
    let bytes: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("{case}: {} MiB at most", bytes / MIB);
    bytes
}

/// Not a test by itself: what the children of the tests below do.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let expected = match case.as_str() {
        "nothing" => None,
        "gzip-bomb" => Some(refused(&gzip_of_zeros(1 << 30), expansion())),
        "zstd-bomb" => Some(refused(&zstd_of_zeros(1 << 30), expansion())),
        "sparse" => {
            Some(refused(&Forge::new().pax_sparse(2, "s", &[(0, vec![1; 512])], 1 << 62).end(), Limits::default()))
        }
        "segments" => Some(refused(&segments(), Limits::default())),
        "pax" => Some(refused(&chained_records(), Limits::default())),
        "implied" => Some(refused(&implied(), Limits { metadata_bytes: 64 << 20, ..Limits::default() })),
        "entries" => Some(refused(&entries(), Limits { metadata_bytes: 64 << 20, ..Limits::default() })),
        other => panic!("no case {other}"),
    };
    if let Some(error) = expected {
        println!("{error}");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak {} bytes", kib << 10);
}

fn refused(layer: &[u8], limits: Limits) -> String {
    let scene = Scene::new(limits);
    let options = IngestOptions { name: case_name(), ..IngestOptions::default() };
    scene.store.ingest(&mut &*layer, &options, &()).unwrap_err().to_string()
}

/// The default's ratio, with less that is free.
fn expansion() -> Limits {
    Limits { expansion_free_bytes: 512 << 20, ..Limits::default() }
}

fn case_name() -> String {
    std::env::var(CASE).unwrap()
}

/// A tar whose one file is made of zeros: a header, and as much as there is of it.
fn file_of_zeros(bytes: u64) -> impl Read {
    let mut head = Forge::new();
    head.head(&Head::new(b'0', "zeros"), bytes as i64);
    std::io::Cursor::new(head.bytes).chain(std::io::repeat(0).take(bytes))
}

/// Gzip of zeros by repeating one member: the compressor doesn't have to see gigabytes.
fn gzip_of_zeros(bytes: u64) -> Vec<u8> {
    let pack = |bytes: &mut dyn Read| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::copy(bytes, &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let piece = 64 << 20;
    let mut packed = pack(&mut file_of_zeros(bytes).take(512));
    let zeros = pack(&mut std::io::repeat(0).take(piece));
    for _ in 0..bytes / piece {
        packed.extend_from_slice(&zeros);
    }
    packed
}

fn zstd_of_zeros(bytes: u64) -> Vec<u8> {
    let piece = 256 << 20;
    let mut packed = zstd::stream::encode_all(file_of_zeros(bytes).take(512), 1).unwrap();
    let zeros = zstd::stream::encode_all(std::io::repeat(0).take(piece), 1).unwrap();
    for _ in 0..bytes / piece {
        packed.extend_from_slice(&zeros);
    }
    packed
}

/// More parts of a sparse file than are allowed, of no bytes each.
fn segments() -> Vec<u8> {
    let mut forge = Forge::new();
    forge.gnu_sparse("s", &vec![(0, Vec::new()); (1 << 20) + 1], 1 << 30);
    forge.end()
}

/// Extended headers without end before one entry.
fn chained_records() -> Vec<u8> {
    let mut forge = Forge::new();
    for number in 0..100 {
        let key = format!("SCHILY.xattr.user.{number}");
        forge.pax(&[(&key, &vec![b'v'; 60_000])]);
    }
    forge.file("f", b"").end()
}

/// Two thousand folders with each name.
fn implied() -> Vec<u8> {
    let mut forge = Forge::new();
    for number in 0..300 {
        let name = format!("{number}/{}", "d/".repeat(1000));
        forge.gnu_long(b'L', name.as_bytes()).head(&Head::new(b'5', "d"), 0);
    }
    forge.end()
}

fn entries() -> Vec<u8> {
    let mut forge = Forge::new();
    for number in 0..400_000 {
        forge.head(&Head::new(b'0', format!("{number}")), 0);
    }
    let tar = forge.end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_take_no_more_memory_than_an_ordinary_layer() {
    let idle = peak("nothing");
    for case in ["gzip-bomb", "zstd-bomb", "sparse", "pax"] {
        let bytes = peak(case);
        assert!(bytes < idle + 64 * MIB, "{case}: {} MiB", bytes / MIB);
    }
}

#[test]
fn metadata_takes_no_more_memory_than_its_limit() {
    // Each with a limit of 64 MiB, and the archive itself in memory.
    for (case, most) in [("segments", 128), ("implied", 192), ("entries", 384)] {
        let bytes = peak(case);
        assert!(bytes < most * MIB, "{case}: {} MiB", bytes / MIB);
    }
}
