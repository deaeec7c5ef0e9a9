//! What a keeper holds.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use super::attach::{Attach, attach};
use super::wire::{Answer, Init, Request};
use crate::error::{Error, Result};

/// The connections by name. A copy is the same table.
#[derive(Clone, Default)]
pub(super) struct Table(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    by_id: HashMap<String, Slot>,
    /// Nothing is taken in any more: the process ends.
    closed: bool,
}

enum Slot {
    /// Being mounted.
    Reserved,
    Held(Entry),
}

struct Entry {
    mountpoint: Vec<u8>,
    device: OwnedFd,
    ledger: OwnedFd,
    init: Option<Init>,
}

impl Table {
    /// Does what a client asks for.
    pub(super) fn handle(&self, request: Request) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        match request {
            Request::Mount { id, mountpoint, attach } => self.mount(&id, mountpoint, &attach),
            Request::Take { id } => self.take(&id),
            Request::Save { id, init } => {
                self.entry(&id, |entry| {
                    entry.init = Some(init);
                    Ok(())
                })?;
                Ok((Vec::new(), Vec::new()))
            }
            Request::List => Ok((self.list(), Vec::new())),
            Request::Forget { id } => {
                let forgotten = self.0.lock().by_id.remove(&id);
                drop(forgotten);
                Ok((Vec::new(), Vec::new()))
            }
            Request::Stop => self.close(),
        }
    }

    fn mount(&self, id: &str, mountpoint: Vec<u8>, how: &Attach) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        {
            let mut slots = self.0.lock();
            if slots.closed {
                return Err(Error::Keeper { reason: "it is ending".to_owned(), errno: Errno::CONNREFUSED });
            }
            let alive = slots.alive();
            if alive.contains_key(id) {
                return Err(Error::Keeper { reason: format!("{id} is mounted already"), errno: Errno::EXIST });
            }
            alive.insert(id.to_owned(), Slot::Reserved);
        }
        let made = made(mountpoint, how);
        let slots = &mut self.0.lock().by_id;
        match made {
            Ok(entry) => {
                let answer = entry.answer();
                slots.insert(id.to_owned(), Slot::Held(entry));
                answer
            }
            Err(error) => {
                slots.remove(id);
                Err(error)
            }
        }
    }

    fn take(&self, id: &str) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        let taken =
            self.entry(
                id,
                |entry| if is_alive(&entry.device) { Ok(entry.answer()?) } else { Ok((Vec::new(), Vec::new())) },
            )?;
        if taken.0.is_empty() {
            self.0.lock().by_id.remove(id);
            return Err(Error::Keeper { reason: format!("{id} is not mounted any more"), errno: Errno::NOTCONN });
        }
        Ok(taken)
    }

    fn entry<T>(&self, id: &str, with: impl FnOnce(&mut Entry) -> Result<T>) -> Result<T> {
        match self.0.lock().by_id.get_mut(id) {
            Some(Slot::Held(entry)) => with(entry),
            _ => Err(Error::Keeper { reason: format!("{id} is not held"), errno: Errno::NOENT }),
        }
    }

    fn list(&self) -> Vec<Answer> {
        let mut slots = self.0.lock();
        let held = slots.alive().iter().filter_map(|(id, slot)| match slot {
            Slot::Reserved => None,
            Slot::Held(entry) => {
                Some(Answer::Held { id: id.clone(), mountpoint: entry.mountpoint.clone(), ready: entry.init.is_some() })
            }
        });
        held.collect()
    }

    /// From now on nothing is mounted here, unless there is something to stay for.
    fn close(&self) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        let mut slots = self.0.lock();
        if !slots.alive().is_empty() {
            return Err(Error::Keeper { reason: "there are mounts that it keeps".to_owned(), errno: Errno::BUSY });
        }
        slots.closed = true;
        Ok((Vec::new(), Vec::new()))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }
}

impl Slots {
    /// Those that are still mounted; the others are dropped.
    fn alive(&mut self) -> &mut HashMap<String, Slot> {
        self.by_id.retain(|_, slot| slot.is_alive());
        &mut self.by_id
    }
}

impl Slot {
    fn is_alive(&self) -> bool {
        match self {
            Slot::Reserved => true,
            Slot::Held(entry) => is_alive(&entry.device),
        }
    }
}

impl Entry {
    fn answer(&self) -> Result<(Vec<Answer>, Vec<OwnedFd>)> {
        let answer = Answer::Connection { mountpoint: self.mountpoint.clone(), init: self.init.clone() };
        Ok((vec![answer], vec![self.device.try_clone()?, self.ledger.try_clone()?]))
    }
}

fn made(mountpoint: Vec<u8>, how: &Attach) -> Result<Entry> {
    let ledger = memfd_create("mica-ledger", MemfdFlags::CLOEXEC)?;
    let device = attach(Path::new(std::ffi::OsStr::from_bytes(&mountpoint)), how)?;
    Ok(Entry { mountpoint, device, ledger, init: None })
}

/// Whether the mount behind a device still exists: the kernel reports an error for one that was unmounted or aborted.
fn is_alive(device: &OwnedFd) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut ready, Some(&now)) {
        Ok(_) => !ready[0].revents().contains(PollFlags::ERR),
        Err(_) => true,
    }
}
