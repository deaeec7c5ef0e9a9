//! The thread that makes partly copied files whole, slowly, and durable now and then.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::partial::{Partial, Step};
use crate::upper::BlockCopy;

/// What was written to a partly copied file is durable after this time, if nobody syncs it before.
const PERSIST_AFTER: Duration = Duration::from_secs(5);
/// How often the thread looks at files that have nothing to be copied at the moment.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A copy goes on only while so many parts of the disk are free: the space is more for programs than for copies.
const FREE_PARTS: u64 = 16;

/// The thread, which runs from the first partly copied file on.
pub(super) struct Filler {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    how: BlockCopy,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    stop: bool,
}

#[derive(Clone)]
struct Job {
    partial: Arc<Partial>,
    /// Where copying goes on, and when.
    cursor: u64,
    after: Instant,
}

impl fmt::Debug for Filler {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Filler").field("how", &self.how).finish_non_exhaustive()
    }
}

impl Filler {
    pub(super) fn new(how: BlockCopy) -> Filler {
        Filler { shared: Arc::default(), thread: Mutex::default(), how }
    }

    /// Takes care of a file from now on.
    pub(super) fn add(&self, partial: &Arc<Partial>) {
        let mut state = self.shared.state.lock();
        if state.stop {
            return;
        }
        state.jobs.push(Job { partial: Arc::clone(partial), cursor: 0, after: Instant::now() + self.how.wait });
        drop(state);
        self.shared.wake.notify_all();
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (shared, how) = (Arc::clone(&self.shared), self.how);
            let started = std::thread::Builder::new().name("mica-fill".into()).spawn(move || shared.run(how));
            match started {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::warn!(%error, "partly copied files are not made whole"),
            }
        }
    }

    /// Stops copying for good, and makes durable what was written.
    pub(super) fn stop(&self) {
        let jobs = {
            let mut state = self.shared.state.lock();
            state.stop = true;
            std::mem::take(&mut state.jobs)
        };
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes partly copied files whole has panicked");
        }
        for Job { partial, .. } in jobs {
            persist(&partial);
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, how: BlockCopy) {
        let mut next = 0;
        loop {
            let job = {
                let mut state = self.state.lock();
                if state.stop {
                    return;
                }
                // Who has been whole, or is without a name and not open, needs nobody any more.
                state.jobs.retain(|job| !is_done(&job.partial));
                if state.jobs.is_empty() {
                    self.wake.wait(&mut state);
                    continue;
                }
                let now = Instant::now();
                next += 1;
                let count = state.jobs.len();
                let ready = (0..count).map(|at| (at + next) % count).find(|at| state.jobs[*at].is_ready(now));
                if let Some(at) = ready {
                    state.jobs[at].clone()
                } else {
                    self.wake.wait_for(&mut state, LOOK_EVERY);
                    continue;
                }
            };
            let pause = self.work(job, how);
            let mut state = self.state.lock();
            if !state.stop && !pause.is_zero() {
                self.wake.wait_for(&mut state, pause);
            }
        }
    }

    /// Does what is next for a file; returns for how long the disk is to be left alone.
    fn work(&self, mut job: Job, how: BlockCopy) -> Duration {
        let now = Instant::now();
        if job.partial.dirty_since().is_some_and(|since| now.duration_since(since) >= PERSIST_AFTER) {
            persist(&job.partial);
        }
        if now < job.after {
            return Duration::ZERO;
        }
        let mut pause = Duration::ZERO;
        if !has_room(&job.partial) {
            job.after = now + PERSIST_AFTER;
        } else if job.partial.is_unlinked().unwrap_or(false) {
            job.after = now + LOOK_EVERY;
        } else {
            match job.partial.step(&mut job.cursor) {
                Ok(Step::Copied(bytes)) => {
                    let nanos = bytes.saturating_mul(1_000_000_000) / how.bytes_per_second.max(1);
                    pause = Duration::from_nanos(nanos);
                }
                Ok(Step::Whole) => {}
                Err(error) => {
                    tracing::warn!(%error, "a partly copied file can't be made whole now");
                    job.after = now + 6 * PERSIST_AFTER;
                }
            }
        }
        let mut state = self.state.lock();
        if let Some(known) = state.jobs.iter_mut().find(|known| Arc::ptr_eq(&known.partial, &job.partial)) {
            *known = job;
        }
        pause
    }
}

impl Job {
    fn is_ready(&self, now: Instant) -> bool {
        let persist = self.partial.dirty_since().is_some_and(|since| now.duration_since(since) >= PERSIST_AFTER);
        persist || now >= self.after
    }
}

/// The caller's reference and the table's are all that is left of an open file.
fn is_done(partial: &Arc<Partial>) -> bool {
    partial.is_whole() || (Arc::strong_count(partial) == 1 && partial.is_unlinked().unwrap_or(false))
}

fn has_room(partial: &Partial) -> bool {
    rustix::fs::fstatvfs(&**partial.upper()).is_ok_and(|stat| stat.f_bavail > stat.f_blocks / FREE_PARTS)
}

fn persist(partial: &Partial) {
    if partial.dirty_since().is_some()
        && !partial.is_whole()
        && let Err(error) = partial.persist(false)
    {
        tracing::error!(%error, "what was written to a partly copied file is not durable");
    }
}
