//! The handles that the kernel knows, and what they are to the union.

use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::inode::Fh;
use crate::passthrough::Passthrough;
use crate::served::Served;
use crate::session::ledger::{Entry, Ledger, RESENT, Via};

/// All open handles of a connection.
#[derive(Debug)]
pub(crate) struct Handles {
    ledger: Ledger,
    places: RwLock<Places>,
}

#[derive(Debug, Default)]
struct Places {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    handle: Option<Arc<Handle>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) entry: Entry,
    /// Not set when an earlier server opened it and nobody needed it since.
    fh: OnceLock<Fh>,
    opening: Mutex<()>,
}

impl Handles {
    /// The handles that `ledger` tells of; those that are passed through enter the table.
    pub(crate) fn recover(ledger: Ledger, table: &Passthrough) -> Result<Handles> {
        let mut places = Places::default();
        for (place, (generation, entry)) in (0..).zip(ledger.entries()?) {
            let handle = entry.map(|entry| {
                table.adopt(&entry);
                Arc::new(Handle { entry, fh: OnceLock::new(), opening: Mutex::default() })
            });
            if handle.is_none() {
                places.free.push(place);
            }
            places.places.push(Place { generation, handle });
        }
        Ok(Handles { ledger, places: RwLock::new(places) })
    }

    /// Where changes in flight are noted.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Enters a handle and returns the number by which the kernel is to know it.
    pub(crate) fn insert(&self, entry: Entry, fh: Fh) -> Result<u64> {
        let (place, generation) = {
            let mut guard = self.places.write();
            let Places { places, free } = &mut *guard;
            let place = free.pop().unwrap_or_else(|| {
                places.push(Place::default());
                (places.len() - 1) as u32
            });
            let taken = &mut places[place as usize];
            taken.generation = taken.generation.wrapping_add(1).max(1);
            taken.handle = Some(Arc::new(Handle { entry, fh: fh.into(), opening: Mutex::default() }));
            (place, taken.generation)
        };
        let number = u64::from(generation) << 32 | u64::from(place);
        if let Err(errno) = self.ledger.write(place, generation, Some(&entry)) {
            self.remove(number);
            return Err(errno.into());
        }
        Ok(number)
    }

    /// The handle of a number.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<Handle>> {
        let guard = self.places.read();
        let place =
            guard.places.get(number as u32 as usize).filter(|place| u64::from(place.generation) == number >> 32);
        place.and_then(|place| place.handle.clone()).ok_or(Error::Refused(Errno::BADF))
    }

    /// Takes a handle out; `None` when it is gone already, as it may be for a request that comes again.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        let place = number as u32;
        let mut guard = self.places.write();
        let found = guard.places.get_mut(place as usize).filter(|place| u64::from(place.generation) == number >> 32)?;
        let handle = found.handle.take()?;
        if let Err(errno) = self.ledger.write(place, found.generation, None) {
            tracing::warn!(%errno, "clearing a handle's record");
        }
        guard.free.push(place);
        Some(handle)
    }

    /// The number of the handle that the first attempt of a resent request made, if it came so far.
    pub(crate) fn made_by(&self, unique: u64) -> Option<u64> {
        if unique & RESENT == 0 {
            return None;
        }
        let guard = self.places.read();
        let mut places = (0u64..).zip(&guard.places);
        places.find_map(|(number, place)| {
            let handle = place.handle.as_ref()?;
            (handle.entry.unique == unique & !RESENT).then_some(u64::from(place.generation) << 32 | number)
        })
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        let guard = self.places.read();
        guard.places.len() - guard.free.len()
    }
}

impl Handle {
    /// The union's handle; opened anew when an earlier server had it.
    pub(crate) fn fh(&self, union: &dyn Served) -> Result<Fh> {
        if let Some(fh) = self.fh.get() {
            return Ok(*fh);
        }
        let _opening = self.opening.lock();
        if let Some(fh) = self.fh.get() {
            return Ok(*fh);
        }
        let fh = match self.entry.via {
            Via::Directory => union.opendir(self.entry.ino)?,
            _ => union.open(self.entry.ino, self.entry.flags - OFlags::TRUNC)?,
        };
        Ok(*self.fh.get_or_init(|| fh))
    }

    /// The union's handle, if it has one.
    pub(crate) fn opened(&self) -> Option<Fh> {
        self.fh.get().copied()
    }
}
