//! What a layer or an image may cost before it is refused.
//!
//! Whoever made it may be hostile: what it makes this program allocate, compute or write is bounded by these numbers,
//! not by what it says of itself. Errors name the limit as it is called here, so that it can be raised.

use serde::{Deserialize, Serialize};

use crate::tree::{NAME_MAX, TARGET_MAX};

/// The limits. Their defaults leave room for every image that an engine can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Entries of a layer, and the folders that their names imply.
    pub entries: u64,
    /// Folders on the way from the root to an entry, and the entry itself.
    pub depth: u64,
    /// Bytes of an entry's name. Each of its components has at most 255, as in any filesystem.
    pub name_bytes: u64,
    /// Bytes of the target of a link.
    pub link_bytes: u64,
    /// Extended attributes of an entry.
    pub xattrs: u64,
    /// Bytes of the value of an extended attribute.
    pub xattr_value_bytes: u64,
    /// Bytes of names and values of an entry's extended attributes.
    pub xattr_bytes: u64,
    /// Bytes of the extended headers, long names and long links that belong to one entry, and of those for all.
    pub extension_bytes: u64,
    /// Parts of a sparse file that are in the tar.
    pub segments: u64,
    /// Bytes of memory that names, links, attributes and inodes of a layer take, about.
    pub metadata_bytes: u64,
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Bytes of file contents, holes included.
    pub content_bytes: u64,
    /// Bytes of holes. They take no space, but time: they are part of the digest of a file's contents.
    pub hole_bytes: u64,
    /// Times that the tar may be larger than its compressed form, once it is larger than
    /// [`Limits::expansion_free_bytes`].
    pub expansion: u64,
    /// Bytes of tar that are never too many for their compressed form.
    pub expansion_free_bytes: u64,
    /// Logarithm of the largest zstd window in bytes; that much memory may be used by a layer that asks for it.
    pub zstd_window_log: u32,
    /// Layers of an image.
    pub layers: u64,
    /// Bytes of one index, manifest or configuration.
    pub document_bytes: u64,
    /// Bytes of all of them that one import reads.
    pub documents_bytes: u64,
    /// Indexes, manifests and configurations that one import reads.
    pub documents: u64,
    /// Files in an archive of images.
    pub archive_entries: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 4 << 20,
            depth: 1024,
            name_bytes: TARGET_MAX as u64,
            link_bytes: TARGET_MAX as u64,
            xattrs: 4096,
            xattr_value_bytes: 64 << 10,
            xattr_bytes: 256 << 10,
            extension_bytes: 1 << 20,
            segments: 1 << 20,
            metadata_bytes: 1 << 30,
            tar_bytes: 512 << 30,
            content_bytes: 512 << 30,
            hole_bytes: 64 << 30,
            expansion: 200,
            expansion_free_bytes: 8 << 30,
            zstd_window_log: 27,
            layers: 512,
            document_bytes: 8 << 20,
            documents_bytes: 64 << 20,
            documents: 4096,
            archive_entries: 1 << 20,
        }
    }
}

impl Limits {
    /// Changes one by its name.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), String> {
        let refused = |error: serde_json::Error| format!("limit {name}: {error}");
        let mut all = serde_json::to_value(&*self).map_err(refused)?;
        let known = all.as_object_mut().and_then(|all| all.get_mut(name));
        *known.ok_or_else(|| format!("there is no limit {name}"))? = value.into();
        *self = serde_json::from_value(all).map_err(refused)?;
        Ok(())
    }

    /// Says which limit can't be what it is.
    pub fn check(&self) -> Result<(), String> {
        let zstd = u64::from(self.zstd_window_log);
        // Beyond these, formats end, or the 32-bit numbers and the memory behind them.
        for (name, value, lowest, highest) in [
            ("entries", self.entries, 1, u64::from(u32::MAX) / 2),
            ("depth", self.depth, 1, 1 << 20),
            ("name_bytes", self.name_bytes, NAME_MAX as u64, TARGET_MAX as u64),
            ("link_bytes", self.link_bytes, 1, TARGET_MAX as u64),
            ("xattr_value_bytes", self.xattr_value_bytes, 0, 64 << 10),
            ("extension_bytes", self.extension_bytes, 512, 1 << 30),
            ("segments", self.segments, 1, 1 << 28),
            ("tar_bytes", self.tar_bytes, 1024, i64::MAX as u64),
            ("content_bytes", self.content_bytes, 0, i64::MAX as u64),
            ("expansion", self.expansion, 1, u64::MAX),
            ("zstd_window_log", zstd, 10, 31),
            ("layers", self.layers, 1, u32::MAX.into()),
            ("document_bytes", self.document_bytes, 512, 1 << 30),
        ] {
            if !(lowest..=highest).contains(&value) {
                return Err(format!("limit {name} is {value}, but must be from {lowest} to {highest}"));
            }
        }
        Ok(())
    }

    /// Says what is wrong if `tar_bytes` are too many for `read_bytes` of compressed ones.
    pub(crate) fn check_expansion(&self, read_bytes: u64, tar_bytes: u64) -> Result<(), String> {
        if tar_bytes > self.tar_bytes {
            return Err(over("tar_bytes", self.tar_bytes, "bytes of tar"));
        }
        if tar_bytes > self.expansion_free_bytes && tar_bytes / self.expansion > read_bytes {
            let limit = over("expansion", self.expansion, "times the compressed bytes");
            return Err(format!("{read_bytes} bytes expand to over {tar_bytes}: {limit}"));
        }
        Ok(())
    }
}

/// What to say of bytes that a decoder of `format` refuses. Of a zstd stream that needs a larger window than it was
/// allowed, the decoder says no more than that it needs too much memory.
pub(crate) fn undecodable(format: &str, error: &std::io::Error, limits: &Limits) -> String {
    let too_large = zstd::zstd_safe::get_error_name(WINDOW_TOO_LARGE);
    if format == "zstd" && error.to_string() == too_large {
        let largest = 1_u64 << limits.zstd_window_log;
        return format!("the zstd stream needs a window of {}", over("zstd_window_log", largest, "bytes"));
    }
    format!("the {format} stream is corrupt: {error}")
}

/// `ZSTD_error_frameParameter_windowTooLarge`, as libzstd returns it from its functions.
const WINDOW_TOO_LARGE: usize = 0_usize.wrapping_sub(16);

/// What to say of something that breaks a limit.
pub(crate) fn over(name: &str, limit: impl std::fmt::Display, what: &str) -> String {
    format!("over {limit} {what} (limit {name})")
}

/// A reason for a message: it may hold what the layer says, which may be long.
pub(crate) fn shortened(mut reason: String) -> String {
    const LONGEST: usize = 1024;
    if reason.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn check_accepts_the_defaults_and_names_a_limit_that_is_impossible() {
        Limits::default().check().unwrap();
        let without = Limits { expansion: 0, ..Limits::default() }.check().unwrap_err();
        assert_eq!(without, format!("limit expansion is 0, but must be from 1 to {}", u64::MAX));
        assert!(Limits { zstd_window_log: 32, ..Limits::default() }.check().unwrap_err().contains("zstd_window_log"));
        assert!(Limits { name_bytes: 4096, ..Limits::default() }.check().unwrap_err().contains("name_bytes"));
    }

    #[test]
    fn check_expansion_at_each_limit_and_one_above() {
        let limits = Limits { expansion: 10, expansion_free_bytes: 100, tar_bytes: 1000, ..Limits::default() };
        assert!(limits.check_expansion(1, 100).is_ok());
        assert!(limits.check_expansion(10, 109).is_ok());
        assert!(limits.check_expansion(9, 109).is_err());
        assert!(limits.check_expansion(100, 1000).is_ok());
        assert!(limits.check_expansion(100, 1001).unwrap_err().contains("limit tar_bytes"));
    }
}
