//! Changes to a tar that know what a tar is: headers keep their checksums, PAX records their lengths.

const BLOCK: usize = 512;

/// Keys that the reader knows, and some that it doesn't.
const KEYS: [&str; 24] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "atime",
    "SCHILY.devmajor",
    "SCHILY.devminor",
    "SCHILY.realsize",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.system.posix_acl_access",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "GNU.sparse.numblocks",
    "GNU.sparse.map",
    "comment",
];

const VALUES: [&str; 34] = [
    "",
    "0",
    "1",
    "512",
    "511",
    "513",
    "4096",
    "4097",
    "1048577",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-1",
    "-9223372036854775807",
    "-0.5",
    "1.999999999999",
    "0,0",
    "0,1,1,1",
    "0,512,4096,0",
    "1,9223372036854775806",
    "a",
    "a/b",
    "./a/",
    "/etc/passwd",
    "../x",
    "a/../b",
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh..wh.aufs",
    ".wh.",
    "s",
    "s/a",
    "..",
];

const NUMBERS: [&[u8]; 14] = [
    b"00000000000\0",
    b"00000000001\0",
    b"00000001000\0",
    b"00000000777\0",
    b"00000010000\0",
    b"77777777777\0",
    b"777777777777",
    b"           \0",
    b"\0\0\0\0\0\0\0\0\0\0\0\0",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\0\0\0\0\0\0\x02\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"-0000000001\0",
    b"00000000008\0",
];

const KINDS: &[u8] = b"\x0001234567xgLKSXVDNM0125xxx";

/// Fields of a header: mode, uid, gid, size, mtime, devmajor, devminor; of GNU's sparse files: four segments and the size.
const FIELDS: [(usize, usize); 16] = [
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (329, 8),
    (337, 8),
    (386, 12),
    (398, 12),
    (410, 12),
    (422, 12),
    (434, 12),
    (446, 12),
    (482, 1),
    (483, 12),
    (257, 8),
];

/// As libFuzzer's own, which `plain` is: changes `data[..size]` and returns the new length, up to `max`.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max: usize,
    seed: u32,
    plain: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut random = Random(u64::from(seed) + 1);
    let size = if random.below(4) == 0 {
        plain(data, size, max)
    } else {
        let mut tar = Tar::read(&data[..size]);
        for _ in 0..=random.below(3) {
            tar.change(&mut random, plain);
        }
        let bytes = tar.write();
        let size = bytes.len().min(max);
        data[..size].copy_from_slice(&bytes[..size]);
        size
    };
    // One in sixteen keeps what is wrong with its headers.
    if random.below(16) > 0 {
        seal_all(&mut data[..size]);
    }
    size
}

/// Puts the checksum into a header.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn seal_all(bytes: &mut [u8]) {
    let mut at = 0;
    while at + BLOCK <= bytes.len() {
        let header = &mut bytes[at..at + BLOCK];
        if header.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        seal(header);
        at += BLOCK + contents(header).next_multiple_of(BLOCK).min(bytes.len());
    }
}

/// Bytes behind a header, as far as it can be said.
fn contents(header: &[u8]) -> usize {
    if !matches!(header[156], 0 | b'0' | b'7' | b'x' | b'X' | b'g' | b'L' | b'K' | b'S' | b'V') {
        return 0;
    }
    let mut size = 0_usize;
    for digit in header[124..136].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit()) {
        size = size.saturating_mul(8).saturating_add(usize::from(digit - b'0'));
    }
    size.min(1 << 40)
}

/// A header and what follows it, or other bytes.
#[derive(Clone)]
struct Part {
    header: [u8; BLOCK],
    rest: Vec<u8>,
}

struct Tar {
    parts: Vec<Part>,
    tail: Vec<u8>,
}

impl Tar {
    fn read(bytes: &[u8]) -> Tar {
        let mut parts = Vec::new();
        let mut at = 0;
        while at + BLOCK <= bytes.len() && bytes[at..at + BLOCK].iter().any(|byte| *byte != 0) {
            let mut header = [0; BLOCK];
            header.copy_from_slice(&bytes[at..at + BLOCK]);
            at += BLOCK;
            let end = (at + contents(&header).next_multiple_of(BLOCK)).min(bytes.len());
            parts.push(Part { header, rest: bytes[at..end].to_vec() });
            at = end;
        }
        Tar { parts, tail: bytes[at..].to_vec() }
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts {
            bytes.extend_from_slice(&part.header);
            bytes.extend_from_slice(&part.rest);
        }
        bytes.extend_from_slice(&self.tail);
        bytes
    }

    fn change(&mut self, random: &mut Random, plain: fn(&mut [u8], usize, usize) -> usize) {
        if self.parts.is_empty() {
            self.parts.push(new_part(random));
            return;
        }
        let at = random.below(self.parts.len());
        let other = random.below(self.parts.len());
        match random.below(13) {
            0 => self.parts.insert(at, new_part(random)),
            1 => {
                let part = self.parts[other].clone();
                self.parts.insert(at, part);
            }
            2 => drop(self.parts.remove(at)),
            3 => self.parts.swap(at, other),
            4 => self.parts[at].header[156] = KINDS[random.below(KINDS.len())],
            5 | 6 => {
                let (start, length) = FIELDS[random.below(FIELDS.len())];
                let number = NUMBERS[random.below(NUMBERS.len())];
                let number = &number[number.len() - length.min(number.len())..];
                self.parts[at].header[start..start + length.min(number.len())].copy_from_slice(number);
            }
            7 => {
                let name = self.parts[other].header[..100].to_vec();
                let target = if random.below(2) == 0 { 0 } else { 157 };
                self.parts[at].header[target..target + 100].copy_from_slice(&name);
            }
            8 => text(&mut self.parts[at].header, [0, 157, 345][random.below(3)], VALUES[random.below(VALUES.len())]),
            9 | 10 => {
                let records = records(random);
                self.parts.insert(at, extension(if random.below(8) == 0 { b'g' } else { b'x' }, &records));
            }
            11 => {
                let header = &mut self.parts[at].header;
                plain(header, BLOCK, BLOCK);
            }
            _ => {
                let rest = &mut self.parts[at].rest;
                let size = rest.len();
                rest.resize(size + 64, 0);
                let changed = plain(rest, size, size + 64);
                rest.truncate(changed);
                rest.resize(changed.next_multiple_of(BLOCK), 0);
            }
        }
    }
}

fn new_part(random: &mut Random) -> Part {
    let mut header = [0; BLOCK];
    text(&mut header, 0, VALUES[random.below(VALUES.len())]);
    text(&mut header, 157, VALUES[random.below(VALUES.len())]);
    header[100..107].copy_from_slice(b"0000644");
    header[156] = KINDS[random.below(KINDS.len())];
    header[257..265].copy_from_slice(if random.below(2) == 0 { b"ustar\x0000" } else { b"ustar  \0" });
    let size = [0, 1, 512, 4096, 5000][random.below(5)];
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    Part { rest: vec![b'c'; contents(&header).next_multiple_of(BLOCK)], header }
}

fn extension(kind: u8, records: &[u8]) -> Part {
    let mut header = [0; BLOCK];
    text(&mut header, 0, "pax");
    header[124..135].copy_from_slice(format!("{:011o}", records.len()).as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let mut rest = records.to_vec();
    rest.resize(rest.len().next_multiple_of(BLOCK), 0);
    Part { header, rest }
}

fn records(random: &mut Random) -> Vec<u8> {
    let mut records = Vec::new();
    for _ in 0..=random.below(4) {
        let key = KEYS[random.below(KEYS.len())];
        let value = VALUES[random.below(VALUES.len())];
        let value = if random.below(16) == 0 { value.repeat(random.below(5000)) } else { value.to_owned() };
        let payload = key.len() + value.len() + 3;
        let mut length = payload + payload.to_string().len();
        if length.to_string().len() > payload.to_string().len() {
            length += 1;
        }
        records.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    records
}

fn text(header: &mut [u8; BLOCK], at: usize, text: &str) {
    header[at..at + 100].fill(0);
    header[at..at + text.len()].copy_from_slice(text.as_bytes());
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
