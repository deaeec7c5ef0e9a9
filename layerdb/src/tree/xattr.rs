//! Names of extended attributes: how they are split, escaped, filtered and interned.
//!
//! The overlay's own attributes (`trusted.overlay.*`) say where a file's object is, which directories are
//! opaque and which are implied. What a user stored under such a name is kept under `trusted.overlay.overlay.*`,
//! as the kernel's overlayfs does for nested overlays.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use xxhash_rust::xxh32::xxh32;

use super::FileKind;
use super::format::{XATTR_AREA_MAX, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE, align};
use crate::error::{Error, Result};

/// The attribute that makes a directory of a layer hide what lower layers have there (value `y`).
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

const USER: u8 = 1;
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

const NAMESPACES: [(u8, &[u8]); 3] = [(USER, b"user."), (TRUSTED, b"trusted."), (SECURITY, b"security.")];
const ACLS: [(u8, &[u8]); 2] = [(ACL_ACCESS, b"system.posix_acl_access"), (ACL_DEFAULT, b"system.posix_acl_default")];

/// What the overlay's own attributes begin with, behind `trusted.`.
const OVERLAY: &[u8] = b"overlay.";
const METACOPY: &[u8] = b"overlay.metacopy";
const REDIRECT: &[u8] = b"overlay.redirect";
const OPAQUE: &[u8] = b"overlay.opaque";
const IMPLIED: &[u8] = b"overlay.mica.implied";

/// Longest full name (`XATTR_NAME_MAX` of Linux).
const NAME_MAX: usize = 255;
/// Longest value: `e_value_size` is 16 bits.
const VALUE_MAX: usize = u16::MAX as usize;
/// Kept free in every inode's xattr area for the overlay's own attributes.
const OWN_RESERVE: usize = 256;

const FILTER_SEED: u32 = 0x25BB_E08F;

/// One attribute as the disk has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pair<'a> {
    /// Number of the namespace, `e_name_index`.
    pub index: u8,
    /// The name behind its namespace.
    pub name: Cow<'a, [u8]>,
    pub value: Cow<'a, [u8]>,
}

impl<'a> Pair<'a> {
    pub(super) const fn own(name: &'a [u8], value: Cow<'a, [u8]>) -> Self {
        Self { index: TRUSTED, name: Cow::Borrowed(name), value }
    }

    pub(super) const fn metacopy() -> Self {
        Self::own(METACOPY, Cow::Borrowed(b""))
    }

    pub(super) const fn opaque() -> Self {
        Self::own(OPAQUE, Cow::Borrowed(b"y"))
    }

    pub(super) const fn implied() -> Self {
        Self::own(IMPLIED, Cow::Borrowed(b""))
    }

    /// The object at `path`, relative to the object directory.
    pub(super) fn redirect(path: &str) -> Pair<'static> {
        Pair::own(REDIRECT, Cow::Owned(format!("/{path}").into_bytes()))
    }

    /// Bytes of the entry on the disk.
    pub(super) fn disk_size(&self) -> usize {
        align(XATTR_ENTRY_SIZE + self.name.len() + self.value.len(), 4)
    }

    /// Appends the entry as the disk has it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.disk_size();
        out.push(self.name.len() as u8);
        out.push(self.index);
        out.extend_from_slice(&(self.value.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&self.value);
        out.resize(end, 0);
    }

    pub(super) fn filter_bit(&self) -> u32 {
        filter_bit(self.index, &self.name)
    }
}

/// An attribute that belongs to the overlay and is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Metacopy,
    Redirect,
    Opaque,
    Implied,
    /// One that some other writer left.
    Other,
}

impl Own {
    /// Which of the overlay's own attributes this is; `None` when it is the user's.
    pub(super) fn of(index: u8, name: &[u8]) -> Option<Self> {
        if index != TRUSTED || !name.starts_with(OVERLAY) || name[OVERLAY.len()..].starts_with(OVERLAY) {
            return None;
        }
        Some(match name {
            METACOPY => Self::Metacopy,
            REDIRECT => Self::Redirect,
            OPAQUE => Self::Opaque,
            IMPLIED => Self::Implied,
            _ => Self::Other,
        })
    }

    /// Name on the disk, for those that are looked up.
    pub(super) const fn disk_name(self) -> (u8, &'static [u8]) {
        let name = match self {
            Self::Metacopy => METACOPY,
            Self::Redirect => REDIRECT,
            Self::Opaque => OPAQUE,
            Self::Implied => IMPLIED,
            Self::Other => OVERLAY,
        };
        (TRUSTED, name)
    }
}

/// The bit of the name filter that an inode with this attribute has cleared.
pub(super) fn filter_bit(index: u8, name: &[u8]) -> u32 {
    1 << (xxh32(name, FILTER_SEED.wrapping_add(u32::from(index))) & 31)
}

/// Namespace and name as the disk has them; `None` for a name in no namespace that a tree can hold.
pub(super) fn to_disk(full: &[u8]) -> Option<(u8, Cow<'_, [u8]>)> {
    if let Some((index, _)) = ACLS.iter().find(|(_, name)| *name == full) {
        return Some((*index, Cow::Borrowed(b"")));
    }
    let (index, name) = NAMESPACES.iter().find_map(|(index, prefix)| Some((*index, full.strip_prefix(*prefix)?)))?;
    if name.is_empty() {
        return None;
    }
    let escaped = index == TRUSTED && name.starts_with(OVERLAY);
    Some((index, if escaped { Cow::Owned([OVERLAY, name].concat()) } else { Cow::Borrowed(name) }))
}

/// The full name of an attribute that is the user's; `None` for the overlay's own and for foreign namespaces.
pub(super) fn from_disk(index: u8, name: &[u8]) -> Option<Vec<u8>> {
    if let Some((_, full)) = ACLS.iter().find(|(acl, _)| *acl == index) {
        return name.is_empty().then(|| full.to_vec());
    }
    let (_, prefix) = NAMESPACES.iter().find(|(namespace, _)| *namespace == index)?;
    if Own::of(index, name).is_some() {
        return None;
    }
    let name = if index == TRUSTED && name.starts_with(OVERLAY) { &name[OVERLAY.len()..] } else { name };
    Some([*prefix, name].concat())
}

/// Whether an attribute on the disk is in a namespace that trees use.
pub(super) fn known_namespace(index: u8, name: &[u8]) -> bool {
    let acl = ACLS.iter().any(|(acl, _)| *acl == index);
    if acl { name.is_empty() } else { !name.is_empty() && NAMESPACES.iter().any(|(namespace, _)| *namespace == index) }
}

/// Whether a tree can hold an attribute of this full name. Others (`system.*` but the ACLs, `com.apple.*`,
/// ...) are what a Linux filesystem answers `EOPNOTSUPP` to.
pub fn representable(name: &[u8]) -> bool {
    to_disk(name).is_some()
}

/// Attributes in the disk's order (namespace, name), for an inode of `kind`.
pub(super) fn encode_all(xattrs: Vec<(Vec<u8>, Vec<u8>)>, kind: FileKind) -> Result<Vec<Pair<'static>>> {
    let mut pairs: Vec<Pair<'static>> = Vec::with_capacity(xattrs.len());
    for (full, value) in xattrs {
        let name = || full.escape_ascii().to_string();
        let too_long = |bytes: usize, reason| Error::XattrTooLong { name: name(), bytes: bytes as u64, reason };
        let (index, disk) = to_disk(&full).ok_or_else(|| Error::XattrNamespace { name: name() })?;
        if full.len() > NAME_MAX {
            return Err(too_long(full.len(), "a name has at most 255 bytes"));
        }
        if value.len() > VALUE_MAX {
            return Err(too_long(value.len(), "a value has at most 65535 bytes"));
        }
        if index == ACL_DEFAULT && kind != FileKind::Directory {
            return Err(Error::InvalidNode { name: name(), reason: "only a directory has a default ACL" });
        }
        let pair = Pair { index, name: Cow::Owned(disk.into_owned()), value: Cow::Owned(value) };
        let key = |pair: &Pair<'_>| (pair.index, pair.name.to_vec());
        match pairs.binary_search_by_key(&key(&pair), key) {
            Ok(at) => pairs[at] = pair,
            Err(at) => pairs.insert(at, pair),
        }
    }
    if let Some(pair) = first_beyond_area(&pairs) {
        let name = pair.name.escape_ascii().to_string();
        let reason = "the attributes of one inode have 256 KiB at most";
        return Err(Error::XattrTooLong { name, bytes: pair.disk_size() as u64, reason });
    }
    Ok(pairs)
}

/// The first of an inode's attributes that its area cannot hold for certain, that is if none was shared.
pub(super) fn first_beyond_area<'p, 'a>(pairs: &'p [Pair<'a>]) -> Option<&'p Pair<'a>> {
    let mut total = XATTR_HEADER_SIZE + OWN_RESERVE;
    pairs.iter().find(|pair| {
        total += pair.disk_size();
        total > XATTR_AREA_MAX
    })
}

/// Sets of attributes, each stored once.
#[derive(Debug, Default)]
pub(super) struct XattrTable<'a> {
    pairs: Interner<Pair<'a>>,
    sets: Interner<Vec<u32>>,
}

/// A set of an [`XattrTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct XattrSet(u32);

impl XattrSet {
    /// The set without members.
    pub(super) const EMPTY: Self = Self(0);

    /// A dense number: 0 is the empty set.
    pub(super) const fn number(self) -> usize {
        self.0 as usize
    }
}

impl<'a> XattrTable<'a> {
    /// The set of these attributes, which must be in the disk's order.
    pub(super) fn intern(&mut self, pairs: Vec<Pair<'a>>) -> XattrSet {
        if pairs.is_empty() {
            return XattrSet::EMPTY;
        }
        let members = pairs.into_iter().map(|pair| self.pairs.intern(pair)).collect();
        XattrSet(self.sets.intern(members) + 1)
    }

    /// The attributes of a set, by number and in the disk's order.
    pub(super) fn members(&self, set: XattrSet) -> &[u32] {
        set.0.checked_sub(1).map_or(&[], |at| self.sets.get(at))
    }

    pub(super) fn pair(&self, number: u32) -> &Pair<'a> {
        self.pairs.get(number)
    }

    pub(super) fn pair_count(&self) -> usize {
        self.pairs.items.len()
    }

    /// How often each attribute is used, given how often each set is.
    pub(super) fn count_uses(&self, sets: &[u32]) -> Vec<u32> {
        let mut uses = vec![0; self.pair_count()];
        for (set, count) in self.sets.items.iter().zip(&sets[1..]) {
            for &pair in set.iter() {
                uses[pair as usize] += count;
            }
        }
        uses
    }

    /// Number of sets, the empty one included.
    pub(super) fn set_count(&self) -> usize {
        self.sets.items.len() + 1
    }

    /// The set with one attribute more.
    pub(super) fn with(&mut self, set: XattrSet, extra: Pair<'a>) -> XattrSet {
        let mut pairs: Vec<_> = self.members(set).iter().map(|&number| self.pair(number).clone()).collect();
        let at = pairs.partition_point(|pair| (pair.index, &pair.name) < (extra.index, &extra.name));
        pairs.insert(at, extra);
        self.intern(pairs)
    }
}

#[derive(Debug)]
struct Interner<T> {
    items: Vec<Arc<T>>,
    numbers: HashMap<Arc<T>, u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { items: Vec::new(), numbers: HashMap::new() }
    }
}

impl<T: Eq + Hash> Interner<T> {
    fn intern(&mut self, item: T) -> u32 {
        match self.numbers.entry(Arc::new(item)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let number = self.items.len() as u32;
                self.items.push(Arc::clone(new.key()));
                *new.insert(number)
            }
        }
    }

    fn get(&self, number: u32) -> &T {
        &self.items[number as usize]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_survive_the_disk_and_overlay_names_are_escaped() {
        for name in [
            &b"user.mime_type"[..],
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
            b"trusted.x",
            b"trusted.overlay.opaque",
            b"trusted.overlay.overlay.opaque",
            b"user.overlay.opaque",
        ] {
            let (index, disk) = to_disk(name).unwrap();
            assert_eq!(Own::of(index, &disk), None);
            assert_eq!(from_disk(index, &disk).unwrap(), name);
        }
        assert_eq!(to_disk(b"trusted.overlay.opaque").unwrap(), (TRUSTED, b"overlay.overlay.opaque"[..].into()));
    }

    #[test]
    fn own_attributes_are_hidden() {
        for name in [METACOPY, REDIRECT, OPAQUE, IMPLIED, b"overlay.origin"] {
            assert!(Own::of(TRUSTED, name).is_some());
            assert_eq!(from_disk(TRUSTED, name), None);
        }
    }

    #[test]
    fn names_without_a_namespace_are_refused() {
        for name in [&b"com.apple.quarantine"[..], b"user.", b"system.nfs4_acl", b"", b"user", b"trusted."] {
            assert!(!representable(name));
        }
    }

    #[test]
    fn attribute_given_twice_keeps_its_last_value() {
        let given = [(b"user.b".to_vec(), vec![1]), (b"user.a".to_vec(), vec![2]), (b"user.b".to_vec(), vec![3])];
        let pairs = encode_all(given.to_vec(), FileKind::Regular).unwrap();
        let read: Vec<_> = pairs.iter().map(|pair| (&*pair.name, &*pair.value)).collect();
        assert_eq!(read, [(&b"a"[..], &[2][..]), (b"b", &[3])]);
    }

    #[test]
    fn value_over_the_limit_is_named() {
        assert!(encode_all(vec![(b"user.big".to_vec(), vec![0; 65_535])], FileKind::Regular).is_ok());
        let error = encode_all(vec![(b"user.big".to_vec(), vec![0; 65_536])], FileKind::Regular).unwrap_err();
        assert!(error.to_string().contains("user.big"), "{error}");
        let many: Vec<_> = (0..5).map(|n| (format!("user.{n}").into_bytes(), vec![0; 65_000])).collect();
        assert!(matches!(encode_all(many, FileKind::Regular), Err(Error::XattrTooLong { .. })));
    }
}
