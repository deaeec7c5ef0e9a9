//! Whose files programs see: the owners on the disk, shown as others.
//!
//! `uidmapping` and `gidmapping` say which ids on the disk are shown as which ids in the mount; an id that no range
//! holds stays as it is not owned by anybody who could be named (the overflow id). Squashing shows one owner for
//! everything. What programs give goes the other way through the mapping; squashing has no way back.

use rustix::io::Errno;

/// What an id that has no place in a mapping is shown as (`/proc/sys/kernel/overflowuid` unless it was changed).
const OVERFLOW: u32 = 65534;

/// "No change" in chown(2), and "no id" in an ACL.
const NO_ID: u32 = u32::MAX;

const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Ranges of ids on the disk and of ids in the mount. An empty one changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    stored: u32,
    shown: u32,
    count: u32,
}

impl IdMap {
    /// Reads `DISK:MOUNT:COUNT[:DISK:MOUNT:COUNT...]`; empty parts, as at the beginning, mean nothing.
    ///
    /// Refused with the reason: what is no number, a number of parts that is no multiple of three, ranges that are
    /// empty, go beyond 32 bits or overlap on either side.
    pub fn parse(text: &str) -> Result<IdMap, String> {
        let parts = text.split(':').filter(|part| !part.is_empty());
        let numbers = parts.map(|part| part.parse::<u32>().map_err(|_| format!("\"{part}\" is no id")));
        let numbers = numbers.collect::<Result<Vec<u32>, String>>()?;
        if !numbers.len().is_multiple_of(3) {
            return Err(format!("{} numbers are no triples of disk, mount and count", numbers.len()));
        }
        let mut map = IdMap::default();
        for triple in numbers.chunks_exact(3) {
            let range = Range { stored: triple[0], shown: triple[1], count: triple[2] };
            if range.count == 0 {
                return Err("a range is empty".to_owned());
            }
            // The last id means "none".
            if range.stored.checked_add(range.count).is_none() || range.shown.checked_add(range.count).is_none() {
                return Err("a range goes beyond the last id".to_owned());
            }
            if map.0.iter().any(|other| other.overlaps(&range)) {
                return Err("ranges overlap".to_owned());
            }
            map.0.push(range);
        }
        Ok(map)
    }

    fn shown(&self, stored: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(stored);
        }
        self.0.iter().find_map(|range| shift(stored, range.stored, range.shown, range.count))
    }

    fn stored(&self, shown: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(shown);
        }
        self.0.iter().find_map(|range| shift(shown, range.shown, range.stored, range.count))
    }
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        let meet = |one: u32, two: u32| one < two + other.count && two < one + self.count;
        meet(self.stored, other.stored) || meet(self.shown, other.shown)
    }
}

fn shift(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    id.checked_sub(from).filter(|&offset| offset < count).map(|offset| to + offset)
}

/// How owners are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
    /// The one user that everything belongs to.
    pub squash_user: Option<u32>,
    /// The one group that everything belongs to.
    pub squash_group: Option<u32>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

impl Ids {
    /// The owner and group on the disk as programs see them.
    pub(crate) fn show(&self, uid: u32, gid: u32) -> (u32, u32) {
        let uid = self.squash_user.unwrap_or_else(|| self.users.shown(uid).unwrap_or(OVERFLOW));
        let gid = self.squash_group.unwrap_or_else(|| self.groups.shown(gid).unwrap_or(OVERFLOW));
        (uid, gid)
    }

    /// The user on the disk for one in the mount. One that has none is EINVAL, as chown(2) has it in a user namespace.
    pub(crate) fn stored_user(&self, shown: u32) -> Result<u32, Errno> {
        if shown == NO_ID { Ok(shown) } else { self.users.stored(shown).ok_or(Errno::INVAL) }
    }

    /// The same for a group.
    pub(crate) fn stored_group(&self, shown: u32) -> Result<u32, Errno> {
        if shown == NO_ID { Ok(shown) } else { self.groups.stored(shown).ok_or(Errno::INVAL) }
    }

    /// The value of an extended attribute as programs see it: ACLs name users and groups.
    pub(crate) fn show_xattr(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        self.acl(name, &value, Way::Out).unwrap_or(value)
    }

    /// The value that the disk gets. An ACL that names somebody who has no id there is EINVAL.
    pub(crate) fn store_xattr(&self, name: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        if !self.maps_acl(name) {
            return Ok(None);
        }
        self.acl(name, value, Way::In).map(Some).ok_or(Errno::INVAL)
    }

    fn maps_acl(&self, name: &[u8]) -> bool {
        let maps = self.users != IdMap::default() || self.groups != IdMap::default();
        maps && matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
    }

    /// `None` where there is nothing to map, or no way to.
    fn acl(&self, name: &[u8], value: &[u8], way: Way) -> Option<Vec<u8>> {
        if !self.maps_acl(name) || value.len() < ACL_HEADER || !(value.len() - ACL_HEADER).is_multiple_of(ACL_ENTRY) {
            return None;
        }
        let mut mapped = value.to_vec();
        for entry in mapped[ACL_HEADER..].chunks_exact_mut(ACL_ENTRY) {
            let map = match u16::from_le_bytes([entry[0], entry[1]]) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => continue,
            };
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let id = match way {
                Way::Out => map.shown(id).unwrap_or(OVERFLOW),
                Way::In => map.stored(id)?,
            };
            entry[4..8].copy_from_slice(&id.to_le_bytes());
        }
        Some(mapped)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_as_podman_writes_it_goes_both_ways() {
        let map = IdMap::parse(":0:1000:1:1:100000:65536").unwrap();
        for (stored, shown) in [(0, 1000), (1, 100_000), (65_536, 165_535)] {
            assert_eq!(map.shown(stored), Some(shown));
            assert_eq!(map.stored(shown), Some(stored));
        }
        assert_eq!(map.shown(65_537), None);
        assert_eq!(map.stored(999), None);
        assert_eq!(IdMap::parse("").unwrap().shown(7), Some(7));
    }

    #[test]
    fn a_mapping_that_makes_no_sense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("0:1", "triples"),
            ("0:x:1", "\"x\""),
            ("0:0:0", "empty"),
            ("4294967295:0:1", "beyond"),
            ("0:0:10:5:100:1", "overlap"),
            ("0:0:10:100:5:1", "overlap"),
        ] {
            let message = IdMap::parse(text).unwrap_err();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn squashing_hides_owners_and_has_no_way_back() {
        let ids = Ids {
            users: IdMap::parse("0:1000:10").unwrap(),
            squash_user: Some(7),
            squash_group: Some(8),
            ..Ids::default()
        };
        assert_eq!(ids.show(3, 4), (7, 8));
        assert_eq!(ids.stored_user(1003), Ok(3));
        assert_eq!(ids.stored_user(7), Err(Errno::INVAL));
        assert_eq!(ids.stored_user(NO_ID), Ok(NO_ID));
    }

    #[test]
    fn entries_of_an_acl_are_mapped_by_their_kind() {
        let ids = Ids {
            users: IdMap::parse("5:1005:1").unwrap(),
            groups: IdMap::parse("6:2006:1").unwrap(),
            ..Ids::default()
        };
        let acl = |user: u32, group: u32| {
            let mut bytes = 2u32.to_le_bytes().to_vec();
            for (tag, id) in [(0x01_u16, NO_ID), (ACL_USER, user), (0x04, NO_ID), (ACL_GROUP, group), (0x20, NO_ID)] {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(7_u16.to_le_bytes());
                bytes.extend(id.to_le_bytes());
            }
            bytes
        };
        let name = b"system.posix_acl_access";
        assert_eq!(ids.show_xattr(name, acl(5, 6)), acl(1005, 2006));
        assert_eq!(ids.show_xattr(name, acl(9, 6)), acl(OVERFLOW, 2006));
        assert_eq!(ids.store_xattr(name, &acl(1005, 2006)), Ok(Some(acl(5, 6))));
        assert_eq!(ids.store_xattr(name, &acl(5, 2006)), Err(Errno::INVAL));
        assert_eq!(ids.store_xattr(b"user.x", &acl(5, 6)), Ok(None));
        assert_eq!(ids.show_xattr(b"user.x", acl(5, 6)), acl(5, 6));
    }
}
