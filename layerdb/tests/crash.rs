//! Power cuts, full and failing disks: what is acknowledged stays, what is not leaves nothing behind.
//!
//! `MICA_CRASH=long` (`make crash`) tries every state; otherwise some of them are tried.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "crash/check.rs"]
mod check;
#[path = "crash/faults.rs"]
mod faults;
#[path = "crash/full.rs"]
mod full;
#[path = "crash/kill.rs"]
mod kill;
#[path = "crash/killed.rs"]
mod killed;
#[path = "crash/material.rs"]
mod material;
#[path = "crash/power.rs"]
mod power;
#[path = "crash/power_switch.rs"]
mod power_switch;
#[path = "crash/record.rs"]
mod record;
#[path = "crash/scenario.rs"]
mod scenario;
#[path = "crash/watch.rs"]
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_layerdb::{Error, Store, StoreOptions};

/// Whether every state is to be tried.
fn long() -> bool {
    std::env::var_os("MICA_CRASH").is_some_and(|value| value == "long")
}

/// Opens a store. One that was just closed may still be locked: a program that another test is starting has inherited
/// its descriptors, from fork(2) to execve(2).
fn open(root: &Path, options: &StoreOptions) -> mica_layerdb::Result<Arc<Store>> {
    let since = Instant::now();
    loop {
        match Store::open_with(root, options.clone()) {
            Err(Error::Locked { .. }) if since.elapsed() < Duration::from_secs(60) => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

/// A directory in memory if there is one: what is tried here doesn't depend on a disk.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}
