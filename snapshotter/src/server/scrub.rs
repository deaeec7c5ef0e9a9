//! Scrubbing in the background.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_layerdb::Store;
use mica_layerdb::verify::ScrubOptions;

/// How long after the end of a round the next one begins.
const REST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How often it is looked whether that is now, or the daemon ends.
const LOOK: Duration = Duration::from_millis(500);
/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_secs(60 * 60);

/// A thread that reads all contents, slowly, round after round. Ends when dropped; the next daemon goes on from there.
#[derive(Debug)]
pub(super) struct Scrubber {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    /// Starts, unless the rate is 0.
    pub(super) fn start(store: &Arc<Store>, mib_per_second: u64) -> io::Result<Option<Scrubber>> {
        if mib_per_second == 0 {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (store, stopped) = (Arc::downgrade(store), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("mica-scrub".to_owned())
            .spawn(move || scrub(&store, mib_per_second, &stopped))?;
        Ok(Some(Scrubber { stop, thread: Some(thread) }))
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("scrubbing panicked");
        }
    }
}

fn scrub(store: &Weak<Store>, mib_per_second: u64, stop: &AtomicBool) {
    let options = ScrubOptions { bytes_per_second: mib_per_second.saturating_mul(1 << 20), restart: false };
    while !stop.load(Ordering::Relaxed) {
        let Some(store) = store.upgrade() else { return };
        let wait = match rest(&store).filter(|rest| !rest.is_zero()) {
            Some(rest) => rest,
            None => round(&store, &options, stop),
        };
        drop(store);
        sleep(wait, stop);
    }
}

/// How long the last round is to be let rest; `None` while one is under way.
fn rest(store: &Store) -> Option<Duration> {
    let scrub = store.scrubbed().ok().flatten().filter(|scrub| scrub.next.is_none())?;
    let age = now().saturating_sub(Duration::from_secs(scrub.completed?));
    Some(REST.saturating_sub(age))
}

/// Goes on with a round; returns how long to wait then.
fn round(store: &Store, options: &ScrubOptions, stop: &AtomicBool) -> Duration {
    match store.scrub(options, stop, &()) {
        Ok(report) if report.complete => {
            let scrub = &report.scrub;
            tracing::info!(scrub.objects, scrub.bytes, scrub.damaged, "all contents were read");
            REST
        }
        Ok(_) => Duration::ZERO,
        Err(mica_layerdb::Error::Scrubbing) => {
            tracing::info!("somebody scrubs already");
            PAUSE
        }
        Err(error) => {
            tracing::error!(%error, "scrubbing");
            PAUSE
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn sleep(wait: Duration, stop: &AtomicBool) {
    let until = now() + wait;
    while now() < until && !stop.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
    }
}
