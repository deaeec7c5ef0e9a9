//! Which objects have been compared with their digests since this process began.

use std::collections::HashSet;

use mica_layerdb::ObjectId;
use parking_lot::{Condvar, Mutex};

use crate::error::Result;

/// Objects remembered, at 16 bytes or so each; beyond, all are forgotten and read once more.
const REMEMBERED: usize = 1 << 20;

/// Objects by the first eight bytes of their digests: two that share these would have to be made on purpose, by one
/// who then still has to damage the store.
#[derive(Debug, Default)]
pub(super) struct Verified {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    whole: HashSet<u64>,
    running: HashSet<u64>,
}

impl Verified {
    /// Runs `verify` unless it has been run for the object with success. No lock is held meanwhile; others who ask for
    /// the same object wait for its end, and if it failed try themselves.
    pub(super) fn once(&self, id: ObjectId, verify: impl FnOnce() -> Result<()>) -> Result<()> {
        let key = short(id);
        {
            let mut state = self.state.lock();
            loop {
                if state.whole.contains(&key) {
                    return Ok(());
                }
                if state.running.insert(key) {
                    break;
                }
                self.ended.wait(&mut state);
            }
        }
        let running = Running { verified: self, key };
        let result = verify();
        if result.is_ok() {
            let mut state = self.state.lock();
            if state.whole.len() >= REMEMBERED {
                state.whole.clear();
            }
            state.whole.insert(key);
        }
        drop(running);
        result
    }
}

/// Ends a run however it ends.
struct Running<'a> {
    verified: &'a Verified,
    key: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.verified.state.lock().running.remove(&self.key);
        self.verified.ended.notify_all();
    }
}

fn short(id: ObjectId) -> u64 {
    id.as_bytes()[..8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use mica_layerdb::Digest;
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn once_of_many_at_once_reads_once_and_all_wait_for_it() {
        let verified = Verified::default();
        let (reads, id) = (AtomicUsize::new(0), ObjectId(Digest::of(b"x")));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let verify = || {
                        std::thread::sleep(Duration::from_millis(20));
                        reads.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    verified.once(id, verify).unwrap();
                    assert_eq!(reads.load(Ordering::Relaxed), 1);
                });
            }
        });
        verified.once(ObjectId(Digest::of(b"y")), || Ok(())).unwrap();
        assert_eq!(verified.state.lock().whole.len(), 2);
    }

    #[test]
    fn once_after_a_failure_tries_again() {
        let verified = Verified::default();
        let id = ObjectId(Digest::of(b"x"));
        verified.once(id, || Err(Errno::IO.into())).unwrap_err();
        verified.once(id, || Ok(())).unwrap();
        verified.once(id, || Err(Errno::IO.into())).unwrap();
    }
}
