//! One thread at a time per key; the others wait for it and then look again.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use parking_lot::{Condvar, Mutex};

/// The keys whose turn somebody has.
pub(crate) struct Turns<K> {
    taken: Mutex<HashSet<K>>,
    freed: Condvar,
}

impl<K> Default for Turns<K> {
    fn default() -> Turns<K> {
        Turns { taken: Mutex::default(), freed: Condvar::new() }
    }
}

impl<K> fmt::Debug for Turns<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Waits until nobody has the key's turn, and takes it until the guard is dropped.
    pub(crate) fn take(&self, key: K) -> Turn<'_, K> {
        let mut taken = self.taken.lock();
        while !taken.insert(key) {
            self.freed.wait(&mut taken);
        }
        Turn { turns: self, key }
    }

    /// Takes the key's turn unless somebody has it.
    pub(crate) fn try_take(&self, key: K) -> Option<Turn<'_, K>> {
        self.taken.lock().insert(key).then(|| Turn { turns: self, key })
    }
}

/// See [`Turns::take`].
pub(crate) struct Turn<'a, K: Copy + Eq + Hash> {
    turns: &'a Turns<K>,
    key: K,
}

impl<K: Copy + Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.key);
        self.turns.freed.notify_all();
    }
}
