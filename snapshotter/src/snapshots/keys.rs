//! Whose turn it is with a snapshot.
//!
//! A name is changed by one thread at a time; others wait for it, but not for ever. Snapshots that are being made upon
//! a parent are counted, so that it is not removed meanwhile; that never makes anybody wait for a mount.
//!
//! Order: names ascending, then parents.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// How long a call waits for an earlier one of the same snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Keys {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    locked: HashSet<String>,
    /// Names with the number of threads that build upon them.
    parents: HashMap<String, usize>,
    /// Names that are being removed.
    leaving: HashSet<String>,
}

impl Keys {
    /// Waits for the name's turn. [`Error::Busy`] if it doesn't come in time.
    pub(crate) fn lock(&self, key: &str) -> Result<KeyGuard<'_>> {
        self.lock_within(key, PATIENCE)
    }

    fn lock_within(&self, key: &str, patience: Duration) -> Result<KeyGuard<'_>> {
        let deadline = Instant::now() + patience;
        let mut table = self.table.lock();
        while table.locked.contains(key) {
            if self.changed.wait_until(&mut table, deadline).timed_out() {
                return Err(Error::Busy { key: key.into() });
            }
        }
        table.locked.insert(key.into());
        Ok(KeyGuard { keys: self, key: key.into() })
    }

    /// [`Keys::lock`] for two different names.
    pub(crate) fn lock_both(&self, one: &str, other: &str) -> Result<(KeyGuard<'_>, KeyGuard<'_>)> {
        let first = self.lock(one.min(other))?;
        Ok((first, self.lock(one.max(other))?))
    }

    /// Keeps `parent` from being removed. Waits while it is being removed, which is one batch.
    pub(crate) fn build_upon(&self, parent: &str) -> Result<ParentGuard<'_>> {
        let deadline = Instant::now() + PATIENCE;
        let mut table = self.table.lock();
        while table.leaving.contains(parent) {
            if self.changed.wait_until(&mut table, deadline).timed_out() {
                return Err(Error::Busy { key: parent.into() });
            }
        }
        *table.parents.entry(parent.into()).or_default() += 1;
        Ok(ParentGuard { keys: self, parent: parent.into() })
    }

    /// Keeps anybody from building upon `key`. `None` if somebody does. The caller has its turn.
    pub(crate) fn retire(&self, key: &str) -> Option<RetireGuard<'_>> {
        let mut table = self.table.lock();
        if table.parents.contains_key(key) {
            return None;
        }
        table.leaving.insert(key.into());
        Some(RetireGuard { keys: self, key: key.into() })
    }
}

/// See [`Keys::lock`].
#[derive(Debug)]
pub(crate) struct KeyGuard<'a> {
    keys: &'a Keys,
    key: String,
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        self.keys.table.lock().locked.remove(&self.key);
        self.keys.changed.notify_all();
    }
}

/// See [`Keys::build_upon`].
#[derive(Debug)]
pub(crate) struct ParentGuard<'a> {
    keys: &'a Keys,
    parent: String,
}

impl Drop for ParentGuard<'_> {
    fn drop(&mut self) {
        let mut table = self.keys.table.lock();
        if let Some(users) = table.parents.get_mut(&self.parent) {
            *users -= 1;
            if *users == 0 {
                table.parents.remove(&self.parent);
            }
        }
    }
}

/// See [`Keys::retire`].
#[derive(Debug)]
pub(crate) struct RetireGuard<'a> {
    keys: &'a Keys,
    key: String,
}

impl Drop for RetireGuard<'_> {
    fn drop(&mut self) {
        self.keys.table.lock().leaving.remove(&self.key);
        self.keys.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lock_of_a_locked_name_is_busy_and_of_another_is_not() {
        let keys = Keys::default();
        let held = keys.lock("a").unwrap();
        let error = keys.lock_within("a", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(&error, Error::Busy { key } if key == "a"), "{error}");
        drop(keys.lock("b").unwrap());
        drop(held);
        drop(keys.lock("a").unwrap());
    }

    #[test]
    fn lock_of_both_in_either_order_never_deadlocks() {
        let keys = Keys::default();
        std::thread::scope(|scope| {
            for turn in 0..4 {
                let keys = &keys;
                scope.spawn(move || {
                    for _ in 0..500 {
                        let (one, other) = if turn % 2 == 0 { ("a", "b") } else { ("b", "a") };
                        drop(keys.lock_both(one, other).unwrap());
                    }
                });
            }
        });
        assert!(keys.table.lock().locked.is_empty());
    }

    #[test]
    fn name_is_not_retired_while_somebody_builds_upon_it() {
        let keys = Keys::default();
        let one = keys.build_upon("p").unwrap();
        let other = keys.build_upon("p").unwrap();
        assert!(keys.retire("p").is_none());
        drop(one);
        assert!(keys.retire("p").is_none());
        drop(other);
        let leaving = keys.retire("p").unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(keys.build_upon("p").unwrap()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            drop(leaving);
        });
        assert!(keys.table.lock().parents.is_empty());
    }
}
