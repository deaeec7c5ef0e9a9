//! Mounts as the kernel lists them (proc(5), `mountinfo`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// A mount that no other one hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub place: PathBuf,
    /// Its type, `fuse.mica` or `overlay`.
    pub kind: Vec<u8>,
    /// Its source.
    pub source: Vec<u8>,
}

/// What this process sees mounted, in the order in which it was. A place that another mount hides is left out.
pub fn listed() -> io::Result<Vec<Listed>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

fn parse(mountinfo: &[u8]) -> Vec<Listed> {
    let mut last = std::collections::HashMap::new();
    let mut mounts: Vec<Option<Listed>> = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let Some(separator) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(place), Some(kind)) = (fields.get(4), fields.get(separator + 1)) else { continue };
        let place = PathBuf::from(OsString::from_vec(unescape(place)));
        if let Some(hidden) = last.insert(place.clone(), mounts.len()) {
            mounts[hidden] = None;
        }
        let source = fields.get(separator + 2).map_or_else(Vec::new, |source| unescape(source));
        mounts.push(Some(Listed { place, kind: kind.to_vec(), source }));
    }
    mounts.into_iter().flatten().collect()
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 4).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if text[at] == b'\\' => {
                plain.push(digits.iter().fold(0_u8, |number, digit| number.wrapping_mul(8).wrapping_add(digit - b'0')));
                at += 4;
            }
            _ => {
                plain.push(text[at]);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_finds_what_is_on_top() {
        let mountinfo = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /a\\040b\\134c rw,nosuid shared:1 - fuse.mica mica rw,user_id=0\n\
            31 22 0:41 / /hidden rw - fuse.mica mica rw\n\
            32 22 0:42 / /hidden rw - tmpfs a\\040tmpfs rw\n";
        let found = parse(mountinfo);
        let rows: Vec<_> = found.into_iter().map(|mount| (mount.place, mount.kind, mount.source)).collect();
        let expected = [("/", "ext4", "/dev/vda"), ("/a b\\c", "fuse.mica", "mica"), ("/hidden", "tmpfs", "a tmpfs")];
        assert_eq!(rows, expected.map(|(place, kind, source)| (place.into(), kind.into(), source.into())));
        assert!(parse(b"nonsense\n\n").is_empty());
    }
}
