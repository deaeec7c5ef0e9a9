//! Records of PAX extended headers (pax(1), "pax Extended Header"), and what star and GNU tar keep in them.

use super::fault::shown;
use super::sparse::Segment;
use crate::limits::{Limits, over};
use crate::tree::Timestamp;

/// What extended headers say about an entry. `None`: nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// GNU's sparse files in PAX, formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// The file's size with its holes: `GNU.sparse.realsize`, or `GNU.sparse.size` of the older formats.
    pub(crate) real_size: Option<u64>,
    /// The map of formats 0.0 and 0.1; in 1.0 it stands before the contents.
    pub(crate) map: Option<Vec<Segment>>,
    /// Format 0.0: an offset whose length is still to come.
    pending_offset: Option<u64>,
}

impl Sparse {
    pub(crate) fn is_sparse(&self) -> bool {
        self.major.is_some() || self.map.is_some() || self.real_size.is_some()
    }
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Extensions {
    /// Adds the records of one extended header; later records win.
    pub(crate) fn read(&mut self, mut records: &[u8], limits: &Limits) -> Result<(), String> {
        while !records.is_empty() {
            let Record { key, value, rest } = split(records)?;
            self.set(key, value, limits).map_err(|reason| format!("PAX record {}: {reason}", shown(key)))?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.set_xattr(name, value, limits);
        }
        // An empty value takes back what an earlier record said.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = if given { Some(size(value)?) } else { None },
            b"uid" => self.uid = if given { Some(signed(value)?) } else { None },
            b"gid" => self.gid = if given { Some(signed(value)?) } else { None },
            b"mtime" => self.mtime = if given { Some(time(value)?) } else { None },
            b"SCHILY.devmajor" => self.major = if given { Some(signed(value)?) } else { None },
            b"SCHILY.devminor" => self.minor = if given { Some(signed(value)?) } else { None },
            b"SCHILY.realsize" if given => self.sparse.real_size = Some(unsigned(value)?),
            _ => {
                if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(field, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), String> {
        if name.is_empty() {
            return Err("the attribute has no name".into());
        }
        if value.len() as u64 > limits.xattr_value_bytes {
            let limit = over("xattr_value_bytes", limits.xattr_value_bytes, "bytes of an attribute's value");
            return Err(format!("{} bytes: {limit}", value.len()));
        }
        self.xattrs.retain(|(known, _)| known != name);
        if self.xattrs.len() as u64 >= limits.xattrs {
            return Err(over("xattrs", limits.xattrs, "extended attributes"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn set_sparse(&mut self, field: &[u8], value: &[u8], limits: &Limits) -> Result<(), String> {
        let sparse = &mut self.sparse;
        let too_many = || over("segments", limits.segments, "parts of a sparse file");
        match field {
            b"major" => sparse.major = Some(unsigned(value)?),
            b"minor" | b"numblocks" => drop(unsigned(value)?),
            b"name" => sparse.name = Some(value.to_vec()),
            b"realsize" | b"size" => sparse.real_size = Some(unsigned(value)?),
            b"offset" => {
                if sparse.pending_offset.replace(unsigned(value)?).is_some() {
                    return Err("two offsets without a length".into());
                }
                sparse.map.get_or_insert_default();
            }
            b"numbytes" => {
                let offset = sparse.pending_offset.take().ok_or("a length without an offset")?;
                let map = sparse.map.get_or_insert_default();
                if map.len() as u64 >= limits.segments {
                    return Err(too_many());
                }
                map.push(Segment { offset, bytes: unsigned(value)? });
            }
            b"map" => {
                let numbers: Vec<u64> = if value.is_empty() {
                    Vec::new()
                } else {
                    value.split(|byte| *byte == b',').map(unsigned).collect::<Result<_, _>>()?
                };
                if !numbers.len().is_multiple_of(2) {
                    return Err("an odd count of numbers".into());
                }
                if numbers.len() as u64 / 2 > limits.segments {
                    return Err(too_many());
                }
                let pairs = numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], bytes: pair[1] });
                sparse.map = Some(pairs.collect());
            }
            _ => {}
        }
        Ok(())
    }
}

/// `LENGTH KEY=VALUE\n`, and the bytes behind it.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

fn split(records: &[u8]) -> Result<Record<'_>, String> {
    let broken = || format!("malformed PAX record \"{}\"", records[..records.len().min(64)].escape_ascii());
    let space = records.iter().take(20).position(|byte| *byte == b' ').ok_or_else(broken)?;
    let length = usize::try_from(unsigned(&records[..space])?).map_err(|_| broken())?;
    if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
        return Err(broken());
    }
    let record = &records[space + 1..length - 1];
    let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || key.contains(&0) || (text && value.contains(&0)) {
        return Err(broken());
    }
    Ok(Record { key, value, rest: &records[length..] })
}

fn unsigned(text: &[u8]) -> Result<u64, String> {
    let bad = || format!("\"{}\" is no number", shown(text));
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    // Sizes are signed everywhere behind this.
    let value: i64 = str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
    Ok(value as u64)
}

fn signed(text: &[u8]) -> Result<i64, String> {
    match text.strip_prefix(b"-") {
        Some(rest) => Ok(-(unsigned(rest)? as i64)),
        None => Ok(unsigned(text.strip_prefix(b"+").unwrap_or(text))? as i64),
    }
}

fn size(text: &[u8]) -> Result<u64, String> {
    u64::try_from(signed(text)?).map_err(|_| "the size is negative".into())
}

/// Seconds since the epoch with a decimal fraction, whose digits behind the ninth are cut off.
fn time(text: &[u8]) -> Result<Timestamp, String> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix(b"+").unwrap_or(text)),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = unsigned(parts.next().unwrap_or_default())? as i64;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(format!("\"{}\" is no time", text.escape_ascii()));
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + digit(at));
    Ok(match (negative, nanos) {
        (false, nanos) => Timestamp { secs: whole, nanos },
        (true, 0) => Timestamp { secs: -whole, nanos: 0 },
        (true, nanos) => Timestamp { secs: -whole - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let payload = key.len() + value.len() + 3;
        let mut length = payload + payload.to_string().len();
        if length.to_string().len() > payload.to_string().len() {
            length += 1;
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_of_every_key_are_read_and_the_last_wins() {
        let mut records = record("path", b"old");
        records.extend(record("path", &[0xff, b'/', b'n']));
        records.extend(record("size", b"8589934592"));
        records.extend(record("uid", b"4294967294"));
        records.extend(record("mtime", b"1.0000000015"));
        records.extend(record("SCHILY.xattr.user.a=b", b"1"));
        records.extend(record("SCHILY.xattr.user.bin", &[0, 10, 255]));
        records.extend(record("comment", b"ignored"));
        let mut extensions = Extensions::default();
        extensions.read(&records, &Limits::default()).unwrap();
        assert_eq!(extensions.path.unwrap(), [0xff, b'/', b'n']);
        assert_eq!(extensions.size, Some(8 << 30));
        assert_eq!(extensions.uid, Some(4_294_967_294));
        assert_eq!(extensions.mtime, Some(Timestamp { secs: 1, nanos: 1 }));
        assert!(extensions.xattrs.contains(&(b"user.bin".to_vec(), vec![0, 10, 255])));
    }

    #[test]
    fn times_before_the_epoch_count_forward() {
        assert_eq!(time(b"-1.5").unwrap(), Timestamp { secs: -2, nanos: 500_000_000 });
        assert_eq!(time(b"-1").unwrap(), Timestamp { secs: -1, nanos: 0 });
        assert_eq!(time(b"-0.25").unwrap(), Timestamp { secs: -1, nanos: 750_000_000 });
        assert_eq!(time(b"5.").unwrap(), Timestamp { secs: 5, nanos: 0 });
        for bad in ["", "1.x", "x", "--1", "1e9", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in
            [&b"5 a=b"[..], b"x a=b\n", b"6 a=b\n ", b"99 a=b\n", b"4 a\n", b"5 =b\n", b"0 a=b\n", b"9 path=\0\n"]
        {
            assert!(Extensions::default().read(bad, &Limits::default()).is_err(), "{}", bad.escape_ascii());
        }
    }
}
