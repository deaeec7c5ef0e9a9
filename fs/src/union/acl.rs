//! What a new inode inherits from its directory's default ACL (acl(5), "object creation and default ACLs"), where the
//! disk does not see to it: an inode that is made aside and renamed into the directory.
//!
//! ACLs have the form in which Linux keeps them in extended attributes: a version (u32, 2) and entries of tag (u16),
//! permissions (u16) and id (u32).

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::upper::Spot;

pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
const ACCESS: &[u8] = b"system.posix_acl_access";

const HEADER: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Gives a new inode of `mode` what it inherits from `default`, its permissions included.
pub(crate) fn inherit(spot: &Spot, default: &[u8], mode: u32, dir: bool) -> Result<(), Errno> {
    let mut access = default.to_vec();
    let mode = restrict(&mut access, mode).ok_or(Errno::IO)?;
    spot.chmod(mode)?;
    // Three entries say no more than the mode does.
    if access.len() > HEADER + 3 * ENTRY {
        spot.set_xattr(ACCESS, &access, XattrFlags::empty())?;
    }
    if dir {
        spot.set_xattr(DEFAULT, default, XattrFlags::empty())?;
    }
    Ok(())
}

/// Takes from an ACL what `mode` does not allow, and from `mode` what the ACL does not: owner, others, and the mask or
/// else the group meet. `None` if it is no ACL.
fn restrict(acl: &mut [u8], mode: u32) -> Option<u32> {
    if acl.len() < HEADER || !(acl.len() - HEADER).is_multiple_of(ENTRY) || acl[..HEADER] != 2u32.to_le_bytes() {
        return None;
    }
    let entries = &mut acl[HEADER..];
    let has_mask = entries.chunks(ENTRY).any(|entry| tag(entry) == MASK);
    let mut result = mode & !0o777;
    for entry in entries.chunks_mut(ENTRY) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        let allowed = u32::from(u16::from_le_bytes([entry[2], entry[3]])) & (mode >> shift) & 7;
        entry[2..4].copy_from_slice(&(allowed as u16).to_le_bytes());
        result |= allowed << shift;
    }
    Some(result)
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_mask_meets_the_group_bits_and_the_group_entry_stays() {
        let mut inherited = acl(&[(USER_OBJ, 7), (0x02, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 5)]);
        assert_eq!(restrict(&mut inherited, 0o100_640), Some(0o100_640));
        assert_eq!(inherited, acl(&[(USER_OBJ, 6), (0x02, 7), (GROUP_OBJ, 7), (MASK, 4), (OTHER, 0)]));
    }

    #[test]
    fn without_a_mask_the_group_entry_is_restricted() {
        let mut inherited = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        assert_eq!(restrict(&mut inherited, 0o666), Some(0o640));
    }

    #[test]
    fn bytes_that_are_no_acl_are_refused() {
        assert_eq!(restrict(&mut [2, 0, 0], 0o666), None);
        assert_eq!(restrict(&mut [2, 0, 0, 0, 1], 0o666), None);
    }
}
