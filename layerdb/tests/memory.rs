//! One ingest takes at most 64 MiB, RocksDB included, however large a file is; of very many files, what their names and
//! attributes take on top.
//!
//! Peak memory belongs to a process, so each ingest has one of its own: the test starts this program again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Read};
use std::process::Command;

use mica_layerdb::{Compression, IngestOptions, Limits, Store};

const MIB: u64 = 1 << 20;
const PEAK_BYTES: u64 = 64 * MIB;
/// Of an entry with an ordinary name.
const ENTRY_BYTES: u64 = 288;
/// What the child is to ingest: `sparse` or `dense` and MiB, or `entries` and how many.
const ORDER: &str = "MICA_TEST_MEMORY";

#[test]
fn ingest_of_a_large_sparse_entry_stays_within_64_mib() {
    stays_within("sparse", 512, PEAK_BYTES);
}

#[test]
fn ingest_of_a_large_dense_entry_stays_within_64_mib() {
    stays_within("dense", 256, PEAK_BYTES);
}

#[test]
#[ignore = "hashes and writes gigabytes: half a minute"]
fn ingest_of_8_gib_sparse_and_2_gib_dense_stays_within_64_mib() {
    stays_within("sparse", 8192, PEAK_BYTES);
    stays_within("dense", 2048, PEAK_BYTES);
}

#[test]
fn ingest_of_many_entries_takes_memory_for_their_names_and_attributes_alone() {
    stays_within("entries", 200_000, PEAK_BYTES + 200_000 * ENTRY_BYTES);
}

#[test]
#[ignore = "hashes gigabytes, and takes more than one: half a minute"]
fn ingest_of_4_million_entries_takes_memory_for_their_names_and_attributes_alone() {
    stays_within("entries", 4_000_000, PEAK_BYTES + 4_000_000 * ENTRY_BYTES);
}

fn stays_within(kind: &str, amount: u64, most: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture"]).env(ORDER, format!("{kind} {amount}"));
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak = text.lines().find_map(|line| line.split_once("peak ")?.1.parse::<u64>().ok()).expect("the child tells");
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{kind}, {amount}: {} KiB at most\n", peak / 1024));
    assert!(peak <= most, "{kind}, {amount}: {peak} bytes");
}

#[test]
#[ignore = "the other tests start it, in a process of its own"]
fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (kind, amount) = order.split_once(' ').unwrap();
    let amount = amount.parse::<u64>().unwrap();
    let bytes = amount.saturating_mul(MIB);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (mut input, compression): (Box<dyn Read + Send>, _) = match kind {
        "sparse" => (Box::new(sparse(bytes)), Compression::None),
        "entries" => (Box::new(entries(amount)), Compression::None),
        _ => (Box::new(dense(bytes)), Compression::Gzip),
    };
    // Of which the default is a little less than four million of these entries take.
    let limits = Some(Limits { metadata_bytes: 2 << 30, ..Limits::default() });
    let options = IngestOptions { compression, name: kind.into(), limits, ..IngestOptions::default() };
    let layer = store.ingest(&mut input, &options, &()).unwrap();
    let expected = if kind == "entries" { (amount, 0) } else { (1, bytes) };
    assert_eq!((layer.entries, layer.content_bytes), expected);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    let _ = io::Write::write_fmt(&mut io::stdout(), format_args!("\npeak {}\n", kib * 1024));
}

/// A tar of one GNU sparse file: a hole, and a block of data at its end.
fn sparse(bytes: u64) -> impl Read + Send {
    let mut header = header(b'S', 512);
    header[386..398].copy_from_slice(&number(bytes - 512));
    header[398..410].copy_from_slice(&number(512));
    header[483..495].copy_from_slice(&number(bytes));
    seal(&mut header);
    io::Cursor::new([&header[..], &[7; 512], &[0; 1024]].concat())
}

/// A tar of so many empty files, a thousand in each folder.
fn entries(count: u64) -> impl Read + Send {
    let heads = (0..count).map(|number| {
        let mut header = header(b'0', 0);
        let name = format!("folder-{:05}/file-{number:07}", number / 1000);
        header[..name.len()].copy_from_slice(name.as_bytes());
        seal(&mut header);
        header.to_vec()
    });
    Members { members: heads.chain(std::iter::once(vec![0; 1024])), now: io::Cursor::default() }
}

/// A gzipped tar of one file without holes. Its contents are one gzip member again and again.
fn dense(bytes: u64) -> impl Read + Send {
    let mut header = header(b'0', bytes);
    seal(&mut header);
    let pattern: Vec<u8> = (0..MIB as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 27) as u8).collect();
    let member = gzip(&pattern);
    let contents = (0..bytes / MIB).map(move |_| member.clone());
    let members = std::iter::once(gzip(&header)).chain(contents).chain(std::iter::once(gzip(&[0; 1024])));
    Members { members, now: io::Cursor::default() }
}

struct Members<I> {
    members: I,
    now: io::Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = Vec<u8>>> Read for Members<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.now.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(member) = self.members.next() else { return Ok(0) };
            self.now = io::Cursor::new(member);
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn header(kind: u8, stored: u64) -> [u8; 512] {
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"file");
    for field in [100, 108, 116] {
        header[field..field + 7].copy_from_slice(b"0000644");
    }
    header[124..136].copy_from_slice(&number(stored));
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    header
}

/// A number in base 256.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&value.to_be_bytes());
    field
}

fn seal(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
