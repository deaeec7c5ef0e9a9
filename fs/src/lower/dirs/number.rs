//! Inode numbers of stacked directories.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use crate::inode::Ino;

/// The most directories that can be stacked; every number stays below 2^61.
pub(crate) const LAYERS_MAX: usize = 4096;

/// Bits for the disk's own number.
const HOST_BITS: u32 = 48;
/// Marks numbers that are drawn from a hash.
const HASHED: u64 = 1 << 61;

/// A file of a layer: where it is from, and its device unless that is the layer's, and its number there.
type Identity = (u16, u64, u64);

/// Gives every file of every layer a number that is the same each time.
///
/// `(layer + 2) << 48 | number` for a disk's own number of 48 bits. Larger ones, and those of another device within the
/// layer (a btrfs subvolume), are hashed; should two meet, the later one moves on, and is the one whose number could differ
/// the next time.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    hashed: Mutex<HashMap<Ino, Identity>>,
}

impl Numbers {
    /// The number of inode `host` in layer `layer`; `device` is `None` for the device of the layer's root.
    pub(crate) fn of(&self, layer: u16, device: Option<u64>, host: u64) -> Ino {
        if device.is_none() && host >> HOST_BITS == 0 {
            return Ino((u64::from(layer) + 2) << HOST_BITS | host);
        }
        let identity = (layer, device.unwrap_or(0), host);
        let mut hash = mix(mix(mix(u64::from(layer)) ^ identity.1) ^ host);
        let mut hashed = self.hashed.lock();
        loop {
            let ino = Ino(HASHED | hash & (HASHED - 1));
            match hashed.entry(ino) {
                Entry::Vacant(free) => {
                    free.insert(identity);
                    return ino;
                }
                Entry::Occupied(taken) if *taken.get() == identity => return ino,
                Entry::Occupied(_) => hash = hash.wrapping_add(1),
            }
        }
    }
}

/// Spreads a number over all bits: a bijection (the finalizer of splitmix64).
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_meet_those_of_the_upper() {
        let numbers = Numbers::default();
        for (layer, device, host) in [(0, None, 1), (7, None, 1 << 47), (0, None, 1 << 60), (3, Some(9), 256)] {
            let ino = numbers.of(layer, device, host);
            assert!(!ino.is_upper());
            assert!(ino.0 >> HOST_BITS >= 2);
            assert_eq!(ino, numbers.of(layer, device, host));
        }
        assert_eq!(numbers.of(1, None, 5), Ino(3 << 48 | 5));
    }

    #[test]
    fn wide_numbers_that_meet_are_told_apart() {
        let numbers = Numbers::default();
        let first = numbers.of(0, None, 1 << 50);
        numbers.hashed.lock().insert(first, (9, 9, 9));
        let second = numbers.of(0, None, 1 << 50);
        assert_ne!(first, second);
        assert_eq!(second, numbers.of(0, None, 1 << 50));
    }
}
