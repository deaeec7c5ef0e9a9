//! The jobs of settling, and those who wait for them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Failure;
use crate::error::{Error, Result};
use crate::store::Record;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Jobs by the name of their snapshot.
#[derive(Debug, Default)]
pub(in crate::snapshots) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<String, Job>,
    closed: bool,
}

#[derive(Debug)]
struct Job {
    number: u64,
    parent: String,
    running: bool,
    attempts: u32,
    due: Instant,
    failure: Option<Failure>,
}

impl State {
    /// The failure that the snapshot's stack is waiting behind: its own, or that of the nearest parent that has one.
    fn failure(&self, name: &str) -> Option<Error> {
        let mut at = name;
        while let Some((found, job)) = self.jobs.get_key_value(at) {
            if let Some(failure) = &job.failure {
                return Some(failure.error(found));
            }
            at = &job.parent;
        }
        None
    }

    fn runnable(&self) -> Option<&str> {
        let now = Instant::now();
        let runnable = self.jobs.iter().filter(|(_, job)| job.is_open() && job.due <= now && self.is_free(job));
        runnable.min_by_key(|(_, job)| job.number).map(|(name, _)| name.as_str())
    }

    /// Whether its parent has no job.
    fn is_free(&self, job: &Job) -> bool {
        !self.jobs.contains_key(&job.parent)
    }

    fn next_due(&self) -> Option<Instant> {
        self.jobs.values().filter(|job| job.is_open() && self.is_free(job)).map(|job| job.due).min()
    }
}

impl Job {
    fn is_open(&self) -> bool {
        !self.running && !self.failure.as_ref().is_some_and(|failure| failure.lost)
    }
}

impl Queue {
    /// Adds a job, unless there is one.
    pub(in crate::snapshots) fn add(&self, name: &str, record: &Record) {
        let mut state = self.state.lock();
        let job = || Job {
            number: record.number,
            parent: record.parent.clone(),
            running: false,
            attempts: 0,
            due: Instant::now(),
            failure: None,
        };
        match state.jobs.get_mut(name) {
            // Left by a snapshot of the same name.
            Some(found) if found.number != record.number => *found = job(),
            Some(_) => {}
            None => drop(state.jobs.insert(name.to_owned(), job())),
        }
        self.changed.notify_all();
    }

    /// Takes a job away, because its snapshot was removed.
    pub(in crate::snapshots) fn forget(&self, name: &str, number: u64) {
        let mut state = self.state.lock();
        if state.jobs.get(name).is_some_and(|job| job.number == number) {
            state.jobs.remove(name);
            self.changed.notify_all();
        }
    }

    pub(super) fn done(&self, name: &str, number: u64) {
        self.forget(name, number);
    }

    pub(super) fn failed(&self, name: &str, number: u64, error: &Error) {
        let mut state = self.state.lock();
        if let Some(job) = state.jobs.get_mut(name).filter(|job| job.number == number) {
            let wait = FIRST_RETRY.saturating_mul(1 << job.attempts.min(16)).min(LONGEST_RETRY);
            job.running = false;
            job.attempts += 1;
            job.due = Instant::now() + wait;
            job.failure = Some(Failure::of(error));
        }
        self.changed.notify_all();
    }

    /// Waits for a job that can run. `None` when no more are to.
    pub(super) fn next(&self) -> Option<(String, u64)> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(name) = state.runnable().map(str::to_owned) {
                let job = state.jobs.get_mut(&name)?;
                job.running = true;
                return Some((name, job.number));
            }
            match state.next_due() {
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// What keeps the snapshot's stack from being complete, if something does for now.
    pub(in crate::snapshots) fn check(&self, name: &str) -> Result<()> {
        self.state.lock().failure(name).map_or(Ok(()), Err)
    }

    /// Waits until the snapshot has no job. An error if it or one that it builds upon has failed, though that is tried
    /// again.
    pub(in crate::snapshots) fn wait(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        while state.jobs.contains_key(name) {
            if let Some(error) = state.failure(name) {
                return Err(error);
            }
            if state.closed {
                return Err(Error::Unavailable { reason: "the daemon is stopping".into() });
            }
            self.changed.wait(&mut state);
        }
        Ok(())
    }

    pub(in crate::snapshots) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::snapshots::Kind;
    use std::collections::BTreeMap;

    fn add(queue: &Queue, name: &str, number: u64, parent: &str) {
        queue.add(name, &Record::new(number, Kind::Committed, parent, BTreeMap::new()));
    }

    fn lost(name: &str) -> Error {
        Error::Lost { key: name.into(), reason: "fire".into() }
    }

    #[test]
    fn jobs_run_after_their_parents_and_else_by_number() {
        let queue = Queue::default();
        add(&queue, "child", 1, "parent");
        add(&queue, "other", 3, "");
        add(&queue, "parent", 2, "settled");
        add(&queue, "parent", 2, "settled");
        assert_eq!(queue.next().unwrap(), ("parent".into(), 2));
        assert_eq!(queue.next().unwrap(), ("other".into(), 3));
        queue.done("parent", 2);
        assert_eq!(queue.next().unwrap(), ("child".into(), 1));
        queue.done("child", 1);
        queue.wait("child").unwrap();
        queue.close();
        assert_eq!(queue.next(), None);
        assert!(queue.wait("other").is_err());
    }

    #[test]
    fn failed_job_is_reported_to_those_above_and_runs_again() {
        let queue = Queue::default();
        add(&queue, "a", 1, "");
        add(&queue, "b", 2, "a");
        assert_eq!(queue.next().unwrap().0, "a");
        queue.check("b").unwrap();
        queue.failed("a", 1, &Error::Unavailable { reason: "rain".into() });
        let error = queue.wait("b").unwrap_err();
        assert!(error.to_string().contains("snapshot a") && error.to_string().contains("rain"), "{error}");
        assert_eq!(error.kind(), crate::error::Kind::Unavailable);
        assert_eq!(queue.next().unwrap().0, "a");
        queue.done("a", 1);
        queue.check("b").unwrap();
        assert_eq!(queue.next().unwrap().0, "b");
    }

    #[test]
    fn lost_job_stays_reported_until_its_snapshot_is_removed() {
        let queue = Queue::default();
        add(&queue, "a", 1, "");
        add(&queue, "b", 2, "a");
        queue.next().unwrap();
        queue.failed("a", 1, &lost("a"));
        assert!(queue.state.lock().runnable().is_none() && queue.state.lock().next_due().is_none());
        assert_eq!(queue.check("b").unwrap_err().kind(), crate::error::Kind::DataLoss);
        queue.forget("b", 2);
        queue.forget("a", 7);
        assert!(queue.check("a").is_err());
        queue.forget("a", 1);
        queue.check("a").unwrap();
    }
}
