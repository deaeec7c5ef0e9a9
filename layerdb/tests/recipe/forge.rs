//! Writing tars of every dialect, header by header.

/// Which writer a header looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V7,
    Ustar,
    Gnu,
    Star,
    /// As Sun's tar: ustar, with a checksum of signed bytes.
    Sun,
}

/// A header before it is written.
#[derive(Clone, Debug)]
pub struct Head {
    pub dialect: Dialect,
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Head {
    pub fn new(kind: u8, name: impl Into<Vec<u8>>) -> Head {
        Head {
            dialect: Dialect::Ustar,
            kind,
            name: name.into(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
        }
    }

    pub fn link(mut self, link: impl Into<Vec<u8>>) -> Head {
        self.link = link.into();
        self
    }

    pub fn dialect(mut self, dialect: Dialect) -> Head {
        self.dialect = dialect;
        self
    }
}

/// A tar being written.
#[derive(Clone, Debug, Default)]
pub struct Forge {
    pub bytes: Vec<u8>,
}

impl Forge {
    pub fn new() -> Forge {
        Forge::default()
    }

    /// A header alone; names that don't fit are cut.
    pub fn head(&mut self, head: &Head, size: i64) -> &mut Forge {
        let mut block = raw(head, size);
        seal(&mut block, head.dialect == Dialect::Sun);
        self.bytes.extend_from_slice(&block);
        self
    }

    /// Contents and their padding.
    pub fn contents(&mut self, bytes: &[u8]) -> &mut Forge {
        self.contents_padded_with(bytes, 0)
    }

    /// Contents, padded with any byte.
    pub fn contents_padded_with(&mut self, bytes: &[u8], padding: u8) -> &mut Forge {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), padding);
        self
    }

    pub fn file(&mut self, name: impl Into<Vec<u8>>, bytes: &[u8]) -> &mut Forge {
        self.head(&Head::new(b'0', name), bytes.len() as i64).contents(bytes)
    }

    pub fn directory(&mut self, name: impl Into<Vec<u8>>) -> &mut Forge {
        self.head(&Head::new(b'5', name), 0)
    }

    /// An extended header of any type with PAX records.
    pub fn records(&mut self, kind: u8, records: &[(Vec<u8>, Vec<u8>)]) -> &mut Forge {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.head(&Head::new(kind, "PaxHeaders/x"), text.len() as i64).contents(&text)
    }

    /// PAX records for the next entry.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Forge {
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec())).collect();
        self.records(b'x', &records)
    }

    /// A long name (`L`) or link (`K`) as GNU writes it.
    pub fn gnu_long(&mut self, kind: u8, text: &[u8]) -> &mut Forge {
        let mut bytes = text.to_vec();
        bytes.push(0);
        let head = Head::new(kind, "././@LongLink").dialect(Dialect::Gnu);
        self.head(&head, bytes.len() as i64).contents(&bytes)
    }

    /// A sparse file of the old GNU format; each segment has `(offset, bytes)`.
    pub fn gnu_sparse(&mut self, name: &str, segments: &[(u64, Vec<u8>)], size: u64) -> &mut Forge {
        let stored: Vec<u8> = segments.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let mut block = raw(&Head::new(b'S', name).dialect(Dialect::Gnu), stored.len() as i64);
        let slot = |into: &mut [u8], (offset, bytes): &(u64, Vec<u8>)| {
            octal(&mut into[..12], *offset);
            octal(&mut into[12..24], bytes.len() as u64);
        };
        let (first, rest) = segments.split_at(segments.len().min(4));
        for (at, segment) in first.iter().enumerate() {
            slot(&mut block[386 + 24 * at..][..24], segment);
        }
        block[482] = u8::from(!rest.is_empty());
        octal(&mut block[483..495], size);
        seal(&mut block, false);
        self.bytes.extend_from_slice(&block);
        let mut chunks = rest.chunks(21).peekable();
        while let Some(chunk) = chunks.next() {
            let mut block = [0; 512];
            for (at, segment) in chunk.iter().enumerate() {
                slot(&mut block[24 * at..][..24], segment);
            }
            block[504] = u8::from(chunks.peek().is_some());
            self.bytes.extend_from_slice(&block);
        }
        self.contents(&stored)
    }

    /// A sparse file in PAX, of format 0.0, 0.1 or 1.0.
    pub fn pax_sparse(&mut self, format: u8, name: &str, segments: &[(u64, Vec<u8>)], size: u64) -> &mut Forge {
        let number = |number: u64| number.to_string().into_bytes();
        let key = |key: &str| format!("GNU.sparse.{key}").into_bytes();
        let mut records = Vec::new();
        let mut stored = Vec::new();
        if format == 10 {
            records.extend([(key("major"), b"1".to_vec()), (key("minor"), b"0".to_vec())]);
            records.extend([(key("name"), name.as_bytes().to_vec()), (key("realsize"), number(size))]);
            stored.extend_from_slice(format!("{}\n", segments.len()).as_bytes());
            for (offset, bytes) in segments {
                stored.extend_from_slice(format!("{offset}\n{}\n", bytes.len()).as_bytes());
            }
            stored.resize(stored.len().next_multiple_of(512), 0);
        } else {
            records.extend([(key("size"), number(size)), (key("numblocks"), number(segments.len() as u64))]);
            if format == 0 {
                for (offset, bytes) in segments {
                    records.extend([(key("offset"), number(*offset)), (key("numbytes"), number(bytes.len() as u64))]);
                }
            } else {
                let map: Vec<String> =
                    segments.iter().map(|(offset, bytes)| format!("{offset},{}", bytes.len())).collect();
                records.extend([(key("map"), map.join(",").into_bytes()), (key("name"), name.as_bytes().to_vec())]);
            }
        }
        stored.extend(segments.iter().flat_map(|(_, bytes)| bytes.clone()));
        let own = if format == 0 { name.to_owned() } else { format!("GNUSparseFile.1/{name}") };
        self.records(b'x', &records).head(&Head::new(b'0', own), stored.len() as i64).contents(&stored)
    }

    /// The end as most writers make it.
    pub fn end(&mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        std::mem::take(&mut self.bytes)
    }
}

/// `LENGTH KEY=VALUE\n`.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let payload = key.len() + value.len() + 3;
    let mut length = payload;
    while payload + length.to_string().len() != length {
        length = payload + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn raw(head: &Head, size: i64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(most)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, &head.name);
    put(157, 100, &head.link);
    match head.dialect {
        Dialect::V7 => {}
        Dialect::Ustar | Dialect::Sun => put(257, 8, b"ustar\x0000"),
        Dialect::Gnu => put(257, 8, b"ustar  \0"),
        Dialect::Star => {
            put(257, 8, b"ustar\x0000");
            put(508, 4, b"tar\0");
        }
    }
    block[156] = head.kind;
    number(&mut block[100..108], i64::from(head.mode));
    number(&mut block[108..116], head.uid);
    number(&mut block[116..124], head.gid);
    number(&mut block[124..136], size);
    number(&mut block[136..148], head.mtime);
    if head.dialect != Dialect::V7 {
        number(&mut block[329..337], i64::from(head.device.0));
        number(&mut block[337..345], i64::from(head.device.1));
    }
    block
}

/// Octal if it fits, else base 256.
fn number(field: &mut [u8], value: i64) {
    let digits = field.len() as u32 - 1;
    if value >= 0 && (digits >= 21 || value < 1 << (3 * digits)) {
        octal(field, value as u64);
        return;
    }
    let length = field.len();
    field.fill(if value < 0 { 0xff } else { 0 });
    for (at, byte) in value.to_be_bytes().iter().enumerate() {
        if length + at >= 8 {
            field[length + at - 8] = *byte;
        }
    }
    field[0] = if value < 0 { 0xff } else { 0x80 | field[0] };
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    field[digits] = 0;
}

fn seal(block: &mut [u8; 512], signed: bool) {
    block[148..156].fill(b' ');
    let sum: i64 = block.iter().map(|byte| if signed { i64::from(*byte as i8) } else { i64::from(*byte) }).sum();
    // A signed sum may be negative, which octal can't say.
    let sum = if sum < 0 { block.iter().map(|byte| i64::from(*byte)).sum() } else { sum };
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
