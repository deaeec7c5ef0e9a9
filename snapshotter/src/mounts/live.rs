//! The mounts that this process serves.
//!
//! A number is mounted by the thread that has its snapshot's turn, and ended once. Ending waits for programs that still
//! use the mount, so each has a thread of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Mounted, Mounter, Plan};
use crate::error::Result;

#[derive(Debug)]
pub(crate) struct Live<B> {
    mounter: Arc<dyn Mounter>,
    table: Mutex<Table<B>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Table<B> {
    serving: HashMap<u64, Serving<B>>,
    ending: HashSet<u64>,
}

#[derive(Debug)]
struct Serving<B> {
    mounted: Box<dyn Mounted>,
    /// What the mount's lower was made of, for those who want to change it.
    below: Arc<B>,
}

impl<B: Send + Sync + 'static> Live<B> {
    pub(crate) fn new(mounter: Arc<dyn Mounter>) -> Live<B> {
        let table = Table { serving: HashMap::new(), ending: HashSet::new() };
        Live { mounter, table: Mutex::new(table), changed: Condvar::new() }
    }

    pub(crate) fn mounter(&self) -> &Arc<dyn Mounter> {
        &self.mounter
    }

    /// Whether the mount is there.
    pub(crate) fn is_serving(&self, number: u64) -> bool {
        self.table.lock().serving.get(&number).is_some_and(|serving| serving.mounted.is_live())
    }

    /// Forgets a mount that somebody else took away, once no program uses it any more; two mounts of one folder would
    /// not know of each other's changes. False if that has not come in time.
    pub(crate) fn forget_gone(&self, number: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let mut table = self.table.lock();
            if table.serving.get(&number).is_none_or(|serving| serving.mounted.has_ended()) {
                let gone = table.serving.remove(&number);
                drop(table);
                drop(gone);
                return true;
            }
            drop(table);
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn below(&self, number: u64) -> Option<Arc<B>> {
        self.table.lock().serving.get(&number).map(|serving| Arc::clone(&serving.below))
    }

    pub(crate) fn mount(&self, plan: Plan, below: Arc<B>) -> Result<()> {
        let number = plan.number;
        let mounted = self.mounter.mount(plan)?;
        self.table.lock().serving.insert(number, Serving { mounted, below });
        Ok(())
    }

    pub(crate) fn resume(&self, plan: Plan, below: Arc<B>) -> Result<()> {
        let number = plan.number;
        let mounted = self.mounter.resume(plan)?;
        self.table.lock().serving.insert(number, Serving { mounted, below });
        Ok(())
    }

    /// Ends a mount in the background and does `then`, also if there was none. Only then it has ended.
    pub(crate) fn end(self: &Arc<Self>, number: u64, then: impl FnOnce() + Send + 'static) {
        let serving = {
            let mut table = self.table.lock();
            table.ending.insert(number);
            table.serving.remove(&number)
        };
        let live = Arc::clone(self);
        let work = move || {
            live.unmount(number, serving);
            then();
            live.ended(number);
        };
        if let Err(error) = thread::Builder::new().name(format!("mica-end-{number}")).spawn(work) {
            tracing::error!(number, %error, "a mount cannot be ended now; it goes when the daemon starts anew");
            self.ended(number);
        }
    }

    fn unmount(&self, number: u64, serving: Option<Serving<B>>) {
        let ended = match serving {
            Some(serving) => serving.mounted.unmount(),
            None => self.mounter.discard(number),
        };
        if let Err(error) = ended {
            tracing::warn!(number, %error, "a mount did not end well");
            if let Err(error) = self.mounter.discard(number) {
                tracing::error!(number, %error, "a mount stays");
            }
        }
    }

    fn ended(&self, number: u64) {
        self.table.lock().ending.remove(&number);
        self.changed.notify_all();
    }

    /// Waits until the mount of this number has ended. False if it hasn't in time.
    pub(crate) fn wait_ended(&self, number: u64, patience: Duration) -> bool {
        self.wait(patience, |table| !table.ending.contains(&number))
    }

    fn wait(&self, patience: Duration, done: impl Fn(&Table<B>) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut table = self.table.lock();
        while !done(&table) {
            if self.changed.wait_until(&mut table, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Stops serving all mounts, which stay. Waits a moment for those that are ending.
    pub(crate) fn leave_all(&self, patience: Duration) {
        self.wait(patience, |table| table.ending.is_empty());
        let serving: Vec<_> = self.table.lock().serving.drain().collect();
        in_parallel(serving, |(_, serving)| serving.mounted.leave());
    }

    /// Ends all mounts, waiting a while for programs to let go.
    pub(crate) fn end_all(self: &Arc<Self>, patience: Duration) -> bool {
        let numbers: Vec<u64> = self.table.lock().serving.keys().copied().collect();
        for number in numbers {
            self.end(number, || ());
        }
        self.wait(patience, |table| table.ending.is_empty())
    }
}

/// Does `work` with each, several at a time.
pub(crate) fn in_parallel<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    const THREADS: usize = 8;
    let threads = items.len().min(THREADS);
    let items = Mutex::new(items.into_iter());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(item) = items.lock().next() else { break };
                    work(item);
                }
            });
        }
    });
}
